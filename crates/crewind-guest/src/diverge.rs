//! Divergence: the replay did something else than the recording. Said at once, with everything needed to
//! find out why.

use crate::runtime::Runtime;
use crate::start::Failure;
use crate::thread::Thread;
use crewind_trace::event::{Event, Record};

/// One line for a record, with the names of system calls.
pub fn brief(r: &Record<'_>) -> String {
    let bytes = match &r.event {
        Event::Syscall { outs, .. } => outs.iter().map(|o| o.data.len()).sum(),
        _ => 0,
    };
    brief_with(r, bytes)
}

/// As [`brief`], for an event whose data of that size was left out.
pub fn brief_with(r: &Record<'_>, bytes: usize) -> String {
    let at = format!("clock {} pc {:#x}", r.clock, r.pc);
    match &r.event {
        Event::Syscall {
            nr,
            args,
            ret,
            turn,
            ..
        } => {
            let mut six = [0u64; 6];
            for (a, b) in six.iter_mut().zip(args.iter()) {
                *a = *b;
            }
            let text = match crewind_syscalls::row(*nr) {
                Some(row) => crewind_syscalls::format(row, &six, Some(*ret), None, &[]),
                None => format!("syscall_{nr}({six:x?}) = {ret}"),
            };
            let turn = turn.map(|t| format!(" turn {t}")).unwrap_or_default();
            format!("{at}: {text} [{bytes} bytes out]{turn}")
        }
        Event::Image { .. } => format!("{at}: Image"),
        Event::Signal {
            signo,
            synchronous,
            fault_addr,
            ..
        } => {
            format!("{at}: Signal {signo} synchronous {synchronous} address {fault_addr:#x}")
        }
        other => format!("{at}: {other:x?}"),
    }
}

impl Runtime {
    /// Ends the replay: at `th`'s present position the trace has `expected`, and `found` happened.
    pub fn diverged(&mut self, th: &mut Thread, expected: &Record<'_>, found: &str) -> ! {
        let regs = th.reg_hash();
        let ctx = th.ctx();
        let (clock, rip, gpr, flags) = (ctx.clock(), ctx.rip, ctx.gpr, ctx.rflags);
        let recent = th.recent().join("\n    ");
        let place = self
            .space
            .find(rip)
            .map(|v| format!("{v:?}"))
            .unwrap_or_default();
        crate::report::fail(
            Failure::Divergence,
            format_args!(
                "the replay diverged from the recording\n  thread:   t{} of process {} (pid {} when recorded)\n  position: clock {clock}, pc {rip:#x} {place}\n  expected: {} [registers {:08x}]\n  found:    {found} [registers {regs:08x}]\n  registers: rax,rcx,rdx,rbx,rsp,rbp,rsi,rdi,r8-15 {gpr:x?} flags {flags:x}\n  the events before, oldest first:\n    {recent}\nThis is a mistake of crewind's, or the trace was recorded on another kind of cpu (crewind info shows it). Nothing after this point can be trusted. Please report it with the trace.",
                th.id.0,
                self.proc.0,
                self.pid,
                brief(expected),
                expected.regs,
            ),
        )
    }
}

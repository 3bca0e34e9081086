//! System calls: who does them, what is logged, what replay does.
//!
//! Every call is an event, those that the runtime emulates too, so that what lies between two events is a
//! function of the guest's state alone.

pub mod limits;
mod mapped;
mod memory;
mod misc;
mod pass;
mod signals;

pub use pass::output_text;

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use crate::runtime::{Flow, Runtime};
use crate::start::Mode;
use crate::thread::Thread;
use crewind_syscalls::{Class, Notice, Row};
use crewind_trace::event::{Event, MemWrite, Record};

/// A system call under way: the guest's registers at the instruction, noted before anything changed.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Number.
    pub nr: u32,
    /// Arguments.
    pub args: [u64; 6],
    /// Address of the instruction.
    pub pc: u64,
    /// Address behind it.
    pub next: u64,
    /// Clock.
    pub clock: u64,
    /// Register hash.
    pub regs: u32,
    /// How many arguments the call takes.
    pub argc: usize,
}

/// What a call gave, in the log's form.
#[derive(Clone, Debug, Default)]
pub struct Logged<'a> {
    /// Value in rax.
    pub ret: i64,
    /// Memory written.
    pub outs: Vec<MemWrite<'a>>,
    /// Place in the output order.
    pub output: Option<(u8, u64)>,
    /// Turn it came back with.
    pub turn: Option<u64>,
}

impl Call {
    /// The call that a thread stands in front of.
    pub(crate) fn of(th: &mut Thread, next: u64) -> Call {
        let regs = th.reg_hash();
        let ctx = th.ctx();
        let g = &ctx.gpr;
        let nr = g[0] as u32;
        Call {
            nr,
            args: [g[7], g[6], g[2], g[10], g[8], g[9]],
            pc: ctx.rip,
            next,
            clock: ctx.clock(),
            regs,
            argc: crewind_syscalls::row(nr).map_or(6, |r| r.args.len()),
        }
    }

    /// Argument `i` as a descriptor or other `int`.
    pub fn int(&self, i: usize) -> i32 {
        self.args[i] as i32
    }
}

impl Runtime {
    /// Handles the guest's `syscall` instruction.
    pub fn syscall(&mut self, th: &mut Thread, next: u64) -> Flow {
        if self.recording() && th.pending.load(Ordering::Acquire) != 0 {
            return Flow::Go;
        }
        if self.mode == Mode::Replay {
            if self.logged_signal_here(th).is_some() {
                return Flow::Go;
            }
            let (clock, pc) = (th.ctx().clock(), th.ctx().rip);
            if self.par.is_none()
                && matches!(th.upcoming(), Some(r) if r.clock == clock && r.pc == pc && matches!(r.event, Event::Preempt { .. }))
            {
                self.replay_preempt(th);
                return Flow::Go;
            }
        }
        let call = Call::of(th, next);
        let nr = call.nr;
        let row = crewind_syscalls::row(nr);
        if th.waited_long
            && let (Some(par), Some(row)) = (self.par, row)
        {
            par.waited_for(th, row);
        }
        if let Some(flow) = self.recording_call(th, &call) {
            return flow;
        }
        let Some(row) = row else {
            self.warn_once(nr, format_args!("the program made system call {nr}, which this crewind does not know; it got ENOSYS"));
            return self.emulated(th, &call, -i64::from(libc::ENOSYS));
        };
        if self.debug.is_some() {
            self.look_at_call(th, nr, false);
            let flow = self.known_call(th, row, &call);
            match flow {
                // It is gone.
                Flow::End => self.look_at_thread_end(th.id.0),
                _ => self.look_at_call(th, nr, true),
            }
            return flow;
        }
        self.known_call(th, row, &call)
    }

    /// A call that has a row in the table.
    fn known_call(&mut self, th: &mut Thread, row: &'static Row, call: &Call) -> Flow {
        let nr = call.nr;
        if self.touches_own_fd(row, call) {
            return self.emulated(th, call, -i64::from(libc::EBADF));
        }
        match crewind_syscalls::class(row, &call.args) {
            Class::Pass => match self.special_pass(th, row, call) {
                Some(flow) => flow,
                None => self.pass(th, row, call),
            },
            Class::Runtime => self.own_call(th, row, call),
            Class::Refuse(errno, notice, reason) => {
                if notice == Notice::Loud {
                    self.warn_once(
                        nr,
                        format_args!(
                            "{} is not supported ({reason}); the program got {}",
                            row.name,
                            crewind_syscalls::errno_name(errno).unwrap_or("an error")
                        ),
                    );
                }
                self.emulated(th, call, -i64::from(errno))
            }
        }
    }

    /// Calls with code of our own, by family.
    fn own_call(&mut self, th: &mut Thread, row: &'static Row, call: &Call) -> Flow {
        match i64::from(call.nr) {
            libc::SYS_exit => self.sys_exit(th, call),
            libc::SYS_exit_group => self.sys_exit_group(th, call),
            libc::SYS_fork | libc::SYS_vfork | libc::SYS_clone | libc::SYS_clone3 => {
                self.sys_clone(th, call)
            }
            libc::SYS_execve | libc::SYS_execveat => self.sys_execve(th, call),
            _ => {
                if let Some(flow) = self.signal_call(th, call) {
                    return flow;
                }
                if let Some(flow) = self.memory_call(th, row, call) {
                    return flow;
                }
                if let Some(flow) = self.misc_call(th, call) {
                    return flow;
                }
                self.warn_once(
                    call.nr,
                    format_args!("{} is not supported yet; the program got ENOSYS", row.name),
                );
                self.emulated(th, call, -i64::from(libc::ENOSYS))
            }
        }
    }

    /// A call whose result the runtime computed, the same in both modes.
    pub fn emulated(&mut self, th: &mut Thread, call: &Call, ret: i64) -> Flow {
        if crate::debug::strays() {
            self.finish(th, call, ret);
            return Flow::Go;
        }
        match self.mode {
            Mode::Record => self.complete(
                th,
                call,
                Logged {
                    ret,
                    ..Logged::default()
                },
            ),
            Mode::Replay => {
                let logged = self.logged(th, call);
                if logged.ret != ret {
                    self.diverged_result(th, call, &logged, ret);
                }
                self.finish(th, call, ret);
            }
        }
        Flow::Go
    }

    /// Recording: logs a completed call and gives the guest its result.
    pub fn complete(&mut self, th: &mut Thread, call: &Call, l: Logged<'_>) {
        let ret = l.ret;
        self.log_call(th, call, l);
        self.finish(th, call, ret);
    }

    /// Recording: logs a completed call.
    pub fn log_call(&mut self, th: &mut Thread, call: &Call, mut l: Logged<'_>) {
        if crate::shared::active() {
            l.outs
                .iter()
                .for_each(|o| crate::shared::was_written(o.addr, &o.data));
            crate::shared::logged_already(&l.outs);
            // What the runtime read on the way comes first.
            l.outs.splice(0..0, crate::shared::take_pending());
        }
        if let Some(lockstep) = &mut self.lockstep {
            l.outs
                .iter()
                .for_each(|o| lockstep.wrote(o.addr, o.data.len() as u64));
        }
        let event = Event::Syscall {
            nr: call.nr,
            args: Cow::Borrowed(call.args.get(..call.argc).unwrap_or(&call.args)),
            ret: l.ret,
            outs: l.outs,
            output: l.output,
            turn: l.turn,
        };
        th.append_at(call.clock, call.pc, call.regs, event);
    }

    /// What the `syscall` instruction and the kernel leave in the guest's registers.
    pub fn finish(&mut self, th: &mut Thread, call: &Call, ret: i64) {
        let ctx = th.ctx();
        ctx.gpr[0] = ret as u64;
        ctx.gpr[1] = call.next;
        ctx.gpr[11] = ctx.rflags;
        ctx.rip = call.next;
    }

    /// Replaying: takes the record of this call, which must be next.
    pub fn logged(&mut self, th: &mut Thread, call: &Call) -> Logged<'static> {
        let record = self.logged_record(th, call);
        match record.event {
            Event::Syscall {
                nr,
                ret,
                outs,
                output,
                turn,
                ..
            } if nr == call.nr => Logged {
                ret,
                outs,
                output,
                turn,
            },
            _ => self.diverged_call(th, call, &record),
        }
    }

    /// Replaying: takes the record at this call's position, whatever its kind.
    pub fn logged_record(&mut self, th: &mut Thread, call: &Call) -> Record<'static> {
        let Some(r) = self.take_record(th) else {
            self.end_of_log(th)
        };
        if matches!(r.event, Event::Killed) {
            self.park(th);
        }
        if r.clock != call.clock || r.pc != call.pc || r.regs != call.regs {
            self.diverged_call(th, call, &r);
        }
        r
    }

    /// Reports that `call` happened where the log has `r`.
    pub fn diverged_call(&mut self, th: &mut Thread, call: &Call, r: &Record<'_>) -> ! {
        let text = match crewind_syscalls::row(call.nr) {
            Some(row) => crewind_syscalls::format(
                row,
                &call.args,
                None,
                Some(&crate::runtime::GuestMem),
                &[],
            ),
            None => format!("system call {}", call.nr),
        };
        self.diverged(th, r, &text)
    }

    fn diverged_result(&mut self, th: &mut Thread, call: &Call, l: &Logged<'_>, ret: i64) -> ! {
        let args = Cow::Borrowed(&call.args[..call.argc]);
        let r = Record {
            clock: call.clock,
            pc: call.pc,
            regs: call.regs,
            event: Event::Syscall {
                nr: call.nr,
                args,
                ret: l.ret,
                outs: Vec::new(),
                output: None,
                turn: None,
            },
        };
        self.diverged(th, &r, &format!("the same call with the result {ret}"))
    }

    /// Replaying: a call done again must give what it gave when recorded.
    pub fn check_result(&mut self, th: &mut Thread, call: &Call, logged: &Logged<'_>, ret: i64) {
        if logged.ret != ret {
            self.diverged_result(th, call, logged, ret);
        }
    }

    fn touches_own_fd(&self, row: &Row, call: &Call) -> bool {
        use crewind_syscalls::ArgKind;
        // A replay has other descriptors of its own than the recording had, and takes all results from the log.
        if !self.recording() {
            return false;
        }
        // Calls that take ranges, or that make the number a new descriptor, are looked at elsewhere.
        self.fds.own().first().is_some_and(|&low| {
            row.args.iter().enumerate().any(|(i, a)| {
                matches!(a.kind, ArgKind::Fd | ArgKind::DirFd)
                    && call.int(i) >= low
                    && self.fds.is_own(call.int(i))
            })
        })
    }

    /// Tells the user something about a system call, once per number and process.
    pub fn warn_once(&mut self, nr: u32, args: std::fmt::Arguments<'_>) {
        if self.recording() && self.warned.insert(nr) {
            crate::report::warn(args);
        }
    }
}

/// The log's form of what is in guest memory now.
pub fn capture(addr: u64, len: u64) -> Option<MemWrite<'static>> {
    let data = crate::guestmem::copy_of_guest(addr, usize::try_from(len).ok()?).ok()?;
    Some(MemWrite {
        addr,
        data: Cow::Owned(data),
    })
}

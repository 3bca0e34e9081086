//! The tracer: a process between the translated program and its twin.
//!
//! Not the runtime itself, because then the twin would be the guest's child: its stops would send SIGCHLD, and
//! `wait` would find it. The tracer is a child too, but one that the kernel tells nobody about (no exit signal).

use super::compare;
use super::twin::{Stray, Twin, enters_kernel, repeats};
use super::wire::{Check, Message, Regs};
use crate::diag;
use crate::process::leave;
use crate::start::{Failure, Report};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, Instruction, IntelFormatter};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufReader, Write as _};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// Instructions and stretches remembered for the report.
const REMEMBERED: usize = 24;

/// Registers by number, as in the instruction encoding.
const RCX: usize = 1;

/// State of the tracer.
pub struct Tracer {
    twin: Twin,
    socket: UnixStream,
    control: RawFd,
    guest: libc::pid_t,
    checks: u64,
    /// Newest instructions of the twin since the last check.
    path: VecDeque<Instruction>,
    /// Newest stretches: number, start, clock at the start.
    recent: VecDeque<(u64, u64, u64)>,
    /// State at the last check that was right, or set since.
    before: Regs,
}

/// What ends the tracer's work.
enum End {
    /// The translated program ended, with the reason for the summary.
    Finished(String),
    /// The two are not the same.
    Different(String),
    /// Something does not work.
    Failed(String),
}

impl Tracer {
    /// A tracer for the stopped child `twin` of this process. `guest` is ended when it turns out to be wrong.
    pub fn new(
        twin: libc::pid_t,
        socket: UnixStream,
        control: RawFd,
        guest: libc::pid_t,
    ) -> Result<Tracer, Stray> {
        Ok(Tracer {
            twin: Twin::attach(twin)?,
            socket,
            control,
            guest,
            checks: 0,
            path: VecDeque::new(),
            recent: VecDeque::new(),
            before: Regs::default(),
        })
    }

    /// Works until the end, and reports.
    pub fn run(mut self) -> ! {
        let message = match self.work() {
            End::Finished(why) if why.is_empty() => leave(0),
            End::Finished(why) => {
                diag::emit(format_args!(
                    "lockstep: no difference in {} comparisons ({} instructions), until {why}",
                    self.checks, self.twin.instructions
                ));
                leave(0)
            }
            End::Different(message) => Report::Failed {
                failure: Failure::Internal,
                message,
            },
            End::Failed(message) => Report::Failed {
                failure: Failure::Unsupported,
                message: format!("lockstep: {message}"),
            },
        };
        message.send(self.control);
        // SAFETY: ends the process that this one was made to check.
        unsafe { libc::kill(self.guest, libc::SIGKILL) };
        leave(0)
    }

    fn work(&mut self) -> End {
        let socket = match self.socket.try_clone() {
            Ok(s) => s,
            Err(e) => return End::Failed(e.to_string()),
        };
        let mut from = BufReader::with_capacity(256 << 10, socket);
        loop {
            let message = match Message::take(&mut from) {
                Ok(Some(m)) => m,
                Ok(None) => return End::Finished("the process ended".into()),
                Err(e) => return End::Failed(format!("reading from the translated program: {e}")),
            };
            let done = match message {
                Message::Check(c) => match self.check(&c) {
                    Ok(None) => Ok(()),
                    Ok(Some(different)) => return End::Different(different),
                    Err(e) => Err(e),
                },
                Message::Finish(why) => return End::Finished(why),
                other => self.follow(&other),
            };
            if let Err(stray) = done {
                return End::Failed(format!("the native twin cannot follow: {stray}"));
            }
        }
    }

    /// Does what the runtime did.
    fn follow(&mut self, message: &Message) -> Result<(), Stray> {
        if matches!(
            message,
            Message::Unmap { .. } | Message::Map { .. } | Message::Protect { .. }
        ) {
            self.twin.forget_code();
        }
        match message {
            Message::Set { regs, fp } => {
                self.before = *regs;
                self.twin.set_regs(regs)?;
                self.twin.set_vectors(fp)
            }
            Message::Unmap { addr, len } => self
                .twin
                .inject(libc::SYS_munmap, [*addr, *len, 0, 0, 0, 0]),
            Message::Map { addr, len, prot } => {
                let flags =
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
                self.twin.inject(
                    libc::SYS_mmap,
                    [*addr, *len, *prot, flags as u64, u64::MAX, 0],
                )
            }
            Message::Protect { addr, len, prot } => self
                .twin
                .inject(libc::SYS_mprotect, [*addr, *len, *prot, 0, 0, 0]),
            Message::Bytes { addr, data } => self.twin.write(*addr, data),
            Message::Barrier => Ok(self.socket.write_all(&self.twin.pid().to_le_bytes())?),
            Message::Check(_) | Message::Finish(_) => Ok(()),
        }
    }

    /// Brings the twin to the same position and compares; the report when they differ.
    fn check(&mut self, c: &Check) -> Result<Option<String>, Stray> {
        self.path.clear();
        let stopped = match self.advance(c) {
            Ok(()) => None,
            Err(Stray::Signal(signal)) => Some(format!("its instruction raises signal {signal}")),
            Err(Stray::Kernel) => Some("it is at an instruction that enters the kernel".into()),
            Err(e @ (Stray::Failed(_) | Stray::Gone)) => return Err(e),
        };
        let found = self.twin.regs();
        let mut different = compare::registers(&c.regs, &found, c.flags);
        if stopped.is_none() {
            different.extend(compare::vectors(&c.fp, self.twin.vectors()?));
        }
        if different.is_empty() && stopped.is_none() {
            self.checks += 1;
            if self.recent.len() == REMEMBERED {
                self.recent.pop_front();
            }
            self.recent
                .push_back((c.number, c.start, self.before.clock));
            self.before = found;
            return Ok(None);
        }
        Ok(Some(self.report(c, &found, &different, stopped)))
    }

    /// Runs the twin to the position of `c`, or past its clock.
    fn advance(&mut self, c: &Check) -> Result<(), Stray> {
        while self.twin.clock <= c.regs.clock {
            let pc = self.twin.rip();
            let here = (self.twin.clock, pc) == (c.regs.clock, c.regs.rip);
            if here {
                // A repeated instruction may be left in its middle, when an iteration faults.
                let left = self.twin.regs().gpr[RCX] > c.regs.gpr[RCX];
                if !(left && self.twin.instruction(pc).is_some_and(|i| repeats(&i))) {
                    break;
                }
                self.twin.step()?;
                continue;
            }
            let (to, count) = self.line_from(pc, c.regs.rip);
            match count {
                0 => {
                    let insn = self.twin.instruction(pc);
                    insn.iter().for_each(|i| self.note(*i));
                    self.twin.step()?;
                }
                _ => self.twin.run_line(to, count)?,
            }
        }
        Ok(())
    }

    /// The straight line from `pc` to the next transfer or to `until`: where it ends and how many instructions it has.
    fn line_from(&mut self, pc: u64, until: u64) -> (u64, u64) {
        const LONGEST: u64 = 1000;
        let (mut at, mut count) = (pc, 0);
        while at != until || count == 0 {
            let Some(i) = self.twin.instruction(at) else {
                break;
            };
            if i.flow_control() != FlowControl::Next || enters_kernel(&i) || count == LONGEST {
                break;
            }
            self.note(i);
            (at, count) = (i.next_ip(), count + 1);
        }
        (at, count)
    }

    fn note(&mut self, i: Instruction) {
        if self.path.len() == REMEMBERED {
            self.path.pop_front();
        }
        self.path.push_back(i);
    }

    fn report(
        &mut self,
        c: &Check,
        found: &Regs,
        different: &[String],
        stopped: Option<String>,
    ) -> String {
        let mut s = format!(
            "lockstep: after block {} at {:#x} (clock {} to {}) the translated program is not in the native one's state",
            c.number, c.start, self.before.clock, c.regs.clock
        );
        if let Some(why) = stopped {
            let _ = write!(
                s,
                "\nthe native one cannot go on to {:#x}: {why}",
                c.regs.rip
            );
        }
        for line in different {
            let _ = write!(s, "\n  {line}");
        }
        let _ = write!(
            s,
            "\nexecuted natively (newest {REMEMBERED} instructions at most):"
        );
        for i in &self.path {
            let _ = write!(s, "\n  {}", self.line(i));
        }
        let at = self
            .twin
            .instruction(found.rip)
            .map_or(format!("{:#x}  (no instruction)", found.rip), |i| {
                self.line(&i)
            });
        let _ = write!(s, "\nnow at\n  {at}");
        let _ = write!(s, "\nregisters before:{}", compare::show(&self.before));
        let _ = write!(s, "\ntranslated:{}", compare::show(&c.regs));
        let _ = write!(s, "\nnative:{}", compare::show(found));
        let _ = write!(s, "\nblocks before, oldest first (number, address, clock):");
        for (number, start, clock) in &self.recent {
            let _ = write!(s, "\n  {number} {start:#x} {clock}");
        }
        s
    }

    /// Address, bytes and text of an instruction.
    fn line(&self, i: &Instruction) -> String {
        let mut bytes = vec![0u8; i.len()];
        let _ = self.twin.read(i.ip(), &mut bytes);
        disassemble(i.ip(), &bytes)
    }
}

/// Address, bytes and text of the instruction in `bytes`.
fn disassemble(pc: u64, bytes: &[u8]) -> String {
    let insn = Decoder::with_ip(64, bytes, pc, DecoderOptions::NONE).decode();
    let mut text = String::new();
    IntelFormatter::new().format(&insn, &mut text);
    let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{pc:#x}  {:<30}  {text}", hex.join(" "))
}

/// Closes every descriptor but these.
pub fn close_others(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().filter_map(|f| u32::try_from(*f).ok()).collect();
    keep.sort_unstable();
    let mut from = 0;
    for fd in keep.into_iter().map(Some).chain([None]) {
        let to = fd.map_or(u32::MAX, |f| f.wrapping_sub(1));
        if from <= to && fd != Some(0) {
            // SAFETY: closes descriptors that this process, a copy of the guest's, has no use for.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
        from = fd.map_or(u32::MAX, |f| f + 1);
    }
}

/// Keeps this process and its children on one cpu: they only ever run in turns, and waking a process on another
/// cpu is the dearest part of a step.
pub fn stay_on_one_cpu() {
    // SAFETY: all-zero is a valid set; the calls read and fill it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of_val(&set), &mut set) != 0 {
            return;
        }
        let last = (0..libc::CPU_SETSIZE as usize)
            .rev()
            .find(|cpu| libc::CPU_ISSET(*cpu, &set));
        if let Some(cpu) = last {
            libc::CPU_ZERO(&mut set);
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of_val(&set), &set);
        }
    }
}

/// The descriptors the tracer goes on to use.
pub fn kept(socket: &UnixStream, control: RawFd) -> Vec<RawFd> {
    vec![socket.as_raw_fd(), control, diag::fd()]
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_have_address_bytes_and_text() {
        let line = super::disassemble(0x1000, &[0x48, 0x89, 0xe5]);
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>(),
            ["0x1000", "48", "89", "e5", "mov", "rbp,rsp"]
        );
    }
}

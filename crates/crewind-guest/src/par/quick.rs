//! Events that concern only their own thread: the time, time stamps.
//!
//! They change nothing but the thread's registers and memory that its vcpu may write anyway, so nothing that others do comes
//! before or behind them but by way of that memory, which its edges order. They need no place in the order of events, and
//! not the runtime lock. Programs ask for the time hundreds of thousands of times a second (schedulers, servers, games).
//!
//! What is out of the ordinary (an error, an address where nothing may be written, something to be logged first) goes the
//! ordinary way. A replay tells both by the log: in front of an event that has a place stands a `Sync` record.

use std::borrow::Cow;

use super::Par;
use super::rights::entry;
use crate::layout::{PAGE, is_guest};
use crate::runtime::Runtime;
use crate::syscall::Call;
use crate::thread::Thread;
use crewind_trace::event::{Event, MemWrite, Record};
use crewind_x86::insn::{self, InsnKind};
use crewind_x86::rights::NO_WRITE;
use crewind_x86::{Exit, InsnExit, InsnResult};

/// What a call for the time gave.
struct Told {
    ret: i64,
    /// What it writes, and where.
    out: Option<(u64, [u8; 16])>,
    len: usize,
}

/// Asks for the time as the call does. `None`: in another way, or there is an error.
fn tell(call: &Call) -> Option<Told> {
    let [a, b, ..] = call.args;
    match i64::from(call.nr) {
        libc::SYS_clock_gettime => {
            let mut t = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            // SAFETY: fills a live struct.
            let r = unsafe { libc::clock_gettime(a as libc::clockid_t, &mut t) };
            (r == 0).then(|| Told::of_two(b, t.tv_sec, t.tv_nsec))
        }
        libc::SYS_gettimeofday if a != 0 && b == 0 => {
            let mut t = libc::timeval {
                tv_sec: 0,
                tv_usec: 0,
            };
            // SAFETY: fills a live struct.
            let r = unsafe { libc::gettimeofday(&mut t, std::ptr::null_mut()) };
            (r == 0).then(|| Told::of_two(a, t.tv_sec, t.tv_usec))
        }
        libc::SYS_time => {
            // SAFETY: takes no pointer here.
            let t = unsafe { libc::time(std::ptr::null_mut()) };
            let mut told = Told::of_two(a, t, 0);
            (told.ret, told.len) = (t, 8);
            told.out = told.out.filter(|_| a != 0);
            (t >= 0).then_some(told)
        }
        _ => None,
    }
}

impl Told {
    fn of_two(addr: u64, seconds: i64, rest: i64) -> Told {
        let mut bytes = [0; 16];
        let (low, high) = bytes.split_at_mut(8);
        low.copy_from_slice(&seconds.to_le_bytes());
        high.copy_from_slice(&rest.to_le_bytes());
        Told {
            ret: 0,
            out: Some((addr, bytes)),
            len: 16,
        }
    }
}

/// Whether a call is one of those that [`tell`] knows.
fn asks_for_time(nr: u64) -> bool {
    matches!(
        nr as i64,
        libc::SYS_clock_gettime | libc::SYS_gettimeofday | libc::SYS_time
    )
}

/// Whether an instruction only tells something: it writes registers, and cannot fail.
fn only_tells(i: &InsnExit) -> bool {
    matches!(
        i.kind,
        InsnKind::Rdtsc | InsnKind::Rdtscp | InsnKind::Rdrand | InsnKind::Rdseed
    )
}

/// No memory at all: what an instruction that only tells is given.
struct NoMemory;

impl insn::GuestMemory for NoMemory {
    fn read(&mut self, addr: u64, _: &mut [u8]) -> Result<(), u64> {
        Err(addr)
    }
    fn write(&mut self, addr: u64, _: &[u8]) -> Result<(), u64> {
        Err(addr)
    }
}

/// Writes to guest memory that lies on one page, so all of it or nothing. False: nothing was written.
fn write_at_once(addr: u64, bytes: &[u8]) -> bool {
    addr % PAGE + bytes.len() as u64 <= PAGE && crate::guestmem::copy_to_guest(addr, bytes).is_ok()
}

impl Par {
    /// Whether the thread's vcpu may write to a range anyway.
    fn may_write(&self, th: &Thread, addr: u64, len: usize) -> bool {
        let rights = &self.slot(th).rights;
        let (first, last) = (
            entry(self.shift(), addr),
            entry(self.shift(), addr.wrapping_add(len as u64 - 1)),
        );
        is_guest(addr, len as u64)
            && rights.get(first) & NO_WRITE == 0
            && rights.get(last) & NO_WRITE == 0
    }
}

impl Runtime {
    /// Recording: does and logs what the thread left translated code for, if that concerns only itself. The thread is busy
    /// and has no lock. False: nothing was done.
    pub(super) fn quick_event(&mut self, th: &mut Thread, par: &Par, exit: &Exit) -> bool {
        let nothing_first =
            th.edges.is_empty() && th.vcpu_note.is_none() && th.epoch == par.epoch();
        if !par.is_ordered() || !nothing_first || th.unordered || crate::shared::active() {
            return false;
        }
        match exit {
            Exit::Syscall { next } if asks_for_time(th.ctx().gpr[0]) => {
                // A signal that is here comes first.
                th.pending.load(std::sync::atomic::Ordering::Acquire) == 0
                    && self.record_time(th, par, *next)
            }
            Exit::Insn(i) if only_tells(i) => {
                let (clock, pc, regs) = (th.ctx().clock(), th.ctx().rip, th.reg_hash());
                let r = insn::sample(th.ctx(), i);
                if insn::apply(th.ctx(), i, &r, &mut NoMemory).is_err() {
                    return false;
                }
                let event = Event::Insn {
                    kind: i.kind as u8,
                    values: Cow::Borrowed(&r.0),
                };
                th.append_record(clock, pc, regs, event);
                true
            }
            _ => false,
        }
    }

    fn record_time(&mut self, th: &mut Thread, par: &Par, next: u64) -> bool {
        let call = Call::of(th, next);
        let Some(told) = tell(&call) else {
            return false;
        };
        let mut outs = Vec::new();
        if let Some((addr, bytes)) = &told.out {
            let bytes = bytes.get(..told.len).unwrap_or(bytes);
            if !par.may_write(th, *addr, told.len) || !write_at_once(*addr, bytes) {
                return false;
            }
            outs.push(MemWrite {
                addr: *addr,
                data: Cow::Borrowed(bytes),
            });
        }
        let event = Event::Syscall {
            nr: call.nr,
            args: Cow::Borrowed(call.args.get(..call.argc).unwrap_or(&call.args)),
            ret: told.ret,
            outs,
            output: None,
            turn: None,
        };
        th.append_record(call.clock, call.pc, call.regs, event);
        self.finish(th, &call, told.ret);
        true
    }

    /// Replaying: repeats such an event, if that is what comes next. The thread is busy and has no lock. False: nothing was
    /// done.
    pub(super) fn repeat_quick(&mut self, th: &mut Thread, par: &Par, exit: &Exit) -> bool {
        let (clock, pc) = (th.ctx().clock(), th.ctx().rip);
        let here = |r: &&Record<'_>| r.clock == clock && r.pc == pc;
        match exit {
            Exit::Syscall { next } if asks_for_time(th.ctx().gpr[0]) => {
                let regs = th.reg_hash();
                let Some(Record {
                    event: Event::Syscall { nr, ret, outs, .. },
                    ..
                }) = th.upcoming().filter(here).filter(|r| r.regs == regs)
                else {
                    return false;
                };
                let (nr, ret) = (*nr, *ret);
                // Translated code may lie on the page; that is for the ordinary way.
                let written = match outs.as_slice() {
                    [] => true,
                    [o] => write_at_once(o.addr, &o.data),
                    _ => false,
                };
                if u64::from(nr) != th.ctx().gpr[0] || !written {
                    return false;
                }
                par.publish(th, true);
                let call = Call::of(th, *next);
                th.take();
                self.finish(th, &call, ret);
                true
            }
            Exit::Insn(i) if only_tells(i) => {
                if !th
                    .upcoming()
                    .filter(here)
                    .is_some_and(|r| matches!(r.event, Event::Insn { .. }))
                {
                    return false;
                }
                par.publish(th, true);
                let r: InsnResult = self.logged_insn(th, i);
                // Cannot fail: it did not when it was recorded.
                let _ = insn::apply(th.ctx(), i, &r, &mut NoMemory);
                true
            }
            _ => false,
        }
    }
}

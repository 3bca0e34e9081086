//! Events that concern only their own thread: the time, time stamps.
//!
//! They change nothing but the thread's registers and memory that its vcpu may write anyway, so nothing that others do comes
//! before or behind them but by way of that memory, which its edges order. They need no place in the order of events, and
//! not the runtime lock. Programs ask for the time hundreds of thousands of times a second (schedulers, servers, games).
//!
//! What is out of the ordinary (an error, an address where nothing may be written, something to be logged first) goes the
//! ordinary way. A replay tells both by the log: in front of an event that has a place stands a `Sync` record.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use super::Par;
use crate::layout::PAGE;
use crate::runtime::Runtime;
use crate::syscall::{Call, Logged};
use crate::thread::Thread;
use crewind_trace::event::{Event, MemWrite, Record};
use crewind_x86::Exit;

/// Asks for the time as the call does. `None`: in another way, or there is an error.
fn tell(call: &Call) -> Option<Logged<'static>> {
    let [a, b, ..] = call.args;
    match i64::from(call.nr) {
        libc::SYS_clock_gettime => {
            let mut t = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            // SAFETY: fills a live struct.
            let r = unsafe { libc::clock_gettime(a as libc::clockid_t, &mut t) };
            (r == 0).then(|| told(0, b, &[t.tv_sec, t.tv_nsec]))
        }
        libc::SYS_gettimeofday if a != 0 && b == 0 => {
            let mut t = libc::timeval {
                tv_sec: 0,
                tv_usec: 0,
            };
            // SAFETY: fills a live struct.
            let r = unsafe { libc::gettimeofday(&mut t, std::ptr::null_mut()) };
            (r == 0).then(|| told(0, a, &[t.tv_sec, t.tv_usec]))
        }
        libc::SYS_time => {
            // SAFETY: takes no pointer here.
            let t = unsafe { libc::time(std::ptr::null_mut()) };
            let written: &[i64] = if a == 0 { &[] } else { &[t] };
            (t >= 0).then(|| told(t, a, written))
        }
        _ => None,
    }
}

/// The result of a call that writes these numbers to an address.
fn told(ret: i64, addr: u64, written: &[i64]) -> Logged<'static> {
    let bytes: Vec<u8> = written.iter().flat_map(|n| n.to_le_bytes()).collect();
    let out = (!bytes.is_empty()).then_some(MemWrite {
        addr,
        data: Cow::Owned(bytes),
    });
    Logged {
        ret,
        outs: out.into_iter().collect(),
        ..Logged::default()
    }
}

/// Whether a call is one of those that [`tell`] knows.
fn asks_for_time(nr: u64) -> bool {
    matches!(
        nr as i64,
        libc::SYS_clock_gettime | libc::SYS_gettimeofday | libc::SYS_time
    )
}

/// Writes what such a call writes if it lies on one page, so all of it or nothing. False: nothing was written.
fn write_at_once(outs: &[MemWrite<'_>]) -> bool {
    match outs {
        [] => true,
        [o] => {
            o.addr % PAGE + o.data.len() as u64 <= PAGE
                && crate::guestmem::copy_to_guest(o.addr, &o.data).is_ok()
        }
        _ => false,
    }
}

impl Par {
    /// Whether the thread's vcpu may write this, which is smaller than a granule, anyway.
    fn may_write(&self, th: &Thread, out: &MemWrite<'_>) -> bool {
        let last = out.addr.wrapping_add(out.data.len() as u64 - 1);
        self.is_free() || !self.lacks(th, out.addr, true) && !self.lacks(th, last, true)
    }
}

impl Runtime {
    /// Recording: does and logs what the thread left translated code for, if that concerns only itself. The thread is busy
    /// and has no lock. False: nothing was done.
    pub(super) fn quick_event(&mut self, th: &mut Thread, par: &Par, exit: &Exit) -> bool {
        let nothing_first = th.edges.is_empty() && !th.needs_place(par);
        if !par.is_ordered() || !nothing_first || th.unordered || crate::shared::active() {
            return false;
        }
        match exit {
            // A signal that is here comes first.
            Exit::Syscall { next }
                if asks_for_time(th.ctx().gpr[0]) && th.pending.load(Ordering::Acquire) == 0 =>
            {
                let call = Call::of(th, *next);
                let Some(told) = tell(&call) else {
                    return false;
                };
                let may_write = told.outs.iter().all(|o| par.may_write(th, o));
                if !may_write || !write_at_once(&told.outs) {
                    return false;
                }
                th.unordered = true;
                self.complete(th, &call, told);
            }
            Exit::Insn(i) if i.kind.only_tells() => {
                th.unordered = true;
                self.instruction(th, i);
            }
            _ => return false,
        }
        th.unordered = false;
        true
    }

    /// Replaying: repeats such an event, if that is what comes next. The thread is busy and has no lock. False: nothing was
    /// done.
    pub(super) fn repeat_quick(&mut self, th: &mut Thread, par: &Par, exit: &Exit) -> bool {
        let (clock, pc) = (th.ctx().clock(), th.ctx().rip);
        let here = |r: &&Record<'_>| r.clock == clock && r.pc == pc;
        match exit {
            Exit::Syscall { next } if asks_for_time(th.ctx().gpr[0]) => {
                let call = Call::of(th, *next);
                let next = th.upcoming().filter(here).map(|r| (r.regs, &r.event));
                // Translated code may lie on the page; that is for the ordinary way.
                let done = matches!(next, Some((regs, Event::Syscall { nr, outs, .. }))
                    if regs == call.regs && *nr == call.nr && write_at_once(outs));
                if done {
                    par.publish(th, true);
                    let ret = self.logged(th, &call).ret;
                    self.finish(th, &call, ret);
                }
                done
            }
            Exit::Insn(i) if i.kind.only_tells() => {
                let next = th.upcoming().filter(here).map(|r| &r.event);
                let comes = matches!(next, Some(Event::Insn { .. }));
                if comes {
                    par.publish(th, true);
                    self.instruction(th, i);
                }
                comes
            }
            _ => false,
        }
    }
}

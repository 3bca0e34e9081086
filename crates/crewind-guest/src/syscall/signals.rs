//! Signal state: dispositions, masks, alternate stacks. Bookkeeping of the runtime, the same in both modes.

use std::sync::atomic::Ordering;

use super::{Call, Logged};
use crate::guestmem;
use crate::hostcall;
use crate::runtime::{Flow, Runtime};
use crate::signal::{
    self, MAX, SS_AUTODISARM, SS_DISABLE, SYNCHRONOUS, SigAction, SigInfo, Stack, UNBLOCKABLE, bit,
};
use crate::start::Mode;
use crate::thread::{Interrupted, Thread};

const EFAULT: i64 = -(libc::EFAULT as i64);
const EINVAL: i64 = -(libc::EINVAL as i64);
const EPERM: i64 = -(libc::EPERM as i64);
const ENOMEM: i64 = -(libc::ENOMEM as i64);
/// Kernel MINSIGSTKSZ: what `sigaltstack` accepts at least.
const MIN_STACK: u64 = 2048;
/// Flags that the kernel keeps (UAPI_SA_FLAGS and SA_RESTORER).
const KNOWN_FLAGS: u64 = 0xdc00_0007 | 0x0400_0000 | 0x800;

/// More than a signal frame takes.
const FRAME_REACH: u64 = 4096;

impl Runtime {
    /// Handles a call of this family; `None` when it is of another.
    pub fn signal_call(&mut self, th: &mut Thread, call: &Call) -> Option<Flow> {
        let ret = match i64::from(call.nr) {
            libc::SYS_rt_sigaction => self.rt_sigaction(call),
            libc::SYS_rt_sigprocmask => return Some(self.rt_sigprocmask(th, call)),
            libc::SYS_sigaltstack => self.sigaltstack(th, call),
            libc::SYS_rt_sigreturn => return Some(self.rt_sigreturn(th, call)),
            libc::SYS_rt_sigsuspend => return Some(self.rt_sigsuspend(th, call)),
            libc::SYS_rt_sigpending | libc::SYS_rt_sigtimedwait => {
                let row = crewind_syscalls::row(call.nr)?;
                return Some(self.pass(th, row, call));
            }
            libc::SYS_restart_syscall => -i64::from(libc::EINTR),
            _ => return None,
        };
        Some(self.emulated(th, call, ret))
    }

    /// Writes guest memory for an emulated call.
    pub fn put_guest(&mut self, addr: u64, bytes: &[u8]) -> bool {
        self.prepare_write(addr, bytes.len() as u64);
        guestmem::copy_to_guest(addr, bytes).is_ok()
    }

    fn rt_sigaction(&mut self, call: &Call) -> i64 {
        let [signo, new, old, size, ..] = call.args;
        let signo = signo as u32;
        if size != 8 || signo == 0 || signo as usize > MAX {
            return EINVAL;
        }
        let mut raw = [0u8; 32];
        if new != 0 {
            if guestmem::copy_from_guest(&mut raw, new).is_err() {
                return EFAULT;
            }
            if UNBLOCKABLE & bit(signo) != 0 {
                return EINVAL;
            }
        }
        let before = self.actions[signo as usize];
        if new != 0 {
            let word =
                |i: usize| u64::from_le_bytes(raw[8 * i..8 * i + 8].try_into().unwrap_or_default());
            let action = SigAction {
                handler: word(0),
                flags: word(1) & KNOWN_FLAGS,
                restorer: word(2),
                mask: word(3) & !UNBLOCKABLE,
            };
            self.set_action(signo, action);
        }
        if old != 0 {
            let mut out = [0u8; 32];
            for (i, v) in [before.handler, before.flags, before.restorer, before.mask]
                .into_iter()
                .enumerate()
            {
                out[8 * i..8 * i + 8].copy_from_slice(&v.to_le_bytes());
            }
            if !self.put_guest(old, &out) {
                return EFAULT;
            }
        }
        0
    }

    fn rt_sigprocmask(&mut self, th: &mut Thread, call: &Call) -> Flow {
        let [how, new, old, size, ..] = call.args;
        let before = th.mask;
        let mut ret = 0;
        let mut after = before;
        if size != 8 {
            ret = EINVAL;
        } else if new != 0 {
            match guestmem::read_u64(new) {
                Err(_) => ret = EFAULT,
                Ok(set) => match how as i32 {
                    libc::SIG_BLOCK => after = before | set,
                    libc::SIG_UNBLOCK => after = before & !set,
                    libc::SIG_SETMASK => after = set,
                    _ => ret = EINVAL,
                },
            }
        }
        if ret == 0 {
            after &= !UNBLOCKABLE;
            if old != 0 && !self.put_guest(old, &before.to_le_bytes()) {
                ret = EFAULT;
            }
        }
        // Logged before the host's mask changes: what that lets in comes after this call.
        let flow = self.emulated(th, call, ret);
        if after != before {
            self.set_guest_mask(th, after);
        }
        flow
    }

    fn sigaltstack(&mut self, th: &mut Thread, call: &Call) -> i64 {
        let [new, old, ..] = call.args;
        let sp = th.ctx().gpr[4];
        let before = th.altstack;
        let on = before.contains(sp) && before.enabled();
        if new != 0 {
            let mut raw = [0u8; 24];
            if guestmem::copy_from_guest(&mut raw, new).is_err() {
                return EFAULT;
            }
            let word =
                |i: usize| u64::from_le_bytes(raw[8 * i..8 * i + 8].try_into().unwrap_or_default());
            let (base, flags, size) = (word(0), word(1) as u32, word(2));
            if on {
                return EPERM;
            }
            let mode = flags & !SS_AUTODISARM;
            if mode != 0 && mode != SS_DISABLE && mode != signal::SS_ONSTACK {
                return EINVAL;
            }
            if mode == SS_DISABLE {
                th.altstack = Stack {
                    sp: 0,
                    flags,
                    size: 0,
                };
            } else {
                if size < MIN_STACK.max(crate::fpstate::frame_size() as u64) {
                    return ENOMEM;
                }
                th.altstack = Stack {
                    sp: base,
                    flags,
                    size,
                };
            }
        }
        if old != 0 {
            let shown = match (before.size, on) {
                (0, _) => SS_DISABLE,
                (_, true) => signal::SS_ONSTACK,
                (_, false) => before.flags & SS_AUTODISARM,
            };
            let mut out = [0u8; 24];
            out[..8].copy_from_slice(&before.sp.to_le_bytes());
            out[8..12].copy_from_slice(&shown.to_le_bytes());
            out[16..].copy_from_slice(&before.size.to_le_bytes());
            if !self.put_guest(old, &out) {
                return EFAULT;
            }
        }
        0
    }

    fn rt_sigreturn(&mut self, th: &mut Thread, call: &Call) -> Flow {
        match self.mode {
            Mode::Record => {
                // The frame is read below; what that takes belongs in front of the event.
                let sp = th.ctx().gpr[4].wrapping_sub(8);
                crate::par::rights::touch(sp, FRAME_REACH, false);
                self.log_call(th, call, Logged::default());
            }
            Mode::Replay => {
                self.logged(th, call);
            }
        }
        if self.sigreturn(th).is_err() {
            return self.raise(th, SigInfo::fault(libc::SIGSEGV, 0x80, 0));
        }
        Flow::Go
    }

    /// Waits with another mask. Always ends with EINTR, and a handler.
    fn rt_sigsuspend(&mut self, th: &mut Thread, call: &Call) -> Flow {
        let mask = match guestmem::read_u64(call.args[0]) {
            _ if call.args[1] != 8 => return self.emulated(th, call, EINVAL),
            Err(_) => return self.emulated(th, call, EFAULT),
            Ok(m) => m & !UNBLOCKABLE,
        };
        let eintr = -i64::from(libc::EINTR);
        let note = |th: &mut Thread| {
            th.temp_mask = Some(mask);
            th.interrupted = Some(Interrupted {
                nr: call.nr,
                pc: call.pc,
                restartable: false,
            });
        };
        if self.mode == Mode::Replay {
            let l = self.logged(th, call);
            if let Some(turn) = l.turn
                && self.par.is_none()
            {
                self.vcpu.release();
                self.wait_turn(th, turn);
            }
            note(th);
            self.finish(th, call, l.ret);
            return Flow::Go;
        }
        if th.held.iter().any(|s| mask & bit(s.signo()) == 0) {
            th.mask &= !(SYNCHRONOUS & !mask);
        }
        let host_mask = mask & !SYNCHRONOUS;
        let blocking = self.multi() && !self.in_vfork;
        let mut turn = None;
        let ret = loop {
            let apart = self.deferred.is_some() && self.par.is_none() && !self.in_vfork;
            if blocking {
                self.release_vcpu(th);
            } else if apart {
                crate::deferred::step_aside(th);
            }
            let args = [&raw const host_mask as u64, 8, 0, 0, 0, 0];
            // SAFETY: the kernel reads the mask.
            let ret = unsafe { hostcall::guest_syscall(call.nr, &args, &th.pending) };
            if blocking {
                turn = Some(self.acquire_vcpu(th));
            } else if apart {
                crate::deferred::come_back();
            }
            if ret == hostcall::ABORTED {
                if let Some(turn) = turn {
                    self.log_preempt(th, call, turn);
                }
                return Flow::Go;
            }
            if th.pending.load(Ordering::Acquire) == 0 {
                if let Some(turn) = turn.take() {
                    self.log_preempt(th, call, turn);
                }
                continue;
            }
            break ret;
        };
        note(th);
        debug_assert_eq!(ret, eintr);
        self.complete(
            th,
            call,
            Logged {
                ret: eintr,
                turn,
                ..Logged::default()
            },
        );
        Flow::Go
    }

    /// Logs a turn that was taken at a call's position without the call having happened.
    pub fn log_preempt(&mut self, th: &mut Thread, call: &Call, turn: u64) {
        if self.par.is_some() {
            // The vcpu it came back with goes in front of the thread's next event.
            return;
        }
        th.append_at(
            call.clock,
            call.pc,
            call.regs,
            crewind_trace::event::Event::Preempt { turn },
        );
    }
}

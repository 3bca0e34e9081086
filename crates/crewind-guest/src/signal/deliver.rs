//! Letting signals in: which signal, when, and what it does.
//!
//! Recording, the run loop calls [`Runtime::let_signals_in`] before it enters translated code, that is after
//! every tick and system call; replaying, the same place looks at the log. Both end in
//! [`Runtime::deliver`], so that frames, masks and restarts are the same code.

use std::sync::atomic::Ordering;

use super::host::{self, Host};
use super::{DFL, Default, IGN, SYNCHRONOUS, SigAction, SigInfo, bit, default_action, frame};
use crate::runtime::{Flow, Runtime};
use crate::start::Mode;
use crate::thread::Thread;
use crewind_trace::event::Event;
use crewind_x86::CodeCache;
use std::borrow::Cow;

const SA_RESETHAND: u64 = 0x8000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESTART: u64 = 0x1000_0000;

/// What a signal would do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it is as if it had not come.
    None,
    /// A handler runs.
    Handler,
    /// The process ends.
    Fatal,
}

/// Whether a handler may look at the flags of a fault: one that gets the machine's state. (The others have no way to it but
/// their own stack, which no compiler or library looks at.)
pub(crate) fn wants_flags(signo: u32, action: &SigAction) -> bool {
    SYNCHRONOUS & bit(signo) != 0
        && action.handler > IGN
        && action.flags & libc::SA_SIGINFO as u64 != 0
}

/// Memory that holds a signal's frame, and some more.
fn frame_reach(action: &SigAction, stack: &super::Stack, sp: u64) -> (u64, u64) {
    const REACH: u64 = 8192;
    let onto =
        action.flags & libc::SA_ONSTACK as u64 != 0 && stack.enabled() && !stack.contains(sp);
    let top = if onto {
        stack.sp.wrapping_add(stack.size)
    } else {
        sp
    };
    (top.saturating_sub(REACH), REACH.min(top))
}

impl Runtime {
    /// What signal `signo` does with the present dispositions.
    pub fn effect(&self, signo: u32) -> Effect {
        match self.actions[signo as usize].handler {
            IGN => Effect::None,
            DFL => match default_action(signo) {
                Default::Terminate => Effect::Fatal,
                Default::Ignore | Default::Stop => Effect::None,
            },
            _ => Effect::Handler,
        }
    }

    /// Lets in what waits: the slot's signal (recording) or the log's (replaying).
    pub fn let_signals_in(&mut self, th: &mut Thread) -> Flow {
        match self.mode {
            Mode::Record => {
                while th.pending.load(Ordering::Acquire) != 0 {
                    // SAFETY: the handler does not write the slot while everything is blocked.
                    let info = unsafe { *th.slot.get() };
                    th.pending.store(0, Ordering::Release);
                    let signo = info.signo();
                    if th.mask & bit(signo) != 0 && th.temp_mask.is_none_or(|m| m & bit(signo) != 0)
                    {
                        // Blocked since it came: back to the kernel, or kept when the host cannot block it.
                        if SYNCHRONOUS & bit(signo) != 0 {
                            th.held.push(info);
                        } else {
                            host::requeue(&info);
                        }
                        host::set_mask(th.mask);
                        continue;
                    }
                    if self.is_start_signal(signo) {
                        host::set_mask(th.mask);
                        self.start_by_signal();
                        continue;
                    }
                    if self.effect(signo) == Effect::None {
                        host::set_mask(th.mask);
                        continue;
                    }
                    if self.deliver(th, info, false) == Flow::End {
                        return Flow::End;
                    }
                }
                if let Some(i) = th.held.iter().position(|s| th.mask & bit(s.signo()) == 0) {
                    let info = th.held.remove(i);
                    return self.deliver(th, info, false);
                }
                self.give_up_eintr(th);
            }
            Mode::Replay => {
                self.settle_here(th);
                while let Some(signo) = self.logged_signal_here(th) {
                    if self.debug.is_some() {
                        self.look_at_signal(th, signo);
                    }
                    let Some(r) = self.take_record(th) else { break };
                    let regs = th.reg_hash();
                    if r.regs != regs || r.pc != th.ctx().rip {
                        self.diverged(th, &r, "the same clock with other registers");
                    }
                    if let Event::Signal { info, .. } = &r.event {
                        let mut i = SigInfo::zeroed();
                        if info.len() == 128 {
                            i.bytes.copy_from_slice(info);
                        }
                        if self.deliver(th, i, false) == Flow::End {
                            return Flow::End;
                        }
                    }
                    self.settle_here(th);
                }
                self.give_up_eintr(th);
            }
        }
        Flow::Go
    }

    /// No handler took the EINTR, so the guest sees it.
    fn give_up_eintr(&mut self, th: &mut Thread) {
        th.interrupted = None;
        th.temp_mask = None;
    }

    /// The asynchronous signal that the log has at the present clock and pc.
    pub fn logged_signal_here(&self, th: &mut Thread) -> Option<u32> {
        let (clock, pc) = (th.ctx().clock(), th.ctx().rip);
        match th.upcoming() {
            Some(r) if r.clock == clock && r.pc == pc => match r.event {
                Event::Signal {
                    synchronous: false,
                    signo,
                    ..
                } => Some(signo.into()),
                _ => None,
            },
            _ => None,
        }
    }

    /// Does what a signal does, and logs it when recording.
    pub fn deliver(&mut self, th: &mut Thread, info: SigInfo, synchronous: bool) -> Flow {
        let signo = info.signo();
        let action = self.actions[signo as usize];
        // The kernel forces a synchronous signal: blocked or ignored, it kills.
        let forced = synchronous && (action.handler == IGN || th.mask & bit(signo) != 0);
        if self.recording() {
            if !forced && action.handler > IGN {
                // What it takes to write the frame belongs in front of the event.
                let sp = th.ctx().gpr[4];
                let (at, len) = frame_reach(&action, &th.altstack, sp);
                crate::par::rights::touch(at, len, true);
            }
            let event = Event::Signal {
                signo: signo as u8,
                info: Cow::Borrowed(&info.bytes),
                fault_addr: if synchronous { info.addr() } else { 0 },
                synchronous,
            };
            th.append(event);
        }
        if forced || action.handler == DFL || action.handler == IGN {
            return self.fatal(th, signo);
        }
        if let Some(i) = th.interrupted.take()
            && i.restartable
            && action.flags & SA_RESTART != 0
        {
            let ctx = th.ctx();
            ctx.rip = i.pc;
            ctx.gpr[0] = u64::from(i.nr);
        }
        let restore = th.mask;
        let base = th.temp_mask.take().unwrap_or(th.mask);
        let mut stack = th.altstack;
        let sp = th.ctx().gpr[4];
        self.prepare_frame(&action, &stack, sp);
        if frame::push(th.ctx(), &action, &info, &mut stack, restore).is_err() {
            return self.bad_frame(th, signo);
        }
        th.altstack = stack;
        let mut mask = base | action.mask;
        if action.flags & SA_NODEFER == 0 {
            mask |= bit(signo);
        }
        if action.flags & SA_RESETHAND != 0 {
            self.set_action(
                signo,
                SigAction {
                    handler: DFL,
                    ..action
                },
            );
        }
        // Delivery ticks: else a handler that returns would make the same position happen twice.
        let ctx = th.ctx();
        let clock = ctx.clock() + 1;
        ctx.set_clock(clock);
        self.set_guest_mask(th, mask & !super::UNBLOCKABLE);
        Flow::Go
    }

    /// The frame may land on pages that are write-protected because they hold translated code.
    fn prepare_frame(&mut self, action: &SigAction, stack: &super::Stack, sp: u64) {
        let (at, len) = frame_reach(action, stack, sp);
        self.prepare_write(at, len);
    }

    /// A frame that cannot be written: SIGSEGV instead, fatal when it was that already.
    fn bad_frame(&mut self, th: &mut Thread, signo: u32) -> Flow {
        let segv = libc::SIGSEGV as u32;
        if signo == segv {
            return self.fatal(th, segv);
        }
        let info = SigInfo::fault(libc::SIGSEGV, 0x80, 0);
        match self.mode {
            Mode::Record => self.deliver(th, info, true),
            Mode::Replay => self.raise(th, info),
        }
    }

    /// `rt_sigreturn`: back from a handler.
    pub fn sigreturn(&mut self, th: &mut Thread) -> Result<(), frame::BadFrame> {
        let r = frame::pop(th.ctx())?;
        let ctx = th.ctx();
        let clock = ctx.clock() + 1;
        ctx.set_clock(clock);
        th.altstack = r.stack;
        if r.stack.size == 0 {
            th.altstack.flags = super::SS_DISABLE;
        }
        self.set_guest_mask(th, r.mask & !super::UNBLOCKABLE);
        Ok(())
    }

    /// Sets the guest's mask, and the host's with it when recording.
    pub fn set_guest_mask(&mut self, th: &mut Thread, mask: u64) {
        th.mask = mask;
        if self.recording() && th.pending.load(Ordering::Acquire) == 0 {
            host::set_mask(mask);
        }
    }

    /// Sets a disposition, and the host's to match when recording.
    pub fn set_action(&mut self, signo: u32, action: SigAction) {
        self.actions[signo as usize] = action;
        if wants_flags(signo, &action) {
            self.cache.show_flags_at_faults();
            if let Some(par) = self.par {
                self.in_all_caches(par, CodeCache::show_flags_at_faults);
            }
        }
        if self.mode == Mode::Replay
            || SYNCHRONOUS & bit(signo) != 0
            || super::UNBLOCKABLE & bit(signo) != 0
        {
            return;
        }
        let keep = action.flags & (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT) as u64;
        host::set_disposition(
            signo,
            match action.handler {
                _ if self.is_start_signal(signo) => Host::Catch(keep),
                IGN => Host::Ignore,
                DFL => match default_action(signo) {
                    Default::Terminate => Host::Catch(0),
                    Default::Ignore | Default::Stop if keep & libc::SA_NOCLDWAIT as u64 != 0 => {
                        Host::Ignore
                    }
                    Default::Ignore | Default::Stop => Host::Default,
                },
                _ => Host::Catch(keep),
            },
        );
    }

    /// Sets all host dispositions to match the guest's: at the start of a process, and after fork.
    pub fn sync_actions(&mut self) {
        for s in 1..=super::MAX as u32 {
            // 32 and 33 belong to the runtime's C library as long as the guest does not use them.
            let a = self.actions[s as usize];
            if (s == 32 || s == 33) && a.handler == DFL {
                continue;
            }
            self.set_action(s, a);
        }
    }
}

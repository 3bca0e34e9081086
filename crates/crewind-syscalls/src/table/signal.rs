//! Signals.

use super::kinds::*;
use crate::flags as f;
use crate::types::ArgKind::*;
use crate::types::Blocking::Always;
use crate::types::Class::Runtime;
use crate::types::Restart::NoHand;
use crate::types::{Cloexec, FdEffect, Len, Row, Shape, TempMask, When, Wrote};

pub(super) const ROWS: &[Row] = rows! {
    13 rt_sigaction(signum: Signal, act: ins(32), oldact: outs(32), sigsetsize: Size) { class: Runtime };
    14 rt_sigprocmask(how: Flags(&f::SIGPROCMASK), set: SIGSET_IN, oldset: SIGSET_OUT, sigsetsize: Size)
        { class: Runtime };
    15 rt_sigreturn() { class: Runtime };
    34 pause() { blocking: Always, restart: NoHand };
    62 kill(pid: Pid, sig: Signal);
    // Old kernels: only `sigsetsize` bytes, of which any up to 8 are allowed.
    127 rt_sigpending(set: output(Len::Arg(1), Wrote::All, When::Success, Shape::Sigset), sigsetsize: Size)
        { class: Runtime };
    128 rt_sigtimedwait(set: SIGSET_IN, info: outs_positive(SIGINFO_SIZE, Shape::Opaque), timeout: TIMESPEC_IN,
        sigsetsize: Size)
        { class: Runtime, blocking: Always };
    129 rt_sigqueueinfo(tgid: Pid, sig: Signal, info: SIGINFO_IN);
    130 rt_sigsuspend(mask: SIGSET_IN, sigsetsize: Size)
        { class: Runtime, blocking: Always, restart: NoHand, sigmask: Some(TempMask::Direct(0)) };
    131 sigaltstack(ss: ins(24), old_ss: outs(24)) { class: Runtime };
    200 tkill(tid: Pid, sig: Signal);
    219 restart_syscall() { class: Runtime };
    234 tgkill(tgid: Pid, tid: Pid, sig: Signal);
    282 signalfd(fd: Fd, mask: SIGSET_IN, sigsetsize: Size) { fds: FdEffect::New(Cloexec::No) };
    289 signalfd4(fd: Fd, mask: SIGSET_IN, sigsetsize: Size, flags: Flags(&f::SIGNALFD))
        { fds: FdEffect::New(Cloexec::Flag(3, 0o2000000)) };
    297 rt_tgsigqueueinfo(tgid: Pid, tid: Pid, sig: Signal, info: SIGINFO_IN);
};

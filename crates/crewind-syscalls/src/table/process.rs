//! Processes, threads, credentials, limits and scheduling.

use super::kinds::*;
use crate::flags as f;
use crate::types::ArgKind::*;
use crate::types::Blocking::{Always, May};
use crate::types::Class::{Refuse, Runtime};
use crate::types::Notice::{Loud, Quiet};
use crate::types::Restart::{NoIntr, RestartBlock, Restartable};
use crate::types::{Cloexec, Count, Dir, FdEffect, Len, Row, Shape, When, Wrote};

const SCHED_PARAM: u32 = 4;
const RLIMIT: u32 = 16;

pub(super) const ROWS: &[Row] = rows! {
    24 sched_yield() { blocking: May };
    39 getpid();
    56 clone(flags: Flags(&f::CLONE), stack: Addr, parent_tid: Addr, child_tid: Addr, tls: Addr)
        { class: Runtime, restart: NoIntr, fds: FdEffect::Clone };
    57 fork() { class: Runtime, restart: NoIntr };
    58 vfork() { class: Runtime, restart: NoIntr };
    59 execve(pathname: Path, argv: StrArray, envp: StrArray) { class: Runtime };
    60 exit(status: Int) { class: Runtime };
    61 wait4(pid: Pid, wstatus: outs_positive(4, Shape::WaitStatus), options: Flags(&f::WAIT),
        rusage: outs_positive(144, Shape::Opaque))
        { blocking: May, restart: Restartable };
    98 getrusage(who: Flags(&f::RUSAGE), usage: RUSAGE_OUT);
    97 getrlimit(resource: Flags(&f::RLIMIT), rlim: outs_as(RLIMIT, Shape::Rlimit));
    101 ptrace(request: Int, pid: Pid, addr: Addr, data: Addr)
        { class: Refuse(libc::EPERM, Loud, "a recorded program cannot trace others") };
    102 getuid();
    104 getgid();
    105 setuid(uid: Id);
    106 setgid(gid: Id);
    107 geteuid();
    108 getegid();
    109 setpgid(pid: Pid, pgid: Pid);
    110 getppid();
    111 getpgrp();
    112 setsid();
    113 setreuid(ruid: Id, euid: Id);
    114 setregid(rgid: Id, egid: Id);
    115 getgroups(size: Int, list: output(Len::Times(0, 4), Wrote::RetTimes(4), When::Success, Shape::I32));
    116 setgroups(size: Int, list: input(Len::Times(0, 4), Shape::I32));
    117 setresuid(ruid: Id, euid: Id, suid: Id);
    118 getresuid(ruid: U32_OUT, euid: U32_OUT, suid: U32_OUT);
    119 setresgid(rgid: Id, egid: Id, sgid: Id);
    120 getresgid(rgid: U32_OUT, egid: U32_OUT, sgid: U32_OUT);
    121 getpgid(pid: Pid);
    122 setfsuid(uid: Id);
    123 setfsgid(gid: Id);
    124 getsid(pid: Pid);
    125 capget(hdrp: CapHeader, datap: CapData(Dir::Out));
    126 capset(hdrp: CapHeader, datap: CapData(Dir::In));
    135 personality(persona: Hex);
    140 getpriority(which: Flags(&f::PRIO), who: Pid);
    141 setpriority(which: Flags(&f::PRIO), who: Pid, prio: Int);
    142 sched_setparam(pid: Pid, param: ins_as(SCHED_PARAM, Shape::I32));
    143 sched_getparam(pid: Pid, param: outs_as(SCHED_PARAM, Shape::I32));
    144 sched_setscheduler(pid: Pid, policy: Flags(&f::SCHED), param: ins_as(SCHED_PARAM, Shape::I32));
    145 sched_getscheduler(pid: Pid);
    146 sched_get_priority_max(policy: Flags(&f::SCHED));
    147 sched_get_priority_min(policy: Flags(&f::SCHED));
    148 sched_rr_get_interval(pid: Pid, tp: TIMESPEC_OUT);
    157 prctl(option: Prctl, arg2: Prctl, arg3: Prctl, arg4: Prctl, arg5: Prctl);
    158 arch_prctl(code: Flags(&f::ARCH_PRCTL), addr: Hex) { class: Runtime };
    160 setrlimit(resource: Flags(&f::RLIMIT), rlim: ins_as(RLIMIT, Shape::Rlimit));
    186 gettid();
    202 futex(uaddr: FutexAddr, futex_op: Flags(&f::FUTEX), val: Uint, val2: FutexVal2, uaddr2: FutexAddr2,
        val3: Hex)
        { blocking: May, restart: RestartBlock };
    // The kernel writes the result's bytes, at most as many as its own mask has.
    203 sched_setaffinity(pid: Pid, cpusetsize: Uint, mask: in_mask(1));
    204 sched_getaffinity(pid: Pid, cpusetsize: Uint,
        mask: output(Len::Arg(1), Wrote::Ret, When::Success, Shape::Hex64));
    205 set_thread_area(u_info: Addr) { class: Refuse(libc::ENOSYS, Quiet, "not on x86-64") };
    211 get_thread_area(u_info: Addr) { class: Refuse(libc::ENOSYS, Quiet, "not on x86-64") };
    218 set_tid_address(tidptr: Addr) { class: Runtime };
    231 exit_group(status: Int) { class: Runtime };
    // Writes the structure also when it fails or finds nothing (then zeros).
    247 waitid(idtype: Flags(&f::WAITID), id: Pid,
        infop: output(Len::Bytes(28), Wrote::All, When::Always, Shape::Opaque),
        options: Flags(&f::WAIT), rusage: output(Len::Bytes(144), Wrote::All, When::Success, Shape::Opaque))
        { blocking: May, restart: Restartable };
    251 ioprio_set(which: Int, who: Pid, ioprio: Hex);
    252 ioprio_get(which: Int, who: Pid);
    272 unshare(flags: Flags(&f::NAMESPACE));
    273 set_robust_list(head: Addr, len: Size) { class: Runtime };
    274 get_robust_list(pid: Pid, head_ptr: outs_as(8, Shape::Hex64), len_ptr: outs_as(8, Shape::I64))
        { class: Runtime };
    302 prlimit64(pid: Pid, resource: Flags(&f::RLIMIT), new_limit: ins_as(RLIMIT, Shape::Rlimit),
        old_limit: outs_as(RLIMIT, Shape::Rlimit));
    308 setns(fd: Fd, nstype: Flags(&f::NAMESPACE));
    309 getcpu(cpu: U32_OUT, node: U32_OUT, tcache: Addr);
    310 process_vm_readv(pid: Pid, local_iov: Iovec { dir: Dir::Out, count: 2 }, liovcnt: Size,
        remote_iov: RemoteIovec { count: 4 }, riovcnt: Size, flags: Hex);
    311 process_vm_writev(pid: Pid, local_iov: Iovec { dir: Dir::In, count: 2 }, liovcnt: Size,
        remote_iov: RemoteIovec { count: 4 }, riovcnt: Size, flags: Hex)
        { class: Refuse(libc::EPERM, Loud, "process_vm_writev writes memory of another process unseen") };
    312 kcmp(pid1: Pid, pid2: Pid, type: Int, idx1: Hex, idx2: Hex);
    314 sched_setattr(pid: Pid, attr: SchedAttr, flags: Hex);
    315 sched_getattr(pid: Pid, attr: outs_sized(2), size: Uint, flags: Hex);
    317 seccomp(operation: Int, flags: Hex, args: Addr)
        { class: Refuse(libc::ENOSYS, Loud, "a filter would also apply to the recorder's own calls") };
    322 execveat(dirfd: DirFd, pathname: Path, argv: StrArray, envp: StrArray, flags: Flags(&f::AT))
        { class: Runtime };
    324 membarrier(cmd: Flags(&f::MEMBARRIER), flags: Hex, cpu_id: Int);
    334 rseq(rseq: Addr, rseq_len: Uint, flags: Hex, sig: Hex)
        { class: Refuse(libc::ENOSYS, Quiet, "restartable sequences depend on preemption; libraries do without") };
    424 pidfd_send_signal(pidfd: Fd, sig: Signal, info: SIGINFO_IN, flags: Hex);
    434 pidfd_open(pid: Pid, flags: Flags(&f::PIDFD_OPEN)) { fds: FdEffect::New(Cloexec::Yes) };
    435 clone3(cl_args: ins_sized(1), size: Size) { class: Runtime, restart: NoIntr, fds: FdEffect::Clone };
    438 pidfd_getfd(pidfd: Fd, targetfd: Int, flags: Hex) { fds: FdEffect::New(Cloexec::Yes) };
    444 landlock_create_ruleset(attr: ins_sized(1), size: Size, flags: Hex)
        { class: Refuse(libc::ENOSYS, Loud, "a Landlock sandbox would also apply to the recorder") };
    445 landlock_add_rule(ruleset_fd: Fd, rule_type: Int, rule_attr: ins(16), flags: Hex)
        { class: Refuse(libc::ENOSYS, Loud, "a Landlock sandbox would also apply to the recorder") };
    446 landlock_restrict_self(ruleset_fd: Fd, flags: Hex)
        { class: Refuse(libc::ENOSYS, Loud, "a Landlock sandbox would also apply to the recorder") };
    // Restarted also when it has a timeout: that is absolute.
    449 futex_waitv(waiters: FutexWaitv { count: Count::Arg(1) }, nr_futexes: Uint, flags: Hex, timeout: TIMESPEC_IN,
        clockid: Flags(&f::CLOCK))
        { blocking: Always, restart: Restartable };
    454 futex_wake(uaddr: FutexWord, mask: Hex, nr: Int, flags: Flags(&f::FUTEX2));
    455 futex_wait(uaddr: FutexWord, val: Hex, mask: Hex, flags: Flags(&f::FUTEX2), timeout: TIMESPEC_IN,
        clockid: Flags(&f::CLOCK))
        { blocking: Always, restart: Restartable };
    456 futex_requeue(waiters: FutexWaitv { count: Count::Is(2) }, flags: Hex, nr_wake: Int, nr_requeue: Int);
};

/// A cpu mask of as many bytes as argument `n` says.
const fn in_mask(n: u8) -> crate::types::ArgKind {
    input(Len::Arg(n), Shape::Hex64)
}

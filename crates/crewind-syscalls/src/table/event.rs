//! Waiting for events: poll, select, epoll, eventfd, inotify.

use super::kinds::*;
use crate::flags as f;
use crate::types::ArgKind::*;
use crate::types::Blocking::Always;
use crate::types::Class::Refuse;
use crate::types::Notice::{Loud, Quiet};
use crate::types::Restart::{NoHand, RestartBlock};
use crate::types::{Cloexec, Dir, FdEffect, Len, Row, Shape, TempMask, When, Wrote};

const O_CLOEXEC: u64 = 0o2000000;
/// `revents` is written back also when a signal ended the wait.
const POLLFDS: crate::types::ArgKind = Buf(crate::types::Buf {
    dir: Dir::InOut,
    len: Len::Times(1, 8),
    wrote: Wrote::All,
    when: When::SuccessOr(libc::EINTR),
    shape: Shape::Pollfd,
});
/// `struct epoll_event` has 12 bytes on x86-64.
const EPOLL_OUT: crate::types::ArgKind = output(
    Len::Times(2, 12),
    Wrote::RetTimes(12),
    When::Success,
    Shape::Epoll,
);
const AIO: &str = "the kernel would write to memory after io_submit returned";
const URING: &str = "io_uring shares memory with the kernel";

pub(super) const ROWS: &[Row] = rows! {
    7 poll(fds: POLLFDS, nfds: Uint, timeout: Int) { blocking: Always, restart: RestartBlock };
    23 select(nfds: Int, readfds: FdSet, writefds: FdSet, exceptfds: FdSet, timeout: Remaining(Shape::Timeval))
        { blocking: Always, restart: NoHand };
    206 io_setup(nr_events: Uint, ctx_idp: outs(8)) { class: Refuse(libc::ENOSYS, Loud, AIO) };
    207 io_destroy(ctx_id: Hex) { class: Refuse(libc::ENOSYS, Quiet, AIO) };
    208 io_getevents(ctx_id: Hex, min_nr: Long, nr: Long,
        events: output(Len::Times(2, 32), Wrote::RetTimes(32), When::Success, Shape::Opaque), timeout: TIMESPEC_IN)
        { class: Refuse(libc::ENOSYS, Quiet, AIO), blocking: Always };
    209 io_submit(ctx_id: Hex, nr: Long, iocbpp: input(Len::Times(1, 8), Shape::Hex64))
        { class: Refuse(libc::ENOSYS, Quiet, AIO) };
    210 io_cancel(ctx_id: Hex, iocb: ins(64), result: outs(32)) { class: Refuse(libc::ENOSYS, Quiet, AIO) };
    213 epoll_create(size: Int) { fds: FdEffect::New(Cloexec::No) };
    214 epoll_ctl_old() { class: Refuse(libc::ENOSYS, Quiet, "never implemented by Linux") };
    215 epoll_wait_old() { class: Refuse(libc::ENOSYS, Quiet, "never implemented by Linux") };
    232 epoll_wait(epfd: Fd, events: EPOLL_OUT, maxevents: Int, timeout: Int) { blocking: Always };
    233 epoll_ctl(epfd: Fd, op: Flags(&f::EPOLL_CTL), fd: Fd, event: ins_as(12, Shape::Epoll));
    253 inotify_init() { fds: FdEffect::New(Cloexec::No) };
    254 inotify_add_watch(fd: Fd, pathname: Path, mask: Flags(&f::INOTIFY));
    255 inotify_rm_watch(fd: Fd, wd: Int);
    270 pselect6(nfds: Int, readfds: FdSet, writefds: FdSet, exceptfds: FdSet, timeout: Remaining(Shape::Timespec),
        sigmask: SigsetPair)
        { blocking: Always, restart: NoHand, sigmask: Some(TempMask::Indirect(5)) };
    271 ppoll(fds: POLLFDS, nfds: Uint, tmo_p: Remaining(Shape::Timespec), sigmask: SIGSET_IN, sigsetsize: Size)
        { blocking: Always, restart: NoHand, sigmask: Some(TempMask::Direct(3)) };
    281 epoll_pwait(epfd: Fd, events: EPOLL_OUT, maxevents: Int, timeout: Int, sigmask: SIGSET_IN, sigsetsize: Size)
        { blocking: Always, sigmask: Some(TempMask::Direct(4)) };
    284 eventfd(count: Uint) { fds: FdEffect::New(Cloexec::No) };
    290 eventfd2(count: Uint, flags: Flags(&f::EVENTFD)) { fds: FdEffect::New(Cloexec::Flag(1, O_CLOEXEC)) };
    291 epoll_create1(flags: Flags(&f::EPOLL_CREATE)) { fds: FdEffect::New(Cloexec::Flag(0, O_CLOEXEC)) };
    294 inotify_init1(flags: Flags(&f::INOTIFY_INIT)) { fds: FdEffect::New(Cloexec::Flag(0, O_CLOEXEC)) };
    // Its events carry fds that read(2) makes.
    300 fanotify_init(flags: Hex, event_f_flags: Flags(&f::OPEN))
        { class: Refuse(libc::ENOSYS, Loud, "reading from fanotify makes file descriptors") };
    301 fanotify_mark(fanotify_fd: Fd, flags: Hex, mask: Hex, dirfd: DirFd, pathname: Path)
        { class: Refuse(libc::ENOSYS, Quiet, "reading from fanotify makes file descriptors") };
    333 io_pgetevents(ctx_id: Hex, min_nr: Long, nr: Long,
        events: output(Len::Times(2, 32), Wrote::RetTimes(32), When::Success, Shape::Opaque), timeout: TIMESPEC_IN,
        sigmask: SigsetPair)
        { class: Refuse(libc::ENOSYS, Quiet, AIO), blocking: Always, sigmask: Some(TempMask::Indirect(5)) };
    425 io_uring_setup(entries: Uint, params: Addr) { class: Refuse(libc::ENOSYS, Quiet, URING) };
    426 io_uring_enter(fd: Fd, to_submit: Uint, min_complete: Uint, flags: Hex, argp: Addr, argsz: Size)
        { class: Refuse(libc::ENOSYS, Quiet, URING) };
    427 io_uring_register(fd: Fd, opcode: Uint, arg: Addr, nr_args: Uint)
        { class: Refuse(libc::ENOSYS, Quiet, URING) };
    441 epoll_pwait2(epfd: Fd, events: EPOLL_OUT, maxevents: Int, timeout: TIMESPEC_IN, sigmask: SIGSET_IN,
        sigsetsize: Size)
        { blocking: Always, sigmask: Some(TempMask::Direct(4)) };
};

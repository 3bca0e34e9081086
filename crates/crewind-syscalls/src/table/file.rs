//! Calls on file descriptors: reading, writing, and the fd table.

use super::kinds::*;
use crate::flags as f;
use crate::types::ArgKind::*;
use crate::types::Blocking::{May, MayFd};
use crate::types::Restart::Restartable;
use crate::types::{Cloexec, Dir, FdEffect, FileEffect, Row, Shape};

const O_CLOEXEC: u64 = 0o2000000;

pub(super) const ROWS: &[Row] = rows! {
    0 read(fd: Fd, buf: out_buf(2), count: Size) { blocking: MayFd(0), restart: Restartable };
    1 write(fd: Fd, buf: in_buf(2), count: Size)
        { blocking: MayFd(0), restart: Restartable, file: FileEffect::Fd(0), writes_to: Some(0) };
    2 open(pathname: Path, flags: Flags(&f::OPEN), mode: Mode)
        { blocking: May, restart: Restartable, fds: FdEffect::New(Cloexec::Flag(1, O_CLOEXEC)),
          file: FileEffect::OpenTrunc(1) };
    3 close(fd: Fd) { fds: FdEffect::Close };
    8 lseek(fd: Fd, offset: Long, whence: Flags(&f::SEEK));
    16 ioctl(fd: Fd, request: Uint, argp: Ioctl)
        { blocking: May, restart: Restartable, fds: FdEffect::Ioctl, file: FileEffect::Ioctl };
    17 pread64(fd: Fd, buf: out_buf(2), count: Size, offset: Long) { blocking: MayFd(0), restart: Restartable };
    18 pwrite64(fd: Fd, buf: in_buf(2), count: Size, offset: Long)
        { blocking: MayFd(0), restart: Restartable, file: FileEffect::Fd(0), writes_to: Some(0) };
    19 readv(fd: Fd, iov: Iovec { dir: Dir::Out, count: 2 }, iovcnt: Size)
        { blocking: MayFd(0), restart: Restartable };
    20 writev(fd: Fd, iov: Iovec { dir: Dir::In, count: 2 }, iovcnt: Size)
        { blocking: MayFd(0), restart: Restartable, file: FileEffect::Fd(0), writes_to: Some(0) };
    22 pipe(pipefd: outs_as(8, Shape::I32)) { fds: FdEffect::Pair { array: 0, cloexec: Cloexec::No } };
    32 dup(oldfd: Fd) { fds: FdEffect::Dup(Cloexec::No) };
    33 dup2(oldfd: Fd, newfd: Fd) { fds: FdEffect::Dup(Cloexec::No) };
    40 sendfile(out_fd: Fd, in_fd: Fd, offset: I64_INOUT, count: Size)
        { blocking: MayFd(0), restart: Restartable, file: FileEffect::Fd(0), writes_to: Some(0) };
    72 fcntl(fd: Fd, cmd: Flags(&f::FCNTL), arg: Fcntl)
        { blocking: May, restart: Restartable, fds: FdEffect::Fcntl };
    73 flock(fd: Fd, operation: Flags(&f::FLOCK)) { blocking: May, restart: Restartable };
    74 fsync(fd: Fd);
    75 fdatasync(fd: Fd);
    77 ftruncate(fd: Fd, length: Long) { file: FileEffect::TruncateFd(0) };
    78 getdents(fd: Fd, dirp: out_data(2), count: Uint);
    85 creat(pathname: Path, mode: Mode)
        { blocking: May, restart: Restartable, fds: FdEffect::New(Cloexec::No), file: FileEffect::Creat };
    187 readahead(fd: Fd, offset: Long, count: Size);
    217 getdents64(fd: Fd, dirp: out_data(2), count: Uint);
    221 fadvise64(fd: Fd, offset: Long, len: Size, advice: Flags(&f::FADVISE));
    257 openat(dirfd: DirFd, pathname: Path, flags: Flags(&f::OPEN), mode: Mode)
        { blocking: May, restart: Restartable, fds: FdEffect::New(Cloexec::Flag(2, O_CLOEXEC)),
          file: FileEffect::OpenTrunc(2) };
    275 splice(fd_in: Fd, off_in: I64_INOUT, fd_out: Fd, off_out: I64_INOUT, len: Size, flags: Flags(&f::SPLICE))
        { blocking: May, restart: Restartable, file: FileEffect::Fd(2), writes_to: Some(2) };
    276 tee(fd_in: Fd, fd_out: Fd, len: Size, flags: Flags(&f::SPLICE))
        { blocking: May, restart: Restartable, writes_to: Some(1) };
    277 sync_file_range(fd: Fd, offset: Long, nbytes: Long, flags: Flags(&f::SYNC_RANGE));
    // Gives the pages themselves to a pipe: what the reader finds there can change after the call.
    278 vmsplice(fd: Fd, iov: Vmsplice, nr_segs: Size, flags: Flags(&f::SPLICE))
        { blocking: MayFd(0), restart: Restartable, writes_to: Some(0) };
    285 fallocate(fd: Fd, mode: Flags(&f::FALLOCATE), offset: Long, len: Long) { file: FileEffect::TruncateFd(0) };
    292 dup3(oldfd: Fd, newfd: Fd, flags: Flags(&f::CLOEXEC)) { fds: FdEffect::Dup(Cloexec::Flag(2, O_CLOEXEC)) };
    293 pipe2(pipefd: outs_as(8, Shape::I32), flags: Flags(&f::PIPE))
        { fds: FdEffect::Pair { array: 0, cloexec: Cloexec::Flag(1, O_CLOEXEC) } };
    295 preadv(fd: Fd, iov: Iovec { dir: Dir::Out, count: 2 }, iovcnt: Size, pos_l: Size, pos_h: Size)
        { blocking: MayFd(0), restart: Restartable };
    296 pwritev(fd: Fd, iov: Iovec { dir: Dir::In, count: 2 }, iovcnt: Size, pos_l: Size, pos_h: Size)
        { blocking: MayFd(0), restart: Restartable, file: FileEffect::Fd(0), writes_to: Some(0) };
    306 syncfs(fd: Fd);
    326 copy_file_range(fd_in: Fd, off_in: I64_INOUT, fd_out: Fd, off_out: I64_INOUT, len: Size, flags: Uint)
        { file: FileEffect::Fd(2), writes_to: Some(2) };
    327 preadv2(fd: Fd, iov: Iovec { dir: Dir::Out, count: 2 }, iovcnt: Size, pos_l: Size, pos_h: Size,
            flags: Flags(&f::RWF))
        { blocking: MayFd(0), restart: Restartable };
    328 pwritev2(fd: Fd, iov: Iovec { dir: Dir::In, count: 2 }, iovcnt: Size, pos_l: Size, pos_h: Size,
            flags: Flags(&f::RWF))
        { blocking: MayFd(0), restart: Restartable, file: FileEffect::Fd(0), writes_to: Some(0) };
    436 close_range(first: Uint, last: Uint, flags: Flags(&f::CLOSE_RANGE)) { fds: FdEffect::CloseRange };
    437 openat2(dirfd: DirFd, pathname: Path, how: ins_sized(3), size: Size)
        { blocking: May, restart: Restartable, fds: FdEffect::New(Cloexec::OpenHow(2)),
          file: FileEffect::OpenHowTrunc(2) };
    451 cachestat(fd: Fd, cstat_range: ins(16), cstat: outs(40), flags: Uint);
};

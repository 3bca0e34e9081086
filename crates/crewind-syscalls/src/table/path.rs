//! Calls on paths: names, attributes, mounts.

use super::kinds::*;
use crate::flags as f;
use crate::types::ArgKind::*;
use crate::types::Blocking::May;
use crate::types::Restart::Restartable;
use crate::types::{Cloexec, Dir, FdEffect, FileEffect, Len, Row, Shape, When, Wrote};

pub(super) const ROWS: &[Row] = rows! {
    4 stat(pathname: Path, statbuf: STAT_OUT);
    5 fstat(fd: Fd, statbuf: STAT_OUT);
    6 lstat(pathname: Path, statbuf: STAT_OUT);
    21 access(pathname: Path, mode: Flags(&f::ACCESS));
    76 truncate(path: Path, length: Long) { file: FileEffect::TruncatePath(0) };
    79 getcwd(buf: out_buf(1), size: Size);
    80 chdir(path: Path);
    81 fchdir(fd: Fd);
    82 rename(oldpath: Path, newpath: Path);
    83 mkdir(pathname: Path, mode: Mode);
    84 rmdir(pathname: Path);
    86 link(oldpath: Path, newpath: Path);
    87 unlink(pathname: Path);
    88 symlink(target: Path, linkpath: Path);
    89 readlink(pathname: Path, buf: out_buf(2), bufsiz: Int);
    90 chmod(pathname: Path, mode: Mode);
    91 fchmod(fd: Fd, mode: Mode);
    92 chown(pathname: Path, owner: Id, group: Id);
    93 fchown(fd: Fd, owner: Id, group: Id);
    94 lchown(pathname: Path, owner: Id, group: Id);
    95 umask(mask: Mode);
    132 utime(filename: Path, times: ins(16));
    133 mknod(pathname: Path, mode: Mode, dev: Dev);
    136 ustat(dev: Dev, ubuf: outs(32));
    137 statfs(path: Path, buf: STATFS_OUT);
    138 fstatfs(fd: Fd, buf: STATFS_OUT);
    139 sysfs(option: Int, arg1: SysfsArg1, arg2: SysfsArg2);
    155 pivot_root(new_root: Path, put_old: Path);
    161 chroot(path: Path);
    162 sync();
    // Data may be a page of anything; strings nearly always.
    165 mount(source: Path, target: Path, filesystemtype: Path, mountflags: Flags(&f::MOUNT), data: Path);
    166 umount2(target: Path, flags: Flags(&f::UMOUNT));
    188 setxattr(path: Path, name: Path, value: in_buf(3), size: Size, flags: Flags(&f::XATTR));
    189 lsetxattr(path: Path, name: Path, value: in_buf(3), size: Size, flags: Flags(&f::XATTR));
    190 fsetxattr(fd: Fd, name: Path, value: in_buf(3), size: Size, flags: Flags(&f::XATTR));
    191 getxattr(path: Path, name: Path, value: out_buf(3), size: Size);
    192 lgetxattr(path: Path, name: Path, value: out_buf(3), size: Size);
    193 fgetxattr(fd: Fd, name: Path, value: out_buf(3), size: Size);
    194 listxattr(path: Path, list: out_buf(2), size: Size);
    195 llistxattr(path: Path, list: out_buf(2), size: Size);
    196 flistxattr(fd: Fd, list: out_buf(2), size: Size);
    197 removexattr(path: Path, name: Path);
    198 lremovexattr(path: Path, name: Path);
    199 fremovexattr(fd: Fd, name: Path);
    235 utimes(filename: Path, times: TIMEVALS_IN);
    258 mkdirat(dirfd: DirFd, pathname: Path, mode: Mode);
    259 mknodat(dirfd: DirFd, pathname: Path, mode: Mode, dev: Dev);
    260 fchownat(dirfd: DirFd, pathname: Path, owner: Id, group: Id, flags: Flags(&f::AT));
    261 futimesat(dirfd: DirFd, pathname: Path, times: TIMEVALS_IN);
    262 newfstatat(dirfd: DirFd, pathname: Path, statbuf: STAT_OUT, flags: Flags(&f::AT));
    263 unlinkat(dirfd: DirFd, pathname: Path, flags: Flags(&f::UNLINKAT));
    264 renameat(olddirfd: DirFd, oldpath: Path, newdirfd: DirFd, newpath: Path);
    265 linkat(olddirfd: DirFd, oldpath: Path, newdirfd: DirFd, newpath: Path, flags: Flags(&f::AT));
    266 symlinkat(target: Path, newdirfd: DirFd, linkpath: Path);
    267 readlinkat(dirfd: DirFd, pathname: Path, buf: out_buf(3), bufsiz: Int);
    268 fchmodat(dirfd: DirFd, pathname: Path, mode: Mode);
    269 faccessat(dirfd: DirFd, pathname: Path, mode: Flags(&f::ACCESS));
    280 utimensat(dirfd: DirFd, pathname: Path, times: TIMESPECS_IN, flags: Flags(&f::AT));
    303 name_to_handle_at(dirfd: DirFd, pathname: Path, handle: FileHandle(Dir::InOut), mount_id: MountId,
        flags: Flags(&f::HANDLE_AT));
    304 open_by_handle_at(mount_fd: DirFd, handle: FileHandle(Dir::In), flags: Flags(&f::OPEN))
        { blocking: May, restart: Restartable, fds: FdEffect::New(Cloexec::Flag(2, O_CLOEXEC)),
          file: FileEffect::OpenTrunc(2) };
    316 renameat2(olddirfd: DirFd, oldpath: Path, newdirfd: DirFd, newpath: Path, flags: Flags(&f::RENAME));
    332 statx(dirfd: DirFd, pathname: Path, flags: Flags(&f::AT), mask: Flags(&f::STATX), statxbuf: outs(256));
    428 open_tree(dirfd: DirFd, path: Path, flags: Flags(&f::OPEN_TREE))
        { fds: FdEffect::New(Cloexec::Flag(2, O_CLOEXEC)) };
    429 move_mount(from_dirfd: DirFd, from_path: Path, to_dirfd: DirFd, to_path: Path, flags: Hex);
    430 fsopen(fsname: Path, flags: Hex) { fds: FdEffect::New(Cloexec::Flag(1, 1)) };
    431 fsconfig(fd: Fd, cmd: Int, key: Path, value: FsconfigValue, aux: Int);
    432 fsmount(fsfd: Fd, flags: Hex, attr_flags: Hex) { fds: FdEffect::New(Cloexec::Flag(1, 1)) };
    433 fspick(dirfd: DirFd, path: Path, flags: Hex) { fds: FdEffect::New(Cloexec::Flag(2, 1)) };
    439 faccessat2(dirfd: DirFd, pathname: Path, mode: Flags(&f::ACCESS), flags: Flags(&f::FACCESSAT));
    442 mount_setattr(dirfd: DirFd, path: Path, flags: Flags(&f::AT), attr: ins_sized(4), size: Size);
    452 fchmodat2(dirfd: DirFd, pathname: Path, mode: Mode, flags: Flags(&f::AT));
    // `struct mnt_id_req` starts with its size. The answer starts with a u32 size of all of it.
    457 statmount(req: input(Len::SelfSized(4096), Shape::Opaque), buf: Statmount, bufsize: Size, flags: Hex);
    458 listmount(req: input(Len::SelfSized(4096), Shape::Opaque),
        mnt_ids: output(Len::Times(2, 8), Wrote::RetTimes(8), When::Success, Shape::Hex64), nr_mnt_ids: Size,
        flags: Hex);
    463 setxattrat(dirfd: DirFd, pathname: Path, at_flags: Flags(&f::AT), name: Path, args: XattrArgs(Dir::In),
        size: Size);
    464 getxattrat(dirfd: DirFd, pathname: Path, at_flags: Flags(&f::AT), name: Path, args: XattrArgs(Dir::Out),
        size: Size);
    465 listxattrat(dirfd: DirFd, pathname: Path, at_flags: Flags(&f::AT), list: out_buf(4), size: Size);
    466 removexattrat(dirfd: DirFd, pathname: Path, at_flags: Flags(&f::AT), name: Path);
    467 open_tree_attr(dirfd: DirFd, path: Path, flags: Flags(&f::OPEN_TREE), attr: ins_sized(4), size: Size)
        { fds: FdEffect::New(Cloexec::Flag(2, O_CLOEXEC)) };
    468 file_getattr(dirfd: DirFd, pathname: Path, attr: outs_sized(3), size: Size, at_flags: Flags(&f::AT));
    469 file_setattr(dirfd: DirFd, pathname: Path, attr: ins_sized(3), size: Size, at_flags: Flags(&f::AT));
};

const O_CLOEXEC: u64 = 0o2000000;

//! What a call does besides writing memory, for given arguments.

use crate::plan::{Range, iovecs, is_error, read_u32, read_u64};
use crate::special::{fcntl, futex, ioctl, net, prctl};
use crate::types::{
    ArgKind, Args, Blocking, Class, Cloexec, Dir, FdEffect, FileEffect, Mem, Restart, Row, Shape,
    TempMask,
};

/// One change of the table of file descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdChange {
    /// A new fd.
    Open {
        /// Its number.
        fd: i32,
        /// Whether it has close-on-exec.
        cloexec: bool,
    },
    /// `new` is now a duplicate of `old` (what `new` was before is closed).
    Dup {
        /// The original.
        old: i32,
        /// The duplicate.
        new: i32,
        /// Whether the duplicate has close-on-exec.
        cloexec: bool,
    },
    /// Closed (also when the call reported an error other than `EBADF`).
    Close {
        /// Its number.
        fd: i32,
    },
    /// All open fds in this range were closed.
    CloseRange {
        /// First.
        first: u32,
        /// Last.
        last: u32,
    },
    /// Close-on-exec was changed for all open fds in this range.
    SetCloexec {
        /// First.
        first: u32,
        /// Last.
        last: u32,
        /// The new value.
        cloexec: bool,
    },
}

/// What a call sent to the fd of [`Row::writes_to`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Nothing.
    Nothing,
    /// These ranges of guest memory, one after the other.
    Bytes(Vec<Range>),
    /// So many bytes that were never in guest memory (`sendfile`, `splice`, ...).
    Opaque(u64),
}

/// Who executes the call with these arguments.
pub fn class(row: &Row, args: &Args) -> Class {
    match row.nr {
        nr::IOCTL => ioctl::class(args[1]),
        nr::PRCTL => prctl::class(args[0]),
        nr::SETSOCKOPT | nr::GETSOCKOPT => {
            net::class(row.nr, args[1] as i32, args[2] as i32).unwrap_or(row.class)
        }
        _ => row.class,
    }
}

/// Numbers of calls whose effects depend on their arguments in ways of their own.
mod nr {
    pub const POLL: u32 = 7;
    pub const IOCTL: u32 = 16;
    pub const SELECT: u32 = 23;
    pub const SENDTO: u32 = 44;
    pub const RECVFROM: u32 = 45;
    pub const SENDMSG: u32 = 46;
    pub const RECVMSG: u32 = 47;
    pub const SETSOCKOPT: u32 = 54;
    pub const GETSOCKOPT: u32 = 55;
    pub const WAIT4: u32 = 61;
    pub const MSGSND: u32 = 69;
    pub const MSGRCV: u32 = 70;
    pub const FCNTL: u32 = 72;
    pub const FLOCK: u32 = 73;
    pub const OPEN: u32 = 2;
    pub const SYSLOG: u32 = 103;
    pub const PRCTL: u32 = 157;
    pub const FUTEX: u32 = 202;
    pub const CLOCK_NANOSLEEP: u32 = 230;
    pub const EPOLL_WAIT: u32 = 232;
    pub const WAITID: u32 = 247;
    pub const OPENAT: u32 = 257;
    pub const PSELECT6: u32 = 270;
    pub const PPOLL: u32 = 271;
    pub const VMSPLICE: u32 = 278;
    pub const EPOLL_PWAIT: u32 = 281;
    pub const SIGNALFD: u32 = 282;
    pub const SIGNALFD4: u32 = 289;
    pub const RECVMMSG: u32 = 299;
    pub const SENDMMSG: u32 = 307;
    pub const PREADV2: u32 = 327;
    pub const PWRITEV2: u32 = 328;
    pub const EPOLL_PWAIT2: u32 = 441;
}

fn has(value: u64, flag: i32) -> bool {
    value & flag as u32 as u64 != 0
}

/// Whether the time at `addr` (two 64-bit words) is there and zero.
fn zero_time(mem: &dyn Mem, addr: u64) -> bool {
    read_u64(mem, addr) == Some(0) && read_u64(mem, addr.wrapping_add(8)) == Some(0)
}

/// Whether the call with these arguments may wait. What a file descriptor refers to is not known here:
/// reads and writes are taken to wait.
pub fn may_block(row: &Row, args: &Args, mem: &dyn Mem) -> bool {
    if row.blocking == Blocking::Never {
        return false;
    }
    match row.nr {
        nr::POLL => args[2] as i32 != 0,
        nr::SELECT => !zero_time(mem, args[4]),
        nr::PSELECT6 => !zero_time(mem, args[4]),
        nr::PPOLL => !zero_time(mem, args[2]),
        nr::EPOLL_WAIT | nr::EPOLL_PWAIT => args[3] as i32 != 0,
        nr::EPOLL_PWAIT2 => !zero_time(mem, args[3]),
        nr::WAIT4 => !has(args[2], libc::WNOHANG),
        nr::WAITID => !has(args[3], libc::WNOHANG),
        nr::SENDTO | nr::RECVFROM | nr::RECVMMSG | nr::SENDMMSG => {
            !has(args[3], libc::MSG_DONTWAIT)
        }
        nr::SENDMSG | nr::RECVMSG => !has(args[2], libc::MSG_DONTWAIT),
        nr::OPEN => open_may_block(args[1]),
        nr::OPENAT => open_may_block(args[2]),
        nr::FLOCK => !has(args[1], libc::LOCK_NB) && args[1] as i32 != libc::LOCK_UN,
        nr::MSGSND => !has(args[3], libc::IPC_NOWAIT),
        nr::MSGRCV => !has(args[4], libc::IPC_NOWAIT),
        nr::PREADV2 | nr::PWRITEV2 => !has(args[5], libc::RWF_NOWAIT),
        nr::VMSPLICE => !has(args[3], libc::SPLICE_F_NONBLOCK as i32),
        // SYSLOG_ACTION_READ waits for messages.
        nr::SYSLOG => args[0] as i32 == 2,
        nr::FUTEX => futex::blocking(args) != Blocking::Never,
        nr::FCNTL => fcntl::blocking(args[1] as i32) != Blocking::Never,
        nr::IOCTL => ioctl::blocking(args[1]) != Blocking::Never,
        _ => true,
    }
}

/// Opening a FIFO, a terminal line or a leased file can wait.
fn open_may_block(flags: u64) -> bool {
    !has(flags, libc::O_NONBLOCK) && !has(flags, libc::O_PATH) && !has(flags, libc::O_DIRECTORY)
}

/// What a signal handler does to the call with these arguments while it waits. Sockets with a timeout
/// (`SO_RCVTIMEO`, `SO_SNDTIMEO`) and inotify give `EINTR` where this says [`Restart::Restartable`].
pub fn restart(row: &Row, args: &Args) -> Restart {
    match row.nr {
        nr::FUTEX => futex::restart(args),
        nr::FCNTL => fcntl::restart(args[1] as i32),
        nr::IOCTL => ioctl::restart(args[1]),
        // hrtimer_nanosleep() restarts with a restart block only when the time is relative.
        nr::CLOCK_NANOSLEEP if has(args[1], libc::TIMER_ABSTIME) => Restart::NoHand,
        _ => row.restart,
    }
}

/// Adds the changes to the fd table that the call made; `mem` is guest memory after it.
pub fn fd_changes(row: &Row, args: &Args, ret: i64, mem: &dyn Mem, changes: &mut Vec<FdChange>) {
    let result = ret as i32;
    if row.fds == FdEffect::Close {
        // The fd is gone also after EIO, EINTR and the like.
        if ret != -i64::from(libc::EBADF) {
            changes.push(FdChange::Close { fd: args[0] as i32 });
        }
        return;
    }
    if is_error(ret) {
        return;
    }
    match row.fds {
        FdEffect::None | FdEffect::Close | FdEffect::Clone => {}
        FdEffect::New(cloexec) => {
            let existing =
                matches!(row.nr, nr::SIGNALFD | nr::SIGNALFD4) && args[0] as i32 == result;
            if !existing {
                changes.push(FdChange::Open {
                    fd: result,
                    cloexec: cloexec.of(args, mem),
                });
            }
        }
        FdEffect::Pair { array, cloexec } => {
            let at = args.get(usize::from(array)).copied().unwrap_or(0);
            for at in [at, at.wrapping_add(4)] {
                if let Some(fd) = read_u32(mem, at) {
                    changes.push(FdChange::Open {
                        fd: fd as i32,
                        cloexec: cloexec.of(args, mem),
                    });
                }
            }
        }
        FdEffect::Dup(cloexec) => {
            let old = args[0] as i32;
            // dup2 of a fd to itself does nothing.
            if old != result {
                changes.push(FdChange::Dup {
                    old,
                    new: result,
                    cloexec: cloexec.of(args, mem),
                });
            }
        }
        FdEffect::CloseRange => {
            let (first, last) = (args[0] as u32, args[1] as u32);
            changes.push(if args[2] & u64::from(libc::CLOSE_RANGE_CLOEXEC) != 0 {
                FdChange::SetCloexec {
                    first,
                    last,
                    cloexec: true,
                }
            } else {
                FdChange::CloseRange { first, last }
            });
        }
        FdEffect::Fcntl => fcntl_change(args, result, changes),
        FdEffect::Ioctl => match ioctl::fd_op(args[1], args[2]) {
            ioctl::FdOp::Nothing => {}
            ioctl::FdOp::Cloexec(cloexec) => {
                let fd = args[0] as u32;
                changes.push(FdChange::SetCloexec {
                    first: fd,
                    last: fd,
                    cloexec,
                });
            }
            ioctl::FdOp::New { cloexec } => changes.push(FdChange::Open {
                fd: result,
                cloexec,
            }),
        },
        FdEffect::Recvmsg => {
            let cloexec = has(args[2], libc::MSG_CMSG_CLOEXEC);
            net::rights(mem, args[1], |fd| {
                changes.push(FdChange::Open { fd, cloexec })
            });
        }
        FdEffect::Recvmmsg => {
            let cloexec = has(args[3], libc::MSG_CMSG_CLOEXEC);
            for i in 0..(ret as u64).min(1024) {
                let header = args[1].wrapping_add(i * 64);
                net::rights(mem, header, |fd| {
                    changes.push(FdChange::Open { fd, cloexec })
                });
            }
        }
        FdEffect::Getsockopt => {
            if (args[1] as i32, args[2] as i32) == (libc::SOL_SOCKET, SO_PEERPIDFD)
                && let Some(fd) = read_u32(mem, args[3])
            {
                changes.push(FdChange::Open {
                    fd: fd as i32,
                    cloexec: true,
                });
            }
        }
    }
}

const SO_PEERPIDFD: i32 = 77;

fn fcntl_change(args: &Args, result: i32, changes: &mut Vec<FdChange>) {
    let fd = args[0] as i32;
    match args[1] as i32 {
        libc::F_DUPFD => changes.push(FdChange::Dup {
            old: fd,
            new: result,
            cloexec: false,
        }),
        libc::F_DUPFD_CLOEXEC => changes.push(FdChange::Dup {
            old: fd,
            new: result,
            cloexec: true,
        }),
        libc::F_SETFD => changes.push(FdChange::SetCloexec {
            first: fd as u32,
            last: fd as u32,
            cloexec: has(args[2], libc::FD_CLOEXEC),
        }),
        _ => {}
    }
}

impl Cloexec {
    fn of(self, args: &Args, mem: &dyn Mem) -> bool {
        match self {
            Cloexec::No => false,
            Cloexec::Yes => true,
            Cloexec::Flag(arg, bits) => args
                .get(usize::from(arg))
                .is_some_and(|value| value & bits != 0),
            Cloexec::OpenHow(arg) => how_flags(arg, args, mem) & libc::O_CLOEXEC as u64 != 0,
        }
    }
}

/// `flags`, the first member of `struct open_how`.
fn how_flags(arg: u8, args: &Args, mem: &dyn Mem) -> u64 {
    args.get(usize::from(arg))
        .and_then(|&at| read_u64(mem, at))
        .unwrap_or(0)
}

/// Whether and where the call changes a file's content, with these arguments resolved: only
/// [`FileEffect::Fd`], [`FileEffect::TruncateFd`], [`FileEffect::TruncatePath`], [`FileEffect::Creat`]
/// (truncates the file of the returned fd) and [`FileEffect::None`] remain.
pub fn file_effect(row: &Row, args: &Args, mem: &dyn Mem) -> FileEffect {
    let truncates = |flags: u64| {
        if flags & libc::O_TRUNC as u64 != 0 {
            FileEffect::Creat
        } else {
            FileEffect::None
        }
    };
    match row.file {
        FileEffect::OpenTrunc(arg) => truncates(args.get(usize::from(arg)).copied().unwrap_or(0)),
        FileEffect::OpenHowTrunc(arg) => truncates(how_flags(arg, args, mem)),
        FileEffect::Ioctl => ioctl::file_effect(args[1]),
        effect => effect,
    }
}

/// What the call sent to the fd of [`Row::writes_to`]. The buffers are looked up again, so call this before
/// the guest runs on.
pub fn output_bytes(row: &Row, args: &Args, ret: i64, mem: &dyn Mem) -> Output {
    let Ok(count) = u64::try_from(ret) else {
        return Output::Nothing;
    };
    if row.writes_to.is_none() || count == 0 {
        return Output::Nothing;
    }
    let mut ranges = Vec::new();
    for (arg, &addr) in row.args.iter().zip(args) {
        match arg.kind {
            ArgKind::Buf(buf) if buf.dir == Dir::In && buf.shape == Shape::Bytes => {
                ranges.push(Range { addr, len: count });
            }
            ArgKind::Iovec {
                dir: Dir::In,
                count: n,
            } => {
                let n = args.get(usize::from(n)).copied().unwrap_or(0);
                gather(mem, addr, n, count, &mut ranges);
            }
            ArgKind::Vmsplice => gather(mem, addr, args[2], count, &mut ranges),
            ArgKind::Msghdr(Dir::In) => gather_message(mem, addr, count, &mut ranges),
            ArgKind::Mmsghdr { dir: Dir::In, .. } => {
                for i in 0..count.min(1024) {
                    let header = addr.wrapping_add(i * 64);
                    let sent = read_u32(mem, header.wrapping_add(56)).unwrap_or(0);
                    gather_message(mem, header, sent.into(), &mut ranges);
                }
            }
            _ => continue,
        }
        return Output::Bytes(ranges);
    }
    Output::Opaque(count)
}

/// Adds the first `total` bytes of an iovec array's buffers.
fn gather(mem: &dyn Mem, array: u64, count: u64, total: u64, ranges: &mut Vec<Range>) {
    let mut left = total;
    for (_, addr, len) in iovecs(mem, array, count) {
        let len = len.min(left);
        left -= len;
        if len > 0 {
            ranges.push(Range { addr, len });
        }
    }
}

fn gather_message(mem: &dyn Mem, header: u64, total: u64, ranges: &mut Vec<Range>) {
    let iov = read_u64(mem, header.wrapping_add(16)).unwrap_or(0);
    let count = read_u64(mem, header.wrapping_add(24)).unwrap_or(0);
    gather(mem, iov, count, total, ranges);
}

/// The signal mask in force only during the call, if the arguments give one.
pub fn temp_sigmask(row: &Row, args: &Args, mem: &dyn Mem) -> Option<u64> {
    let value = |arg: u8| args.get(usize::from(arg)).copied().unwrap_or(0);
    match row.sigmask? {
        TempMask::Direct(arg) => read_u64(mem, value(arg)),
        TempMask::Indirect(arg) => read_u64(mem, read_u64(mem, value(arg))?),
    }
}

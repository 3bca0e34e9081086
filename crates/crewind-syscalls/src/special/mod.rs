//! Arguments whose operands no fixed description can give, by family.

pub(crate) mod fcntl;
pub(crate) mod futex;
pub(crate) mod ioctl;
pub(crate) mod ipc;
pub(crate) mod keyctl;
mod misc;
pub(crate) mod net;
pub(crate) mod prctl;

use crate::plan::Builder;
use crate::types::ArgKind;

/// Adds the operands of the argument at hand.
pub(crate) fn operands(b: &mut Builder, kind: ArgKind) {
    match kind {
        ArgKind::Msghdr(dir) => net::msghdr(b, dir),
        ArgKind::Mmsghdr { dir, count } => net::mmsghdr(b, dir, count),
        ArgKind::ValueResult { len, shape } => net::value_result(b, len, shape),
        ArgKind::ResultLen(of) => net::result_len(b, of),
        ArgKind::Setsockopt => net::setsockopt(b),
        ArgKind::Ioctl => ioctl::operands(b),
        ArgKind::Fcntl => fcntl::operands(b),
        ArgKind::Prctl => prctl::operands(b),
        ArgKind::FutexAddr => futex::addr(b),
        ArgKind::FutexVal2 => futex::val2(b),
        ArgKind::FutexAddr2 => futex::addr2(b),
        ArgKind::FutexWord => futex::word(b),
        ArgKind::FutexWaitv { count } => futex::waitv(b, count),
        ArgKind::Semctl => ipc::semctl(b),
        ArgKind::Shmctl => ipc::shmctl(b),
        ArgKind::Msgctl => ipc::msgctl(b),
        ArgKind::Keyctl => keyctl::operands(b),
        ArgKind::FdSet => misc::fd_set(b),
        ArgKind::Remaining(shape) => misc::remaining(b, shape),
        ArgKind::CapHeader => misc::cap_header(b),
        ArgKind::CapData(dir) => misc::cap_data(b, dir),
        ArgKind::FileHandle(dir) => misc::file_handle(b, dir),
        ArgKind::MountId => misc::mount_id(b),
        ArgKind::SigsetPair => misc::sigset_pair(b),
        ArgKind::Sigevent => misc::sigevent(b),
        ArgKind::SyslogBuf => misc::syslog_buf(b),
        ArgKind::SysfsArg1 => misc::sysfs_arg1(b),
        ArgKind::SysfsArg2 => misc::sysfs_arg2(b),
        ArgKind::XattrArgs(dir) => misc::xattr_args(b, dir),
        ArgKind::FsconfigValue => misc::fsconfig_value(b),
        ArgKind::Vmsplice => misc::vmsplice(b),
        ArgKind::Statmount => misc::statmount(b),
        ArgKind::Mincore => misc::mincore(b),
        ArgKind::Nodemask { bits } => misc::nodemask(b, bits),
        ArgKind::NodemaskOut { bits } => misc::nodemask_out(b, bits),
        ArgKind::SchedAttr => misc::sched_attr(b),
        ArgKind::ClockRem => misc::clock_rem(b),
        ArgKind::LsmCtx => misc::lsm_ctx(b),
        ArgKind::LsmIds => misc::lsm_ids(b),
        ArgKind::LsmSize => misc::lsm_size(b),
        ArgKind::Buf(_) | ArgKind::Path | ArgKind::Iovec { .. } | ArgKind::RemoteIovec { .. } => {}
        // Only the runtime's own calls take these, and they read them themselves.
        ArgKind::StrArray => {}
        ArgKind::Int
        | ArgKind::Long
        | ArgKind::Uint
        | ArgKind::Size
        | ArgKind::Hex
        | ArgKind::Fd
        | ArgKind::DirFd
        | ArgKind::Flags(_)
        | ArgKind::Signal
        | ArgKind::Pid
        | ArgKind::Id
        | ArgKind::Mode
        | ArgKind::Dev
        | ArgKind::Addr => {}
    }
}

//! Arguments that only one or two calls have.

use crate::plan::{Builder, Operand, Place, c_str_len};
use crate::types::{Dir, Shape, Total, When, Wrote};

/// `fd_set` of as many bits as argument 0 says, in 64-bit words.
pub(super) fn fd_set(b: &mut Builder) {
    let bits = b.value(0) as i32;
    let Ok(bits) = u64::try_from(bits) else {
        return;
    };
    let bytes = bits.div_ceil(64) * 8;
    if bits > 1024 {
        // The kernel looks only at as many bits as the process's fd table has places, however large the
        // argument is; the set in memory may end there.
        b.unknown(Place::Arg(b.arg), b.here(), bytes.min(1 << 16));
    } else {
        let op = b.operand(bytes, Dir::InOut);
        b.push(Operand {
            shape: Shape::FdSet,
            ..op
        });
    }
}

/// Written back, with what remains, whatever the result; but a failure to write it is ignored.
pub(super) fn remaining(b: &mut Builder, shape: Shape) {
    let mut old = [0; 16];
    if b.here() != 0 && b.mem.read(b.here(), &mut old) {
        let op = b.operand(16, Dir::InOut);
        b.push(Operand {
            wrote: Wrote::IfChanged(old),
            when: When::Always,
            shape,
            ..op
        });
    }
}

/// The kernel answers an unknown version with the one it prefers.
pub(super) fn cap_header(b: &mut Builder) {
    let op = b.operand(8, Dir::InOut);
    b.push(Operand {
        wrote: Wrote::Fields(&[(0, 4)]),
        when: When::SuccessOr(libc::EINVAL),
        ..op
    });
}

const CAPABILITY_VERSION_1: u32 = 0x1998_0330;
const CAPABILITY_VERSION_2: u32 = 0x2007_1026;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

pub(super) fn cap_data(b: &mut Builder, dir: Dir) {
    let cap = match b.u32_at(b.value(0)) {
        Some(CAPABILITY_VERSION_1) => 12,
        Some(CAPABILITY_VERSION_2 | CAPABILITY_VERSION_3) => 24,
        _ => return,
    };
    b.flat(cap, dir);
}

/// `struct file_handle`: bytes (u32), type, and so many bytes.
pub(super) fn file_handle(b: &mut Builder, dir: Dir) {
    // MAX_HANDLE_SZ; more is refused.
    let bytes = b.u32_at(b.here()).filter(|&n| n <= 128);
    let Some(bytes) = bytes else { return };
    let op = b.operand(8 + u64::from(bytes), dir);
    let wrote = if dir.writes() {
        Wrote::U32At {
            addr: b.here(),
            scale: 1,
            plus: 8,
        }
    } else {
        Wrote::Nothing
    };
    b.push(Operand {
        wrote,
        when: When::SuccessOr(libc::EOVERFLOW),
        ..op
    });
}

const AT_HANDLE_MNT_ID_UNIQUE: u64 = 1;

pub(super) fn mount_id(b: &mut Builder) {
    let size = if b.value(4) & AT_HANDLE_MNT_ID_UNIQUE != 0 {
        8
    } else {
        4
    };
    let op = b.operand(size, Dir::Out);
    b.push(Operand {
        when: When::SuccessOr(libc::EOVERFLOW),
        ..op
    });
}

pub(super) fn sigset_pair(b: &mut Builder) {
    b.structure(16, Dir::In, Wrote::Nothing);
    if let Some(set) = b.u64_at(b.here()) {
        let op = b.nested(b.here(), set, 8, Dir::In);
        b.push(Operand {
            shape: Shape::Sigset,
            ..op
        });
    }
}

const MQ_NOTIFY: u32 = 244;
const SIGEV_THREAD: u32 = 2;

/// `struct sigevent`: value at 0, signal at 8, kind (u32) at 12.
pub(super) fn sigevent(b: &mut Builder) {
    let at = b.here();
    if b.row.nr == MQ_NOTIFY && b.u32_at(at.wrapping_add(12)) == Some(SIGEV_THREAD) {
        // The value points to a cookie that the kernel sends to a netlink socket.
        b.structure(64, Dir::In, Wrote::Nothing);
        if let Some(cookie) = b.u64_at(at) {
            let op = b.nested(at, cookie, 32, Dir::In);
            b.push(op);
        }
    } else {
        b.flat(64, Dir::In);
    }
}

/// SYSLOG_ACTION_READ, _READ_ALL and _READ_CLEAR fill the buffer.
pub(super) fn syslog_buf(b: &mut Builder) {
    if (2..=4).contains(&(b.value(0) as i32)) {
        let len = u64::try_from(b.value(2) as i32).unwrap_or(0);
        let op = b.operand(len, Dir::Out);
        b.push(Operand {
            wrote: Wrote::Ret,
            shape: Shape::Bytes,
            ..op
        });
    }
}

pub(super) fn sysfs_arg1(b: &mut Builder) {
    if b.value(0) as i32 == 1
        && let Some(n) = c_str_len(b.mem, b.here(), 4096)
    {
        b.flat(n + 1, Dir::In);
    }
}

/// Option 2 writes the name of a file system: a short string.
pub(super) fn sysfs_arg2(b: &mut Builder) {
    if b.value(0) as i32 == 2 {
        let op = b.operand(256, Dir::Out);
        b.push(Operand {
            wrote: Wrote::CStr,
            ..op
        });
    }
}

/// `struct xattr_args`: value at 0, size (u32) at 8, flags at 12.
pub(super) fn xattr_args(b: &mut Builder, dir: Dir) {
    let at = b.here();
    b.structure(b.value(5).min(4096), Dir::In, Wrote::Nothing);
    let (Some(value), Some(size)) = (b.u64_at(at), b.u32_at(at.wrapping_add(8))) else {
        return;
    };
    let wrote = if dir.writes() {
        Wrote::Ret
    } else {
        Wrote::Nothing
    };
    let op = b.nested(at, value, size.into(), dir);
    b.push(Operand {
        wrote,
        shape: Shape::Bytes,
        ..op
    });
}

/// FSCONFIG_SET_STRING 1, _SET_BINARY 2, _SET_PATH 3, _SET_PATH_EMPTY 4.
pub(super) fn fsconfig_value(b: &mut Builder) {
    match b.value(1) as i32 {
        1 | 3 | 4 => {
            if let Some(n) = c_str_len(b.mem, b.here(), 4096) {
                b.flat(n + 1, Dir::In);
            }
        }
        2 => b.flat(b.value(4) & 0xf_ffff, Dir::In),
        _ => {}
    }
}

/// Into a pipe it reads the buffers, from a pipe it writes them; the fd decides, so both are assumed.
pub(super) fn vmsplice(b: &mut Builder) {
    let count = b.value(2);
    b.structure(
        if count <= 1024 { count * 16 } else { 0 },
        Dir::In,
        Wrote::Nothing,
    );
    b.iovec_buffers(b.here(), count, Dir::InOut, Total::Ret, When::Success);
}

/// The answer starts with its length (u32).
pub(super) fn statmount(b: &mut Builder) {
    let op = b.operand(b.value(2), Dir::Out);
    b.push(Operand {
        wrote: Wrote::U32At {
            addr: b.here(),
            scale: 1,
            plus: 0,
        },
        ..op
    });
}

pub(super) fn mincore(b: &mut Builder) {
    b.flat(b.value(1).div_ceil(4096), Dir::Out);
}

/// The kernel refuses masks larger than a page.
fn nodemask_bytes(bits: u64) -> u64 {
    (bits.saturating_sub(1).div_ceil(64) * 8).min(4096)
}

pub(super) fn nodemask(b: &mut Builder, bits: u8) {
    let op = b.operand(nodemask_bytes(b.value(bits)), Dir::In);
    b.push(Operand {
        shape: Shape::Hex64,
        ..op
    });
}

pub(super) fn nodemask_out(b: &mut Builder, bits: u8) {
    let op = b.operand(nodemask_bytes(b.value(bits)), Dir::Out);
    b.push(Operand {
        shape: Shape::Hex64,
        ..op
    });
}

/// `struct sched_attr` starts with its size; 0 means the oldest version's. The kernel's size is written
/// there when the structure is too large.
pub(super) fn sched_attr(b: &mut Builder) {
    let Some(size) = b.u32_at(b.value(1)) else {
        return;
    };
    let size = if size == 0 { 48 } else { size.clamp(4, 4096) };
    let op = b.operand(size.into(), Dir::InOut);
    b.push(Operand {
        wrote: Wrote::Fields(&[(0, 4)]),
        when: When::Errno(libc::E2BIG),
        ..op
    });
}

pub(super) fn clock_rem(b: &mut Builder) {
    if b.value(1) & libc::TIMER_ABSTIME as u64 == 0 {
        let op = b.operand(16, Dir::Out);
        b.push(Operand {
            when: When::Errno(libc::EINTR),
            shape: Shape::Timespec,
            ..op
        });
    }
}

pub(super) fn lsm_ctx(b: &mut Builder) {
    let len_at = b.value(2);
    let op = b.operand(b.u32_at(len_at).unwrap_or(0).into(), Dir::Out);
    b.push(Operand {
        wrote: Wrote::U32At {
            addr: len_at,
            scale: 1,
            plus: 0,
        },
        ..op
    });
}

pub(super) fn lsm_ids(b: &mut Builder) {
    let op = b.operand(b.u32_at(b.value(1)).unwrap_or(0).into(), Dir::Out);
    b.push(Operand {
        wrote: Wrote::RetTimes(8),
        shape: Shape::I64,
        ..op
    });
}

/// The size needed is written also with `E2BIG`, and with `EOPNOTSUPP` when no module has the attribute.
pub(super) fn lsm_size(b: &mut Builder) {
    let op = b.operand(4, Dir::InOut);
    b.push(Operand {
        when: When::Always,
        shape: Shape::I32,
        ..op
    });
}

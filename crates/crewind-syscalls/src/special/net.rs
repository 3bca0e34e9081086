//! Messages and socket options.

use crate::plan::{Builder, Operand, Role};
use crate::types::{Class, Dir, Notice, Shape, Total, When, Wrote};

/// `struct msghdr`: name at 0, namelen (u32) at 8, iov at 16, iovlen at 24, control at 32, controllen at
/// 40, flags (u32) at 48.
const MSGHDR: u64 = 56;
/// `struct mmsghdr`: a `msghdr` and the message's length (u32).
const MMSGHDR: u64 = 64;
/// The kernel's limit for addresses (`struct sockaddr_storage`).
const MAX_ADDRESS: u64 = 128;
/// The kernel handles no more messages in one call.
const MAX_MESSAGES: u64 = 1024;

/// What `recvmsg` writes of a header: namelen, controllen, flags.
const RECEIVED: &[(u32, u32)] = &[(8, 4), (40, 8), (48, 4)];
/// The same, and the message's length.
const RECEIVED_MMSG: &[(u32, u32)] = &[(8, 4), (40, 8), (48, 4), (56, 4)];
const SENT_MMSG: &[(u32, u32)] = &[(56, 4)];

pub(super) fn msghdr(b: &mut Builder, dir: Dir) {
    let (whole, wrote) = if dir.writes() {
        (Dir::InOut, Wrote::Fields(RECEIVED))
    } else {
        (Dir::In, Wrote::Nothing)
    };
    b.structure(MSGHDR, whole, wrote);
    message(b, b.here(), dir, Total::Ret, When::Success);
}

pub(super) fn mmsghdr(b: &mut Builder, dir: Dir, count: u8) {
    let count = (b.value(count) & 0xffff_ffff).min(MAX_MESSAGES);
    let fields = if dir.writes() {
        RECEIVED_MMSG
    } else {
        SENT_MMSG
    };
    b.structure(
        count * MMSGHDR,
        Dir::InOut,
        Wrote::Elements {
            size: MMSGHDR as u32,
            fields,
        },
    );
    for i in 0..count as u32 {
        let at = b.here().wrapping_add(u64::from(i) * MMSGHDR);
        message(
            b,
            at,
            dir,
            Total::U32At(at.wrapping_add(MSGHDR)),
            When::Above(i),
        );
    }
}

/// What the header at guest address `at` points to.
fn message(b: &mut Builder, at: u64, dir: Dir, total: Total, when: When) {
    if b.want == crate::plan::Want::Written && !dir.writes() {
        return;
    }
    let (Some(name), Some(name_len)) = (b.u64_at(at), b.u32_at(at.wrapping_add(8))) else {
        return;
    };
    let (iov_at, control_at) = (at.wrapping_add(16), at.wrapping_add(32));
    let (Some(iov), Some(count)) = (b.u64_at(iov_at), b.u64_at(at.wrapping_add(24))) else {
        return;
    };
    let (Some(control), Some(control_len)) = (b.u64_at(control_at), b.u64_at(at.wrapping_add(40)))
    else {
        return;
    };
    let (name_wrote, control_wrote) = if dir.writes() {
        let len = Wrote::U32At {
            addr: at.wrapping_add(8),
            scale: 1,
            plus: 0,
        };
        (len, Wrote::U64At(at.wrapping_add(40)))
    } else {
        (Wrote::Nothing, Wrote::Nothing)
    };
    let name_cap = u64::from(name_len).min(MAX_ADDRESS);
    let op = b.nested(at, name, name_cap, dir);
    b.push(Operand {
        wrote: name_wrote,
        when,
        shape: Shape::Sockaddr,
        ..op
    });
    // The array itself is read in both directions.
    if count <= 1024 {
        let op = b.nested(iov_at, iov, count * 16, Dir::In);
        b.push(Operand {
            role: Role::Struct,
            ..op
        });
    }
    b.iovec_buffers(iov, count, dir, total, when);
    let op = b.nested(control_at, control, control_len, dir);
    b.push(Operand {
        wrote: control_wrote,
        when,
        ..op
    });
}

/// A buffer whose capacity and length are in a `u32` in memory.
pub(super) fn value_result(b: &mut Builder, len: u8, shape: Shape) {
    let len_at = b.value(len);
    let Some(cap) = b.u32_at(len_at) else { return };
    // Negative lengths are refused.
    let cap = if cap > i32::MAX as u32 { 0 } else { cap };
    let op = b.operand(cap.into(), Dir::Out);
    b.push(Operand {
        wrote: Wrote::U32At {
            addr: len_at,
            scale: 1,
            plus: 0,
        },
        shape,
        ..op
    });
}

pub(super) fn result_len(b: &mut Builder, of: u8) {
    // Without an address these do not look at its length, which may be anything.
    let optional = matches!(b.row.nr, ACCEPT | ACCEPT4 | RECVFROM);
    if optional && b.value(of) == 0 {
        return;
    }
    // Some options (SO_PEERGROUPS, SO_PEERSEC) report the length needed with ERANGE.
    let op = b.operand(4, Dir::InOut);
    b.push(Operand {
        when: When::SuccessOr(libc::ERANGE),
        shape: Shape::I32,
        ..op
    });
}

const ACCEPT: u32 = 43;
const ACCEPT4: u32 = 288;
const RECVFROM: u32 = 45;
const SETSOCKOPT: u32 = 54;
const GETSOCKOPT: u32 = 55;

/// `IPT_SO_SET_REPLACE` and its IPv6 twin.
const SET_REPLACE: u64 = 64;

pub(super) fn setsockopt(b: &mut Builder) {
    let len = b.value(4) & 0xffff_ffff;
    let len = if len > i32::MAX as u64 { 0 } else { len };
    let (level, option, at) = (b.value(1) as i32, b.value(2) as i32, b.here());
    match (level, option) {
        (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_REUSEPORT_CBPF) => {
            // struct sock_fprog: u16 count at 0, pointer at 8, instructions of 8 bytes.
            b.structure(len, Dir::In, Wrote::Nothing);
            let Some(count) = crate::plan::read_u16(b.mem, at) else {
                return;
            };
            let code_at = at.wrapping_add(8);
            let Some(code) = b.u64_at(code_at) else {
                return;
            };
            let op = b.nested(code_at, code, u64::from(count) * 8, Dir::In);
            b.push(op);
        }
        (libc::SOL_IP | libc::SOL_IPV6, _) if option as u64 == SET_REPLACE => {
            // struct ipt_replace: num_counters (u32) at 84, pointer to counters of 16 bytes at 88.
            b.structure(len, Dir::In, Wrote::Nothing);
            let counters_at = at.wrapping_add(88);
            let (Some(count), Some(counters)) =
                (b.u32_at(at.wrapping_add(84)), b.u64_at(counters_at))
            else {
                return;
            };
            let op = b.nested(counters_at, counters, u64::from(count) * 16, Dir::Out);
            b.push(op);
        }
        _ => {
            let op = b.operand(len, Dir::In);
            b.push(Operand {
                shape: if len == 4 { Shape::I32 } else { Shape::Opaque },
                ..op
            });
        }
    }
}

const SOL_XDP: i32 = 283;
const TCP_ZEROCOPY_RECEIVE: i32 = 35;

/// Options that make the kernel and the program share memory.
pub(crate) fn class(nr: u32, level: i32, option: i32) -> Option<Class> {
    let refused = matches!(
        (nr, level, option),
        (
            SETSOCKOPT,
            libc::SOL_PACKET,
            libc::PACKET_RX_RING | libc::PACKET_TX_RING
        ) | (SETSOCKOPT, SOL_XDP, _)
            | (GETSOCKOPT, libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE)
    );
    refused.then_some(Class::Refuse(
        libc::ENOPROTOOPT,
        Notice::Loud,
        "this socket option shares memory with the kernel",
    ))
}

/// Fds that control messages of a received message carry: calls `found` with each.
pub(crate) fn rights(mem: &dyn crate::Mem, header: u64, mut found: impl FnMut(i32)) {
    use crate::plan::{read_u32, read_u64};
    let (Some(control), Some(len)) = (
        read_u64(mem, header.wrapping_add(32)),
        read_u64(mem, header.wrapping_add(40)),
    ) else {
        return;
    };
    // struct cmsghdr: length (u64, header included), level, type; padded to 8 bytes.
    const HEADER: u64 = 16;
    let mut at = 0;
    while at + HEADER <= len.min(1 << 20) {
        let base = control.wrapping_add(at);
        let (Some(size), Some(level), Some(kind)) = (
            read_u64(mem, base),
            read_u32(mem, base.wrapping_add(8)),
            read_u32(mem, base.wrapping_add(12)),
        ) else {
            return;
        };
        if size < HEADER || size > len - at {
            return;
        }
        let fds = match (level as i32, kind as i32) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => (size - HEADER) / 4,
            (libc::SOL_SOCKET, SCM_PIDFD) => ((size - HEADER) / 4).min(1),
            _ => 0,
        };
        for i in 0..fds {
            if let Some(fd) = read_u32(mem, base.wrapping_add(HEADER + i * 4)) {
                found(fd as i32);
            }
        }
        at += size.next_multiple_of(8);
    }
}

const SCM_PIDFD: i32 = 4;

//! Short names for the argument kinds that many rows share.

use crate::types::{ArgKind, Buf, Dir, Len, Shape, When, Wrote};

/// Memory that the kernel reads.
pub(super) const fn input(len: Len, shape: Shape) -> ArgKind {
    ArgKind::Buf(Buf {
        dir: Dir::In,
        len,
        wrote: Wrote::Nothing,
        when: When::Success,
        shape,
    })
}

/// Memory that the kernel writes.
pub(super) const fn output(len: Len, wrote: Wrote, when: When, shape: Shape) -> ArgKind {
    ArgKind::Buf(Buf {
        dir: Dir::Out,
        len,
        wrote,
        when,
        shape,
    })
}

/// Bytes that the kernel reads, as many as argument `n` says.
pub(super) const fn in_buf(n: u8) -> ArgKind {
    input(Len::Arg(n), Shape::Bytes)
}

/// Bytes of which argument `n` is the capacity and the result the number written.
pub(super) const fn out_buf(n: u8) -> ArgKind {
    output(Len::Arg(n), Wrote::Ret, When::Success, Shape::Bytes)
}

/// As [`out_buf`], not text.
pub(super) const fn out_data(n: u8) -> ArgKind {
    output(Len::Arg(n), Wrote::Ret, When::Success, Shape::Opaque)
}

/// Structure that the kernel reads.
pub(super) const fn ins(size: u32) -> ArgKind {
    input(Len::Bytes(size), Shape::Opaque)
}

/// Structure that the kernel writes on success.
pub(super) const fn outs(size: u32) -> ArgKind {
    output(Len::Bytes(size), Wrote::All, When::Success, Shape::Opaque)
}

/// Structure that the kernel writes when the result is above zero.
pub(super) const fn outs_positive(size: u32, shape: Shape) -> ArgKind {
    output(Len::Bytes(size), Wrote::All, When::Positive, shape)
}

/// Structure that the kernel reads and replaces on success.
pub(super) const fn inouts(size: u32, shape: Shape) -> ArgKind {
    ArgKind::Buf(Buf {
        dir: Dir::InOut,
        len: Len::Bytes(size),
        wrote: Wrote::All,
        when: When::Success,
        shape,
    })
}

/// As [`ins`], printed as `shape`.
pub(super) const fn ins_as(size: u32, shape: Shape) -> ArgKind {
    input(Len::Bytes(size), shape)
}

/// As [`outs`], printed as `shape`.
pub(super) const fn outs_as(size: u32, shape: Shape) -> ArgKind {
    output(Len::Bytes(size), Wrote::All, When::Success, shape)
}

/// Structure of which argument `n` is the size.
pub(super) const fn ins_sized(n: u8) -> ArgKind {
    input(Len::Arg(n), Shape::Opaque)
}

/// Structure of which argument `n` is the size, written whole.
pub(super) const fn outs_sized(n: u8) -> ArgKind {
    output(Len::Arg(n), Wrote::All, When::Success, Shape::Opaque)
}

pub(super) const TIMESPEC_IN: ArgKind = ins_as(16, Shape::Timespec);
pub(super) const TIMESPEC_OUT: ArgKind = outs_as(16, Shape::Timespec);
pub(super) const ITIMERSPEC_IN: ArgKind = ins_as(32, Shape::Timespec);
pub(super) const ITIMERSPEC_OUT: ArgKind = outs_as(32, Shape::Timespec);
pub(super) const ITIMERVAL_IN: ArgKind = ins_as(32, Shape::Timeval);
pub(super) const ITIMERVAL_OUT: ArgKind = outs_as(32, Shape::Timeval);
pub(super) const TIMEVALS_IN: ArgKind = ins_as(32, Shape::Timeval);
pub(super) const TIMESPECS_IN: ArgKind = ins_as(32, Shape::Timespec);
pub(super) const STAT_OUT: ArgKind = outs_as(144, Shape::Stat);
pub(super) const RUSAGE_OUT: ArgKind = outs(144);
pub(super) const U32_OUT: ArgKind = outs_as(4, Shape::I32);
pub(super) const I64_OUT: ArgKind = outs_as(8, Shape::I64);
pub(super) const I64_INOUT: ArgKind = inouts(8, Shape::I64);
/// `sigset_t` that the kernel reads. The size argument must be 8, or the call fails before it looks.
pub(super) const SIGSET_IN: ArgKind = ins_as(8, Shape::Sigset);
pub(super) const SIGSET_OUT: ArgKind = outs_as(8, Shape::Sigset);
/// `siginfo_t`.
pub(super) const SIGINFO_IN: ArgKind = ins(128);
pub(super) const STATFS_OUT: ArgKind = outs(120);
pub(super) const SIGINFO_SIZE: u32 = 128;

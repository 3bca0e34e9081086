//! `keyctl` by operation.

use crate::plan::{Builder, Confidence, Operand, c_str_len};
use crate::types::{Dir, Shape, Total, When, Wrote};

const DH_COMPUTE: u64 = 23;
const PKEY_QUERY: u64 = 24;
const PKEY_ENCRYPT: u64 = 25;
const PKEY_DECRYPT: u64 = 26;
const PKEY_SIGN: u64 = 27;
const PKEY_VERIFY: u64 = 28;
const RESTRICT_KEYRING: u64 = 29;
const MOVE: u64 = 30;
const CAPABILITIES: u64 = 31;
const WATCH_KEY: u64 = 32;

/// What an argument is.
enum Kind {
    Value,
    Str,
    /// Read; the length is in this argument.
    In(u8),
    /// Written up to the result; the capacity is in this argument.
    Out(u8),
    /// Written whole; the capacity is in this argument.
    Filled(u8),
    /// Written whole.
    Fixed(u64),
    /// Read whole.
    FixedIn(u64),
    /// An iovec array that is read; the number is in this argument.
    Iovec(u8),
}

/// Argument `arg` (1..=4) of an operation; `None` for operations not known.
fn kind(operation: u64, arg: u8) -> Option<Kind> {
    use Kind::*;
    Some(match (operation as u32, arg) {
        (libc::KEYCTL_JOIN_SESSION_KEYRING, 1) => Str,
        (libc::KEYCTL_UPDATE | libc::KEYCTL_INSTANTIATE, 2) => In(3),
        (libc::KEYCTL_DESCRIBE | libc::KEYCTL_READ | libc::KEYCTL_GET_SECURITY, 2) => Out(3),
        (libc::KEYCTL_SEARCH, 2 | 3) => Str,
        (libc::KEYCTL_INSTANTIATE_IOV, 2) => Iovec(3),
        _ => match (operation, arg) {
            (DH_COMPUTE, 1) => FixedIn(12),
            (DH_COMPUTE, 2) => Out(3),
            (PKEY_QUERY, 3) => Str,
            (PKEY_QUERY, 4) => Fixed(48),
            (RESTRICT_KEYRING, 2 | 3) => Str,
            (CAPABILITIES, 1) => Filled(2),
            // The lengths of these are in a structure of their own.
            (PKEY_ENCRYPT | PKEY_DECRYPT | PKEY_SIGN | PKEY_VERIFY, _) => return None,
            (n, _) if n <= WATCH_KEY || n == MOVE => Value,
            _ => return None,
        },
    })
}

pub(super) fn operands(b: &mut Builder) {
    let operation = b.value(0) & 0xffff_ffff;
    let Some(kind) = kind(operation, b.arg) else {
        public_key(b, operation);
        return;
    };
    match kind {
        Kind::Value => {}
        Kind::Str => {
            if let Some(n) = c_str_len(b.mem, b.here(), 4096) {
                b.flat(n + 1, Dir::In);
            }
        }
        Kind::In(len) => b.flat(b.value(len), Dir::In),
        Kind::Out(len) => {
            let op = b.operand(b.value(len), Dir::Out);
            b.push(Operand {
                wrote: Wrote::Ret,
                shape: Shape::Bytes,
                ..op
            });
        }
        Kind::Filled(len) => b.flat(b.value(len), Dir::Out),
        Kind::Fixed(size) => b.flat(size, Dir::Out),
        Kind::FixedIn(size) => b.flat(size, Dir::In),
        Kind::Iovec(count) => {
            let count = b.value(count);
            b.structure(count.min(1024) * 16, Dir::In, Wrote::Nothing);
            b.iovec_buffers(b.here(), count, Dir::In, Total::Ret, When::Success);
        }
    }
}

/// The public key operations: `struct keyctl_pkey_params` (key id, in_len at 4, out_len at 8), a string,
/// input, output.
fn public_key(b: &mut Builder, operation: u64) {
    if !(PKEY_ENCRYPT..=PKEY_VERIFY).contains(&operation) {
        b.plan.confidence = Confidence::Unknown;
        return;
    }
    let params = b.value(1);
    match b.arg {
        1 => b.flat(32, Dir::In),
        2 => {
            if let Some(n) = c_str_len(b.mem, b.here(), 4096) {
                b.flat(n + 1, Dir::In);
            }
        }
        3 => b.flat(
            b.u32_at(params.wrapping_add(4)).unwrap_or(0).into(),
            Dir::In,
        ),
        _ => {
            let len = b.u32_at(params.wrapping_add(8)).unwrap_or(0).into();
            if operation == PKEY_VERIFY {
                b.flat(len, Dir::In);
            } else {
                let op = b.operand(len, Dir::Out);
                b.push(Operand {
                    wrote: Wrote::Ret,
                    ..op
                });
            }
        }
    }
}

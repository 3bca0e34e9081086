//! `futex` and its successors.

use crate::plan::{Builder, Operand, Place, Role};
use crate::types::{Args, Blocking, Count, Dir, Restart, Shape, When, Wrote};

/// The operation, without its flags.
fn operation(args: &Args) -> i32 {
    (args[1] & 0x7f) as i32
}

fn push_word(b: &mut Builder, dir: Dir) {
    let op = b.operand(4, dir);
    b.push(Operand {
        role: Role::FutexWord,
        when: When::Always,
        shape: Shape::I32,
        ..op
    });
}

pub(super) fn word(b: &mut Builder) {
    push_word(b, Dir::In);
}

pub(super) fn addr(b: &mut Builder) {
    match operation(b.args) {
        libc::FUTEX_LOCK_PI
        | libc::FUTEX_LOCK_PI2
        | libc::FUTEX_TRYLOCK_PI
        | libc::FUTEX_UNLOCK_PI => {
            push_word(b, Dir::InOut);
        }
        // These only use the address.
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET | libc::FUTEX_REQUEUE | libc::FUTEX_WAKE_OP => {}
        _ => push_word(b, Dir::In),
    }
}

/// Whether the fourth argument is a time.
fn has_timeout(args: &Args) -> bool {
    matches!(
        operation(args),
        libc::FUTEX_WAIT
            | libc::FUTEX_WAIT_BITSET
            | libc::FUTEX_LOCK_PI
            | libc::FUTEX_LOCK_PI2
            | libc::FUTEX_WAIT_REQUEUE_PI
    )
}

pub(crate) fn val2_is_time(args: &Args) -> bool {
    has_timeout(args)
}

pub(super) fn val2(b: &mut Builder) {
    if has_timeout(b.args) {
        let op = b.operand(16, Dir::In);
        b.push(Operand {
            shape: Shape::Timespec,
            ..op
        });
    }
}

pub(super) fn addr2(b: &mut Builder) {
    match operation(b.args) {
        libc::FUTEX_WAKE_OP | libc::FUTEX_CMP_REQUEUE_PI | libc::FUTEX_WAIT_REQUEUE_PI => {
            push_word(b, Dir::InOut);
        }
        _ => {}
    }
}

/// `struct futex_waitv`: value (u64) at 0, address at 8, flags at 16.
pub(super) fn waitv(b: &mut Builder, count: Count) {
    const WAITV: u64 = 24;
    let count = match count {
        Count::Is(n) => n.into(),
        Count::Arg(i) => b.value(i) & 0xffff_ffff,
    };
    // FUTEX_WAITV_MAX; more is refused.
    let count = if count <= 128 { count } else { 0 };
    b.structure(count * WAITV, Dir::In, Wrote::Nothing);
    for i in 0..count {
        let at = b.here().wrapping_add(i * WAITV + 8);
        let Some(word) = b.u64_at(at) else { return };
        let op = Operand {
            place: Place::Mem(at),
            role: Role::FutexWord,
            ..b.nested(at, word, 4, Dir::In)
        };
        b.push(op);
    }
}

pub(crate) fn blocking(args: &Args) -> Blocking {
    if has_timeout(args) {
        Blocking::Always
    } else {
        Blocking::Never
    }
}

/// futex_wait() turns ERESTARTSYS into a restart block when it has a timeout; the PI operations give
/// ERESTARTNOINTR.
pub(crate) fn restart(args: &Args) -> Restart {
    match operation(args) {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET if args[3] == 0 => Restart::Restartable,
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => Restart::RestartBlock,
        libc::FUTEX_LOCK_PI | libc::FUTEX_LOCK_PI2 | libc::FUTEX_WAIT_REQUEUE_PI => Restart::NoIntr,
        _ => Restart::None,
    }
}

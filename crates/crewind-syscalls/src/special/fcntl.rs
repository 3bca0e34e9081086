//! `fcntl` by command.

use crate::plan::{Builder, Operand};
use crate::types::{Blocking, Dir, Restart, Shape};

pub(crate) const F_GETOWNER_UIDS: i32 = 17;
pub(crate) const F_SETOWN_EX: i32 = 15;
pub(crate) const F_GETOWN_EX: i32 = 16;
const F_CANCELLK: i32 = 1029;
const F_GET_RW_HINT: i32 = 1035;
const F_SET_RW_HINT: i32 = 1036;
const F_GET_FILE_RW_HINT: i32 = 1037;
const F_SET_FILE_RW_HINT: i32 = 1038;

/// `struct flock`.
const FLOCK: u64 = 32;

/// What the third argument of a command points to: size, direction, printing.
pub(crate) fn operand(command: i32) -> Option<(u64, Dir, Shape)> {
    Some(match command {
        libc::F_GETLK | libc::F_OFD_GETLK => (FLOCK, Dir::InOut, Shape::Flock),
        libc::F_SETLK | libc::F_SETLKW | libc::F_OFD_SETLK | libc::F_OFD_SETLKW | F_CANCELLK => {
            (FLOCK, Dir::In, Shape::Flock)
        }
        F_GETOWN_EX => (8, Dir::Out, Shape::I32),
        F_SETOWN_EX => (8, Dir::In, Shape::I32),
        F_GETOWNER_UIDS => (8, Dir::Out, Shape::I32),
        F_GET_RW_HINT | F_GET_FILE_RW_HINT => (8, Dir::Out, Shape::I64),
        F_SET_RW_HINT | F_SET_FILE_RW_HINT => (8, Dir::In, Shape::I64),
        _ => return None,
    })
}

pub(super) fn operands(b: &mut Builder) {
    if let Some((size, dir, shape)) = operand(b.value(1) as i32) {
        let op = b.operand(size, dir);
        b.push(Operand { shape, ..op });
    }
}

fn waits(command: i32) -> bool {
    matches!(command, libc::F_SETLKW | libc::F_OFD_SETLKW)
}

pub(crate) fn blocking(command: i32) -> Blocking {
    if waits(command) {
        Blocking::Always
    } else {
        Blocking::Never
    }
}

pub(crate) fn restart(command: i32) -> Restart {
    if waits(command) {
        Restart::Restartable
    } else {
        Restart::None
    }
}

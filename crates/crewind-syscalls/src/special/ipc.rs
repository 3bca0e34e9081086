//! System V control calls by command.

use crate::plan::{Builder, Place};
use crate::types::Dir;

const SEMID_DS: u64 = 104;
const SEMINFO: u64 = 40;
const SHMID_DS: u64 = 112;
const SHMINFO: u64 = 72;
const SHM_INFO_SIZE: u64 = 48;
const MSQID_DS: u64 = 120;
const MSGINFO: u64 = 32;

const SHM_STAT: i32 = 13;
const SHM_INFO: i32 = 14;
const SHM_STAT_ANY: i32 = 15;
const MSG_STAT: i32 = 11;
const MSG_INFO: i32 = 12;
const MSG_STAT_ANY: i32 = 13;
const SEM_STAT: i32 = 18;
const SEM_INFO: i32 = 19;
const SEM_STAT_ANY: i32 = 20;

/// The kernel accepts the flag in all commands and ignores it here.
const IPC_64: u64 = 0x100;

fn command(value: u64) -> i32 {
    (value & !IPC_64) as i32
}

/// A set has at most this many semaphores by default (SEMMSL), of 2 bytes each.
const MAX_SEMAPHORES: u64 = 32000;

/// Whether the fourth argument of `semctl` is a number, for printing.
pub(crate) fn semctl_takes_value(value: u64) -> bool {
    command(value) == libc::SETVAL
}

pub(super) fn semctl(b: &mut Builder) {
    match command(b.value(2)) {
        libc::IPC_STAT | SEM_STAT | SEM_STAT_ANY => b.flat(SEMID_DS, Dir::Out),
        libc::IPC_SET => b.flat(SEMID_DS, Dir::In),
        libc::IPC_INFO | SEM_INFO => b.flat(SEMINFO, Dir::Out),
        // The number of semaphores in the set is not in the arguments.
        libc::GETALL => b.unknown(Place::Arg(b.arg), b.here(), MAX_SEMAPHORES * 2),
        _ => {}
    }
}

pub(super) fn shmctl(b: &mut Builder) {
    match command(b.value(1)) {
        libc::IPC_STAT | SHM_STAT | SHM_STAT_ANY => b.flat(SHMID_DS, Dir::Out),
        libc::IPC_SET => b.flat(SHMID_DS, Dir::In),
        libc::IPC_INFO => b.flat(SHMINFO, Dir::Out),
        SHM_INFO => b.flat(SHM_INFO_SIZE, Dir::Out),
        _ => {}
    }
}

pub(super) fn msgctl(b: &mut Builder) {
    match command(b.value(1)) {
        libc::IPC_STAT | MSG_STAT | MSG_STAT_ANY => b.flat(MSQID_DS, Dir::Out),
        libc::IPC_SET => b.flat(MSQID_DS, Dir::In),
        libc::IPC_INFO | MSG_INFO => b.flat(MSGINFO, Dir::Out),
        _ => {}
    }
}

//! System V and POSIX interprocess communication, keys.

use super::kinds::*;
use crate::flags as f;
use crate::types::ArgKind::*;
use crate::types::Blocking::{May, MayFd};
use crate::types::Class::Runtime;
use crate::types::Restart::{NoHand, Restartable};
use crate::types::{Cloexec, FdEffect, Len, Row, Shape, When, Wrote};

const MQ_ATTR: u32 = 64;

pub(super) const ROWS: &[Row] = rows! {
    29 shmget(key: Hex, size: Size, shmflg: Flags(&f::IPC_GET));
    30 shmat(shmid: Int, shmaddr: Addr, shmflg: Flags(&f::SHMAT)) { class: Runtime };
    31 shmctl(shmid: Int, cmd: Flags(&f::SHMCTL), buf: Shmctl);
    64 semget(key: Hex, nsems: Int, semflg: Flags(&f::IPC_GET));
    65 semop(semid: Int, sops: input(Len::Times(2, 6), Shape::Opaque), nsops: Uint) { blocking: May };
    66 semctl(semid: Int, semnum: Int, cmd: Flags(&f::SEMCTL), arg: Semctl);
    67 shmdt(shmaddr: Addr) { class: Runtime };
    68 msgget(key: Hex, msgflg: Flags(&f::IPC_GET));
    69 msgsnd(msqid: Int, msgp: input(Len::Plus(2, 8), Shape::Bytes), msgsz: Size, msgflg: Flags(&f::IPC_FLAGS))
        { blocking: May, restart: NoHand };
    70 msgrcv(msqid: Int, msgp: output(Len::Plus(2, 8), Wrote::RetPlus(8), When::Success, Shape::Bytes), msgsz: Size,
        msgtyp: Long, msgflg: Flags(&f::IPC_FLAGS))
        { blocking: May, restart: NoHand };
    71 msgctl(msqid: Int, cmd: Flags(&f::MSGCTL), buf: Msgctl);
    220 semtimedop(semid: Int, sops: input(Len::Times(2, 6), Shape::Opaque), nsops: Uint, timeout: TIMESPEC_IN)
        { blocking: May };
    240 mq_open(name: Path, oflag: Flags(&f::MQ_OPEN), mode: Mode, attr: ins_as(MQ_ATTR, Shape::I64))
        { fds: FdEffect::New(Cloexec::Yes) };
    241 mq_unlink(name: Path);
    242 mq_timedsend(mqdes: Fd, msg_ptr: in_buf(2), msg_len: Size, msg_prio: Uint, abs_timeout: TIMESPEC_IN)
        { blocking: MayFd(0), restart: Restartable };
    243 mq_timedreceive(mqdes: Fd, msg_ptr: out_buf(2), msg_len: Size, msg_prio: U32_OUT, abs_timeout: TIMESPEC_IN)
        { blocking: MayFd(0), restart: Restartable };
    244 mq_notify(mqdes: Fd, sevp: Sigevent);
    245 mq_getsetattr(mqdes: Fd, newattr: ins_as(MQ_ATTR, Shape::I64), oldattr: outs_as(MQ_ATTR, Shape::I64));
    248 add_key(type: Path, description: Path, payload: in_buf(3), plen: Size, keyring: Int);
    249 request_key(type: Path, description: Path, callout_info: Path, dest_keyring: Int)
        { blocking: May, restart: Restartable };
    250 keyctl(operation: Flags(&f::KEYCTL), arg2: Keyctl, arg3: Keyctl, arg4: Keyctl, arg5: Keyctl)
        { blocking: May, restart: Restartable };
};

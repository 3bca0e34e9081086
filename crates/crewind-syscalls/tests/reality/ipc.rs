//! System V and POSIX messages, semaphores, shared memory, keys.

use crate::harness::{Arena, Tight, check, close, syscall, works};

const PRIVATE: u64 = 0;
const MODE: u64 = 0o600;
const RMID: u64 = 0;
const STAT: u64 = 2;
const INFO: u64 = 3;

#[test]
fn shared_memory() {
    let id = syscall(29, [PRIVATE, 8192, MODE, 0, 0, 0]);
    if id < 0 {
        eprintln!("SKIP: no System V shared memory");
        return;
    }
    let id = id as u64;
    works("shmctl", Tight::No, |a| [id, STAT, a.alloc(112), 0, 0, 0]);
    works("shmctl", Tight::No, |a| [id, INFO, a.alloc(72), 0, 0, 0]);
    works("shmctl", Tight::No, |a| [id, 14, a.alloc(48), 0, 0, 0]);
    assert_eq!(syscall(31, [id, RMID, 0, 0, 0, 0]), 0);
}

#[test]
fn semaphores() {
    let id = syscall(64, [PRIVATE, 5, MODE, 0, 0, 0]);
    if id < 0 {
        eprintln!("SKIP: no System V semaphores");
        return;
    }
    let id = id as u64;
    works("semctl", Tight::No, |a| [id, 0, STAT, a.alloc(104), 0, 0]);
    works("semctl", Tight::No, |a| [id, 0, INFO, a.alloc(40), 0, 0]);
    // Nobody tells how many there are.
    works("semctl", Tight::No, |a| [id, 0, 13, a.alloc(10), 0, 0]);
    works("semctl", Tight::No, |_| [id, 0, 16, 4, 0, 0]);
    works("semop", Tight::Yes, |a| {
        [id, a.bytes(&[0, 0, 1, 0, 0, 0]), 1, 0, 0, 0]
    });
    works("semtimedop", Tight::Yes, |a| {
        [id, a.bytes(&[1, 0, 1, 0, 0, 0]), 1, a.words(&[1, 0]), 0, 0]
    });
    assert_eq!(syscall(66, [id, 0, RMID, 0, 0, 0]), 0);
}

#[test]
fn messages() {
    let id = syscall(68, [PRIVATE, MODE, 0, 0, 0, 0]);
    if id < 0 {
        eprintln!("SKIP: no System V messages");
        return;
    }
    let id = id as u64;
    works("msgctl", Tight::No, |a| [id, STAT, a.alloc(120), 0, 0, 0]);
    works("msgctl", Tight::No, |a| [id, INFO, a.alloc(32), 0, 0, 0]);
    works("msgsnd", Tight::Yes, |a| {
        let message = a.alloc(8 + 5);
        a.set(message, &1u64.to_le_bytes());
        [id, message, 5, 0, 0, 0]
    });
    let n = works("msgrcv", Tight::No, |a| {
        [id, a.alloc(8 + 100), 100, 0, 0, 0]
    });
    assert_eq!(n, 5);
    assert_eq!(syscall(71, [id, RMID, 0, 0, 0, 0]), 0);
}

#[test]
fn posix_messages() {
    let name = format!("crewind-{}", std::process::id());
    let attributes = [0, 2, 64, 0, 0, 0, 0, 0];
    let mut a = Arena::new(0);
    let (path, attr) = (a.string(&name), a.words(&attributes));
    let queue = syscall(
        240,
        [
            path,
            (libc::O_CREAT | libc::O_RDWR) as u64,
            MODE,
            attr,
            0,
            0,
        ],
    );
    if queue < 0 {
        eprintln!("SKIP: no POSIX messages");
        return;
    }
    let fd = queue as u64;
    works("mq_getsetattr", Tight::No, |a| {
        [fd, 0, a.alloc(64), 0, 0, 0]
    });
    works("mq_timedreceive", Tight::No, |a| {
        let text = a.bytes(b"message");
        assert_eq!(syscall(242, [fd, text, 7, 3, 0, 0]), 0);
        [fd, a.alloc(64), 64, a.alloc(4), 0, 0]
    });
    works("mq_unlink", Tight::Yes, |a| {
        // The second time it has to be there again.
        let (path, attr) = (a.string(&name), a.words(&attributes));
        close(syscall(
            240,
            [
                path,
                (libc::O_CREAT | libc::O_RDWR) as u64,
                MODE,
                attr,
                0,
                0,
            ],
        ));
        [path, 0, 0, 0, 0, 0]
    });
    close(queue);
}

#[test]
fn keys() {
    // The session keyring's description; -3 is KEY_SPEC_SESSION_KEYRING.
    check("keyctl", Tight::Yes, |a| {
        [6, -3i64 as u64, a.alloc(200), 200, 0, 0]
    });
    check("keyctl", Tight::Yes, |a| {
        [11, -3i64 as u64, a.alloc(200), 200, 0, 0]
    });
    check("keyctl", Tight::Yes, |a| [31, a.alloc(10), 10, 0, 0, 0]);
}

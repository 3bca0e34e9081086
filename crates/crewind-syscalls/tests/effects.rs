//! What calls do besides writing memory.

use crewind_syscalls::FdChange::{self, *};
use crewind_syscalls::{
    Args, Class, FileEffect, Mem, Notice, Output, Range, Restart, Row, class, fd_changes,
    file_effect, may_block, output_bytes, restart, rows, temp_sigmask,
};

/// A few words of memory at 0x1000.
struct Words(Vec<u64>);

impl Mem for Words {
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        let Some(start) = addr.checked_sub(0x1000) else {
            return false;
        };
        match bytes
            .get(start as usize..)
            .and_then(|bytes| bytes.get(..buf.len()))
        {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }
}

const NOTHING: Words = Words(Vec::new());

fn named(name: &str) -> &'static Row {
    rows()
        .find(|row| row.name == name)
        .unwrap_or_else(|| panic!("no call {name}"))
}

fn args(args: &[u64]) -> Args {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    all
}

fn changes(name: &str, list: &[u64], ret: i64, mem: &Words) -> Vec<FdChange> {
    let mut changes = Vec::new();
    fd_changes(named(name), &args(list), ret, mem, &mut changes);
    changes
}

const CLOEXEC: u64 = 0o2000000;

#[test]
fn file_descriptors() {
    let none = &NOTHING;
    assert_eq!(
        changes("openat", &[0, 0, CLOEXEC], 3, none),
        [Open {
            fd: 3,
            cloexec: true
        }]
    );
    assert_eq!(changes("openat", &[0, 0, 0], -2, none), []);
    assert_eq!(
        changes("openat2", &[0, 0, 0x1000, 24], 3, &Words(vec![CLOEXEC])),
        [Open {
            fd: 3,
            cloexec: true
        }]
    );
    assert_eq!(changes("close", &[3], 0, none), [Close { fd: 3 }]);
    assert_eq!(changes("close", &[3], -5, none), [Close { fd: 3 }]);
    assert_eq!(changes("close", &[3], -9, none), []);
    assert_eq!(
        changes("dup", &[3], 5, none),
        [Dup {
            old: 3,
            new: 5,
            cloexec: false
        }]
    );
    assert_eq!(changes("dup2", &[3, 3], 3, none), []);
    assert_eq!(
        changes("dup3", &[3, 7, CLOEXEC], 7, none),
        [Dup {
            old: 3,
            new: 7,
            cloexec: true
        }]
    );
    assert_eq!(
        changes("fcntl", &[3, 1030, 10], 10, none),
        [Dup {
            old: 3,
            new: 10,
            cloexec: true
        }]
    );
    assert_eq!(
        changes("fcntl", &[3, 2, 1], 0, none),
        [SetCloexec {
            first: 3,
            last: 3,
            cloexec: true
        }]
    );
    assert_eq!(
        changes("ioctl", &[3, 0x5450], 0, none),
        [SetCloexec {
            first: 3,
            last: 3,
            cloexec: false
        }]
    );
    assert_eq!(
        changes("ioctl", &[3, 0x5441, 2], 4, none),
        [Open {
            fd: 4,
            cloexec: false
        }]
    );
    assert_eq!(
        changes("close_range", &[3, 9, 0], 0, none),
        [CloseRange { first: 3, last: 9 }]
    );
    assert_eq!(
        changes("pipe2", &[0x1000, CLOEXEC], 0, &Words(vec![3 | 4 << 32])),
        [
            Open {
                fd: 3,
                cloexec: true
            },
            Open {
                fd: 4,
                cloexec: true
            }
        ]
    );
    assert_eq!(changes("signalfd4", &[5, 0, 8, 0], 5, none), []);
    assert_eq!(
        changes("accept4", &[3, 0, 0, CLOEXEC], 5, none),
        [Open {
            fd: 5,
            cloexec: true
        }]
    );
    assert_eq!(
        changes("mq_open", &[0, 0], 5, none),
        [Open {
            fd: 5,
            cloexec: true
        }]
    );
}

#[test]
fn waiting() {
    let block =
        |name: &str, list: &[u64]| may_block(named(name), &args(list), &Words(vec![0, 0, 1, 0]));
    assert!(block("read", &[0]) && block("wait4", &[0]) && block("nanosleep", &[0x1000]));
    assert!(!block("getpid", &[]) && !block("wait4", &[0, 0, 1]) && !block("poll", &[0, 0, 0]));
    assert!(block("futex", &[0, 0x80]) && !block("futex", &[0, 0x81]));
    assert!(block("fcntl", &[0, 7]) && !block("fcntl", &[0, 6]));
    assert!(
        !block("ppoll", &[0, 0, 0x1000])
            && block("ppoll", &[0, 0, 0x1010])
            && block("ppoll", &[0, 0, 0])
    );
    assert!(!block("ioctl", &[0, 0x5401]) && block("ioctl", &[0, 0x5403]));
    assert!(!block("recvfrom", &[0, 0, 0, 0x40]) && block("recvfrom", &[0, 0, 0, 0]));
    let restarts = |name: &str, list: &[u64]| restart(named(name), &args(list));
    assert_eq!(restarts("read", &[]), Restart::Restartable);
    assert_eq!(restarts("futex", &[0, 0, 0, 0]), Restart::Restartable);
    assert_eq!(restarts("futex", &[0, 0, 0, 1]), Restart::RestartBlock);
    assert_eq!(restarts("futex", &[0, 6, 0, 1]), Restart::NoIntr);
    assert_eq!(restarts("clock_nanosleep", &[0, 0]), Restart::RestartBlock);
    assert_eq!(restarts("clock_nanosleep", &[0, 1]), Restart::NoHand);
    assert_eq!(restarts("epoll_wait", &[]), Restart::None);
    assert_eq!(restarts("select", &[]), Restart::NoHand);
}

#[test]
fn who_executes() {
    let of = |name: &str, list: &[u64]| class(named(name), &args(list));
    assert_eq!(of("read", &[]), Class::Pass);
    assert_eq!(of("mmap", &[]), Class::Runtime);
    assert_eq!(of("prctl", &[15]), Class::Pass);
    assert!(matches!(
        of("prctl", &[22]),
        Class::Refuse(libc::EINVAL, Notice::Loud, _)
    ));
    assert_eq!(of("prctl", &[40]), Class::Runtime);
    assert!(matches!(
        of("rseq", &[]),
        Class::Refuse(libc::ENOSYS, Notice::Quiet, _)
    ));
    assert!(matches!(
        of("io_uring_setup", &[]),
        Class::Refuse(libc::ENOSYS, ..)
    ));
    assert!(matches!(
        of("ioctl", &[0, 0xae01]),
        Class::Refuse(libc::ENOTTY, ..)
    ));
    assert_eq!(of("setsockopt", &[0, 1, 2]), Class::Pass);
    assert!(matches!(of("setsockopt", &[0, 263, 5]), Class::Refuse(..)));
}

#[test]
fn file_contents() {
    let of = |name: &str, list: &[u64]| file_effect(named(name), &args(list), &Words(vec![0o1000]));
    assert_eq!(of("pwrite64", &[3]), FileEffect::Fd(0));
    assert_eq!(of("copy_file_range", &[3]), FileEffect::Fd(2));
    assert_eq!(of("openat", &[0, 0, 0o1001]), FileEffect::Creat);
    assert_eq!(of("openat", &[0, 0, 1]), FileEffect::None);
    assert_eq!(of("openat2", &[0, 0, 0x1000]), FileEffect::Creat);
    assert_eq!(of("ioctl", &[0, 0x4004_9409]), FileEffect::Fd(0));
    assert_eq!(of("read", &[0]), FileEffect::None);
}

#[test]
fn output() {
    // Two buffers of 4 and 8 bytes.
    let mem = Words(vec![0x2000, 4, 0x3000, 8]);
    let of = |name: &str, list: &[u64], ret: i64| output_bytes(named(name), &args(list), ret, &mem);
    let range = |addr, len| Range { addr, len };
    assert_eq!(
        of("write", &[1, 0x5000, 10], 7),
        Output::Bytes(vec![range(0x5000, 7)])
    );
    assert_eq!(of("write", &[1, 0x5000, 10], -9), Output::Nothing);
    assert_eq!(
        of("writev", &[1, 0x1000, 2], 6),
        Output::Bytes(vec![range(0x2000, 4), range(0x3000, 2)])
    );
    assert_eq!(of("sendfile", &[1, 3, 0, 100], 50), Output::Opaque(50));
    assert_eq!(of("read", &[0, 0x5000, 10], 7), Output::Nothing);
}

#[test]
fn masks_for_one_call() {
    let mem = Words(vec![0x1010, 8, 0xff]);
    let of = |name: &str, list: &[u64]| temp_sigmask(named(name), &args(list), &mem);
    assert_eq!(of("ppoll", &[0, 0, 0, 0x1010, 8]), Some(0xff));
    assert_eq!(of("ppoll", &[0, 0, 0, 0, 8]), None);
    assert_eq!(of("pselect6", &[0, 0, 0, 0, 0, 0x1000]), Some(0xff));
    assert_eq!(of("poll", &[0, 0, 0]), None);
}

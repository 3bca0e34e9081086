//! poll and its kind, futexes, event fds.

use std::io::Write;
use std::os::fd::AsRawFd;

use crate::harness::{Arena, Dir, Tight, check, close, fails, syscall, works};

fn pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    std::io::pipe().expect("pipe")
}

/// A `struct pollfd` that asks for input.
fn pollfd(fd: u64) -> u64 {
    fd | 1 << 32
}

#[test]
fn polling() {
    let (reader, mut writer) = pipe();
    let (empty, _other) = pipe();
    writer.write_all(b"x").expect("written");
    let (full, empty) = (reader.as_raw_fd() as u64, empty.as_raw_fd() as u64);
    let none = u64::from(u32::MAX);
    for fds in [[full, empty], [empty, none], [full, 9999]] {
        works("poll", Tight::No, |a| {
            [a.words(&fds.map(pollfd)), 2, 0, 0, 0, 0]
        });
        works("ppoll", Tight::No, |a| {
            [
                a.words(&fds.map(pollfd)),
                2,
                a.words(&[0, 1_000_000]),
                a.words(&[0]),
                8,
                0,
            ]
        });
    }
    works("ppoll", Tight::No, |a| {
        [a.words(&[pollfd(empty)]), 1, a.words(&[0, 0]), 0, 0, 0]
    });
}

/// A `fd_set` of 1024 bits.
fn set(fds: &[u64]) -> [u64; 16] {
    let mut set = [0; 16];
    for &fd in fds {
        set[fd as usize / 64] |= 1 << (fd % 64);
    }
    set
}

#[test]
fn selecting() {
    let (reader, mut writer) = pipe();
    let (empty, other) = pipe();
    writer.write_all(b"x").expect("written");
    let (full, empty, out) = (
        reader.as_raw_fd() as u64,
        empty.as_raw_fd() as u64,
        other.as_raw_fd() as u64,
    );
    let bits = full.max(empty).max(out) + 1;
    let words = (bits as usize).div_ceil(64);
    for name in ["select", "pselect6"] {
        works(name, Tight::No, |a| {
            let read = a.words(&set(&[full, empty])[..words]);
            let write = a.words(&set(&[out])[..words]);
            let except = a.words(&set(&[full])[..words]);
            [bits, read, write, except, a.words(&[1, 0]), 0]
        });
        works(name, Tight::No, |a| {
            let read = a.words(&set(&[empty])[..words]);
            [bits, read, 0, 0, a.words(&[0, 1000]), 0]
        });
        // More bits than the process has fds: only some are looked at.
        check(name, Tight::No, |a| {
            [1 << 20, a.words(&[0; 1 << 14]), 0, 0, a.words(&[0, 0]), 0]
        });
        // The time is written also when the call fails.
        fails(name, libc::EINVAL, |a| {
            [u64::from(u32::MAX), 0, 0, 0, a.words(&[1, 5]), 0]
        });
        check(name, Tight::No, |a| {
            [
                bits + 100,
                a.words(&[u64::MAX; 16]),
                0,
                0,
                a.words(&[1, 5]),
                0,
            ]
        });
    }
    works("pselect6", Tight::No, |a| {
        let mask = a.words(&[0]);
        let read = a.words(&set(&[full])[..words]);
        [bits, read, 0, 0, 0, a.words(&[mask, 8])]
    });
}

#[test]
fn epoll() {
    let (reader, mut writer) = pipe();
    let epfd = works("epoll_create1", Tight::Yes, |_| [0; 6]) as u64;
    let fd = reader.as_raw_fd() as u64;
    // Added by the first pattern, there already with the second.
    check("epoll_ctl", Tight::Yes, |a| {
        [
            epfd,
            1,
            fd,
            a.bytes(&[1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
            0,
            0,
        ]
    });
    assert_eq!(
        works("epoll_wait", Tight::Yes, |a| [
            epfd,
            a.alloc(120),
            10,
            0,
            0,
            0
        ]),
        0
    );
    writer.write_all(b"x").expect("written");
    assert_eq!(
        works("epoll_wait", Tight::Yes, |a| [
            epfd,
            a.alloc(120),
            10,
            0,
            0,
            0
        ]),
        1
    );
    works("epoll_pwait", Tight::Yes, |a| {
        [epfd, a.alloc(120), 10, 0, a.words(&[0]), 8]
    });
    works("epoll_pwait2", Tight::Yes, |a| {
        [epfd, a.alloc(12), 1, a.words(&[0, 0]), 0, 8]
    });
    close(epfd as i64);
}

#[test]
fn event_fds() {
    let fd = works("eventfd2", Tight::Yes, |_| [7, 0, 0, 0, 0, 0]) as u64;
    works("read", Tight::Yes, |a| {
        assert_eq!(syscall(1, [fd, a.words(&[5]), 8, 0, 0, 0]), 8);
        [fd, a.alloc(8), 8, 0, 0, 0]
    });
    close(fd as i64);
    let fd = works("inotify_init1", Tight::Yes, |_| [0; 6]) as u64;
    let dir = Dir::new("watched");
    let path = dir.path().to_owned();
    works("inotify_add_watch", Tight::Yes, |a| {
        [fd, a.string(&path), 0xfff, 0, 0, 0]
    });
    works("read", Tight::No, |a| {
        drop(dir.file());
        [fd, a.alloc(4000), 4000, 0, 0, 0]
    });
    close(fd as i64);
}

#[test]
fn futexes() {
    let wait = |value: u32| {
        move |a: &mut Arena| [a.u32(1), 0, u64::from(value), a.words(&[0, 1000]), 0, 0]
    };
    fails("futex", libc::EAGAIN, wait(2));
    fails("futex", libc::ETIMEDOUT, wait(1));
    works("futex", Tight::Yes, |a| [a.u32(1), 1, 1, 0, 0, 0]);
    // FUTEX_WAKE_OP: adds 1 to the second word.
    works("futex", Tight::No, |a| {
        [a.u32(1), 5, 1, 1, a.u32(2), 1 << 28 | 1 << 12]
    });
    // Lock and unlock with priority inheritance.
    works("futex", Tight::No, |a| [a.u32(0), 6, 0, 0, 0, 0]);
    works("futex", Tight::No, |a| {
        // SAFETY: the caller's thread id.
        let tid = unsafe { libc::gettid() };
        [a.u32(tid as u32), 7, 0, 0, 0, 0]
    });
    check("futex_waitv", Tight::Yes, |a| {
        let word = a.u32(1);
        // Wrong value, 32 bits wide.
        [a.words(&[5, word, 2]), 1, 0, 0, 1, 0]
    });
    check("futex_wait", Tight::Yes, |a| {
        [a.u32(1), 5, u64::MAX >> 32, 2, 0, 1]
    });
}

//! Calls that a signal handler interrupts: what they write then, and whether they are restarted.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use crewind_syscalls::{Restart, restart, rows};

use crate::harness::{Arena, Dir, close, fails, syscall};

extern "C" fn ignore(_: i32) {}

/// Interrupts the calling thread again and again until dropped.
struct Interrupts {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Interrupts {
    /// `flags` are those of the handler; each set of flags has a signal of its own.
    fn new(flags: i32) -> Self {
        let signal = libc::SIGRTMIN() + if flags == 0 { 5 } else { 6 };
        // SAFETY: a handler that does nothing, for a signal that no other test uses.
        let tid = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_flags = flags;
            action.sa_sigaction = ignore as *const () as usize;
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
            libc::gettid()
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(5));
                // SAFETY: the interrupted thread joins this one before it ends.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) };
            }
        });
        Interrupts {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What calls write when a handler interrupts them: remaining times, and `revents` all the same.
#[test]
fn interrupted() {
    let (empty, _other) = std::io::pipe().expect("pipe");
    let fd = empty.as_raw_fd() as u64;
    let epfd = syscall(291, [0; 6]) as u64;
    let _interrupts = Interrupts::new(0);
    let long = [100, 0];
    let eintr = libc::EINTR;
    fails("nanosleep", eintr, |a| {
        [a.words(&long), a.alloc(16), 0, 0, 0, 0]
    });
    fails("nanosleep", eintr, |a| [a.words(&long), 0, 0, 0, 0, 0]);
    fails("clock_nanosleep", eintr, |a| {
        [1, 0, a.words(&long), a.alloc(16), 0, 0]
    });
    fails("clock_nanosleep", eintr, |a| {
        [1, 1, a.words(&[1 << 40, 0]), a.alloc(16), 0, 0]
    });
    fails("poll", eintr, |a| {
        [a.words(&[fd | 1 << 32]), 1, u64::from(u32::MAX), 0, 0, 0]
    });
    fails("ppoll", eintr, |a| {
        [a.words(&[fd | 1 << 32]), 1, a.words(&long), 0, 0, 0]
    });
    for name in ["select", "pselect6"] {
        fails(name, eintr, |a| {
            let words = fd as usize / 64 + 1;
            [fd + 1, a.words(&set(fd, words)), 0, 0, a.words(&long), 0]
        });
    }
    fails("epoll_wait", eintr, |a| {
        [epfd, a.alloc(120), 10, 1000, 0, 0]
    });
    fails("futex", eintr, |a| [a.u32(1), 0, 1, a.words(&long), 0, 0]);
    fails("read", eintr, |a| [fd, a.alloc(10), 10, 0, 0, 0]);
    fails("pause", eintr, |_| [0; 6]);
    close(epfd as i64);
}

/// A `fd_set` of so many words with one fd.
fn set(fd: u64, words: usize) -> Vec<u64> {
    let mut set = vec![0; words];
    set[fd as usize / 64] = 1 << (fd % 64);
    set
}

/// Makes a call while a handler with `SA_RESTART` interrupts it, and compares with what the table says.
/// Calls that are restarted must end by themselves.
fn restarts(name: &str, args: [u64; 6]) -> i64 {
    let row = rows()
        .find(|row| row.name == name)
        .unwrap_or_else(|| panic!("no call {name}"));
    let expected = restart(row, &args);
    let ret = syscall(row.nr, args);
    let interrupted = ret == -i64::from(libc::EINTR);
    let restarted = matches!(expected, Restart::Restartable | Restart::NoIntr);
    assert_eq!(
        interrupted, !restarted,
        "{name} = {ret}, the table says {expected:?}"
    );
    ret
}

/// Does something after a while.
fn later(what: impl FnOnce() + Send + 'static) {
    spawn(move || {
        sleep(Duration::from_millis(30));
        what();
    });
}

#[test]
fn never_restarted() {
    let (empty, _other) = std::io::pipe().expect("pipe");
    let fd = empty.as_raw_fd() as u64;
    let epfd = syscall(291, [0; 6]) as u64;
    let mut a = Arena::new(0);
    let (long, far) = (a.words(&[100, 0]), a.words(&[1 << 40, 0]));
    let _interrupts = Interrupts::new(libc::SA_RESTART);
    restarts("nanosleep", [long, 0, 0, 0, 0, 0]);
    restarts("clock_nanosleep", [1, 0, long, 0, 0, 0]);
    restarts("clock_nanosleep", [1, 1, far, 0, 0, 0]);
    restarts("pause", [0; 6]);
    restarts(
        "poll",
        [a.words(&[fd | 1 << 32]), 1, u64::from(u32::MAX), 0, 0, 0],
    );
    restarts("ppoll", [a.words(&[fd | 1 << 32]), 1, 0, 0, 8, 0]);
    restarts("select", [0, 0, 0, 0, 0, 0]);
    restarts("pselect6", [0, 0, 0, 0, 0, 0]);
    restarts(
        "epoll_wait",
        [epfd, a.alloc(12), 1, u64::from(u32::MAX), 0, 0],
    );
    restarts("epoll_pwait2", [epfd, a.alloc(12), 1, 0, 0, 8]);
    restarts("futex", [a.u32(1), 0, 1, long, 0, 0]);
    restarts("futex", [a.u32(1), 9, 1, far, 0, u64::from(u32::MAX)]);
    restarts("rt_sigtimedwait", [a.words(&[1 << 40]), 0, 0, 8, 0, 0]);
    restarts("rt_sigsuspend", [a.words(&[0]), 8, 0, 0, 0, 0]);
    let queue = syscall(68, [0, 0o600, 0, 0, 0, 0]);
    let semaphores = syscall(64, [0, 1, 0o600, 0, 0, 0]);
    if queue >= 0 && semaphores >= 0 {
        restarts("msgrcv", [queue as u64, a.alloc(100), 80, 0, 0, 0]);
        let wait = a.bytes(&[0, 0, 0xff, 0xff, 0, 0]);
        restarts("semop", [semaphores as u64, wait, 1, 0, 0, 0]);
        restarts("semtimedop", [semaphores as u64, wait, 1, long, 0, 0]);
        syscall(71, [queue as u64, 0, 0, 0, 0, 0]);
        syscall(66, [semaphores as u64, 0, 0, 0, 0, 0]);
    } else {
        eprintln!("SKIP: no System V messages and semaphores");
    }
    close(epfd as i64);
}

#[test]
fn restarted() {
    let _interrupts = Interrupts::new(libc::SA_RESTART);
    let mut a = Arena::new(0);

    let (reader, mut writer) = std::io::pipe().expect("pipe");
    later(move || writer.write_all(b"x").expect("written"));
    assert_eq!(
        restarts("read", [reader.as_raw_fd() as u64, a.alloc(8), 8, 0, 0, 0]),
        1
    );

    let (one, two) = std::os::unix::net::UnixDatagram::pair().expect("sockets");
    for name in ["recvfrom", "recvmsg", "recvmmsg"] {
        let two = two.try_clone().expect("socket");
        later(move || assert_eq!(two.send(b"x").expect("sent"), 1));
        let buffer = a.alloc(8);
        let iov = a.words(&[buffer, 8]);
        let header = a.words(&[0, 0, iov, 1, 0, 0, 0, 0]);
        let fd = one.as_raw_fd() as u64;
        let args = match name {
            "recvfrom" => [fd, buffer, 8, 0, 0, 0],
            "recvmsg" => [fd, header, 0, 0, 0, 0],
            _ => [fd, header, 1, 0, 0, 0],
        };
        assert_eq!(restarts(name, args), 1);
    }

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("socket");
    let address = listener.local_addr().expect("address");
    later(move || drop(std::net::TcpStream::connect(address)));
    close(restarts(
        "accept4",
        [listener.as_raw_fd() as u64, 0, 0, 0, 0, 0],
    ));

    // SAFETY: the child only sleeps for a moment.
    let child = unsafe {
        match libc::fork() {
            0 => {
                libc::usleep(30_000);
                libc::_exit(0)
            }
            pid => pid as u64,
        }
    };
    assert_eq!(
        restarts(
            "waitid",
            [1, child, 0, (libc::WEXITED | libc::WNOWAIT) as u64, 0, 0]
        ),
        0
    );
    assert_eq!(restarts("wait4", [child, 0, 0, 0, 0, 0]), child as i64);

    let word = a.u32(1);
    for (name, args) in [
        ("futex", [word, 0, 1, 0, 0, 0]),
        ("futex_wait", [word, 1, u64::from(u32::MAX), 2, 0, 1]),
        ("futex_waitv", [a.words(&[1, word, 2]), 1, 0, 0, 1, 0]),
    ] {
        let (done, seen) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let waker = {
            let (done, seen) = (done.clone(), seen.clone());
            // Until it is seen to have ended, since the wake may come before the wait.
            spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(30));
                    seen.store(true, Ordering::Relaxed);
                    syscall(202, [word, 1, 1, 0, 0, 0]);
                }
            })
        };
        restarts(name, args);
        assert!(
            seen.load(Ordering::Relaxed),
            "{name} ended before it was woken"
        );
        done.store(true, Ordering::Relaxed);
        waker.join().expect("waker");
    }
}

#[test]
fn locks_are_restarted() {
    let _interrupts = Interrupts::new(libc::SA_RESTART);
    let dir = Dir::new("interrupted-locks");
    let (held, wanted) = (dir.file(), dir.file());
    let fd = wanted.as_raw_fd() as u64;
    // SAFETY: locks the test's own file.
    assert_eq!(unsafe { libc::flock(held.as_raw_fd(), libc::LOCK_EX) }, 0);
    later(move || drop(held));
    assert_eq!(restarts("flock", [fd, libc::LOCK_EX as u64, 0, 0, 0, 0]), 0);

    // Locks of open files, since those of one process do not conflict.
    let mut a = Arena::new(0);
    let lock = a.words(&[1, 0, 0, 0]);
    let held = dir.file();
    assert_eq!(
        syscall(
            72,
            [
                held.as_raw_fd() as u64,
                libc::F_OFD_SETLK as u64,
                lock,
                0,
                0,
                0
            ]
        ),
        0
    );
    later(move || drop(held));
    assert_eq!(
        restarts("fcntl", [fd, libc::F_OFD_SETLKW as u64, lock, 0, 0, 0]),
        0
    );
}

//! Processes, limits, scheduling, time, the system.

use crewind_syscalls::Mem;

use crate::harness::{Arena, Own, Tight, check, close, fails, syscall, works};

#[test]
fn system() {
    works("uname", Tight::Yes, |a| [a.alloc(390), 0, 0, 0, 0, 0]);
    // Two bytes of padding.
    works("sysinfo", Tight::No, |a| [a.alloc(112), 0, 0, 0, 0, 0]);
    works("getrandom", Tight::No, |a| [a.alloc(100), 100, 0, 0, 0, 0]);
    works("getcpu", Tight::Yes, |a| {
        [a.alloc(4), a.alloc(4), 0, 0, 0, 0]
    });
    check("syslog", Tight::Yes, |a| [3, a.alloc(1000), 1000, 0, 0, 0]);
    check("syslog", Tight::Yes, |_| [10, 0, 0, 0, 0, 0]);
    check("lsm_list_modules", Tight::No, |a| {
        [a.alloc(160), a.u32(160), 0, 0, 0, 0]
    });
    check("lsm_list_modules", Tight::No, |a| {
        [a.alloc(4), a.u32(4), 0, 0, 0, 0]
    });
    check("lsm_get_self_attr", Tight::No, |a| {
        [100, a.alloc(400), a.u32(400), 0, 0, 0]
    });
}

#[test]
fn credentials() {
    works("getresuid", Tight::Yes, |a| {
        [a.alloc(4), a.alloc(4), a.alloc(4), 0, 0, 0]
    });
    works("getresgid", Tight::Yes, |a| {
        [a.alloc(4), a.alloc(4), a.alloc(4), 0, 0, 0]
    });
    works("getgroups", Tight::Yes, |a| [100, a.alloc(400), 0, 0, 0, 0]);
    works("getgroups", Tight::Yes, |a| [0, a.alloc(0), 0, 0, 0, 0]);
    for (version, size) in [(0x1998_0330, 12), (0x2008_0522, 24)] {
        works("capget", Tight::No, |a| {
            [a.words(&[version]), a.alloc(size), 0, 0, 0, 0]
        });
    }
    // An unknown version is answered with the preferred one.
    check("capget", Tight::No, |a| [a.words(&[7]), 0, 0, 0, 0, 0]);
    fails("capget", libc::EINVAL, |a| {
        [a.words(&[7]), a.alloc(24), 0, 0, 0, 0]
    });
}

#[test]
fn limits_and_usage() {
    works("getrlimit", Tight::Yes, |a| {
        [libc::RLIMIT_NOFILE.into(), a.alloc(16), 0, 0, 0, 0]
    });
    works("prlimit64", Tight::Yes, |a| {
        [0, libc::RLIMIT_NOFILE.into(), 0, a.alloc(16), 0, 0]
    });
    works("getrusage", Tight::Yes, |a| [0, a.alloc(144), 0, 0, 0, 0]);
    works("times", Tight::Yes, |a| [a.alloc(32), 0, 0, 0, 0, 0]);
    fails("getrlimit", libc::EINVAL, |a| [99, a.alloc(16), 0, 0, 0, 0]);
}

#[test]
fn scheduling() {
    works("sched_getaffinity", Tight::Yes, |a| {
        [0, 1024, a.alloc(1024), 0, 0, 0]
    });
    works("sched_getaffinity", Tight::Yes, |a| {
        [0, 8, a.alloc(8), 0, 0, 0]
    });
    works("sched_getparam", Tight::Yes, |a| {
        [0, a.alloc(4), 0, 0, 0, 0]
    });
    works("sched_rr_get_interval", Tight::Yes, |a| {
        [0, a.alloc(16), 0, 0, 0, 0]
    });
    works("sched_getattr", Tight::Yes, |a| {
        [0, a.alloc(56), 56, 0, 0, 0]
    });
    check("sched_getattr", Tight::No, |a| {
        [0, a.alloc(100), 100, 0, 0, 0]
    });
    works("sched_getattr", Tight::Yes, |a| {
        [0, a.alloc(48), 48, 0, 0, 0]
    });
    // Larger than the kernel's, with a non-zero end: it writes its own size.
    fails("sched_setattr", libc::E2BIG, |a| {
        let attr = a.bytes(&[1; 200]);
        a.set(attr, &200u32.to_le_bytes());
        [0, attr, 0, 0, 0, 0]
    });
    check("get_mempolicy", Tight::No, |a| {
        [a.alloc(4), a.alloc(128), 1025, 0, 0, 0]
    });
    check("move_pages", Tight::No, |a| {
        let page = a.alloc(4096);
        [0, 1, a.words(&[page]), 0, a.alloc(4), 0]
    });
    works("mincore", Tight::Yes, |a| {
        let memory = a.alloc(3 * 4096);
        [memory, 3 * 4096, a.alloc(3), 0, 0, 0]
    });
}

#[test]
fn clocks() {
    works("gettimeofday", Tight::Yes, |a| {
        [a.alloc(16), a.alloc(8), 0, 0, 0, 0]
    });
    works("time", Tight::Yes, |a| [a.alloc(8), 0, 0, 0, 0, 0]);
    works("clock_gettime", Tight::Yes, |a| {
        [1, a.alloc(16), 0, 0, 0, 0]
    });
    works("clock_getres", Tight::Yes, |a| [1, a.alloc(16), 0, 0, 0, 0]);
    works("getitimer", Tight::Yes, |a| [0, a.alloc(32), 0, 0, 0, 0]);
    works("setitimer", Tight::Yes, |a| {
        [1, a.words(&[0; 4]), a.alloc(32), 0, 0, 0]
    });
    works("adjtimex", Tight::No, |a| {
        [a.words(&[0; 26]), 0, 0, 0, 0, 0]
    });
    works("clock_adjtime", Tight::No, |a| {
        [0, a.words(&[0; 26]), 0, 0, 0, 0]
    });
    works("nanosleep", Tight::Yes, |a| {
        [a.words(&[0, 1000]), a.alloc(16), 0, 0, 0, 0]
    });
    works("clock_nanosleep", Tight::Yes, |a| {
        [1, 0, a.words(&[0, 1000]), a.alloc(16), 0, 0]
    });
    fails("nanosleep", libc::EINVAL, |a| {
        [a.words(&[0, u64::MAX]), a.alloc(16), 0, 0, 0, 0]
    });
}

#[test]
fn timers() {
    let mut ids = Vec::new();
    works("timer_create", Tight::Yes, |a| {
        // SIGEV_NONE.
        let event = a.words(&[0, 1 << 32, 0, 0, 0, 0, 0, 0]);
        let id = a.alloc(4);
        ids.push(id);
        [1, event, id, 0, 0, 0]
    });
    // The tests share a process; this one's ids are whatever the last call gave.
    let mut arena = Arena::new(0);
    let (event, id) = (arena.words(&[0, 1 << 32, 0, 0, 0, 0, 0, 0]), arena.alloc(4));
    assert_eq!(syscall(222, [1, event, id, 0, 0, 0]), 0);
    let mut bytes = [0; 4];
    assert!(Own.read(id, &mut bytes));
    let id = u64::from(u32::from_le_bytes(bytes));
    works("timer_settime", Tight::Yes, |a| {
        [id, 0, a.words(&[0, 0, 100, 0]), a.alloc(32), 0, 0]
    });
    works("timer_gettime", Tight::Yes, |a| {
        [id, a.alloc(32), 0, 0, 0, 0]
    });
    works("timer_settime", Tight::Yes, |a| {
        [id, 0, a.words(&[0, 0, 100, 0]), 0, 0, 0]
    });
    assert_eq!(syscall(226, [id, 0, 0, 0, 0, 0]), 0);
    let fd = works("timerfd_create", Tight::Yes, |_| [1, 0, 0, 0, 0, 0]);
    works("timerfd_settime", Tight::Yes, |a| {
        [fd as u64, 0, a.words(&[0, 0, 0, 1]), a.alloc(32), 0, 0]
    });
    works("timerfd_gettime", Tight::Yes, |a| {
        [fd as u64, a.alloc(32), 0, 0, 0, 0]
    });
    close(fd);
}

/// Starts a child that ends at once with this code.
fn child(code: i32) -> u64 {
    // SAFETY: the child only exits.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(code),
            pid => pid as u64,
        }
    }
}

#[test]
fn children() {
    works("wait4", Tight::Yes, |a| {
        [child(3), a.alloc(4), 0, a.alloc(144), 0, 0]
    });
    works("waitid", Tight::No, |a| {
        [
            1,
            child(3),
            a.alloc(128),
            libc::WEXITED as u64,
            a.alloc(144),
            0,
        ]
    });
    // Nothing to report: wait4 writes nothing, waitid zeros.
    // SAFETY: the child only sleeps.
    let sleeper = unsafe {
        match libc::fork() {
            0 => {
                libc::sleep(100);
                libc::_exit(0)
            }
            pid => pid as u64,
        }
    };
    let nohang = libc::WNOHANG as u64;
    assert_eq!(
        works("wait4", Tight::Yes, |a| [
            sleeper,
            a.alloc(4),
            nohang,
            a.alloc(144),
            0,
            0
        ]),
        0
    );
    let options = nohang | libc::WEXITED as u64;
    assert_eq!(
        works("waitid", Tight::No, |a| [
            1,
            sleeper,
            a.alloc(128),
            options,
            a.alloc(144),
            0
        ]),
        0
    );
    // SAFETY: ends the child made above.
    unsafe {
        libc::kill(sleeper as i32, libc::SIGKILL);
        libc::waitpid(sleeper as i32, std::ptr::null_mut(), 0);
    }
    fails("wait4", libc::ECHILD, |a| {
        [sleeper, a.alloc(4), 0, a.alloc(144), 0, 0]
    });
    fails("waitid", libc::ECHILD, |a| {
        [1, sleeper, a.alloc(128), options, a.alloc(144), 0]
    });
}

#[test]
fn process_control() {
    works("prctl", Tight::Yes, |a| {
        [15, a.string("a name"), 0, 0, 0, 0]
    });
    works("prctl", Tight::Yes, |a| [16, a.alloc(16), 0, 0, 0, 0]);
    works("prctl", Tight::Yes, |a| [2, a.alloc(4), 0, 0, 0, 0]);
    works("prctl", Tight::Yes, |a| [25, a.alloc(4), 0, 0, 0, 0]);
    works("prctl", Tight::Yes, |a| [37, a.alloc(4), 0, 0, 0, 0]);
    works("prctl", Tight::Yes, |_| [3, 0, 0, 0, 0, 0]);
    check("prctl", Tight::No, |a| [40, a.alloc(8), 0, 0, 0, 0]);
    check("prctl", Tight::Yes, |a| {
        [0x4155_5856, a.alloc(1000), 1000, 0, 0, 0]
    });
    check("prctl", Tight::Yes, |a| [62, 0, 0, 0, a.alloc(8), 0]);
    works("get_robust_list", Tight::Yes, |a| {
        [0, a.alloc(8), a.alloc(8), 0, 0, 0]
    });
    let pid = u64::from(std::process::id());
    works("process_vm_readv", Tight::No, |a| {
        let (from, first, second) = (a.bytes(&[7; 50]), a.alloc(20), a.alloc(40));
        [
            pid,
            a.words(&[first, 20, second, 40]),
            2,
            a.words(&[from, 50]),
            1,
            0,
        ]
    });
}

#[test]
fn signal_state() {
    works("rt_sigprocmask", Tight::Yes, |a| {
        [0, 0, a.alloc(8), 8, 0, 0]
    });
    works("rt_sigpending", Tight::Yes, |a| [a.alloc(8), 8, 0, 0, 0, 0]);
    works("rt_sigaction", Tight::Yes, |a| {
        [libc::SIGUSR2 as u64, 0, a.alloc(32), 8, 0, 0]
    });
    // Four bytes of padding.
    works("sigaltstack", Tight::No, |a| [0, a.alloc(24), 0, 0, 0, 0]);
    // A signal for this thread, blocked and then fetched.
    let set = 1u64 << (libc::SIGUSR1 - 1);
    let mut arena = Arena::new(0);
    let block = arena.words(&[set]);
    assert_eq!(syscall(14, [0, block, 0, 8, 0, 0]), 0);
    let info = works("rt_sigtimedwait", Tight::No, |a| {
        // SAFETY: sends a blocked signal to the calling thread.
        unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                libc::getpid(),
                libc::gettid(),
                libc::SIGUSR1,
            )
        };
        [a.words(&[set]), a.alloc(128), 0, 8, 0, 0]
    });
    assert_eq!(info, i64::from(libc::SIGUSR1));
    fails("rt_sigtimedwait", libc::EAGAIN, |a| {
        [a.words(&[set]), a.alloc(128), a.words(&[0, 0]), 8, 0, 0]
    });
    let fd = works("signalfd4", Tight::Yes, |a| {
        [u64::MAX, a.words(&[set]), 8, 0, 0, 0]
    });
    works("read", Tight::Yes, |a| {
        // SAFETY: as above.
        unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                libc::getpid(),
                libc::gettid(),
                libc::SIGUSR1,
            )
        };
        [fd as u64, a.alloc(128), 128, 0, 0, 0]
    });
    close(fd);
}

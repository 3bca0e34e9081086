//! Sizes of structures in the table against those of the C library's types, where the two agree.

use crewind_syscalls::{ArgKind, Len, rows};

/// Size that the table has for an argument.
fn size(call: &str, arg: usize) -> usize {
    let row = rows()
        .find(|row| row.name == call)
        .unwrap_or_else(|| panic!("no call {call}"));
    match row.args.get(arg).map(|arg| arg.kind) {
        Some(ArgKind::Buf(buf)) => match buf.len {
            Len::Bytes(n) | Len::Times(_, n) => n as usize,
            other => panic!("{call}: {other:?}"),
        },
        other => panic!("{call}: {other:?}"),
    }
}

macro_rules! same {
    ($($call:ident $arg:literal $type:ty;)*) => {
        $(assert_eq!(size(stringify!($call), $arg), std::mem::size_of::<$type>(), stringify!($call));)*
    };
}

#[test]
fn structures() {
    same! {
        stat 1 libc::stat;
        fstat 1 libc::stat;
        lstat 1 libc::stat;
        newfstatat 2 libc::stat;
        statx 4 libc::statx;
        statfs 1 libc::statfs;
        fstatfs 1 libc::statfs;
        poll 0 libc::pollfd;
        ppoll 0 libc::pollfd;
        epoll_wait 1 libc::epoll_event;
        epoll_pwait 1 libc::epoll_event;
        epoll_pwait2 1 libc::epoll_event;
        epoll_ctl 3 libc::epoll_event;
        nanosleep 0 libc::timespec;
        clock_gettime 1 libc::timespec;
        clock_settime 1 libc::timespec;
        gettimeofday 0 libc::timeval;
        getitimer 1 libc::itimerval;
        setitimer 2 libc::itimerval;
        timer_settime 2 libc::itimerspec;
        timerfd_settime 3 libc::itimerspec;
        timerfd_gettime 1 libc::itimerspec;
        times 0 libc::tms;
        adjtimex 0 libc::timex;
        clock_adjtime 1 libc::timex;
        utime 1 libc::utimbuf;
        utimensat 2 [libc::timespec; 2];
        utimes 1 [libc::timeval; 2];
        getrusage 1 libc::rusage;
        wait4 3 libc::rusage;
        getrlimit 1 libc::rlimit;
        prlimit64 2 libc::rlimit64;
        prlimit64 3 libc::rlimit64;
        uname 0 libc::utsname;
        sysinfo 0 libc::sysinfo;
        sched_setparam 1 libc::sched_param;
        sched_getparam 1 libc::sched_param;
        sigaltstack 0 libc::stack_t;
        rt_sigtimedwait 1 libc::siginfo_t;
        rt_sigqueueinfo 2 libc::siginfo_t;
        rt_tgsigqueueinfo 3 libc::siginfo_t;
        pidfd_send_signal 2 libc::siginfo_t;
        mq_open 3 libc::mq_attr;
        mq_getsetattr 2 libc::mq_attr;
        semop 1 libc::sembuf;
        semtimedop 1 libc::sembuf;
        pipe 0 [libc::c_int; 2];
        socketpair 3 [libc::c_int; 2];
        getgroups 1 libc::gid_t;
    }
}

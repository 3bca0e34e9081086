//! Processes and threads: their start, their end, and the making of new ones.

pub mod clone;
pub mod end;
pub mod exec;

use crate::hostcall;

/// Ends the host process, with all its threads, at once.
pub fn leave(code: i32) -> ! {
    // SAFETY: ends the process; nothing of ours needs to run after.
    unsafe {
        hostcall::raw(libc::SYS_exit_group, [code as u64, 0, 0, 0, 0, 0]);
    }
    unreachable!("exit_group returned")
}

/// Dies of a signal, so that whoever waits sees the guest's own status.
pub fn die_of(signo: u32) -> ! {
    use crate::signal::host::{Host, set_disposition};
    // A core file would be of this process, the recorder's, with its large reserved ranges.
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    set_disposition(signo, Host::Default);
    let open = !(1u64 << (signo - 1));
    // SAFETY: plain calls on valid structs.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        hostcall::raw(
            libc::SYS_rt_sigprocmask,
            [libc::SIG_SETMASK as u64, &raw const open as u64, 0, 8, 0, 0],
        );
        let pid = hostcall::raw(libc::SYS_getpid, [0; 6]) as u64;
        let tid = hostcall::raw(libc::SYS_gettid, [0; 6]) as u64;
        hostcall::raw(libc::SYS_tgkill, [pid, tid, u64::from(signo), 0, 0, 0]);
    }
    leave(128 + signo as i32)
}

//! Ends the guest's processes when the supervisor dies without having done so (`kill -9`, out of memory).
//!
//! They would go on for ever in what their supervisor should have ended: a replay waits for its siblings, a recording
//! whose trace nobody ends. A process of its own waits for the supervisor's death, and then kills everything that
//! holds the control socket, which is all that it started and what came of that. When the supervisor leaves processes
//! of the guest to a keeper, it dismisses the guardian first.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The other end of the guardian's pipe. Dropping it dismisses the guardian.
pub struct Guardian {
    pipe: File,
}

/// Rounds of looking for processes, and how many of them must have found none: what is being forked while a round
/// goes on is found in the next.
const ROUNDS: u32 = 1000;
const IN_VAIN: u32 = 3;

impl Guardian {
    /// Starts one, for processes that have the guest's end of the control socket as `control`. Call while no other
    /// thread exists.
    pub fn start(control: &OwnedFd) -> io::Result<Self> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", control.as_raw_fd()))?;
        let name = format!("fd/{}", control.as_raw_fd());
        let mut pair = [0; 2];
        // SAFETY: `pair` is the array of two that the call fills.
        if unsafe { libc::pipe2(pair.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both were just returned by the kernel, nobody else owns them.
        let (from, to) = unsafe { (File::from_raw_fd(pair[0]), File::from_raw_fd(pair[1])) };
        // SAFETY: no other thread exists, so the child may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                // Only that pipe: standard output, for one, must end with the supervisor.
                let from = keep_only(from);
                guard(from, &link, &name);
                // SAFETY: ends this process, nothing of the supervisor's that it has a copy of.
                unsafe { libc::_exit(0) }
            }
            _ => Ok(Guardian { pipe: to }),
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // One that was killed needs no dismissal. (SIGPIPE is blocked.)
        let _ = self.pipe.write_all(b".");
    }
}

fn keep_only(from: File) -> File {
    const KEPT: RawFd = 0;
    // SAFETY: `from` stays open as descriptor 0; all others are copies of the supervisor's that this process does
    // not use, and it ends without dropping what owns them.
    unsafe {
        libc::dup2(from.as_raw_fd(), KEPT);
        std::mem::forget(from);
        libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0);
        let all = {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            set
        };
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_NAME, c"crewind-guard".as_ptr());
        File::from_raw_fd(KEPT)
    }
}

fn guard(mut from: File, link: &std::path::Path, name: &str) {
    let mut word = [0];
    // Dismissed, or something that has no reason to be.
    if !matches!(from.read(&mut word), Ok(0)) {
        return;
    }
    let mut in_vain = 0;
    for _ in 0..ROUNDS {
        let mut killed = 0;
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<libc::pid_t>().ok());
            let Some(pid) = pid else { continue };
            if std::fs::read_link(entry.path().join(name)).is_ok_and(|l| l == link) {
                super::signals::send(pid, libc::SIGKILL);
                killed += 1;
            }
        }
        in_vain = if killed == 0 { in_vain + 1 } else { 0 };
        if in_vain == IN_VAIN {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

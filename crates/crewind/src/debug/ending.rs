//! Signals that end a debugger.
//!
//! Starting a replay blocks the signals of the keyboard and of `kill`, for its supervisor reads them. A debugger has none,
//! so a thread here waits for them. What belongs to the session goes with it: files are removed, gdb ends when its parent
//! does, and the replaying processes when their sockets close.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fail::{Error, Result};

/// The signals.
const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

#[derive(Default)]
struct State {
    /// Ctrl-C is gdb's, which gets it from the terminal itself.
    gdb_runs: bool,
    /// What to remove: a directory of ours, or a socket.
    remove: Option<PathBuf>,
}

/// Ends this process when a signal asks for it.
#[derive(Clone)]
pub struct Ending {
    state: Arc<Mutex<State>>,
}

impl Ending {
    /// Begins to wait for signals, which are blocked in all threads.
    ///
    /// # Errors
    /// There can be no thread for it.
    pub fn watch() -> Result<Ending> {
        let ending = Ending {
            state: Arc::default(),
        };
        let own = ending.clone();
        std::thread::Builder::new()
            .name("crewind-signals".into())
            .spawn(move || own.wait())
            .map_err(|e: io::Error| Error::internal(format!("cannot wait for signals: {e}")))?;
        Ok(ending)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on gdb has the keyboard.
    pub fn gdb_runs(&self) {
        self.state().gdb_runs = true;
    }

    /// This is removed at the end.
    pub fn removes(&self, path: &Path) {
        self.state().remove = Some(path.to_owned());
    }

    fn wait(&self) {
        let set = set_of(&ENDING);
        loop {
            let mut signal = 0;
            // SAFETY: both are live.
            if unsafe { libc::sigwait(&raw const set, &raw mut signal) } != 0 {
                return;
            }
            let state = self.state();
            if state.gdb_runs && matches!(signal, libc::SIGINT | libc::SIGQUIT) {
                continue;
            }
            if let Some(path) = &state.remove {
                let _ = if path.is_dir() {
                    std::fs::remove_dir_all(path)
                } else {
                    std::fs::remove_file(path)
                };
            }
            die_of(signal);
        }
    }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: plain data, which `sigemptyset` fills.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &s in signals {
            libc::sigaddset(&raw mut set, s);
        }
        set
    }
}

/// Ends as the signal would have ended it, so that whoever waits sees that.
fn die_of(signal: i32) -> ! {
    let set = set_of(&[signal]);
    // SAFETY: SIG_DFL is no function; the set is valid.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signal);
    }
    std::process::exit(128 + signal)
}

//! Where traces are: the folder that keeps them, and finding one by name.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crewind_guest::start::Failure;
use crewind_trace::{TraceDir, TraceError};

use crate::fail::{Error, Result};

/// The folder where traces are kept, absolute. It need not exist yet.
pub fn trace_root() -> Result<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let root = set("CREWIND_TRACE_DIR")
        // A relative XDG folder is to be ignored, says its specification.
        .or_else(|| set("XDG_DATA_HOME").filter(|p| p.is_absolute()).map(|p| p.join("crewind")))
        .or_else(|| set("HOME").map(|home| home.join(".local/share/crewind")))
        .ok_or_else(|| {
            Error::usage("no place for traces: none of CREWIND_TRACE_DIR, XDG_DATA_HOME and HOME is set; set one of them")
        })?;
    std::path::absolute(&root).map_err(|e| Error::usage(format!("{}: {e}", root.display())))
}

/// Opens a trace: a directory, else a name where traces are kept, else (without any) the latest.
pub fn open(which: Option<&Path>) -> Result<TraceDir> {
    let Some(which) = which else {
        return open_latest(&trace_root()?);
    };
    TraceDir::open(&find(which)?).map_err(|e| trace_error(&e))
}

/// The directory that is meant: a path, else a name where traces are kept.
pub fn find(which: &Path) -> Result<PathBuf> {
    let is_name = which.components().count() == 1 && which.is_relative();
    if which.exists() || !is_name {
        return Ok(which.to_owned());
    }
    let kept = trace_root()?.join(which);
    if kept.exists() {
        return Ok(kept);
    }
    Err(Error::usage(format!(
        "no trace {}: neither a directory here nor one where traces are kept ({}); `crewind ls` lists them",
        which.display(),
        kept.parent().unwrap_or(&kept).display()
    )))
}

fn open_latest(root: &Path) -> Result<TraceDir> {
    if root.join("latest").symlink_metadata().is_err() {
        return Err(Error::usage(format!(
            "no latest trace in {}; record one with `crewind record -- CMD`, or name a trace's directory",
            root.display()
        )));
    }
    match TraceDir::latest(root) {
        Ok(trace) => Ok(trace),
        Err(e) if !root.join("latest").exists() => Err(Error::usage(format!(
            "the latest trace is gone ({e}); `crewind ls` lists those there are"
        ))),
        Err(e) => Err(trace_error(&e)),
    }
}

/// The class of a trace's failure.
pub fn trace_error(e: &TraceError) -> Error {
    let failure = match e {
        TraceError::NotATrace { .. }
        | TraceError::FutureVersion { .. }
        | TraceError::NoSpace { .. } => Failure::Usage,
        TraceError::Io { .. } => Failure::Usage,
        TraceError::Truncated { .. } | TraceError::Corrupt { .. } => Failure::TraceEnd,
        TraceError::TooLarge { .. } | TraceError::Poisoned { .. } => Failure::Internal,
    };
    Error::new(failure, e.to_string())
}

/// Held by the recorder of a trace while it is being recorded.
#[derive(Debug)]
pub struct RecorderLock {
    directory: File,
}

/// Whether a trace is being recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Its recorder runs.
    Recording,
    /// Nobody adds to it.
    Resting,
}

impl RecorderLock {
    /// Takes the lock; `None` when another recorder has it.
    pub fn take(trace: &Path) -> Option<Self> {
        let directory = File::open(trace).ok()?;
        // SAFETY: the descriptor is open.
        let taken =
            unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0;
        taken.then_some(RecorderLock { directory })
    }

    /// For a program that this process is about to start: it has the lock as long as it runs, whatever becomes of this
    /// process. None: no descriptor is left.
    pub fn pass_on(self) -> Option<OwnedFd> {
        // SAFETY: duplicates a descriptor we own, without CLOEXEC on purpose.
        let passed = unsafe { libc::fcntl(self.directory.as_raw_fd(), libc::F_DUPFD, 3) };
        // SAFETY: just returned by the kernel.
        (passed >= 0).then(|| unsafe { OwnedFd::from_raw_fd(passed) })
    }
}

/// Whether the trace's recorder runs.
pub fn activity(trace: &Path) -> Activity {
    let Ok(directory) = File::open(trace) else {
        return Activity::Resting;
    };
    // SAFETY: the descriptor is open; closing it gives the lock back.
    let refused = unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) } != 0;
    if refused {
        Activity::Recording
    } else {
        Activity::Resting
    }
}

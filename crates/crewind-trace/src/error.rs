//! What can go wrong with a trace, each case saying what was found, what was needed, what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, TraceError>;

/// A failure of reading or writing a trace.
#[derive(Clone, Debug)]
pub enum TraceError {
    /// The directory does not hold a crewind trace.
    NotATrace {
        /// The directory.
        path: PathBuf,
        /// What is missing or wrong.
        why: String,
    },
    /// The trace was made by a newer crewind.
    FutureVersion {
        /// The file that says so.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest version that this crewind reads.
        supported: u32,
    },
    /// A file ends before its content does.
    Truncated {
        /// The file.
        file: PathBuf,
        /// Where it ends.
        offset: u64,
        /// What should have been there.
        what: String,
    },
    /// A file's content is not what was written.
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where, in bytes (for a compressed segment: in its decompressed content).
        offset: u64,
        /// What does not fit.
        what: String,
    },
    /// No space left (or quota used up) where the trace is written.
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
        /// Bytes that were needed.
        needed: u64,
    },
    /// A record is larger than the format allows; the caller has to split it.
    TooLarge {
        /// Size of its encoding, bytes.
        size: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// An earlier append failed, so the stream would have a hole.
    Poisoned {
        /// The stream's last segment.
        file: PathBuf,
    },
    /// Any other failure of the system.
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        error: Arc<io::Error>,
    },
}

impl TraceError {
    /// An I/O error at `path`; running out of space becomes [`TraceError::NoSpace`].
    pub(crate) fn io(path: &Path, doing: &'static str, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => TraceError::NoSpace {
                path: path.to_owned(),
                needed: 0,
            },
            _ => TraceError::Io {
                path: path.to_owned(),
                doing,
                error: Arc::new(error),
            },
        }
    }

    pub(crate) fn corrupt(file: &Path, offset: u64, what: impl Into<String>) -> Self {
        TraceError::Corrupt {
            file: file.to_owned(),
            offset,
            what: what.into(),
        }
    }

    pub(crate) fn truncated(file: &Path, offset: u64, what: impl Into<String>) -> Self {
        TraceError::Truncated {
            file: file.to_owned(),
            offset,
            what: what.into(),
        }
    }

    /// The kind of system error, when it is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            TraceError::Io { error, .. } => Some(error.kind()),
            _ => None,
        }
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TraceError::NotATrace { path, why } => write!(
                f,
                "{} is not a crewind trace: {why}; give the directory that `crewind record` made",
                path.display()
            ),
            TraceError::FutureVersion {
                path,
                found,
                supported,
            } => write!(
                f,
                "{} has trace format version {found}, this crewind reads versions up to {supported}; \
                 use the crewind that recorded it, or a newer one",
                path.display()
            ),
            TraceError::Truncated { file, offset, what } => write!(
                f,
                "{} ends at byte {offset}, where there should be {what}; the file was cut short, \
                 copy the trace again from its origin or record again",
                file.display()
            ),
            TraceError::Corrupt { file, offset, what } => write!(
                f,
                "{} is damaged at byte {offset}: {what}; copy the trace again from its origin or \
                 record again",
                file.display()
            ),
            TraceError::NoSpace { path, needed } => {
                write!(f, "no space left for {}", path.display())?;
                if *needed > 0 {
                    write!(f, " ({needed} bytes needed)")?;
                }
                write!(
                    f,
                    "; remove old traces with `crewind rm`, or record to another file system"
                )
            }
            TraceError::TooLarge { size, limit } => write!(
                f,
                "a record of {size} bytes is larger than the format's limit of {limit} bytes"
            ),
            TraceError::Poisoned { file } => write!(
                f,
                "{} cannot be continued, because writing an earlier record failed",
                file.display()
            ),
            TraceError::Io { path, doing, error } => {
                write!(f, "cannot {doing} {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for TraceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TraceError::Io { error, .. } => Some(error.as_ref()),
            _ => None,
        }
    }
}

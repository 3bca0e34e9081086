//! How the command itself fails: a class, which is the exit status, and a message that says what was found, what
//! was needed and what to do.

use std::fmt;

use crewind_guest::start::Failure;

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Exit status for a program that was found but cannot be executed, as in shells.
pub const CANNOT_EXECUTE: i32 = 126;
/// Exit status for a program that was not found, as in shells.
pub const NOT_FOUND: i32 = 127;

/// A failure with its message.
#[derive(Debug)]
pub struct Error {
    /// Exit status.
    pub status: i32,
    /// For the user; may have several lines.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error {
    /// A failure of the given class.
    pub fn new(failure: Failure, message: impl Into<String>) -> Self {
        Error {
            status: failure.status(),
            message: message.into(),
        }
    }

    /// The user asked for something that cannot be.
    pub fn usage(message: impl Into<String>) -> Self {
        Error::new(Failure::Usage, message)
    }

    /// The guest or the machine needs something that crewind does not support.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Error::new(Failure::Unsupported, message)
    }

    /// A mistake of crewind's, or a system call that has no reason to fail.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(Failure::Internal, message)
    }
}

/// Prints a message to standard error, each line after the first indented. A closed standard error is no reason to
/// fail.
pub fn say(message: &str) {
    use std::io::Write;
    let text = format!(
        "crewind: {}\n",
        message.trim_end().replace('\n', "\n         ")
    );
    let _ = std::io::stderr().write_all(text.as_bytes());
}

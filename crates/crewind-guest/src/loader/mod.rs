//! Putting a program in place: what the kernel's `execve` does, in user space.
//!
//! Two steps. [`plan()`] follows scripts, opens the files and checks them, with the error numbers of `execve`;
//! it changes nothing, so it also tells whether an `execve` would succeed. [`load`] maps the files and builds
//! the initial stack from an [`ImageInfo`], which determines the result completely: a recording makes one and
//! loads it, a replay loads the same one with files from the trace's store.
//!
//! Knows nothing about how the program is then run.

mod elf;
mod image;
mod load;
mod plan;
mod script;
mod stack;

pub use elf::{Elf, Segment, looks_like_image};
pub use image::{Bytes, Credentials, FileRole, ImageFile, ImageInfo, MachineFacts};
pub use load::{FileProvider, Loaded, Source, load};
pub use plan::{OriginalFiles, Plan, PlannedFile, plan};
pub use stack::{ArgArea, arg_limit, check_sizes};

use crate::errno::Errno;
use std::fmt;

/// Why a program cannot be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecError {
    /// What `execve` returns.
    pub errno: Errno,
    /// What was found, for the user.
    pub text: String,
}

impl ExecError {
    fn new(errno: i32, text: impl Into<String>) -> Self {
        ExecError {
            errno: Errno(errno),
            text: text.into(),
        }
    }
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.errno)
    }
}

impl std::error::Error for ExecError {}

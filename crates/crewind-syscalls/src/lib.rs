//! What every x86-64 Linux system call reads, writes and does, in one table; recording, replaying and
//! printing derive from it.
//!
//! This crate is pure: it makes no system call, has no unsafe code, keeps no state, and sees guest memory
//! only through [`Mem`]. It knows nothing about traces, threads or the translator.
//!
//! Use, when a guest makes a call:
//! 1. [`row`] by number; [`class`] says who executes it with these arguments;
//! 2. [`before`] the call collects its operands in memory in a [`Plan`];
//! 3. [`after`] it gives the ranges of guest memory that the kernel wrote.
//!
//! Ranges may be a little larger than what was written (never than what the kernel may write): their bytes
//! are logged as they are after the call, so that does no harm.
#![forbid(unsafe_code)]

mod effects;
mod flags;
mod format;
mod names;
mod plan;
mod special;
mod table;
mod types;

pub use effects::{
    FdChange, Output, class, fd_changes, file_effect, may_block, output_bytes, restart,
    temp_sigmask,
};
pub use flags::FlagSet;
pub use format::{OutBytes, format};
pub use names::{errno_name, errno_text, signal_name};
pub use plan::{Confidence, Operand, Place, Plan, Range, Role, after, before, before_into};
pub use table::{LAST, row, rows, syscall_name};
pub use types::*;

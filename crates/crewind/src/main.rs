//! The `crewind` command: records a program, replays the recording, shows what is in it.
//!
//! The same binary is the supervisor (what the user starts) and, as `crewind __guest FD`, every guest process.
//! This crate starts, watches and reports; it knows nothing about how guest code runs.

// Without Rust's own start-up: that would set SIGPIPE to "ignore" and open closed standard descriptors, which a
// guest would inherit, and the guest process has handlers and stacks of its own.
#![cfg_attr(not(test), no_main)]

mod backtrace;
mod cli;
mod complete;
mod debug;
mod doctor;
mod dump;
mod fail;
mod human;
mod info;
mod last_write;
mod list;
mod locate;
mod lockstep;
mod part;
mod program;
mod record;
mod replay;
mod supervise;

use std::ffi::OsStr;

/// First argument of a guest process.
const GUEST: &str = "__guest";

/// Entry of the process.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    let first = std::env::args_os().nth(1);
    match first.as_deref().and_then(OsStr::to_str) {
        Some(GUEST) => crewind_guest::main(),
        Some(record::KEEPER) => record::keeper_main(),
        _ => cli::main(),
    }
}

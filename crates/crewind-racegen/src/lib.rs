//! Random multi-threaded programs full of data races, to test that a recording of them replays.
//!
//! A program is 2 to 8 threads on a few shared pages. Each runs a loop over instructions drawn from a seed: loads, stores,
//! read-modify-writes, locked or not, of 1 to 64 bytes, aligned or not, over line and page borders; string and vector
//! instructions; calls through pointers that others exchange; system calls that read and write the shared pages;
//! branches and addresses that depend on what was read. Every value read goes into the thread's digest, and one that
//! differs soon changes everything after it. Programs end by themselves and print digests and a hash of the memory.
//!
//! Many programs are one binary, because starting the compiler, and a recording, costs more than running a program.
//! This crate knows nothing of crewind.

mod emit;
mod ops;
mod random;

use std::io;
use std::path::Path;
use std::process::Command;

pub use ops::Kind;

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Determines all programs; number `n` is the same whatever `programs` says.
    pub seed: u64,
    /// How many programs.
    pub programs: u64,
    /// Kinds of instructions to leave out, to find out which one a failure needs.
    pub without: Vec<Kind>,
    /// No timer signals.
    pub without_signals: bool,
}

/// Source text of the programs, for the GNU assembler.
pub fn assembly(options: &Options) -> String {
    emit::assembly(options)
}

/// Generates and compiles programs into one executable.
///
/// # Errors
/// Files cannot be written, gcc cannot be started, or it refuses the source.
pub fn build(options: &Options, executable: &Path) -> io::Result<()> {
    let beside = |extension: &str| {
        let mut name = executable.as_os_str().to_owned();
        name.push(extension);
        std::path::PathBuf::from(name)
    };
    let (programs, runtime) = (beside(".s"), beside(".c"));
    std::fs::write(&programs, assembly(options))?;
    std::fs::write(&runtime, include_str!("runtime.c"))?;
    let output = Command::new("gcc")
        .args(["-O1", "-g", "-Wall", "-Wextra", "-o"])
        .arg(executable)
        .args([&runtime, &programs])
        .arg("-lpthread")
        .output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("gcc: {text}")));
    }
    Ok(())
}

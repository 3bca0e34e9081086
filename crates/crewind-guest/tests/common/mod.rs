//! Helpers of the tests that make real mappings: each works in a child process of its own.

#![allow(dead_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Exit(i32),
    Signal(i32),
}

/// Runs `body` in a forked child; its error, or panic, becomes this test's.
pub fn in_child(body: impl FnOnce() -> Result<(), String>) {
    let (end, text) = child(body);
    assert!(end == End::Exit(0), "child: {end:?}: {text}");
}

/// Runs `body` in a forked child, and tells how it ended and what it had to say.
pub fn child(body: impl FnOnce() -> Result<(), String>) -> (End, String) {
    let mut pipe = [0; 2];
    // SAFETY: fills the array with two descriptors that we own.
    let made = unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(made, 0);
    // SAFETY: the child runs on a copy of this thread, and glibc keeps malloc usable in it. It never returns
    // into the test harness.
    match unsafe { libc::fork() } {
        -1 => panic!("fork failed"),
        0 => {
            // SAFETY: ours, and only used here.
            let out = unsafe { File::from_raw_fd(pipe[1]) };
            std::panic::set_hook(Box::new(move |info| drop(write!(&out, "{info}"))));
            // SAFETY: as above.
            let mut out = unsafe { File::from_raw_fd(libc::dup(pipe[1])) };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            let code = match result {
                Ok(Ok(())) => 0,
                Ok(Err(text)) => {
                    let _ = write!(out, "{text}");
                    1
                }
                Err(_) => 2,
            };
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(code) }
        }
        pid => {
            // SAFETY: both are ours; the reading end is used, the other closed.
            let mut from = unsafe {
                libc::close(pipe[1]);
                File::from_raw_fd(pipe[0])
            };
            let mut text = String::new();
            let _ = from.read_to_string(&mut text);
            let mut status = 0;
            // SAFETY: waits for our own child.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            let end = if libc::WIFEXITED(status) {
                End::Exit(libc::WEXITSTATUS(status))
            } else {
                End::Signal(libc::WTERMSIG(status))
            };
            (end, text)
        }
    }
}

/// A directory for this test's files.
pub fn dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Compiles a C program.
pub fn compile(dir: &Path, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let (c, exe) = (dir.join(format!("{name}.c")), dir.join(name));
    std::fs::write(&c, source).unwrap();
    let status = Command::new("cc")
        .arg("-O1")
        .args(flags)
        .arg("-o")
        .arg(&exe)
        .arg(&c)
        .status();
    assert!(
        status.expect("a C compiler (cc) is needed").success(),
        "{} does not compile",
        c.display()
    );
    exe
}

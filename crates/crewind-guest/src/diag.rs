//! Messages of the runtime: to the supervisor, which prints them on its stderr. A copy of that stderr here would keep
//! the caller's pipe open in daemons, and the guest's own descriptors are the guest's.
//!
//! `CREWIND_LOG` (passed on in the start message) holds a level: `warn` (default), `info`, `debug`, `trace`.

use std::io::Write;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something the user should know or do.
    Warn = 1,
    /// Life of processes and threads.
    Info = 2,
    /// Every event.
    Debug = 3,
    /// Every exit from translated code.
    Trace = 4,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Warn as u8);
static FD: AtomicI32 = AtomicI32::new(2);

/// Sets level and descriptor.
pub fn init(level: &str, fd: i32) {
    let level = match level {
        "trace" => Level::Trace,
        "debug" => Level::Debug,
        "info" => Level::Info,
        _ => Level::Warn,
    };
    LEVEL.store(level as u8, Ordering::Relaxed);
    FD.store(fd, Ordering::Relaxed);
}

/// The descriptor messages go to.
pub fn fd() -> i32 {
    FD.load(Ordering::Relaxed)
}

/// True when messages of this level are wanted.
pub fn enabled(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Writes one line in one `write`, so that lines of several processes do not mix.
pub fn emit(args: std::fmt::Arguments<'_>) {
    let mut line = Vec::with_capacity(160);
    let _ = write!(line, "crewind: {args}");
    line.push(b'\n');
    write_all(&line);
}

/// Writes bytes as they are; usable in a signal handler.
pub fn write_all(mut bytes: &[u8]) {
    let fd = FD.load(Ordering::Relaxed);
    if fd > 2 {
        // The control socket: one message, and no SIGPIPE for the guest when the supervisor is gone.
        // SAFETY: reads a live slice; the socket is connected, so no address is given.
        unsafe {
            crate::hostcall::raw(
                libc::SYS_sendto,
                [
                    fd as u64,
                    bytes.as_ptr() as u64,
                    bytes.len() as u64,
                    libc::MSG_NOSIGNAL as u64,
                    0,
                    0,
                ],
            );
        }
        return;
    }
    while !bytes.is_empty() {
        // SAFETY: writes from a live slice.
        let n = unsafe {
            crate::hostcall::raw(
                libc::SYS_write,
                [
                    fd as u64,
                    bytes.as_ptr() as u64,
                    bytes.len() as u64,
                    0,
                    0,
                    0,
                ],
            )
        };
        if n == -i64::from(libc::EINTR) {
            continue;
        }
        if n <= 0 {
            return;
        }
        bytes = &bytes[n as usize..];
    }
}

/// `log!(Level::Info, "...")`
#[macro_export]
macro_rules! log {
    ($level:expr, $($arg:tt)*) => {
        if $crate::diag::enabled($level) {
            $crate::diag::emit(format_args!($($arg)*));
        }
    };
}

/// Ends the process at once with a message: our own failure, never the guest's.
pub fn die(failure: crate::start::Failure, args: std::fmt::Arguments<'_>) -> ! {
    emit(args);
    // SAFETY: ends all threads of the process without running destructors.
    unsafe {
        crate::hostcall::raw(
            libc::SYS_exit_group,
            [failure.status() as u64, 0, 0, 0, 0, 0],
        );
    }
    unreachable!("exit_group returned")
}

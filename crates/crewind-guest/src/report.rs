//! What the guest process tells its supervisor, and ends of its own making.

use std::sync::atomic::{AtomicI32, Ordering};

use crate::start::{Failure, Report};

static CONTROL: AtomicI32 = AtomicI32::new(-1);

/// Sets the control socket.
pub fn init(control: i32) {
    CONTROL.store(control, Ordering::Relaxed);
}

/// Tells the user something; the run goes on.
pub fn warn(args: std::fmt::Arguments<'_>) {
    Report::Warning {
        message: args.to_string(),
    }
    .send(CONTROL.load(Ordering::Relaxed));
}

/// Ends the process with a failure of crewind's (not of the guest's).
pub fn fail(failure: Failure, args: std::fmt::Arguments<'_>) -> ! {
    let message = args.to_string();
    crate::runtime::Runtime::debug_failure(&message);
    Report::Failed { failure, message }.send(CONTROL.load(Ordering::Relaxed));
    crate::process::leave(failure.status())
}

/// Ends a process whose log in an unfinished trace has nothing more.
pub fn stream_ends(thread: u32, message: String) -> ! {
    crate::runtime::Runtime::debug_failure(&message);
    Report::StreamEnds { thread, message }.send(CONTROL.load(Ordering::Relaxed));
    crate::process::die_of(libc::SIGKILL as u32)
}

/// The root program cannot be executed.
pub fn cannot_execute(errno: i32) -> ! {
    Report::CannotExecute { errno }.send(CONTROL.load(Ordering::Relaxed));
    crate::process::leave(Failure::Unsupported.status())
}

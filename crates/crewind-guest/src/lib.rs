//! The runtime in the guest process: loader, memory, system calls, threads, signals.
//!
//! Knows nothing about how a trace is stored or how code is translated; decides what is an event, and gives
//! every event the same effect in replay that it had in the recording.
//!
//! Rules for code in this crate:
//! - Runtime state belongs to the holder of the vcpu. Nothing is locked or borrowed across
//!   translated code or across a system call that gives the vcpu up.
//! - Host signal handlers (`signal::host`) touch only the thread's own slots: no allocation, no locks.
//! - Guest memory is accessed through `guestmem` only, which survives bad addresses.
//! - Descriptors of the runtime have high numbers and are in `fds::FdTable`, so that the guest neither sees
//!   nor closes them.

pub mod debug;
pub mod deferred;
pub mod diag;
pub mod diverge;
pub mod entry;
pub mod errno;
pub mod fds;
pub mod filedata;
pub mod fpstate;
pub mod guestmem;
pub mod hostcall;
pub mod insns;
pub mod layout;
pub mod loader;
pub mod lockstep;
pub mod log;
pub mod mm;
pub mod par;
pub mod process;
pub mod procfs;
pub mod procview;
pub mod replayed;
pub mod report;
pub mod runtime;
pub(crate) mod sched;
pub mod shared;
pub mod signal;
pub mod start;
pub mod syscall;
pub mod thread;
pub mod vcpu;

pub use entry::main;

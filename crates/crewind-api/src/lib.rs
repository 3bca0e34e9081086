//! A program's own say in its recording: from here, to here, and a region again in the same order.
//!
//! The calls work in programs that `crewind run` started. They are system calls with numbers that Linux does not have:
//! without crewind each of them is answered by the kernel, with [`Error::NotAvailable`], and the program goes on as it
//! likes.
//!
//! ```no_run
//! use crewind_api::{Error, rec_owner, start_rec, start_rep, stop_rec, stop_rep};
//!
//! match start_rec() {
//!     Ok(()) => {}
//!     Err(Error::NotAvailable) => println!("recording is not available"),
//!     Err(e) => println!("no recording: {e}"),
//! }
//! // ... threads, with rec_owner() in front of each step whose order matters ...
//! if let Ok(steps) = stop_rec() {
//!     start_rep(&steps).unwrap();
//!     // ... the same again: each rec_owner() waits until it is its turn ...
//!     stop_rep().unwrap();
//! }
//! # let _ = rec_owner();
//! ```
//!
//! The same for C is in `include/crewind.h`; this crate is also built as the static library `libcrewind_api.a`.
//!
//! This crate knows nothing of how crewind works: it makes five system calls and keeps no state but C's list.

mod c;

use std::fmt;

/// Numbers of the system calls.
mod number {
    pub const START: u64 = 0x00c3_e001;
    pub const STOP: u64 = 0x00c3_e002;
    pub const OWNER: u64 = 0x00c3_e003;
    pub const LIST: u64 = 0x00c3_e004;
}

/// What is started and stopped.
const RECORD: u64 = 0;
const REPLAY: u64 = 1;

const EIO: i64 = 5;
const ENOMEM: i64 = 12;
const EFAULT: i64 = 14;
const EBUSY: i64 = 16;
const EINVAL: i64 = 22;
const ERANGE: i64 = 34;
const ENOSYS: i64 = 38;
const ESRCH: i64 = 3;
const EOPNOTSUPP: i64 = 95;
const ETIMEDOUT: i64 = 110;
const ECANCELED: i64 = 125;

/// Why a call did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The program does not run under crewind.
    NotAvailable,
    /// The process is being recorded or replayed already, or `crewind record` records all of it.
    Busy,
    /// What is to be ended was not begun; for [`rec_owner`]: nothing is recorded or replayed.
    NotBegun,
    /// A step of the replay is one of a thread that has none (left) in the recording, or from another place in the
    /// program.
    OtherThread,
    /// More or fewer steps than in the recording, or branches in front of one.
    OtherCount,
    /// The thread whose turn it was did not come, or has ended.
    TimedOut,
    /// A call before this one did not fit the recording.
    Canceled,
    /// Memory for the list.
    NoMemory,
    /// The process has memory with which a recording cannot begin.
    NotSupported,
    /// The trace cannot be written.
    Trace,
    /// Another errno.
    Other(i32),
}

impl Error {
    fn from_ret(ret: i64) -> Result<u64, Error> {
        let Ok(errno) = u64::try_from(ret)
            .map(|_| 0)
            .or_else(|_| i32::try_from(-ret))
        else {
            return Err(Error::Other(0));
        };
        if ret >= 0 {
            return Ok(ret as u64);
        }
        Err(match -ret {
            ENOSYS => Error::NotAvailable,
            EBUSY => Error::Busy,
            EINVAL => Error::NotBegun,
            ESRCH => Error::OtherThread,
            ERANGE => Error::OtherCount,
            ETIMEDOUT => Error::TimedOut,
            ECANCELED => Error::Canceled,
            ENOMEM => Error::NoMemory,
            EOPNOTSUPP => Error::NotSupported,
            EIO => Error::Trace,
            _ => Error::Other(errno),
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::NotAvailable => {
                "recording is not available: the program does not run under crewind"
            }
            Error::Busy => "a recording or replay is on already",
            Error::NotBegun => "no recording or replay is on",
            Error::OtherThread => "the thread does not fit the recording",
            Error::OtherCount => {
                "not as many steps as in the recording, or branches in front of one"
            }
            Error::TimedOut => "the thread whose turn it is does not come",
            Error::Canceled => "an earlier step did not fit the recording",
            Error::NoMemory => "no memory",
            Error::NotSupported => "the process has memory with which a recording cannot begin",
            Error::Trace => "the trace cannot be written",
            Error::Other(errno) => return write!(f, "errno {errno}"),
        })
    }
}

impl std::error::Error for Error {}

/// One call of [`rec_owner`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Branches of the thread since the region began, as crewind counts them: backward and indirect ones. A replay compares
    /// what came between two steps of a thread; where this is 0 it does not ([`order_only`]).
    pub branches: u64,
    /// Branches that the processor predicted wrongly, since the thread's first call in the region. 0 where it does not count
    /// them, as in most virtual machines. For information.
    pub missed_branches: u64,
    /// The thread: 1, 2, ... in the order in which they were made, those first that the region began with.
    pub thread: u32,
    /// Address of the call's instruction.
    pub address: u64,
}

/// A node of C's list, `struct recording`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Node {
    branches: u64,
    missed_branches: u64,
    thread: u32,
    address: u64,
    next: *mut Node,
}

impl Node {
    const EMPTY: Node = Node {
        branches: 0,
        missed_branches: 0,
        thread: 0,
        address: 0,
        next: std::ptr::null_mut(),
    };
}

/// A system call.
///
/// # Safety
/// Pointers among the arguments lead to what the call reads or writes.
#[inline(always)]
unsafe fn call(number: u64, a: u64, b: u64, c: u64) -> i64 {
    let ret: i64;
    // SAFETY: the system call interface of x86-64 Linux; memory is as the caller promises.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number => ret,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    ret
}

/// Begins to record this process here.
///
/// # Errors
/// [`Error::NotAvailable`], [`Error::Busy`], [`Error::NotSupported`], [`Error::Trace`].
pub fn start_rec() -> Result<(), Error> {
    // SAFETY: no pointers.
    Error::from_ret(unsafe { call(number::START, RECORD, 0, 0) }).map(drop)
}

/// Ends the recording: its trace is complete. Returns the calls of [`rec_owner`] in their order.
///
/// # Errors
/// [`Error::NotAvailable`], [`Error::NotBegun`]; [`Error::Busy`] in a program that `crewind record` records.
pub fn stop_rec() -> Result<Vec<Step>, Error> {
    // SAFETY: no pointers.
    let n = Error::from_ret(unsafe { call(number::STOP, RECORD, 0, 0) })?;
    steps(n)
}

/// The calling thread takes ownership here: a step in the one order of all such calls of the process. In a replay it
/// waits for its turn.
///
/// Inlined, so that each place that calls it has an address of its own in the list.
///
/// # Errors
/// [`Error::NotAvailable`], [`Error::NotBegun`]. In a replay [`Error::OtherThread`], [`Error::OtherCount`] and
/// [`Error::TimedOut`], where crewind tells which thread and step, and [`Error::Canceled`] after that.
#[inline(always)]
pub fn rec_owner() -> Result<(), Error> {
    // SAFETY: no pointers.
    Error::from_ret(unsafe { call(number::OWNER, 0, 0, 0) }).map(drop)
}

/// From now on only the order of these steps counts in a replay, not what the threads do in between: for regions whose
/// work is not the same each time.
pub fn order_only(steps: &mut [Step]) {
    for s in steps {
        s.branches = 0;
    }
}

/// Begins to replay an order in place.
///
/// # Errors
/// [`Error::NotAvailable`], [`Error::Busy`].
pub fn start_rep(steps: &[Step]) -> Result<(), Error> {
    let mut nodes: Vec<Node> = steps
        .iter()
        .map(|s| Node {
            branches: s.branches,
            missed_branches: s.missed_branches,
            thread: s.thread,
            address: s.address,
            ..Node::EMPTY
        })
        .collect();
    let mut next = std::ptr::null_mut();
    for node in nodes.iter_mut().rev() {
        node.next = next;
        next = node;
    }
    let head = Node {
        next,
        ..Node::EMPTY
    };
    // SAFETY: a list of live nodes, which is only read.
    Error::from_ret(unsafe { call(number::START, REPLAY, &raw const head as u64, 0) }).map(drop)
}

/// Ends the replay. Returns its steps.
///
/// # Errors
/// [`Error::NotAvailable`], [`Error::NotBegun`]; [`Error::OtherCount`] when it had not all steps.
pub fn stop_rep() -> Result<Vec<Step>, Error> {
    // SAFETY: no pointers.
    let n = Error::from_ret(unsafe { call(number::STOP, REPLAY, 0, 0) })?;
    steps(n)
}

fn steps(n: u64) -> Result<Vec<Step>, Error> {
    let n = usize::try_from(n).map_err(|_| Error::NoMemory)?;
    let mut nodes = vec![Node::EMPTY; n];
    let mut head = Node::EMPTY;
    // SAFETY: room for `n` nodes, and a head.
    Error::from_ret(unsafe {
        call(
            number::LIST,
            &raw mut head as u64,
            nodes.as_mut_ptr() as u64,
            n as u64,
        )
    })?;
    Ok(nodes
        .iter()
        .map(|n| Step {
            branches: n.branches,
            missed_branches: n.missed_branches,
            thread: n.thread,
            address: n.address,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_crewind_nothing_is_available() {
        assert_eq!(start_rec(), Err(Error::NotAvailable));
        assert_eq!(stop_rec(), Err(Error::NotAvailable));
        assert_eq!(rec_owner(), Err(Error::NotAvailable));
        assert_eq!(start_rep(&[]), Err(Error::NotAvailable));
        assert_eq!(stop_rep(), Err(Error::NotAvailable));
    }
}

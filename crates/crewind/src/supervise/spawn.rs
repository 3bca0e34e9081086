//! Starting a guest process: this binary again, with nothing of the guest's in its own environment.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use crewind_guest::start::{GuestStart, Limit};

use super::guardian::Guardian;
use super::inherited::Inherited;
use super::signals::{self, Signals};
use super::{Guest, SignalsGo};
use crate::fail::{Error, Result};

/// Stack limit of guest processes: finite, because an unlimited one makes the kernel lay out memory in the old way,
/// bottom up, which would put the runtime into the guest's part of the address space.
const STACK: u64 = 8 << 20;

/// Personality bits that would change the layout under the runtime, or what its mappings mean.
const LAYOUT_BITS: u32 = (libc::ADDR_COMPAT_LAYOUT
    | libc::ADDR_LIMIT_3GB
    | libc::ADDR_LIMIT_32BIT
    | libc::MMAP_PAGE_ZERO
    | libc::READ_IMPLIES_EXEC)
    .cast_unsigned();

/// Environment variables for the runtime itself.
const PASSED_ON: [&str; 2] = ["CREWIND_LOG", "RUST_BACKTRACE"];

/// Where the control socket and the start message go: high, out of the way of what guests expect to be free.
const HIGH_FD: RawFd = 900;

/// Starts the root guest process, with what the caller of crewind left to it besides what `start` says. Call before
/// any thread is started. `passed` is what its processes are given: of a replay the state that they share, of a
/// recording their ways into the trace.
pub fn spawn(
    mut start: GuestStart,
    inherited: &Inherited,
    go: SignalsGo,
    passed: Vec<OwnedFd>,
) -> Result<Guest> {
    let cannot = |what: &str, e: io::Error| {
        Error::internal(format!("cannot start the guest process: {what}: {e}"))
    };
    let (ours, theirs) = socket_pair().map_err(|e| cannot("socket", e))?;
    start.control = theirs.as_raw_fd();
    // Open over the guest's exec.
    let passed: Vec<OwnedFd> = passed
        .into_iter()
        .map(high)
        .collect::<io::Result<_>>()
        .map_err(|e| cannot("descriptors", e))?;
    match *passed.iter().map(OwnedFd::as_raw_fd).collect::<Vec<_>>() {
        [shared] => start.shared = shared,
        [streams, files, session] => start.anchors = Some([streams, files, session]),
        _ => {}
    }
    let message = send_high(&start).map_err(|e| cannot("message", e))?;
    let plan = Plan::new(inherited, message.as_raw_fd());
    if go == SignalsGo::ToSupervisor {
        signals::adopt_orphans();
    }
    let signals = Signals::take()?;
    // Without one, a supervisor that is killed leaves processes behind: no reason not to start.
    let guardian = Guardian::start(&theirs).ok();
    let (mut failure, failed) = pipe().map_err(|e| cannot("pipe", e))?;
    // SAFETY: no other thread exists, and the child only makes system calls on what was prepared.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        plan.execute(failed.as_raw_fd());
    }
    if pid < 0 {
        return Err(cannot("fork", io::Error::last_os_error()));
    }
    drop((failed, theirs, message, passed));
    let mut errno = [0; 4];
    if failure.read_exact(&mut errno).is_ok() {
        let e = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
        // SAFETY: no status is asked for; the child is ours and ends now.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        return Err(Error::internal(format!(
            "cannot start the guest process: executing /proc/self/exe: {e}; is /proc mounted?"
        )));
    }
    Ok(Guest {
        pid,
        control: ours,
        signals,
        go,
        watch: None,
        parts: Default::default(),
        _guardian: guardian,
    })
}

/// What the child does between fork and exec: all memory is prepared.
struct Plan<'a> {
    inherited: &'a Inherited,
    stack: Limit,
    argv: Vec<CString>,
    envp: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
    env_at: usize,
}

impl<'a> Plan<'a> {
    fn new(inherited: &'a Inherited, message: RawFd) -> Self {
        let argv = vec![c"crewind".into(), c"__guest".into(), number(message)];
        let envp = PASSED_ON
            .iter()
            .filter_map(|name| {
                let mut text = format!("{name}=").into_bytes();
                text.extend_from_slice(std::env::var_os(name)?.as_bytes());
                CString::new(text).ok()
            })
            .collect();
        let mut plan = Plan {
            inherited,
            stack: Limit {
                soft: STACK.min(inherited.stack.hard),
                hard: inherited.stack.hard,
            },
            argv,
            envp,
            pointers: Vec::new(),
            env_at: 0,
        };
        plan.pointers.extend(plan.argv.iter().map(|s| s.as_ptr()));
        plan.pointers.push(std::ptr::null());
        plan.env_at = plan.pointers.len();
        plan.pointers.extend(plan.envp.iter().map(|s| s.as_ptr()));
        plan.pointers.push(std::ptr::null());
        plan
    }

    /// In the child: only system calls, no allocation. Tells `failed` the errno when nothing could be executed.
    fn execute(&self, failed: RawFd) -> ! {
        let limit = libc::rlimit {
            rlim_cur: self.stack.soft,
            rlim_max: self.stack.hard,
        };
        let personality = self.inherited.personality & !LAYOUT_BITS;
        // SAFETY: all pointers lead to live, initialised data of the right types; `pointers` holds two
        // NULL-terminated arrays of NUL-terminated strings.
        unsafe {
            libc::setrlimit(libc::RLIMIT_STACK, &raw const limit);
            if personality != self.inherited.personality {
                libc::personality(libc::c_ulong::from(personality));
            }
            if self.inherited.ignored & (1 << (libc::SIGCHLD - 1)) != 0 {
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            }
            for &fd in &self.inherited.closed {
                libc::close(fd);
            }
            libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const self.inherited.mask,
                std::ptr::null_mut(),
            );
            let argv = self.pointers.as_ptr();
            libc::execve(c"/proc/self/exe".as_ptr(), argv, argv.add(self.env_at));
            let errno = *libc::__errno_location();
            libc::write(failed, (&raw const errno).cast(), size_of::<i32>());
            libc::_exit(crewind_guest::start::Failure::Internal.status())
        }
    }
}

fn number(n: RawFd) -> CString {
    CString::new(n.to_string()).unwrap_or_else(|_| <&CStr>::default().into())
}

/// Puts the message at a high number, or as high as the descriptor limit allows.
fn send_high(start: &GuestStart) -> io::Result<OwnedFd> {
    start.send(HIGH_FD).or_else(|_| start.send(3))
}

/// The control socket: our end, and the guest's, which stays open over exec.
fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut pair = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `pair` is the array of two that the call fills.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just returned by the kernel, nobody else owns them.
    let (ours, low) = unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) };
    // SAFETY: sets flags of a descriptor we own.
    if unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((ours, high(low)?))
}

/// Moves a descriptor out of the guest's way, and lets it stay open over exec.
fn high(low: OwnedFd) -> io::Result<OwnedFd> {
    for at_least in [HIGH_FD, 3] {
        // SAFETY: duplicates a descriptor we own, without CLOEXEC on purpose.
        let high = unsafe { libc::fcntl(low.as_raw_fd(), libc::F_DUPFD, at_least) };
        if high >= 0 {
            // SAFETY: just returned by the kernel.
            return Ok(unsafe { OwnedFd::from_raw_fd(high) });
        }
    }
    Err(io::Error::last_os_error())
}

/// A pipe that closes over exec, which tells the reader that exec succeeded.
fn pipe() -> io::Result<(File, OwnedFd)> {
    let mut pair = [0; 2];
    // SAFETY: `pair` is the array of two that the call fills.
    if unsafe { libc::pipe2(pair.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just returned by the kernel, nobody else owns them.
    Ok(unsafe { (File::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) })
}

//! Requests from outside: `crewind start PID`, `crewind stop PID`, signals and times that begin and end recordings.
//!
//! A host thread of the runtime listens at a socket whose name has the process's id. It runs no guest thread and has
//! all signals blocked. What it is asked is one line, `start` or `stop`; its answer begins with `ok ` and the trace's
//! directory, or `error ` and what is to be said.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Phase, Still, change_phase, finish, refused, runtime_of_control, set_phase};
use crate::start::Deferred;

/// A recording is to begin without a request.
static BEGIN: AtomicBool = AtomicBool::new(false);

/// A recording has begun without this thread.
static BEGUN: AtomicBool = AtomicBool::new(false);

/// How often signals and times are looked at.
const LOOK: Duration = Duration::from_millis(5);

/// The name of the socket of a process, in the abstract name space.
pub fn socket_name(pid: i32) -> String {
    format!("crewind/run/{pid}")
}

/// Has a recording begun.
pub(super) fn begin_soon() {
    BEGIN.store(true, Ordering::Release);
}

/// One has.
pub(super) fn has_begun() {
    BEGUN.store(true, Ordering::Release);
}

/// Starts the thread.
pub(super) fn start(options: &Deferred) {
    BEGIN.store(options.start_now, Ordering::Release);
    let looks = options.start_now || options.start_signal.is_some() || options.stop_after.is_some();
    let stop_after = options.stop_after.map(Duration::from_millis);
    let listener = match listener() {
        Ok(l) => l,
        Err(e) => {
            crate::report::warn(format_args!(
                "`crewind start` and `crewind stop` do not work for process {}: {e}",
                std::process::id()
            ));
            return;
        }
    };
    // Before the guest can see a new descriptor: this process has one thread.
    // SAFETY: the runtime was just made, and its one thread calls this.
    let rt = unsafe { crate::runtime::get() };
    rt.fds.add_own(listener.as_raw_fd());
    let spawned = std::thread::Builder::new()
        .name("crewind-control".into())
        .stack_size(1 << 20)
        .spawn(move || {
            crate::signal::host::block_all();
            serve(&listener, looks, stop_after);
        });
    if let Err(e) = spawned {
        crate::report::warn(format_args!(
            "`crewind start` and `crewind stop` do not work for process {}: {e}",
            std::process::id()
        ));
    }
}

fn listener() -> std::io::Result<UnixListener> {
    let name = socket_name(std::process::id() as i32);
    let low = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    // Out of the guest's way.
    let high = crate::start::dup_high(low.as_raw_fd(), 900, crate::start::CloseOnExec::Yes)?;
    // SAFETY: just made, and nobody else's.
    Ok(UnixListener::from(unsafe { OwnedFd::from_raw_fd(high) }))
}

fn serve(listener: &UnixListener, looks: bool, stop_after: Option<Duration>) {
    let mut until: Option<Instant> = None;
    loop {
        let timeout = if looks { LOOK.as_millis() as i32 } else { -1 };
        let mut poll = libc::pollfd {
            fd: listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live struct.
        let n = unsafe { libc::poll(&raw mut poll, 1, timeout) };
        if n > 0
            && let Ok((stream, _)) = listener.accept()
        {
            let asked = answer(stream);
            if asked == Some(Asked::Start) {
                until = stop_after.map(|d| Instant::now() + d);
            }
        }
        if BEGUN.swap(false, Ordering::AcqRel) {
            until = stop_after.map(|d| Instant::now() + d);
        }
        if BEGIN.swap(false, Ordering::AcqRel) {
            match begin() {
                Ok(_) => until = stop_after.map(|d| Instant::now() + d),
                Err(e) if e.errno == libc::EBUSY => {}
                Err(e) => crate::report::warn(format_args!("no recording begins: {}", e.why)),
            }
        }
        if until.is_some_and(|at| Instant::now() >= at) {
            until = None;
            // It may have been ended before.
            let _ = end();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Start,
    Stop,
}

fn answer(mut stream: UnixStream) -> Option<Asked> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let _ = stream.set_read_timeout(Some(PATIENCE));
    if !is_ours(&stream) {
        let _ = stream.write_all(b"error only the program's own user and root may do that\n");
        return None;
    }
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 64 && matches!(stream.read(&mut byte), Ok(1)) && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let (asked, done) = match line.as_slice() {
        b"start" => (Asked::Start, begin()),
        b"stop" => (Asked::Stop, end()),
        _ => return None,
    };
    let text = match &done {
        Ok(trace) => format!("ok {}\n", trace.display()),
        Err(e) => format!("error {}\n", e.why),
    };
    let _ = stream.write_all(text.as_bytes());
    done.is_ok().then_some(asked)
}

/// Whether the other side is this process's user, or root.
fn is_ours(stream: &UnixStream) -> bool {
    let mut peer = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel fills a live struct of that size.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    // SAFETY: returns a number.
    got == 0 && (peer.uid == 0 || peer.uid == unsafe { libc::getuid() })
}

fn begin() -> Result<std::path::PathBuf, super::Refused> {
    if !change_phase(Phase::Off, Phase::Changing) {
        return Err(refused(
            libc::EBUSY,
            "the process is being recorded or replayed already",
        ));
    }
    let mut still = Still::bring();
    // SAFETY: the world stands still.
    let rt = unsafe { runtime_of_control(&mut still) };
    if rt.in_vfork {
        set_phase(Phase::Off);
        return Err(refused(
            libc::EAGAIN,
            "the process is just making another one",
        ));
    }
    rt.begin_recording()
}

fn end() -> Result<std::path::PathBuf, super::Refused> {
    if !change_phase(Phase::Recording, Phase::Changing) {
        return Err(refused(libc::EINVAL, "the process is not being recorded"));
    }
    let (active, control) = {
        let mut still = Still::bring();
        // SAFETY: the world stands still.
        let rt = unsafe { runtime_of_control(&mut still) };
        (rt.end_recording(None), rt.exec.control)
    };
    match active {
        Some(active) => Ok(finish(active, control)),
        None => {
            set_phase(Phase::Off);
            Err(refused(libc::EINVAL, "the process is not being recorded"))
        }
    }
}

//! What the supervisor tells a guest process when it starts it, and what comes back.
//!
//! The supervisor (`crewind record`, `crewind replay`) and a guest process (`crewind __guest FD`) are the same
//! binary. The message travels as JSON in a sealed memfd, whose number is the argument: it carries what must
//! not reach the runtime's own start (the guest's environment, with its `LD_PRELOAD`; its stack limit), so the
//! process itself starts clean. A program that the guest executes is started with the same message, by the
//! runtime of the process that called `execve`.
//!
//! Back comes a [`Report`] or nothing, over the control socket: a `SOCK_SEQPACKET` whose other end the
//! supervisor reads. Every guest process keeps it open for as long as it lives, over fork and exec, so the end
//! of file tells the supervisor that the last process of the tree is gone.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that need not be UTF-8 (arguments, environment, paths).
///
/// In JSON a string whose characters U+0000..U+00FF stand for the bytes: readable, and any bytes survive.
#[derive(Clone, PartialEq, Eq, Default, Hash)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes(bytes)
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Bytes(bytes.to_vec())
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Bytes(text.as_bytes().to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = self.0.iter().map(|&b| char::from(b)).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes: Result<Vec<u8>, _> = text.chars().map(|c| u8::try_from(u32::from(c))).collect();
        bytes
            .map(Bytes)
            .map_err(|_| serde::de::Error::custom("a character above U+00FF in a byte string"))
    }
}

/// What a guest process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Run the program and log what it cannot compute.
    Record,
    /// Run it again from the log.
    Replay,
}

/// Whether pages are guarded with protection keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pkeys {
    /// Use them when the machine has them.
    Auto,
    /// Never: the serialised mode.
    Off,
}

/// Whether guest memory is hashed when a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checksum {
    /// Registers only, at every event.
    Registers,
    /// All writable memory as well, at exit.
    Memory,
}

/// How accesses of threads that run in parallel are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sharing {
    /// Threads take turns, so there is nothing to order.
    #[default]
    Serial,
    /// Translated code checks each access.
    Software,
    /// The processor does, by memory protection keys.
    Pkeys,
    /// The processor does, until pages change hands so often that checks cost less.
    Adaptive,
}

impl Sharing {
    /// As it is named on the command line and in traces.
    pub fn name(self) -> &'static str {
        match self {
            Sharing::Serial => "serial",
            Sharing::Software => "software",
            Sharing::Pkeys => "pkeys",
            Sharing::Adaptive => "adaptive",
        }
    }
}

/// What the user chose for a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Largest number of threads that run at once; `None`: as many as cores and keys allow.
    pub cpus: Option<u32>,
    /// Protection keys.
    pub pkeys: Pkeys,
    /// Memory hashes.
    pub checksum: Checksum,
    /// How accesses of threads that run in parallel are ordered.
    #[serde(default)]
    pub sharing: Sharing,
    /// Run the first program beside a native one and compare them.
    #[serde(default)]
    pub lockstep: Option<LockstepOptions>,
    /// Replaying: the threads of a process take turns on one host thread.
    #[serde(default)]
    pub one_thread: bool,
    /// Recording with checks: memory is taken by the granule from the first time it changes hands on, as otherwise only where that
    /// happens often. For tests.
    #[serde(default)]
    pub by_granule: bool,
    /// Recording with checks: a process with threads changes to one vcpu and back all the time. For tests.
    #[serde(default)]
    pub alternate: bool,
    /// Replaying: a debugger wants to see a process.
    #[serde(default)]
    pub debug: Option<crate::debug::DebugOptions>,
    /// Recording: nothing is logged until somebody asks for it.
    #[serde(default)]
    pub deferred: Option<Deferred>,
}

/// A run that is recorded only when somebody asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferred {
    /// Directory of the trace, instead of new ones where traces are kept. For one recording.
    pub output: Option<PathBuf>,
    /// What the meta data of traces say besides what the runtime knows.
    pub more: std::collections::BTreeMap<String, String>,
    /// A signal that begins a recording, instead of reaching the program.
    pub start_signal: Option<u32>,
    /// A function at whose first call a recording begins, as people write its name.
    pub start_function: Option<String>,
    /// A recording begins with the first program.
    pub start_now: bool,
    /// How long a recording goes on, milliseconds.
    pub stop_after: Option<u64>,
}

/// How the translated program is compared with a native one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockstepOptions {
    /// Begin at this clock.
    pub from: u64,
    /// Compare every so many ticks, with code translated as for a recording; `None`: after every block.
    pub every: Option<u64>,
    /// Compare memory whenever registers are compared.
    pub memory: bool,
    /// Make a mistake, to test the test.
    pub flip: Option<Flip>,
}

/// A mistake in the translated program: one bit of a register changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flip {
    /// After the block of this number.
    pub after: u64,
    /// Number of the register, as in the instruction encoding.
    pub register: u8,
    /// Number of the bit.
    pub bit: u8,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cpus: None,
            pkeys: Pkeys::Auto,
            checksum: Checksum::Registers,
            sharing: Sharing::Serial,
            lockstep: None,
            one_thread: false,
            by_granule: false,
            alternate: false,
            debug: None,
            deferred: None,
        }
    }
}

impl Options {
    /// How many vcpus a process with threads has.
    pub fn parallel(&self) -> u32 {
        match self.sharing {
            Sharing::Serial => 1,
            Sharing::Software => self
                .cpus
                .unwrap_or(1)
                .clamp(1, crate::par::MAX_VCPUS as u32),
            Sharing::Pkeys | Sharing::Adaptive => self
                .cpus
                .unwrap_or(1)
                .clamp(1, crate::par::keys::MOST_VCPUS),
        }
    }
}

/// A resource limit; `u64::MAX` is `RLIM_INFINITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// In force.
    pub soft: u64,
    /// Ceiling of the soft one.
    pub hard: u64,
}

/// The start message of a guest process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStart {
    /// Record or replay.
    pub mode: Mode,
    /// Directory of the trace, absolute.
    pub trace: PathBuf,
    /// Where traces are kept, absolute: has the store of mapped files that they share. Unused in replay.
    pub trace_root: PathBuf,
    /// File to execute, as the kernel would get it in `execve` (already searched in `PATH`; may be
    /// relative to `cwd`). In replay, this and the next three come from the trace's `Image` event instead and
    /// are empty for the root process.
    pub program: Bytes,
    /// Argument vector.
    pub argv: Vec<Bytes>,
    /// Environment.
    pub envp: Vec<Bytes>,
    /// Working directory at the start.
    pub cwd: Bytes,
    /// What the user chose.
    pub options: Options,
    /// This process in the trace; 1 is the root.
    pub proc: u32,
    /// Its first thread in the trace; 1 is the root's.
    pub thread: u32,
    /// The guest's own `RLIMIT_STACK`. The process itself runs with a finite one: an unlimited stack makes the
    /// kernel use its legacy layout, which puts the runtime below the guest line.
    pub stack_limit: Limit,
    /// The guest's `personality(2)`, without the bits that were cleared for the runtime.
    pub personality: u32,
    /// Signals the guest ignores at its start; bit `n - 1` is signal `n`.
    pub ignored: u64,
    /// Signals the guest has blocked at its start; bit `n - 1` is signal `n`. The process itself starts with
    /// the same ones blocked.
    pub blocked: u64,
    /// The control socket, open in the new process.
    pub control: RawFd,
    /// Name the program was executed by, when that is not `program`; else empty.
    #[serde(default)]
    pub execfn: Bytes,
    /// Replay: records of the thread's stream that programs before this one have consumed.
    #[serde(default)]
    pub skip: u64,
    /// Replay: descriptor of the state that the processes of the replay share.
    pub shared: RawFd,
    /// Device and inode of the recorder's descriptors 0, 1, 2; looked up when not `resumed`.
    #[serde(default)]
    pub standard: [(u64, u64); 3],
    /// `CREWIND_LOG`.
    #[serde(default)]
    pub log_level: String,
    /// Recording: descriptors of the trace's directories of streams and files and of its session.
    #[serde(default)]
    pub anchors: Option<[RawFd; 3]>,
    /// Resource limits that the guest has and its process has not.
    #[serde(default)]
    pub limits: crate::syscall::limits::Limits,
    /// True for a program that a recorded process executed: its stream goes on.
    #[serde(default)]
    pub resumed: bool,
}

impl GuestStart {
    /// Puts the message into a memfd that survives `execve`, with a number of at least `min_fd` (so that it
    /// never lands in a standard descriptor that the caller left closed).
    pub fn send(&self, min_fd: RawFd) -> io::Result<OwnedFd> {
        // Memory files have the guest's limit of file size too.
        let _lifted = crewind_trace::LiftedLimits::new();
        // SAFETY: the name is a NUL-terminated literal; the call takes no other pointer.
        let fd = unsafe { libc::memfd_create(c"crewind-start".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned by the kernel and nobody else owns it.
        let mut file = unsafe { File::from_raw_fd(fd) };
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        file.write_all(&text)?;
        file.seek(SeekFrom::Start(0))?;
        let high = dup_high(file.as_raw_fd(), min_fd, CloseOnExec::No)?;
        // SAFETY: as above, new and ours alone.
        Ok(unsafe { OwnedFd::from_raw_fd(high) })
    }

    /// Reads the message back and closes the descriptor.
    pub fn receive(fd: OwnedFd) -> io::Result<GuestStart> {
        let mut file = File::from(fd);
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut text)?;
        serde_json::from_slice(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

/// Whether a descriptor survives `execve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseOnExec {
    /// It does not.
    Yes,
    /// It does.
    No,
}

/// Duplicates `fd` to a number of at least `min`, also when a guest has lowered its limit of descriptors below
/// that: descriptors that are open stay valid above a limit, only making them needs it raised. When the hard
/// limit is too low as well, the highest number that can be had.
pub fn dup_high(fd: RawFd, min: RawFd, cloexec: CloseOnExec) -> io::Result<RawFd> {
    let command = match cloexec {
        CloseOnExec::Yes => libc::F_DUPFD_CLOEXEC,
        CloseOnExec::No => libc::F_DUPFD,
    };
    // SAFETY: duplicates a descriptor; takes no pointer.
    let dup = |min: RawFd| unsafe { libc::fcntl(fd, command, min) };
    let high = dup(min);
    if high >= 0 {
        return Ok(high);
    }
    let mut was = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the calls fill and read the struct.
    let high = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut was);
        let raised = libc::rlimit {
            rlim_cur: was.rlim_max,
            rlim_max: was.rlim_max,
        };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raised);
        let mut high = dup(min);
        let mut lower = RawFd::try_from(was.rlim_max).unwrap_or(RawFd::MAX).min(min);
        while high < 0 && lower > 3 {
            lower -= 1;
            high = dup(lower);
        }
        libc::setrlimit(libc::RLIMIT_NOFILE, &was);
        high
    };
    if high < 0 {
        Err(io::Error::from_raw_os_error(libc::EMFILE))
    } else {
        Ok(high)
    }
}

/// Why a run failed: one exit status of `crewind` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The user asked for something that cannot be (program cannot be executed, no such trace, no space).
    Usage,
    /// The guest or this machine needs something that crewind does not support.
    Unsupported,
    /// A mistake of crewind's.
    Internal,
    /// The replay did something else than the recording.
    Divergence,
    /// The trace is damaged, or cut off by a crash: replayed up to its end.
    TraceEnd,
}

impl Failure {
    /// The exit status of `crewind` for this class.
    ///
    /// Chosen between `sysexits` (64 to 78) and what shells and their helpers use: 124 and 125 of `timeout` and
    /// `env`, 126 and 127 for programs that cannot be executed or found, 128 + n for signals.
    pub const fn status(self) -> i32 {
        match self {
            Failure::TraceEnd => 119,
            Failure::Usage => 120,
            Failure::Unsupported => 121,
            Failure::Internal => 122,
            Failure::Divergence => 123,
        }
    }
}

/// What a guest process tells its supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The program cannot be executed: what `execve` would have returned. Only from the root process before
    /// its first instruction.
    CannotExecute {
        /// The errno, positive.
        errno: i32,
    },
    /// The run ends here. The process that sends this ends next, with any status.
    Failed {
        /// Which kind.
        failure: Failure,
        /// For the user: found, needed, what to do. May have several lines.
        message: String,
    },
    /// A replay of an unfinished trace came to the end of a process's streams. That process ends, others go on.
    StreamEnds {
        /// The thread that came there last.
        thread: u32,
        /// For the user: where.
        message: String,
    },
    /// The run goes on.
    Warning {
        /// For the user, one line.
        message: String,
    },
    /// Text to be printed as it is: what `CREWIND_LOG` asked for, and last words from signal handlers.
    Text {
        /// Whole lines.
        text: String,
    },
    /// A replay has verified all processes up to their recorded ends.
    Complete,
    /// A process that was not recorded is, from here on.
    Began {
        /// The trace.
        trace: PathBuf,
    },
    /// A recording of a process that goes on has ended: the streams of its trace are complete.
    Ended {
        /// The trace.
        trace: PathBuf,
    },
}

/// Longest message text in a [`Report`]; the rest is cut off. Well below the smallest socket buffer, so that
/// a report is never refused for its size.
const MAX_MESSAGE: usize = 32 << 10;

impl Report {
    /// Sends the report over the control socket. A supervisor that is gone (it was killed) is no error of the
    /// guest's: the message then goes to standard error, where a human may still see it.
    pub fn send(&self, control: RawFd) {
        let mut report = self.clone();
        if let Report::Failed { message, .. }
        | Report::StreamEnds { message, .. }
        | Report::Warning { message } = &mut report
        {
            let mut end = message.len().min(MAX_MESSAGE);
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        let Ok(text) = serde_json::to_vec(&report) else {
            return;
        };
        loop {
            // SAFETY: pointer and length are those of `text`. MSG_NOSIGNAL: no SIGPIPE for the guest.
            let sent = unsafe {
                libc::send(
                    control,
                    text.as_ptr().cast(),
                    text.len(),
                    libc::MSG_NOSIGNAL,
                )
            };
            if sent >= 0 {
                return;
            }
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break;
            }
        }
        if let Report::Failed { message, .. } | Report::Warning { message } = &report {
            eprintln!("crewind: {message}");
        }
    }

    /// Reads one report; `None` when every guest process is gone.
    pub fn receive(control: RawFd) -> io::Result<Option<Report>> {
        // JSON may escape every byte of the text to six.
        let mut buffer = vec![0_u8; 6 * MAX_MESSAGE + 1024];
        // SAFETY: pointer and length are those of `buffer`.
        let n = unsafe { libc::recv(control, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(n) = usize::try_from(n) else {
            return Err(io::Error::last_os_error());
        };
        let Some(text) = buffer.get(..n).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        // Plain text comes from where no JSON can be made.
        if !text.starts_with(b"{") && !text.starts_with(b"\"") {
            let text = String::from_utf8_lossy(text).into_owned();
            return Ok(Some(Report::Text { text }));
        }
        serde_json::from_slice(text)
            .map(Some)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> GuestStart {
        GuestStart {
            mode: Mode::Record,
            trace: "/tmp/t".into(),
            trace_root: "/tmp".into(),
            program: "/bin/true".into(),
            argv: vec![Bytes((0..=255).collect()), Bytes::default()],
            envp: vec!["A=\u{e9}".into()],
            cwd: "/".into(),
            options: Options::default(),
            proc: 1,
            thread: 1,
            stack_limit: Limit {
                soft: 8 << 20,
                hard: u64::MAX,
            },
            personality: 0,
            ignored: 1 << 12,
            blocked: u64::MAX,
            control: 7,
            execfn: Bytes::default(),
            skip: 0,
            shared: -1,
            standard: [(0, 0); 3],
            log_level: String::new(),
            anchors: Some([8, 9, 10]),
            limits: Default::default(),
            resumed: false,
        }
    }

    #[test]
    fn message_survives_the_memfd() {
        let fd = sample().send(100).unwrap();
        assert!(fd.as_raw_fd() >= 100);
        assert_eq!(GuestStart::receive(fd).unwrap(), sample());
    }

    #[test]
    fn reports_arrive_whole_and_the_end_shows() {
        let mut pair = [0; 2];
        // SAFETY: `pair` is the two-element array the call fills.
        let rc = unsafe {
            libc::socketpair(
                libc::AF_UNIX,
                libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
                0,
                pair.as_mut_ptr(),
            )
        };
        assert_eq!(rc, 0);
        // SAFETY: both were just returned by the kernel.
        let (ours, theirs) =
            unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) };
        let long = Report::Failed {
            failure: Failure::Divergence,
            message: "\u{1}".repeat(2 * MAX_MESSAGE),
        };
        Report::Complete.send(theirs.as_raw_fd());
        long.send(theirs.as_raw_fd());
        drop(theirs);
        assert_eq!(
            Report::receive(ours.as_raw_fd()).unwrap(),
            Some(Report::Complete)
        );
        match Report::receive(ours.as_raw_fd()).unwrap() {
            Some(Report::Failed { message, .. }) => assert_eq!(message.len(), MAX_MESSAGE),
            other => panic!("{other:?}"),
        }
        assert_eq!(Report::receive(ours.as_raw_fd()).unwrap(), None);
    }

    #[test]
    fn text_above_latin_1_is_refused() {
        assert!(serde_json::from_str::<Bytes>("\"\u{100}\"").is_err());
    }
}

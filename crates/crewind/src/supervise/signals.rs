//! Signals of the supervisor: all blocked and read from a descriptor, passed on, or obeyed.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::fail::{Error, Result};

/// What the supervisor takes from its descriptor. Blocked, they neither stop nor end it; those raised by its own
/// faults stay as they are.
const TAKEN: [i32; 14] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGWINCH,
];

/// The descriptor of blocked signals.
pub struct Signals {
    fd: OwnedFd,
}

/// One signal.
#[derive(Clone, Copy, Debug)]
pub struct Signal {
    /// Its number.
    pub number: i32,
    code: i32,
    sender: libc::pid_t,
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, filled by sigemptyset.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is live.
    unsafe { libc::sigemptyset(&raw mut set) };
    for &signal in signals {
        // SAFETY: `set` is live and initialised; a wrong number gives an error.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

fn set_default(signal: i32) {
    // SAFETY: SIG_DFL is no function, so nothing of ours can be called.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

impl Signals {
    /// Blocks them and opens the descriptor. Children that were ignored by the caller's wish are waited for again.
    pub fn take() -> Result<Self> {
        set_default(libc::SIGCHLD);
        let set = set_of(&TAKEN);
        // SAFETY: `set` is initialised; the old mask is not asked for.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(Error::internal(format!(
                "signalfd failed: {}",
                io::Error::last_os_error()
            )));
        }
        Ok(Signals {
            // SAFETY: just returned by the kernel, nobody else owns it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
        })
    }

    /// For `poll`.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The next pending signal.
    pub fn next(&mut self) -> Result<Option<Signal>> {
        // SAFETY: plain data, filled by read.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: `info` is live and `size` bytes long.
        let n = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut info).cast(), size) };
        if n < 0 {
            let e = io::Error::last_os_error();
            return match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(Error::internal(format!("reading signals failed: {e}"))),
            };
        }
        Ok(Some(Signal {
            number: info.ssi_signo.cast_signed(),
            code: info.ssi_code,
            sender: info.ssi_pid.cast_signed(),
        }))
    }

    /// Stops this process by the signal that stopped the guest, so that its caller sees the same. Returns when it
    /// is continued.
    pub fn stop_self(&self, signal: i32) {
        if signal == libc::SIGSTOP {
            // SAFETY: no memory is involved.
            unsafe { libc::raise(signal) };
            return;
        }
        let set = set_of(&[signal]);
        // SAFETY: plain data, filled by the next call.
        let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: only asks.
        unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut old) };
        set_default(signal);
        // SAFETY: `set` is initialised; the signal is unblocked to be obeyed, then blocked again.
        unsafe {
            libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
            libc::raise(signal);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            libc::sigaction(signal, &raw const old, std::ptr::null_mut());
        }
    }
}

impl Signal {
    /// True when somebody outside sent it, perhaps to this process alone, so that the guest did not get it.
    ///
    /// What the terminal sends reaches the whole process group. A process of the guest's own tree that signals its
    /// group has reached the guest too. From others it cannot be told whether they meant the group: then the guest may
    /// get it twice, which is better than not at all.
    pub fn was_sent_to_us_alone(&self) -> bool {
        const WORTH: [i32; 7] = [
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGALRM,
            libc::SIGTERM,
        ];
        let by_process = matches!(self.code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL);
        by_process && WORTH.contains(&self.number) && !descends_from_us(self.sender)
    }
}

/// Sends a signal to a process; one that is gone is no error.
pub fn send(pid: libc::pid_t, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(pid, signal) };
}

/// After this process was continued: continues the guest, unless whoever did it reached the guest too.
pub fn continue_if_stopped(pid: libc::pid_t) {
    if stat_field(pid, 0).is_some_and(|state| state == "T") {
        send(pid, libc::SIGCONT);
    }
}

/// Field of `/proc/PID/stat` after the command's name: 0 is the state, 1 the parent.
fn stat_field(pid: libc::pid_t, field: usize) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(field).map(str::to_owned)
}

fn descends_from_us(mut pid: libc::pid_t) -> bool {
    let own = std::process::id();
    // Bounded: the chain may change while it is read.
    for _ in 0..1000 {
        let parent = stat_field(pid, 1).and_then(|p| p.parse::<libc::pid_t>().ok());
        match parent {
            Some(parent) if parent.cast_unsigned() == own => return true,
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

/// All processes below this one.
fn descendants() -> Vec<libc::pid_t> {
    let mut found: Vec<libc::pid_t> = Vec::new();
    let mut look_at = vec![std::process::id().cast_signed()];
    while let Some(pid) = look_at.pop() {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let children =
                std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children
                .split_ascii_whitespace()
                .filter_map(|c| c.parse().ok())
            {
                if !found.contains(&child) {
                    found.push(child);
                    look_at.push(child);
                }
            }
        }
    }
    found
}

/// What the processes below this one do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Processor time used so far, in clock ticks.
    pub time: u64,
    /// All of them sleep until something happens: none can run, waits for a disk, or was stopped. False when there
    /// are none to be seen.
    pub asleep: bool,
}

/// Looks at the processes below this one.
pub fn activity() -> Activity {
    const USER: usize = 11;
    const SYSTEM: usize = 12;
    let all = descendants();
    let mut activity = Activity {
        time: 0,
        asleep: !all.is_empty(),
    };
    for pid in all {
        for field in [USER, SYSTEM] {
            let time = stat_field(pid, field).and_then(|t| t.parse::<u64>().ok());
            activity.time = activity.time.wrapping_add(time.unwrap_or(0));
        }
        for (state, has_children) in tasks(pid) {
            // The parent of a process made by vfork waits like one that waits for a disk.
            let asleep = matches!(state, 'S' | 'Z' | 'X') || (state == 'D' && has_children);
            activity.asleep &= asleep;
        }
    }
    activity
}

/// State of each thread of a process, and whether it has children.
fn tasks(pid: libc::pid_t) -> Vec<(char, bool)> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let of = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let (_, rest) = stat.rsplit_once(')')?;
        Some((rest.trim_start().chars().next()?, !children.is_empty()))
    };
    tasks.flatten().filter_map(of).collect()
}

/// Kills all processes below this one. They are this process's own: it is the reaper of its orphans in a replay.
/// The end of `root` is left to be waited for.
pub fn kill_descendants(root: libc::pid_t) {
    // What is being forked now is found in the next round.
    for _ in 0..5 {
        for pid in descendants() {
            send(pid, libc::SIGKILL);
        }
        reap_orphans(root);
    }
}

/// Takes the ends of adopted processes, all but `root`, whose end is wanted.
pub fn reap_orphans(root: libc::pid_t) {
    for pid in descendants() {
        if pid != root && stat_field(pid, 0).is_some_and(|state| state == "Z") {
            // SAFETY: no status is asked for. A process that is not our child gives an error.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
        }
    }
}

/// Makes this process adopt the orphans below it.
pub fn adopt_orphans() {
    // SAFETY: this option has one integer argument.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Ends this process by a signal, without a core file of its own.
pub fn end_by(signal: i32) -> ! {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let set = set_of(&[signal]);
    set_default(signal);
    // SAFETY: both structs are live and initialised; the rest takes numbers.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signal);
    }
    // A signal whose default does not end a process cannot have ended the guest.
    std::process::exit(128 + signal)
}

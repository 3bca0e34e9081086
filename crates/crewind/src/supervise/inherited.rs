//! What the caller left to crewind and the guest is to get: signal dispositions and mask, limits, personality,
//! closed descriptors.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

use crewind_guest::start::{Bytes, GuestStart, Limit, Mode, Options};

/// State at the start of the supervisor, before it changes anything.
#[derive(Clone, Debug)]
pub struct Inherited {
    /// Ignored signals; bit n - 1 is signal n.
    pub ignored: u64,
    /// Blocked signals.
    pub blocked: u64,
    /// The signal mask itself.
    pub mask: libc::sigset_t,
    /// `RLIMIT_STACK`.
    pub stack: Limit,
    /// `personality(2)`.
    pub personality: u32,
    /// Standard descriptors that the caller left closed.
    pub closed: Vec<RawFd>,
}

/// Largest signal number of the kernel.
const LAST_SIGNAL: i32 = 64;

impl Inherited {
    /// What the root process of a recording or a replay is told, but for its program and its trace.
    pub fn start(&self, mode: Mode, options: Options) -> GuestStart {
        GuestStart {
            mode,
            trace: PathBuf::new(),
            trace_root: PathBuf::new(),
            program: Bytes::default(),
            argv: Vec::new(),
            envp: Vec::new(),
            cwd: Bytes::default(),
            options,
            proc: 1,
            thread: 1,
            stack_limit: self.stack,
            personality: self.personality,
            ignored: self.ignored,
            blocked: self.blocked,
            control: -1,
            execfn: Bytes::default(),
            skip: 0,
            shared: -1,
            standard: [(0, 0); 3],
            log_level: std::env::var("CREWIND_LOG").unwrap_or_default(),
            anchors: None,
            limits: Default::default(),
            resumed: false,
        }
    }

    /// Reads it, and occupies closed standard descriptors with `/dev/null`, so that nothing crewind opens lands there
    /// and gets its messages.
    pub fn read() -> io::Result<Self> {
        let mut ignored = 0;
        // SAFETY: sigset_t is plain data, and the next call fills it.
        let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: no new mask is given; `mask` is live.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask) };
        let mut blocked = 0;
        for signal in 1..=LAST_SIGNAL {
            // SAFETY: plain data, filled by the next call when it succeeds.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: no new action is given; numbers that the C library keeps for itself give an error.
            let known = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) } == 0;
            if known && action.sa_sigaction == libc::SIG_IGN {
                ignored |= 1 << (signal - 1);
            }
            // SAFETY: `mask` was filled above; other numbers give an error.
            if unsafe { libc::sigismember(&raw const mask, signal) } == 1 {
                blocked |= 1 << (signal - 1);
            }
        }
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: `limit` is a live struct of the right type.
        if unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: this value asks and changes nothing.
        let personality = unsafe { libc::personality(0xffff_ffff) };
        Ok(Inherited {
            ignored,
            blocked,
            mask,
            stack: Limit {
                soft: limit.rlim_cur,
                hard: limit.rlim_max,
            },
            personality: u32::try_from(personality).unwrap_or(0),
            closed: occupy_closed()?,
        })
    }
}

/// Names in a trace's description.
const IGNORED: &str = "ignored_signals";
const BLOCKED: &str = "blocked_signals";
const PERSONALITY: &str = "personality";
const STACK_SOFT: &str = "stack_limit";
const STACK_HARD: &str = "stack_limit_hard";

impl Inherited {
    /// What a replay has to begin with too.
    pub fn to_meta(&self) -> BTreeMap<String, String> {
        let values = [
            (IGNORED, self.ignored),
            (BLOCKED, self.blocked),
            (PERSONALITY, self.personality.into()),
            (STACK_SOFT, self.stack.soft),
            (STACK_HARD, self.stack.hard),
        ];
        values
            .into_iter()
            .map(|(name, value)| (name.to_owned(), format!("{value:#x}")))
            .collect()
    }

    /// As the recording had it; what the description does not say stays as it is.
    pub fn with_meta(&self, meta: &BTreeMap<String, String>) -> Inherited {
        let value = |name, otherwise| {
            let text = meta.get(name).and_then(|text| text.strip_prefix("0x"));
            text.and_then(|text| u64::from_str_radix(text, 16).ok())
                .unwrap_or(otherwise)
        };
        Inherited {
            ignored: value(IGNORED, self.ignored),
            blocked: value(BLOCKED, self.blocked),
            personality: u32::try_from(value(PERSONALITY, self.personality.into()))
                .unwrap_or(self.personality),
            stack: Limit {
                soft: value(STACK_SOFT, self.stack.soft),
                hard: value(STACK_HARD, self.stack.hard),
            },
            ..self.clone()
        }
    }
}

fn occupy_closed() -> io::Result<Vec<RawFd>> {
    let mut closed = Vec::new();
    for fd in 0..=2 {
        // SAFETY: asks for flags of a number, open or not.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0 {
            continue;
        }
        // SAFETY: a literal path. The lowest free number is `fd`, as those below are open.
        if unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } != fd {
            return Err(io::Error::last_os_error());
        }
        closed.push(fd);
    }
    Ok(closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_begins_as_the_recording_did() {
        let recorded = Inherited {
            ignored: 1 << 63 | 2,
            stack: Limit {
                soft: u64::MAX,
                hard: u64::MAX,
            },
            ..Inherited::read().unwrap()
        };
        let again = Inherited::read().unwrap().with_meta(&recorded.to_meta());
        assert_eq!(
            (again.ignored, again.stack),
            (recorded.ignored, recorded.stack)
        );
        let odd = BTreeMap::from([(IGNORED.to_owned(), "nonsense".to_owned())]);
        assert_eq!(recorded.with_meta(&odd).ignored, recorded.ignored);
    }
}

//! Guest signals: dispositions, masks, alternate stacks, frames.
//!
//! The runtime owns every host handler (`host.rs`); what the guest set up is only bookkeeping here, acted on
//! when a signal is let in: at ticks, at the exit of system calls and at their entry (`deliver.rs`).

pub mod deliver;
pub mod frame;
pub mod host;

/// `ss_flags`: no alternate stack.
pub const SS_DISABLE: u32 = 2;
/// `ss_flags`: running on the alternate stack.
pub const SS_ONSTACK: u32 = 1;
/// `ss_flags`: cleared when a handler starts on it.
pub const SS_AUTODISARM: u32 = 1 << 31;

/// `SIG_DFL`.
pub const DFL: u64 = 0;
/// `SIG_IGN`.
pub const IGN: u64 = 1;

/// Highest signal number.
pub const MAX: usize = 64;

/// The bit of a signal in a mask.
pub const fn bit(signo: u32) -> u64 {
    1 << (signo - 1)
}

/// Signals that the guest's own instructions raise. The host never blocks them: the runtime needs them.
pub const SYNCHRONOUS: u64 = bit(libc::SIGSEGV as u32)
    | bit(libc::SIGBUS as u32)
    | bit(libc::SIGFPE as u32)
    | bit(libc::SIGILL as u32)
    | bit(libc::SIGTRAP as u32);

/// Signals that can be neither caught nor blocked.
pub const UNBLOCKABLE: u64 = bit(libc::SIGKILL as u32) | bit(libc::SIGSTOP as u32);

/// What a signal does when there is no handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// Nothing.
    Ignore,
    /// The process stops: left to the host's kernel.
    Stop,
    /// The process ends.
    Terminate,
}

/// Default action of a signal (signal(7)).
pub fn default_action(signo: u32) -> Default {
    match signo as i32 {
        libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT => Default::Ignore,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => Default::Stop,
        _ => Default::Terminate,
    }
}

/// The kernel's `struct sigaction` on x86-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SigAction {
    /// Handler address, [`DFL`] or [`IGN`].
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Return trampoline.
    pub restorer: u64,
    /// Blocked while the handler runs.
    pub mask: u64,
}

/// A signal's `siginfo_t` and what a fault adds to it.
#[derive(Clone, Copy, Debug)]
pub struct SigInfo {
    /// The kernel's siginfo_t.
    pub bytes: [u8; 128],
    /// Page fault error code (sigcontext.err).
    pub err: u64,
    /// Exception number (sigcontext.trapno).
    pub trapno: u64,
    /// Faulting address (sigcontext.cr2).
    pub cr2: u64,
}

impl SigInfo {
    /// An empty one.
    pub const fn zeroed() -> Self {
        SigInfo {
            bytes: [0; 128],
            err: 0,
            trapno: 0,
            cr2: 0,
        }
    }

    /// A kernel-raised signal with an address.
    pub fn fault(signo: i32, code: i32, addr: u64) -> Self {
        let mut s = Self::zeroed();
        s.bytes[0..4].copy_from_slice(&signo.to_le_bytes());
        s.bytes[8..12].copy_from_slice(&code.to_le_bytes());
        s.bytes[16..24].copy_from_slice(&addr.to_le_bytes());
        s
    }

    /// Signal number.
    pub fn signo(&self) -> u32 {
        u32::from_le_bytes([self.bytes[0], self.bytes[1], self.bytes[2], self.bytes[3]])
    }

    /// `si_code`.
    pub fn code(&self) -> i32 {
        i32::from_le_bytes([self.bytes[8], self.bytes[9], self.bytes[10], self.bytes[11]])
    }

    /// `si_addr`.
    pub fn addr(&self) -> u64 {
        u64::from_le_bytes(self.bytes[16..24].try_into().unwrap_or_default())
    }

    /// Sets `si_addr`.
    pub fn set_addr(&mut self, addr: u64) {
        self.bytes[16..24].copy_from_slice(&addr.to_le_bytes());
    }
}

/// A thread's alternate signal stack (`stack_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Lowest address.
    pub sp: u64,
    /// [`SS_DISABLE`], [`SS_AUTODISARM`] or 0.
    pub flags: u32,
    /// Bytes.
    pub size: u64,
}

impl std::default::Default for Stack {
    fn default() -> Self {
        Stack {
            sp: 0,
            flags: SS_DISABLE,
            size: 0,
        }
    }
}

impl Stack {
    /// True when a handler with SA_ONSTACK would switch to it.
    pub fn enabled(&self) -> bool {
        self.flags & SS_DISABLE == 0 && self.size != 0
    }

    /// True when `sp` lies in it.
    pub fn holds(&self, sp: u64) -> bool {
        sp > self.sp && sp - self.sp <= self.size
    }

    /// True when `sp` is on it (the kernel's `on_sig_stack`).
    pub fn contains(&self, sp: u64) -> bool {
        self.flags & SS_AUTODISARM == 0 && self.holds(sp)
    }
}

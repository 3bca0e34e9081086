//! Types that the runtime sees.

use crate::insn::InsnExit;

/// How code is translated. Every combination gives the same clock and the same guest state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Guest instructions in one translation at most.
    pub max_block_insns: usize,
    /// Go on behind branches not taken and through forward jumps.
    pub superblocks: bool,
    /// Repeat the body of short loops, so that their ticks take turns on the counters of the clock.
    pub unroll: bool,
    /// Let translations jump to each other directly.
    pub chaining: bool,
    /// Look targets of indirect transfers up in emitted code.
    pub inline_lookup: bool,
    /// Use updates of the clock that destroy flags where flags are dead.
    pub flags_liveness: bool,
    /// Where translated code keeps the clock.
    pub hot_state: HotState,
    /// Use BMI2 where the cpu has it.
    pub bmi2: bool,
}

/// Where translated code keeps the clock and what it spills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotState {
    /// At a fixed address beside the cache, which is faster: one thread at a time runs its code.
    Shared,
    /// In each thread's `Ctx`: threads run its code at the same time.
    PerThread,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_block_insns: 64,
            superblocks: true,
            unroll: true,
            chaining: true,
            inline_lookup: true,
            flags_liveness: true,
            hot_state: HotState::Shared,
            bmi2: true,
        }
    }
}

/// Where the cache lies and how code is translated.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Address of the code cache; cache and table end below 2 GB.
    pub cache_base: u64,
    /// Size of the code cache in bytes.
    pub cache_size: usize,
    /// Address of the look-up table of indirect transfers (512 KiB).
    pub table_base: u64,
    /// How code is translated.
    pub options: Options,
    /// Base of the table of rights that translated code looks at before each access to guest memory: a page-aligned
    /// address such that table and slack (`rights::RIGHTS_LEN` and `RIGHTS_SLACK` bytes) end below 2 GB. The caller maps
    /// it, before the first translation. Needs `HotState::Shared`. None: accesses are not checked.
    pub rights: Option<u64>,
    /// The table has a byte for each page (`rights::page_index`), and only instructions look at it that a fault could
    /// leave half done: the processor looks at all others, by protection keys.
    pub pages: bool,
    /// Translated code runs with the rights to protection keys in `Ctx::pkru`; outside, all keys are open. An access
    /// without the right leaves with `Exit::Fault`.
    pub pkru: bool,
}

/// A pc that is not executable guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchFault {
    /// First address that could not be fetched.
    pub addr: u64,
}

/// Where guest code comes from.
pub trait CodeSource {
    /// Executable guest bytes from `pc` to the end of the contiguous readable and executable guest range (may be
    /// capped at 8 KiB).
    fn fetch(&self, pc: u64) -> Result<&[u8], FetchFault>;
    /// What lies in guest memory at an address now, if that can be found out. Only a hint: translations are right whatever
    /// it says.
    fn peek(&self, addr: u64) -> Option<u64> {
        let _ = addr;
        None
    }
    /// Called for each guest range whose bytes were read into a translation, before the code is used.
    fn translated(&self, start: u64, end: u64);
    /// Whether nobody can ever write to this guest memory: reading it needs no check of rights. Asked when code is
    /// translated, so where it ceases to be so, the cache has to be flushed.
    fn constant(&self, start: u64, end: u64) -> bool {
        let _ = (start, end);
        false
    }
    /// Whether the code at `pc` may be found changed when it is fetched again, without a word before: no flags count as dead there,
    /// because what overwrites them may be gone. The answer for a page must not change while it has translations.
    fn unsteady(&self, pc: u64) -> bool {
        let _ = pc;
        false
    }
}

/// Why `run` returned. The guest's state is in the `Ctx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// At a `syscall` instruction (`ctx.rip` is its address), nothing of it done.
    Syscall {
        /// Address behind the instruction.
        next: u64,
    },
    /// A transfer that counts was done and the clock reached the limit, or a stop was requested (a request that
    /// raced may show up as a tick whose reason is gone: spurious ticks are allowed).
    Tick,
    /// At an instruction the runtime does (`ctx.rip` is its address), nothing of it done.
    Insn(InsnExit),
    /// The signal handler redirected translated code to `fault_exit_entry`.
    Fault,
    /// `ctx.rip` (or, for an instruction across a page end, `addr`) cannot be fetched.
    FetchFault {
        /// First address that could not be fetched.
        addr: u64,
    },
    /// At an instruction that is not supported, nothing of it done.
    Unsupported {
        /// What it is, for a message.
        what: &'static str,
    },
    /// There is no translation of `ctx.rip` yet, and translating was deferred: `translate_pending` makes it.
    Untranslated,
    /// Rights are missing at `ctx.rip`, nothing of the instruction done. `CodeCache::check_ranges` tells which;
    /// `CodeCache::pass_check` lets `run` go on behind the check.
    Check {
        /// Number of the check.
        site: u32,
    },
    /// At an event site with the clock that it is armed for, nothing of the instruction done. It leaves here again
    /// until it is armed anew.
    EventSite,
    /// At an instruction of `set_breaks`, nothing of it done.
    Break,
    /// `step` did its one instruction, or `run_block` its one translation.
    Stepped,
}

/// Host registers of an interrupted context, in and out of `recover`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Recovered {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8..r15.
    pub gpr: [u64; 16],
    /// Flags.
    pub rflags: u64,
    /// In: host pc. Out: guest pc.
    pub rip: u64,
}

/// What kind of place `recover` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveredKind {
    /// At (for faults) or directly behind (for traps) a guest instruction: the registers are the guest's.
    Exact,
    /// In entry, exit or link stubs, where no guest memory is touched: registers were left alone.
    Stub,
}

/// Counters for humans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Translations made since the start.
    pub fragments: u64,
    /// Guest instructions in them.
    pub guest_insns: u64,
    /// Guest bytes in them.
    pub guest_bytes: u64,
    /// Emitted bytes, stubs included.
    pub cache_bytes: u64,
    /// Bytes of tables beside the cache.
    pub metadata_bytes: u64,
    /// Direct links patched.
    pub links: u64,
    /// Times the look-up of an indirect transfer came to the dispatcher.
    pub indirect_misses: u64,
    /// Times everything was thrown away.
    pub flushes: u64,
    /// Translations thrown away by `invalidate`.
    pub invalidated: u64,
    /// Times translated code was entered.
    pub entries: u64,
}

/// Sets the guest's FS base: the host's GS base.
pub fn set_guest_fs_base(base: u64) {
    if crate::cpuid::has_fsgsbase() {
        // SAFETY: the kernel allows the instruction, and nothing of the runtime uses GS.
        unsafe {
            core::arch::asm!("wrgsbase {}", in(reg) base, options(nostack, nomem, preserves_flags));
        }
    } else {
        const ARCH_SET_GS: libc::c_long = 0x1001;
        // SAFETY: only sets the GS base of the calling thread.
        unsafe {
            libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base);
        }
    }
}

//! Guest memory at fixed low addresses, and a cache to run what lies there.
#![allow(dead_code)]

use crewind_x86::ctx::{self, Ctx};
use crewind_x86::rights::{RIGHTS_LEN, RIGHTS_SLACK};
use crewind_x86::{CodeCache, CodeSource, Config, Exit, FetchFault, HotState, Options};
use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub const CACHE: u64 = 0x7010_0000;
pub const TABLE: u64 = 0x7000_0000;
pub const CODE: u64 = 0x1000_0000;
pub const STACK_TOP: u64 = 0x2000_0000;
pub const STACK_SIZE: usize = 1 << 20;
pub const DATA: u64 = 0x3000_0000;
pub const DATA_SIZE: usize = 1 << 16;
pub const RIGHTS: u64 = 0x4000_0000;

static LOCK: Mutex<()> = Mutex::new(());

/// Mapped memory at a fixed address.
pub struct Region {
    pub base: u64,
    pub size: usize,
}

impl Region {
    pub fn new(base: u64, size: usize) -> Region {
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: NOREPLACE changes nothing that is mapped.
        let p = unsafe { libc::mmap(base as *mut libc::c_void, size, prot, flags, -1, 0) };
        assert_eq!(p as u64, base, "could not map {base:#x}");
        Region { base, size }
    }

    pub fn bytes(&self) -> &'static mut [u8] {
        // SAFETY: mapped by `new`; tests look at it only while the guest does not run.
        unsafe { std::slice::from_raw_parts_mut(self.base as *mut u8, self.size) }
    }

    pub fn write(&self, at: u64, b: &[u8]) {
        let o = (at - self.base) as usize;
        self.bytes()[o..o + b.len()].copy_from_slice(b);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`.
        unsafe { libc::munmap(self.base as *mut libc::c_void, self.size) };
    }
}

/// Code of regions.
#[derive(Default)]
pub struct Source {
    pub ranges: Vec<(u64, u64)>,
    /// Memory that can be looked at.
    pub data: Vec<(u64, u64)>,
    pub translated: RefCell<Vec<(u64, u64)>>,
}

impl CodeSource for Source {
    fn fetch(&self, pc: u64) -> Result<&[u8], FetchFault> {
        let r = self
            .ranges
            .iter()
            .find(|(a, b)| (*a..*b).contains(&pc))
            .ok_or(FetchFault { addr: pc })?;
        let len = (r.1 - pc).min(8192) as usize;
        // SAFETY: ranges are mapped while the test runs.
        Ok(unsafe { std::slice::from_raw_parts(pc as *const u8, len) })
    }
    fn peek(&self, addr: u64) -> Option<u64> {
        let fits = |r: &&(u64, u64)| r.0 <= addr && addr.checked_add(8).is_some_and(|e| e <= r.1);
        // SAFETY: ranges are mapped while the test runs.
        (self.data.iter().find(fits)).map(|_| unsafe { (addr as *const u64).read_unaligned() })
    }
    fn translated(&self, start: u64, end: u64) {
        self.translated.borrow_mut().push((start, end));
    }
}

/// A guest with code, stack and data, holding the lock on the fixed addresses.
pub struct Guest {
    pub cache: CodeCache,
    pub src: Source,
    pub code: Region,
    pub stack: Region,
    pub data: Region,
    /// The table of rights, of a guest with checks. All rights are given at first.
    pub rights: Option<Region>,
    _lock: MutexGuard<'static, ()>,
}

impl Guest {
    pub fn new(options: Options) -> Guest {
        Self::with_cache(options, 64 << 20)
    }

    /// With checks of rights, if the options allow them.
    pub fn guarded(options: Options) -> Guest {
        let guarded = options.hot_state == HotState::Shared;
        Self::with(options, 64 << 20, guarded, false)
    }

    /// With checks of rights, if they are asked for and the options allow them.
    pub fn variant(options: Options, guarded: bool) -> Guest {
        if guarded {
            Self::guarded(options)
        } else {
            Self::new(options)
        }
    }

    /// With a table of rights to pages, which only some instructions look at.
    pub fn with_pages(options: Options) -> Guest {
        Self::with(options, 64 << 20, true, true)
    }

    pub fn with_cache(options: Options, cache_size: usize) -> Guest {
        Self::with(options, cache_size, false, false)
    }

    fn with(options: Options, cache_size: usize, guarded: bool, pages: bool) -> Guest {
        let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let cfg = Config {
            cache_base: CACHE,
            cache_size,
            table_base: TABLE,
            options,
            rights: guarded.then_some(RIGHTS),
            pages,
            pkru: false,
        };
        let rights = guarded.then(|| Region::new(RIGHTS, RIGHTS_LEN + RIGHTS_SLACK));
        let code = Region::new(CODE, 1 << 20);
        let src = Source {
            ranges: vec![(CODE, CODE + (1 << 20))],
            data: vec![(DATA, DATA + DATA_SIZE as u64)],
            ..Source::default()
        };
        Guest {
            cache: CodeCache::new(cfg).expect("cache"),
            src,
            code,
            stack: Region::new(STACK_TOP - STACK_SIZE as u64, STACK_SIZE),
            data: Region::new(DATA, DATA_SIZE),
            rights,
            _lock: lock,
        }
    }

    /// Resets the calling thread's context to start at the code.
    pub fn start(&mut self) -> &'static mut Ctx {
        // SAFETY: the calling thread's own context, used by nobody else meanwhile.
        let c = unsafe { &mut *ctx::ctx() };
        *c = Ctx::new();
        c.rip = CODE;
        c.gpr[4] = STACK_TOP - 4096;
        c.set_limit(u64::MAX);
        c
    }

    pub fn run(&mut self) -> Exit {
        // SAFETY: the thread's own context; guest code of tests stays in its regions.
        unsafe { self.cache.run(ctx::ctx(), &self.src) }
    }

    pub fn step(&mut self) -> Exit {
        // SAFETY: as for `run`.
        unsafe { self.cache.step(ctx::ctx(), &self.src) }
    }
}

/// All combinations of options that matter, each without and with checks of rights.
pub fn all_variants() -> impl Iterator<Item = (Options, bool)> {
    let all = all_options().into_iter();
    all.flat_map(|o| [(o, false), (o, true)])
}

/// All combinations of options that matter.
pub fn all_options() -> Vec<Options> {
    let mut v = Vec::new();
    for max_block_insns in [1, 3, 16, 64] {
        for bits in 0..64u32 {
            v.push(Options {
                max_block_insns,
                superblocks: bits & 1 != 0,
                unroll: bits & 32 != 0,
                chaining: bits & 2 != 0,
                inline_lookup: bits & 4 != 0,
                flags_liveness: bits & 8 != 0,
                hot_state: if bits & 16 == 0 {
                    HotState::Shared
                } else {
                    HotState::PerThread
                },
                bmi2: bits & 1 == 0,
            });
        }
    }
    v
}

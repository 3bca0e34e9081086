//! Translated code never touches guest memory without the right: random programs are single-stepped in the code cache,
//! and what each host instruction accesses is compared with the table. Rights are taken away at random whenever
//! translated code is left.

mod common;
mod generate;
mod native;

use common::*;
use crewind_x86::ctx;
use crewind_x86::rights::{self, CheckedRange, NO_READ, NO_WRITE};
use crewind_x86::{CodeCache, Exit, Options};
use generate::*;
use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess, Register};
use native::{load_ctx, load_x87, registers, reset_x87, set_gs, set_registers};
use std::cell::RefCell;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

static CACHE_PTR: AtomicPtr<CodeCache> = AtomicPtr::new(std::ptr::null_mut());
static STEPS: AtomicU64 = AtomicU64::new(0);
static ACCESSES: AtomicU64 = AtomicU64::new(0);

const TF: u64 = 0x100;
const FS_BASE: u64 = 64;

#[derive(Default)]
struct Watch {
    /// What the runtime let pass.
    passed: Vec<CheckedRange>,
    violation: Option<String>,
    infos: Option<InstructionInfoFactory>,
}

thread_local! {
    static WATCH: RefCell<Watch> = RefCell::default();
}

fn is_guest(addr: u64) -> bool {
    (DATA..DATA + DATA_SIZE as u64).contains(&addr)
        || (STACK_TOP - STACK_SIZE as u64..STACK_TOP).contains(&addr)
}

fn allowed(w: &Watch, addr: u64, write: bool) -> bool {
    // SAFETY: the table is mapped while guests with checks run.
    let right = unsafe { *((RIGHTS + rights::index(addr) as u64) as *const u8) };
    right & if write { NO_WRITE } else { NO_READ } == 0
        || w.passed
            .iter()
            .any(|r| addr.wrapping_sub(r.addr) < r.len && if write { r.write } else { r.read })
}

extern "C" fn on_trap(signal: i32, _: *mut libc::siginfo_t, uc: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context.
    let uc = unsafe { &mut *uc.cast::<libc::ucontext_t>() };
    let mut r = registers(uc);
    // SAFETY: the test keeps the cache alive.
    let cache = unsafe { &*CACHE_PTR.load(Ordering::SeqCst) };
    if signal != libc::SIGTRAP || (cache.contains(r.rip) && r.rflags & TF == 0) {
        // A fault of the guest ends the program.
        if !cache.contains(r.rip) {
            // SAFETY: resets the action; the instruction faults again.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            return;
        }
        r.rflags &= !TF;
        r.rip = cache.fault_exit_entry();
        set_registers(uc, &r);
        return;
    }
    if !cache.contains(r.rip) {
        r.rflags &= !TF;
        set_registers(uc, &r);
        return;
    }
    STEPS.fetch_add(1, Ordering::SeqCst);
    // SAFETY: inside the cache.
    let bytes = unsafe { std::slice::from_raw_parts(r.rip as *const u8, 15) };
    let i = Decoder::with_ip(64, bytes, r.rip, DecoderOptions::AMD).decode();
    WATCH.with(|w| {
        let w = &mut *w.borrow_mut();
        let mut infos = w.infos.take().unwrap_or_else(InstructionInfoFactory::new);
        let reg = |reg: Register| -> u64 {
            if !reg.is_gpr() {
                return 0;
            }
            let v = r.gpr[reg.full_register().number()];
            match reg.size() {
                8 => v,
                4 => v & 0xffff_ffff,
                _ => v & 0xff,
            }
        };
        let idle = i.is_string_instruction()
            && (i.has_rep_prefix() || i.has_repne_prefix())
            && r.gpr[1] == 0;
        for m in infos.info(&i).used_memory().iter().filter(|_| !idle) {
            if matches!(m.access(), OpAccess::NoMemAccess | OpAccess::None) {
                continue;
            }
            let read = matches!(
                m.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            let write = !matches!(m.access(), OpAccess::Read | OpAccess::CondRead);
            let base = if m.segment() == Register::GS {
                FS_BASE
            } else {
                0
            };
            let at = reg(m.base())
                .wrapping_add(reg(m.index()).wrapping_mul(m.scale().into()))
                .wrapping_add(m.displacement())
                .wrapping_add(base);
            // One element of repeated strings at a time.
            let size = match m.memory_size().size() {
                0 => i.memory_size().size() as u64,
                n => n as u64,
            };
            for b in [at, at.wrapping_add(size.wrapping_sub(1))] {
                if !is_guest(b) || size == 0 {
                    continue;
                }
                ACCESSES.fetch_add(1, Ordering::SeqCst);
                if (read && !allowed(w, b, false)) || (write && !allowed(w, b, true)) {
                    w.violation
                        .get_or_insert_with(|| format!("{i} accesses {b:#x} without the right"));
                }
            }
        }
        w.infos = Some(infos);
    });
    set_registers(uc, &r);
}

fn install(cache: &CodeCache) {
    static ONCE: Once = Once::new();
    CACHE_PTR.store(std::ptr::from_ref(cache).cast_mut(), Ordering::SeqCst);
    ONCE.call_once(|| {
        for s in [
            libc::SIGTRAP,
            libc::SIGSEGV,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGBUS,
        ] {
            // SAFETY: a handler with the right signature.
            unsafe {
                let mut sa: libc::sigaction = std::mem::zeroed();
                sa.sa_sigaction = on_trap as *const () as usize;
                sa.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                assert_eq!(libc::sigaction(s, &sa, std::ptr::null_mut()), 0);
            }
        }
    });
    let alternate = libc::stack_t {
        ss_sp: Box::leak(vec![0u8; 1 << 18].into_boxed_slice())
            .as_mut_ptr()
            .cast(),
        ss_flags: 0,
        ss_size: 1 << 18,
    };
    // SAFETY: leaked memory.
    unsafe { assert_eq!(libc::sigaltstack(&alternate, std::ptr::null_mut()), 0) };
}

/// Other rights for everything but `keep`, which gets what it asks for, or is let pass.
fn deal(g: &Guest, r: &mut Rng, keep: &[CheckedRange], pass: bool) {
    let table = g.rights.as_ref().expect("checked");
    let rich = r.below(5);
    for (start, len) in [(DATA, 16384), (STACK_TOP - 16384, 16384)] {
        for a in (start..start + len).step_by(64) {
            table.bytes()[rights::index(a)] = if r.below(5) < rich {
                0
            } else {
                r.pick(&[0, NO_WRITE, NO_READ | NO_WRITE])
            };
        }
    }
    WATCH.with(|w| w.borrow_mut().passed.clear());
    if pass {
        WATCH.with(|w| w.borrow_mut().passed.extend_from_slice(keep));
        return;
    }
    for k in keep {
        let mut a = k.addr & !63;
        while a < k.addr.saturating_add(k.len.min(1 << 20)) {
            let b = &mut table.bytes()[rights::index(a)];
            *b = if k.write || *b == 0 { 0 } else { NO_WRITE };
            a += 64;
        }
    }
}

/// Runs to the end, and answers checks. True if it came to the end.
fn run(g: &mut Guest, r: &mut Rng, checks: &mut u64) -> bool {
    deal(g, r, &[], false);
    loop {
        let c = {
            // SAFETY: the thread's own context.
            unsafe { &mut *ctx::ctx() }
        };
        c.rflags |= TF;
        if r.one_in(4) {
            c.stop_at_next_tick();
        }
        let exit = g.run();
        c.rflags &= !TF;
        match exit {
            Exit::Check { site } => {
                *checks += 1;
                let mut ranges = Vec::new();
                g.cache.check_ranges(site, c, &mut ranges);
                let long = ranges.is_empty() || ranges.iter().any(|x| x.len > 1 << 16);
                let pass = long || r.one_in(2);
                deal(g, r, &ranges, pass);
                // What was granted may be passed or looked at again, what was not must be passed.
                if pass || r.one_in(2) {
                    g.cache.pass_check(c, site);
                    if r.one_in(10) {
                        g.cache.flush();
                    }
                }
            }
            Exit::Tick => deal(g, r, &[], false),
            Exit::Syscall { .. } => return true,
            _ => return false,
        }
    }
}

fn violation() -> Option<String> {
    WATCH.with(|w| w.borrow_mut().violation.take())
}

fn variants() -> Vec<Options> {
    vec![
        Options::default(),
        Options {
            bmi2: false,
            ..Options::default()
        },
        Options {
            flags_liveness: false,
            ..Options::default()
        },
        Options {
            flags_liveness: false,
            bmi2: false,
            max_block_insns: 5,
            ..Options::default()
        },
        Options {
            superblocks: false,
            chaining: false,
            inline_lookup: false,
            ..Options::default()
        },
    ]
}

#[test]
fn nothing_is_touched_without_the_right() {
    let (mut ends, mut checks) = (0, 0);
    let variants = variants();
    for (n, o) in variants.iter().enumerate() {
        let mut g = Guest::guarded(*o);
        install(&g.cache);
        for case in (n as u64..env("GUARDED_CASES", 120)).step_by(variants.len()) {
            let mut r = case_rng(env("FUZZ_SEED", 3), case);
            let p = program(&mut r, LOW);
            let init = random_state(&mut r, LOW);
            for b in &mut g.data.bytes()[..8192] {
                *b = r.next() as u8;
            }
            g.code.write(CODE, &p.bytes);
            g.code.write(LOW.end, &[0x0f, 0x05]);
            g.cache.invalidate(CODE, CODE + (1 << 16));
            let c = g.start();
            load_ctx(c, &init, CODE);
            // SAFETY: sets the x87 state for the guest.
            unsafe { load_x87(&init) };
            set_gs(FS_BASE);
            ends += u64::from(run(&mut g, &mut r, &mut checks));
            set_gs(0);
            reset_x87();
            if let Some(v) = violation() {
                panic!("{v}\ncase {case} {o:?}\n{}", p.text);
            }
        }
    }
    let (steps, accesses) = (
        STEPS.load(Ordering::SeqCst),
        ACCESSES.load(Ordering::SeqCst),
    );
    eprintln!("{ends} programs, {steps} steps, {accesses} accesses, {checks} checks");
    assert!(ends > 50 && accesses > steps / 100 && checks > 200);
}

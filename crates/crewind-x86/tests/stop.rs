//! A stop requested by a signal handler at any instruction of translated code is neither lost nor miscounted.
//! Translated code is single-stepped; the request comes at every step in turn.

mod common;
mod native;

use common::*;
use crewind_x86::ctx;
use crewind_x86::{CodeCache, Exit, HotState, Options, Recovered};
use iced_x86::code_asm::*;
use native::{registers, set_registers};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

static CACHE_PTR: AtomicPtr<CodeCache> = AtomicPtr::new(std::ptr::null_mut());
static STEP: AtomicU64 = AtomicU64::new(0);
static REQUEST_AT: AtomicU64 = AtomicU64::new(0);
/// `NOT_YET` until the request was made: a step may also end outside of translated code.
static CLOCK_THEN: AtomicU64 = AtomicU64::new(0);
static REQUESTS: AtomicU64 = AtomicU64::new(0);
static REPAIRED: AtomicU64 = AtomicU64::new(0);

const TF: u64 = 0x100;
const NOT_YET: u64 = u64::MAX;
/// More than a loop with so short a body is counted in advance.
const MOST_AHEAD: u64 = 16;

extern "C" fn on_trap(_: i32, _: *mut libc::siginfo_t, uc: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context.
    let uc = unsafe { &mut *uc.cast::<libc::ucontext_t>() };
    let mut r: Recovered = registers(uc);
    // SAFETY: the test keeps the cache alive; the context is this thread's.
    let (cache, c) = unsafe { (&*CACHE_PTR.load(Ordering::SeqCst), &mut *ctx::ctx()) };
    let n = STEP.fetch_add(1, Ordering::SeqCst);
    if !cache.contains(r.rip) {
        r.rflags &= !TF;
    } else if n == REQUEST_AT.load(Ordering::SeqCst) {
        CLOCK_THEN.store(c.clock(), Ordering::SeqCst);
        c.stop_at_next_tick();
        REQUESTS.fetch_add(1, Ordering::SeqCst);
        if cache.note_stop(&mut r) {
            REPAIRED.fetch_add(1, Ordering::SeqCst);
        }
        r.rflags &= !TF;
    }
    set_registers(uc, &r);
}

/// Calls, returns, loops with live and dead flags, an indirect jump.
fn program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let [mut f, mut main, mut l1, mut l2, mut l3, mut l4] =
        std::array::from_fn(|_| a.create_label());
    a.jmp(main).unwrap();
    a.set_label(&mut f).unwrap();
    a.add(rax, 1).unwrap();
    a.ret().unwrap();
    a.set_label(&mut main).unwrap();
    a.mov(ebx, 3).unwrap();
    a.set_label(&mut l1).unwrap();
    a.add(rax, rbx).unwrap();
    a.call(f).unwrap();
    a.adc(rax, 0).unwrap();
    a.dec(ebx).unwrap();
    a.jne(l1).unwrap();
    a.mov(ebx, 3).unwrap();
    a.stc().unwrap();
    a.set_label(&mut l2).unwrap();
    a.adc(rax, rbx).unwrap();
    a.dec(ebx).unwrap();
    a.jne(l2).unwrap();
    a.mov(ebx, 21).unwrap();
    a.set_label(&mut l4).unwrap();
    a.add(rax, rbx).unwrap();
    a.dec(ebx).unwrap();
    a.jne(l4).unwrap();
    a.mov(ecx, 3).unwrap();
    a.lea(rdx, ptr(l3)).unwrap();
    a.jmp(rdx).unwrap();
    a.set_label(&mut l3).unwrap();
    a.loop_(l3).unwrap();
    a.syscall().unwrap();
    a.assemble(CODE).unwrap()
}

#[test]
fn a_stop_at_any_instruction_counts() {
    // SAFETY: a handler with the right signature.
    unsafe {
        let mut sa: libc::sigaction = std::mem::zeroed();
        sa.sa_sigaction = on_trap as *const () as usize;
        sa.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &sa, std::ptr::null_mut()), 0);
        let alternate = libc::stack_t {
            ss_sp: Box::leak(vec![0u8; 1 << 16].into_boxed_slice())
                .as_mut_ptr()
                .cast(),
            ss_flags: 0,
            ss_size: 1 << 16,
        };
        assert_eq!(libc::sigaltstack(&alternate, std::ptr::null_mut()), 0);
    }
    for o in [
        Options::default(),
        Options {
            hot_state: HotState::PerThread,
            ..Options::default()
        },
        Options {
            flags_liveness: false,
            ..Options::default()
        },
    ] {
        let mut g = Guest::new(o);
        g.code.write(CODE, &program());
        CACHE_PTR.store(&raw mut g.cache, Ordering::SeqCst);
        // Translate and link everything first.
        for _ in 0..3 {
            g.start();
            assert!(matches!(g.run(), Exit::Syscall { .. }));
        }
        let (total, result) = {
            let c = g.start();
            g.run();
            (c.clock(), c.gpr)
        };
        // Also near the limit, where the low half carries.
        for limit in [u64::MAX, 1, 2, 3, 5] {
            for at in 0..100_000 {
                let c = g.start();
                c.set_limit(limit);
                c.rflags |= TF;
                STEP.store(0, Ordering::SeqCst);
                REQUEST_AT.store(at, Ordering::SeqCst);
                CLOCK_THEN.store(NOT_YET, Ordering::SeqCst);
                let exit = g.run();
                c.rflags &= !TF;
                let steps = STEP.load(Ordering::SeqCst);
                if steps <= at {
                    break;
                }
                let then = CLOCK_THEN.load(Ordering::SeqCst);
                match exit {
                    Exit::Tick | Exit::Syscall { .. } if then == NOT_YET => {}
                    Exit::Tick => {
                        let now = c.clock();
                        // In loops that count in advance the clock was ahead then.
                        assert!(
                            now <= then + 1 && now + MOST_AHEAD >= then,
                            "step {at}: {then} -> {now}, limit {limit}"
                        );
                    }
                    Exit::Syscall { .. } => assert_eq!(then, total, "step {at}: lost"),
                    e => panic!("{e:?}"),
                }
                if exit == Exit::Tick {
                    // A request near the end of the tick's own check may stay for the next tick.
                    c.set_limit(u64::MAX);
                    loop {
                        match g.run() {
                            Exit::Tick => {}
                            Exit::Syscall { .. } => break,
                            e => panic!("{e:?}"),
                        }
                    }
                }
                assert_eq!(c.clock(), total, "step {at}");
                assert_eq!(c.gpr, result, "step {at}");
            }
        }
    }
    assert!(REQUESTS.load(Ordering::SeqCst) > 500);
    assert!(REPAIRED.load(Ordering::SeqCst) > 10);
}

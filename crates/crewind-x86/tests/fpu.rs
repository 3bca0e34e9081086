//! The FPU-state family, done by the runtime, against the processor's.

mod common;
mod generate;
mod native;

use common::*;
use crewind_x86::ctx::{self, Ctx};
use crewind_x86::{Exit, GuestMemory, InsnFault, InsnKind, Options, cpuid, fpu, insn};
use generate::{Rng, case_rng};
use iced_x86::code_asm::*;
use native::*;
use std::ops::Range;

struct Flat;

impl GuestMemory for Flat {
    fn read(&mut self, addr: u64, buf: &mut [u8]) -> Result<(), u64> {
        check(addr, buf.len())?;
        // SAFETY: inside the data region.
        unsafe { std::ptr::copy_nonoverlapping(addr as *const u8, buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }
    fn write(&mut self, addr: u64, buf: &[u8]) -> Result<(), u64> {
        check(addr, buf.len())?;
        // SAFETY: inside the data region.
        unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), addr as *mut u8, buf.len()) };
        Ok(())
    }
}

fn check(addr: u64, len: usize) -> Result<(), u64> {
    let end = DATA + DATA_SIZE as u64;
    if addr < DATA || addr + len as u64 > end {
        Err(end.max(addr))
    } else {
        Ok(())
    }
}

fn context() -> &'static mut Ctx {
    // SAFETY: the thread's own context, used by nobody else meanwhile.
    unsafe { &mut *ctx::ctx() }
}

/// Runs to the syscall, doing what the runtime does on the way.
fn run(g: &mut Guest) -> Result<(), InsnFault> {
    loop {
        match g.run() {
            Exit::Insn(i) if i.kind.is_fpu_state() => fpu::emulate(context(), &i, &mut Flat)?,
            Exit::Insn(i) => {
                let r = insn::sample(context(), &i);
                insn::apply(context(), &i, &r, &mut Flat)?;
            }
            Exit::Syscall { .. } => return Ok(()),
            e => panic!("{e:?}"),
        }
    }
}

fn random_state(r: &mut Rng) -> State {
    let mut s = generate::random_state(r, generate::LOW);
    s.gpr[4] = STACK_TOP - 8192;
    s.gpr[15] = DATA + 1024;
    // Not what only the host has: it saves protection keys, and a guest has none.
    s.gpr[0] = r.pick(&[7, 0xff, 0xe7, 3, 1, 2, 4, 5, 0xe0, u64::MAX, r.0 & 0xff]) & !host_only();
    s.gpr[2] = r.pick(&[0, u64::MAX]) & !(host_only() >> 32);
    s
}

/// State components that a guest has not.
fn host_only() -> u64 {
    host_xcr0() & !cpuid::guest_xcr0()
}

/// State components that the host's system has enabled.
fn host_xcr0() -> u64 {
    if cpuid::guest_xcr0() == 0 {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: a guest has such components only where the processor has the instruction and the system uses it.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

type Emit = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

/// Native and emulated runs of one instruction at [r15].
fn compare(name: &str, emit: Emit, image: impl Fn(&mut Rng, &mut [u8]), ignore: &[Range<usize>]) {
    let mut a = CodeAssembler::new(64).unwrap();
    emit(&mut a).unwrap();
    a.jmp(generate::LOW.end).unwrap();
    let code = a.assemble(CODE).unwrap();
    let mut g = Guest::new(Options::default());
    let mut native = Native::new();
    install_handler(&g.cache);
    g.code.write(CODE, &code);
    for case in 0..300 {
        let mut r = case_rng(77, case);
        let init = random_state(&mut r);
        let mut bytes = vec![0u8; 4096];
        image(&mut r, &mut bytes);
        g.data.write(DATA + 1024, &bytes);
        let (want, end) = native.run(&init, CODE, generate::LOW.end, &g.code);
        let want_data = g.data.bytes()[..8192].to_vec();
        g.data.write(DATA + 1024, &bytes);
        g.code.write(generate::LOW.end, &[0x0f, 0x05]);
        g.cache.invalidate(generate::LOW.end, generate::LOW.end + 2);
        let c = g.start();
        load_ctx(c, &init, CODE);
        // SAFETY: sets the x87 state.
        unsafe { load_x87(&init) };
        let got_end = run(&mut g);
        let mut got = State::new();
        // SAFETY: reads the x87 state.
        unsafe { save_x87(&mut got) };
        save_ctx(context(), &mut got);
        reset_x87();
        assert_eq!(
            end != End::End,
            got_end.is_err(),
            "{name} case {case}: {end:?} {got_end:?}"
        );
        let mut want = want;
        if got_end.is_err() {
            // A restore that faults, for reserved bits in MXCSR say, has loaded some registers before on some processors (Intel's
            // of 2023) and none on others (AMD's of 2021). Here it leaves all as they were.
            if let Some(d) = init.difference(&got, !0) {
                panic!("{name} case {case}: changed before a fault: {d}");
            }
            (want.zmm, want.k, want.fx) = (got.zmm, got.k, got.fx);
        }
        if let Some(d) = want.difference(&got, !0) {
            panic!("{name} case {case} rax {:#x}: {d}", init.gpr[0]);
        }
        for (n, (w, h)) in want_data.iter().zip(&g.data.bytes()[..8192]).enumerate() {
            let at = n.wrapping_sub(1024);
            if ignore.iter().any(|i| i.contains(&at)) {
                continue;
            }
            assert!(
                w == h,
                "{name} case {case} rax {:#x}: byte {at}: want {w:#x} got {h:#x}",
                init.gpr[0]
            );
        }
    }
}

fn noise(r: &mut Rng, b: &mut [u8]) {
    for x in b {
        *x = r.next() as u8;
    }
}

/// An image that restores without a fault, mostly.
fn good_image(r: &mut Rng, b: &mut [u8], compact: bool) {
    noise(r, b);
    b[24..28].copy_from_slice(&(0x1f80u32 | (r.next() as u32 & 0xe03f)).to_le_bytes());
    for n in 0..8 {
        b[42 + 16 * n..48 + 16 * n].fill(0);
    }
    b[5] = 0;
    b[512..576].fill(0);
    let xcr0 = cpuid::guest_xcr0();
    let layout = if r.one_in(2) { xcr0 } else { xcr0 & r.next() };
    let bv = if compact {
        layout & r.next()
    } else {
        xcr0 & r.next()
    };
    b[512..520].copy_from_slice(&bv.to_le_bytes());
    if compact {
        b[520..528].copy_from_slice(&(layout | 1 << 63).to_le_bytes());
    }
    if r.one_in(20) {
        let bit = r.below(512);
        // A component that only the host has would be loaded natively.
        if host_only() >> (bit % 64) & 1 == 0 || bit >= 128 {
            b[(512 + bit / 8) as usize] ^= 1 << (bit % 8);
        }
    }
    if r.one_in(20) {
        b[27] = 1;
    }
}

/// Opcode and addresses of the last x87 instruction: zeros with us.
const POINTERS: std::ops::Range<usize> = 5..24;

#[test]
fn legacy_saves() {
    compare(
        "fxsave64",
        |a| a.fxsave64(ptr(r15)),
        noise,
        &[POINTERS, 416..512],
    );
    compare(
        "fxsave",
        |a| a.fxsave(ptr(r15)),
        noise,
        &[POINTERS, 416..512],
    );
    // Reserved words, and opcode and addresses.
    compare(
        "fnstenv",
        |a| a.fnstenv(ptr(r15)),
        noise,
        &[Range { start: 12, end: 28 }],
    );
    compare(
        "fnsave",
        |a| a.fnsave(ptr(r15)),
        noise,
        &[Range { start: 12, end: 28 }],
    );
    compare(
        "fnstenv 14",
        |a| a.db(&[0x66, 0x41, 0xd9, 0x37]),
        noise,
        &[Range { start: 6, end: 14 }],
    );
    compare(
        "fnsave 94",
        |a| a.db(&[0x66, 0x41, 0xdd, 0x37]),
        noise,
        &[Range { start: 6, end: 14 }],
    );
}

#[test]
fn legacy_restores() {
    compare(
        "fxrstor64",
        |a| a.fxrstor64(ptr(r15)),
        |r, b| good_image(r, b, false),
        &[],
    );
    compare(
        "fxrstor",
        |a| a.fxrstor(ptr(r15)),
        |r, b| good_image(r, b, false),
        &[],
    );
    compare(
        "fxrstor unaligned",
        |a| a.fxrstor(ptr(r15 + 8)),
        |r, b| good_image(r, b, false),
        &[],
    );
}

#[test]
fn extended_saves() {
    if cpuid::guest_xcr0() == 0 {
        return;
    }
    compare(
        "xsave",
        |a| a.xsave(ptr(r15)),
        |r, b| {
            noise(r, b);
            b[512..576].fill(0)
        },
        &[POINTERS, 416..512],
    );
    compare(
        "xsave64",
        |a| a.xsave64(ptr(r15)),
        |r, b| {
            noise(r, b);
            b[512..576].fill(0)
        },
        &[POINTERS, 416..512],
    );
    compare("xsave unaligned", |a| a.xsave64(ptr(r15 + 32)), noise, &[]);
    if cpuid::guest_cpuid(0xd, 1).eax & 2 != 0 {
        compare(
            "xsavec",
            |a| a.xsavec(ptr(r15)),
            noise,
            &[POINTERS, 416..512],
        );
        compare(
            "xsavec64",
            |a| a.xsavec64(ptr(r15)),
            noise,
            &[POINTERS, 416..512],
        );
    }
}

#[test]
fn extended_restores() {
    if cpuid::guest_xcr0() == 0 {
        return;
    }
    compare(
        "xrstor",
        |a| a.xrstor(ptr(r15)),
        |r, b| good_image(r, b, false),
        &[],
    );
    compare(
        "xrstor64",
        |a| a.xrstor64(ptr(r15)),
        |r, b| good_image(r, b, false),
        &[],
    );
    if cpuid::guest_cpuid(0xd, 1).eax & 2 != 0 {
        compare(
            "compact xrstor",
            |a| a.xrstor(ptr(r15)),
            |r, b| good_image(r, b, true),
            &[],
        );
    }
}

/// What a save wrote must not depend on which components the processor thinks are in use.
#[test]
fn initial_state_is_written() {
    if cpuid::guest_cpuid(0xd, 1).eax & 2 == 0 {
        return;
    }
    let mut g = Guest::new(Options::default());
    let mut a = CodeAssembler::new(64).unwrap();
    a.xsavec64(ptr(r15)).unwrap();
    a.syscall().unwrap();
    g.code.write(CODE, &a.assemble(CODE).unwrap());
    g.data.bytes().fill(0xcc);
    let c = g.start();
    c.gpr[15] = DATA;
    c.gpr[0] = u64::MAX;
    c.gpr[2] = u64::MAX;
    run(&mut g).unwrap();
    let d = g.data.bytes();
    let xcr0 = cpuid::guest_xcr0();
    assert_eq!(d[512..520], xcr0.to_le_bytes());
    assert_eq!(d[520..528], (xcr0 | 1 << 63).to_le_bytes());
    let size = cpuid::guest_cpuid(0xd, 1).ebx as usize;
    assert!(d[576..size].iter().all(|b| *b == 0));
    assert_eq!(d[size], 0xcc);
}

#[test]
fn other_instructions() {
    let mut g = Guest::new(Options::default());
    let mut a = CodeAssembler::new(64).unwrap();
    a.rdtsc().unwrap();
    a.mov(r8d, eax).unwrap();
    a.mov(eax, 0).unwrap();
    a.mov(ecx, 0).unwrap();
    a.cpuid().unwrap();
    a.mov(r9d, ebx).unwrap();
    a.rdrand(r10).unwrap();
    a.setb(r11b).unwrap();
    a.sgdt(ptr(r15)).unwrap();
    a.smsw(r12d).unwrap();
    a.mov(ecx, 0).unwrap();
    a.xgetbv().unwrap();
    a.mov(r13d, eax).unwrap();
    a.mov(rcx, 0x1234u64).unwrap();
    a.wrfsbase(rcx).unwrap();
    a.syscall().unwrap();
    g.code.write(CODE, &a.assemble(CODE).unwrap());
    let c = g.start();
    c.gpr[15] = DATA;
    run(&mut g).unwrap();
    assert_ne!(c.gpr[8], 0);
    assert_eq!(c.gpr[9], u64::from(cpuid::guest_cpuid(0, 0).ebx));
    assert_eq!(c.gpr[11] & 0xff, 1);
    assert_eq!(c.gpr[12], 0x8005_0033);
    assert_eq!(c.gpr[13], cpuid::guest_xcr0());
    assert_eq!(c.fs_base, 0x1234);
    assert_eq!(g.data.bytes()[8..10], [0xff, 0xff]);
    for n in 1..=24 {
        assert_eq!(InsnKind::from_u8(n).map(|k| k as u8), Some(n));
    }
    assert_eq!(InsnKind::from_u8(0), None);
    assert_eq!(InsnKind::from_u8(25), None);
}

//! Tables of rights to pages, where protection keys do the rest: only instructions that a fault could leave half done look.

mod common;

use common::*;
use crewind_x86::rights::{CheckedRange, NO_READ, NO_WRITE, page_index};
use crewind_x86::{Exit, Options};
use iced_x86::code_asm::*;

fn assemble(g: &Guest, f: impl FnOnce(&mut CodeAssembler)) {
    let mut a = CodeAssembler::new(64).unwrap();
    f(&mut a);
    a.syscall().unwrap();
    let code = a.assemble(CODE).unwrap();
    g.code.write(CODE, &code);
}

fn forbid(g: &Guest, addr: u64, bits: u8) {
    g.rights.as_ref().unwrap().bytes()[page_index(addr)] = bits;
}

/// What the check asks for that the guest stops at; None: it comes to its system call.
fn run(g: &mut Guest) -> Option<Vec<CheckedRange>> {
    match g.run() {
        Exit::Syscall { .. } => None,
        Exit::Check { site } => {
            let mut ranges = Vec::new();
            // SAFETY: the calling thread's own context.
            let ctx = unsafe { &mut *crewind_x86::ctx::ctx() };
            g.cache.check_ranges(site, ctx, &mut ranges);
            g.cache.pass_check(ctx, site);
            Some(ranges)
        }
        other => panic!("{other:?}"),
    }
}

fn span(r: &CheckedRange) -> (u64, u64, bool) {
    (r.addr, r.len, r.write)
}

#[test]
fn a_repeated_string_is_checked_as_a_whole() {
    // Direction, first element, elements of 8 bytes, the page without the right, whether that is in its way.
    let cases = [
        (false, DATA + 0x100, 3 * 512, DATA, true),
        (false, DATA + 0x100, 3 * 512, DATA + 0x2000, true),
        (false, DATA + 0x100, 3 * 512, DATA + 0x3000, true),
        (false, DATA + 0x100, 3 * 512, DATA + 0x4000, false),
        (false, DATA + 0x1000, 512, DATA, false),
        (false, DATA + 0x1000, 512, DATA + 0x2000, false),
        (false, DATA + 0x1ff9, 1, DATA + 0x2000, true),
        (true, DATA + 0x2ff8, 512, DATA + 0x1000, false),
        (true, DATA + 0x2ff8, 513, DATA + 0x1000, true),
        (true, DATA + 0x2ffc, 1, DATA + 0x3000, true),
        (false, DATA + 0x1000, 0, DATA + 0x1000, false),
    ];
    for (down, first, count, page, hit) in cases {
        let mut g = Guest::with_pages(Options::default());
        assemble(&g, |a| {
            if down {
                a.std().unwrap();
            }
            a.rep().stosq().unwrap();
            a.cld().unwrap();
        });
        forbid(&g, page, NO_WRITE);
        let ctx = g.start();
        (ctx.gpr[0], ctx.gpr[1], ctx.gpr[7]) = (0x4141_4141_4141_4141, count, first);
        let asked = run(&mut g);
        let what = format!("{down} {first:#x} {count} {page:#x}");
        assert_eq!(asked.is_some(), hit, "{what}");
        if let Some(ranges) = asked {
            assert_eq!(ctx.gpr[1], count, "{what}");
            let start = if down { first + 8 - 8 * count } else { first };
            let spans: Vec<_> = ranges.iter().map(span).collect();
            assert_eq!(spans, [(start, 8 * count, true)], "{what}");
            assert_eq!(run(&mut g), None, "{what}");
        }
        let bytes = g.data.bytes();
        let written = bytes.iter().filter(|b| **b == 0x41).count() as u64;
        assert_eq!(written, 8 * count, "{what}");
    }
}

#[test]
fn reading_needs_less_than_writing() {
    let mut g = Guest::with_pages(Options::default());
    assemble(&g, |a| a.rep().movsb().unwrap());
    for (source, dest, hit) in [
        (NO_WRITE, 0, false),
        (NO_READ | NO_WRITE, 0, true),
        (0, NO_WRITE, true),
    ] {
        forbid(&g, DATA, source);
        forbid(&g, DATA + 0x5000, dest);
        let ctx = g.start();
        (ctx.gpr[1], ctx.gpr[6], ctx.gpr[7]) = (100, DATA, DATA + 0x5000);
        assert_eq!(run(&mut g).is_some(), hit, "{source} {dest}");
    }
}

/// The low half of an address is not all that tells pages apart.
#[test]
fn four_gigabytes_apart_is_another_page() {
    let mut g = Guest::with_pages(Options::default());
    assemble(&g, |a| a.rep().lodsb().unwrap());
    let far = Region::new(DATA + (1 << 32), 4096);
    forbid(&g, far.base, NO_READ | NO_WRITE);
    for (at, hit) in [(DATA, false), (far.base, true)] {
        let ctx = g.start();
        (ctx.gpr[1], ctx.gpr[6]) = (8, at);
        assert_eq!(run(&mut g).is_some(), hit, "{at:#x}");
    }
}

#[test]
fn what_a_fault_leaves_undone_is_not_checked() {
    let mut g = Guest::with_pages(Options::default());
    assemble(&g, |a| {
        a.mov(rax, qword_ptr(rdi)).unwrap();
        a.add(qword_ptr(rdi), rax).unwrap();
        a.bts(qword_ptr(rdi), rax).unwrap();
        a.movsq().unwrap();
        a.push(rax).unwrap();
        a.movups(xmm0, xmmword_ptr(rdi)).unwrap();
    });
    g.rights.as_ref().unwrap().bytes().fill(NO_READ | NO_WRITE);
    let ctx = g.start();
    (ctx.gpr[6], ctx.gpr[7]) = (DATA, DATA + 64);
    assert_eq!(run(&mut g), None);
}

#[test]
fn a_gather_asks_for_all_its_elements() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        eprintln!("skipped: the cpu has no AVX2");
        return;
    }
    let mut g = Guest::with_pages(Options::default());
    assemble(&g, |a| {
        // vpgatherdd xmm0, [rdi + xmm1*4], xmm2
        a.db(&[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x8f]).unwrap();
    });
    let ctx = g.start();
    ctx.gpr[7] = DATA;
    for n in 0..4u32 {
        let at = 4 * n as usize;
        ctx.vec.zmm[1][at..at + 4].copy_from_slice(&(n * 1024).to_le_bytes());
        ctx.vec.zmm[2][at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    }
    let spans: Vec<_> = run(&mut g).unwrap().iter().map(span).collect();
    let all: Vec<_> = (0..4).map(|n| (DATA + 4096 * n, 4, false)).collect();
    assert_eq!(spans, all);
    assert_eq!(run(&mut g), None);
}

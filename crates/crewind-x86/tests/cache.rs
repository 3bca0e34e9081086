//! Changing code, a full cache, single steps, odd bytes.

mod common;

use common::*;
use crewind_x86::{Exit, FetchFault, HotState, Options};
use iced_x86::code_asm::*;
use proptest::prelude::*;

fn asm(at: u64, f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    f(&mut a).unwrap();
    a.assemble(at).unwrap()
}

/// A caller on one page and a callee on another that is changed.
#[test]
fn changed_code_is_translated_again() {
    for o in all_options() {
        let mut g = Guest::new(o);
        let callee = CODE + 0x3000;
        g.code.write(
            CODE,
            &asm(CODE, |a| {
                let mut l = a.create_label();
                a.mov(ebx, 3)?;
                a.set_label(&mut l)?;
                a.call(callee)?;
                a.mov(rax, callee)?;
                a.call(rax)?;
                a.dec(ebx)?;
                a.jne(l)?;
                a.syscall()
            }),
        );
        for n in 1..5i32 {
            g.code.write(
                callee,
                &asm(callee, |a| a.add(esi, n).and_then(|()| a.ret())),
            );
            assert_eq!(g.cache.invalidate(callee, callee + 1), n > 1, "{o:?}");
            let c = g.start();
            assert!(matches!(g.run(), Exit::Syscall { .. }));
            assert_eq!(c.gpr[6], 6 * n as u64, "{o:?}");
        }
        assert!(!g.cache.invalidate(callee + 0x2000, callee + 0x3000));
    }
}

/// Flags at a loop's head become alive when its code changes, though the jump lies on another page.
#[test]
fn liveness_is_a_dependency() {
    let mut g = Guest::new(Options::default());
    let head = CODE + 0x1000 - 16;
    let jump = CODE + 0x1000 + 64;
    let code = |live: bool| {
        let mut b = asm(head, |a| {
            if live { a.setb(al) } else { a.cmp(al, al) }.and_then(|()| a.jmp(jump))
        });
        b.resize((jump - head) as usize, 0x90);
        b.extend(asm(jump, |a| {
            a.dec(ebx)
                .and_then(|()| a.stc())
                .and_then(|()| a.jne(head))
                .and_then(|()| a.syscall())
        }));
        b
    };
    for live in [false, true] {
        g.code.write(head, &code(live));
        g.cache.invalidate(head, head + 16);
        let c = g.start();
        c.rip = jump;
        c.gpr[3] = 5;
        assert!(matches!(g.run(), Exit::Syscall { .. }));
        assert_eq!(c.gpr[0] & 0xff, u64::from(live));
    }
}

#[test]
fn a_full_cache_is_flushed() {
    // Functions that each jump to the next: far more code than the smallest cache holds.
    let mut g = Guest::with_cache(Options::default(), 256 << 10);
    let mut a = CodeAssembler::new(64).unwrap();
    let mut head = a.create_label();
    a.set_label(&mut head).unwrap();
    for n in 0..3000 {
        let mut l = a.create_label();
        a.add(rax, n).unwrap();
        a.lea(rdx, ptr(l)).unwrap();
        a.jmp(rdx).unwrap();
        a.set_label(&mut l).unwrap();
        a.test(rax, rax).unwrap();
        a.je(head).unwrap();
    }
    a.dec(rbx).unwrap();
    a.jne(head).unwrap();
    a.syscall().unwrap();
    g.code.write(CODE, &a.assemble(CODE).unwrap());
    let c = g.start();
    c.gpr[3] = 4;
    c.gpr[0] = 1;
    assert!(matches!(g.run(), Exit::Syscall { .. }));
    assert_eq!(c.gpr[0], 1 + 4 * (2999 * 3000 / 2));
    assert_eq!(c.clock(), 4 * 3000 + 3);
    assert!(g.cache.stats().flushes > 1);
}

#[test]
fn many_targets_in_one_slot() {
    // Functions 64 KiB apart share a slot of the table.
    let mut g = Guest::new(Options::default());
    let n = 12;
    for k in 0..n {
        let at = CODE + 0x10000 * (k + 1) - 0x8000;
        g.code.write(
            at,
            &asm(at, |a| a.add(rax, k as i32).and_then(|()| a.ret())),
        );
    }
    g.code.write(
        CODE,
        &asm(CODE, |a| {
            let mut l = a.create_label();
            let mut m = a.create_label();
            a.mov(ebx, 100)?;
            a.set_label(&mut l)?;
            a.mov(rdx, CODE + 0x8000)?;
            a.mov(esi, n as u32)?;
            a.set_label(&mut m)?;
            a.call(rdx)?;
            a.add(rdx, 0x10000)?;
            a.dec(esi)?;
            a.jne(m)?;
            a.dec(ebx)?;
            a.jne(l)?;
            a.syscall()
        }),
    );
    let c = g.start();
    assert!(matches!(g.run(), Exit::Syscall { .. }));
    assert_eq!(c.gpr[0], 100 * (n * (n - 1) / 2));
    let misses = g.cache.stats().indirect_misses;
    assert!(misses <= n + 2, "{misses} misses");
    // Take one out of the middle of the chain.
    let at = CODE + 0x50000 - 0x8000;
    g.code
        .write(at, &asm(at, |a| a.add(rax, 1000).and_then(|()| a.ret())));
    assert!(g.cache.invalidate(at, at + 16));
    let c = g.start();
    assert!(matches!(g.run(), Exit::Syscall { .. }));
    assert_eq!(c.gpr[0], 100 * (n * (n - 1) / 2 - 4 + 1000));
    assert!(g.cache.stats().indirect_misses <= misses + 2);
}

#[test]
fn steps_do_one_instruction() {
    let code = asm(CODE, |a| {
        let mut l = a.create_label();
        let mut f = a.create_label();
        let mut m = a.create_label();
        a.jmp(m)?;
        a.set_label(&mut f)?;
        a.add(rax, 3)?;
        a.ret()?;
        a.set_label(&mut m)?;
        a.mov(ebx, 2)?;
        a.set_label(&mut l)?;
        a.call(f)?;
        a.cmp(rax, 4)?;
        a.dec(ebx)?;
        a.jne(l)?;
        a.syscall()
    });
    let mut g = Guest::new(Options::default());
    g.code.write(CODE, &code);
    let c = g.start();
    let mut n = 0;
    let exit = loop {
        match g.step() {
            Exit::Stepped => n += 1,
            e => break e,
        }
    };
    assert!(matches!(exit, Exit::Syscall { .. }));
    assert_eq!(n, 2 + 2 * 6);
    assert_eq!((c.gpr[0], c.clock()), (6, 2 + 2 + 1));
    assert!(g.src.translated.borrow().is_empty());
    let before = g.cache.stats();
    let c = g.start();
    assert!(matches!(g.run(), Exit::Syscall { .. }));
    assert_eq!((c.gpr[0], c.clock()), (6, 5));
    assert_eq!(before.fragments, 0);
}

#[test]
fn code_ends_where_its_mapping_ends() {
    let mut g = Guest::new(Options::default());
    let end = CODE + 0x5000;
    g.src.ranges = vec![(CODE, end)];
    // A nop, then an instruction of which the last bytes are missing.
    g.code.write(end - 3, &[0x90, 0x48, 0x05]);
    let c = g.start();
    c.rip = end - 3;
    assert_eq!(g.run(), Exit::FetchFault { addr: end });
    assert_eq!(c.rip, end - 2);
    c.rip = end + 0x10;
    assert_eq!(g.run(), Exit::FetchFault { addr: end + 0x10 });
    // A call there has been done.
    g.code.write(CODE, &asm(CODE, |a| a.call(end)));
    let c = g.start();
    assert_eq!(g.run(), Exit::FetchFault { addr: end });
    assert_eq!((c.rip, c.gpr[4]), (end, STACK_TOP - 4096 - 8));
    let f = FetchFault { addr: 1 };
    assert_eq!(f.addr, 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    /// Whatever the bytes are, translating them does not panic, and they are covered by what is reported as read.
    #[test]
    fn any_bytes_translate(bytes in proptest::collection::vec(any::<u8>(), 4096), max in 1usize..100, bits in 0u32..32) {
        let o = Options {
            max_block_insns: max,
            superblocks: bits & 1 != 0,
            unroll: bits & 1 != 0,
            chaining: bits & 2 != 0,
            inline_lookup: bits & 4 != 0,
            flags_liveness: bits & 8 != 0,
 hot_state: if bits & 16 == 0 { HotState::Shared } else { HotState::PerThread },
            bmi2: true,
        };
        let mut g = Guest::guarded(o);
        g.code.write(CODE, &bytes);
        g.src.ranges = vec![(CODE, CODE + 4096)];
        for pc in (CODE..CODE + 4096).step_by(3) {
            let _ = g.cache.prepare(pc, &g.src);
        }
        prop_assert!(g.src.translated.borrow().iter().all(|(a, b)| a < b && *a >= CODE && *b <= CODE + 4096));
    }
}

/// Absolute addresses at both ends of the numbers once made one range of nearly everything, whose code filled the cache.
#[test]
fn absolute_addresses_far_apart_are_not_one_range() {
    let mut g = Guest::guarded(Options::default());
    let mut code = Vec::new();
    for addr in [0x7fff_ffff_ffff_fff0u64, 0x8000_0000_0000_0010, DATA] {
        // mov al, [addr]
        code.push(0xa0);
        code.extend_from_slice(&addr.to_le_bytes());
    }
    code.extend_from_slice(&[0x0f, 0x05]);
    g.code.write(CODE, &code);
    g.rights.as_ref().expect("checked").bytes().fill(3);
    let c = g.start();
    let Exit::Check { site } = g.run() else {
        panic!("not checked")
    };
    let mut ranges = Vec::new();
    g.cache.check_ranges(site, c, &mut ranges);
    assert!(ranges.iter().all(|r| r.len == 1), "{ranges:x?}");
    assert!(g.cache.stats().cache_bytes < 1000);
}

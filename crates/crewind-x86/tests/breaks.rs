//! Breakpoints, and checks of rights that begin and end while a program runs.

mod common;

use common::*;
use crewind_x86::rights::{NO_WRITE, RIGHTS_LEN, RIGHTS_SLACK, index};
use crewind_x86::{Exit, HotState, Options};

/// Adds 5, 4, ... 1 to rbx, then makes a system call. `BODY` is in the middle of the loop.
const PROGRAM: [u8; 17] = [
    0xb9, 5, 0, 0, 0, // mov ecx, 5
    0x01, 0xcb, // add ebx, ecx
    0x90, // nop
    0x89, 0x1f, // mov [rdi], ebx
    0xff, 0xc9, // dec ecx
    0x75, 0xf7, // jnz add
    0x0f, 0x05, // syscall
    0x90,
];
const BODY: u64 = CODE + 8;
const END: u64 = CODE + 14;

fn start(g: &mut Guest) -> &'static mut crewind_x86::ctx::Ctx {
    g.code.write(CODE, &PROGRAM);
    let c = g.start();
    c.gpr[7] = DATA;
    c
}

#[test]
fn every_visit_is_seen_under_all_options() {
    for options in all_options() {
        let mut g = Guest::new(options);
        let c = start(&mut g);
        // Once without, so that translations are there to be thrown away.
        assert_eq!(g.run(), Exit::Syscall { next: END + 2 });
        let without = (c.clock(), c.gpr);
        let c = start(&mut g);
        g.cache.set_breaks(&[BODY]);
        let mut clocks = Vec::new();
        loop {
            match g.run() {
                Exit::Break => {
                    assert_eq!(c.rip, BODY);
                    clocks.push(c.clock());
                    // Again and again, until it is stepped over.
                    assert_eq!(g.run(), Exit::Break);
                    assert_eq!(g.step(), Exit::Stepped);
                    assert_eq!(c.rip, BODY + 2);
                }
                Exit::Syscall { .. } => break,
                other => panic!("{other:?} with {options:?}"),
            }
        }
        assert_eq!(clocks, [0, 1, 2, 3, 4], "{options:?}");
        assert_eq!((c.clock(), c.gpr), without, "{options:?}");
        g.cache.set_breaks(&[END]);
        let c = start(&mut g);
        assert_eq!(g.run(), Exit::Break);
        assert_eq!(c.rip, END);
        g.cache.set_breaks(&[]);
        assert_eq!(g.run(), Exit::Syscall { next: END + 2 });
    }
}

#[test]
fn rights_are_checked_only_while_they_are() {
    let options = Options::default();
    assert_eq!(options.hot_state, HotState::Shared);
    let mut g = Guest::new(options);
    let table = Region::new(RIGHTS, RIGHTS_LEN + RIGHTS_SLACK);
    table.bytes()[index(DATA)] = NO_WRITE;
    for _ in 0..3 {
        start(&mut g);
        assert_eq!(g.run(), Exit::Syscall { next: END + 2 });
        g.cache.set_rights(Some(RIGHTS)).unwrap();
        let c = start(&mut g);
        let mut seen = 0;
        loop {
            match g.run() {
                // It may be for a later instruction, and for many rounds: one by one they are seen exactly.
                Exit::Check { .. } => {
                    if let Exit::Check { site } = g.step() {
                        let mut ranges = Vec::new();
                        g.cache.check_ranges(site, c, &mut ranges);
                        assert!(ranges.iter().any(|r| r.addr == DATA && r.write));
                        g.cache.pass_check(c, site);
                        assert_eq!((c.rip, g.step()), (BODY, Exit::Stepped));
                        seen += 1;
                    }
                }
                Exit::Syscall { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((seen, c.gpr[3]), (5, 15));
        g.cache.set_rights(None).unwrap();
    }
}

//! Small programs with known results.

mod common;

use common::*;
use crewind_x86::{Exit, Options};
use iced_x86::code_asm::*;

fn fib(n: i32) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut f = a.create_label();
    let mut small = a.create_label();
    a.mov(edi, n).unwrap();
    a.call(f).unwrap();
    a.syscall().unwrap();
    a.set_label(&mut f).unwrap();
    a.push(rbx).unwrap();
    a.mov(ebx, edi).unwrap();
    a.mov(eax, edi).unwrap();
    a.cmp(edi, 2).unwrap();
    a.jl(small).unwrap();
    a.lea(edi, ptr(rbx - 1)).unwrap();
    a.call(f).unwrap();
    a.push(rax).unwrap();
    a.lea(edi, ptr(rbx - 2)).unwrap();
    a.call(f).unwrap();
    a.pop(rcx).unwrap();
    a.add(eax, ecx).unwrap();
    a.set_label(&mut small).unwrap();
    a.pop(rbx).unwrap();
    a.ret().unwrap();
    a.assemble(CODE).unwrap()
}

#[test]
fn fib_under_all_options() {
    let mut clocks = Vec::new();
    for o in all_options() {
        let mut g = Guest::new(o);
        g.code.write(CODE, &fib(15));
        let c = g.start();
        let exit = g.run();
        assert!(
            matches!(exit, Exit::Syscall { .. }),
            "{o:?} {exit:?} rip {:#x}",
            c.rip
        );
        assert_eq!(c.gpr[0], 610, "{o:?}");
        assert_eq!(c.gpr[4], STACK_TOP - 4096);
        clocks.push(c.clock());
    }
    // Calls to fib: 1973; backward ones tick: all but the first; returns: 1973.
    assert!(clocks.iter().all(|c| *c == 1973 * 2 - 1), "{clocks:?}");
}

#[test]
fn limit_is_exact() {
    for o in [
        Options::default(),
        Options {
            flags_liveness: false,
            ..Options::default()
        },
    ] {
        let mut g = Guest::new(o);
        g.code.write(CODE, &fib(12));
        let c = g.start();
        let mut ticks = 0;
        loop {
            c.set_limit(c.clock() + 7);
            match g.run() {
                Exit::Tick => {
                    ticks += 1;
                    assert_eq!(c.clock(), ticks * 7);
                }
                Exit::Syscall { .. } => break,
                e => panic!("{e:?}"),
            }
        }
        assert_eq!(c.gpr[0], 144);
        assert_eq!(c.clock(), 465 * 2 - 1);
    }
}

//! The clock against its definition: native execution is single-stepped and its transfers are counted.

mod common;
mod generate;
mod native;

use common::*;
use crewind_x86::ctx;
use crewind_x86::{Exit, HotState, Options};
use generate::*;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use native::*;

/// Single-steps the program natively: the pcs it went through.
fn trace(native: &mut Native, init: &State, g: &Guest, p: &Program) -> (Vec<u64>, End) {
    g.code.write(CODE, &p.bytes);
    let mut init = init.clone();
    init.rflags |= 0x100;
    TRACE.with(|t| {
        // SAFETY: nothing runs natively now.
        let t = unsafe { &mut *t.get() };
        t.clear();
        t.reserve(1 << 20);
    });
    let (_, end) = native.run(&init, LOW.code, LOW.end, &g.code);
    TRACE.with(|t| {
        // SAFETY: as above.
        let t = unsafe { &*t.get() };
        assert!(t.len() < t.capacity());
        (
            t.iter()
                .copied()
                .filter(|pc| (CODE..CODE + 0x10000).contains(pc))
                .collect(),
            end,
        )
    })
}

fn decode(g: &Guest, pc: u64) -> Instruction {
    let o = (pc - CODE) as usize;
    Decoder::with_ip(64, &g.code.bytes()[o..o + 15], pc, DecoderOptions::AMD).decode()
}

/// Clock after each transfer that counts, with the pc it led to.
fn ticks(g: &Guest, trace: &[u64]) -> Vec<u64> {
    let mut targets = Vec::new();
    for w in trace.windows(2) {
        let i = decode(g, w[0]);
        let counts = match i.flow_control() {
            FlowControl::Return | FlowControl::IndirectBranch | FlowControl::IndirectCall => true,
            FlowControl::UnconditionalBranch | FlowControl::Call => w[1] <= w[0],
            FlowControl::ConditionalBranch => {
                w[1] == i.near_branch_target() && w[1] <= w[0] && w[1] != i.next_ip()
            }
            _ => false,
        };
        if counts {
            targets.push(w[1]);
        }
    }
    targets
}

struct Case {
    p: Program,
    init: State,
    image: Vec<u8>,
}

fn case(seed: u64, n: u64) -> Option<Case> {
    let mut r = case_rng(seed, n);
    let mut p = program(&mut r, LOW);
    if p.text.contains("fs:") || p.text.contains("int3") {
        return None;
    }
    // Flags in memory would show the trap flag: push rax instead.
    let all: Vec<Instruction> = Decoder::with_ip(64, &p.bytes, CODE, DecoderOptions::AMD)
        .iter()
        .collect();
    for i in all
        .iter()
        .filter(|i| matches!(i.mnemonic(), Mnemonic::Pushf | Mnemonic::Pushfq))
    {
        p.bytes[(i.next_ip() - 1 - CODE) as usize] = 0x50;
    }
    let init = random_state(&mut r, LOW);
    let image = (0..8192).map(|_| r.next() as u8).collect();
    Some(Case { p, init, image })
}

fn reset(g: &mut Guest, c: &Case) {
    g.data.bytes()[..8192].copy_from_slice(&c.image);
    g.stack.bytes()[STACK_SIZE - 16384..].fill(0x5a);
    g.code.write(CODE, &c.p.bytes);
}

#[test]
fn totals_are_architectural_under_all_options() {
    let mut checked = 0;
    let n = env("CLOCK_CASES", 60);
    let mut expected = Vec::new();
    {
        let mut g = Guest::new(Options::default());
        let mut native = Native::new();
        install_handler(&g.cache);
        for k in 0..n {
            let Some(c) = case(5, k) else { continue };
            reset(&mut g, &c);
            let (t, end) = trace(&mut native, &c.init, &g, &c.p);
            if end == End::End {
                expected.push((k, ticks(&g, &t)));
            }
        }
    }
    for (o, guarded) in all_variants() {
        let mut g = Guest::variant(o, guarded);
        install_handler(&g.cache);
        for (k, targets) in &expected {
            let Some(c) = case(5, *k) else { continue };
            reset(&mut g, &c);
            g.code.write(LOW.end, &[0x0f, 0x05]);
            g.cache.invalidate(CODE, CODE + 0x10000);
            let x = g.start();
            load_ctx(x, &c.init, CODE);
            // SAFETY: sets the x87 state.
            unsafe { load_x87(&c.init) };
            let exit = g.run();
            reset_x87();
            assert!(
                matches!(exit, Exit::Syscall { .. }),
                "{o:?} {exit:?}\n{}",
                c.p.text
            );
            assert_eq!(
                x.clock(),
                targets.len() as u64,
                "{o:?} case {k}\n{}",
                c.p.text
            );
            checked += 1;
        }
    }
    assert!(checked > 500, "{checked}");
}

/// Every tick can be stopped at, and shows the target's pc and the same registers as any other way.
#[test]
fn every_tick_is_a_stop() {
    let options = [
        Options::default(),
        Options {
            hot_state: HotState::PerThread,
            ..Options::default()
        },
        Options {
            flags_liveness: false,
            ..Options::default()
        },
        Options {
            chaining: false,
            inline_lookup: false,
            superblocks: false,
            ..Options::default()
        },
    ];
    for k in 0..env("CLOCK_CASES", 60) {
        let Some(c) = case(9, k) else { continue };
        let targets = {
            let mut g = Guest::new(Options::default());
            let mut native = Native::new();
            install_handler(&g.cache);
            reset(&mut g, &c);
            let (t, end) = trace(&mut native, &c.init, &g, &c.p);
            if end != End::End {
                continue;
            }
            ticks(&g, &t)
        };
        let mut states: Option<Vec<(u64, u64, [u64; 16])>> = None;
        for o in options {
            let mut g = Guest::new(o);
            install_handler(&g.cache);
            reset(&mut g, &c);
            g.code.write(LOW.end, &[0x0f, 0x05]);
            let x = g.start();
            load_ctx(x, &c.init, CODE);
            // SAFETY: sets the x87 state.
            unsafe { load_x87(&c.init) };
            let mut seen = Vec::new();
            loop {
                // SAFETY: the thread's own context.
                let x = unsafe { &mut *ctx::ctx() };
                if seen.len() % 2 == 0 {
                    x.set_limit(x.clock() + 1);
                } else {
                    x.set_limit(u64::MAX);
                    x.stop_at_next_tick();
                }
                match g.run() {
                    Exit::Tick => {
                        assert_eq!(x.clock(), seen.len() as u64 + 1);
                        seen.push((x.rip, x.rflags, x.gpr));
                    }
                    Exit::Syscall { .. } => break,
                    e => panic!("{e:?}\n{}", c.p.text),
                }
            }
            reset_x87();
            assert_eq!(
                seen.iter().map(|s| s.0).collect::<Vec<_>>(),
                targets,
                "{o:?}\n{}",
                c.p.text
            );
            match &states {
                None => states = Some(seen),
                Some(s) => assert!(*s == seen, "{o:?}\n{}", c.p.text),
            }
        }
    }
}

/// A limit is met exactly however far it is away, also in an unrolled loop, whose ticks take turns on the counters.
#[test]
fn limits_in_loops_are_met_exactly() {
    const ROUNDS: u32 = 3000;
    let mut code = vec![0xb9];
    code.extend_from_slice(&ROUNDS.to_le_bytes());
    // sub ecx, 1; jne -5; syscall
    code.extend_from_slice(&[0x83, 0xe9, 1, 0x75, 0xfb, 0x0f, 0x05]);
    for o in all_options() {
        let mut g = Guest::new(o);
        g.code.write(CODE, &code);
        for limit in [1, 2, 3, 4, 5, 6, 7, 8, 100, 1001, 2998, 2999] {
            let c = g.start();
            c.set_limit(limit);
            assert_eq!(g.run(), Exit::Tick, "{o:?}");
            assert_eq!((c.clock(), c.rip), (limit, CODE + 5), "{o:?}");
            assert_eq!(c.gpr[1], u64::from(ROUNDS) - limit, "{o:?}");
            c.set_limit(u64::MAX);
            assert!(matches!(g.run(), Exit::Syscall { .. }));
            assert_eq!(c.clock(), u64::from(ROUNDS) - 1, "{o:?}");
        }
    }
}

/// The same in loops with calls: directly, backwards and forwards, within each other, and by way of a jump that memory tells.
#[test]
fn limits_in_loops_with_calls_are_met_exactly() {
    use iced_x86::code_asm::*;
    const ROUNDS: i32 = 60;
    let program = || {
        let mut a = CodeAssembler::new(64)?;
        let [
            mut main,
            mut head,
            mut inner,
            mut outer,
            mut plt,
            mut late,
            mut even,
        ] = std::array::from_fn(|_| a.create_label());
        a.jmp(main)?;
        a.set_label(&mut inner)?;
        a.add(rax, qword_ptr(r15 + 8))?;
        a.ret()?;
        a.set_label(&mut outer)?;
        a.push(rbx)?;
        a.call(inner)?;
        a.pop(rbx)?;
        a.ret()?;
        a.set_label(&mut plt)?;
        a.jmp(qword_ptr(DATA))?;
        a.set_label(&mut main)?;
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut head)?;
        a.add(qword_ptr(r15 + 8), 3)?;
        a.call(outer)?;
        // Now and then the jump of the PLT goes elsewhere, and a round takes another way.
        a.lea(rdx, ptr(late))?;
        a.lea(rsi, ptr(inner))?;
        a.test(ecx, 7)?;
        a.cmove(rdx, rsi)?;
        a.mov(qword_ptr(r15), rdx)?;
        a.call(plt)?;
        a.test(ecx, 15)?;
        a.je(even)?;
        a.call(late)?;
        a.sub(ecx, 1)?;
        a.jne(head)?;
        a.syscall()?;
        a.set_label(&mut even)?;
        a.xor(rax, rcx)?;
        a.sub(ecx, 1)?;
        a.jne(head)?;
        a.syscall()?;
        a.set_label(&mut late)?;
        a.lea(rax, ptr(rax + rax * 2))?;
        a.ret()?;
        a.assemble(CODE)
    };
    let mut code = program().expect("a program");
    // The assembler has no rip-relative operand for a number: jmp [disp32] is as good natively, but not followed.
    let at = code
        .windows(3)
        .position(|w| w == [0xff, 0x24, 0x25])
        .expect("the jump of the PLT");
    let rel = DATA.wrapping_sub(CODE + at as u64 + 6) as i32;
    code.splice(
        at..at + 7,
        [&[0xff, 0x25][..], &rel.to_le_bytes(), &[0x90]].concat(),
    );
    let mut expected: Option<Vec<(u64, [u64; 16])>> = None;
    for (o, guarded) in all_variants() {
        let mut g = Guest::variant(o, guarded);
        g.code.write(CODE, &code);
        let begin = |g: &mut Guest| {
            g.data.bytes()[..64].fill(0);
            let c = g.start();
            c.gpr[15] = DATA;
            c
        };
        // With each limit from the start, once the loop is translated.
        let c = begin(&mut g);
        assert!(matches!(g.run(), Exit::Syscall { .. }), "{o:?}");
        let all = c.clock();
        let mut seen = Vec::new();
        let limits: Vec<u64> = match o.max_block_insns {
            64 => (1..=all).collect(),
            _ => (1..=all).step_by(17).collect(),
        };
        for limit in limits {
            let c = begin(&mut g);
            c.set_limit(limit);
            assert_eq!(g.run(), Exit::Tick, "{o:?}");
            assert_eq!(c.clock(), limit, "{o:?}");
            seen.push((c.rip, c.gpr));
        }
        if o.max_block_insns == 64 {
            match &expected {
                None => expected = Some(seen),
                Some(e) => assert!(*e == seen, "{o:?}"),
            }
        }
    }
}

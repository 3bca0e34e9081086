//! Event sites: a run can be stopped at any dynamic instruction by its clock and pc, in the state that stepping
//! there gives.

mod common;
mod generate;
mod native;

use common::*;
use crewind_x86::ctx::{self, Ctx};
use crewind_x86::{CodeSource, Exit, HotState, Options};
use generate::*;
use native::{State, install_handler, load_ctx, load_x87, reset_x87, set_gs};

/// Where an instruction is executed, and with which registers.
#[derive(Clone, Debug, PartialEq)]
struct At {
    clock: u64,
    pc: u64,
    gpr: [u64; 16],
    /// Without those that are dead.
    flags: u64,
    zmm0: [u8; 64],
}

fn context() -> &'static mut Ctx {
    // SAFETY: the thread's own context, used by nobody else meanwhile.
    unsafe { &mut *ctx::ctx() }
}

fn here(src: &Source) -> At {
    let c = context();
    let bytes = src.fetch(c.rip).expect("code");
    At {
        clock: c.clock(),
        pc: c.rip,
        gpr: c.gpr,
        flags: c.rflags & !crewind_x86::dead_flags(c.rip, bytes),
        zmm0: c.vec.zmm[0],
    }
}

struct Case {
    p: Program,
    init: State,
    image: Vec<u8>,
}

fn case(n: u64) -> Case {
    let mut r = case_rng(11, n);
    let p = program(&mut r, LOW);
    let init = random_state(&mut r, LOW);
    let image = (0..8192).map(|_| r.next() as u8).collect();
    Case { p, init, image }
}

fn start(g: &mut Guest, c: &Case) {
    g.data.bytes()[..8192].copy_from_slice(&c.image);
    g.stack.bytes()[STACK_SIZE - 16384..].fill(0x5a);
    g.code.write(CODE, &c.p.bytes);
    g.code.write(LOW.end, &[0x0f, 0x05]);
    let x = g.start();
    load_ctx(x, &c.init, CODE);
    // SAFETY: sets the x87 state.
    unsafe { load_x87(&c.init) };
    set_gs(64);
}

fn end() {
    set_gs(0);
    reset_x87();
}

/// Every instruction the program executes, by steps. None if it does not come to its end.
fn steps(c: &Case) -> Option<Vec<At>> {
    let mut g = Guest::new(Options::default());
    install_handler(&g.cache);
    start(&mut g, c);
    let mut v = Vec::new();
    let done = loop {
        if g.src.fetch(context().rip).is_err() {
            break false;
        }
        v.push(here(&g.src));
        match g.step() {
            Exit::Stepped => {}
            Exit::Syscall { .. } => break true,
            _ => break false,
        }
        if v.len() > 5000 {
            break false;
        }
    };
    end();
    done.then_some(v)
}

fn variants() -> Vec<(Options, bool)> {
    let d = Options::default();
    vec![
        (d, false),
        (d, true),
        (
            Options {
                hot_state: HotState::PerThread,
                ..d
            },
            false,
        ),
        (
            Options {
                flags_liveness: false,
                ..d
            },
            false,
        ),
        (
            Options {
                max_block_insns: 3,
                chaining: false,
                inline_lookup: false,
                ..d
            },
            true,
        ),
    ]
}

/// Every instruction is a site, and each of its executions is stopped at in turn.
#[test]
fn every_instruction_can_be_stopped_at() {
    let (mut programs, mut stops) = (0, 0);
    for n in 0..env("SITE_CASES", 60) {
        let c = case(n);
        let Some(want) = steps(&c) else { continue };
        programs += 1;
        let (o, guarded) = variants()[n as usize % variants().len()];
        let mut r = case_rng(12, n);
        let mut g = Guest::variant(o, guarded);
        install_handler(&g.cache);
        if r.one_in(2) {
            // Translations that are there are made again.
            start(&mut g, &c);
            assert!(matches!(g.run(), Exit::Syscall { .. }));
            end();
        }
        for at in &want {
            g.cache.add_event_site(at.pc);
            assert!(!g.cache.add_event_site(at.pc));
        }
        start(&mut g, &c);
        for at in &want {
            let x = context();
            x.arm_site(Some((at.clock, at.pc)));
            if r.one_in(8) {
                x.set_limit(x.clock() + 1 + r.below(3));
            }
            let exit = loop {
                match g.run() {
                    Exit::Tick => context().set_limit(u64::MAX),
                    e => break e,
                }
            };
            assert_eq!(exit, Exit::EventSite, "{o:?} {at:x?}\n{}", c.p.text);
            assert_eq!(here(&g.src), *at, "{o:?} case {n}\n{}", c.p.text);
            stops += 1;
            // Once more at the same place, then on.
            if r.one_in(8) {
                assert_eq!(g.run(), Exit::EventSite);
                assert_eq!(here(&g.src), *at);
            }
            if r.one_in(16) {
                g.cache.flush();
            }
            if r.one_in(16) {
                g.cache.invalidate(at.pc, at.pc + 1);
            }
        }
        context().arm_site(None);
        assert!(matches!(g.run(), Exit::Syscall { .. }));
        end();
    }
    eprintln!("{programs} programs, {stops} stops");
    assert!(programs > 20 && stops > 2000);
}

/// A few sites, of which one execution is stopped at; all others run on.
#[test]
fn one_execution_is_found_among_many() {
    let mut stops = 0;
    for n in 0..env("SITE_CASES", 60) {
        let c = case(n + 1000);
        let Some(want) = steps(&c) else { continue };
        let mut r = case_rng(13, n);
        let (o, _) = variants()[n as usize % variants().len()];
        let mut g = Guest::new(o);
        install_handler(&g.cache);
        for _ in 0..8 {
            let at = &want[r.below(want.len() as u64) as usize];
            g.cache.add_event_site(at.pc);
            start(&mut g, &c);
            context().arm_site(Some((at.clock, at.pc)));
            assert_eq!(g.run(), Exit::EventSite, "{o:?} {at:x?}\n{}", c.p.text);
            assert_eq!(here(&g.src), *at, "{o:?} case {n}\n{}", c.p.text);
            stops += 1;
            // Never again.
            context().arm_site(Some((at.clock.wrapping_sub(1), at.pc)));
            assert!(matches!(g.run(), Exit::Syscall { .. }));
            end();
        }
    }
    assert!(stops > 200, "{stops}");
}

/// The armed count may lie far behind the limit, which moves meanwhile.
#[test]
fn a_far_event_is_reached() {
    use iced_x86::code_asm::*;
    let mut a = CodeAssembler::new(64).unwrap();
    let mut l = a.create_label();
    a.mov(ecx, 5_000_000).unwrap();
    a.set_label(&mut l).unwrap();
    a.nop().unwrap();
    a.dec(ecx).unwrap();
    a.jne(l).unwrap();
    a.syscall().unwrap();
    let code = a.assemble(CODE).unwrap();
    for o in [
        Options::default(),
        Options {
            hot_state: HotState::PerThread,
            ..Options::default()
        },
    ] {
        let mut g = Guest::new(o);
        g.code.write(CODE, &code);
        g.cache.add_event_site(CODE + 5);
        let c = g.start();
        c.arm_site(Some((4_000_000, CODE + 5)));
        c.set_limit(1000);
        assert_eq!(g.run(), Exit::Tick);
        c.set_limit(3_999_999);
        assert_eq!(g.run(), Exit::Tick);
        assert_eq!(c.clock(), 3_999_999);
        c.set_limit(u64::MAX);
        assert_eq!(g.run(), Exit::EventSite);
        assert_eq!((c.clock(), c.rip), (4_000_000, CODE + 5));
        assert_eq!(c.gpr[1], 1_000_000);
        // Armed exactly at the limit: the tick comes first.
        c.arm_site(Some((4_500_000, CODE + 5)));
        c.set_limit(4_500_000);
        assert_eq!(g.run(), Exit::Tick);
        assert_eq!(g.run(), Exit::EventSite);
        assert_eq!((c.clock(), c.rip), (4_500_000, CODE + 5));
        c.arm_site(None);
        c.set_limit(u64::MAX);
        assert!(matches!(g.run(), Exit::Syscall { .. }));
    }
}

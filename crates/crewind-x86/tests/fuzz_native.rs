//! Random programs run natively and translated, from the same state: everything the guest can see must be equal,
//! at the end and at faults. `FUZZ_CASES` sets the number of programs, `FUZZ_SEED` where to begin, `FUZZ_CASE` runs
//! one.

mod common;
mod generate;
mod native;

use common::*;
use crewind_x86::ctx;
use crewind_x86::rights::{self, CheckedRange, NO_READ, NO_WRITE};
use crewind_x86::{Exit, HotState, Options};
use generate::*;
use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess, Register};
use native::*;

/// What the guest has the rights to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rights {
    Unchecked,
    All,
    /// Few, other ones at each check.
    Random,
}

/// Fills the part of the table for data and stack.
fn shuffle(g: &Guest, r: &mut Rng, place: Place) {
    let Some(table) = &g.rights else { return };
    let few = r.below(5);
    for (start, len) in [
        (place.data, 16384),
        (STACK_TOP - 16384, 16384),
        (STACK_TOP, 4096),
        (64, 256),
    ] {
        for a in (start..start + len).step_by(64) {
            let right = if r.below(5) < few {
                0
            } else {
                r.pick(&[0, NO_WRITE, NO_READ | NO_WRITE])
            };
            table.bytes()[rights::index(a)] = right;
        }
    }
}

/// Runs until something else than a check. Each check is answered, and everything else changed.
fn run(g: &mut Guest, rights: Rights, r: &mut Rng, place: Place, asked: &mut u64) -> Exit {
    if rights == Rights::Random {
        shuffle(g, r, place);
    }
    let mut infos = InstructionInfoFactory::new();
    loop {
        let exit = g.run();
        let Exit::Check { site } = exit else {
            return exit;
        };
        assert_eq!(rights, Rights::Random, "rights were given");
        *asked += 1;
        // SAFETY: the thread's own context.
        let c = unsafe { &mut *ctx::ctx() };
        let mut ranges = Vec::new();
        g.cache.check_ranges(site, c, &mut ranges);
        assert_covered(&mut infos, c, &g.src, &ranges);
        shuffle(g, r, place);
        let mut pass = r.one_in(2);
        if !pass || r.one_in(2) {
            for x in &ranges {
                let mut a = x.addr & !63;
                while a < x.addr.saturating_add(x.len.min(1 << 20)) {
                    let t = &mut g.rights.as_ref().expect("checked").bytes()[rights::index(a)];
                    *t &= if x.write { 0 } else { NO_WRITE };
                    if *t == NO_READ {
                        *t = 0;
                    }
                    a += 64;
                }
            }
        }
        // Without a look at the table these are never passed.
        pass |= ranges.is_empty() || ranges.iter().any(|x| x.len > 1 << 20) || r.one_in(4);
        if pass {
            g.cache.pass_check(c, site);
            match r.below(12) {
                0 => g.cache.flush(),
                1 => {
                    g.cache.invalidate(c.rip, c.rip + 1);
                }
                _ => {}
            }
        }
    }
}

/// What the instruction at the pc accesses must have been asked for.
fn assert_covered(
    infos: &mut InstructionInfoFactory,
    c: &crewind_x86::ctx::Ctx,
    src: &Source,
    ranges: &[CheckedRange],
) {
    use crewind_x86::CodeSource;
    let bytes = src.fetch(c.rip).expect("code");
    let i = Decoder::with_ip(64, bytes, c.rip, DecoderOptions::AMD).decode();
    if i.is_vsib() || i.is_privileged() {
        return;
    }
    for m in infos.info(&i).used_memory() {
        if matches!(m.access(), OpAccess::NoMemAccess | OpAccess::None) {
            continue;
        }
        let reg = |r: Register| -> u64 {
            if !r.is_gpr() {
                return 0;
            }
            let v = c.gpr[r.full_register().number()];
            match r.size() {
                8 => v,
                4 => v & 0xffff_ffff,
                _ => v & 0xff,
            }
        };
        if i.has_rep_prefix() && i.is_string_instruction() && c.gpr[1] == 0 {
            continue;
        }
        let mut at = reg(m.base())
            .wrapping_add(reg(m.index()).wrapping_mul(m.scale().into()))
            .wrapping_add(m.displacement());
        if m.segment() == Register::FS {
            at = at.wrapping_add(c.fs_base);
        }
        let end = at.wrapping_add(m.memory_size().size() as u64);
        let write = !matches!(m.access(), OpAccess::Read | OpAccess::CondRead);
        assert!(
            ranges.iter().any(|r| r.addr <= at
                && end <= r.addr.wrapping_add(r.len)
                && (!write || r.write)
                && (write || r.read)),
            "{i}: {at:#x}..{end:#x} is not in {ranges:x?}"
        );
    }
}

fn run_cases(place: Place, seed: u64, cases: u64) {
    let options = [
        Options::default(),
        Options {
            bmi2: false,
            ..Options::default()
        },
        Options {
            superblocks: false,
            ..Options::default()
        },
        Options {
            hot_state: HotState::PerThread,
            ..Options::default()
        },
        Options {
            flags_liveness: false,
            ..Options::default()
        },
        Options {
            max_block_insns: 2,
            ..Options::default()
        },
        Options {
            chaining: false,
            inline_lookup: false,
            ..Options::default()
        },
    ];
    let (mut ends, mut faults, mut asked) = (0, 0, 0);
    let modes = [Rights::Random, Rights::Unchecked, Rights::All];
    let mut all = Vec::new();
    for o in options {
        let shared = o.hot_state == HotState::Shared;
        all.extend(
            modes
                .iter()
                .filter(|m| shared || **m == Rights::Unchecked)
                .map(|m| (o, *m)),
        );
    }
    for (n, (o, rights)) in all.iter().enumerate() {
        let mut g = Guest::variant(*o, *rights != Rights::Unchecked);
        // As for a guest that handles faults.
        let show = n % 4 == 3;
        if show {
            g.cache.show_flags_at_faults();
        }
        let (code, data);
        if place.code != CODE {
            code = Region::new(place.code, 1 << 16);
            data = Region::new(place.data, DATA_SIZE);
            g.src.ranges.push((place.code, place.code + (1 << 16)));
        } else {
            code = Region {
                base: CODE,
                size: 1 << 16,
            };
            data = Region {
                base: DATA,
                size: DATA_SIZE,
            };
        }
        let mut native = Native::new();
        install_handler(&g.cache);
        let one = std::env::var("FUZZ_CASE")
            .ok()
            .and_then(|v| v.parse::<u64>().ok());
        let cases: Box<dyn Iterator<Item = u64>> = match one {
            Some(c) => Box::new(c..=c),
            None => Box::new((n as u64..cases).step_by(all.len())),
        };
        for case in cases {
            let mut r = case_rng(seed, case);
            let p = program(&mut r, place);
            let init = random_state(&mut r, place);
            let mut image = vec![0u8; 8192];
            for b in &mut image {
                *b = r.next() as u8;
            }
            let reset = |bytes: &[u8]| {
                data.bytes()[..8192].copy_from_slice(&image);
                g.stack.bytes()[STACK_SIZE - 16384..].fill(0x5a);
                code.write(place.code, bytes);
            };
            // Native.
            let mut as_gs = p.bytes.clone();
            for o in fs_prefixes(&p, place) {
                as_gs[o] = 0x65;
            }
            reset(&as_gs);
            let want = native.run(&init, place.code, place.end, &code);
            let want_data = data.bytes()[..8192].to_vec();
            let want_stack = g.stack.bytes()[STACK_SIZE - 16384..].to_vec();
            // Translated.
            reset(&p.bytes);
            code.write(place.end, &[0x0f, 0x05]);
            g.cache.invalidate(place.code, place.code + (1 << 16));
            let c = g.start();
            load_ctx(c, &init, place.code);
            // SAFETY: sets the x87 state for the guest.
            unsafe { load_x87(&init) };
            set_gs(64);
            let exit = run(&mut g, *rights, &mut r, place, &mut asked);
            set_gs(0);
            let mut got = State::new();
            // SAFETY: reads the x87 state.
            unsafe { save_x87(&mut got) };
            // SAFETY: the thread's own context.
            save_ctx(unsafe { &*ctx::ctx() }, &mut got);
            reset_x87();
            let describe = |what: &str| {
                format!(
                    "{what}\nseed {seed} case {case} {exit:?} {o:?} {rights:?} native {:?}\n{}",
                    want.1, p.text
                )
            };
            match (exit, want.1) {
                (Exit::Syscall { .. }, End::End) => ends += 1,
                (Exit::Fault, End::Fault { pc, .. }) => {
                    faults += 1;
                    let c = g_ctx();
                    assert_eq!(c.rip, pc, "{}", describe("fault pc"));
                }
                // The cpu raises #GP at the transfer, here it is the target that cannot be fetched.
                (Exit::FetchFault { addr }, End::Fault { .. })
                    if addr.wrapping_add(1 << 47) >= 1 << 48 =>
                {
                    continue;
                }
                (Exit::FetchFault { addr }, End::Fault { pc, .. }) => {
                    faults += 1;
                    assert_eq!(addr, pc, "{}", describe("fetch fault"));
                }
                _ => panic!("{}", describe("different ends")),
            }
            // Not foreseen to fault: an instruction that this cpu does not have, a floating-point exception. A trap comes
            // behind its instruction.
            let foreseen = |signal| matches!(signal, libc::SIGSEGV | libc::SIGBUS);
            if show && matches!(want.1, End::Fault { signal, .. } if !foreseen(signal)) {
                got.rflags = want.0.rflags;
            }
            let mask = if show || matches!(want.1, End::End) {
                !0
            } else {
                flag_mask(g_ctx().rip, &g.src)
            };
            if let Some(d) = want.0.difference(&got, mask) {
                panic!("{}", describe(&d));
            }
            assert!(want_data == data.bytes()[..8192], "{}", describe("data"));
            assert!(
                want_stack == g.stack.bytes()[STACK_SIZE - 16384..],
                "{}",
                describe("stack")
            );
        }
        if place.code == CODE {
            // Owned by the guest.
            std::mem::forget((code, data));
        }
    }
    eprintln!("{ends} programs ended, {faults} faulted, {asked} checks");
    assert!(
        ends * 3 > cases && faults > 0 && asked * 2 > cases,
        "ends {ends} faults {faults} of {cases}"
    );
}

fn g_ctx() -> &'static crewind_x86::ctx::Ctx {
    // SAFETY: the thread's own context.
    unsafe { &*ctx::ctx() }
}

/// Flags that are dead at a fault are shown as zeros.
fn flag_mask(pc: u64, src: &Source) -> u64 {
    use crewind_x86::CodeSource;
    match src.fetch(pc) {
        Ok(b) => !crewind_x86::dead_flags(pc, b),
        Err(_) => !0,
    }
}

#[test]
fn low_code_behaves_as_native() {
    run_cases(LOW, env("FUZZ_SEED", 1), env("FUZZ_CASES", 3000));
}

#[test]
fn high_code_behaves_as_native() {
    run_cases(HIGH, env("FUZZ_SEED", 1), env("FUZZ_CASES", 3000));
}

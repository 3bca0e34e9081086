//! What the translator thinks of flags, against the processor: an instruction that runs from two states which differ
//! in flags it is said to overwrite unread must give the same result.

mod common;
mod generate;
mod native;

use common::*;
use crewind_x86::{Options, dead_flags};
use generate::*;
use iced_x86::{Encoder, Instruction, InstructionInfoFactory};
use native::*;

#[test]
fn dead_flags_do_not_matter() {
    let mut g = Guest::new(Options::default());
    let mut native = Native::new();
    install_handler(&g.cache);
    g.start();
    let mut infos = InstructionInfoFactory::new();
    let mut checked = 0;
    for case in 0..env("LIVENESS_CASES", 60_000) {
        let mut r = case_rng(31, case);
        let Some(i) = random_insn(&mut r, &mut infos, LOW, false) else {
            continue;
        };
        let Some(code) = encode(&i) else { continue };
        let dead = dead_flags(CODE, &code);
        if dead == 0 {
            continue;
        }
        g.code.write(CODE, &code);
        // jmp LOW.end
        let rel = (LOW.end - (CODE + code.len() as u64 + 5)) as u32;
        g.code.write(CODE + code.len() as u64, &[0xe9]);
        g.code
            .write(CODE + code.len() as u64 + 1, &rel.to_le_bytes());
        let mut init = random_state(&mut r, LOW);
        let image: Vec<u8> = (0..8192).map(|_| r.next() as u8).collect();
        let mut outcomes = Vec::new();
        for _ in 0..2 {
            g.data.bytes()[..8192].copy_from_slice(&image);
            outcomes.push((
                native.run(&init, CODE, LOW.end, &g.code),
                g.data.bytes()[..8192].to_vec(),
            ));
            init.rflags ^= dead;
        }
        let [((a, enda), dataa), ((b, endb), datab)] = &outcomes[..] else {
            unreachable!()
        };
        assert_eq!(enda, endb, "{i}");
        // At a fault nothing was overwritten yet.
        let mask = if matches!(enda, End::End) { !0 } else { !dead };
        let mut b = b.clone();
        b.rflags &= mask;
        if let Some(d) = a.difference(&b, mask) {
            panic!("{i} with dead {dead:#x}: {d}");
        }
        assert!(dataa == datab, "{i} with dead {dead:#x}: data");
        checked += 1;
    }
    eprintln!("{checked} instructions that overwrite flags");
    assert!(checked > 1000);
}

fn encode(i: &Instruction) -> Option<Vec<u8>> {
    let mut e = Encoder::new(64);
    e.encode(i, CODE).ok()?;
    Some(e.take_buffer())
}

//! Programs for the model, and what it has to find.

use super::explore::{Random, all, one};
use super::{Insn, World};
use crate::Mutant;

fn r(g: u32) -> Insn {
    Insn::Access(vec![(g, false)])
}

fn w(g: u32) -> Insn {
    Insn::Access(vec![(g, true)])
}

const TICK: Insn = Insn::Tick;

/// A program of so many threads, at random: few granules, so that they meet.
fn random_program(random: &mut Random, threads: usize, granules: u64) -> Vec<Vec<Insn>> {
    let insn = |random: &mut Random| match random.below(9) {
        0 | 1 => TICK,
        2 => Insn::Yield,
        3 => Insn::GiveBack(random.below(granules) as u32, random.below(2) == 0),
        4 | 5 => {
            let g = random.below(granules);
            let other = random.below(granules);
            let mut list = vec![(g as u32, random.below(2) == 0)];
            if other != g {
                list.push((other as u32, random.below(2) == 0));
            }
            Insn::Access(list)
        }
        _ => {
            let g = random.below(granules) as u32;
            Insn::Access(vec![(g, random.below(3) == 0)])
        }
    };
    (0..threads)
        .map(|_| (0..4 + random.below(6)).map(|_| insn(random)).collect())
        .collect()
}

/// Random ways through random programs.
fn wander(rounds: u64, seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let mut random = Random(seed);
    for n in 0..rounds {
        let vcpus = 2 + n as usize % 3;
        let threads = vcpus + random.below(2) as usize;
        let granules = 2 + random.below(2);
        let code = random_program(&mut random, threads, granules);
        let wide = random.below(2) == 0;
        let world = World::new(code, vcpus, granules as usize, wide, mutant);
        for _ in 0..6 {
            one(&world, random.below(u64::MAX))?;
        }
    }
    Ok(())
}

#[test]
fn random_programs_are_ordered_and_do_not_hang() {
    if let Err(e) = wander(6_000, 0x1234_5678_9abc_def1, None) {
        panic!("{e}");
    }
}

#[test]
fn small_programs_in_all_interleavings() {
    let programs = [
        (
            "two writers",
            vec![vec![w(0), TICK, w(0)], vec![w(0), TICK, r(0)]],
            2,
        ),
        (
            "message passing",
            vec![vec![w(0), w(1), TICK], vec![r(1), r(0), TICK]],
            2,
        ),
        (
            "store buffer",
            vec![vec![w(0), TICK, r(1)], vec![w(1), TICK, r(0)]],
            2,
        ),
        (
            "a late reader",
            vec![vec![w(0), TICK], vec![r(0)], vec![r(0)]],
            3,
        ),
        (
            "a writer that steps down",
            vec![
                vec![w(0), Insn::GiveBack(0, true), TICK, r(0)],
                vec![r(0), w(0)],
                vec![r(0)],
            ],
            3,
        ),
        (
            "what is given up is taken by whoever comes",
            vec![
                vec![w(0), Insn::GiveBack(0, false), TICK, w(0)],
                vec![w(0), TICK, Insn::GiveBack(0, false)],
            ],
            2,
        ),
        (
            "a writer among readers",
            vec![vec![r(0), TICK], vec![r(0)], vec![w(0)]],
            3,
        ),
        (
            "two granules at once, one vcpu for two threads",
            vec![
                vec![Insn::Access(vec![(0, true), (1, true)]), Insn::Yield],
                vec![w(1), TICK],
                vec![w(0)],
            ],
            2,
        ),
    ];
    for (name, code, vcpus) in programs {
        let world = World::new(code, vcpus, 2, false, None);
        match all(&world, 400_000) {
            Ok(states) => assert!(states > 20, "{name}: {states}"),
            Err(e) => panic!("{name}: {e}"),
        }
    }
}

#[test]
fn every_wrong_protocol_is_found() {
    let mutants = [
        Mutant::PointWithoutEdges,
        Mutant::LostForgotten,
        Mutant::WriterForgotten,
        Mutant::GivenBackForgotten,
        Mutant::AloneWithoutReaders,
        Mutant::VcpuWithoutPoint,
        Mutant::WritersBesideReaders,
        Mutant::ReducedByHalf,
    ];
    for mutant in mutants {
        let found = (0..20).any(|n| wander(2_000, 0x9e37_79b9 + n, Some(mutant)).is_err());
        assert!(found, "{mutant:?} is not found");
    }
}

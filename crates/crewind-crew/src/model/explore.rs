//! Ways through the model: all of a small one, many of a larger one.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::World;
use super::oracle::check;

/// Walks all interleavings. Returns how many states there are.
///
/// # Errors
/// A wrong order, or a state in which nobody can go on.
pub(super) fn all(start: &World, most: usize) -> Result<usize, String> {
    let mut seen = HashSet::from([key(start)]);
    let mut todo = vec![start.clone()];
    while let Some(world) = todo.pop() {
        if seen.len() > most {
            return Err(format!("the model has more than {most} states"));
        }
        if world.over() {
            check(&world)?;
            continue;
        }
        let mut moved = false;
        for t in 0..world.threads() {
            let mut next = world.clone();
            if next.step(t, false) {
                moved = true;
                if seen.insert(key(&next)) {
                    todo.push(next);
                }
            }
        }
        if !moved {
            return Err(format!("recording hangs: {}", world.print()));
        }
    }
    Ok(seen.len())
}

fn key(world: &World) -> u64 {
    let mut h = DefaultHasher::new();
    world.print().hash(&mut h);
    h.finish()
}

/// Goes one way that `seed` chooses.
///
/// # Errors
/// As `all`.
pub(super) fn one(start: &World, seed: u64) -> Result<(), String> {
    let mut random = Random(seed | 1);
    let mut world = start.clone();
    let mut idle = 0;
    let mut steps = 0;
    while !world.over() {
        steps += 1;
        // Some threads are slow for a while: what takes long is what others get into the middle of.
        let slow = random.below(8) == 0;
        let t = random.below(world.threads() as u64) as usize;
        if slow && random.below(2) == 0 {
            continue;
        }
        let give_up = random.below(10) == 0;
        match world.step(t, give_up) {
            true => idle = 0,
            false => idle += 1,
        }
        if idle > 1000 || steps > 100_000 {
            return Err(format!("recording hangs: {}", world.print()));
        }
    }
    check(&world)
}

/// xorshift64*.
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

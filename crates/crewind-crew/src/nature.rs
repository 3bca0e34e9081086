//! How a granule that is fought over is used, and so how it is best taken and when it is best given back.
//!
//! *It moves*: a thread reads it and writes it right after, then another one does (a counter under a lock, the header of
//! a block of memory). To take it for reading first, and for writing a moment later, costs two hand-overs instead of
//! one. (Cache coherence protocols know this as migratory sharing: Cox and Fowler, Stenström et al., both ISCA 1993.)
//!
//! *It is read by all and written now and then*: the writer had better step down to a reader before the others come.
//!
//! A right that is given back unasked is taken by the next one without its holder's help, who may be busy with something
//! else; but if its holder is the next one, it has been given back for nothing.
//!
//! All of this is about speed: any claim may ask for more than is needed, and any right may be given back at any time.

use crate::claim::{Claim, NONE, READ, WRITE};

/// What a vcpu is to do with a right it has got, some claims later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Later {
    /// Nothing.
    Keep,
    /// Go on as a reader.
    StepDown,
    /// Give it up.
    GiveUp,
}

/// How a fought-over granule is to be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Claim it for writing.
    pub write: bool,
    /// What comes then.
    pub later: Later,
}

/// A read and a write of one thread within this time belong together. Cycles; some 6 us, which is several claims.
const TOGETHER: u64 = 16_384;
/// Evidence from which on a granule moves, and the most that is kept of it.
const MOVES: u8 = 2;
const MOST: u8 = 4;
/// So many claims for reading take all before one does not, to see whether it still moves.
const TRUST: u8 = 30;
/// After a right was given back for nothing, so many are kept; twice as many each time.
const KEEP: u8 = 4;

/// What was seen of a granule.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Nature {
    /// When it was last taken from a writer to be read; cycles.
    read_at: u64,
    /// The vcpu that did, plus one; 0 when somebody wrote since.
    reader: u8,
    /// Evidence that it moves.
    moves: u8,
    /// Claims for reading that may still take all.
    trust: u8,
    /// The vcpu that gave it up unasked, plus one; 0 when it was taken since.
    gave: u8,
    /// Rights that are not to be given back.
    keep: u8,
    /// How many it will be the next time.
    penalty: u8,
}

impl Nature {
    /// What becomes of a claim to the granule. `now` is in cycles.
    pub(crate) fn wish(&mut self, claim: &Claim, now: u64) -> Wish {
        let mine = claim.vcpu() as u8 + 1;
        self.taken_by(mine);
        let (written, read) = (claim.another_has(WRITE), claim.another_has(READ));
        let (write, later) = if claim.writes() {
            if self.reader == mine && now.wrapping_sub(self.read_at) < TOGETHER {
                self.moves = (self.moves + 1).min(MOST);
            } else if self.reader != 0 || claim.had() == NONE && read && !written {
                self.moves = self.moves.saturating_sub(1);
            }
            self.reader = 0;
            match read && !written && self.moves < MOVES {
                true => (true, Later::StepDown),
                false => (true, Later::GiveUp),
            }
        } else if written {
            if self.reader != 0 {
                self.moves = self.moves.saturating_sub(1);
            }
            if self.moves >= MOVES && self.trust > 0 {
                self.trust -= 1;
                self.reader = 0;
                (true, Later::GiveUp)
            } else {
                self.trust = TRUST;
                (self.reader, self.read_at) = (mine, now);
                (false, Later::Keep)
            }
        } else if read {
            self.moves = self.moves.saturating_sub(1);
            (false, Later::Keep)
        } else {
            // Alone, and so it may write.
            (false, Later::GiveUp)
        };
        let later = match later {
            Later::GiveUp if self.keep > 0 => {
                self.keep -= 1;
                Later::Keep
            }
            other => other,
        };
        Wish { write, later }
    }

    /// Looks at who takes what was given up: its last holder should have kept it.
    fn taken_by(&mut self, mine: u8) {
        match std::mem::take(&mut self.gave) {
            0 => {}
            gave if gave == mine => {
                self.penalty = self.penalty.saturating_mul(2).max(KEEP);
                self.keep = self.penalty;
            }
            _ => self.penalty /= 2,
        }
    }

    /// Vcpu `me` gave the granule up, unasked.
    pub(crate) fn given_up(&mut self, me: usize) {
        self.gave = me as u8 + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::Class;

    const NOBODY: Class = Class::nobody(2);

    fn claim(class: Class, me: usize, write: bool) -> Claim {
        Claim::new(class, 2, me, write)
    }

    #[test]
    fn what_is_read_and_then_written_in_turns_moves() {
        let mut n = Nature::default();
        let (mut now, mut claims) = (0, 0);
        for round in 0..100usize {
            let (me, other) = (round % 2, 1 - round % 2);
            now += 100_000;
            claims += 1;
            let wish = n.wish(&claim(NOBODY.with(other, WRITE), me, false), now);
            if !wish.write {
                claims += 1;
                let class = NOBODY.with(other, READ).with(me, READ);
                assert!(n.wish(&claim(class, me, true), now + 1000).write);
            }
        }
        assert!(claims < 110, "{claims}");
    }

    #[test]
    fn what_is_mostly_read_is_not_taken_from_readers() {
        let mut n = Nature::default();
        let both = NOBODY.with(0, READ).with(1, READ);
        let mut now = 0;
        for round in 0..100 {
            let me = round / 3 % 2;
            now += 1_000_000;
            let wish = n.wish(&claim(both, me, true), now);
            assert_eq!(wish.later, Later::StepDown);
            // The other one reads again, before the writer has stepped down.
            now += 1_000_000;
            let wish = n.wish(&claim(NOBODY.with(me, WRITE), 1 - me, false), now);
            assert!(!wish.write);
        }
    }

    #[test]
    fn who_comes_back_for_what_it_gave_up_keeps_it() {
        let mut n = Nature::default();
        let (mut given, mut now) = (0, 0);
        for _ in 0..100 {
            now += 10_000;
            if n.wish(&claim(NOBODY, 0, true), now).later == Later::GiveUp {
                n.given_up(0);
                given += 1;
            }
        }
        assert!(given < 15, "{given}");
        // The other one comes for it.
        for round in 0..20 {
            now += 10_000;
            if n.wish(&claim(NOBODY, round % 2, true), now).later == Later::GiveUp {
                n.given_up(round % 2);
            }
        }
        for round in 0..300 {
            now += 10_000;
            let (me, other) = (round % 2, 1 - round % 2);
            n.wish(&claim(NOBODY.with(other, WRITE), me, true), now);
        }
        let wish = n.wish(&claim(NOBODY.with(1, WRITE), 0, true), now);
        assert_eq!(wish.later, Later::GiveUp);
    }
}

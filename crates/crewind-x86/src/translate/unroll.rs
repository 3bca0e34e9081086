//! Short loops are there several times in their translation, so that their ticks take turns on the counters of the clock:
//! each addition to a counter waits for the one before, some seven cycles.
//!
//! Each copy counts its own tick, so that nothing else knows about copies: faults, stops and limits are met at the same
//! places with the same clock as in a loop that is there once.

use super::rounds::FIRST_ROUNDS;
use super::{Dec, LOOP_LINK, MARKS, MAX_INSNS, NewTick, Purpose, Translator, condition};
use crate::api::CodeSource;
use crate::ctx::COUNTERS;
use crate::insn::Class;

/// How often the body of a short loop is there at most.
pub(super) const COPIES: usize = COUNTERS;

impl Translator {
    /// Whether another copy of a loop follows that begins at `start`, of which there are `copies`, the last one just
    /// decoded.
    pub(super) fn unrolls(&mut self, src: &dyn CodeSource, start: u64, copies: usize) -> bool {
        if !self.options.unroll || !self.options.superblocks || self.purpose == Purpose::Step {
            return false;
        }
        let length = self.decs.len() / copies;
        if copies == 1 {
            if !self.flags_dead(src, start) {
                return false;
            }
            self.rounds = self.goes_in_rounds();
        }
        let (max, most) = match self.purpose {
            Purpose::Loop(_) => (self.most_in_rounds(), self.copies_in_rounds()),
            _ => {
                let max = self.options.max_block_insns.clamp(1, MAX_INSNS);
                (max, if self.rounds { FIRST_ROUNDS } else { COPIES })
            }
        };
        copies < most && (copies + 1) * length <= max
    }

    /// The jump back of a loop's copy that is followed by another one: the tick, and what leaves the loop. Flags are dead at
    /// the loop's head.
    pub(super) fn go_round(&mut self, d: &Dec) {
        if d.class == Class::Jcc {
            self.cond_link(condition(d) ^ 1, d.insn.next_ip());
        }
        let clk = self.next_clock();
        self.buf.add_one(clk);
        self.buf.put(&[0x0f, 0x89]);
        self.ticks.push(NewTick {
            field: self.buf.pos() as u32,
            link: LOOP_LINK,
            slot: 0,
        });
        self.buf.put32(0);
    }

    /// Ticks between a loop's copies that find the limit leave with the link of the last copy's jump: it leads to the head
    /// as well.
    pub(super) fn link_rounds(&mut self, head: u64) {
        if self.ticks.iter().all(|t| t.link != LOOP_LINK) {
            return;
        }
        let last = self.links.iter().rposition(|l| l.target & !MARKS == head);
        let link = last.unwrap_or_else(|| {
            // Never reached as code: the last copy was cut, so nothing jumps back.
            self.jump_link(head);
            self.links.len() - 1
        });
        for t in self.ticks.iter_mut().filter(|t| t.link == LOOP_LINK) {
            t.link = link as u32;
        }
    }
}

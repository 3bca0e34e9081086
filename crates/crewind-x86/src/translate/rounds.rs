//! Loops that go round often, counted in advance.
//!
//! A short loop's tick is a load, a store and a jump, which is as much as some loops do else. So when a loop has come round
//! a few times, it goes on in a translation of its own with several copies of its body (`Purpose::Loop`), at whose head the
//! ticks of all copies are counted at once. Nobody sees that: where a copy is left, what was counted too much is paid back
//! first. The loop's ends do it in code, checks of rights and faults have it noted with their places (`Owed`).
//!
//! Limits stay exact: when the count in advance reaches the limit, or somebody wants the thread out, it is taken back, and
//! the loop goes on in its other translation, which counts each round. That is also how loops begin, so one that goes round
//! only a few times costs no more than before.
//!
//! If there is a register that the loop does not use, checks have it all the time, and it is loaded again where the loop is left.

use super::unroll::COPIES;
use super::{Class, Dec, MAX_CHECKED, MAX_CODE, MAX_INSN, Translator, condition};
use crate::api::CodeSource;
use crate::ctx::COUNTERS;
use crate::emit::{Cell, RCX};
use crate::recover::Owed;
use crate::rights::Special;

/// How often the body is there at most: more makes nothing faster, and code longer.
pub(super) const ROUNDS: usize = 8;
/// How often it is there in the translation that the loop begins in.
pub(super) const FIRST_ROUNDS: usize = 2;
/// With fewer copies little is gained.
const LEAST_ROUNDS: usize = 4;
const _: () = assert!(FIRST_ROUNDS <= COPIES && ROUNDS < 16);

/// Most bytes of the code for one end of the loop.
const END: usize = 64;

/// A jump out of the loop.
struct End {
    /// Its rel32 field; None: the code falls through to it.
    field: Option<usize>,
    target: u64,
    owed: Owed,
}

impl Translator {
    /// Most instructions of all copies.
    pub(super) fn most_in_rounds(&self) -> usize {
        (2 * self.options.max_block_insns).clamp(1, MAX_CHECKED)
    }

    /// Whether the loop that was decoded once can be counted in advance: nothing in it looks at the clock.
    pub(super) fn goes_in_rounds(&self) -> bool {
        let plain = |d: &Dec| {
            matches!(d.class, Class::Plain | Class::Jcc | Class::Jmp)
                && !self.is_event_site(d.pc())
                && !self.is_break(d.pc())
        };
        let body = self.decs.len();
        !self.no_rounds
            && FIRST_ROUNDS * body <= self.options.max_block_insns
            && LEAST_ROUNDS * body <= self.most_in_rounds()
            && self.decs.iter().all(plain)
    }

    /// The counter of all ticks of a loop, in both of its translations: so it soon uses up its share where that is too small
    /// to count in advance, and gets a new one.
    fn loop_counter(&self) -> u8 {
        (self.start >> 3) as u8 % COUNTERS as u8
    }

    pub(super) fn loop_clock(&self) -> Cell {
        self.cells.clk.plus(8 * u32::from(self.loop_counter()))
    }

    /// Emits the copies of a loop. False: it is none, or does not fit; then what was emitted is worth nothing.
    pub(super) fn emit_rounds(&mut self, src: &dyn CodeSource) -> bool {
        let decs = std::mem::take(&mut self.decs);
        let emitted = self.rounds && self.rounds_of(src, &decs);
        self.decs = decs;
        emitted
    }

    fn rounds_of(&mut self, src: &dyn CodeSource, decs: &[Dec]) -> bool {
        // The jump back ends each copy.
        let goes_back = |d: &Dec| {
            matches!(d.class, Class::Jcc | Class::Jmp) && d.insn.near_branch_target() == self.start
        };
        let Some(body) = decs.iter().position(goes_back).map(|n| n + 1) else {
            return false;
        };
        let copies = decs.len() / body;
        if copies < 2 || decs.len() % body != 0 {
            return false;
        }
        let Ok(all) = i8::try_from(copies) else {
            return false;
        };
        let counter = self.loop_counter();
        let clk = self.loop_clock();
        self.lend(decs.get(..body).unwrap_or(decs));
        let pad = self.buf.align_loop();
        self.note_code(pad);
        let head = self.buf.pos();
        let poked = self.calm.map(|calm| {
            self.buf.compare_zero(calm);
            self.buf.jump_ahead(EQUAL)
        });
        self.buf.add(clk, all);
        let slow = self.buf.jump_ahead(NOT_NEGATIVE);
        self.note_code(self.buf.pos() - head);
        let mut ends = Vec::new();
        for n in 0..decs.len() {
            let behind = self.checks.behind + ends.len() * END;
            if self.buf.pos() + behind > MAX_CODE - MAX_INSN {
                return false;
            }
            let owed = Owed {
                counter,
                ticks: (copies - n / body) as u8,
            };
            if n % body == 0 {
                self.owed = Some(owed);
                self.map.owed(owed);
            }
            self.in_round(src, decs, n, head, owed, &mut ends);
        }
        self.owed = None;
        // What the last copy falls through to comes first.
        ends.sort_by_key(|e| e.field.is_some());
        for end in &ends {
            self.end(src, clk, end);
        }
        // Taken back, and on with the loop that counts each round.
        self.buf.rel32_here(slow);
        self.buf.add(clk, -all);
        self.load_lent();
        let link = self.links.len();
        self.jump_link(self.start);
        if let Some(field) = poked {
            self.buf.rel32_here(field);
            self.load_lent();
            self.buf.put(&[0xe9]);
            self.tick_stub(link);
        }
        self.finish_checks();
        true
    }

    /// One instruction of a copy.
    fn in_round(
        &mut self,
        src: &dyn CodeSource,
        decs: &[Dec],
        n: usize,
        head: usize,
        owed: Owed,
        ends: &mut Vec<End>,
    ) {
        let Some(d) = decs.get(n) else { return };
        let target = d.insn.near_branch_target();
        let back = matches!(d.class, Class::Jcc | Class::Jmp) && target == self.start;
        if d.class == Class::Jmp && !back {
            // Followed.
            self.map.jump(target);
            return;
        }
        self.before(decs, n);
        let start = self.buf.pos();
        let mut spilled = None;
        let mut out = |field, target| {
            ends.push(End {
                field,
                target,
                owed,
            });
        };
        match d.class {
            Class::Jcc if !back => out(Some(self.buf.jump_ahead(condition(d))), target),
            Class::Jcc if n + 1 < decs.len() => {
                let field = self.buf.jump_ahead(condition(d) ^ 1);
                out(Some(field), d.insn.next_ip());
            }
            Class::Jcc => {
                self.buf.jump_back(Some(condition(d)), head);
                out(None, d.insn.next_ip());
            }
            Class::Jmp if n + 1 == decs.len() => self.buf.jump_back(None, head),
            Class::Jmp => {}
            _ => spilled = self.emit(src, d),
        }
        let len = self.buf.pos() - start;
        self.map.insn(d.len(), len, spilled, self.checks.held);
        if back && n + 1 < decs.len() {
            self.map.jump(self.start);
        }
        self.behind(n);
    }

    /// Lends checks a register for the whole loop, if all of them can use the same one.
    fn lend(&mut self, body: &[Dec]) {
        if self.guard.is_none() || self.unchecked {
            return;
        }
        let far = |d: &Dec| {
            d.insn.is_ip_rel_memory_operand() && d.insn.ip_rel_memory_address() >= 1 << 31
        };
        let mut used = 1u16 << RSP;
        let mut any = false;
        for (n, d) in body.iter().enumerate() {
            let uses = self.plan.uses.get(n).copied().unwrap_or_default();
            used |= uses.read | uses.set;
            if self.plan.special(n) != Special::None || far(d) {
                return;
            }
        }
        for n in 0..self.plan.uses.len() {
            if self.plan.any(n) {
                any = true;
                if !self.plan.flags_dead(n) {
                    return;
                }
            }
        }
        if any && used != u16::MAX {
            self.borrow((!used).trailing_zeros() as u8);
            self.checks.pinned = true;
        }
    }

    /// Loads the register again that was lent for the whole loop.
    fn load_lent(&mut self) {
        if let Some(reg) = self.checks.held.filter(|_| self.checks.pinned) {
            self.buf.load(reg, self.cells.borrowed);
        }
    }

    /// Code in front of an instruction.
    fn note_code(&mut self, len: usize) {
        match self.checks.held {
            Some(reg) => self.map.check(len, reg),
            None => self.map.pad(len),
        }
    }

    /// One end of the loop: pays back and leads on.
    fn end(&mut self, src: &dyn CodeSource, clk: Cell, end: &End) {
        if let Some(field) = end.field {
            self.buf.rel32_here(field);
        }
        let back = -(end.owed.ticks as i8);
        if self.flags_dead(src, end.target) {
            self.buf.add(clk, back);
            self.load_lent();
        } else {
            self.buf.store(self.cells.scratch, RCX);
            self.buf.flagless_update(clk, back);
            self.buf.load(RCX, self.cells.scratch);
            self.load_lent();
        }
        self.jump_link(end.target);
    }
}

const RSP: u8 = 4;
/// Conditions of jumps, as in their opcodes.
const EQUAL: u8 = 4;
const NOT_NEGATIVE: u8 = 9;

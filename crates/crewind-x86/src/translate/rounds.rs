//! Loops that go round often, counted in advance.
//!
//! A short loop's tick is a load, a store and a jump, which is as much as some loops do else. So a loop goes on in a
//! translation of its own with several copies of its body (`Purpose::Loop`), at whose head the ticks of all copies are
//! counted at once. Nobody sees that: where a copy is left, what was counted too much is paid back first. The loop's ends do
//! it in code, checks of rights and faults have it noted with their places (`Owed`).
//!
//! Limits stay exact: when the count in advance reaches the limit, or somebody wants the thread out, it is taken back, and
//! the thread leaves as at any tick: the head is only reached by transfers that tick. Near the limit the loop goes on in the
//! translations that count each round. A loop without calls begins in these, so one that goes round only a few times costs
//! no more than before.
//!
//! A loop may lie in two translations: it leaves the first by a conditional jump, and the second one jumps back. Where the
//! second begins is known when its jump back is met for the first time (`via`), so the conditional jump is taken then.
//!
//! A loop with calls is one translation too, if what it calls returns without going back: `call` and `ret` are a push and a
//! pop with a comparison then, and so is the jump of a PLT. What is expected of them is what they would have done when
//! the loop was translated; when they do something else, they leave it.
//!
//! If there is a register that the loop does not use, checks have it all the time, and it is loaded again where the loop is left.

use super::{Class, Dec, MAX_CHECKED, MAX_CODE, MAX_INSN, Translator, condition};
use super::{fits_push, unroll::COPIES};
use crate::api::CodeSource;
use crate::emit::{Cell, EQUAL, NOT_NEGATIVE, RCX};
use crate::recover::Owed;
use crate::rights::Special;
use iced_x86::{Code, Instruction, OpKind, Register};

/// How often the body is there at most: more makes nothing faster, and code longer.
pub(super) const ROUNDS: usize = 8;
/// How often it is there in the translation that a loop without calls begins in.
pub(super) const FIRST_ROUNDS: usize = 2;
const _: () = assert!(FIRST_ROUNDS <= COPIES);
/// With fewer copies little is gained if there are no calls.
const LEAST_ROUNDS: usize = 4;
/// Most conditional jumps out of a loop with calls: which way such loops go is not known when they are translated, and
/// those that go another way are slower than before.
const MOST_WAYS_OUT: usize = 6;
/// Calls within calls that are followed.
const DEPTH: usize = 4;
/// Most ticks of all copies.
const MOST_TICKS: usize = 100;

/// Most bytes of the code for one end of the loop.
const END: usize = 96;

/// A way out of the loop.
struct End {
    /// Its rel32 field; None: the code falls through to it.
    field: Option<usize>,
    target: Target,
    owed: Owed,
}

/// Where it leads.
enum Target {
    Pc(u64),
    /// Where rcx says, which is less by this much; the guest's rcx is in the scratch slot.
    Indirect(u64),
}

impl Translator {
    /// Most instructions of all copies.
    pub(super) fn most_in_rounds(&self) -> usize {
        (2 * self.options.max_block_insns).clamp(1, MAX_CHECKED)
    }

    /// Most copies.
    pub(super) fn copies_in_rounds(&self) -> usize {
        match self.rounds {
            false => 1,
            true if self.follows_calls() => LEAST_ROUNDS,
            true => ROUNDS,
        }
    }

    /// Whether the loop that was decoded once can be counted in advance: nothing in it looks at the clock.
    pub(super) fn goes_in_rounds(&self) -> bool {
        let follows = self.follows_calls();
        let plain = |d: &Dec| {
            let fits = match d.class {
                Class::Plain | Class::Jcc | Class::Jmp => true,
                Class::Call => follows && fits_push(d.insn.next_ip()),
                Class::JmpIndirect | Class::Ret => follows,
                _ => false,
            };
            fits && !self.is_event_site(d.pc()) && !self.is_break(d.pc())
        };
        let goes_on = |w: &[Dec]| matches!(w, [a, b] if self.is_taken(a, Some(b.pc())));
        let count = |class| self.decs.iter().filter(|d| d.class == class).count();
        let body = self.decs.len();
        let suits = match follows {
            true => {
                (count(Class::Call) > 0 || self.decs.windows(2).any(goes_on))
                    && count(Class::Jcc) <= MOST_WAYS_OUT
                    && self.returns.is_empty()
            }
            false => {
                FIRST_ROUNDS * body <= self.options.max_block_insns
                    && LEAST_ROUNDS * body <= self.most_in_rounds()
            }
        };
        suits && self.decs.iter().all(plain)
    }

    /// Where a call, return or jump in a loop leads, as far as can be told. None: the translation ends here.
    pub(super) fn followed(
        &mut self,
        src: &dyn CodeSource,
        insn: &Instruction,
        class: Class,
    ) -> Option<u64> {
        if !self.follows_calls() {
            return None;
        }
        let to = match class {
            Class::Call if self.returns.len() < DEPTH => {
                self.returns.push(insn.next_ip());
                insn.near_branch_target()
            }
            Class::Ret if insn.code() == Code::Retnq => self.returns.pop()?,
            Class::JmpIndirect
                if insn.is_ip_rel_memory_operand()
                    && insn.op0_kind() == OpKind::Memory
                    && insn.segment_prefix() == Register::None
                    && insn.memory_base() == Register::RIP =>
            {
                src.peek(insn.ip_rel_memory_address())?
            }
            _ => return None,
        };
        // In reach of the comparison's immediate.
        (to < 1 << 31 && to != self.start).then_some(to)
    }

    /// Whether a conditional jump to this place is expected to be taken.
    pub(super) fn goes_by(&self, target: u64) -> bool {
        self.follows_calls() && self.via == Some(target) && target != self.start
    }

    /// Whether a conditional jump is expected to be taken, to go on at `next`.
    fn is_taken(&self, d: &Dec, next: Option<u64>) -> bool {
        d.class == Class::Jcc && next.is_some_and(|pc| pc != d.insn.next_ip())
    }

    /// The ticks of an instruction whose transfer stays in the loop.
    fn ticks_of(&self, d: &Dec) -> usize {
        let backwards = d.insn.near_branch_target() <= d.pc();
        match d.class {
            Class::JmpIndirect | Class::Ret => 1,
            Class::Call => usize::from(backwards),
            Class::Jcc | Class::Jmp => usize::from(self.is_back(d)),
            _ => 0,
        }
    }

    /// Whether it is the jump back, which ends each copy.
    fn is_back(&self, d: &Dec) -> bool {
        matches!(d.class, Class::Jcc | Class::Jmp) && d.insn.near_branch_target() == self.start
    }

    /// Emits the copies of a loop. False: it does not fit; then what was emitted is worth nothing.
    pub(super) fn emit_rounds(&mut self, src: &dyn CodeSource) -> bool {
        let decs = std::mem::take(&mut self.decs);
        let emitted = self.rounds_of(src, &decs);
        self.decs = decs;
        emitted
    }

    fn rounds_of(&mut self, src: &dyn CodeSource, decs: &[Dec]) -> bool {
        let Some(body) = decs.iter().position(|d| self.is_back(d)).map(|n| n + 1) else {
            return false;
        };
        let ticks: usize = decs.iter().map(|d| self.ticks_of(d)).sum();
        if !decs.len().is_multiple_of(body) || ticks > MOST_TICKS {
            return false;
        }
        let counter = self.next_counter();
        let clk = self.clock_of(counter);
        self.lend(decs.get(..body).unwrap_or(decs));
        let pad = self.buf.align_loop();
        self.map.code(pad, self.checks.held);
        let head = self.buf.pos();
        let poked = self.calm.map(|calm| {
            self.buf.compare_zero(calm);
            self.buf.jump_ahead(EQUAL)
        });
        self.buf.add(clk, ticks as i8);
        let slow = self.buf.jump_ahead(NOT_NEGATIVE);
        self.map.code(self.buf.pos() - head, self.checks.held);
        let mut owed = Owed {
            counter,
            ticks: ticks as u8,
        };
        let mut ends = Vec::new();
        self.map.owed(owed);
        for (n, d) in decs.iter().enumerate() {
            let behind = self.checks.behind + ends.len() * END;
            if self.buf.pos() + behind > MAX_CODE - MAX_INSN {
                return false;
            }
            self.owed = Some(owed);
            self.in_round(src, decs, n, head, owed, &mut ends);
            let ticks = self.ticks_of(d);
            if ticks > 0 {
                owed.ticks = owed.ticks.saturating_sub(ticks as u8);
                self.map.owed(owed);
            }
        }
        self.owed = None;
        // What the last copy falls through to comes first.
        ends.sort_by_key(|e| e.field.is_some());
        for end in &ends {
            self.end(src, clk, end);
        }
        // Taken back; and a new share of the way to the limit, if it is not reached.
        self.buf.rel32_here(slow);
        self.buf.add(clk, -(ticks as i8));
        if let Some(field) = poked {
            self.buf.rel32_here(field);
        }
        self.load_lent();
        self.buf.put(&[0xe9]);
        self.tick_stub(self.links.len());
        // Never reached as code: it is the tick's.
        self.jump_link(self.start);
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
        let next = decs.get(n + 1).map(Dec::pc);
        let target = d.insn.near_branch_target();
        let back = self.is_back(d);
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
            Class::Jcc if back && next.is_none() => {
                self.buf.jump_back(Some(condition(d)), head);
                out(None, Target::Pc(d.insn.next_ip()));
            }
            // To the next copy, too.
            Class::Jcc if self.is_taken(d, next) => {
                let field = self.buf.jump_ahead(condition(d) ^ 1);
                out(Some(field), Target::Pc(d.insn.next_ip()));
            }
            Class::Jcc => {
                out(Some(self.buf.jump_ahead(condition(d))), Target::Pc(target));
            }
            Class::Jmp if next.is_none() => self.buf.jump_back(None, head),
            Class::Jmp => {}
            Class::Call => self.push_imm(d.insn.next_ip()),
            Class::Ret | Class::JmpIndirect => {
                self.buf.store(self.cells.scratch, RCX);
                match d.class {
                    Class::Ret => self.buf.put(&[0x59]),
                    _ => self.load_target(d),
                }
                let expected = next.unwrap_or(0);
                out(
                    Some(self.unless_rcx_is(expected)),
                    Target::Indirect(expected),
                );
                self.buf.load(RCX, self.cells.scratch);
                spilled = Some(RCX);
            }
            _ => spilled = self.emit(src, d),
        }
        let len = self.buf.pos() - start;
        self.map.insn(d.len(), len, spilled, self.checks.held);
        if let Some(next) = next.filter(|next| *next != d.insn.next_ip()) {
            self.map.jump(next);
        }
        self.behind(n);
    }

    /// Takes a value from rcx, without touching flags, and leaves if that is not 0. Returns the rel32 field.
    fn unless_rcx_is(&mut self, value: u64) -> usize {
        self.buf.add_to_rcx((value as u32).wrapping_neg() as i32);
        self.buf.jump_ahead_unless_rcx_is_0()
    }

    /// Lends checks a register for the whole loop, if all of them can use the same one.
    fn lend(&mut self, body: &[Dec]) {
        if self.guard.is_none() || self.unchecked {
            return;
        }
        let mut used = 1u16 << RSP;
        if self.follows_calls() {
            // Calls need it.
            used |= 1 << RCX;
        }
        for (n, d) in body.iter().enumerate() {
            let uses = self.plan.uses.get(n).copied().unwrap_or_default();
            used |= uses.read | uses.set;
            if self.plan.special(n) != Special::None || d.is_far() {
                return;
            }
        }
        let mut checks = (0..self.plan.uses.len())
            .filter(|n| self.plan.any(*n))
            .peekable();
        if checks.peek().is_some() && used != u16::MAX && checks.all(|n| self.plan.flags_dead(n)) {
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

    /// One end of the loop: pays back and leads on.
    fn end(&mut self, src: &dyn CodeSource, clk: Cell, end: &End) {
        if let Some(field) = end.field {
            self.buf.rel32_here(field);
        }
        let back = -(end.owed.ticks as i8);
        match end.target {
            Target::Pc(target) => {
                if self.flags_dead(src, target) {
                    self.buf.add(clk, back);
                } else {
                    self.buf.store(self.cells.scratch, RCX);
                    self.buf.flagless_update(clk, back);
                    self.buf.load(RCX, self.cells.scratch);
                }
                self.load_lent();
                self.jump_link(target);
            }
            Target::Indirect(expected) => {
                self.buf.add_to_rcx(expected as u32 as i32);
                self.buf.store(self.cells.target, RCX);
                self.buf.flagless_update(clk, back);
                self.load_lent();
                self.buf.load(RCX, self.cells.target);
                self.look_up();
            }
        }
    }
}

const RSP: u8 = 4;

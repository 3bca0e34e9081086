//! Event sites: instructions in front of which translated code compares the clock with an armed value.
//!
//! A replay knows the clock and the pc of its next event. The clock alone does not tell when it is reached, as many
//! instructions run between two ticks; so the instruction gets a comparison in front of it, and the runtime arms it with
//! the clock of the event. The comparison is of the low halves: the cell `disarm` holds the armed value negated, so
//! that the sum with the clock is 0 at the event. Armed values that the clock cannot have before its limit is moved are
//! put there when it is. Several instructions may be sites and come by at one clock, so the pc is compared as well, where
//! the clock is right.

use crate::api::CodeSource;
use crate::cache::CodeCache;
use crate::ctx::{BUDGET, Ctx};
use crate::emit::{EQUAL, RCX};
use crate::insn::decoder_options;
use crate::liveness;
use crate::recover;
use crate::rights::NO_REG;
use crate::translate::{Dec, MARKS, Purpose, Site, SiteKind, Translator};

const RDX: u8 = 2;

/// A value of `disarm` that no clock goes with: clocks lie between a little below minus the budget and 0.
pub(crate) const NEVER: u32 = 0x8000_0001;

/// What goes into `disarm` for a limit and a count at which sites are to fire.
pub(crate) fn disarm(limit: u64, armed: Option<u64>) -> u32 {
    match armed.map(|a| limit.wrapping_sub(a)) {
        // A limit may be a few counts beyond the budget.
        Some(left) if left <= BUDGET + 64 => left as u32,
        _ => NEVER,
    }
}

impl Ctx {
    /// Sets the position, count and pc, at which an event site leaves with `Exit::EventSite`. None: never.
    pub fn arm_site(&mut self, at: Option<(u64, u64)>) {
        self.armed = at.map(|(count, _)| count);
        self.armed_pc = at.map_or(0, |(_, pc)| pc as u32);
        self.disarm = disarm(self.limit, self.armed);
    }
}

impl Translator {
    /// Whether an instruction has a comparison in front of it.
    pub(crate) fn is_event_site(&self, pc: u64) -> bool {
        self.event_sites.contains(&pc)
    }

    /// Whether translated code is left in front of an instruction in any case. `step` does it all the same.
    pub(crate) fn is_break(&self, pc: u64) -> bool {
        !self.breaks.is_empty() && self.purpose != Purpose::Step && self.breaks.contains(&pc)
    }

    /// The comparison in front of instruction `n`, which is an event site.
    pub(crate) fn event_site(&mut self, decs: &[Dec], n: usize) {
        let Some(d) = decs.get(n) else { return };
        self.give_back();
        let id = self.ids.site + self.sites.len() as u32;
        let c = self.cells;
        let start = self.buf.pos();
        let rest = decs.get(n..).unwrap_or(&[]);
        let dead = self.options.flags_liveness
            && !self.unsteady
            && liveness::dead_in(rest.iter().map(|d| (&d.insn, d.class)), self.faults);
        self.buf.store(c.scratch, RCX);
        let fire = if dead {
            self.buf.load32(RCX, c.disarm);
            for clk in c.clocks() {
                self.buf.add32(RCX, clk);
            }
            self.buf.load(RCX, c.scratch);
            self.buf.jump_ahead(EQUAL)
        } else {
            self.buf.store(c.scratch.plus(8), RDX);
            self.buf.load32(RCX, c.disarm);
            for clk in c.clocks() {
                self.buf.load32(RDX, clk);
                // lea ecx, [rcx + rdx]
                self.buf.lea32(RCX, RCX, RDX, 1, 0);
            }
            self.buf.load(RDX, c.scratch.plus(8));
            self.buf.put(&[0xe3, 0]);
            let short = self.buf.pos() - 1;
            self.buf.load(RCX, c.scratch);
            self.buf.put(&[0xeb, 0]);
            let over = self.buf.pos() - 1;
            self.buf.short_here(short);
            self.buf.load(RCX, c.scratch);
            self.buf.put(&[0xe9]);
            self.buf.put32(0);
            let fire = self.buf.pos() - 4;
            self.buf.short_here(over);
            fire
        };
        self.fires.push(Fire {
            field: fire,
            site: id,
            back: self.buf.pos(),
            pc: d.pc(),
        });
        self.map.pad(self.buf.pos() - start);
        self.sites.push(Site {
            pc: d.pc(),
            what: SiteKind::Event,
        });
    }

    /// Emits the code that leaves at event sites.
    pub(crate) fn finish_sites(&mut self) {
        let fires = std::mem::take(&mut self.fires);
        let c = self.cells;
        for f in &fires {
            // The clock is right. Several sites are passed at one clock, so the pc counts too; rarely do we come here.
            self.buf.rel32_here(f.field);
            self.buf.store(c.scratch, RCX);
            self.buf.load32(RCX, c.armed_pc);
            self.buf
                .lea32(RCX, RCX, NO_REG, 1, (f.pc as u32).wrapping_neg() as i32);
            self.buf.put(&[0xe3, 0]);
            let hit = self.buf.pos() - 1;
            self.buf.load(RCX, c.scratch);
            let back = self.buf.base + f.back as u64;
            self.buf.jmp_to(back);
            self.buf.short_here(hit);
            self.buf.load(RCX, c.scratch);
            self.buf.store_imm(c.exit_arg, f.site);
            self.buf.jmp_to(self.stubs.site);
        }
        self.fires = fires;
    }
}

/// A comparison in front of an instruction, as the code that belongs to it at the translation's end needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fire {
    /// Offset of the rel32 field of the jump that leads there.
    pub field: usize,
    pub site: u32,
    /// Offset of the instruction itself.
    pub back: usize,
    pub pc: u64,
}

impl CodeCache {
    /// From now on translated code compares the clock in front of the instruction at `pc`, see `Ctx::arm_site`.
    /// Translations that hold the instruction are thrown away. True if it was not a site before.
    pub fn add_event_site(&mut self, pc: u64) -> bool {
        if !self.tr.event_sites.insert(pc) {
            return false;
        }
        self.kill_holders(pc);
        true
    }

    /// From now on `run` returns `Exit::Break` in front of exactly these instructions; `step` executes them.
    pub fn set_breaks(&mut self, pcs: &[u64]) {
        let new = pcs.iter().copied().collect();
        let old = std::mem::replace(&mut self.tr.breaks, new);
        let changed: Vec<u64> = old.symmetric_difference(&self.tr.breaks).copied().collect();
        for pc in changed {
            self.kill_holders(pc);
        }
    }

    /// Throws away the translations that hold the instruction at `pc`.
    fn kill_holders(&mut self, pc: u64) {
        for id in self.on_page(pc) {
            let holds = self.frags.get(id as usize).is_some_and(|f| {
                let end = self
                    .frags
                    .get(id as usize + 1)
                    .map_or(self.maps.len(), |next| next.map as usize);
                !f.is_dead()
                    && self
                        .maps
                        .get(f.map as usize..end)
                        .is_some_and(|map| recover::holds(map, f.pc & !MARKS, pc))
            });
            if holds {
                self.kill(id);
            }
        }
    }

    /// Flags that are dead at `ctx.rip` are shown as zeros: checks and clock updates may have destroyed them.
    pub(crate) fn hide_dead_flags(&self, ctx: &mut Ctx, src: &dyn CodeSource) {
        ctx.rflags &= !self.dead_flags(ctx.rip, src);
    }

    /// Flags at `pc` that are overwritten before anything can read them: what they are may depend on how code was cut
    /// into translations.
    pub fn dead_flags(&self, pc: u64, src: &dyn CodeSource) -> u64 {
        if src.unsteady(pc) {
            return 0;
        }
        src.fetch(pc).map_or(0, |bytes| {
            liveness::dead_flags(pc, bytes, decoder_options(), self.tr.faults)
        })
    }
}

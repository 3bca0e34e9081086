//! What signal handlers ask about translated code. All of it is async-signal-safe.

use crate::api::{Recovered, RecoveredKind};
use crate::cache::CodeCache;
use crate::ctx;
use crate::emit::{Cell, RCX, flagless_update_at};
use crate::insn::decoder_options;
use crate::liveness;
use crate::recover;
use crate::rights::RIGHTS_LEN;
use crate::translate::MARKS;
use iced_x86::{Decoder, Mnemonic, OpKind, Register};

/// The zero flag in the flags register.
const ZF: u64 = 0x40;

impl CodeCache {
    /// Rewrites host registers interrupted in translated code to the guest's, and makes the clock what it is there.
    /// Async-signal-safe. Call it on the thread that was interrupted, which is not going on from there. Flags that are
    /// dead at the instruction are shown as zeros.
    pub fn recover(&self, regs: &mut Recovered) -> Option<RecoveredKind> {
        if !self.contains(regs.rip) {
            return None;
        }
        let off = (regs.rip - self.cfg.cache_base) as u32;
        let n = self.frags.partition_point(|f| f.host <= off);
        let id = n.saturating_sub(1);
        let place = self
            .frags
            .get(id)
            .filter(|f| off - f.host <= u32::from(f.len) && f.len > 0)
            .and_then(|f| {
                let map_end = self
                    .frags
                    .get(id + 1)
                    .map_or(self.maps.len(), |next| next.map as usize);
                let map = self.maps.get(f.map as usize..map_end)?;
                let in_body = (off - f.host).checked_sub(u32::from(f.body))?;
                recover::find(map, f.pc & !MARKS, in_body as usize)
            });
        let Some(place) = place else {
            return Some(RecoveredKind::Stub);
        };
        if let Some(r) = place.spilled {
            // SAFETY: the cells of the code that was interrupted, or the calling thread's context, which was.
            let value = unsafe {
                match self.hot() {
                    Some(hot) => (*hot).scratch[0],
                    None => (*ctx::ctx()).scratch[0],
                }
            };
            if let Some(g) = regs.gpr.get_mut(usize::from(r)) {
                *g = value;
            }
        }
        if let Some(r) = place.borrowed {
            // SAFETY: as above.
            let value = unsafe {
                match self.hot() {
                    Some(hot) => (*hot).borrowed,
                    None => (*ctx::ctx()).scratch[2],
                }
            };
            if let Some(g) = regs.gpr.get_mut(usize::from(r)) {
                *g = value;
            }
        }
        if let Some(owed) = place.owed {
            // SAFETY: the calling thread's context; its translated code does not run now.
            unsafe { ctx::Ctx::pay_back(ctx::ctx(), owed) };
        }
        regs.rip = place.pc;
        if self.is_unsteady(place.pc) {
            return Some(RecoveredKind::Exact);
        }
        let room = 4096 - (place.pc & 4095) as usize;
        // SAFETY: guest code that was translated is readable to the end of its page, and its translation is thrown away
        // before that changes.
        let bytes = unsafe { std::slice::from_raw_parts(place.pc as *const u8, room) };
        regs.rflags &= !liveness::dead_flags(place.pc, bytes, decoder_options(), self.tr.faults);
        Some(RecoveredKind::Exact)
    }

    /// Repairs a clock update under way so that a stop requested with `Ctx::stop_at_next_tick` is not lost. Call it
    /// from the signal handler after the request, and write `regs` back if it returns true. Async-signal-safe.
    pub fn note_stop(&self, regs: &mut Recovered) -> bool {
        if !self.contains(regs.rip) {
            return false;
        }
        // The new count is in rcx, not yet stored: at the lea or at the store.
        let load = self.update_len() as u64;
        let before_lea = self.is_update(regs.rip.wrapping_sub(load));
        if !before_lea && !self.is_update(regs.rip.wrapping_sub(load + 4)) {
            return false;
        }
        let Some(rcx) = regs.gpr.get_mut(usize::from(RCX)) else {
            return false;
        };
        // As in `request_stop`: where the next update reaches the limit, its carry would hide the request. (One that pays
        // back is a few ticks from it.)
        if (*rcx as i64) >= 0 || (before_lea && *rcx as i32 == -1) {
            return false;
        }
        *rcx &= 0xffff_ffff;
        true
    }

    /// Whether the code at a pc that has translations is `CodeSource::unsteady`.
    fn is_unsteady(&self, pc: u64) -> bool {
        self.unsteady.contains(&(pc >> 12))
    }

    /// Does the look of a check at its table that the processor refused with an alignment fault, which it does while the guest has
    /// set AC in its flags: `regs` are then those behind the look. False: the access is another one, the guest's.
    /// Async-signal-safe.
    pub fn look_unaligned(&self, regs: &mut Recovered) -> bool {
        let Some(table) = self.cfg.rights.filter(|_| self.contains(regs.rip)) else {
            return false;
        };
        let end = self.cfg.cache_base + self.cfg.cache_size as u64;
        let room = end.saturating_sub(regs.rip).min(15) as usize;
        // SAFETY: inside the cache, which is mapped readable.
        let code = unsafe { std::slice::from_raw_parts(regs.rip as *const u8, room) };
        let look = Decoder::with_ip(64, code, regs.rip, decoder_options()).decode();
        let of = |r: Register| match (r.is_gpr(), regs.gpr.get(r.number())) {
            (true, Some(v)) if r.size() == 8 => *v,
            (true, Some(v)) => u64::from(*v as u32),
            _ => 0,
        };
        let at = of(look.memory_base()).wrapping_add(look.memory_displacement64());
        let mut bytes = [0; 8];
        let Some(seen) = bytes.get_mut(..look.memory_size().size()) else {
            return false;
        };
        let table = table..table + RIGHTS_LEN as u64;
        if seen.is_empty() || look.memory_index() != Register::None || !table.contains(&at) {
            return false;
        }
        // SAFETY: within the table, or the slack behind it.
        seen.copy_from_slice(unsafe { std::slice::from_raw_parts(at as *const u8, seen.len()) });
        let seen = u64::from_le_bytes(bytes);
        match (look.mnemonic(), look.op1_kind()) {
            (Mnemonic::Mov | Mnemonic::Movzx, OpKind::Memory) => {
                if let Some(to) = regs.gpr.get_mut(look.op0_register().number()) {
                    *to = seen;
                }
            }
            (Mnemonic::Test, kind) => {
                let with = match kind {
                    OpKind::Register => of(look.op1_register()),
                    _ => look.immediate(1),
                };
                // (No bits of an immediate beyond the operand are in what was seen.) Only ZF is looked at behind it.
                regs.rflags &= !liveness::ARITH;
                if seen & with == 0 {
                    regs.rflags |= ZF;
                }
            }
            _ => return false,
        }
        regs.rip = look.next_ip();
        true
    }

    /// Length of the load and of the store of a clock update; between them lies a `lea` of four bytes.
    fn update_len(&self) -> usize {
        match self.cells.clk {
            Cell::Thread(_) => 9,
            Cell::Fixed(_) => 7,
        }
    }

    /// Whether a flag-free clock update begins at this address.
    fn is_update(&self, at: u64) -> bool {
        let len = 2 * self.update_len() + 4;
        if !self.contains(at) || !self.contains(at + len as u64) {
            return false;
        }
        // SAFETY: inside the cache, which is mapped readable.
        let code = unsafe { std::slice::from_raw_parts(at as *const u8, len) };
        // Made again for this address. No allocation: this runs in signal handlers.
        let by = code.get(self.update_len() + 3).map_or(1, |b| *b as i8);
        self.cells.clocks().any(|clk| {
            let mut bytes = [0u8; 24];
            let n = flagless_update_at(&mut bytes, at, clk, by);
            bytes.get(..n) == Some(code)
        })
    }
}

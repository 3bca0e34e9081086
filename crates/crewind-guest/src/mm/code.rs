//! Pages that code was translated from, and noticing when they change.
//!
//! Problem: a translation must go when its source bytes change. Pages the guest cannot write change only by
//! calls that pass through [`Space`]; pages it can write are made read-only on the host ("guarded") as long as
//! translations of them exist, and a write to one comes here as a fault. A page that is mapped more than once
//! is guarded in every mapping through which it can be written.
//!
//! Invariant: `guarded` pages are mapped, writable for the guest and not writable on the host.

use super::host::Host;
use super::vma::Vma;
use super::{Effects, Space, space::host_prot};
use crate::errno::Errno;
use crate::layout::{PAGE, page_down};
use std::collections::BTreeMap;
use std::ops::Range;

/// Verdict on a fault of a guest store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// The page was guarded and now is writable again: drop the translations named, execute the store again.
    Code(Effects),
    /// The guest's own fault.
    Guest,
}

/// Most runs of guarded pages. Each can cost two mappings, of which the kernel allows 65,530 by default; what
/// is left is for the guest, and for taking guards away.
const GUARDED_RUNS_MAX: usize = 12_000;

/// A set of addresses as ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RangeSet {
    by_start: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub(super) fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    fn runs(&self) -> usize {
        self.by_start.len()
    }

    pub(super) fn contains(&self, range: &Range<u64>) -> bool {
        self.by_start
            .range(..=range.start)
            .next_back()
            .is_some_and(|(_, end)| *end >= range.end)
    }

    pub(super) fn insert(&mut self, mut range: Range<u64>) {
        // Swallow every range that touches this one.
        while let Some((&start, &end)) = self
            .by_start
            .range(..=range.end)
            .next_back()
            .filter(|(_, end)| **end >= range.start)
        {
            self.by_start.remove(&start);
            range = range.start.min(start)..range.end.max(end);
        }
        self.by_start.insert(range.start, range.end);
    }

    /// Takes `range` out; returns the parts of it that were in.
    pub(super) fn remove(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let parts = self.within(range.clone());
        for part in &parts {
            let Some((&start, &end)) = self.by_start.range(..=part.start).next_back() else {
                continue;
            };
            self.by_start.remove(&start);
            if start < part.start {
                self.by_start.insert(start, part.start);
            }
            if part.end < end {
                self.by_start.insert(part.end, end);
            }
        }
        parts
    }

    /// The parts of `range` that are in.
    pub(super) fn within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        if self.by_start.is_empty() || range.is_empty() {
            return Vec::new();
        }
        let from = self
            .by_start
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(s, _)| *s);
        self.by_start
            .range(from..range.end)
            .map(|(s, e)| (*s).max(range.start)..(*e).min(range.end))
            .filter(|r| !r.is_empty())
            .collect()
    }
}

/// Which pages have translations, and which of them are guarded.
#[derive(Clone, Debug, Default)]
pub(super) struct CodePages {
    translated: RangeSet,
    guarded: RangeSet,
}

impl CodePages {
    /// The mapping of `range` is gone or no longer code: its translations are stale, its guards with it.
    pub(super) fn forget(&mut self, range: Range<u64>, fx: &mut Effects) {
        self.guarded.remove(range.clone());
        fx.invalidate.extend(self.translated.remove(range));
    }

    /// The host's rights in `range` were just set to the guest's.
    pub(super) fn unguarded(&mut self, range: Range<u64>) {
        self.guarded.remove(range);
    }

    pub(super) fn translated_in(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.translated.within(range)
    }
}

fn pages(range: Range<u64>) -> Range<u64> {
    page_down(range.start)..page_down(range.end.saturating_add(PAGE - 1))
}

impl<H: Host> Space<H> {
    /// Code of `start..end` was (or is about to be) translated: from now on its changes are reported.
    ///
    /// Call it before reading the bytes. An error means that changes cannot be noticed, so the translation
    /// must not be kept.
    pub fn note_translated(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let range = pages(start..end);
        if self.code.translated.contains(&range) {
            return Ok(());
        }
        for piece in self.pieces(range.clone()) {
            if piece.prot.write {
                self.try_guard(piece.start..piece.end)?;
            }
            for alias in self.aliases(&piece) {
                if alias.prot.write && alias.flags.shared {
                    self.try_guard(alias.start..alias.end)?;
                }
            }
        }
        self.code.translated.insert(range);
        Ok(())
    }

    /// Judges a fault of a store at `addr`. Not for signal context: it allocates.
    pub fn write_fault(&mut self, addr: u64) -> WriteFault {
        let page = pages(addr..addr + 1);
        if !self.code.guarded.contains(&page) {
            return WriteFault::Guest;
        }
        let mut effects = Effects::default();
        self.drop_code(page, &mut effects);
        WriteFault::Code(effects)
    }

    /// To be called before the kernel, or the runtime itself, writes guest memory: takes the guards away that
    /// would make the write fail. Costs nothing when no writable page holds translated code.
    pub fn prepare_kernel_write(&mut self, addr: u64, len: u64) -> Effects {
        let mut effects = Effects::default();
        if self.code.guarded.is_empty() || len == 0 {
            return effects;
        }
        for part in self
            .code
            .guarded
            .within(pages(addr..addr.saturating_add(len)))
        {
            self.drop_code(part, &mut effects);
        }
        effects
    }

    /// All mappings with the rights that they have on the host now: start, length, rights.
    pub fn host_rights(&self) -> Vec<(u64, u64, i32)> {
        let mut out = Vec::new();
        for v in self.vmas.iter() {
            let prot = host_prot(v.prot);
            let mut at = v.start;
            for part in self.code.guarded.within(v.start..v.end) {
                out.push((at, part.start - at, prot));
                let len = part.end - part.start;
                out.push((part.start, len, prot & !libc::PROT_WRITE));
                at = part.end;
            }
            out.push((at, v.end - at, prot));
        }
        out.retain(|(_, len, _)| *len != 0);
        out
    }

    /// The bytes of `addr..addr+len` changed by some other way (a write to the file mapped there): drops their
    /// translations, guards included.
    pub fn content_changed(&mut self, addr: u64, len: u64) -> Effects {
        let mut effects = Effects::default();
        if !self.code.translated.is_empty() && len != 0 {
            self.drop_code(pages(addr..addr.saturating_add(len)), &mut effects);
        }
        effects
    }

    /// Drops translations of these pages in all their mappings, and opens them for writing.
    pub(super) fn drop_code(&mut self, range: Range<u64>, fx: &mut Effects) {
        if self.code.translated.is_empty() && self.code.guarded.is_empty() {
            return;
        }
        for piece in self.pieces(range) {
            for alias in self.aliases(&piece) {
                self.drop_piece(&alias, fx);
            }
            self.drop_piece(&piece, fx);
        }
    }

    fn drop_piece(&mut self, piece: &Vma, fx: &mut Effects) {
        fx.invalidate
            .extend(self.code.translated.remove(piece.start..piece.end));
        for part in self.code.guarded.remove(piece.start..piece.end) {
            if self
                .host
                .mprotect(part.start, part.end - part.start, host_prot(piece.prot))
                .is_err()
            {
                // Out of mappings: do what needs fewer.
                if self.unguard_all_around(part.start, fx).is_err() {
                    self.code.guarded.insert(part);
                    fx.out_of_mappings = true;
                }
            }
        }
    }

    /// Gives the rights back to all around `addr` that has the same, at the price of all translations from
    /// guarded pages there. Unless neighbours with other rights happen to look alike on the host, the host's
    /// mappings end where this range does, and none has to be split.
    fn unguard_all_around(&mut self, addr: u64, fx: &mut Effects) -> Result<(), Errno> {
        let Some(v) = self.vmas.find(addr) else {
            return Ok(());
        };
        let prot = host_prot(v.prot);
        let alike = |v: &&Vma| host_prot(v.prot) == prot;
        let (mut start, mut end) = (v.start, v.end);
        while let Some(v) = start
            .checked_sub(1)
            .and_then(|below| self.vmas.find(below))
            .filter(alike)
        {
            start = v.start;
        }
        while let Some(v) = self.vmas.find(end).filter(alike) {
            end = v.end;
        }
        self.host.mprotect(start, end - start, prot)?;
        // Translations through other mappings of these pages go as well. Guards that stay in those do no harm:
        // a write there finds nothing to drop.
        for lost in self.code.guarded.remove(start..end) {
            for piece in self.pieces(lost) {
                let aliases = self.aliases(&piece);
                for v in aliases.iter().chain([&piece]) {
                    fx.invalidate
                        .extend(self.code.translated.remove(v.start..v.end));
                }
            }
        }
        Ok(())
    }

    /// A mapping appeared or became writable: pages of its object that were translated through another mapping
    /// are guarded in this one too.
    pub(super) fn guard_new_alias(&mut self, range: Range<u64>, fx: &mut Effects) {
        if self.code.translated.is_empty() {
            return;
        }
        for piece in self
            .pieces(range)
            .into_iter()
            .filter(|p| p.flags.shared && p.prot.write)
        {
            for alias in self.aliases(&piece) {
                for code in self.code.translated_in(alias.start..alias.end) {
                    let here = code.start - alias.start + self.same_place(&piece, &alias);
                    if self
                        .try_guard(here..here + (code.end - code.start))
                        .is_err()
                    {
                        self.drop_code(code, fx);
                    }
                }
            }
        }
    }

    /// Translated pages of `range` became writable (and stay code): guards them, or drops what cannot be.
    pub(super) fn guard_translated(&mut self, range: Range<u64>, fx: &mut Effects) {
        for code in self.code.translated_in(range) {
            if self.try_guard(code.clone()).is_err() {
                self.drop_code(code, fx);
            }
        }
    }

    /// Address in `piece` of the byte that `alias` starts with.
    fn same_place(&self, piece: &Vma, alias: &Vma) -> u64 {
        match (piece.object.place(), alias.object.place()) {
            (Some((_, here)), Some((_, there))) => piece.start + (there - here),
            _ => piece.start,
        }
    }

    fn try_guard(&mut self, range: Range<u64>) -> Result<(), Errno> {
        if self.code.guarded.contains(&range) {
            return Ok(());
        }
        if self.code.guarded.runs() >= GUARDED_RUNS_MAX {
            return Err(Errno(libc::ENOMEM));
        }
        for piece in self.pieces(range) {
            let prot = host_prot(piece.prot) & !libc::PROT_WRITE;
            self.host.mprotect(piece.start, piece.len(), prot)?;
            self.code.guarded.insert(piece.start..piece.end);
        }
        Ok(())
    }

    /// Other mappings of the bytes of `piece`, clipped to them.
    pub(super) fn aliases(&self, piece: &Vma) -> Vec<Vma> {
        let Some((identity, offset)) = piece.object.place() else {
            return Vec::new();
        };
        let end = offset + piece.len();
        let mut out = Vec::new();
        for v in self.vmas.iter() {
            let Some((other, from)) = v.object.place().filter(|(other, _)| *other == identity)
            else {
                continue;
            };
            debug_assert!(other == identity);
            let (lo, hi) = (offset.max(from), end.min(from + v.len()));
            if lo >= hi {
                continue;
            }
            let range = v.start + (lo - from)..v.start + (hi - from);
            if range.start != piece.start {
                out.push(v.clipped(&range));
            }
        }
        out
    }
}

//! The code cache: where translations lie, how they are found and linked, and the dispatcher.
//!
//! Layout: stubs, then translations growing up; link stubs growing down from the end. A link stub is 17 bytes that
//! leave translated code with the stub's number; it is taken when a link is made, and free again when the link is
//! patched to its target. Space of translations is only reused after a flush, so patching a dead one is harmless.
//!
//! An indirect transfer reads the table at the low 16 bits of its target and jumps to the first indirect entry with
//! these bits; entries with the same bits are chained through their mismatch jumps, the last one's leads to the miss
//! stub. So all entries stay reachable without leaving translated code.

use crate::api::{CodeSource, Config, FetchFault, HotState, Stats};
use crate::ctx::Ctx;
use crate::emit::{Buf, Cell, Cells, Hot, ctx_displacement};
use crate::guard::{CheckSite, FlagFree, Guard, STEP_CHECK};
use crate::index::{Frag, FragId, LinkId, LinkState, Links, MAX_FIELD, NONE, PcIndex};
use crate::liveness::Faults;
use crate::poke::Poke;
use crate::rights::{
    self, CheckedRange, NO_READ, NO_WRITE, RIGHTS_LEN, RIGHTS_SLACK, Special, Test,
};
use crate::stubs::{self, STUBS_SIZE, Stubs, Vectors};
use crate::table::{TABLE_SIZE, Table};
use crate::translate::{Calls, LOOP, MARKS, MAX_CODE, NextIds, Purpose, Site, Translator};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;

/// Most bytes of a link stub: `mov dword [exit_arg], imm; jmp`.
const SLOT_SIZE: u64 = 17;
/// The fixed cells have a page of their own at the start of the cache: processors watch for stores near code.
const CELLS_SIZE: usize = 4096;
/// Where in that page. Not at its start, where arrays of guests begin: a load from the same place of another page
/// waits for a store to the cells (0.30 -> 0.77 ms in a loop that dispatches through such an array).
const CELLS_AT: u64 = 0xac0;
const LARGE_PAGE: u64 = 2 << 20;
/// Translations lie behind the cells and the stubs.
const FIRST: u64 = (CELLS_SIZE + STUBS_SIZE) as u64;

/// Multiplicative hashing; keys are page numbers and pcs.
#[derive(Default)]
pub(crate) struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        let h = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = h ^ (h >> 32);
    }
}

/// How a pc was reached that has no translation yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Came {
    pub pc: u64,
    /// A direct link that may be patched, and the generation it is of.
    pub from: Option<(LinkId, u64)>,
    pub indirect: bool,
}

/// A code cache: of a process, or of one of its vcpus.
pub struct CodeCache {
    pub(crate) cfg: Config,
    pub(crate) cells: Cells,
    pub(crate) stubs: Stubs,
    pub(crate) tr: Translator,
    table: Table,
    /// Where the next translation goes.
    next: u64,
    pub(crate) frags: Vec<Frag>,
    by_pc: PcIndex,
    by_page: HashMap<u64, Vec<FragId>, BuildHasherDefault<PageHasher>>,
    pub(crate) maps: Vec<u8>,
    pub(crate) links: Links,
    pub(crate) sites: Vec<Site>,
    /// Owner of each link stub made.
    pub(crate) slot_owner: Vec<LinkId>,
    /// Stubs that leave with `kind::LINK` and are not in use.
    free_slots: Vec<u32>,
    /// Stubs that leave with `kind::TICK` and are not in use.
    free_tick_slots: Vec<u32>,
    /// `run` returns where it would have to translate.
    pub(crate) deferred: bool,
    /// How the pc was reached for which it did so.
    pub(crate) came: Option<Came>,
    /// Counts flushes, so that a link number from before one is not used.
    pub(crate) generation: u64,
    pub(crate) stats: Stats,
    /// Checks of rights and their ranges.
    pub(crate) check_sites: Vec<CheckSite>,
    check_tests: Vec<Test>,
    /// The check of the last `single`.
    step_check: Option<(CheckSite, Vec<Test>)>,
    slack_is_set: bool,
    /// Translations of single instructions for `step_again`, by pc and variant.
    pub(crate) kept: HashMap<(u64, u8), FragId, BuildHasherDefault<PageHasher>>,
    /// Marked pcs at which there are no loops.
    vain: HashSet<u64, BuildHasherDefault<PageHasher>>,
    /// Pages with translations whose code is `CodeSource::unsteady`.
    pub(crate) unsteady: HashSet<u64, BuildHasherDefault<PageHasher>>,
}

/// Maps `size` bytes at exactly `base`.
fn map_fixed(base: u64, size: usize, prot: i32) -> io::Result<()> {
    // SAFETY: NOREPLACE: nothing that is mapped changes.
    let p = unsafe {
        libc::mmap(
            base as *mut libc::c_void,
            size,
            prot,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_FIXED_NOREPLACE
                | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if p == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if p as u64 != base {
        // SAFETY: just mapped (a kernel without NOREPLACE took the address as a hint).
        unsafe { libc::munmap(p, size) };
        return Err(io::Error::other(format!("could not map {base:#x}")));
    }
    Ok(())
}

fn check_config(cfg: &Config) -> io::Result<()> {
    let end = cfg.cache_base.saturating_add(cfg.cache_size as u64);
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_string());
    if end > 1 << 31 || cfg.table_base > (1 << 31) - TABLE_SIZE as u64 {
        return Err(bad("code cache and table must end below 2 GB"));
    }
    if cfg.cache_size < FIRST as usize + 6 * MAX_CODE || cfg.cache_size > MAX_FIELD as usize {
        return Err(bad("a code cache of this size does not work"));
    }
    if cfg.cache_base & 4095 != 0 || cfg.table_base & 4095 != 0 {
        return Err(bad("code cache and table must begin at a page"));
    }
    if let Some(base) = cfg.rights {
        let len = (RIGHTS_LEN + RIGHTS_SLACK) as u64;
        if base & 4095 != 0 || base.checked_add(len).is_none_or(|end| end > 1 << 31) {
            return Err(bad(
                "the table of rights must begin at a page and end below 2 GB",
            ));
        }
        if cfg.options.hot_state != HotState::Shared {
            return Err(bad("checks of rights need HotState::Shared"));
        }
    }
    Ok(())
}

/// The code in front of all translations.
fn assemble_stubs(cfg: &Config, cells: &Cells, ctx: i32) -> io::Result<(Vec<u8>, Stubs)> {
    let at = cfg.cache_base + CELLS_SIZE as u64;
    let (mut code, mut stubs) =
        stubs::assemble(at, ctx, cells, Vectors::host(), cfg.pkru).map_err(io::Error::other)?;
    if let Some(table) = cfg.rights {
        code.resize(code.len().next_multiple_of(16), 0xcc);
        stubs.rep = at + code.len() as u64;
        let hot = cfg.cache_base + CELLS_AT;
        let rep = crate::rep::assemble(stubs.rep, hot, table, stubs.check, cfg.pages);
        code.extend_from_slice(&rep.map_err(io::Error::other)?);
    }
    if code.len() > STUBS_SIZE {
        return Err(io::Error::other("stubs do not fit"));
    }
    Ok((code, stubs))
}

/// How the cache checks rights, if it does.
fn guard(cfg: &Config) -> Option<Guard> {
    cfg.rights.map(|table| Guard {
        table,
        pages: cfg.pages,
        flag_free: if cfg.options.bmi2 {
            FlagFree::host()
        } else {
            FlagFree::Save
        },
    })
}

impl CodeCache {
    /// Maps cache and table at their fixed addresses. They are private, so a fork has its own.
    pub fn new(cfg: Config) -> io::Result<CodeCache> {
        check_config(&cfg)?;
        let end = cfg.cache_base.saturating_add(cfg.cache_size as u64);
        let ctx = ctx_displacement()?;
        let cells = match cfg.options.hot_state {
            HotState::Shared => Cells::fixed(cfg.cache_base + CELLS_AT),
            HotState::PerThread => Cells::of_thread(ctx, cfg.cache_base + CELLS_AT),
        };
        let stubs_at = cfg.cache_base + CELLS_SIZE as u64;
        let (code, stubs) = assemble_stubs(&cfg, &cells, ctx)?;
        let table = Table::new(cfg.table_base, stubs.miss)?;
        map_fixed(
            cfg.cache_base,
            cfg.cache_size,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        )?;
        let mut cache = CodeCache {
            cfg,
            cells,
            stubs,
            tr: Translator::new(cfg.options, cells, stubs, cfg.table_base),
            table,
            next: cfg.cache_base + FIRST,
            frags: vec![Frag::NONE],
            by_pc: PcIndex::default(),
            by_page: HashMap::default(),
            maps: Vec::new(),
            links: Links::default(),
            sites: Vec::new(),
            slot_owner: Vec::new(),
            free_slots: Vec::new(),
            free_tick_slots: Vec::new(),
            deferred: false,
            came: None,
            generation: 0,
            stats: Stats::default(),
            check_sites: Vec::new(),
            check_tests: Vec::new(),
            step_check: None,
            slack_is_set: false,
            kept: HashMap::default(),
            unsteady: HashSet::default(),
            vain: HashSet::default(),
        };
        cache.tr.guard = guard(&cfg);
        let hot = (cfg.cache_base + CELLS_AT) as *mut Hot;
        // SAFETY: in the page of the cells, which was mapped above.
        unsafe {
            (*hot).calm = 1;
            (*hot).read_mask = u32::from(NO_READ) * 0x0101_0101;
        }
        cache.write(stubs_at, &code);
        // Large programs run from large pages: fewer faults and misses of the instruction TLB. Small ones do not fill
        // the first part, which stays small pages, as does the last one, where stubs grow down.
        let from = (cfg.cache_base + LARGE_PAGE).next_multiple_of(LARGE_PAGE);
        let to = end.saturating_sub(2 * LARGE_PAGE);
        if from < to {
            // SAFETY: advice about memory mapped above.
            unsafe {
                libc::madvise(
                    from as *mut libc::c_void,
                    (to - from) as usize,
                    libc::MADV_HUGEPAGE,
                )
            };
        }
        Ok(cache)
    }

    /// The cells, if they lie beside the cache.
    pub(crate) fn hot(&self) -> Option<*mut Hot> {
        (self.cfg.options.hot_state == HotState::Shared)
            .then_some((self.cfg.cache_base + CELLS_AT) as *mut Hot)
    }

    /// For a cache beside others that run at the same time. From now on `run` does not translate, but returns
    /// `Exit::Untranslated` where it would: for callers that have to take a lock for it (`src` is not used by `run`
    /// then). And ticks see a `Poke`. Call it before anything is translated.
    pub fn defer_translation(&mut self) {
        self.deferred = true;
        let at = self.cfg.cache_base + CELLS_AT + std::mem::offset_of!(Hot, calm) as u64;
        self.tr.calm = Some(Cell::Fixed(at));
    }

    /// Begins or ends checking of rights, with a table as in `Config::rights`. All translations are thrown away.
    ///
    /// # Errors
    /// As for `new`.
    pub fn set_rights(&mut self, rights: Option<u64>) -> io::Result<()> {
        if self.cfg.rights == rights {
            return Ok(());
        }
        self.set_config(Config { rights, ..self.cfg })
    }

    /// From now on the table has a byte for each granule, and all accesses look at it: for a cache made with
    /// `Config::pages`. All translations are thrown away. `Config::pkru` stays as it was.
    ///
    /// # Errors
    /// As for `new`.
    pub fn check_all(&mut self) -> io::Result<()> {
        self.set_config(Config {
            pages: false,
            ..self.cfg
        })
    }

    fn set_config(&mut self, cfg: Config) -> io::Result<()> {
        check_config(&cfg)?;
        let (code, stubs) = assemble_stubs(&cfg, &self.cells, ctx_displacement()?)?;
        self.flush();
        // All stubs but the one behind them are as they were.
        self.write(cfg.cache_base + CELLS_SIZE as u64, &code);
        self.cfg = cfg;
        self.stubs = stubs;
        self.tr.stubs = stubs;
        self.tr.guard = guard(&cfg);
        self.slack_is_set = false;
        Ok(())
    }

    /// For making whoever runs the cache leave it.
    pub fn poke(&self) -> Poke {
        let hot = self.hot().unwrap_or(std::ptr::null_mut()) as usize;
        Poke {
            flag: hot + std::mem::offset_of!(Hot, calm),
        }
    }

    /// Where the translation begins that a link lies in.
    fn begin_of(&self, link: LinkId) -> Option<u64> {
        let field = self.links.field(link)?;
        let n = self.frags.partition_point(|f| f.host <= field);
        self.frags.get(n.checked_sub(1)?).map(|f| f.pc & !MARKS)
    }

    /// A pc with the mark of the link that led there.
    fn marked(&self, pc: u64, from: Option<(LinkId, u64)>) -> u64 {
        let link = from.filter(|(_, generation)| *generation == self.generation);
        let target = link.and_then(|(link, _)| self.links.target(link));
        self.translatable(pc | target.map_or(0, |t| t & MARKS))
    }

    /// A pc without a mark that there was no loop for.
    fn translatable(&self, pc: u64) -> u64 {
        match pc & MARKS != 0 && self.vain.contains(&pc) {
            true => pc & !MARKS,
            false => pc,
        }
    }

    /// Whether running from `pc`, reached by that link, needs something translated first.
    pub(crate) fn lacks(&self, pc: u64, from: Option<(LinkId, u64)>, indirect: bool) -> bool {
        let pc = self.marked(pc, from);
        match self.by_pc.get(pc, &self.frags) {
            None => true,
            Some(id) => {
                indirect
                    && self.cfg.options.inline_lookup
                    && self.frags.get(id as usize).is_some_and(|f| f.entry == 0)
                    && self.has_room()
            }
        }
    }

    // Translations.

    pub(crate) fn body_of(&self, id: FragId) -> u64 {
        self.frags.get(id as usize).map_or(self.stubs.miss, |f| {
            self.cfg.cache_base + u64::from(f.host) + u64::from(f.body)
        })
    }

    /// The translation of `pc`, reached by that link, made if there is none: one for a loop if the link's target has one of
    /// the `MARKS`, and there turns out to be such a loop.
    pub(crate) fn frag_at(
        &mut self,
        pc: u64,
        from: Option<(LinkId, u64)>,
        src: &dyn CodeSource,
        purpose: Purpose,
    ) -> Result<FragId, FetchFault> {
        let pc = self.marked(pc, from);
        if let Some(id) = self.by_pc.get(pc, &self.frags) {
            return Ok(id);
        }
        let link = from.filter(|_| pc & MARKS != 0);
        self.tr.via = link.and_then(|(link, _)| self.begin_of(link));
        self.make_room();
        let made_for = match (pc & MARKS, self.cfg.options.inline_lookup) {
            (0, true) => purpose,
            (0, false) => Purpose::Direct,
            (LOOP, _) => Purpose::Loop(Calls::End),
            _ => Purpose::Loop(Calls::Followed),
        };
        self.translate(pc & !MARKS, src, made_for)?;
        if self.tr.in_vain() {
            self.vain.insert(pc);
            return self.frag_at(pc & !MARKS, None, src, purpose);
        }
        let purpose = made_for;
        for (start, end) in &self.tr.ranges {
            src.translated(*start, *end);
            if self.tr.unsteady && src.unsteady(*start) {
                self.unsteady.extend(*start >> 12..=(*end - 1) >> 12);
            }
        }
        let id = self.commit(pc, purpose);
        self.depend(id);
        self.by_pc.insert(id, &self.frags);
        if purpose == Purpose::Indirect {
            self.enlist(id);
        }
        Ok(id)
    }

    fn translate(
        &mut self,
        pc: u64,
        src: &dyn CodeSource,
        purpose: Purpose,
    ) -> Result<(), FetchFault> {
        let ids = NextIds {
            frag: self.frags.len() as FragId,
            site: self.sites.len() as u32,
            check: self.check_sites.len() as u32,
            test: self.check_tests.len() as u32,
        };
        self.set_slack();
        let (by_pc, frags) = (&self.by_pc, &self.frags);
        self.tr.translate(src, pc, self.next, purpose, ids, &|p| {
            by_pc.get(p, frags).is_some()
        })
    }

    /// A translation of the one instruction at `pc` that nothing leads to; `discard_last` throws it away.
    pub(crate) fn single(&mut self, pc: u64, src: &dyn CodeSource) -> Result<FragId, FetchFault> {
        self.make_room();
        self.translate(pc, src, Purpose::Step)?;
        Ok(self.commit(pc, Purpose::Step))
    }

    /// Throws the last translation away, which `single` made: its links are the last ones, and none is patched.
    pub(crate) fn discard_last(&mut self) {
        for _ in 0..self.tr.links.len() {
            let last = self.links.len().wrapping_sub(1);
            if let Some(LinkState::Stub(slot)) = self.links.state(last) {
                self.free_slots.push(slot);
            }
            self.links.pop();
        }
        for t in &self.tr.ticks {
            self.free_tick_slots.push(t.slot);
        }
        self.sites
            .truncate(self.sites.len().saturating_sub(self.tr.sites.len()));
        self.step_check = self
            .tr
            .checks
            .sites
            .first()
            .map(|s| (s.clone(), self.tr.checks.tests.clone()));
        if let Some(f) = self.frags.pop() {
            self.maps.truncate(f.map as usize);
            self.next = self.cfg.cache_base + u64::from(f.host);
        }
    }

    /// Flushes if the next translation may not fit. There is always a stub left for each link, so that links can be
    /// taken back.
    fn make_room(&mut self) {
        if !self.has_room() {
            self.flush();
        }
    }

    /// Whether a translation and its entries fit.
    fn has_room(&self) -> bool {
        // A link takes at least five bytes of code, and may need a stub and another one for its tick.
        let stubs = (2 * u64::from(self.links.len()) + 4 * MAX_CODE as u64 / 5) * SLOT_SIZE;
        let end = self.cfg.cache_base + self.cfg.cache_size as u64;
        self.next + 2 * MAX_CODE as u64 + stubs <= end
    }

    /// Puts what the translator made into the cache.
    fn commit(&mut self, pc: u64, purpose: Purpose) -> FragId {
        let id = self.frags.len() as FragId;
        let host = (self.next - self.cfg.cache_base) as u32;
        let indirect = purpose == Purpose::Indirect;
        let len = self.tr.buf.bytes.len();
        self.frags.push(Frag {
            pc,
            host,
            map: self.maps.len() as u32,
            entry: if indirect {
                host + self.tr.entry as u32
            } else {
                0
            },
            chain_next: 0,
            incoming: NONE,
            len: len as u16,
            body: self.tr.body as u8,
            chain_field: self.tr.chain_field as u8,
        });
        self.maps.extend_from_slice(&self.tr.map.bytes);
        self.write(self.next, &self.tr.buf.bytes);
        self.next += len as u64;
        self.sites.extend_from_slice(&self.tr.sites);
        if purpose != Purpose::Step {
            self.check_sites.append(&mut self.tr.checks.sites);
            self.check_tests.extend_from_slice(&self.tr.checks.tests);
        }
        let first_link = self.links.len();
        for n in 0..self.tr.links.len() {
            let Some(l) = self.tr.links.get(n).copied() else {
                break;
            };
            let known = if !self.cfg.options.chaining || purpose == Purpose::Step {
                None
            } else if l.target == pc {
                Some(id)
            } else {
                self.by_pc.get(self.translatable(l.target), &self.frags)
            };
            let link = self.links.push(l.target, host + l.field);
            match known {
                Some(to) => self.lead_to(link, to),
                None => self.unlink(link),
            }
        }
        for n in 0..self.tr.ticks.len() {
            let Some((field, link)) = self.tr.ticks.get(n).map(|t| (t.field, t.link)) else {
                break;
            };
            let slot = match self.free_tick_slots.pop() {
                Some(s) => s,
                None => self.new_slot(self.stubs.tick),
            };
            self.own_slot(slot, first_link + link);
            let to = self.slot_addr(slot);
            self.set_rel_once(host + field, to);
            if let Some(t) = self.tr.ticks.get_mut(n) {
                t.slot = slot;
            }
        }
        if purpose != Purpose::Step {
            self.stats.fragments += 1;
            self.stats.guest_insns += self.tr.guest_insns as u64;
            self.stats.guest_bytes += self.tr.guest_bytes;
            self.stats.cache_bytes += len as u64;
        }
        id
    }

    /// Notes the pages the translator read for `id`.
    fn depend(&mut self, id: FragId) {
        for (start, end) in &self.tr.ranges {
            for page in start >> 12..=(end.saturating_sub(1).max(*start) >> 12) {
                let v = self.by_page.entry(page).or_default();
                if v.last() != Some(&id) {
                    v.push(id);
                }
            }
        }
    }

    // Links.

    /// Lets a link that leads to its stub lead to a translation, and frees the stub.
    pub(crate) fn patch(&mut self, link: LinkId, to: FragId) {
        if let Some(LinkState::Stub(slot)) = self.links.state(link) {
            self.free_slots.push(slot);
            self.lead_to(link, to);
        }
    }

    fn lead_to(&mut self, link: LinkId, to: FragId) {
        let body = self.body_of(to);
        let (Some(field), Some(f)) = (self.links.field(link), self.frags.get_mut(to as usize))
        else {
            return;
        };
        self.links.set_state(link, LinkState::Patched(f.incoming));
        f.incoming = link;
        self.set_rel(field, body);
        self.stats.links += 1;
    }

    /// Lets a link lead to a stub of its own.
    fn unlink(&mut self, link: LinkId) {
        let slot = match self.free_slots.pop() {
            Some(s) => s,
            None => self.new_slot(self.stubs.link),
        };
        self.own_slot(slot, link);
        self.links.set_state(link, LinkState::Stub(slot));
        let to = self.slot_addr(slot);
        if let Some(field) = self.links.field(link) {
            self.set_rel(field, to);
        }
    }

    /// Makes a stub that goes to `exit` with its number.
    fn new_slot(&mut self, exit: u64) -> u32 {
        let s = self.slot_owner.len() as u32;
        self.slot_owner.push(NONE);
        let mut b = Buf::default();
        b.start(self.slot_addr(s));
        b.store_imm(self.cells.exit_arg, s);
        b.jmp_to(exit);
        self.write(b.base, &b.bytes);
        self.stats.cache_bytes += SLOT_SIZE;
        s
    }

    fn own_slot(&mut self, slot: u32, link: LinkId) {
        if let Some(o) = self.slot_owner.get_mut(slot as usize) {
            *o = link;
        }
    }

    fn slot_addr(&self, slot: u32) -> u64 {
        self.cfg.cache_base + self.cfg.cache_size as u64 - (u64::from(slot) + 1) * SLOT_SIZE
    }

    // Indirect entries.

    /// Gives a translation an indirect entry if it has none.
    pub(crate) fn ensure_entry(&mut self, id: FragId, src: &dyn CodeSource) {
        let Some(f) = self.frags.get(id as usize) else {
            return;
        };
        // Without room it stays a miss; the next translation flushes.
        if f.entry != 0 || !self.has_room() {
            return;
        }
        let (pc, body, host) = (f.pc, self.body_of(id), self.next);
        self.tr.separate_entry(src, pc, id, host, body);
        for (start, end) in &self.tr.ranges {
            src.translated(*start, *end);
        }
        self.depend(id);
        self.write(host, &self.tr.buf.bytes);
        let len = self.tr.buf.bytes.len() as u64;
        self.next += len;
        self.stats.cache_bytes += len;
        let at = (host - self.cfg.cache_base) as u32 + self.tr.entry as u32;
        if let Some(f) = self.frags.get_mut(id as usize) {
            f.entry = at;
            f.chain_field = self.tr.chain_field as u8;
        }
        self.enlist(id);
    }

    /// Puts a translation's entry at the head of its slot.
    fn enlist(&mut self, id: FragId) {
        let head = self
            .frags
            .get(id as usize)
            .map_or(0, |f| self.head_of(f.pc));
        let next = self.entry_of(head).unwrap_or(self.stubs.miss);
        let Some(f) = self.frags.get_mut(id as usize) else {
            return;
        };
        f.chain_next = head;
        let (pc, field) = (f.pc, f.entry - u32::from(f.chain_field));
        self.set_rel(field, next);
        self.table.set(pc, self.entry_of(id));
    }

    /// The translation whose entry the slot of `pc` leads to: its number lies in front of the entry.
    fn head_of(&self, pc: u64) -> FragId {
        match self.table.get(pc) {
            // SAFETY: entries have four bytes of the cache in front of them.
            Some(at) => unsafe { ((at - 4) as *const FragId).read_unaligned() },
            None => 0,
        }
    }

    fn entry_of(&self, id: FragId) -> Option<u64> {
        let f = self.frags.get(id as usize).filter(|f| f.entry != 0)?;
        Some(self.cfg.cache_base + u64::from(f.entry))
    }

    /// Takes a translation's entry out of its slot.
    fn delist(&mut self, id: FragId) {
        let Some(f) = self.frags.get(id as usize).filter(|f| f.entry != 0) else {
            return;
        };
        let (pc, after) = (f.pc, f.chain_next);
        let to = self.entry_of(after);
        let mut at = self.head_of(pc);
        if at == id {
            self.table.set(pc, to);
            return;
        }
        while let Some(f) = self
            .frags
            .get_mut(at as usize)
            .filter(|f| f.chain_next != 0)
        {
            if f.chain_next == id {
                f.chain_next = after;
                let field = f.entry - u32::from(f.chain_field);
                self.set_rel(field, to.unwrap_or(self.stubs.miss));
                return;
            }
            at = f.chain_next;
        }
    }

    // Forgetting.

    /// Forgets translations of the pages of `start..end`; true if there were any.
    pub fn invalidate(&mut self, start: u64, end: u64) -> bool {
        if start >= end {
            return false;
        }
        self.kept.clear();
        self.vain.clear();
        let (first, last) = (start >> 12, (end - 1) >> 12);
        let mut pages: Vec<u64> = if last - first < self.by_page.len() as u64 {
            (first..=last).collect()
        } else {
            self.by_page
                .keys()
                .copied()
                .filter(|p| (first..=last).contains(p))
                .collect()
        };
        pages.sort_unstable();
        let mut any = false;
        for page in pages {
            self.unsteady.remove(&page);
            for id in self.by_page.remove(&page).unwrap_or_default() {
                any |= self.kill(id);
            }
        }
        any
    }

    pub(crate) fn kill(&mut self, id: FragId) -> bool {
        let Some(f) = self.frags.get_mut(id as usize).filter(|f| !f.is_dead()) else {
            return false;
        };
        f.len = 0;
        let mut link = std::mem::replace(&mut f.incoming, NONE);
        let pc = f.pc;
        self.by_pc.remove(id, pc);
        while let Some(LinkState::Patched(next)) = self.links.state(link) {
            self.unlink(link);
            link = next;
        }
        self.delist(id);
        self.stats.invalidated += 1;
        true
    }

    /// From now on faults show the guest's exact flags, also those that the faulting instruction would have
    /// overwritten. For guests that handle faults; costs a little in loops that begin with a memory access.
    pub fn show_flags_at_faults(&mut self) {
        if self.tr.faults == Faults::ShowZeros {
            self.tr.faults = Faults::ShowFlags;
            self.flush();
        }
    }

    /// Forgets all translations.
    pub fn flush(&mut self) {
        self.next = self.cfg.cache_base + FIRST;
        self.frags.truncate(1);
        self.by_pc.clear();
        self.by_page.clear();
        self.kept.clear();
        self.vain.clear();
        self.unsteady.clear();
        self.maps.clear();
        self.links.clear();
        self.sites.clear();
        self.check_sites.clear();
        self.check_tests.clear();
        self.slot_owner.clear();
        self.free_slots.clear();
        self.free_tick_slots.clear();
        self.generation += 1;
        self.stats.flushes += 1;
        self.stats.cache_bytes = 0;
        self.table.clear();
        // SAFETY: the cache behind the stubs, mapped by `new`, private and anonymous, so this gives zeros; no thread is in
        // translated code.
        unsafe {
            libc::madvise(
                (self.cfg.cache_base + FIRST) as *mut libc::c_void,
                self.cfg.cache_size - FIRST as usize,
                libc::MADV_DONTNEED,
            );
        }
    }

    /// Translations that depend on the page of `pc`.
    pub(crate) fn on_page(&self, pc: u64) -> Vec<FragId> {
        self.by_page.get(&(pc >> 12)).cloned().unwrap_or_default()
    }

    // Checks of rights.

    /// The granule behind the table is forbidden, so that a look beyond its end goes on to look exactly.
    fn set_slack(&mut self) {
        if let (Some(base), false) = (self.cfg.rights, self.slack_is_set) {
            let slack = (base + RIGHTS_LEN as u64) as *mut u8;
            // SAFETY: the caller of `new` promised that table and slack are mapped before the first translation.
            unsafe { std::ptr::write_bytes(slack, NO_READ | NO_WRITE, 64) };
            self.slack_is_set = true;
        }
    }

    /// The check with this number.
    pub(crate) fn check_site(&self, site: u32) -> Option<(&CheckSite, &[Test])> {
        if site == STEP_CHECK {
            return self.step_check.as_ref().map(|(s, t)| (s, t.as_slice()));
        }
        let s = self.check_sites.get(site as usize)?;
        let tests = s.tests.start as usize..s.tests.end as usize;
        Some((s, self.check_tests.get(tests)?))
    }

    /// What has to be accessible behind the check at which `run` left with `Exit::Check`, from the guest's registers
    /// then: the ranges of the check, and those of earlier ones that the translation still relies on. Their rights may
    /// all be there. To be called before the cache is used again. Ranges of repeated string instructions are those of
    /// the whole count, which may reach far into memory that is not mapped.
    pub fn check_ranges(&self, site: u32, ctx: &Ctx, out: &mut Vec<CheckedRange>) {
        let Some((s, tests)) = self.check_site(site) else {
            return;
        };
        out.extend(tests.iter().map(|t| t.range(ctx)));
        if let Some(asked) = &s.special {
            match asked.kind {
                Special::Rep(rep) => rights::rep_ranges(&rep, ctx, out),
                _ => rights::asked_ranges(&asked.insn, ctx, asked.write, out),
            }
        }
    }

    /// Lets the next `run`, `run_block` or `step` with this context go on behind the check at which the last one left:
    /// the instructions that rely on it run whatever the table says. The pc must still be that of the check.
    pub fn pass_check(&self, ctx: &mut Ctx, site: u32) {
        ctx.passed_check = site.wrapping_add(1);
        ctx.passed_generation = self.generation;
    }

    // Looking.

    /// Whether a host pc lies in the cache.
    pub fn contains(&self, host_pc: u64) -> bool {
        host_pc.wrapping_sub(self.cfg.cache_base) < self.cfg.cache_size as u64
    }

    /// Host pc to which a signal handler redirects: leaves translated code with `Exit::Fault`.
    pub fn fault_exit_entry(&self) -> u64 {
        self.stubs.fault
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        let mut s = self.stats;
        // Lengths, not capacities: what was reserved but not used is not resident.
        s.metadata_bytes = (self.frags.len() * size_of::<Frag>()
            + self.links.bytes()
            + self.sites.len() * size_of::<Site>()
            + self.check_sites.len() * size_of::<CheckSite>()
            + self.check_tests.len() * size_of::<Test>()
            + self.maps.len()
            + (self.slot_owner.len() + self.free_slots.len()) * 4
            + self.by_pc.bytes()
            + self
                .by_page
                .values()
                .map(|v| 48 + 4 * v.capacity())
                .sum::<usize>()) as u64;
        s
    }

    // Writing to the cache.

    fn write(&self, at: u64, bytes: &[u8]) {
        let end = self.cfg.cache_base + self.cfg.cache_size as u64;
        assert!(
            self.contains(at) && at + bytes.len() as u64 <= end,
            "write outside the code cache"
        );
        // SAFETY: inside the cache, which `new` mapped writable; nothing else refers to it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }

    /// Sets the rel32 field at this offset of the cache to lead to `to`. It lies in one cache line, so other threads
    /// see the old or the new value.
    fn set_rel(&self, field: u32, to: u64) {
        debug_assert!(
            (self.cfg.cache_base + u64::from(field)) & 63 <= 60,
            "patched field crosses a line"
        );
        self.set_rel_once(field, to);
    }

    /// As `set_rel`, for a field that is set before the code is reachable.
    fn set_rel_once(&self, field: u32, to: u64) {
        let at = self.cfg.cache_base + u64::from(field);
        let rel = to.wrapping_sub(at + 4) as i32;
        self.write(at, &rel.to_le_bytes());
    }
}

impl Drop for CodeCache {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; nobody runs translated code as that takes `&mut self`.
        unsafe {
            libc::munmap(
                self.cfg.cache_base as *mut libc::c_void,
                self.cfg.cache_size,
            )
        };
    }
}

//! What is kept with pages of granules besides the rights: edges for who joins late, and how hot they are.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crewind_trace::event::Edge;

#[cfg(test)]
use crate::Mutant;
use crate::claim::{Claim, NONE, READ, WRITE};
use crate::nature::{Later, Nature, Wish};
use crate::region::{REGION, Region};

/// Granules of a page. Edges are kept by page and never forgotten: too many are right too, and mostly known.
pub const PAGE: u32 = 64;

/// Pages that changed hands this often in quick succession are claimed granule by granule: false sharing.
const HOT: u32 = 6;
/// What quick succession is, in cycles; some 100 us. Arrays that threads work on in turns change hands more slowly.
const COOL: u64 = 300_000;

/// Multiplicative hashing of page numbers.
#[derive(Clone, Default)]
pub struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }
    fn write_u64(&mut self, v: u64) {
        let h = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = h ^ (h >> 32);
    }
}

#[derive(Clone, Debug, Default)]
struct Page {
    /// Writers that became readers.
    writers: Vec<Edge>,
    /// Readers that lost their right to somebody who did not come to take it.
    readers: Vec<Edge>,
    /// How often it went to another vcpu than the last time, in quick succession.
    heat: u32,
    /// It did so once.
    moved: bool,
    /// When it changed hands last, cycles.
    at: u64,
    /// The vcpu that took it then.
    by: usize,
    /// Of its granules, once it was fought over.
    natures: Option<Box<[Nature; PAGE as usize]>>,
}

/// All pages. A granule that nobody has a right to was never touched, or its pages are new, or a claim to it failed
/// half way.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    pages: HashMap<u32, Page, BuildHasherDefault<PageHasher>>,
    /// By number: granules / `REGION`.
    regions: HashMap<u32, Region, BuildHasherDefault<PageHasher>>,
    /// The last change of mappings.
    mapping: Option<Edge>,
    /// The vcpu whose thread is changing mappings: until that is logged nobody else touches memory for the first time.
    in_flight: Option<usize>,
    /// A page counts as fought over from its first change of hands on, and for ever.
    eager: bool,
    #[cfg(test)]
    pub(crate) mutant: Option<Mutant>,
}

/// The pages that a run of granules lies on.
fn pages_of(run: (u32, u32)) -> std::ops::Range<u32> {
    run.0 / PAGE..run.1.div_ceil(PAGE)
}

impl Pages {
    /// The vcpu that has to be waited for before a claim can be made.
    pub fn not_before(&self, claim: &Claim, me: usize) -> Option<usize> {
        self.in_flight.filter(|v| *v != me && claim.is_untouched())
    }

    /// A run is `me`'s by a claim, which took the rights of others at `edges`. Adds what else it waits for. `now` is in
    /// cycles.
    pub fn joined(
        &mut self,
        run: (u32, u32),
        claim: &Claim,
        me: usize,
        edges: &mut Vec<Edge>,
        now: u64,
    ) {
        let taken = edges.len();
        let may_write = claim.mine() == WRITE;
        #[cfg(test)]
        let may_write = match self.mutant {
            Some(Mutant::AloneWithoutReaders) => !claim.demotes(),
            _ => may_write,
        };
        #[cfg(test)]
        let remembers = self.mutant != Some(Mutant::WriterForgotten);
        #[cfg(not(test))]
        let remembers = true;
        let demoted = claim.demotes() && taken > 0 && remembers;
        let untouched = claim.is_untouched();
        for page in pages_of(run) {
            let info = match self.pages.get_mut(&page) {
                Some(info) => info,
                None if untouched => continue,
                None => self.pages.entry(page).or_default(),
            };
            edges.extend_from_slice(&info.writers);
            if may_write {
                edges.extend_from_slice(&info.readers);
            }
            if demoted {
                let taken = edges.iter().take(taken);
                taken.for_each(|e| keep(&mut info.writers, *e));
            }
            info.changed_hands(me, now);
        }
        if untouched {
            edges.extend(self.mapping);
        }
        if claim.writes() && taken > 0 {
            let region = self.regions.entry(run.0 / REGION).or_default();
            region.taken(me);
        }
    }

    /// A claim to a run failed: readers lost their right at `edges`, and one that comes behind them is busy.
    pub fn lost(&mut self, run: (u32, u32), edges: &[Edge]) {
        #[cfg(test)]
        if self.mutant == Some(Mutant::LostForgotten) {
            return;
        }
        for page in pages_of(run).filter(|_| !edges.is_empty()) {
            let info = self.pages.entry(page).or_default();
            edges.iter().for_each(|e| keep(&mut info.readers, *e));
        }
    }

    /// A thread that may have written gave its right to a run up by itself, or goes on as a reader, at `at`; it has come
    /// to wait for edges that it has not logged.
    pub fn given_back(&mut self, run: (u32, u32), at: Edge, not_logged: &[Edge]) {
        #[cfg(test)]
        if self.mutant == Some(Mutant::GivenBackForgotten) {
            return;
        }
        for page in pages_of(run) {
            let writers = &mut self.pages.entry(page).or_default().writers;
            keep(writers, at);
            not_logged.iter().for_each(|e| keep(writers, *e));
        }
    }

    /// How a claim to granule `i` is better made, if it is fought over: by itself, without others around it. `now` is in
    /// cycles.
    pub fn wish(&mut self, i: u32, claim: &Claim, now: u64) -> Option<Wish> {
        let page = self.pages.get_mut(&(i / PAGE))?;
        if !page.is_fought_over(now, self.eager) {
            return None;
        }
        let natures = page
            .natures
            .get_or_insert_with(|| Box::new([Nature::default(); PAGE as usize]));
        let nature = natures.get_mut((i % PAGE) as usize)?;
        Some(nature.wish(claim, now))
    }

    /// Vcpu `me` gives granule `i` back as its wish said (`later`, which is not to keep it), at `at`, as above. Returns the
    /// right that is left to it.
    pub fn given_back_later(
        &mut self,
        i: u32,
        me: usize,
        later: Later,
        at: Edge,
        not_logged: &[Edge],
    ) -> u8 {
        self.given_back((i, i + 1), at, not_logged);
        if later != Later::GiveUp {
            return READ;
        }
        let page = self.pages.get_mut(&(i / PAGE));
        let natures = page.and_then(|p| p.natures.as_mut());
        if let Some(nature) = natures.and_then(|n| n.get_mut((i % PAGE) as usize)) {
            nature.given_up(me);
        }
        NONE
    }

    /// From now on what changes hands is claimed by the granule, once or often.
    pub fn by_granule(&mut self) {
        self.eager = true;
    }

    /// Nothing is known any more; how memory is claimed stays.
    pub fn clear(&mut self) {
        *self = Pages {
            eager: self.eager,
            ..Pages::default()
        };
    }

    /// All edges that are kept with the pages of a run.
    pub fn kept(&self, run: (u32, u32), out: &mut Vec<Edge>) {
        for info in pages_of(run).filter_map(|p| self.pages.get(&p)) {
            out.extend_from_slice(&info.writers);
            out.extend_from_slice(&info.readers);
        }
    }

    /// A vcpu's thread is about to change mappings.
    pub fn mapping_begins(&mut self, vcpu: usize) {
        self.in_flight = Some(vcpu);
    }

    /// It has, and that is logged: whoever touches memory for the first time waits for it.
    pub fn mapping_changed(&mut self, at: Edge) {
        self.comes_behind(at);
        self.in_flight = None;
    }

    /// Whoever touches memory for the first time waits for this point, which lies behind all that was done to memory that
    /// nobody has a right to.
    pub fn comes_behind(&mut self, at: Edge) {
        self.mapping = Some(at);
    }

    /// From where to where a claim to write to granule `i` is to reach at least, because the memory around it is going over
    /// to its vcpu as a whole. `now` is in cycles.
    pub fn moving(&self, i: u32, claim: &Claim, now: u64) -> Option<(u32, u32)> {
        let region = self.regions.get(&(i / REGION))?;
        if !claim.writes() || self.is_fought_over(i, now) {
            return None;
        }
        region.reach(i, claim.vcpu())
    }

    /// How far a claim from granule `i` on is to reach that is wanted up to `end`: the rest of the page, and as much again
    /// as the vcpu has right before it (`before`), when it goes on from there. `now` is in cycles.
    pub fn reach(&self, i: u32, end: u32, before: u32, now: u64) -> u32 {
        let more = match self.is_fought_over(i, now) {
            true => i + 1,
            false => ((i / PAGE + 1) * PAGE).max(i.saturating_add(before)),
        };
        more.max(end)
    }

    /// How far down a claim of granule `i` is to reach: by as much as the vcpu has right behind it (`behind`), when its
    /// thread goes downwards.
    pub fn reach_down(&self, i: u32, behind: u32, now: u64) -> u32 {
        match self.is_fought_over(i, now) {
            true => i,
            false => i.saturating_sub(behind),
        }
    }

    fn is_fought_over(&self, i: u32, now: u64) -> bool {
        let page = self.pages.get(&(i / PAGE));
        page.is_some_and(|p| p.is_fought_over(now, self.eager))
    }
}

impl Page {
    /// `eager`: one change of hands is enough.
    fn is_fought_over(&self, now: u64, eager: bool) -> bool {
        self.heat >= HOT && now.wrapping_sub(self.at) < COOL || eager && self.moved
    }

    fn changed_hands(&mut self, to: usize, now: u64) {
        if now.wrapping_sub(self.at) >= COOL {
            self.heat = 0;
        }
        if self.by != to {
            self.heat = self.heat.saturating_add(1);
            self.moved = true;
        }
        (self.at, self.by) = (now, to);
    }
}

/// Keeps an edge, and none that it covers. Two edges to one thread are points of its run, so one lies behind the other.
fn keep(list: &mut Vec<Edge>, e: Edge) {
    match list.iter_mut().find(|x| x.thread == e.thread) {
        Some(x) if x.clock <= e.clock && x.event <= e.event => *x = e,
        Some(_) => {}
        None => list.push(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::Class;
    use crewind_trace::event::ThreadId;

    fn edge(thread: u32, clock: u64) -> Edge {
        Edge {
            thread: ThreadId(thread),
            clock,
            event: 1,
        }
    }

    #[test]
    fn late_readers_find_the_writer_and_writers_the_lost_readers() {
        let mut pages = Pages::default();
        let class = Class::nobody(3).with(0, WRITE);
        let read = Claim::new(class, 3, 1, false);
        let mut edges = vec![edge(1, 7)];
        pages.joined((5, 6), &read, 1, &mut edges, 0);
        let late = Claim::new(read.after(1), 3, 2, false);
        let mut edges = Vec::new();
        pages.joined((5, 6), &late, 2, &mut edges, 0);
        assert_eq!(edges, [edge(1, 7)]);
        // A writer fails half way: the reader that lost its right is found by the next one.
        pages.lost((5, 6), &[edge(2, 8)]);
        let write = Claim::new(Class::nobody(3).with(2, READ), 3, 0, true);
        let mut edges = vec![edge(3, 9)];
        pages.joined((5, 6), &write, 0, &mut edges, 0);
        assert_eq!(edges, [edge(3, 9), edge(1, 7), edge(2, 8)]);
        // As by who changes mappings there.
        let mut edges = Vec::new();
        pages.kept((0, 64), &mut edges);
        assert_eq!(edges, [edge(1, 7), edge(2, 8)]);
    }

    #[test]
    fn first_touches_wait_for_changes_of_mappings() {
        let mut pages = Pages::default();
        let claim = Claim::new(Class::nobody(2), 2, 1, true);
        pages.mapping_begins(0);
        assert_eq!(pages.not_before(&claim, 1), Some(0));
        assert_eq!(pages.not_before(&claim, 0), None);
        pages.mapping_changed(edge(4, 4));
        assert_eq!(pages.not_before(&claim, 1), None);
        let mut edges = Vec::new();
        pages.joined((0, 1), &claim, 1, &mut edges, 0);
        assert_eq!(edges, [edge(4, 4)]);
    }

    #[test]
    fn by_granule_the_first_change_of_hands_is_enough() {
        let mut pages = Pages::default();
        pages.by_granule();
        let class = Class::nobody(2);
        let first = Claim::new(class, 2, 0, true);
        pages.joined((0, 64), &first, 0, &mut vec![edge(1, 1)], 0);
        assert_eq!(pages.reach(3, 4, 0, 0), 64);
        let second = Claim::new(first.after(0), 2, 1, true);
        assert!(pages.wish(3, &second, COOL * 9).is_none());
        pages.joined((3, 4), &second, 1, &mut vec![edge(1, 2)], COOL * 9);
        assert_eq!(pages.reach(5, 6, 0, COOL * 99), 6);
        assert!(pages.wish(5, &second, COOL * 99).is_some());
    }

    #[test]
    fn what_is_fought_over_is_claimed_by_the_granule() {
        let mut pages = Pages::default();
        assert_eq!(pages.reach(70, 71, 0, 0), 128);
        assert_eq!(pages.reach(128, 129, 100, 0), 228);
        assert_eq!(pages.reach_down(70, 0, 0), 70);
        assert_eq!(pages.reach_down(70, 30, 0), 40);
        assert_eq!(pages.reach_down(70, 100, 0), 0);
        for n in 0..=HOT as usize {
            let class = Class::nobody(2).with(n % 2, WRITE);
            let claim = Claim::new(class, 2, 1 - n % 2, true);
            pages.joined((70, 71), &claim, 1 - n % 2, &mut vec![edge(1, 1)], 10);
        }
        assert_eq!(pages.reach(70, 71, 0, 20), 71);
        assert_eq!(pages.reach_down(70, 30, 20), 70);
        assert_eq!(pages.reach(70, 71, 0, 20 + COOL), 128);
    }
}

//! Shadows: for each mapping that other processes share, what this process's replay will have there.
//!
//! One state per process, used by whoever holds the vcpu (of a serial process) or the runtime lock (of a parallel one).

use std::cell::UnsafeCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::layout::{PAGE, page_down};
use crewind_trace::event::MemWrite;

/// Equal bytes between different ones that are logged along, because a piece of its own costs as much.
const GAP: usize = 12;

/// A mapping with its shadow.
#[derive(Debug)]
pub(super) struct Map {
    pub end: u64,
    /// Host address of what stands for the first byte.
    shadow: u64,
    /// Replay has memory up to here; beyond, in the pages of `present`.
    backed: u64,
    present: BTreeSet<u64>,
}

/// Shadows of a process, and what is to be logged.
#[derive(Debug)]
pub(super) struct Maps {
    pub list: BTreeMap<u64, Map>,
    /// Differences that the runtime met when it read guest memory itself, not logged yet.
    pub pending: Vec<MemWrite<'static>>,
    pub known: super::access::Known,
}

struct Global(UnsafeCell<Maps>);

// SAFETY: used by one thread at a time, as the module says.
unsafe impl Sync for Global {}

static MAPS: Global = Global(UnsafeCell::new(Maps {
    list: BTreeMap::new(),
    pending: Vec::new(),
    known: super::access::Known::new(),
}));

/// Whether there is any shadow.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Whether the process is being recorded and shares memory.
#[inline]
pub fn active() -> bool {
    ACTIVE.load(Ordering::Relaxed)
}

/// The state, for the duration of `f`, which must not come here again.
pub(super) fn with<T>(f: impl FnOnce(&mut Maps) -> T) -> T {
    // SAFETY: by the module's rule nobody else is here; `f` keeps no reference, and callers do not nest.
    let maps = unsafe { &mut *MAPS.0.get() };
    let result = f(maps);
    ACTIVE.store(
        !maps.list.is_empty() || !maps.pending.is_empty(),
        Ordering::Relaxed,
    );
    result
}

/// Whether any byte of a range is shared.
pub fn touches(addr: u64, len: u64) -> bool {
    active() && with(|m| m.touches(addr, len))
}

/// The runtime has read guest memory: the differences are logged with the event under way.
#[inline]
pub fn was_read(addr: u64, bytes: &[u8]) {
    if active() {
        with(|m| {
            let mut pending = std::mem::take(&mut m.pending);
            m.seen(addr, bytes, &mut pending);
            m.pending = pending;
        });
    }
}

/// The runtime, or the kernel as logged, has written guest memory.
#[inline]
pub fn was_written(addr: u64, bytes: &[u8]) {
    if active() {
        with(|m| m.wrote(addr, bytes));
    }
}

/// Fills a page with what a replay has there. False: it is not shared.
pub fn replayed_page(page: &mut [u8], addr: u64) -> bool {
    active() && with(|m| m.shadow(addr, page))
}

/// What was met but is a part of what the event itself logs need not be logged twice.
pub fn logged_already(outs: &[MemWrite<'_>]) {
    if !active() {
        return;
    }
    with(|m| {
        m.pending.retain(|p| {
            let end = p.addr + p.data.len() as u64;
            !outs
                .iter()
                .any(|o| o.addr <= p.addr && end <= o.addr + o.data.len() as u64)
        });
    });
}

/// What is to be logged.
pub fn take_pending() -> Vec<MemWrite<'static>> {
    if active() {
        with(|m| std::mem::take(&mut m.pending))
    } else {
        Vec::new()
    }
}

impl Map {
    /// The shadow of `len` bytes from `addr` on, which lie in the mapping that starts at `start`.
    fn bytes(&mut self, start: u64, addr: u64, len: usize) -> &mut [u8] {
        debug_assert!(start <= addr && addr + len as u64 <= self.end);
        // SAFETY: shadows are mapped for reading and writing as long as they are in the list, and are as long as the
        // mapping; `&mut self` is the only way to them.
        unsafe { std::slice::from_raw_parts_mut((self.shadow + (addr - start)) as *mut u8, len) }
    }

    /// The first page of a range that a replay would not have; it has it from now on.
    fn makes_present(&mut self, addr: u64, len: usize) -> bool {
        let end = addr + len as u64;
        if end <= self.backed {
            return false;
        }
        let mut new = false;
        let mut page = page_down(addr.max(self.backed));
        while page < end {
            new |= self.present.insert(page);
            page += PAGE;
        }
        new
    }
}

impl Maps {
    pub fn touches(&self, addr: u64, len: u64) -> bool {
        let end = addr.saturating_add(len);
        self.list
            .range(..end)
            .next_back()
            .is_some_and(|(_, m)| m.end > addr)
    }

    /// The mapping that holds all of a range: its start.
    pub fn holds(&self, addr: u64, len: u64) -> Option<u64> {
        let (start, m) = self.list.range(..=addr).next_back()?;
        (addr.checked_add(len)? <= m.end).then_some(*start)
    }

    /// The parts of a range that are shared: address and length.
    pub fn parts(&self, addr: u64, len: u64) -> Vec<(u64, u64)> {
        let end = addr.saturating_add(len);
        let mut parts: Vec<_> = self
            .list
            .range(..end)
            .rev()
            .take_while(|(_, m)| m.end > addr)
            .map(|(start, m)| {
                let at = addr.max(*start);
                (at, end.min(m.end) - at)
            })
            .collect();
        parts.reverse();
        parts
    }

    /// Memory held these bytes: what is new goes to the shadow and to `patches`.
    pub fn seen(&mut self, addr: u64, bytes: &[u8], patches: &mut Vec<MemWrite<'static>>) {
        for (at, len) in self.parts(addr, bytes.len() as u64) {
            let from = (at - addr) as usize;
            let Some(now) = bytes.get(from..from + len as usize) else {
                continue;
            };
            let Some((start, map)) = self.list.range_mut(..=at).next_back() else {
                continue;
            };
            if map.makes_present(at, now.len()) {
                patches.push(write(at, now));
                map.bytes(*start, at, now.len()).copy_from_slice(now);
                continue;
            }
            let was = map.bytes(*start, at, now.len());
            if was == now {
                continue;
            }
            differences(at, was, now, patches);
            was.copy_from_slice(now);
        }
    }

    /// These bytes were written, by what a replay does as well.
    pub fn wrote(&mut self, addr: u64, bytes: &[u8]) {
        for (at, len) in self.parts(addr, bytes.len() as u64) {
            let from = (at - addr) as usize;
            let Some(now) = bytes.get(from..from + len as usize) else {
                continue;
            };
            if let Some((start, map)) = self.list.range_mut(..=at).next_back() {
                map.makes_present(at, now.len());
                map.bytes(*start, at, now.len()).copy_from_slice(now);
            }
        }
    }

    /// Whether a replay lacks memory there.
    pub fn lacks(&self, addr: u64, len: u64) -> bool {
        self.list.range(..=addr).next_back().is_some_and(|(_, m)| {
            let end = addr + len;
            addr < m.end && end > m.backed && !m.present.contains(&page_down(end - 1))
        })
    }

    /// Reads the shadow of a range in one mapping.
    pub fn shadow(&mut self, addr: u64, out: &mut [u8]) -> bool {
        if self.holds(addr, out.len() as u64).is_none() {
            return false;
        }
        if let Some((start, map)) = self.list.range_mut(..=addr).next_back() {
            let n = out.len();
            out.copy_from_slice(map.bytes(*start, addr, n));
        }
        true
    }

    /// A mapping begins to be shared. Its shadow is all zeros; replay has memory for the first `backed` bytes.
    pub fn add(&mut self, start: u64, end: u64, backed: u64) -> std::io::Result<()> {
        // SAFETY: new memory where the kernel likes.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (end - start) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        self.list.insert(
            start,
            Map {
                end,
                shadow: p as u64,
                backed: start.saturating_add(backed).min(end),
                present: BTreeSet::new(),
            },
        );
        Ok(())
    }

    /// Fills the shadow of a mapping.
    pub fn fill(&mut self, addr: u64, bytes: &[u8]) {
        if self.holds(addr, bytes.len() as u64).is_some()
            && let Some((start, map)) = self.list.range_mut(..=addr).next_back()
        {
            map.bytes(*start, addr, bytes.len()).copy_from_slice(bytes);
        }
    }

    /// A range is not shared any more: what was there, apart.
    pub fn cut(&mut self, from: u64, to: u64) -> Vec<(u64, Map)> {
        let mut out = Vec::new();
        for (at, len) in self.parts(from, to.saturating_sub(from)) {
            let Some((&start, _)) = self.list.range(..=at).next_back() else {
                continue;
            };
            let Some(map) = self.list.remove(&start) else {
                continue;
            };
            let end = at + len;
            let part = |a: u64, b: u64| Map {
                end: b,
                shadow: map.shadow + (a - start),
                backed: map.backed.clamp(a, b),
                present: map.present.range(a..b).copied().collect(),
            };
            if start < at {
                self.list.insert(start, part(start, at));
            }
            if end < map.end {
                self.list.insert(end, part(end, map.end));
            }
            out.push((at, part(at, end)));
        }
        out
    }

    /// Forgets a range.
    pub fn remove(&mut self, from: u64, to: u64) -> bool {
        let parts = self.cut(from, to);
        for (start, map) in &parts {
            // SAFETY: the shadow of a mapping that is not in the list any more.
            unsafe { libc::munmap(map.shadow as *mut libc::c_void, (map.end - start) as usize) };
        }
        !parts.is_empty()
    }

    /// A mapping was moved, with what it holds.
    pub fn put_at(&mut self, start: u64, was: u64, map: Map) {
        let moved = |a: u64| a - was + start;
        self.list.insert(
            start,
            Map {
                end: moved(map.end),
                shadow: map.shadow,
                backed: moved(map.backed),
                present: map.present.iter().map(|p| moved(*p)).collect(),
            },
        );
    }
}

fn write(addr: u64, bytes: &[u8]) -> MemWrite<'static> {
    MemWrite {
        addr,
        data: bytes.to_vec().into(),
    }
}

/// The runs of bytes in which `now` differs from `was`.
fn differences(addr: u64, was: &[u8], now: &[u8], out: &mut Vec<MemWrite<'static>>) {
    let mut run: Option<(usize, usize)> = None;
    for (i, _) in was.iter().zip(now).enumerate().filter(|(_, (a, b))| a != b) {
        match &mut run {
            Some((_, end)) if i <= *end + GAP => *end = i + 1,
            _ => {
                if let Some((start, end)) = run.replace((i, i + 1)) {
                    out.extend(now.get(start..end).map(|b| write(addr + start as u64, b)));
                }
            }
        }
    }
    if let Some((start, end)) = run {
        out.extend(now.get(start..end).map(|b| write(addr + start as u64, b)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps() -> Maps {
        Maps {
            list: BTreeMap::new(),
            pending: Vec::new(),
            known: super::super::access::Known::new(),
        }
    }

    #[test]
    fn what_is_new_is_logged_once() {
        let mut m = maps();
        m.add(0x1_0000, 0x1_3000, 0x3000).unwrap();
        let mut patches = Vec::new();
        m.seen(0x1_0ffe, &[0, 5, 6, 0], &mut patches);
        assert_eq!(patches, [write(0x1_0fff, &[5, 6])]);
        patches.clear();
        m.seen(0x1_0ffe, &[0, 5, 6, 0], &mut patches);
        m.wrote(0x1_0fff, &[7]);
        m.seen(0x1_0fff, &[7, 6], &mut patches);
        // Beyond and before the mapping nothing is known.
        m.seen(0x1_2fff, &[0, 9], &mut patches);
        assert_eq!(patches, []);
        m.seen(0xffff, &[9, 1], &mut patches);
        assert_eq!(patches, [write(0x1_0000, &[1])]);
        m.remove(0, u64::MAX);
    }

    #[test]
    fn memory_that_a_replay_lacks_is_logged_when_it_is_met() {
        let mut m = maps();
        m.add(0x1_0000, 0x1_3000, 0x1000).unwrap();
        let mut patches = Vec::new();
        m.seen(0x1_0000, &[0; 4], &mut patches);
        assert_eq!(patches, []);
        assert!(m.lacks(0x1_2000, 8));
        m.seen(0x1_2000, &[0; 8], &mut patches);
        assert_eq!(patches, [write(0x1_2000, &[0; 8])]);
        assert!(!m.lacks(0x1_2000, 8));
        m.seen(0x1_2010, &[0; 8], &mut patches);
        assert_eq!(patches.len(), 1);
        m.remove(0, u64::MAX);
    }

    #[test]
    fn shadows_are_cut_and_moved() {
        let mut m = maps();
        m.add(0x1_0000, 0x1_4000, 0x4000).unwrap();
        for page in 0..4u64 {
            m.fill(0x1_0000 + page * 4096, &[page as u8 + 1]);
        }
        assert!(m.remove(0x1_1000, 0x1_2000));
        assert!(!m.touches(0x1_1000, 4096) && m.touches(0x1_0fff, 2));
        for (start, map) in m.cut(0x1_2000, 0x1_3000) {
            m.put_at(0x8_0000, start, map);
        }
        let mut byte = [0];
        for (addr, expected) in [(0x1_0000, 1), (0x8_0000, 3), (0x1_3000, 4)] {
            assert!(m.shadow(addr, &mut byte));
            assert_eq!(byte, [expected]);
        }
        assert!(!m.shadow(0x1_2000, &mut byte));
        assert_eq!(
            m.parts(0x1_0ff0, 0x3000),
            [(0x1_0ff0, 16), (0x1_3000, 0xff0)]
        );
        m.remove(0, u64::MAX);
        assert!(m.list.is_empty());
    }
}

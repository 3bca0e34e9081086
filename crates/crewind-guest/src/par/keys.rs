//! Rights enforced by memory protection keys (PKU): the second way to order accesses, beside checks in translated code.
//!
//! The tables of rights stay what decides; here one byte stands for a page, and the processor looks at the page's key
//! instead of translated code looking at the table. Each state that a page can be in has a key, and each vcpu a PKRU
//! that opens the keys of the states that let it in. A transition changes tables *and* keys.
//!
//! # Rules
//! - Whenever the crew lock is free, a mapped guest page has the key and the host rights of its state in the tables.
//! - A right is taken in table and key while its holder is outside translated code, and before it can come back: by the
//!   holder itself when it answers, or by who serves a parked one. So an instruction never loses a page half way, and no
//!   shootdown has to be waited for before a position is read (rule 14 of the design has nothing to go wrong).
//! - The runtime runs with all keys open, and so do the system calls that it makes. Stubs open and close.
//!
//! # Keys
//! Each vcpu has a key for the pages that it alone may write; a set of two or more readers has one; one stands for
//! nobody. What that does not give is had by taking the host's right to write away: a single reader has the key of his
//! own pages, and of four vcpus all four read with key 0. A write there faults without mention of a key, so a fault is
//! judged by the table, whatever the kernel calls it.
//!
//! Mappings of the guest change while other threads run, so each change goes through here ([`begin`]): a new mapping
//! would have key 0, which is open to all.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::rights::{CHUNK, Held, entry};
use super::{MAX_VCPUS, Par};
use crate::errno::Errno;
use crate::hostcall;
use crate::layout::{GUEST_LAST, PAGE};
use crate::thread::Thread;
use crewind_crew::Class;
use crewind_x86::rights::{NO_READ, NO_WRITE, PAGE_SHIFT, RIGHTS_LEN, page_index};

/// Most vcpus: four exclusive keys, one for nobody, and ten for sets of two and three readers make 15.
pub const MOST_VCPUS: u32 = 4;

/// Bytes of memory after which addresses share entries of the tables.
const ALIAS: u64 = (RIGHTS_LEN as u64) << PAGE_SHIFT;

/// Keys that this process has. A fork has its parent's.
static ALLOCATED: OnceLock<Vec<u8>> = OnceLock::new();
/// Whether pages may have keys other than 0.
static USED: AtomicBool = AtomicBool::new(false);

/// Whether kernel and processor have protection keys.
pub fn available() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const OSPKE: u32 = 1 << 4;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ecx & OSPKE != 0
}

/// Opens all keys for the calling thread, if pages may have any. The kernel starts signal handlers with all keys but 0
/// closed. Async-signal-safe.
pub fn open_all() {
    if USED.load(Ordering::Relaxed) {
        // SAFETY: keys are only used where the processor has them; the runtime's memory is open before and after.
        unsafe {
            core::arch::asm!(
                "wrpkru",
                in("eax") 0, in("ecx") 0, in("edx") 0,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// The vcpus that have at least the right to a page that lacks none of `bits`, as a set.
fn who(class: Class, vcpus: usize, bits: u8) -> usize {
    (0..vcpus)
        .filter(|v| class.right(*v) & bits == 0)
        .fold(0, |s, v| s | 1 << v)
}

/// What the host is told about pages of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guard {
    key: u8,
    /// The right to write is taken away.
    read_only: bool,
}

/// One call of `pkey_mprotect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Protect {
    addr: u64,
    len: u64,
    prot: i32,
    key: u8,
}

/// Which key stands for which set of vcpus.
#[derive(Debug)]
pub(super) struct Keys {
    vcpus: usize,
    nobody: u8,
    /// By set of vcpus: of one the exclusive key, of more that of these readers; 0: there is none.
    sets: Vec<u8>,
    most_borders: i64,
}

impl Keys {
    /// Gets keys from the kernel.
    pub(super) fn new(vcpus: usize) -> io::Result<Keys> {
        let have = match ALLOCATED.get() {
            Some(keys) => keys,
            None => {
                let keys = allocate();
                ALLOCATED.get_or_init(|| keys)
            }
        };
        let keys = Keys::assign(vcpus, have).ok_or_else(|| {
            io::Error::other(format!(
                "{vcpus} vcpus need {} protection keys, and the kernel gave {}",
                Keys::needed(vcpus),
                have.len()
            ))
        })?;
        USED.store(true, Ordering::Relaxed);
        open_all();
        Ok(keys)
    }

    /// Keys that so many vcpus need at least: all readers together can do without.
    fn needed(vcpus: usize) -> usize {
        1 + (1 << vcpus) - 1 - usize::from(vcpus > 1)
    }

    fn assign(vcpus: usize, have: &[u8]) -> Option<Keys> {
        if have.len() < Keys::needed(vcpus) {
            return None;
        }
        let mut from = have.iter().copied();
        let nobody = from.next()?;
        // Sets in order of their bits, so the one of all comes last, for which there may be no key left.
        let sets = (0..1usize << vcpus).map(|s| match s {
            0 => 0,
            _ => from.next().unwrap_or(0),
        });
        Some(Keys {
            vcpus,
            nobody,
            sets: sets.collect(),
            most_borders: most_mappings() / 4,
        })
    }

    /// More neighbours in different states are not let be: the kernel has to have a mapping for each. The rest of what it
    /// allows is for the guest's own mappings, and for pieces that it does not join again.
    pub(super) fn most_borders(&self) -> i64 {
        self.most_borders
    }

    fn guard(&self, class: Class) -> Guard {
        let writer = who(class, self.vcpus, NO_READ | NO_WRITE);
        let readers = who(class, self.vcpus, NO_READ);
        debug_assert!(writer == 0 || writer == readers && writer.is_power_of_two());
        if readers == 0 {
            return Guard {
                key: self.nobody,
                read_only: false,
            };
        }
        let key = self.sets.get(readers).copied().unwrap_or(0);
        Guard {
            key,
            read_only: writer == 0 && (readers.is_power_of_two() || key == 0),
        }
    }

    /// The rights of a vcpu, as the processor has them: two bits per key, no access and no writing.
    pub(super) fn pkru(&self, v: usize) -> u32 {
        let mut pkru = !0b11;
        for (set, key) in self.sets.iter().enumerate().filter(|(_, k)| **k != 0) {
            if set >> v & 1 != 0 {
                let bits = if set == 1 << v { 0 } else { 0b10 };
                pkru = pkru & !(0b11 << (2 * key)) | bits << (2 * key);
            }
        }
        pkru
    }

    /// What brings the mapped pages of a run into a state.
    pub(super) fn plan(
        &self,
        mapped: &Mapped,
        run: (u32, u32),
        class: Class,
        out: &mut Vec<Protect>,
    ) {
        let guard = self.guard(class);
        mapped.each(run, |addr, len, prot| {
            out.push(Protect {
                addr,
                len,
                prot: if guard.read_only {
                    prot & !libc::PROT_WRITE
                } else {
                    prot
                },
                key: guard.key,
            });
        });
    }
}

/// `vm.max_map_count`.
fn most_mappings() -> i64 {
    const USUAL: i64 = 65_530;
    std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|v| v.trim().parse().ok())
        .unwrap_or(USUAL)
}

fn allocate() -> Vec<u8> {
    std::iter::from_fn(|| {
        // SAFETY: asks for a number.
        let key = unsafe { hostcall::raw(libc::SYS_pkey_alloc, [0; 6]) };
        u8::try_from(key).ok()
    })
    .collect()
}

/// Does what was planned.
pub(super) fn apply(list: &[Protect]) -> Result<(), Errno> {
    for p in list {
        let key = u64::from(p.key);
        // SAFETY: guest memory, whose rights in the processor are the guest's or less.
        let r = unsafe {
            hostcall::raw(
                libc::SYS_pkey_mprotect,
                [p.addr, p.len, p.prot as u64, key, 0, 0],
            )
        };
        if r < 0 {
            return Err(Errno(-r as i32));
        }
    }
    Ok(())
}

/// As `apply`, where going on without is not possible.
pub(super) fn must_apply(list: &[Protect]) {
    if let Err(e) = apply(list) {
        crate::report::fail(
            crate::start::Failure::Unsupported,
            format_args!(
                "memory cannot be protected ({e}): threads share it in more pieces than this machine allows mappings; \
                 raise it: sysctl vm.max_map_count=262144, or record with --sharing software"
            ),
        );
    }
}

/// Runs of entries: from start to end and rights on the host.
type Runs = BTreeMap<u32, (u32, i32)>;

/// The guest's mappings with their rights on the host, by entry of the tables: what `pkey_mprotect` has to be told, and
/// which addresses share an entry.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    /// By number of the alias. Neighbours with the same rights are one.
    aliases: Vec<(u64, Runs)>,
}

impl Mapped {
    /// The pieces of an address range in the tables: alias, first entry, entry behind the last.
    fn split(addr: u64, len: u64) -> impl Iterator<Item = (u64, u32, u32)> {
        let end = addr.saturating_add(len).min(GUEST_LAST);
        let mut at = addr;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let alias = at / ALIAS;
            let stop = end.min((alias + 1) * ALIAS);
            let first = page_index(at) as u32;
            let pages = (stop - at).div_ceil(PAGE) as u32;
            at = stop;
            Some((alias, first, first + pages))
        })
    }

    fn of(&mut self, alias: u64) -> &mut Runs {
        let n = match self.aliases.iter().position(|(a, _)| *a == alias) {
            Some(n) => n,
            None => {
                self.aliases.push((alias, Runs::new()));
                self.aliases.len() - 1
            }
        };
        &mut self.aliases[n].1
    }

    /// A range is mapped with these rights, or not at all.
    fn set(&mut self, addr: u64, len: u64, prot: Option<i32>) {
        for (alias, start, end) in Self::split(addr, len) {
            let map = self.of(alias);
            cut(map, start, end);
            if let Some(prot) = prot {
                insert(map, start, end, prot);
            }
        }
    }

    /// Takes what is mapped of a range out; the result has addresses.
    fn take(&mut self, addr: u64, len: u64) -> Vec<(u64, u64, i32)> {
        let mut out = Vec::new();
        for (alias, start, end) in Self::split(addr, len) {
            for (s, e, prot) in cut(self.of(alias), start, end) {
                out.push((address(alias, s), u64::from(e - s) * PAGE, prot));
            }
        }
        out
    }

    /// Everything mapped in a run of entries.
    fn each(&self, run: (u32, u32), mut f: impl FnMut(u64, u64, i32)) {
        for (alias, map) in &self.aliases {
            let first = map.range(..=run.0).next_back().map_or(run.0, |(s, _)| *s);
            for (s, (e, prot)) in map.range(first..run.1) {
                let (s, e) = ((*s).max(run.0), (*e).min(run.1));
                if s < e {
                    f(address(*alias, s), u64::from(e - s) * PAGE, *prot);
                }
            }
        }
    }

    /// The mapping around an entry that a claim of untouched memory keeps to.
    pub(super) fn around(&self, i: u32) -> Option<(u32, u32)> {
        self.aliases.iter().find_map(|(_, map)| {
            let (s, (e, _)) = map.range(..=i).next_back()?;
            (i < *e).then_some((*s, *e))
        })
    }
}

fn address(alias: u64, entry: u32) -> u64 {
    alias * ALIAS + u64::from(entry) * PAGE
}

/// Takes a run out of a map; the result is what was there.
fn cut(map: &mut Runs, start: u32, end: u32) -> Vec<(u32, u32, i32)> {
    let mut out = Vec::new();
    let first = map.range(..=start).next_back().map_or(start, |(s, _)| *s);
    let found: Vec<_> = map
        .range(first..end)
        .map(|(s, (e, prot))| (*s, *e, *prot))
        .collect();
    for (s, e, prot) in found {
        if e <= start {
            continue;
        }
        map.remove(&s);
        if s < start {
            map.insert(s, (start, prot));
        }
        if end < e {
            map.insert(end, (e, prot));
        }
        out.push((s.max(start), e.min(end), prot));
    }
    out
}

/// Adds a run where nothing is.
fn insert(map: &mut Runs, mut start: u32, mut end: u32, prot: i32) {
    if let Some((s, (e, p))) = map.range(..start).next_back().map(|(s, v)| (*s, *v))
        && e == start
        && p == prot
    {
        map.remove(&s);
        start = s;
    }
    if let Some((e, p)) = map.get(&end).copied()
        && p == prot
    {
        map.remove(&end);
        end = e;
    }
    map.insert(start, (end, prot));
}

/// A change of the guest's mappings under way, in a process whose memory has keys: holds the crew lock, so that nobody
/// else's transition sees half of it.
pub struct Change {
    par: &'static Par,
    keys: &'static Keys,
    held: Held<'static>,
}

/// To be called before the host is told of a new mapping, or of the end of one, in these ranges: takes them from all
/// other vcpus. None: memory has no keys.
pub fn begin(ranges: &[(u64, u64)]) -> Option<Change> {
    let par = super::get()?;
    let keys = par.keys()?;
    let th = crate::thread::current();
    // SAFETY: the calling thread's own; what calls this holds no reference to the fields used here.
    if let Some(th) = unsafe { th.as_mut() }
        && th.in_event
    {
        for (addr, len) in ranges {
            par.event_maps(th, *addr, *len);
        }
    }
    Some(Change {
        par,
        keys,
        held: par.crew_lock(),
    })
}

impl Change {
    /// A range was mapped without any rights: it gets them, with keys.
    pub fn mapped(&mut self, addr: u64, len: u64, prot: i32) -> Result<(), Errno> {
        self.held.mapped().set(addr, len, Some(prot));
        self.settle(addr, len).inspect_err(|_| {
            // There is no memory for it: nothing is there then.
            // SAFETY: guest memory, mapped just now.
            unsafe { hostcall::raw(libc::SYS_munmap, [addr, len, 0, 0, 0, 0]) };
            self.held.mapped().set(addr, len, None);
        })
    }

    /// A range was unmapped.
    pub fn unmapped(&mut self, addr: u64, len: u64) {
        self.held.mapped().set(addr, len, None);
    }

    /// Changes the rights of a range on the host.
    pub fn protect(&mut self, addr: u64, len: u64, prot: i32) -> Result<(), Errno> {
        let before = self.held.mapped().take(addr, len);
        for (at, len, _) in &before {
            self.held.mapped().set(*at, *len, Some(prot));
        }
        self.settle(addr, len).inspect_err(|_| {
            for (at, len, prot) in &before {
                self.held.mapped().set(*at, *len, Some(*prot));
            }
            // What was there before can only fail where it was not changed.
            let _ = self.settle(addr, len);
        })
    }

    /// Moves a mapping, as `mremap` does with `MREMAP_FIXED`, or lets it grow where it is. The kernel does that with one
    /// mapping at a time, and has made several of the guest's one by their keys; the guest's must not show that.
    pub fn moved(
        &mut self,
        addr: u64,
        old: u64,
        new: u64,
        flags: i32,
        to: Option<u64>,
    ) -> Result<(), Errno> {
        let Some(to) = to else {
            self.grow(addr, old, new)?;
            return self.settle(addr, new);
        };
        if old == 0 {
            remap(addr, 0, new, flags, Some(to))?;
            let prot = self.prot_at(addr);
            self.held.mapped().set(to, new, prot);
            return self.settle(to, new);
        }
        move_pieces(addr, old, to, flags)?;
        let pieces = self.held.mapped().take(addr, old);
        self.held.mapped().set(to, new, None);
        for (at, len, prot) in pieces {
            self.held.mapped().set(to + (at - addr), len, Some(prot));
            if flags & libc::MREMAP_DONTUNMAP != 0 {
                self.held.mapped().set(at, len, Some(prot));
            }
        }
        self.grow(to, old, new)?;
        self.settle(to, new)
    }

    /// Lets a mapping grow: of those that the host has made of it, the last.
    fn grow(&mut self, addr: u64, old: u64, new: u64) -> Result<(), Errno> {
        if new <= old {
            return Ok(());
        }
        let last = addr + old.saturating_sub(PAGE);
        let prot = self.prot_at(last);
        remap(last, PAGE, PAGE + (new - old), 0, None)?;
        self.held.mapped().set(addr + old, new - old, prot);
        Ok(())
    }

    fn prot_at(&mut self, addr: u64) -> Option<i32> {
        let mut found = None;
        let i = page_index(addr) as u32;
        self.held.mapped().each((i, i + 1), |at, _, prot| {
            if at == addr {
                found = Some(prot);
            }
        });
        found
    }

    /// Gives what is mapped in a range the keys of its state.
    fn settle(&mut self, addr: u64, len: u64) -> Result<(), Errno> {
        let mut list = Vec::new();
        for (_, start, end) in Mapped::split(addr, len) {
            self.par.each_class((start, end), |run, class| {
                self.keys.plan(self.held.mapped(), run, class, &mut list);
            });
        }
        // Others at aliases of the range are as they should be already.
        list.retain(|p| p.addr < addr + len && addr < p.addr + p.len);
        apply(&list)
    }
}

fn remap(addr: u64, old: u64, new: u64, flags: i32, to: Option<u64>) -> Result<(), Errno> {
    let to_flags = match to {
        Some(_) => libc::MREMAP_FIXED | libc::MREMAP_MAYMOVE,
        None => 0,
    };
    let args = [
        addr,
        old,
        new,
        (flags | to_flags) as u64,
        to.unwrap_or(0),
        0,
    ];
    // SAFETY: guest memory on both sides; the caller has checked.
    let r = unsafe { hostcall::raw(libc::SYS_mremap, args) };
    if r < 0 { Err(Errno(-r as i32)) } else { Ok(()) }
}

/// Moves memory of however many mappings of the host: halves, where it is more than one.
fn move_pieces(addr: u64, len: u64, to: u64, flags: i32) -> Result<(), Errno> {
    match remap(addr, len, len, flags, Some(to)) {
        Err(Errno(libc::EFAULT)) if len > PAGE => {
            let half = (len / PAGE / 2) * PAGE;
            move_pieces(addr, half, to, flags)?;
            move_pieces(addr + half, len - half, to + half, flags)
        }
        done => done,
    }
}

impl Par {
    /// The keys, while they are what enforces rights.
    pub(super) fn keys(&self) -> Option<&Keys> {
        self.keys
            .as_ref()
            .filter(|_| self.keyed.load(Ordering::Acquire))
    }

    /// With keys: how the pages of a run get into a state.
    pub(super) fn plan(&self, held: &mut Held<'_>, run: (u32, u32), class: Class) -> Vec<Protect> {
        let mut list = Vec::new();
        if let Some(keys) = self.keys() {
            keys.plan(held.mapped(), run, class, &mut list);
        }
        list
    }

    /// With keys: the runs of a range in which all pages are in one state.
    pub(super) fn each_class(&self, range: (u32, u32), mut f: impl FnMut((u32, u32), Class)) {
        let nobody = Class::nobody(self.slots.len());
        let mut last: Option<((u32, u32), Class)> = None;
        let mut at = range.0;
        while at < range.1 {
            let chunk_end = range.1.min((at / CHUNK + 1) * CHUNK);
            let (end, class) = if self.touched(at / CHUNK) {
                let end = self.slots.iter().fold(chunk_end, |end, s| {
                    s.rights.end_of(at, end, s.rights.get(at))
                });
                (end, self.class(at))
            } else {
                (chunk_end, nobody)
            };
            match &mut last {
                Some((run, c)) if *c == class => run.1 = end,
                _ => {
                    if let Some((run, c)) = last.replace(((at, end), class)) {
                        f(run, c);
                    }
                }
            }
            at = end;
        }
        if let Some((run, c)) = last {
            f(run, c);
        }
    }

    /// Whether a vcpu's thread lacks the right to an access, as the tables say.
    pub(super) fn lacks(&self, th: &Thread, addr: u64, write: bool) -> bool {
        let lacking = if write { NO_WRITE } else { NO_READ };
        self.slot(th).rights.get(entry(self.shift(), addr)) & lacking != 0
    }

    /// How many more neighbours are in different states when a run goes from one to another.
    pub(super) fn new_borders(&self, run: (u32, u32), before: Class, after: Class) -> i64 {
        if !self.has_keys() {
            return 0;
        }
        let neighbours = [run.0.checked_sub(1), Some(run.1)];
        let inside = |i: &u32| (*i as usize) < RIGHTS_LEN;
        let classes = neighbours.into_iter().flatten().filter(inside);
        let differ = |c: Class| move |n: &Class| *n != c;
        let classes: Vec<Class> = classes.map(|i| self.class(i)).collect();
        let count = |c: Class| classes.iter().copied().filter(differ(c)).count() as i64;
        count(after) - count(before)
    }

    /// Recording with keys: all that is mapped belongs to nobody from now on.
    pub(crate) fn protect_all(&self, all: &[(u64, u64, i32)]) -> Result<(), Errno> {
        let Some(keys) = self.keys() else {
            return Ok(());
        };
        let mut held = self.crew_lock();
        for (addr, len, prot) in all {
            held.mapped().set(*addr, *len, Some(*prot));
        }
        let mut list = Vec::new();
        let class = Class::nobody(self.slots.len());
        let run = (0, RIGHTS_LEN as u32);
        keys.plan(held.mapped(), run, class, &mut list);
        apply(&list)
    }

    /// In the child of a fork, which is serial: opens everything for good.
    pub(super) fn open_memory(&self) {
        if self.has_keys() {
            let mut held = self.crew_lock();
            must_apply(&self.plan_open(&mut held));
        }
    }

    /// What opens all memory.
    pub(super) fn plan_open(&self, held: &mut Held<'_>) -> Vec<Protect> {
        let mut list = Vec::new();
        let all = (0, RIGHTS_LEN as u32);
        held.mapped().each(all, |addr, len, prot| {
            list.push(Protect {
                addr,
                len,
                prot,
                key: 0,
            });
        });
        list
    }
}

const _: () = assert!(MOST_VCPUS as usize <= MAX_VCPUS);

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: u8 = 0;
    const READ: u8 = NO_WRITE;

    fn keys(vcpus: usize) -> Keys {
        let all: Vec<u8> = (1..=15).collect();
        Keys::assign(vcpus, &all).unwrap()
    }

    /// What the processor and the host allow a vcpu on a page of a class: read, write.
    fn allowed(k: &Keys, class: Class, v: usize) -> (bool, bool) {
        let g = k.guard(class);
        let bits = k.pkru(v) >> (2 * g.key) & 3;
        (bits & 1 == 0, bits == 0 && !g.read_only)
    }

    #[test]
    fn a_vcpu_can_do_what_the_tables_say_and_no_more() {
        for n in 1..=MOST_VCPUS as usize {
            let k = keys(n);
            // Every state: nobody, one writer, any set of readers.
            let mut states = vec![Class::nobody(n)];
            for v in 0..n {
                states.push(Class::nobody(n).with(v, WRITE));
            }
            for set in 1..1usize << n {
                let readers = (0..n).filter(|v| set >> v & 1 != 0);
                states.push(readers.fold(Class::nobody(n), |c, v| c.with(v, READ)));
            }
            for class in states {
                for v in 0..n {
                    let (read, write) = allowed(&k, class, v);
                    assert_eq!(read, class.right(v) & NO_READ == 0, "{class:?}");
                    assert_eq!(
                        write,
                        class.right(v) & NO_WRITE == 0,
                        "{class:?} {v} of {n}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_has_no_key_is_open_to_all() {
        for v in 0..3 {
            assert_eq!(keys(3).pkru(v) & 3, 0);
        }
        assert!(Keys::assign(4, &(1..=15).collect::<Vec<_>>()).is_some());
        assert!(Keys::assign(4, &(1..=14).collect::<Vec<_>>()).is_none());
        assert!(Keys::assign(2, &[3, 4, 5]).is_some());
    }

    #[test]
    fn mappings_are_cut_and_joined() {
        let mut m = Mapped::default();
        let list = |m: &Mapped, run| {
            let mut out = Vec::new();
            m.each(run, |a, l, p| out.push((a, l, p)));
            out
        };
        let all = (0, RIGHTS_LEN as u32);
        m.set(0x10000, 0x8000, Some(3));
        m.set(0x18000, 0x1000, Some(3));
        assert_eq!(list(&m, all), [(0x10000, 0x9000, 3)]);
        m.set(0x12000, 0x1000, Some(1));
        assert_eq!(
            list(&m, (0x11, 0x14)),
            [
                (0x11000, 0x1000, 3),
                (0x12000, 0x1000, 1),
                (0x13000, 0x1000, 3)
            ]
        );
        assert_eq!(m.around(0x13), Some((0x13, 0x19)));
        m.set(0x12000, 0x1000, Some(3));
        assert_eq!(list(&m, all), [(0x10000, 0x9000, 3)]);
        m.set(0x18000, 0x1000, Some(1));
        assert_eq!(
            m.take(0x17000, 0x2000),
            [(0x17000, 0x1000, 3), (0x18000, 0x1000, 1)]
        );
        assert_eq!(list(&m, all), [(0x10000, 0x7000, 3)]);
        assert_eq!(m.around(0x17), None);
    }

    #[test]
    fn addresses_that_share_an_entry_are_both_protected() {
        let mut m = Mapped::default();
        m.set(0x5000, 0x1000, Some(3));
        m.set(ALIAS + 0x4000, 0x3000, Some(1));
        let k = keys(2);
        let mut out = Vec::new();
        k.plan(&m, (5, 6), Class::nobody(2).with(1, WRITE), &mut out);
        let all: Vec<_> = out.iter().map(|p| (p.addr, p.len, p.prot)).collect();
        assert_eq!(all, [(0x5000, 0x1000, 3), (ALIAS + 0x5000, 0x1000, 1)]);
        assert!(out.iter().all(|p| p.key == out[0].key && p.key != 0));
        // Across the end of the tables.
        m.set(2 * ALIAS - 0x1000, 0x2000, Some(3));
        let last = RIGHTS_LEN as u32 - 1;
        let mut seen = Vec::new();
        m.each((0, 1), |a, l, _| seen.push((a, l)));
        m.each((last, last + 1), |a, l, _| seen.push((a, l)));
        assert_eq!(seen, [(2 * ALIAS, 0x1000), (2 * ALIAS - 0x1000, 0x1000)]);
    }
}

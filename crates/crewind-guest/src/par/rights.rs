//! Who may touch which memory: concurrent read, exclusive write, per granule of 64 bytes, checked in software.
//!
//! Each vcpu has a table of rights that its translated code looks into before each access. Nothing enforces it but
//! those checks, so a right is only taken away where its holder cannot be between check and access: by the holder
//! itself when it has left translated code, or by others while it is parked. Each taking gives an *edge*: the point
//! of its thread that lies behind all accesses made with the right. What SMP-ReVirt does with page protection is done
//! here with loads and branches, as in Octet (Bond et al., OOPSLA 2013) for Java.
//!
//! All transitions of a process happen under the *crew lock*, one at a time. A granule that nobody has a right to was
//! never touched (or its pages are new): who takes it first waits for the last change of mappings only.
//!
//! Late readers: who joins a granule that others read already takes the edges stored with its page: those of writers
//! that became readers. They are kept by page and never forgotten: too many edges are right too, and mostly implied.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::adapt::{self, Budget};
use super::keys::{self, Mapped, Protect};
use super::lock::{Backoff, Lock, read};
use super::{ANSWERED, ORDERED, POSTED, Par, State, UNUSED};
use crate::runtime::Runtime;
use crate::thread::Thread;
use crewind_crew::{Claim, Class, NONE, PAGE, Pages, READ, WRITE};
use crewind_trace::Counter;
use crewind_trace::event::{Edge, Event, Stop};
use crewind_x86::CheckedRange;
use crewind_x86::rights::{NO_READ, NO_WRITE, RIGHTS_LEN};
use std::cell::UnsafeCell;

const _: () = assert!(NONE == NO_READ | NO_WRITE && READ == NO_WRITE && WRITE == 0);
/// May not touch, and is never allowed to: the page is shared with other processes (`crate::shared`).
const BARRED: u8 = NONE | 4;

/// Granules that one page of a table stands for: 256 KiB of memory.
pub(super) const CHUNK: u32 = 4096;
/// Behind the table proper: the check looks at two granules at once.
const SLACK: u64 = 4096;
/// Bytes of the file that tables begin as. Larger: fewer mappings.
const FILE: u64 = 2 << 20;

/// One vcpu's table of rights. In a replay there is none.
pub(super) struct Table {
    /// 0: there is none.
    base: AtomicU64,
}

impl Table {
    /// Maps a table in which nothing is allowed. Pages of it cost memory only once they are written.
    pub(super) fn map(at: Option<u64>) -> std::io::Result<Table> {
        let table = Table {
            base: AtomicU64::new(0),
        };
        if let Some(at) = at {
            table.map_at(at)?;
        }
        Ok(table)
    }

    /// The same for one that there was not.
    pub(super) fn map_at(&self, base: u64) -> std::io::Result<()> {
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
        // SAFETY: a name and flags.
        let fd = unsafe { libc::memfd_create(c"crewind-rights".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let content = vec![NONE; FILE as usize];
        // SAFETY: a live buffer.
        let n = unsafe { libc::write(fd.as_raw_fd(), content.as_ptr().cast(), content.len()) };
        if n != content.len() as isize {
            return Err(std::io::Error::other("could not fill the table of rights"));
        }
        let mut at = 0;
        while at < RIGHTS_LEN as u64 + SLACK {
            let len = FILE.min(RIGHTS_LEN as u64 + SLACK - at);
            // SAFETY: the runtime's own part of the low window, where nothing else is.
            let p = unsafe {
                libc::mmap(
                    (base + at) as *mut libc::c_void,
                    len as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE,
                    fd.as_raw_fd(),
                    0,
                )
            };
            if p as u64 != base + at {
                return Err(std::io::Error::last_os_error());
            }
            at += len;
        }
        self.base.store(base, Ordering::Release);
        Ok(())
    }

    #[inline]
    fn base(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    /// Unmaps it, when nobody uses it any more.
    pub(super) fn unmap(&self) {
        let base = self.base.swap(0, Ordering::AcqRel);
        if base != 0 {
            // SAFETY: mapped by `map`; translated code that uses it is not run again.
            unsafe {
                libc::munmap(
                    base as *mut libc::c_void,
                    (RIGHTS_LEN as u64 + SLACK) as usize,
                )
            };
        }
    }

    #[inline]
    fn cell(&self, i: u32) -> &AtomicU8 {
        debug_assert!(self.base() != 0 && (i as usize) < RIGHTS_LEN);
        // SAFETY: inside the table, which stays mapped as long as anybody can get here.
        unsafe { AtomicU8::from_ptr((self.base() + u64::from(i)) as *mut u8) }
    }

    #[inline]
    pub(super) fn get(&self, i: u32) -> u8 {
        self.cell(i).load(Ordering::Relaxed)
    }

    fn fill(&self, range: (u32, u32), value: u8) {
        let mut i = range.0;
        while i < range.1 {
            if i.is_multiple_of(8) && range.1 - i >= 8 {
                self.word(i)
                    .store(u64::from_ne_bytes([value; 8]), Ordering::Relaxed);
                i += 8;
            } else {
                self.cell(i).store(value, Ordering::Relaxed);
                i += 1;
            }
        }
    }

    /// Eight cells from a multiple of eight on.
    #[inline]
    fn word(&self, i: u32) -> &AtomicU64 {
        debug_assert!(i.is_multiple_of(8) && self.base() != 0 && (i as usize) < RIGHTS_LEN);
        // SAFETY: inside the table, aligned like it.
        unsafe { AtomicU64::from_ptr((self.base() + u64::from(i)) as *mut u64) }
    }

    /// How many granules right before `i` the vcpu may read or write, at most `most`.
    fn run_before(&self, i: u32, write: bool, most: u32) -> u32 {
        let lacking = if write { NO_WRITE } else { NO_READ };
        let all = u64::from_ne_bytes([lacking; 8]);
        let stop = i.saturating_sub(most);
        let mut at = i;
        while at > stop {
            if at.is_multiple_of(8)
                && at - stop >= 8
                && self.word(at - 8).load(Ordering::Relaxed) & all == 0
            {
                at -= 8;
            } else if self.get(at - 1) & lacking == 0 {
                at -= 1;
            } else {
                break;
            }
        }
        i - at
    }

    /// How many granules from `i` on the vcpu may read or write, at most `most`.
    fn run_behind(&self, i: u32, write: bool, most: u32) -> u32 {
        let lacking = if write { NO_WRITE } else { NO_READ };
        let all = u64::from_ne_bytes([lacking; 8]);
        let stop = i.saturating_add(most).min(RIGHTS_LEN as u32);
        let mut at = i;
        while at < stop {
            if at.is_multiple_of(8)
                && stop - at >= 8
                && self.word(at).load(Ordering::Relaxed) & all == 0
            {
                at += 8;
            } else if self.get(at) & lacking == 0 {
                at += 1;
            } else {
                break;
            }
        }
        at - i
    }

    /// The first granule from `i` on, up to `end`, that has not this value.
    pub(super) fn end_of(&self, mut i: u32, end: u32, value: u8) -> u32 {
        let all = u64::from_ne_bytes([value; 8]);
        while i < end {
            if i.is_multiple_of(8) && end - i >= 8 && self.word(i).load(Ordering::Relaxed) == all {
                i += 8;
            } else if self.get(i) == value {
                i += 1;
            } else {
                break;
            }
        }
        i
    }

    /// Gives rights up: to write only, or all.
    pub(super) fn give_up(&self, ranges: &[(u32, u32)], keep_reading: bool) {
        for r in ranges {
            if !keep_reading {
                self.fill(*r, NONE);
                continue;
            }
            for i in r.0..r.1 {
                let c = self.cell(i);
                if c.load(Ordering::Relaxed) == WRITE {
                    c.store(READ, Ordering::Relaxed);
                }
            }
        }
    }
}

/// State of all transitions, under the crew lock.
#[derive(Default)]
struct Inner {
    /// The protocol's memory.
    pages: Pages,
    /// With keys: the guest's mappings.
    mapped: Mapped,
    /// With keys: how often neighbouring pages are in different states. The kernel splits mappings there.
    borders: i64,
    /// With keys: what hand-overs may still cost.
    budget: Budget,
}

/// The crew lock and what it guards.
pub(super) struct Crew {
    lock: Lock,
    inner: UnsafeCell<Inner>,
    /// By chunk: 1 once anybody had a right in it.
    touched: Vec<AtomicU8>,
}

// SAFETY: `inner` is only used by the holder of `lock`.
unsafe impl Sync for Crew {}

impl Default for Crew {
    fn default() -> Self {
        Crew {
            lock: Lock::default(),
            inner: UnsafeCell::default(),
            touched: (0..RIGHTS_LEN / CHUNK as usize)
                .map(|_| AtomicU8::new(0))
                .collect(),
        }
    }
}

impl Crew {
    /// Nobody has or had a right to anything. Nobody uses it meanwhile.
    pub(super) fn reset(&self) {
        self.lock.lock();
        // SAFETY: the lock is held.
        let inner = unsafe { &mut *self.inner.get() };
        inner.pages.clear();
        *inner = Inner {
            pages: std::mem::take(&mut inner.pages),
            ..Inner::default()
        };
        self.lock.unlock();
        for t in &self.touched {
            t.store(0, Ordering::Relaxed);
        }
    }
}

impl Crew {
    /// Somebody has had a right in a run.
    fn touch(&self, run: (u32, u32)) {
        let chunks = run.0 / CHUNK..run.1.div_ceil(CHUNK);
        for t in chunks.filter_map(|c| self.touched.get(c as usize)) {
            t.store(1, Ordering::Relaxed);
        }
    }
}

/// The crew lock, held.
pub(super) struct Held<'a>(&'a Crew);

impl Held<'_> {
    /// The guest's mappings, as memory with keys needs them.
    pub(super) fn mapped(&mut self) -> &mut Mapped {
        &mut self.inner().mapped
    }

    /// Whoever touches memory for the first time waits for this point.
    pub(super) fn comes_behind(&mut self, at: Edge) {
        self.inner().pages.comes_behind(at);
    }

    /// Hand-overs may cost again what they may cost a process that begins.
    pub(super) fn renew_budget(&mut self) {
        self.inner().budget = Budget::new();
    }

    fn inner(&mut self) -> &mut Inner {
        // SAFETY: the lock is held as long as `self`.
        unsafe { &mut *self.0.inner.get() }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.lock.unlock();
    }
}

/// Granules that are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    /// First granule.
    pub start: u32,
    /// Granule behind the last.
    pub end: u32,
    /// Whether they are written; else read.
    pub write: bool,
}

impl Want {
    /// All around it as well, for writing: afterwards pages there are in one state, and borders between them are gone.
    fn coarse(&self) -> Want {
        Want {
            start: self.start / PAGE * PAGE,
            end: self.end.next_multiple_of(PAGE).min(RIGHTS_LEN as u32),
            write: true,
        }
    }
}

/// How rights are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum As {
    /// A thread at a failed check: it can give up and come back.
    Check,
    /// An event under the runtime lock: it has to get them.
    Event,
    /// As an event, for a change of mappings.
    Mapping,
}

/// Whether all was obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Got {
    All,
    /// The world is being stopped, or was; what was obtained stays.
    Stopped,
}

/// What a claim got.
struct Claimed {
    /// The granule behind it.
    end: u32,
    /// Whether somebody lost something.
    from_others: bool,
}

/// The entry of an address in tables whose entries stand for 2^`shift` bytes.
pub(super) fn entry(shift: u32, addr: u64) -> u32 {
    (addr >> shift) as u32 & (RIGHTS_LEN as u32 - 1)
}

/// Splits an address range into granules; two pieces where addresses wrap in the table.
fn wants(shift: u32, addr: u64, len: u64, write: bool, out: &mut Vec<Want>) {
    if len == 0 {
        return;
    }
    let total = RIGHTS_LEN as u32;
    if len >= (RIGHTS_LEN as u64) << shift {
        out.push(Want {
            start: 0,
            end: total,
            write,
        });
        return;
    }
    let (a, b) = (entry(shift, addr), entry(shift, addr.wrapping_add(len - 1)));
    if a <= b {
        out.push(Want {
            start: a,
            end: b + 1,
            write,
        });
    } else {
        out.push(Want {
            start: a,
            end: total,
            write,
        });
        out.push(Want {
            start: 0,
            end: b + 1,
            write,
        });
    }
}

impl Par {
    /// A failed check: gets the rights and logs what that ordered. The thread has left translated code, holds no
    /// lock and is busy; it is busy again on return.
    pub(super) fn check_failed(&self, th: &mut Thread, ranges: &[CheckedRange]) -> Got {
        let mut list = std::mem::take(&mut th.wants);
        list.clear();
        for r in ranges {
            wants(self.shift(), r.addr, r.len, r.write, &mut list);
        }
        let got = self.obtain(th, &list, As::Check);
        th.wants = list;
        got
    }

    /// An event touches guest memory: nobody else may until it is done.
    pub(crate) fn event_touches(&self, th: &mut Thread, addr: u64, len: u64, write: bool) {
        if self.is_free() {
            return;
        }
        let mut list = std::mem::take(&mut th.wants);
        list.clear();
        wants(self.shift(), addr, len, write, &mut list);
        self.obtain(th, &list, As::Event);
        th.wants = list;
    }

    /// The memory of a range is about to be mapped, unmapped or protected otherwise: a write of all of it. Chunks that
    /// nobody ever touched are left alone.
    pub(crate) fn event_maps(&self, th: &mut Thread, addr: u64, len: u64) {
        if self.is_free() {
            return;
        }
        let mut list = Vec::new();
        wants(self.shift(), addr, len, true, &mut list);
        let mut others = Vec::new();
        for w in list {
            let mut at = w.start;
            while at < w.end {
                let end = w.end.min((at / CHUNK + 1) * CHUNK);
                if self.touched(at / CHUNK) {
                    self.of_others(th, (at, end), &mut others);
                    // Of who had a right there that nobody has now.
                    let mut held = self.crew_lock();
                    held.inner().pages.kept((at, end), &mut th.edges);
                }
                at = end;
            }
        }
        self.obtain(th, &others, As::Mapping);
    }

    /// The event under way changes mappings. What nobody has a right to stays so until it is logged: who took such a
    /// granule now, and found what the change made of it, would not come behind the change.
    pub(crate) fn mapping_begins(&self, th: &Thread) {
        self.crew_lock()
            .inner()
            .pages
            .mapping_begins(usize::from(th.vcpu));
    }

    /// The thread's access to an address faulted: it gives its right back, so that it comes behind whoever maps
    /// something there.
    pub(crate) fn faulted(&self, th: &mut Thread, addr: u64) {
        if !self.is_ordered() {
            return;
        }
        let i = entry(self.shift(), addr);
        let rights = &self.slot(th).rights;
        let at = th.spot();
        let mut held = self.crew_lock();
        if rights.get(i) & NONE != NONE {
            let run = (i, i + 1);
            held.inner().pages.given_back(run, at, &th.edges);
            let before = self.class(i);
            rights.fill(run, NONE);
            let now = self.class(i);
            keys::must_apply(&self.plan(&mut held, run, now));
            held.inner().borders += self.new_borders(run, before, now);
        }
    }

    /// Runs of granules in a range that some other vcpu has a right to.
    fn of_others(&self, th: &Thread, range: (u32, u32), out: &mut Vec<Want>) {
        let me = usize::from(th.vcpu);
        for (v, slot) in self.slots.iter().enumerate() {
            if v == me {
                continue;
            }
            let mut at = range.0;
            loop {
                at = slot.rights.end_of(at, range.1, NONE);
                if at >= range.1 {
                    break;
                }
                let right = slot.rights.get(at);
                let end = slot.rights.end_of(at, range.1, right);
                out.push(Want {
                    start: at,
                    end,
                    write: true,
                });
                at = end;
            }
        }
    }

    /// A change of mappings was logged: whoever touches memory for the first time waits for it.
    pub(crate) fn mapping_changed(&self, th: &mut Thread) {
        let at = th.spot();
        self.crew_lock().inner().pages.mapping_changed(at);
    }

    /// From now on memory that changes hands is taken by the granule. To get there, a process with keys goes over to checks
    /// without trying whether one vcpu does.
    pub(crate) fn claim_by_granule(&self) {
        self.try_no_single_vcpu();
        self.crew_lock().inner().pages.by_granule();
    }

    pub(super) fn crew_lock(&self) -> Held<'_> {
        let mut wait = Backoff::default();
        while !self.crew.lock.try_lock() {
            wait.snooze();
        }
        Held(&self.crew)
    }

    /// Nobody gets a right to a range from now on. The calling thread has taken what others had.
    pub(crate) fn bar(&self, th: &mut Thread, addr: u64, len: u64) {
        self.check_again(th);
        let mut list = Vec::new();
        wants(self.shift(), addr, len, true, &mut list);
        let mut held = self.crew_lock();
        for w in list {
            let run = (w.start, w.end);
            for slot in &self.slots {
                slot.rights.fill(run, BARRED);
            }
            self.crew.touch(run);
            keys::must_apply(&self.plan(&mut held, run, Class::nobody(self.slots.len())));
        }
    }

    /// Takes that back.
    pub(crate) fn unbar(&self, addr: u64, len: u64) {
        let mut list = Vec::new();
        wants(self.shift(), addr, len, true, &mut list);
        let _held = self.crew_lock();
        for w in list {
            for slot in &self.slots {
                for i in w.start..w.end {
                    if slot.rights.get(i) == BARRED {
                        slot.rights.fill((i, i + 1), NONE);
                    }
                }
            }
        }
    }

    fn is_barred(&self, i: u32) -> bool {
        self.slots
            .first()
            .is_some_and(|s| s.rights.get(i) == BARRED)
    }

    /// Whether any of these is memory that nobody gets a right to.
    pub(crate) fn bars(&self, ranges: &[CheckedRange]) -> bool {
        if !crate::shared::active() {
            return false;
        }
        let mut list = Vec::new();
        for r in ranges {
            wants(self.shift(), r.addr, r.len, r.write, &mut list);
        }
        list.iter().any(|w| {
            let mut at = w.start;
            while at < w.end {
                if self.is_barred(at) {
                    return true;
                }
                let right = self.slots.first().map_or(NONE, |s| s.rights.get(at));
                at = self
                    .slots
                    .first()
                    .map_or(w.end, |s| s.rights.end_of(at, w.end, right));
            }
            false
        })
    }

    fn obtain(&self, th: &mut Thread, list: &[Want], how: As) -> Got {
        let me = usize::from(th.vcpu);
        let slot = self.slot(th);
        let by_time = self.has_keys() && self.counts_hand_overs();
        if how == As::Check {
            slot.park(th, State::Asking);
            self.hold_off(th, list);
        }
        let mut begun = (by_time && how == As::Check).then(adapt::of_thread);
        let (begun_at, mut from_others) = (cycles(), false);
        let mut first = how == As::Check && !self.has_keys();
        loop {
            let mut held = self.crew_lock();
            if std::mem::take(&mut first) {
                self.give_back(th, &mut held, me);
            }
            let mut busy = None;
            let keys = self.keys();
            let coarse = keys.is_some_and(|k| held.inner().borders > k.most_borders());
            'all: for w in list {
                let w = if coarse { w.coarse() } else { *w };
                let mut at = w.start;
                while let Some(i) = self.first_missing(me, at, &w) {
                    if self.is_barred(i) {
                        at = self.slots[me].rights.end_of(i, w.end, BARRED);
                        continue;
                    }
                    if by_time && begun.is_none() {
                        begun = Some(adapt::of_thread());
                    }
                    match self.claim(th, &mut held, me, i, &w, how) {
                        Ok(claimed) => {
                            at = claimed.end.max(i + 1);
                            from_others |= claimed.from_others;
                        }
                        Err(u) => {
                            busy = Some(u);
                            break 'all;
                        }
                    }
                }
            }
            let Some(u) = busy else {
                let cost = match begun {
                    Some(begun) => Some(adapt::by_keys(adapt::of_thread().saturating_sub(begun))),
                    None if from_others && !self.has_keys() && self.counts_hand_overs() => {
                        Some(adapt::by_checks(cycles().wrapping_sub(begun_at)))
                    }
                    None => None,
                };
                if let Some(cost) = cost
                    && !held.inner().budget.pays(cost, adapt::of_process)
                {
                    self.overspent();
                }
                if how == As::Check {
                    // Before the lock is given back: nobody may take what was just got.
                    slot.become_busy(State::Asking);
                    if from_others {
                        slot.burst.add(begun_at, cycles());
                    }
                }
                break Got::All;
            };
            if how == As::Check {
                // SAFETY: others look at it only with the crew lock, which is held here.
                unsafe { &mut *slot.spot.get() }.set(th.spot(), &th.edges);
            }
            drop(held);
            let mut wait = Backoff::default();
            while self.slots[u].state() == State::Busy {
                if how == As::Check && self.stop.load(Ordering::SeqCst) != 0 {
                    break;
                }
                wait.snooze();
            }
            if how == As::Check && self.stop.load(Ordering::SeqCst) != 0 {
                slot.become_busy(State::Asking);
                break Got::Stopped;
            }
        }
    }

    /// Takes all rights away. With keys it opens all memory: from now on entries of the tables stand for granules, and
    /// nothing but translated code looks at them. The world is stopped.
    pub(super) fn drop_rights(&self) {
        let mut held = self.crew_lock();
        if self.has_keys() {
            keys::must_apply(&self.plan_open(&mut held));
        }
        for (chunk, touched) in (0..).zip(&self.crew.touched) {
            if touched.swap(0, Ordering::Relaxed) != 0 {
                for slot in &self.slots {
                    slot.rights.fill((chunk * CHUNK, (chunk + 1) * CHUNK), NONE);
                }
            }
        }
        let inner = held.inner();
        inner.pages.clear();
        inner.mapped = Mapped::default();
        inner.borders = 0;
        self.shift.store(
            crewind_x86::rights::GRANULE.trailing_zeros(),
            Ordering::Release,
        );
        self.keyed.store(false, Ordering::Release);
    }

    pub(super) fn first_missing(&self, me: usize, from: u32, w: &Want) -> Option<u32> {
        let table = &self.slots[me].rights;
        let lacking = if w.write { NO_WRITE } else { NO_READ };
        let mut at = from;
        while at < w.end {
            let right = table.get(at);
            if right & lacking != 0 {
                return Some(at);
            }
            at = table.end_of(at, w.end, right);
        }
        None
    }

    /// Rights of all vcpus to a granule.
    pub(super) fn class(&self, i: u32) -> Class {
        let class = Class::nobody(self.slots.len());
        let all = self.slots.iter().enumerate();
        all.fold(class, |c, (v, s)| c.with(v, s.rights.get(i) & NONE))
    }

    /// Whether anybody ever had a right in a chunk.
    pub(super) fn touched(&self, chunk: u32) -> bool {
        self.crew
            .touched
            .get(chunk as usize)
            .is_none_or(|t| t.load(Ordering::Relaxed) != 0)
    }

    /// Takes a run of granules from `i` on that are all in the same state. `Err` is the vcpu that is busy: then nothing is
    /// lost, and it is to be tried again.
    fn claim(
        &self,
        th: &mut Thread,
        held: &mut Held<'_>,
        me: usize,
        i: u32,
        w: &Want,
        how: As,
    ) -> Result<Claimed, usize> {
        let class = self.class(i);
        let claim = |write| Claim::new(class, self.slots.len(), me, write);
        let wish = match how {
            As::Check if !self.has_keys() => held.inner().pages.wish(i, &claim(w.write), cycles()),
            _ => None,
        };
        let write = wish.map_or(w.write, |w| w.write);
        let claim = claim(write);
        let untouched = claim.is_untouched();
        if let Some(v) = held.inner().pages.not_before(&claim, me) {
            return Err(v);
        }
        let run = match wish {
            Some(_) => (i, i + 1),
            None => self.run_of(th, held, i, w, class, &claim),
        };
        let mut edges: Vec<Edge> = Vec::new();
        // The state of the pages, as rights go one by one. The last to lose one makes it what it is to be.
        let after = claim.after(usize::MAX);
        if claim.losers().next().is_none() && self.has_keys() {
            keys::must_apply(&self.plan(held, run, after));
        }
        for (n, u) in claim.losers().enumerate() {
            let plan = self.plan(held, run, claim.after(n + 1));
            if let Err(u) = self.revoke(me, u, run, claim.demotes(), plan, &mut edges) {
                held.inner().borders += self.new_borders(run, class, claim.after(n));
                held.inner().pages.lost(run, &edges);
                return Err(u);
            }
        }
        let inner = held.inner();
        inner.pages.joined(run, &claim, me, &mut edges, cycles());
        inner.borders += self.new_borders(run, class, after);
        self.slots[me].rights.fill(run, claim.mine());
        self.crew.touch(run);
        let cause = match how {
            _ if untouched => Counter::TakenFirst,
            As::Event => Counter::TakenByEvents,
            As::Mapping => Counter::TakenByMappings,
            As::Check if write => Counter::TakenByWrites,
            As::Check => Counter::TakenByReads,
        };
        match wish {
            Some(wish) => th.later.note(i, wish.later, me),
            None => th.streams.took(run.0, run.1, w.write),
        }
        self.count_often(th, cause, 1);
        self.count_often(th, Counter::Edges, edges.len());
        th.edges.extend(edges);
        Ok(Claimed {
            end: run.1,
            from_others: claim.losers().next().is_some(),
        })
    }

    /// Granules around `i` that are all in the same state, as many as are likely to be wanted.
    fn run_of(
        &self,
        th: &Thread,
        held: &mut Held<'_>,
        i: u32,
        w: &Want,
        class: Class,
        claim: &Claim,
    ) -> (u32, u32) {
        let untouched = claim.is_untouched();
        let (first, limit) = self.reach(th, held, i, w, claim);
        let (first, limit) = match held.inner().mapped.around(i) {
            // Untouched memory is had in whole pieces of a mapping: stacks grow down.
            Some((start, end)) if untouched => (
                start.max(first.min(i / PAGE * PAGE)),
                limit.min(end).max(w.end),
            ),
            _ if untouched => (first.min(i / PAGE * PAGE), limit),
            _ => (first, limit),
        };
        let start = (first..i)
            .rev()
            .take_while(|p| self.class(*p) == class && !self.is_barred(*p));
        let start = start.last().unwrap_or(i);
        let end = self
            .slots
            .iter()
            .fold(limit, |end, s| s.rights.end_of(i, end, s.rights.get(i)));
        (start, end)
    }

    /// Gives back what the thread took some claims ago, and is better given back before somebody asks. It stands at a failed
    /// check, whose rights it is going to claim: all that the check's translation relies on.
    fn give_back(&self, th: &mut Thread, held: &mut Held<'_>, me: usize) {
        while let Some((i, later)) = th.later.due(me) {
            let rights = &self.slots[me].rights;
            // Taken meanwhile, or shared with other processes.
            if rights.get(i) != WRITE {
                continue;
            }
            let at = th.spot();
            let pages = &mut held.inner().pages;
            let left = pages.given_back_later(i, me, later, at, &th.edges);
            rights.fill((i, i + 1), left);
        }
    }

    /// From where to where a claim to granule `i` is to reach: what is wanted, and more where that is likely to be right. Of
    /// what the vcpu has next to it, not all is a reason to take as much of what others have: it may be the border of its
    /// part of an array, and with keys what was taken too much costs as much to take back as it has pages.
    fn reach(
        &self,
        th: &Thread,
        held: &mut Held<'_>,
        i: u32,
        w: &Want,
        claim: &Claim,
    ) -> (u32, u32) {
        let near = if claim.is_untouched() || !self.has_keys() {
            MAX_RUN
        } else {
            PAGE
        };
        let rights = &self.slot(th).rights;
        let before = rights.run_before(i, w.write, near);
        let before = before.max(th.streams.before(i, w.write).min(MAX_RUN));
        let behind = rights.run_behind(i + 1, w.write, near);
        let behind = behind.max(th.streams.behind(i + 1, w.write).min(MAX_RUN));
        let (pages, now) = (&held.inner().pages, cycles());
        let mut start = pages.reach_down(i, behind, now);
        let mut end = pages.reach(i, w.end, before, now);
        if !self.has_keys()
            && let Some(moving) = pages.moving(i, claim, now)
        {
            (start, end) = (start.min(moving.0), end.max(moving.1));
        }
        (start, end.min(RIGHTS_LEN as u32))
    }

    /// Takes rights to a run away from vcpu `u`, and adds what that orders to `edges`. `Err`: it is busy; nothing was
    /// taken.
    fn revoke(
        &self,
        me: usize,
        u: usize,
        run: (u32, u32),
        keep_reading: bool,
        plan: Vec<Protect>,
        edges: &mut Vec<Edge>,
    ) -> Result<(), usize> {
        let slot = &self.slots[u];
        let request = &slot.requests[me];
        let mut posted = false;
        let mut wait = Backoff::default();
        loop {
            if posted && request.status.load(Ordering::SeqCst) == ANSWERED {
                // SAFETY: answered: the giver is done with it.
                edges.extend(unsafe { &*request.at.get() }.edges());
                request.status.store(UNUSED, Ordering::SeqCst);
                return Ok(());
            }
            let state = slot.state();
            match state {
                State::Parked | State::Asking | State::Busy if posted => {
                    let withdrawn = request.status.compare_exchange(
                        POSTED,
                        UNUSED,
                        Ordering::SeqCst,
                        Ordering::Relaxed,
                    );
                    if withdrawn.is_ok() {
                        posted = false;
                    }
                }
                State::Parked | State::Asking => {
                    let mine = slot.state.compare_exchange(
                        state as u32,
                        State::Served as u32,
                        Ordering::SeqCst,
                        Ordering::Relaxed,
                    );
                    if mine.is_ok() {
                        slot.rights.give_up(&[run], keep_reading);
                        keys::must_apply(&plan);
                        // SAFETY: its holder writes to it when busy, or with the crew lock, which is held here.
                        edges.extend(unsafe { &*slot.spot.get() }.edges());
                        slot.state.store(state as u32, Ordering::SeqCst);
                        return Ok(());
                    }
                }
                State::Busy => return Err(u),
                State::Running if !posted => {
                    // SAFETY: the request is unused, so its ranges are ours: each pair of vcpus has its own, and the
                    // crew lock is held.
                    unsafe {
                        let ranges = &mut *request.ranges.get();
                        ranges.clear();
                        ranges.push(run);
                        (*request.protect.get()).clone_from(&plan);
                    }
                    request
                        .keep_reading
                        .store(u32::from(keep_reading), Ordering::Relaxed);
                    request.status.store(POSTED, Ordering::SeqCst);
                    slot.inbox.fetch_or(1 << me, Ordering::SeqCst);
                    slot.poke();
                    posted = true;
                }
                State::Running => {
                    // A poke can be lost to the owner's next tick: ask again.
                    if wait.rounds() % 64 == 63 {
                        slot.poke();
                    }
                    wait.snooze();
                }
                State::Served => wait.snooze(),
            }
        }
    }
}

/// Largest claim: 1 MiB.
const MAX_RUN: u32 = 16_384;
pub(super) fn cycles() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The runtime is about to access guest memory for the calling thread's event.
#[inline]
pub fn touch(addr: u64, len: u64, write: bool) {
    if ORDERED.load(Ordering::Relaxed) {
        touch_ordered(addr, len, write);
    }
}

#[cold]
fn touch_ordered(addr: u64, len: u64, write: bool) {
    let th = crate::thread::current();
    if th.is_null() {
        return;
    }
    // SAFETY: the calling thread's own; what calls this holds no reference to the fields used here.
    let th = unsafe { &mut *th };
    if !th.in_event {
        return;
    }
    if let Some(par) = super::get() {
        par.event_touches(th, addr, len, write);
    }
}

/// So few edges are logged without asking whether their threads have ended: hand-overs between two threads have one or two.
const FEW_EDGES: usize = 8;

impl Thread {
    /// The edges gathered so far that nothing implies; the thread knows them from now on.
    pub(super) fn reduce(&mut self, par: &Par) -> Vec<Edge> {
        // A look at the ends costs something, and few edges do not.
        let edges = if self.edges.len() < FEW_EDGES {
            self.known.reduce(self.id, &self.edges, None)
        } else {
            let ends = read(&par.ends);
            self.known.reduce(self.id, &self.edges, Some(&ends))
        };
        self.edges.clear();
        edges
    }

    /// Logs that the thread waits for these points at a position.
    fn append_acquire(&mut self, at: (u64, u64), stop: Stop, edges: Vec<Edge>) {
        let event = Event::Sync {
            order: None,
            vcpu: None,
            stop,
            edges: edges.into(),
        };
        self.append_sync_at(at, event);
    }
}

impl Runtime {
    /// Logs what the thread has come to wait for since its last event, at its present position. Before it goes on into
    /// guest code, and before it gives its vcpu up inside an event.
    pub(crate) fn log_acquire(par: &Par, th: &mut Thread, stop: Stop) {
        let at = (th.ctx().clock(), th.ctx().rip);
        Self::log_acquire_at(par, th, at, stop);
    }

    /// As above, before a system call that may block: also when there is nothing to wait for. If the process is killed
    /// in it, the log says that the thread got there, and others may have what it did on the way.
    pub(crate) fn log_way_to(par: &Par, th: &mut Thread) {
        let at = (th.ctx().clock(), th.ctx().rip);
        if !Self::log_acquire_at(par, th, at, Stop::Comes) && par.is_ordered() {
            th.append_acquire(at, Stop::Comes, Vec::new());
        }
    }

    /// As above, at a position noted earlier. False: there was nothing to wait for.
    pub(crate) fn log_acquire_at(par: &Par, th: &mut Thread, at: (u64, u64), stop: Stop) -> bool {
        if th.edges.is_empty() {
            return false;
        }
        let edges = th.reduce(par);
        if edges.is_empty() {
            return false;
        }
        par.count_often(th, Counter::Acquires, 1);
        par.count_often(th, Counter::EdgesLogged, edges.len());
        th.append_acquire(at, stop, edges);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;
    use crate::start::{Mode, Sharing};
    use crewind_trace::event::ThreadId;
    use crewind_trace::{Meta, Options, Session, StreamReader, StreamWriter, TraceDir};
    use std::path::Path;
    use std::sync::atomic::AtomicU64;

    /// What guest threads do with rights, without guest code: accesses behind checks, ticks, and waiting.
    struct Machine {
        par: &'static Par,
        /// Two words per granule that are always equal when nobody writes, plain loads and stores.
        memory: Vec<[UnsafeCell<u64>; 2]>,
        written: AtomicU64,
        begin: std::sync::Barrier,
    }

    // SAFETY: the words are accessed under rights: that this excludes writers is what is tested.
    unsafe impl Sync for Machine {}

    const GRANULES: u64 = 6;
    /// Anywhere in the guest's part; nothing is mapped there, as only rights are looked at.
    const BASE: u64 = 0x1234_5000;

    impl Machine {
        fn thread(&self, dir: &Path, n: u32, rounds: u32) {
            let id = ThreadId(n + 1);
            let log = Log::Record(StreamWriter::create(dir, id).unwrap());
            let mut th = Thread::new(id, 1000 + n as i32, log);
            if n == 0 {
                // As the thread that made the state: it holds vcpu 0 and the runtime lock.
                th.in_event = true;
            } else {
                self.par.first_vcpu(&mut th);
            }
            let mut seed = 0x9e37_79b9 * u64::from(n + 1);
            th.in_event = false;
            self.par.unlock();
            let slot = self.par.slot(&th);
            // All at once, also where there are fewer processors than threads.
            self.begin.wait();
            assert!(self.par.enter_for_test(&mut th));
            for round in 0..rounds {
                // Yielding may be of no use on a busy machine; sleeping is.
                match round % 512 {
                    0 => std::thread::sleep(std::time::Duration::from_micros(50)),
                    256 => std::thread::yield_now(),
                    _ => {}
                }
                seed = seed
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let (g, write) = ((seed >> 40) % GRANULES, (seed >> 50).is_multiple_of(3));
                let addr = BASE + 64 * g;
                let lacking = if write { NO_WRITE } else { NO_READ };
                while slot.rights.get(entry(self.par.shift(), addr)) & lacking != 0 {
                    slot.leave(&mut th);
                    let range = CheckedRange {
                        addr,
                        len: 8,
                        write,
                        read: true,
                    };
                    assert_eq!(self.par.check_failed(&mut th, &[range]), Got::All);
                    Runtime::log_acquire(self.par, &mut th, Stop::Find);
                    assert!(self.par.enter_for_test(&mut th));
                }
                let [a, b] = &self.memory[g as usize];
                // SAFETY: under the right (what is tested).
                unsafe {
                    let (x, y) = (a.get().read_volatile(), b.get().read_volatile());
                    assert_eq!(x, y, "somebody wrote meanwhile");
                    if write {
                        a.get().write_volatile(x + 1);
                        std::hint::spin_loop();
                        b.get().write_volatile(y + 1);
                        self.written.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // A tick now and then: requests are answered only there.
                if round % 3 == 0 {
                    let clock = th.ctx().clock() + 1;
                    th.ctx().set_clock(clock);
                    slot.leave(&mut th);
                    assert!(self.par.enter_for_test(&mut th));
                }
            }
            slot.leave(&mut th);
            self.par.come_in_for_test(&mut th);
            self.par.give_vcpu(&mut th);
            self.par.unlock();
            Runtime::finish_log(&mut th.log);
        }
    }

    #[test]
    fn writers_are_alone_and_edges_go_backwards() {
        let tmp = std::env::temp_dir().join(format!("crewind-rights-{}", std::process::id()));
        let dir =
            TraceDir::create_at(&tmp, Meta::now(&[], Path::new("/"), Options::default())).unwrap();
        let _session = Session::create(dir.path()).unwrap();
        let par = Par::start(
            Mode::Record,
            Sharing::Software,
            3,
            ThreadId(1),
            false,
            crate::par::Caches::Checked,
            dir.path(),
        )
        .unwrap();
        let m = Machine {
            par,
            memory: (0..GRANULES).map(|_| Default::default()).collect(),
            written: AtomicU64::new(0),
            begin: std::sync::Barrier::new(3),
        };
        std::thread::scope(|s| {
            for n in 0..3 {
                let (m, path) = (&m, dir.path());
                s.spawn(move || m.thread(path, n, 60_000));
            }
        });
        let sum: u64 = m
            .memory
            .iter()
            // SAFETY: all threads have ended.
            .map(|[a, _]| unsafe { *a.get() })
            .sum();
        assert_eq!(sum, m.written.load(Ordering::Relaxed));
        // Each edge names another thread, and a later edge to the same thread never an earlier point.
        let mut acquires = 0;
        for n in 1..=3 {
            let mut known: std::collections::HashMap<ThreadId, (u64, u64)> = Default::default();
            let mut reader = StreamReader::open(dir.path(), ThreadId(n)).unwrap();
            while let Some(r) = reader.next().unwrap() {
                let Event::Sync { edges, .. } = r.event else {
                    continue;
                };
                acquires += 1;
                for e in edges.iter() {
                    assert_ne!(e.thread, ThreadId(n));
                    let old = known
                        .insert(e.thread, (e.clock, e.event))
                        .unwrap_or_default();
                    assert!(
                        e.clock > old.0 || e.event > old.1,
                        "an implied edge was logged"
                    );
                }
            }
        }
        assert!(acquires > 100, "{acquires}");
        par.forget();
        let _ = TraceDir::remove(&tmp);
    }

    #[test]
    fn ranges_become_granules() {
        let mut out = Vec::new();
        wants(6, 0x1000, 64, false, &mut out);
        wants(6, 0x103f, 2, true, &mut out);
        wants(6, 0, 0, true, &mut out);
        let got: Vec<_> = out.iter().map(|w| (w.start, w.end, w.write)).collect();
        assert_eq!(got, [(0x40, 0x41, false), (0x40, 0x42, true)]);
        // Over the end of what a table distinguishes.
        out.clear();
        wants(6, 0xffff_ffc0, 128, false, &mut out);
        let got: Vec<_> = out.iter().map(|w| (w.start, w.end)).collect();
        assert_eq!(got, [((1 << 26) - 1, 1 << 26), (0, 1)]);
    }
}

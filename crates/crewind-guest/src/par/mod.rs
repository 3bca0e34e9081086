//! Threads in parallel: vcpus, the runtime lock, stopping the world, and who may touch which memory.
//!
//! A process is serial until it makes its second thread. Then [`Par`] comes into being: every guest thread runs guest
//! code on a vcpu, which has a code cache of its own, and all vcpus run at once. What the runtime does for an event
//! is done under one lock, the *runtime lock*, and gets a number in the one *order* of the process's events; replay
//! does events in that order. Memory is ordered by edges ([`rights`]).
//!
//! # Rules
//! - Locks, in this order: runtime lock, crew lock. None is held while guest code runs.
//! - A vcpu's [`State`] says what others may do: a *parked* one can be served by whoever holds the crew lock (its
//!   thread stands still at a known position), a *running* one answers requests itself when it leaves translated
//!   code, a *busy* one is in the middle of an event or about to go on: nobody takes anything from it. Whoever waits
//!   for a busy vcpu holds no crew lock meanwhile; a busy thread without the runtime lock waits for nobody. So every
//!   busy vcpu gets out of that state.
//! - A thread that got a right goes on into guest code without answering requests in between: the access for which
//!   it took the right is made before it can lose it again.

mod adapt;
pub(crate) mod hold;
pub mod keys;
pub mod lock;
pub mod part;
mod quick;
pub mod replay;
pub mod rights;
pub mod run;
pub mod world;

pub(crate) use adapt::{PERIOD, Watch};

use std::cell::UnsafeCell;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::start::{Mode, Sharing};
use crate::thread::Thread;
use crewind_crew::Point;
use crewind_trace::event::{Edge, ThreadId};
use crewind_trace::{Counter, Session};
use crewind_x86::{CodeCache, Config, Poke};
use lock::{Backoff, Lock};

/// Most vcpus: their caches and tables lie in the low window.
pub const MAX_VCPUS: usize = 8;

static PAR: AtomicPtr<Par> = AtomicPtr::new(std::ptr::null_mut());
/// Whether accesses of the runtime to guest memory have to be ordered: recording, and there are threads.
static ORDERED: AtomicBool = AtomicBool::new(false);

/// The parallel state of this process, while it has any.
pub fn get() -> Option<&'static Par> {
    // SAFETY: set once made; never freed.
    unsafe { PAR.load(Ordering::Acquire).as_ref() }
}

/// What a vcpu's thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// Nobody runs on it, or its thread waits for the runtime lock or in the kernel: others may take rights away.
    Parked = 0,
    /// As parked, while its thread waits for a right.
    Asking = 1,
    /// Somebody is taking rights away from a parked one.
    Served = 2,
    /// Its thread is in the runtime and may be using its rights.
    Busy = 3,
    /// Its thread is in translated code, or in the dispatcher.
    Running = 4,
}

impl State {
    fn from(v: u32) -> State {
        match v {
            0 => State::Parked,
            1 => State::Asking,
            2 => State::Served,
            3 => State::Busy,
            _ => State::Running,
        }
    }
}

/// What one vcpu asks of another: to give up rights to granules.
#[derive(Default)]
struct Request {
    /// 0 unused, 1 posted, 2 being answered, 3 answered.
    status: AtomicU32,
    /// Granule indexes, `start..end`. Written by the asker while `status` is 0.
    ranges: UnsafeCell<Vec<(u32, u32)>>,
    /// With keys: what the giver tells the kernel before it goes on. Written as `ranges` is.
    protect: UnsafeCell<Vec<keys::Protect>>,
    /// 1: writing has to be given up; 0: everything.
    keep_reading: AtomicU32,
    /// The answer: where the giver was. Written by the giver while `status` is 2.
    at: UnsafeCell<Point>,
}

const UNUSED: u32 = 0;
const POSTED: u32 = 1;
const ANSWERING: u32 = 2;
const ANSWERED: u32 = 3;

/// Something that all vcpus write to, in cache lines of its own: what lies beside it and is mostly read would be
/// taken from all others each time.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

impl<T> std::ops::Deref for Apart<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// A vcpu.
#[repr(align(128))]
pub struct Slot {
    state: AtomicU32,
    /// Thread that holds it; 0: free.
    owner: AtomicU32,
    /// Vcpus that have posted a request, as bits.
    inbox: AtomicU32,
    /// Set when the thread should give the vcpu up at its next tick.
    preempt: AtomicU32,
    /// Since when the holder has it, in milliseconds of the monotonic clock.
    since: AtomicU64,
    /// Where the thread stands that its rights are to be taken from. Written by the holder while busy, and under the
    /// crew lock while it asks; read by others while it is parked or served.
    spot: UnsafeCell<Point>,
    requests: [Request; MAX_VCPUS],
    cache: UnsafeCell<Box<CodeCache>>,
    /// Another cache. Replaying: one whose code looks out for events. Where instructions in short loops are compared with the
    /// clock, programs run at a third of their speed, so that is done only when the event is near. Recording: one whose code
    /// does not check accesses, for when no other vcpu is used.
    near: Option<UnsafeCell<Box<CodeCache>>>,
    pokes: [Option<Poke>; 2],
    rights: rights::Table,
    /// With keys: what it may touch. All else is closed to it.
    pkru: u32,
    /// What its thread has counted for people. Written by the vcpu's holder only.
    tally: Tally,
    /// What it has taken lately. Likewise.
    burst: hold::Burst,
}

// SAFETY: `cache` is used by the vcpu's holder, and by a thread that has stopped the world; `spot` and the cells of a
// request by turns, as the state and the request's status say. All else is atomic.
unsafe impl Sync for Slot {}

/// Parallel state of a process.
pub struct Par {
    mode: Mode,
    /// Replaying a trace that was ended in order: what just stops was killed.
    complete: bool,
    /// The trace's directory.
    trace: std::path::PathBuf,
    slots: Vec<Slot>,
    /// The runtime lock.
    runtime: Apart<Lock>,
    /// Non-zero while somebody stops the world: threads do not enter guest code.
    stop: AtomicU32,
    /// How often the world was stopped by an event.
    epoch: AtomicU64,
    /// Recording: number of the last event. Replaying: of the last event that is done.
    order: Apart<AtomicU64>,
    /// Replaying: where threads wait for their turn in the order.
    turns: replay::Turns,
    /// Threads that wait for a vcpu.
    waiting: AtomicU32,
    free_word: Apart<AtomicU32>,
    /// Vcpus that are used: all, but for what a recording of a part has, and `adapt`.
    most: AtomicUsize,
    crew: Apart<rights::Crew>,
    /// log2 of the bytes that an entry of the tables of rights stands for.
    shift: AtomicU32,
    /// Keys that enforce the tables; None: translated code looks into them.
    keys: Option<keys::Keys>,
    /// Whether they still do. Changes while the world is stopped, and with the crew lock.
    keyed: AtomicBool,
    /// How the process runs and is to run.
    adapt: adapt::Adapt,
    /// Replaying: positions of all threads.
    published: replay::Registry,
    /// Recording: threads that have ended.
    ends: RwLock<crewind_crew::Ends>,
    /// Recording: has counters for `crewind info`.
    session: Option<Session>,
}

/// What translated code of a vcpu looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caches {
    /// Rights to memory: accesses are ordered.
    Checked,
    /// Nothing (yet).
    Plain,
    /// Events, in a cache of its own for the last stretch before one: for a replay.
    Two,
}

impl Par {
    /// Makes the parallel state of a process whose one thread holds vcpu 0.
    ///
    /// # Errors
    /// Memory for caches or tables cannot be mapped, or there are too few keys.
    pub fn start(
        mode: Mode,
        sharing: Sharing,
        vcpus: usize,
        holder: ThreadId,
        complete: bool,
        caches: Caches,
        trace: &std::path::Path,
    ) -> std::io::Result<&'static Par> {
        let n = vcpus.clamp(1, MAX_VCPUS);
        let two_caches = caches == Caches::Two;
        // A replay needs nothing but the order that the trace has, whatever it was that found it.
        let keys = match (mode, sharing) {
            (Mode::Record, Sharing::Pkeys | Sharing::Adaptive) => Some(keys::Keys::new(n)?),
            _ => None,
        };
        // Recording with checks: the first vcpu can do without while it is the only one.
        let may_be_free = caches == Caches::Checked && n > 1 && sharing != Sharing::Pkeys;
        let mut slots = Vec::with_capacity(n);
        for v in 0..n {
            let at = crate::layout::vcpu(v, n);
            let rights = (caches == Caches::Checked).then_some(at.rights);
            let table = rights::Table::map(rights)?;
            let another = two_caches || may_be_free && v == 0;
            let config = Config {
                cache_base: at.cache,
                cache_size: match another {
                    true => at.near - at.cache,
                    false => at.cache_len,
                } as usize,
                table_base: at.table,
                rights,
                pages: keys.is_some(),
                pkru: keys.is_some(),
                options: crewind_x86::Options::default(),
            };
            let make = |config| {
                let mut cache = Box::new(CodeCache::new(config)?);
                cache.defer_translation();
                Ok::<_, std::io::Error>(cache)
            };
            let near = match another {
                true => Some(make(Config {
                    rights: None,
                    pages: false,
                    cache_base: at.near,
                    cache_size: (at.cache + at.cache_len - at.near) as usize,
                    table_base: at.near_table,
                    ..config
                })?),
                false => None,
            };
            let cache = make(config)?;
            let pokes = [Some(cache.poke()), near.as_ref().map(|c| c.poke())];
            slots.push(Slot {
                state: AtomicU32::new(State::Parked as u32),
                owner: AtomicU32::new(0),
                inbox: AtomicU32::new(0),
                preempt: AtomicU32::new(0),
                since: AtomicU64::new(0),
                spot: UnsafeCell::default(),
                requests: Default::default(),
                cache: UnsafeCell::new(cache),
                near: near.map(UnsafeCell::new),
                pokes,
                rights: table,
                pkru: keys.as_ref().map_or(0, |k| k.pkru(v)),
                tally: Tally::default(),
                burst: hold::Burst::default(),
            });
        }
        let par = Box::new(Par {
            mode,
            complete,
            trace: trace.to_owned(),
            slots,
            runtime: Apart::default(),
            stop: AtomicU32::new(0),
            epoch: AtomicU64::new(0),
            order: Apart::default(),
            turns: replay::Turns::default(),
            waiting: AtomicU32::new(0),
            free_word: Apart::default(),
            most: AtomicUsize::new(n),
            crew: Apart::default(),
            shift: AtomicU32::new(match keys {
                Some(_) => crewind_x86::rights::PAGE_SHIFT,
                None => crewind_x86::rights::GRANULE.trailing_zeros(),
            }),
            keyed: AtomicBool::new(keys.is_some()),
            keys,
            adapt: adapt::Adapt::new(sharing == Sharing::Adaptive, may_be_free),
            published: replay::Registry::default(),
            ends: RwLock::default(),
            session: match mode {
                Mode::Record => Session::open(trace).ok(),
                Mode::Replay => None,
            },
        });
        par.runtime.lock();
        if let Some(s) = par.slots.first() {
            s.owner.store(holder.0, Ordering::Relaxed);
            s.state.store(State::Busy as u32, Ordering::Relaxed);
            s.since.store(now_ms(), Ordering::Relaxed);
        }
        let par = Box::leak(par);
        PAR.store(par, Ordering::Release);
        ORDERED.store(caches == Caches::Checked, Ordering::Release);
        Ok(par)
    }

    /// Ends it, in the child of a fork, which is serial again. Its memory is given back; the little that is
    /// left is leaked.
    pub fn forget(&self) {
        ORDERED.store(false, Ordering::Release);
        PAR.store(std::ptr::null_mut(), Ordering::Release);
        self.open_memory();
        for s in &self.slots {
            s.rights.unmap();
            // SAFETY: the child has one thread, which is here, and the state is not used again.
            s.caches()
                .for_each(|c| unsafe { std::ptr::drop_in_place(c.get()) });
        }
    }

    /// Whether protection keys enforce the rights.
    pub(crate) fn has_keys(&self) -> bool {
        self.keys().is_some()
    }

    /// log2 of the bytes that an entry of the tables of rights stands for. Changes while the world is stopped.
    #[inline]
    pub(crate) fn shift(&self) -> u32 {
        self.shift.load(Ordering::Relaxed)
    }

    /// What a vcpu's translated code may touch, as PKRU has it.
    fn pkru(&self, slot: &Slot) -> u32 {
        match self.keys() {
            Some(_) => slot.pkru,
            None => 0,
        }
    }

    /// Counts something for people.
    pub(crate) fn count(&self, what: Counter, n: usize) {
        if let Some(s) = self.session.as_ref().filter(|_| n > 0) {
            s.count(what, n as u64);
        }
    }

    /// The same for a thread that holds a vcpu. It is added to the session's counters, which all processes share, when
    /// the vcpu is given up, at stops of the world, and now and then.
    pub(crate) fn count_often(&self, th: &Thread, what: Counter, n: usize) {
        let slot = self.slot(th);
        if slot.tally.add(what, n as u64) > Tally::MOST {
            self.add_tally(slot);
        }
    }

    /// Adds what a vcpu's threads have counted to the session's counters. Its holder is the caller, or stands still.
    fn add_tally(&self, slot: &Slot) {
        for (what, n) in slot.tally.take() {
            self.count(what, n as usize);
        }
    }

    /// Number of vcpus.
    pub fn vcpus(&self) -> usize {
        self.slots.len()
    }

    /// The slot of a thread that holds a vcpu.
    pub(crate) fn slot(&self, th: &Thread) -> &Slot {
        // `th.vcpu` is always one of ours; the first one else, so that a mistake does not end in a panic.
        self.slots
            .get(usize::from(th.vcpu))
            .unwrap_or(&self.slots[0])
    }

    /// The code cache that a thread uses of those of its vcpu.
    ///
    /// # Safety
    /// The thread holds the vcpu, and no other reference to the cache is in use.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn cache(&self, th: &Thread) -> &mut CodeCache {
        // SAFETY: by the caller's promise.
        unsafe { &mut *self.slot(th).cache_in_use(th.near).get() }
    }

    /// Recording: the thread, which holds a vcpu and is out of translated code, goes on with code that checks, or without.
    pub(super) fn choose_cache(&self, th: &mut Thread) {
        let free = self.is_free();
        if th.near != free {
            th.near = free;
            th.cache = self.slot(th).cache_ptr(free);
        }
    }

    /// Changes all caches, while nobody else is in translated code.
    ///
    /// # Errors
    /// The first that there was.
    pub(crate) fn each_cache(
        &self,
        mut change: impl FnMut(&mut CodeCache) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut all = self.slots.iter().flat_map(Slot::caches);
        // SAFETY: nobody is in translated code, and no other reference is in use.
        all.try_for_each(|c| change(unsafe { &mut *c.get() }))
    }

    /// Recording: the next number in the order of events. The runtime lock is held.
    pub(crate) fn next_order(&self) -> u64 {
        self.order.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Recording: the thread has logged its end, the last event in the order so far, and does nothing to guest memory any
    /// more. The runtime lock is held.
    pub(crate) fn note_end(&self, th: &Thread) {
        if !th.unordered && ORDERED.load(Ordering::Relaxed) {
            let order = self.order.load(Ordering::Acquire);
            lock::write(&self.ends).note(th.id, order);
        }
    }

    /// How often the world was stopped.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// True when threads wait for a vcpu.
    pub fn contended(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// The runtime lock was given back or is not needed any more by a thread that ends.
    pub(crate) fn unlock(&self) {
        self.runtime.unlock();
    }

    // ---- vcpus ----

    /// Recording: waits for a vcpu and the runtime lock. The thread takes the edge of the vcpu's last holder.
    pub(crate) fn take_vcpu(&self, th: &mut Thread) {
        self.take_vcpu_in_turn(th, Turn::AnyTime);
    }

    /// As above, `turn` says when.
    pub(super) fn take_vcpu_in_turn(&self, th: &mut Thread, turn: Turn) {
        let begun = rights::cycles();
        loop {
            let v = self.claim_slot(th, turn);
            self.runtime.lock();
            if !self.is_too_many(v) {
                th.waited_long =
                    self.is_alone() && rights::cycles().wrapping_sub(begun) > LONG_WAIT;
                return self.take_over(th, v);
            }
            // A recording has begun meanwhile.
            self.slots[v].owner.store(0, Ordering::Release);
            self.runtime.unlock();
        }
    }

    /// There are more vcpus than before.
    fn wake_for_vcpus(&self) {
        self.free_word.fetch_add(1, Ordering::AcqRel);
        lock::futex_wake(&self.free_word, u32::MAX >> 1);
    }

    fn claim_slot(&self, th: &Thread, turn: Turn) -> usize {
        let mut registered = false;
        if turn == Turn::AfterOthers {
            let word = self.free_word.load(Ordering::Acquire);
            self.waiting.fetch_add(1, Ordering::AcqRel);
            registered = true;
            let is_free = |s: &Slot| s.owner.load(Ordering::Acquire) == 0;
            let most = self.most.load(Ordering::Acquire);
            if self.slots.iter().take(most).any(is_free) {
                lock::futex_wait(&self.free_word, word, Some(WAY_TO_OTHERS));
            }
        }
        loop {
            let word = self.free_word.load(Ordering::Acquire);
            let n = self.most.load(Ordering::Acquire).max(1);
            let last = usize::from(th.vcpu) % n;
            for k in 0..n {
                let v = (last + k) % n;
                let free = self.slots[v].owner.compare_exchange(
                    0,
                    th.id.0,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if free.is_ok() {
                    if registered {
                        self.waiting.fetch_sub(1, Ordering::AcqRel);
                    }
                    return v;
                }
            }
            if !registered {
                self.waiting.fetch_add(1, Ordering::AcqRel);
                registered = true;
                continue;
            }
            lock::futex_wait(&self.free_word, word, Some(10_000_000));
        }
    }

    /// The thread, which has reserved the vcpu and holds the runtime lock, becomes its holder.
    fn take_over(&self, th: &mut Thread, v: usize) {
        let slot = &self.slots[v];
        // Until now the one who gave it up stands for it.
        slot.become_busy(State::Parked);
        // SAFETY: the vcpu is the caller's, and busy.
        th.edges.extend(unsafe { &*slot.spot.get() }.edges());
        if usize::from(th.vcpu) != v {
            th.vcpu = v as u8;
        }
        th.vcpu_note = Some(v as u8);
        th.cache = slot.cache_ptr(th.near);
        slot.since.store(now_ms(), Ordering::Relaxed);
        slot.preempt.store(0, Ordering::Relaxed);
    }

    /// Gives the vcpu up, at the thread's present position. The runtime lock stays.
    pub(crate) fn give_vcpu(&self, th: &mut Thread) {
        self.slot(th).park(th, State::Parked);
        self.give_vcpu_of_parked(th);
    }

    /// Gives the vcpu of a thread up that is parked on it.
    pub(crate) fn give_vcpu_of_parked(&self, th: &Thread) {
        self.add_tally(self.slot(th));
        self.slot(th).owner.store(0, Ordering::Release);
        self.free_word.fetch_add(1, Ordering::AcqRel);
        if self.waiting.load(Ordering::Acquire) > 0 {
            lock::futex_wake(&self.free_word, 1);
        }
    }

    /// For the timer: asks threads that have had their vcpu for long to give it up while others wait.
    pub fn preempt_long_runners(&self) {
        if !self.contended() {
            return;
        }
        let now = now_ms();
        let slice = match self.is_alone() {
            true => SLICE_ALONE_MS,
            false => SLICE_MS,
        };
        for s in &self.slots {
            if s.has_thread() && now.saturating_sub(s.since.load(Ordering::Relaxed)) >= slice {
                s.preempt();
            }
        }
    }
}

/// When a thread that waits for a vcpu takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// As soon as one is free.
    AnyTime,
    /// It has just given one up for others, who take some time to wake up.
    AfterOthers,
}

/// Who waits longer than this for a vcpu waits for the end of another one's slice. Cycles; some 0.5 ms.
const LONG_WAIT: u64 = 1_500_000;
/// How long others have for that; nanoseconds. If nobody comes, the thread goes on.
const WAY_TO_OTHERS: i64 = 1_000_000;

/// How long a thread keeps its vcpu while others wait: as long as the serialised mode's timer.
const SLICE_MS: u64 = 4;
/// The same where one vcpu is enough: who waits for it wants to ask for a lock, mostly, and to wait for that.
const SLICE_ALONE_MS: u64 = 1;

fn now_ms() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills a live struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1000 + t.tv_nsec as u64 / 1_000_000
}

/// Counters that one thread at a time adds to.
#[derive(Default)]
struct Tally([AtomicU64; Counter::ALL.len()]);

impl Tally {
    /// From here on a counter is to be emptied.
    const MOST: u64 = 4096;

    /// Adds; returns how many there are.
    fn add(&self, what: Counter, n: u64) -> u64 {
        let Some(cell) = self.0.get(what as usize) else {
            return 0;
        };
        let now = cell.load(Ordering::Relaxed) + n;
        cell.store(now, Ordering::Relaxed);
        now
    }

    fn take(&self) -> impl Iterator<Item = (Counter, u64)> {
        let all = self.0.iter().zip(Counter::ALL);
        all.filter(|(cell, _)| cell.load(Ordering::Relaxed) != 0)
            .map(|(cell, (what, _))| (what, cell.swap(0, Ordering::Relaxed)))
    }
}

impl Slot {
    fn state(&self) -> State {
        State::from(self.state.load(Ordering::SeqCst))
    }

    /// Whether it is anybody's, as far as can be told without a lock.
    fn has_thread(&self) -> bool {
        self.owner.load(Ordering::Relaxed) != 0
    }

    fn cache_in_use(&self, near: bool) -> &UnsafeCell<Box<CodeCache>> {
        match &self.near {
            Some(cache) if near => cache,
            _ => &self.cache,
        }
    }

    fn cache_ptr(&self, near: bool) -> *mut CodeCache {
        // SAFETY: only the address of the box's content is taken.
        unsafe { &raw mut **self.cache_in_use(near).get() }
    }

    fn caches(&self) -> impl Iterator<Item = &UnsafeCell<Box<CodeCache>>> {
        std::iter::once(&self.cache).chain(&self.near)
    }

    /// Makes its thread leave translated code at the next tick.
    fn poke(&self) {
        self.pokes.iter().flatten().for_each(Poke::now);
    }

    /// Makes it give its vcpu up there.
    fn preempt(&self) {
        self.preempt.store(1, Ordering::Release);
        self.poke();
    }

    /// The thread stands still here, and others may take rights from its vcpu.
    fn park(&self, th: &mut Thread, how: State) {
        fence_stores();
        crate::deferred::note_x87(th);
        // SAFETY: the caller holds the vcpu, which is busy: nobody looks.
        unsafe { &mut *self.spot.get() }.set(th.spot(), &th.edges);
        self.state.store(how as u32, Ordering::SeqCst);
    }

    /// Ends that.
    fn become_busy(&self, from: State) {
        let mut wait = Backoff::default();
        while self
            .state
            .compare_exchange(
                from as u32,
                State::Busy as u32,
                Ordering::SeqCst,
                Ordering::Relaxed,
            )
            .is_err()
        {
            wait.snooze();
        }
    }

    /// The thread is out of translated code: answers what was asked of it, and takes no more questions.
    fn leave(&self, th: &mut Thread) {
        self.answer(th);
        self.state.store(State::Busy as u32, Ordering::SeqCst);
        // What was posted by somebody who still saw it running.
        self.answer(th);
    }

    fn answer(&self, th: &mut Thread) {
        if self.inbox.load(Ordering::SeqCst) == 0 {
            return;
        }
        fence_stores();
        let mut bits = self.inbox.swap(0, Ordering::SeqCst);
        while bits != 0 {
            let from = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let Some(r) = self.requests.get(from) else {
                continue;
            };
            let mine =
                r.status
                    .compare_exchange(POSTED, ANSWERING, Ordering::SeqCst, Ordering::Relaxed);
            if mine.is_err() {
                continue;
            }
            // SAFETY: the asker leaves the ranges alone from posting to the answer.
            let (ranges, protect) = unsafe { (&*r.ranges.get(), &*r.protect.get()) };
            let keep = r.keep_reading.load(Ordering::Relaxed) != 0;
            self.rights.give_up(ranges, keep);
            keys::must_apply(protect);
            // SAFETY: the asker looks at it once it is answered.
            unsafe { &mut *r.at.get() }.set(th.spot(), &th.edges);
            r.status.store(ANSWERED, Ordering::SeqCst);
        }
    }
}

/// Non-temporal stores of the guest (`movnti`, `movntdq`) are not ordered with later stores: they have to be out before
/// others are told that they may look.
fn fence_stores() {
    // SAFETY: SSE is part of x86-64.
    unsafe { core::arch::x86_64::_mm_sfence() };
}

impl Thread {
    /// The point that others wait for when they take something from this thread now.
    pub(crate) fn spot(&mut self) -> Edge {
        Edge {
            thread: self.id,
            clock: self.ctx().clock(),
            event: self.completed + 1,
        }
    }
}

//! From keys to checks: a process whose threads hand pages to each other all the time is recorded with checks in
//! translated code from then on.
//!
//! With keys an access costs nothing and a hand-over some 25 microseconds of processor time (a signal, system calls,
//! interrupts of the other cores, and the other thread's next tick); with checks an access costs something and a hand-over
//! one or two. So a process begins with keys and has a *budget* for hand-overs. When that is used up the world is stopped,
//! all memory is opened, nobody has a right to anything any more, and all code is translated again, with checks.
//!
//! Some programs with several threads gain nothing from running them at once: one of them runs at a time (an interpreter
//! with a global lock, goroutines that pass a value to and fro), and all that parallel recording finds is that memory goes to
//! and fro with it. These are best off on one vcpu, where there are no hand-overs, and no checks either. So this is tried
//! first, when the budget is used up: with one vcpu it shows at once whether others wait for it ([`Samples`]). If they do, they
//! are to run at once, and with checks. If not, it stays so until they do.
//!
//! With checks (from the beginning where there are no keys) the one vcpu runs code that does not check, and there is a way
//! back: to it also when one vcpu is seen to be all that is in use ([`Calm`]), and from it when threads are to run at once.
//!
//! What comes after the switch lies behind all that was before it: the thread that does it logs a place in the order of
//! events with edges to everybody, and all others, as after every stop of the world, a place behind that one. So rights and
//! edges of pages need not become rights and edges of granules: they are dropped. A replay, which has neither, sees nothing
//! but these places.

use super::{Par, Slot};
use crate::diag::Level;
use crate::runtime::Runtime;
use crate::start::Mode;
use crate::thread::Thread;
use crewind_syscalls::{ArgKind, Row};
use crewind_trace::Counter;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

/// What hand-overs may still cost, in nanoseconds of processor time: a bucket that running time fills.
///
/// A process never loses more to hand-overs than the share that fills it and what the bucket holds, which is at first
/// little: programs that share much do so from their beginning. Processor time and not that of a clock on the wall: how
/// busy the machine is with other things does not matter then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    left: u64,
    /// The process's processor time when it was filled last; 0: never.
    at: u64,
}

/// With keys: running time fills the bucket by one part in so many. Checks cost programs that use memory much half of their
/// native time or more, and others, which compute, next to nothing: at an eighth the former are still well off with keys,
/// and the latter lose no more than that.
const SHARE: u64 = 8;
/// The same with checks. A trial of one vcpu costs little, and there are few.
const SHARE_CHECKS: u64 = 32;
/// What is in the bucket at first: 5 ms, for the first touches of two threads that find their data made by a third (a
/// hundred or two of runs that double).
const FIRST: u64 = 5_000_000;
/// What the bucket holds: 20 ms, what phases of a program that begins to work on other data need.
const MOST: u64 = 20_000_000;
/// What a hand-over by keys costs beside the time that the taker needs for it: the fault and its signal, the other one's stop
/// and system call, and what both miss in TLBs and caches afterwards.
const BESIDE: u64 = 8_000;
/// The same with checks.
const BESIDE_CHECKS: u64 = 1_000;
/// Cycles of the processor's counter in a nanosecond: a guess, from 2 to 4.
const CYCLES_PER_NS: u64 = 3;
/// A longer wait is not for the hand-over, but for a thread that is not running, which waits with checks are for as well.
const LONGEST: u64 = 50_000;

impl Budget {
    pub(super) const fn new() -> Budget {
        Budget { left: FIRST, at: 0 }
    }

    /// A hand-over cost so much. False: the budget is used up. `now` tells what the process has needed in
    /// all; it is asked at first and when the bucket is empty, as the kernel adds it up over all threads.
    pub(super) fn pays(&mut self, cost: Cost, now: impl Fn() -> u64) -> bool {
        let Cost { cost, share } = cost;
        if self.at == 0 {
            self.at = now().max(1);
        }
        if self.left < cost {
            let now = now();
            let filled = now.saturating_sub(self.at) / share;
            self.left = self.left.saturating_add(filled).min(MOST);
            self.at = self.at.max(now);
        }
        let enough = self.left >= cost;
        self.left = self.left.saturating_sub(cost);
        enough
    }
}

/// What a hand-over costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// Nanoseconds.
    cost: u64,
    /// Running time fills the bucket by one part in so many.
    share: u64,
}

/// What a hand-over by keys costs for which the taker needed so much processor time.
pub(super) fn by_keys(needed: u64) -> Cost {
    Cost {
        cost: needed.min(LONGEST) + BESIDE,
        share: SHARE,
    }
}

/// What a hand-over with checks costs that took so many cycles, waiting included: whatever makes threads wait for each other
/// with all vcpus does not with one.
pub(super) fn by_checks(cycles: u64) -> Cost {
    Cost {
        cost: (cycles / CYCLES_PER_NS).min(LONGEST) + BESIDE_CHECKS,
        share: SHARE_CHECKS,
    }
}

/// Processor time of the calling thread, in nanoseconds.
pub(super) fn of_thread() -> u64 {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Processor time of the process.
pub(super) fn of_process() -> u64 {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock(which: libc::clockid_t) -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills a live struct.
    unsafe { libc::clock_gettime(which, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// How many vcpus a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    /// All.
    Many,
    /// One, to see whether that does.
    Trial,
    /// One, because it does.
    One,
}

impl From<u8> for Stage {
    fn from(n: u8) -> Stage {
        match n {
            1 => Stage::Trial,
            2 => Stage::One,
            _ => Stage::Many,
        }
    }
}

/// What the next thread that is out of translated code is to change for all, while the world stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Change {
    Nothing,
    /// From keys to checks.
    ToChecks,
    /// From checks to one vcpu without, for a trial.
    ToTrial,
    /// The same, to stay so.
    ToOne,
    /// Back to all vcpus, and checks.
    ToMany,
}

impl From<u8> for Change {
    fn from(n: u8) -> Change {
        match n {
            1 => Change::ToChecks,
            2 => Change::ToTrial,
            3 => Change::ToOne,
            4 => Change::ToMany,
            _ => Change::Nothing,
        }
    }
}

/// After so many trials there is no other: a program that now shares and now does not is recorded with checks.
const TRIALS: u32 = 8;

/// How the process runs and is to run.
pub(super) struct Adapt {
    /// Whether to go over to checks when keys cost too much.
    from_keys: bool,
    /// The first vcpu has a cache without checks.
    may_be_free: bool,
    /// One vcpu is never tried.
    no_single: AtomicBool,
    /// For tests: number of vcpus changes all the time.
    alternates: AtomicBool,
    stage: AtomicU8,
    wanted: AtomicU8,
    /// With keys: how often one vcpu was tried.
    trials: AtomicU32,
    /// With checks: one vcpu may be tried now.
    open: AtomicBool,
    /// One vcpu is in use, and its code does not check.
    free: AtomicBool,
    /// Threads that had to wait long for the one vcpu, and then did something for the outside.
    delayed: AtomicU32,
}

impl Adapt {
    /// `from_keys`: the process begins with keys and may go over to checks.
    pub(super) fn new(from_keys: bool, may_be_free: bool) -> Adapt {
        Adapt {
            from_keys,
            may_be_free,
            no_single: AtomicBool::new(false),
            alternates: AtomicBool::new(false),
            stage: AtomicU8::new(Stage::Many as u8),
            wanted: AtomicU8::new(Change::Nothing as u8),
            trials: AtomicU32::new(0),
            open: AtomicBool::new(true),
            free: AtomicBool::new(false),
            delayed: AtomicU32::new(0),
        }
    }

    fn stage(&self) -> Stage {
        Stage::from(self.stage.load(Ordering::Acquire))
    }

    fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
        self.delayed.store(0, Ordering::Relaxed);
    }

    /// From one stage to another, unless somebody has changed it meanwhile.
    fn change_stage(&self, from: Stage, to: Stage) {
        let order = (Ordering::AcqRel, Ordering::Relaxed);
        let _ = self
            .stage
            .compare_exchange(from as u8, to as u8, order.0, order.1);
    }

    fn wanted(&self) -> Change {
        Change::from(self.wanted.load(Ordering::Relaxed))
    }

    fn want(&self, change: Change) {
        self.wanted.store(change as u8, Ordering::Relaxed);
    }
}

/// What a timer saw of the only vcpu, at equal intervals: who had it, whether others waited while it had had it for the
/// whole interval (where threads give it up by themselves all the time, they wait for each other anyway), and whether who had
/// waited long had something to do then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    /// Of the last ones, the newest lowest: those in which another thread had it than in the one before, or had had to wait long.
    changed: u64,
    /// Those in which others waited.
    waited: u64,
    taken: u32,
    /// The thread that had it in the newest sample; 0 for none.
    owner: u32,
}

/// Samples that are looked at, where going over to checks is for good.
const WINDOW: u32 = u64::BITS;
/// The same, where it is not.
const SHORT_WINDOW: u32 = 16;
/// Samples of a trial, at least and at most.
const LEAST_OF_TRIAL: u32 = 8;
const OF_TRIAL: u32 = 12;

impl Samples {
    /// What follows for a process at a stage: the stage that it is to be at. `window`: how many samples are looked at.
    fn add(&mut self, owner: u32, waits: bool, delayed: bool, stage: Stage, window: u32) -> Stage {
        // In between, nobody has it for a moment.
        let other = owner != 0 && owner != self.owner;
        self.changed = self.changed << 1 | u64::from(other || delayed);
        self.waited = self.waited << 1 | u64::from(waits);
        if other {
            self.owner = owner;
        }
        self.taken = self.taken.saturating_add(1);
        let enough = match stage {
            Stage::Trial => LEAST_OF_TRIAL,
            _ => window,
        };
        let next = match stage {
            Stage::Trial | Stage::One if self.taken >= enough && self.want_more(window) => {
                Stage::Many
            }
            Stage::Trial if self.taken >= OF_TRIAL => Stage::One,
            other => other,
        };
        if next != stage {
            *self = Samples::default();
        }
        next
    }

    /// Whether threads were seen that could well run at once: most of the time somebody waits, and they use up one slice
    /// after the other in turns, or do something for the outside when they have it at last, while others use up slices (a server
    /// one of whose threads spins). (A thread that is woken to look for work, finds none and sleeps again waits for the end of
    /// the other's slice all the time, and does not need what it waits for: the other one goes on.)
    fn want_more(&self, window: u32) -> bool {
        let seen = self.taken.min(window);
        let of_window = |bits: u64| (bits & (u64::MAX >> (u64::BITS - window))).count_ones();
        3 * of_window(self.waited) >= 2 * seen && 3 * of_window(self.changed) >= seen
    }
}

/// Finds processes with checks whose threads run one at a time.
#[derive(Clone, Debug)]
struct Calm {
    /// Samples in which one vcpu had a thread, less those that speak against it.
    seen: u32,
    /// So many make it calm.
    needed: u32,
}

/// Samples with one busy vcpu that are enough at first (64 ms), and at most (2 s).
const CALM: u32 = 16;
const MOST_CALM: u32 = 512;
/// One with several counts as much as so many with one.
const AGAINST: u32 = 16;

impl Default for Calm {
    fn default() -> Self {
        Calm {
            seen: 0,
            needed: CALM,
        }
    }
}

impl Calm {
    /// So many vcpus had a thread. True: one at a time does.
    fn add(&mut self, busy: usize) -> bool {
        match busy {
            0 => {}
            1 => self.seen += 1,
            _ => self.seen = self.seen.saturating_sub(AGAINST),
        }
        self.seen >= self.needed
    }

    /// It did for so many samples of the timer, and does not any more. What was lost until that was seen must not be
    /// lost often: next time more is needed, unless it was worth it.
    fn ended(&mut self, lasted: u32) {
        self.seen = 0;
        self.needed = match lasted > 16 * self.needed {
            true => CALM,
            false => (2 * self.needed).min(MOST_CALM),
        };
    }
}

/// What the timer knows.
#[derive(Debug)]
pub(crate) struct Watch {
    samples: Samples,
    calm: Calm,
    /// The stage that it saw last, and for how many of its rounds.
    stage: Stage,
    lasted: u32,
    /// Rounds until one vcpu may be tried again, and how many it will be after the next trial.
    closed: u32,
    pause: u32,
}

/// Between the timer's rounds: with several vcpus, and with one.
pub(crate) const PERIOD: Duration = Duration::from_millis(4);
const PERIOD_ALONE: Duration = Duration::from_millis(1);
/// Rounds after a trial until the next, at first (128 ms), and at most (8 s). A trial takes up to 12 ms and may cost half of them.
const PAUSE: u32 = 32;
const MOST_PAUSE: u32 = 2048;
/// Rounds with one vcpu that show that a trial was worth it (1 s).
const WORTH_IT: u32 = 1000;

impl Default for Watch {
    fn default() -> Self {
        Watch {
            samples: Samples::default(),
            calm: Calm::default(),
            stage: Stage::Many,
            lasted: 0,
            closed: 0,
            pause: PAUSE,
        }
    }
}

impl Watch {
    /// The process is at this stage in this round.
    fn see(&mut self, stage: Stage) {
        if stage == self.stage {
            self.lasted = self.lasted.saturating_add(1);
            return;
        }
        if stage == Stage::Many {
            match self.stage {
                Stage::One => self.calm.ended(self.lasted),
                _ => self.calm.seen = 0,
            }
            self.pause = match self.stage == Stage::One && self.lasted > WORTH_IT {
                true => PAUSE,
                false => (4 * self.pause).min(MOST_PAUSE),
            };
            self.closed = self.pause;
        }
        self.samples = Samples::default();
        self.stage = stage;
        self.lasted = 0;
    }
}

impl Default for Budget {
    fn default() -> Self {
        Budget::new()
    }
}

impl Par {
    /// Whether something is to change for all.
    pub(super) fn wants_change(&self) -> bool {
        self.adapt.wanted() != Change::Nothing
    }

    /// Whether one thread runs at a time, as others would have to hand memory to and fro.
    pub(crate) fn is_alone(&self) -> bool {
        self.adapt.stage() != Stage::Many
    }

    /// Whether its code runs without checks. Changes while the world stands still, and when memory is barred.
    pub(super) fn is_free(&self) -> bool {
        self.adapt.free.load(Ordering::Acquire)
    }

    /// With checks: whether one vcpu without them may be all that is used.
    fn may_go_without_checks(&self) -> bool {
        self.adapt.may_be_free
            && !self.adapt.no_single.load(Ordering::Relaxed)
            && !crate::shared::active()
    }

    /// There is no trial of one vcpu.
    pub(super) fn try_no_single_vcpu(&self) {
        self.adapt.no_single.store(true, Ordering::Relaxed);
    }

    /// For tests: a process with checks changes to one vcpu and back all the time.
    pub(super) fn alternate(&self) {
        self.adapt.alternates.store(true, Ordering::Relaxed);
    }

    /// Whether what hand-overs cost is counted.
    pub(super) fn counts_hand_overs(&self) -> bool {
        match self.has_keys() {
            true => self.adapt.from_keys,
            false => self.adapt.open.load(Ordering::Relaxed) && self.may_go_without_checks(),
        }
    }

    /// The budget for hand-overs is used up.
    pub(super) fn overspent(&self) {
        // With one vcpu memory is still taken from the others, once.
        if self.is_alone() {
            return;
        }
        let adapt = &self.adapt;
        if !self.has_keys() {
            adapt.open.store(false, Ordering::Relaxed);
            adapt.want(Change::ToTrial);
            return;
        }
        if adapt.no_single.load(Ordering::Relaxed)
            || adapt.trials.fetch_add(1, Ordering::Relaxed) >= TRIALS
        {
            adapt.want(Change::ToChecks);
            return;
        }
        self.count(Counter::OneVcpu, 1);
        self.run_at_once(1);
        adapt.set_stage(Stage::Trial);
        self.send_off();
    }

    /// A thread that had to wait long for its vcpu makes a system call. Only those to do with descriptors say that it had something
    /// to do: it may have been woken to look for work, and found none.
    pub(crate) fn waited_for(&self, th: &mut Thread, row: &Row) {
        const OTHERS: [libc::c_long; 4] = [
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_select,
            libc::SYS_pselect6,
        ];
        let first = row.args.first().map(|a| a.kind);
        if matches!(first, Some(ArgKind::Fd)) || OTHERS.contains(&libc::c_long::from(row.nr)) {
            th.waited_long = false;
            self.adapt.delayed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Makes threads leave the vcpus that are not used any more.
    fn send_off(&self) {
        let others = self.slots.iter().skip(1);
        let in_use = others.filter(|s| s.has_thread());
        in_use.for_each(Slot::preempt);
    }

    /// For the timer, at intervals; the result is how long the next one is.
    pub(crate) fn watch(&self, watch: &mut Watch) -> Duration {
        if self.mode == Mode::Replay || !self.is_ordered() {
            return PERIOD;
        }
        let stage = self.adapt.stage();
        watch.see(stage);
        let change = match (stage, self.has_keys()) {
            (Stage::Many, true) => return PERIOD,
            (Stage::Many, false) => self.watch_many(watch),
            (_, true) => return self.watch_one_with_keys(watch),
            (_, false) => self.watch_one(watch),
        };
        if change != Change::Nothing {
            self.adapt.want(change);
        }
        // Again until somebody has done it: a poke can be lost to the owner's next tick.
        if self.wants_change() {
            self.slots.iter().for_each(Slot::poke);
        }
        match stage {
            Stage::Many if !self.adapt.alternates.load(Ordering::Relaxed) => PERIOD,
            _ if !self.slots.iter().any(Slot::has_thread) && !self.contended() => PERIOD,
            _ => PERIOD_ALONE,
        }
    }

    /// With checks, and all vcpus in use.
    fn watch_many(&self, watch: &mut Watch) -> Change {
        let adapt = &self.adapt;
        if !self.may_go_without_checks() {
            return Change::Nothing;
        }
        watch.closed = watch.closed.saturating_sub(1);
        if watch.closed == 0
            && !adapt.open.load(Ordering::Relaxed)
            && !self.wants_change()
            && !self.is_alone()
        {
            self.crew_lock().renew_budget();
            adapt.open.store(true, Ordering::Relaxed);
        }
        let busy = self.slots.iter().filter(|s| s.has_thread()).count();
        let calm = watch.calm.add(busy);
        match calm || adapt.alternates.load(Ordering::Relaxed) {
            true => Change::ToOne,
            false => Change::Nothing,
        }
    }

    /// Looks at the only vcpu in use; the stage that the process is to be at.
    fn sample(&self, watch: &mut Watch, window: u32) -> Stage {
        let (owner, since) = self.slots.first().map_or((0, 0), |s| {
            (
                s.owner.load(Ordering::Relaxed),
                s.since.load(Ordering::Relaxed),
            )
        });
        let delayed = self.adapt.delayed.swap(0, Ordering::Relaxed) > 0;
        // However often it changes hands: who has something to do had to wait long.
        let waits = delayed || self.contended() && super::now_ms() > since;
        let stage = watch.stage;
        watch.samples.add(owner, waits, delayed, stage, window)
    }

    /// Without checks, and one vcpu in use.
    fn watch_one(&self, watch: &mut Watch) -> Change {
        match self.sample(watch, SHORT_WINDOW) {
            Stage::Many => Change::ToMany,
            _ if self.adapt.alternates.load(Ordering::Relaxed) => Change::ToMany,
            next => {
                // A thread may be changing it just now.
                if next != watch.stage {
                    self.adapt.change_stage(watch.stage, next);
                    watch.stage = next;
                }
                Change::Nothing
            }
        }
    }

    /// With keys, and one vcpu in use.
    fn watch_one_with_keys(&self, watch: &mut Watch) -> Duration {
        let stage = watch.stage;
        let next = self.sample(watch, WINDOW);
        if next != Stage::Many {
            // Who got its vcpu just before may not have seen it.
            self.send_off();
        }
        if next == stage {
            return PERIOD_ALONE;
        }
        crate::log!(Level::Info, "vcpus: {stage:?} -> {next:?}");
        // With the lock: not in the middle of a fork.
        self.runtime.lock();
        if next == Stage::Many {
            match stage {
                Stage::Trial => self.adapt.want(Change::ToChecks),
                _ => self.crew_lock().renew_budget(),
            }
            self.run_at_once(self.slots.len());
        }
        self.adapt.set_stage(next);
        self.runtime.unlock();
        if next == Stage::Many {
            self.wake_for_vcpus();
            self.slots.iter().for_each(Slot::poke);
        }
        PERIOD_ALONE
    }

    /// Memory is about to be barred, which only checks see. The thread has the runtime lock and is in an event that comes
    /// behind all that was done on the one vcpu, so whoever touches memory for the first time waits for that event.
    pub(super) fn check_again(&self, th: &mut Thread) {
        if !self.is_free() {
            return;
        }
        let at = th.spot();
        self.crew_lock().comes_behind(at);
        // All others log a place behind that: of what they did on the one vcpu no rights are left.
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.use_all_vcpus();
    }

    fn use_all_vcpus(&self) {
        self.adapt.free.store(false, Ordering::Release);
        self.adapt.set_stage(Stage::Many);
        self.run_at_once(self.slots.len());
        self.wake_for_vcpus();
    }
}

impl Runtime {
    /// Does what is to be done for all. The thread is out of translated code at a position where it may log a place, holds
    /// the runtime lock, and has no right that it still needs.
    #[cold]
    pub(super) fn change(&mut self, th: &mut Thread, par: &'static Par) {
        if par.stopping() {
            return;
        }
        // Somebody else may have done it while this thread came in. What is wanted from here on is not forgotten.
        let change = par.adapt.wanted();
        par.adapt.want(Change::Nothing);
        match change {
            Change::Nothing => {}
            Change::ToChecks => self.go_over_to_checks(th, par),
            Change::ToTrial => Self::go_on_with_one(th, par, Stage::Trial),
            Change::ToOne => Self::go_on_with_one(th, par, Stage::One),
            Change::ToMany => Self::go_on_with_all(th, par),
        }
    }

    /// Changes something for all, behind all that was done so far and in front of everything else. Nobody has a right to
    /// anything afterwards.
    fn begin_anew(th: &mut Thread, par: &'static Par, change: impl FnOnce()) {
        par.stop_world(th);
        th.log_place(par);
        par.drop_rights();
        // Nobody else is in translated code, or will be before `resume_world`.
        change();
        par.resume_world();
        // Its own place is logged.
        th.epoch = par.epoch();
    }

    /// Goes over from keys to checks.
    fn go_over_to_checks(&mut self, th: &mut Thread, par: &'static Par) {
        if !par.has_keys() {
            return;
        }
        Self::begin_anew(th, par, || {
            if let Err(e) = par.each_cache(crewind_x86::CodeCache::check_all) {
                crate::report::fail(
                    crate::start::Failure::Unsupported,
                    format_args!("translated code cannot be changed to check accesses: {e}"),
                );
            }
            self.look_out_again();
        });
        par.count(Counter::ModeSwitches, 1);
        crate::log!(
            Level::Info,
            "pages change hands too often: from now on translated code checks accesses"
        );
    }

    /// With checks: goes on with one vcpu, and without.
    fn go_on_with_one(th: &mut Thread, par: &'static Par, stage: Stage) {
        if par.is_alone() || par.has_keys() || !par.may_go_without_checks() {
            return;
        }
        // What is done on the one vcpu is in the order in which threads have it.
        Self::begin_anew(th, par, || {
            par.run_at_once(1);
            // The next trial is not before some time has passed, whatever led to this.
            par.adapt.open.store(false, Ordering::Relaxed);
            par.adapt.free.store(true, Ordering::Release);
            par.adapt.set_stage(stage);
        });
        par.count(Counter::OneVcpu, 1);
        crate::log!(Level::Info, "one vcpu, without checks: {stage:?}");
    }

    /// Goes back.
    fn go_on_with_all(th: &mut Thread, par: &'static Par) {
        if !par.is_free() {
            return;
        }
        Self::begin_anew(th, par, || par.use_all_vcpus());
        crate::log!(Level::Info, "all vcpus, with checks");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hand-overs that take a thread so long, one each `every`, until the budget is used up; how many, at most.
    fn lasts(budget: &mut Budget, begin: u64, every: u64, needed: u64, most: u64) -> u64 {
        (0..most)
            .find(|n| !budget.pays(by_keys(needed), || begin + n * every))
            .unwrap_or(most)
    }

    const FOREVER: u64 = 1_000_000;
    const US: u64 = 1000;
    const MS: u64 = 1000 * US;

    #[test]
    fn contention_ends_it_within_milliseconds() {
        // Two threads that do nothing but wait for each other.
        let n = lasts(&mut Budget::new(), 1, 20 * US, 12 * US, FOREVER);
        assert!((2 * MS..10 * MS).contains(&(n * 20 * US)), "{n}");
    }

    #[test]
    fn a_little_sharing_is_paid_for_ever() {
        assert_eq!(lasts(&mut Budget::new(), 1, MS, 30 * US, FOREVER), FOREVER);
    }

    #[test]
    fn a_third_of_all_time_is_not() {
        let n = lasts(&mut Budget::new(), 1, 90 * US, 22 * US, FOREVER);
        assert!((10 * MS..50 * MS).contains(&(n * 90 * US)), "{n}");
    }

    #[test]
    fn a_burst_at_the_start_of_a_phase_is_paid() {
        let mut b = Budget::new();
        let mut now = 1;
        for _ in 0..100 {
            assert_eq!(lasts(&mut b, now, 20 * US, 20 * US, 150), 150);
            now += 200 * MS;
        }
    }

    #[test]
    fn long_calm_does_not_buy_long_contention() {
        let mut b = Budget::new();
        assert!(b.pays(by_keys(20 * US), || 1));
        // An hour later.
        let n = lasts(&mut b, 3_600_000 * MS, 20 * US, 12 * US, FOREVER);
        assert!(n * 20 * US < 40 * MS, "{n}");
    }

    #[test]
    fn a_thread_that_does_not_run_is_not_held_against_keys() {
        let n = lasts(&mut Budget::new(), 1, 10 * MS, 10 * MS, FOREVER);
        assert_eq!(n, FOREVER);
    }

    #[test]
    fn times_that_come_late_do_no_harm() {
        let mut b = Budget::new();
        let each = 20 * US + BESIDE;
        for n in 0..FIRST / each {
            assert!(b.pays(by_keys(20 * US), || 9 * MS - n));
        }
        assert!(!b.pays(by_keys(20 * US), || 8 * MS));
        assert!(!b.pays(by_keys(20 * US), || 9 * MS));
        assert!(b.pays(by_keys(20 * US), || 10 * MS));
    }

    /// After how many samples, which `seen` tells, the stage is another one, and which.
    fn until(
        s: &mut Samples,
        stage: Stage,
        seen: impl Fn(u32) -> (u32, bool),
    ) -> Option<(u32, Stage)> {
        (1..10_000).find_map(|n| {
            let (owner, waits) = seen(n);
            let next = s.add(owner, waits, false, stage, WINDOW);
            (next != stage).then_some((n, next))
        })
    }

    #[test]
    fn threads_that_could_run_at_once_end_a_trial() {
        let mut s = Samples::default();
        let busy = |n| (1 + n % 2, true);
        let ends = until(&mut s, Stage::Trial, busy);
        assert_eq!(ends, Some((LEAST_OF_TRIAL, Stage::Many)));
        let (_, next) = until(&mut s, Stage::One, busy).unwrap();
        assert_eq!(next, Stage::Many);
    }

    #[test]
    fn threads_of_which_one_runs_at_a_time_do_not() {
        // They take turns; who waits for its turn asks for it now and then.
        let turns = |n: u32| (1 + n / 5 % 2, n.is_multiple_of(5));
        let mut s = Samples::default();
        assert_eq!(
            until(&mut s, Stage::Trial, turns),
            Some((OF_TRIAL, Stage::One))
        );
        assert_eq!(until(&mut s, Stage::One, turns), None);
        // One is woken all the time, and finds nothing to do.
        let idle = |n: u32| (1 + u32::from(n.is_multiple_of(9)), true);
        let mut s = Samples::default();
        assert_eq!(
            until(&mut s, Stage::Trial, idle),
            Some((OF_TRIAL, Stage::One))
        );
        assert_eq!(until(&mut s, Stage::One, idle), None);
        // It has something to do.
        let (n, next) = until(&mut s, Stage::One, |n| (1 + n % 2, true)).unwrap();
        assert!(next == Stage::Many && n <= WINDOW, "{n}");
    }

    #[test]
    fn with_checks_a_phase_in_which_threads_run_at_once_is_found_soon() {
        let mut s = Samples::default();
        for _ in 0..1000 {
            assert_eq!(s.add(1, false, false, Stage::One, SHORT_WINDOW), Stage::One);
        }
        let mut more = |n| s.add(1 + n % 2, true, false, Stage::One, SHORT_WINDOW) == Stage::Many;
        let n = (1..100).find(|n| more(*n)).unwrap();
        assert!(n <= SHORT_WINDOW, "{n}");
    }

    #[test]
    fn a_server_that_waits_for_a_thread_that_spins_needs_more_vcpus() {
        let mut s = Samples::default();
        for _ in 1..LEAST_OF_TRIAL {
            let stage = s.add(1, true, true, Stage::Trial, SHORT_WINDOW);
            assert_eq!(stage, Stage::Trial);
        }
        let stage = s.add(1, true, true, Stage::Trial, SHORT_WINDOW);
        assert_eq!(stage, Stage::Many);
    }

    #[test]
    fn a_vcpu_that_is_free_for_a_moment_has_not_changed_hands() {
        let mut s = Samples::default();
        let between = |n: u32| (n % 2, true);
        let ends = until(&mut s, Stage::Trial, between);
        assert_eq!(ends, Some((OF_TRIAL, Stage::One)));
    }

    /// Rounds in which so many vcpus have a thread, until that is called calm.
    fn calm_after(c: &mut Calm, busy: impl Fn(u32) -> usize) -> Option<u32> {
        (1..10_000).find(|n| c.add(busy(*n)))
    }

    #[test]
    fn one_busy_vcpu_is_calm_and_several_are_not() {
        assert_eq!(calm_after(&mut Calm::default(), |_| 1), Some(CALM));
        assert_eq!(calm_after(&mut Calm::default(), |_| 0), None);
        assert_eq!(calm_after(&mut Calm::default(), |_| 2), None);
        let now_and_then = |n: u32| if n.is_multiple_of(8) { 2 } else { 1 };
        assert_eq!(calm_after(&mut Calm::default(), now_and_then), None);
        let seldom = |n: u32| if n.is_multiple_of(40) { 3 } else { 1 };
        assert!(calm_after(&mut Calm::default(), seldom).is_some());
    }

    #[test]
    fn a_calm_that_did_not_last_is_not_trusted_again_so_soon() {
        let mut c = Calm::default();
        let mut needed = Vec::new();
        for _ in 0..8 {
            needed.extend(calm_after(&mut c, |_| 1));
            c.ended(20);
        }
        assert_eq!(needed, [16, 32, 64, 128, 256, 512, 512, 512]);
        c.ended(100_000);
        assert_eq!(calm_after(&mut c, |_| 1), Some(CALM));
    }

    #[test]
    fn trials_that_fail_become_rare() {
        let mut w = Watch::default();
        let mut pauses = Vec::new();
        for _ in 0..4 {
            w.see(Stage::Trial);
            w.see(Stage::Many);
            pauses.push(w.closed);
        }
        assert_eq!(pauses, [128, 512, 2048, 2048]);
        // Until one is worth it.
        w.see(Stage::Trial);
        for _ in 0..=WORTH_IT + 1 {
            w.see(Stage::One);
        }
        w.see(Stage::Many);
        assert_eq!(w.closed, PAUSE);
    }

    #[test]
    fn processor_time_goes_forward() {
        let (process, thread) = (of_process(), of_thread());
        let mut sum = 0u64;
        while of_thread() < thread + MS {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(of_process() >= process + MS && sum > 0);
    }
}

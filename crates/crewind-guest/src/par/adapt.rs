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
//! What comes after the switch lies behind all that was before it: the thread that does it logs a place in the order of
//! events with edges to everybody, and all others, as after every stop of the world, a place behind that one. So rights and
//! edges of pages need not become rights and edges of granules: they are dropped. A replay, which has neither, sees nothing
//! but these places.

use super::Par;
use crate::diag::Level;
use crate::runtime::Runtime;
use crate::thread::Thread;
use crewind_trace::Counter;
use std::sync::atomic::Ordering;

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

/// Running time fills the bucket by one part in so many. Checks cost programs that use memory much half of their
/// native time or more, and others, which compute, next to nothing: at an eighth the former are still well off with keys,
/// and the latter lose no more than that.
const SHARE: u64 = 8;
/// What is in the bucket at first: 5 ms, for the first touches of two threads that find their data made by a third (a
/// hundred or two of runs that double).
const FIRST: u64 = 5_000_000;
/// What the bucket holds: 20 ms, what phases of a program that begins to work on other data need.
const MOST: u64 = 20_000_000;
/// What a hand-over costs beside the time that the taker needs for it: the fault and its signal, the other one's stop and
/// system call, and what both miss in TLBs and caches afterwards.
const BESIDE: u64 = 8_000;
/// A longer wait is not for the hand-over, but for a thread that is not running, which waits with checks are for as well.
const LONGEST: u64 = 50_000;

impl Budget {
    pub(super) const fn new() -> Budget {
        Budget { left: FIRST, at: 0 }
    }

    /// A thread needed so much for getting rights. False: the budget is used up. `now` tells what the process has needed in
    /// all; it is asked at first and when the bucket is empty, as the kernel adds it up over all threads.
    pub(super) fn pays(&mut self, needed: u64, now: impl Fn() -> u64) -> bool {
        let cost = needed.min(LONGEST) + BESIDE;
        if self.at == 0 {
            self.at = now().max(1);
        }
        if self.left < cost {
            let now = now();
            let filled = now.saturating_sub(self.at) / SHARE;
            self.left = self.left.saturating_add(filled).min(MOST);
            self.at = self.at.max(now);
        }
        let enough = self.left >= cost;
        self.left = self.left.saturating_sub(cost);
        enough
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

/// How a process with keys runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    /// With all vcpus.
    Many,
    /// With one, to see whether that does.
    Trial,
    /// With one, because it does.
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

/// After so many trials there is no other: a program that now shares and now does not is recorded with checks.
const TRIALS: u32 = 8;

/// What a timer saw of the only vcpu, at equal intervals: who had it, and whether others waited while it had had it for the
/// whole interval. (Where threads give it up by themselves all the time, they wait for each other anyway.)
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    /// Of the last ones, the newest lowest: those in which another thread had it than in the one before.
    changed: u64,
    /// Those in which others waited.
    waited: u64,
    taken: u32,
    /// The thread that had it in the newest sample; 0 for none.
    owner: u32,
}

/// Samples that are looked at.
const WINDOW: u32 = u64::BITS;
/// Samples of a trial, at least and at most.
const LEAST_OF_TRIAL: u32 = 8;
const OF_TRIAL: u32 = 12;

impl Samples {
    /// What follows for a process at a stage: the stage that it is to be at.
    fn add(&mut self, owner: u32, waits: bool, stage: Stage) -> Stage {
        self.changed = self.changed << 1 | u64::from(owner != self.owner);
        self.waited = self.waited << 1 | u64::from(waits);
        self.owner = owner;
        self.taken = self.taken.saturating_add(1);
        let enough = match stage {
            Stage::Trial => LEAST_OF_TRIAL,
            _ => WINDOW,
        };
        let next = match stage {
            Stage::Trial | Stage::One if self.taken >= enough && self.want_more() => Stage::Many,
            Stage::Trial if self.taken >= OF_TRIAL => Stage::One,
            other => other,
        };
        if next != stage {
            *self = Samples::default();
        }
        next
    }

    /// Whether threads were seen that could well run at once: most of the time somebody waits, and they use up one slice
    /// after the other in turns. (A thread that is woken to look for work, finds none and sleeps again waits for the end of
    /// the other's slice all the time, and does not need what it waits for: the other one goes on.)
    fn want_more(&self) -> bool {
        let seen = self.taken.min(WINDOW);
        3 * self.waited.count_ones() >= 2 * seen && 3 * self.changed.count_ones() >= seen
    }
}

impl Default for Budget {
    fn default() -> Self {
        Budget::new()
    }
}

impl Par {
    /// Whether the process is to go over to checks.
    pub(super) fn wants_checks(&self) -> bool {
        self.wants_checks.load(Ordering::Relaxed)
    }

    fn stage(&self) -> Stage {
        Stage::from(self.stage.load(Ordering::Acquire))
    }

    /// Whether one thread runs at a time, as others would have to hand memory to and fro.
    pub(crate) fn is_alone(&self) -> bool {
        self.stage() != Stage::Many
    }

    /// There is no trial of one vcpu.
    pub(super) fn try_no_single_vcpu(&self) {
        self.trials.store(TRIALS, Ordering::Relaxed);
    }

    /// The budget for hand-overs is used up.
    pub(super) fn overspent(&self) {
        // With one vcpu memory is still taken from the others, once.
        if self.is_alone() {
            return;
        }
        if self.trials.fetch_add(1, Ordering::Relaxed) >= TRIALS {
            self.wants_checks.store(true, Ordering::Relaxed);
            return;
        }
        self.count(Counter::OneVcpu, 1);
        self.run_at_once(1);
        self.stage.store(Stage::Trial as u8, Ordering::Release);
        self.send_off();
    }

    /// Makes threads leave the vcpus that are not used any more.
    fn send_off(&self) {
        let others = self.slots.iter().skip(1);
        let in_use = |s: &&super::Slot| s.owner.load(Ordering::Relaxed) != 0;
        others.filter(in_use).for_each(super::Slot::preempt);
    }

    /// For the timer, at equal intervals while one thread runs at a time.
    pub(crate) fn watch(&self, samples: &mut Samples) {
        let stage = self.stage();
        let (owner, since) = self.slots.first().map_or((0, 0), |s| {
            (
                s.owner.load(Ordering::Relaxed),
                s.since.load(Ordering::Relaxed),
            )
        });
        let waits = self.contended() && super::now_ms() > since;
        let next = samples.add(owner, waits, stage);
        if next != Stage::Many {
            // Who got its vcpu just before may not have seen it.
            self.send_off();
        }
        if next == stage {
            return;
        }
        crate::log!(Level::Debug, "vcpus: {stage:?} -> {next:?}");
        // With the lock: not in the middle of a fork.
        self.runtime.lock();
        if next == Stage::Many {
            match stage {
                Stage::Trial => self.wants_checks.store(true, Ordering::Relaxed),
                _ => self.crew_lock().renew_budget(),
            }
            self.run_at_once(self.slots.len());
        }
        self.stage.store(next as u8, Ordering::Release);
        self.runtime.unlock();
        if next == Stage::Many {
            self.wake_for_vcpus();
            self.slots.iter().for_each(super::Slot::poke);
        }
    }
}

impl Runtime {
    /// Goes over from keys to checks. The thread is out of translated code at a position where it may log a place, holds
    /// the runtime lock, and has no right that it still needs.
    #[cold]
    pub(super) fn go_over_to_checks(&mut self, th: &mut Thread, par: &'static Par) {
        // Somebody else may have done it while this thread came in.
        if !par.wants_checks() || par.stopping() {
            return;
        }
        par.stop_world(th);
        // Behind all that was done with keys, and in front of everything else.
        th.log_place(par);
        par.drop_keys();
        // Nobody else is in translated code, or will be before `resume_world`.
        if let Err(e) = par.each_cache(crewind_x86::CodeCache::check_all) {
            crate::report::fail(
                crate::start::Failure::Unsupported,
                format_args!("translated code cannot be changed to check accesses: {e}"),
            );
        }
        self.look_out_again();
        par.wants_checks.store(false, Ordering::Relaxed);
        par.resume_world();
        // Its own place is logged.
        th.epoch = par.epoch();
        par.count(Counter::ModeSwitches, 1);
        crate::log!(
            Level::Debug,
            "pages change hands too often: from now on translated code checks accesses"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hand-overs that take a thread so long, one each `every`, until the budget is used up; how many, at most.
    fn lasts(budget: &mut Budget, begin: u64, every: u64, needed: u64, most: u64) -> u64 {
        (0..most)
            .find(|n| !budget.pays(needed, || begin + n * every))
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
        assert!(b.pays(20 * US, || 1));
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
            assert!(b.pays(20 * US, || 9 * MS - n));
        }
        assert!(!b.pays(20 * US, || 8 * MS));
        assert!(!b.pays(20 * US, || 9 * MS));
        assert!(b.pays(20 * US, || 10 * MS));
    }

    /// After how many samples, which `seen` tells, the stage is another one, and which.
    fn until(
        s: &mut Samples,
        stage: Stage,
        seen: impl Fn(u32) -> (u32, bool),
    ) -> Option<(u32, Stage)> {
        (1..10_000).find_map(|n| {
            let (owner, waits) = seen(n);
            let next = s.add(owner, waits, stage);
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
    fn processor_time_goes_forward() {
        let (process, thread) = (of_process(), of_thread());
        let mut sum = 0u64;
        while of_thread() < thread + MS {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(of_process() >= process + MS && sum > 0);
    }
}

//! Replaying threads in parallel: waiting for edges, and for one's turn in the order of events.
//!
//! Each thread publishes its clock whenever it leaves translated code, and the number of the event it has reached.
//! Who waits for a point of another thread leaves word of it there, and asks the thread to come out at its next tick: it
//! then stops where that point is behind it, and wakes who waits. So nothing is paid for while nobody waits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use super::lock::{Backoff, read, write};
use super::{Par, State};
use crate::diag::Level;
use crate::sched::{self, Wait};
use crate::start::Failure;
use crate::thread::Thread;
use crewind_trace::event::{Edge, Event, Record, Stop, ThreadId};
use crewind_x86::Exit;

/// Where a thread of the replay is.
pub struct Published {
    /// Its clock when it last left translated code; never ahead of it.
    clock: AtomicU64,
    /// The event whose position it has reached; all before are completed.
    reached: AtomicU64,
    ended: AtomicBool,
    vcpu: AtomicU32,
    /// The least clock that somebody waits for it to leave behind; `u64::MAX`: nobody does.
    wanted_clock: AtomicU64,
    /// The least event that somebody waits for it to reach.
    wanted_event: AtomicU64,
    /// Changes when a wanted point is behind it. A futex.
    word: AtomicU32,
    /// Threads that sleep on `word`.
    sleepers: AtomicU32,
    /// The progress of the replay as of which what it waits for is not there; `BUSY` while it does not wait, `FOR_EVER` when
    /// it does nothing any more.
    looked: AtomicU64,
    /// Records that it has done, once it does nothing any more.
    consumed: AtomicU64,
}

const BUSY: u64 = u64::MAX;
const FOR_EVER: u64 = u64::MAX - 1;

impl Default for Published {
    fn default() -> Self {
        Published {
            clock: AtomicU64::new(0),
            reached: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            vcpu: AtomicU32::new(0),
            wanted_clock: AtomicU64::new(u64::MAX),
            wanted_event: AtomicU64::new(u64::MAX),
            word: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
            looked: AtomicU64::new(BUSY),
            consumed: AtomicU64::new(0),
        }
    }
}

impl Published {
    /// Leaves word that somebody waits for an edge. Returns what `word` must still be when it goes to sleep: then the
    /// thread had not seen this.
    fn want(&self, e: &Edge) -> u32 {
        let word = self.word.load(Ordering::SeqCst);
        if self.wanted_clock.load(Ordering::SeqCst) > e.clock {
            self.wanted_clock.fetch_min(e.clock, Ordering::SeqCst);
        }
        if self.wanted_event.load(Ordering::SeqCst) > e.event {
            self.wanted_event.fetch_min(e.event, Ordering::SeqCst);
        }
        word
    }

    /// The thread has published where it is: who waits for that goes on.
    fn serve(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        let served = self.clock.load(Ordering::Relaxed) > self.wanted_clock.load(Ordering::SeqCst)
            || self.reached.load(Ordering::Relaxed) >= self.wanted_event.load(Ordering::SeqCst);
        if served {
            self.wake();
        }
    }

    /// Wakes all that wait. Those whose point is still to come leave word again: this is forgotten before `word` changes, so
    /// a wish that gets lost here was made with an old `word`.
    fn wake(&self) {
        self.wanted_clock.store(u64::MAX, Ordering::SeqCst);
        self.wanted_event.store(u64::MAX, Ordering::SeqCst);
        self.word.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) != 0 {
            super::lock::futex_wake(&self.word, u32::MAX >> 1);
        }
    }

    fn has_left_behind(&self, e: &Edge) -> bool {
        self.reached.load(Ordering::Acquire) >= e.event
            || self.clock.load(Ordering::Acquire) > e.clock
            || self.ended.load(Ordering::Acquire)
    }
}

/// Where threads wait for their turn in the order of events: who has done an event wakes nobody but whose turn comes next. (With
/// one word for all, each of twenty threads that wait would look each time.)
pub(super) struct Turns([Turn; TURNS]);

/// More than threads that usually wait at once.
const TURNS: usize = 64;

/// Where the threads wait whose events have numbers that are the same modulo `TURNS`. In a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Turn {
    /// Changes when it is the turn of one of them. A futex.
    word: AtomicU32,
    /// Threads that sleep, or are about to.
    sleepers: AtomicU32,
}

impl Default for Turns {
    fn default() -> Self {
        Turns(std::array::from_fn(|_| Turn::default()))
    }
}

impl Turns {
    fn of(&self, order: u64) -> &Turn {
        &self.0[order as usize % TURNS]
    }
}

impl Turn {
    /// The number of events done has changed so that it is the turn of a thread here.
    fn has_come(&self) {
        self.word.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) != 0 {
            super::lock::futex_wake(&self.word, u32::MAX >> 1);
        }
    }

    /// To be had by who looks at `word` and then, before going to sleep on it, at the number of events done.
    fn sleeper(&self) -> Sleeper<'_> {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        Sleeper(self)
    }
}

struct Sleeper<'a>(&'a Turn);

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.0.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What has been reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Here {
    /// The position; nothing of the instruction there is done.
    Position,
    /// What the instruction there brings about: a system call, a fault.
    Event,
}

impl From<&Exit> for Here {
    fn from(exit: &Exit) -> Here {
        match exit {
            Exit::Syscall { .. }
            | Exit::Insn(_)
            | Exit::Fault
            | Exit::FetchFault { .. }
            | Exit::Unsupported { .. } => Here::Event,
            Exit::Tick
            | Exit::EventSite
            | Exit::Break
            | Exit::Stepped
            | Exit::Untranslated
            | Exit::Check { .. } => Here::Position,
        }
    }
}

/// Where a thread does nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// At an event that its log does not have.
    Event,
    /// Anywhere.
    Place,
}

/// Moments on the way into an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// It is reached, and nobody knows yet: memory is as it was for the event.
    Reached,
    /// Others know, so it may wait for them.
    Published,
}

/// All threads of the replay, those that ended too.
#[derive(Default)]
pub(super) struct Registry {
    threads: RwLock<HashMap<ThreadId, Arc<Published>>>,
    /// Threads that have not ended.
    alive: AtomicUsize,
    /// Those of them that wait for others, or will do nothing any more.
    idle: AtomicUsize,
    /// Counts what threads get done. It is counted behind each change that somebody may wait for, by a thread that does not
    /// wait itself.
    progress: AtomicU64,
}

impl Registry {
    /// Whether nobody will ever go on: each thread has looked for what it waits for, and not found it, since the last
    /// change. A change that is not counted yet is made by a thread that does not wait.
    fn is_stuck(&self) -> bool {
        // Cheap, and enough most of the time.
        if self.idle.load(Ordering::SeqCst) < self.alive.load(Ordering::SeqCst) {
            return false;
        }
        let now = self.progress.load(Ordering::SeqCst);
        let threads = read(&self.threads);
        let waits = |p: &Arc<Published>| {
            let looked = p.looked.load(Ordering::SeqCst);
            p.ended.load(Ordering::SeqCst) || looked == now || looked == FOR_EVER
        };
        threads.values().all(waits) && self.progress.load(Ordering::SeqCst) == now
    }
}

/// After so many rounds of waiting the other thread is told. A multiple of 64 later, again: it may have missed it.
const ASKS: u32 = 8;

/// After so many rounds of waiting it is worth a line in the debug log.
const LONG: u32 = 2000;

impl Par {
    /// Notes a new thread, before it runs.
    pub(crate) fn register(&self, th: &mut Thread) {
        let p = Arc::new(Published::default());
        p.vcpu.store(u32::from(th.vcpu), Ordering::Relaxed);
        p.clock.store(th.ctx().clock(), Ordering::Relaxed);
        write(&self.published.threads).insert(th.id, p.clone());
        self.published.alive.fetch_add(1, Ordering::SeqCst);
        self.published.progress.fetch_add(1, Ordering::SeqCst);
        th.published = Some(p);
    }

    /// The thread has completed its last event.
    pub(crate) fn unregister(&self, th: &mut Thread) {
        if let Some(p) = th.published.take() {
            p.ended.store(true, Ordering::SeqCst);
            p.wake();
            // As long as it counts as alive it is one that does not wait.
            self.published.progress.fetch_add(1, Ordering::SeqCst);
            self.published.alive.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Publishes where the thread is: in front of its next event.
    pub(super) fn publish(&self, th: &mut Thread, reached: bool) {
        let clock = th.ctx().clock();
        if let Some(p) = &th.published {
            p.clock.store(clock, Ordering::Release);
            if reached {
                p.reached.store(th.completed + 1, Ordering::Release);
            }
            p.serve();
            self.published.progress.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Lets the next event of the process go, when the thread is done with one.
    pub(crate) fn finish_order(&self, th: &mut Thread) {
        if let Some(k) = th.order.take() {
            self.order.store(k, Ordering::SeqCst);
            self.published.progress.fetch_add(1, Ordering::SeqCst);
            self.turns.of(k + 1).has_come();
        }
    }

    /// Takes the records at the thread's position that say what it has to wait for, and waits. True: it is its turn in
    /// the order of events, and the runtime lock is held. The thread stands outside translated code, is parked, and
    /// holds no lock.
    ///
    /// `here` says whether the event itself has come, or only its position: what belongs to an event that the guest
    /// brings about (`Stop::Comes`) is left for when it does. An instruction that faults has a right to wait for first,
    /// and others wait for the access that then faults.
    ///
    /// `output` is called for what an event does before its place in the order: it wrote something out.
    pub(crate) fn settle(
        &self,
        th: &mut Thread,
        here: Here,
        output: &mut dyn FnMut(&mut Thread, Moment),
    ) -> bool {
        loop {
            let (clock, pc) = (th.ctx().clock(), th.ctx().rip);
            let next = th.upcoming();
            let Some(Record {
                event:
                    Event::Sync {
                        order,
                        vcpu,
                        edges,
                        stop,
                    },
                regs,
                ..
            }) = next.filter(|r| r.clock == clock && r.pc == pc)
            else {
                return false;
            };
            let (order, vcpu, edges) = (*order, *vcpu, edges.to_vec());
            if here == Here::Position && *stop == Stop::Comes {
                return false;
            }
            // 0: not known when it was logged.
            let expected = (*stop == Stop::Find && *regs != 0).then_some(*regs);
            if expected.is_some_and(|h| h != th.gpr_hash()) {
                self.other_registers(th);
            }
            if order.is_some() {
                output(th, Moment::Reached);
            }
            self.publish(th, true);
            if order.is_some() {
                output(th, Moment::Published);
            }
            for e in &edges {
                self.wait_for(th, e);
            }
            if let Some(k) = order {
                self.wait_order(th, k);
            }
            th.take();
            if let Some(v) = vcpu {
                self.move_to(th, usize::from(v));
            }
            if let Some(k) = order {
                th.order = Some(k);
                return true;
            }
        }
    }

    fn move_to(&self, th: &mut Thread, v: usize) {
        let Some(slot) = self.slots.get(v) else {
            crate::report::fail(
                Failure::TraceEnd,
                format_args!(
                    "the trace is damaged: thread t{} runs on vcpu {v} of {}",
                    th.id.0,
                    self.slots.len()
                ),
            );
        };
        th.vcpu = v as u8;
        th.cache = slot.cache_ptr(th.near);
        if let Some(p) = &th.published {
            p.vcpu.store(v as u32, Ordering::Release);
        }
    }

    /// Whether a thread has left the point of an edge behind.
    pub(crate) fn is_left_behind(&self, e: &Edge) -> bool {
        read(&self.published.threads)
            .get(&e.thread)
            .is_some_and(|p| p.has_left_behind(e))
    }

    /// Number of the last event in the order that is done.
    pub(crate) fn events_done(&self) -> u64 {
        self.order.load(Ordering::Acquire)
    }

    fn wait_for(&self, th: &mut Thread, e: &Edge) {
        if sched::active() {
            if sched::wait(Wait::Left(*e)).is_err() {
                self.stuck(th, &format!("{e:?}"));
            }
            return;
        }
        let mut wait = Patience::new(self, th);
        let mut target: Option<Arc<Published>> = None;
        let mut word = 0;
        loop {
            if target.is_none() {
                target = read(&self.published.threads).get(&e.thread).cloned();
            }
            if let Some(p) = &target {
                if p.has_left_behind(e) {
                    break;
                }
                if wait.rounds() >= ASKS {
                    word = p.want(e);
                    if p.has_left_behind(e) {
                        break;
                    }
                }
                let v = p.vcpu.load(Ordering::Acquire) as usize;
                if let Some(s) = self.slots.get(v)
                    && (wait.rounds() % 64 == ASKS || wait.naps())
                    && s.state() == State::Running
                {
                    s.poke();
                }
            }
            if wait.rounds() == LONG {
                let at = target.as_ref().map(|p| {
                    (
                        p.clock.load(Ordering::Relaxed),
                        p.reached.load(Ordering::Relaxed),
                    )
                });
                crate::log!(
                    Level::Debug,
                    "t{} waits for {e:?}, which is at {at:?}",
                    th.id.0
                );
            }
            let asleep = target.as_ref().filter(|_| wait.naps());
            if let Some(p) = asleep {
                p.sleepers.fetch_add(1, Ordering::SeqCst);
            }
            let stuck = wait.snooze(target.as_ref().map(|p| (&p.word, word)));
            if let Some(p) = asleep {
                p.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            if stuck {
                self.stuck(th, &format!("{e:?}"));
            }
        }
        wait.done();
    }

    /// The least clock that another thread waits for this one to leave behind, if it is still to come.
    pub(super) fn wanted(&self, th: &mut Thread) -> Option<u64> {
        let clock = th.ctx().clock();
        let wanted = th.published.as_ref()?.wanted_clock.load(Ordering::SeqCst);
        (clock <= wanted && wanted < u64::MAX).then_some(wanted)
    }

    fn wait_order(&self, th: &mut Thread, k: u64) {
        if sched::active() && sched::wait(Wait::Order(k)).is_err() {
            let done = self.events_done();
            self.stuck(
                th,
                &format!("event number {k} of the process, {done} are done"),
            );
        }
        let turn = self.turns.of(k);
        let mut wait = Patience::new(self, th);
        loop {
            let asleep = wait.naps().then(|| turn.sleeper());
            let word = turn.word.load(Ordering::SeqCst);
            let done = self.order.load(Ordering::SeqCst);
            if done + 1 == k {
                break;
            }
            if done >= k {
                crate::report::fail(
                    Failure::TraceEnd,
                    format_args!(
                        "the trace is damaged: event number {k} of the process comes twice"
                    ),
                );
            }
            if wait.rounds() == LONG {
                crate::log!(
                    Level::Debug,
                    "t{} waits for event {k} of the process, {done} are done",
                    th.id.0
                );
            }
            let stuck = wait.snooze(Some((&turn.word, word)));
            drop(asleep);
            if stuck {
                self.stuck(
                    th,
                    &format!("event number {k} of the process, {done} are done"),
                );
            }
        }
        wait.done();
        self.runtime.lock();
    }

    /// The thread will do nothing any more, but has not ended.
    pub(crate) fn idle_for_ever(&self, th: &mut Thread, at: At) -> ! {
        // Where a log was cut off its thread had gone on towards an event that is not there, and others may have seen what it did
        // on the way: it has not reached that.
        let at_next = at == At::Event || th.was_killed || th.upcoming().is_some();
        self.publish(th, at_next);
        if let Some(p) = &th.published {
            p.consumed.store(th.consumed(), Ordering::SeqCst);
            p.looked.store(FOR_EVER, Ordering::SeqCst);
        }
        if sched::active() {
            let sched::Stuck = sched::wait_for_ever();
            self.stuck(th, "nothing more");
        }
        self.published.idle.fetch_add(1, Ordering::SeqCst);
        while !self.published.is_stuck() {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.stuck(th, "nothing more");
    }

    fn other_registers(&self, th: &mut Thread) -> ! {
        let next = th.upcoming().map(crate::diverge::brief).unwrap_or_default();
        let recent = th.recent().join("\n    ");
        let ctx = th.ctx();
        let (clock, rip, gpr) = (ctx.clock(), ctx.rip, ctx.gpr);
        crate::report::fail(
            Failure::Divergence,
            format_args!(
                "the replay diverged from the recording\n  thread:   t{}\n  position: clock {clock}, pc {rip:#x}\n  expected: {next}\n  found:    the same position with other registers\n  registers: rax,rcx,rdx,rbx,rsp,rbp,rsi,rdi,r8-15 {gpr:x?}\n  the events before, oldest first:\n    {recent}\nThis is a mistake of crewind's, or the trace was recorded on another kind of cpu (crewind info shows it). Nothing after this point can be trusted. Please report it with the trace.",
                th.id.0
            ),
        )
    }

    /// Nobody goes on any more: the trace was cut there, or crewind is wrong.
    fn stuck(&self, th: &mut Thread, what: &str) -> ! {
        let clock = th.ctx().clock();
        crate::log!(
            Level::Debug,
            "t{} at clock {clock} waits for {what}, and no thread goes on",
            th.id.0
        );
        if th.upcoming().is_none() {
            th.log_is_over(self.complete, &self.trace);
        }
        // It waits for what others did behind the ends of their logs.
        let ended: Vec<(ThreadId, u64)> = read(&self.published.threads)
            .iter()
            .filter(|(_, p)| p.looked.load(Ordering::SeqCst) == FOR_EVER)
            .map(|(id, p)| (*id, p.consumed.load(Ordering::SeqCst)))
            .collect();
        th.logs_are_over(self.complete, &self.trace, &ended)
    }
}

/// Waiting of one thread for others, counted so that it shows when all wait.
struct Patience<'a> {
    par: &'a Par,
    wait: Backoff,
    counted: bool,
    me: Option<Arc<Published>>,
    /// The progress before the waiting thread looked for what it waits for.
    before: u64,
    /// Nanoseconds.
    nap: i64,
}

/// Rounds of spinning and yielding before a waiting thread sleeps between looks: some 100 us on an idle machine. Threads
/// that wait for each other's next access are served within the first few.
const AWAKE: u32 = 400;
/// Sleepers are woken, but a thread that was asked to come out at its next tick may have missed it. Nanoseconds.
const FIRST_NAP: i64 = 50_000;
/// With thousands of threads that wait for their start, looking must not be what keeps the processors busy. Nanoseconds.
const LONGEST_NAP: i64 = 4_000_000;

impl<'a> Patience<'a> {
    /// To be made before the thread looks for what it waits for.
    fn new(par: &'a Par, th: &Thread) -> Self {
        Patience {
            par,
            wait: Backoff::default(),
            counted: false,
            me: th.published.clone(),
            before: par.published.progress.load(Ordering::SeqCst),
            nap: FIRST_NAP,
        }
    }

    /// Whether it sleeps between looks by now.
    fn naps(&self) -> bool {
        self.wait.rounds() >= AWAKE
    }

    fn rounds(&self) -> u32 {
        self.wait.rounds()
    }

    /// What it waits for is not there: waits a little, or until a word has another value than this. True when it is no use.
    fn snooze(&mut self, on: Option<(&AtomicU32, u32)>) -> bool {
        let r = &self.par.published;
        if !self.naps() {
            self.wait.snooze();
            self.before = r.progress.load(Ordering::SeqCst);
            return false;
        }
        self.wait.count();
        if let Some(me) = &self.me {
            me.looked.store(self.before, Ordering::SeqCst);
        }
        if !self.counted {
            self.counted = true;
            r.idle.fetch_add(1, Ordering::SeqCst);
        }
        if r.is_stuck() {
            return true;
        }
        let nothing = AtomicU32::new(0);
        let (word, value) = on.unwrap_or((&nothing, 0));
        super::lock::futex_wait(word, value, Some(self.nap));
        self.nap = (2 * self.nap).min(LONGEST_NAP);
        self.before = r.progress.load(Ordering::SeqCst);
        false
    }

    fn done(&mut self) {
        if self.counted {
            self.counted = false;
            if let Some(me) = &self.me {
                me.looked.store(BUSY, Ordering::SeqCst);
            }
            self.par.published.idle.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        self.done();
    }
}

impl Thread {
    /// Replaying: where the guest has to be stopped for the next record, if it does not come there by itself.
    pub(crate) fn stop_site(&self) -> Option<(u64, u64)> {
        match self.upcoming() {
            Some(Record {
                clock,
                pc,
                event:
                    Event::Sync {
                        stop: Stop::Find, ..
                    }
                    | Event::Shared { .. },
                ..
            }) => Some((*clock, *pc)),
            _ => None,
        }
    }
}

//! Replaying under a debugger: stopping at any instruction, and going on from there.
//!
//! All guest threads take turns on one host thread (`sched`), so everything that happens has one order, which is the same
//! in each replay, and a fork of the process is a checkpoint of it. The debugger is another process, which asks over
//! a socket (`wire`); this module has the moments at which the replay may stop, and the reasons.
//!
//! # Rules
//! - Whether somebody debugs never shows in the guest: only limits of clocks, sites and breakpoints of the translator
//!   and rights to memory are used. The run is the same in every replay, also with other breakpoints and stops.
//! - `look` is called whenever a guest thread is at an instruction and about to go on. It may be called there
//!   several times, so what it finds depends on the place, never on being called.
//! - A thread that has been stopped goes on from exactly the state it stopped in.

mod serve;
mod stray;
mod watch;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::runtime::Runtime;
use crate::start::Mode;
use crate::thread::Thread;
use crewind_trace::event::ProcId;
use crewind_x86::Exit;
use serde::{Deserialize, Serialize};
use wire::{
    Access, Channel, Collect, EVENT_WORK, Forks, Hit, Place, Point, Run, Stopped, Watch, Why,
};

/// What a replay under a debugger needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugOptions {
    /// Socket to the debugger.
    pub socket: i32,
    /// Processes from the root to the one that is debugged, by number in the trace. The others are not replayed.
    pub path: Vec<u32>,
    /// The programs that this one executes before the one that is debugged.
    pub programs_before: u32,
    /// Which program comes next, and what leads there.
    #[serde(default)]
    pub next: String,
    /// What the program wrote to its standard output is not shown.
    #[serde(default)]
    pub quiet: bool,
}

/// Events of this process so far.
static EVENTS: AtomicU64 = AtomicU64::new(0);
/// A debugger is there, and this is the program it is for.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Counts an event: a record taken, or a change of threads.
pub(crate) fn count() {
    // One host thread counts; others replay without a debugger, where the number is not used.
    if ACTIVE.load(Ordering::Relaxed) {
        EVENTS.fetch_add(1, Ordering::Relaxed);
    }
}

fn events() -> u64 {
    EVENTS.load(Ordering::Relaxed)
}

/// What of the recorded output appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shows {
    /// All, in the recorded order of all processes.
    All,
    /// What was not shown yet.
    New,
    /// Nothing.
    Nothing,
}

/// Whether there is a debugger, if only for another process.
static ON: AtomicBool = AtomicBool::new(false);

/// Whether all output is left out.
static QUIET: AtomicBool = AtomicBool::new(false);

/// This process has left the recording, for a look at what would be.
static STRAYS: AtomicBool = AtomicBool::new(false);

/// Whether the guest does something that is not in the recording, in a copy of the process that is thrown away.
pub(crate) fn strays() -> bool {
    STRAYS.load(Ordering::Relaxed)
}

/// What of the output of this process appears.
pub(crate) fn shows_output() -> Shows {
    if !ON.load(Ordering::Relaxed) {
        Shows::All
    } else if QUIET.load(Ordering::Relaxed) {
        Shows::Nothing
    } else if ACTIVE.load(Ordering::Relaxed) {
        Shows::New
    } else {
        Shows::Nothing
    }
}

/// The side of the debugger in the replaying process.
pub struct Debugger {
    channel: Channel,
    path: Vec<u32>,
    breaks: Vec<u64>,
    watches: Vec<Watch>,
    /// System calls that are caught; none: all.
    calls: Option<Vec<u64>>,
    /// Processes whose making is caught.
    forks: Forks,
    /// Translated code checks rights.
    checking: bool,
    /// Granules whose rights are not the usual ones.
    forbidden: Vec<usize>,
    /// The run under way; none before the first stop.
    run: Option<Active>,
    /// The instruction that each thread was looked at in front of last, and when it came there: the thread may be looked at
    /// again after it has waited. Each run comes to an instruction at the same moment, wherever it began, so that one is what
    /// breakpoints and steps back lead to.
    seen: BTreeMap<u32, Place>,
    /// A signal that has been shown: it is let in next.
    shown_signal: Option<Place>,
}

/// Ticks that are as long as what it takes to look at a breakpoint and pass it, and at an instruction by itself.
const HIT_WORK: i64 = 1000;
const CHECK_WORK: i64 = 500;

/// A run under way.
struct Active {
    run: Run,
    /// Work still to be done.
    left: i64,
    /// Work done.
    done: u64,
    /// Where the clock was looked at last, for counting work.
    seen: (u32, u64, u64),
    /// The place looked at last.
    place: Place,
    last: Option<Hit>,
    /// The thread that is stepped has ended.
    step_ended: bool,
    /// Where the thread that is stepped was.
    step_from: Option<Place>,
    /// Where the thread was before its present instruction.
    trail: Option<Place>,
    /// The next instruction is done alone.
    single: bool,
    /// It accesses watched memory.
    touching: Option<(Place, Watch)>,
    /// What watched memory held.
    values: Vec<Vec<u8>>,
}

impl Debugger {
    /// Connects to the debugger.
    pub fn new(options: &DebugOptions) -> Debugger {
        // SAFETY: the supervisor opened it for us.
        let channel = unsafe { Channel::from_raw(options.socket) };
        ON.store(true, Ordering::Relaxed);
        QUIET.store(options.quiet, Ordering::Relaxed);
        ACTIVE.store(
            options.path.len() == 1 && options.programs_before == 0,
            Ordering::Relaxed,
        );
        Debugger {
            channel,
            path: options.path.clone(),
            breaks: Vec::new(),
            watches: Vec::new(),
            calls: None,
            forks: Forks::default(),
            checking: false,
            forbidden: Vec::new(),
            run: None,
            seen: BTreeMap::new(),
            shown_signal: None,
        }
    }
}

/// What becomes of a process that the guest makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Child {
    /// It is replayed as well.
    Made,
    /// This process goes on as it.
    Followed,
    /// It does not exist.
    LeftOut,
}

impl Runtime {
    /// Whether this is the program that is debugged.
    pub(crate) fn is_debugged(&self) -> bool {
        match &self.debug {
            Some(d) => ACTIVE.load(Ordering::Relaxed) && d.path.first() == Some(&self.proc.0),
            None => false,
        }
    }

    /// Replaying: what to do about a child. Nobody but the process that is debugged, and those it comes from, is there.
    pub(crate) fn what_of_child(&self, child: ProcId) -> Child {
        match &self.debug {
            None => Child::Made,
            Some(d) if d.path.get(1) == Some(&child.0) => Child::Followed,
            Some(_) => Child::LeftOut,
        }
    }

    /// The process goes on as one of its children.
    pub(crate) fn followed(&mut self) {
        let programs = match &mut self.options.debug {
            Some(o) => {
                o.path = o.path.split_off(1.min(o.path.len()));
                (o.path.len(), o.programs_before)
            }
            None => return,
        };
        if let (Some(d), Some(o)) = (&mut self.debug, &self.options.debug) {
            d.path.clone_from(&o.path);
        }
        ACTIVE.store(programs == (1, 0), Ordering::Relaxed);
    }

    /// The process is about to execute a program; false if nobody wants to see that one.
    pub(crate) fn debug_next_program(&mut self) -> bool {
        let proc = self.proc.0;
        match &mut self.options.debug {
            Some(o) if o.path.first() == Some(&proc) => {
                if o.path.len() == 1 {
                    o.programs_before = o.programs_before.saturating_sub(1);
                }
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    fn place(&self, th: &mut Thread) -> Place {
        let id = th.id.0;
        let ctx = th.ctx();
        Place {
            point: Point {
                event: events(),
                clock: ctx.clock(),
                pc: ctx.rip,
            },
            thread: id,
        }
    }

    /// A thread is about to go on; stops here if there is a reason.
    pub(crate) fn look(&mut self, th: &mut Thread) {
        if !self.is_debugged() || self.in_vfork {
            return;
        }
        let Some(mut d) = self.debug.take() else {
            return;
        };
        let here = self.place(th);
        let seen = d.seen.entry(here.thread).or_insert(here);
        if !seen.same_instruction(&here) {
            *seen = here;
        }
        while let Some(why) = reason(&mut d, here) {
            self.stop(&mut d, th, here, why);
        }
        if let Some(a) = &mut d.run {
            a.place = here;
        }
        self.debug = Some(d);
    }

    /// A thread has ended: its step is over.
    pub(crate) fn look_at_thread_end(&mut self, id: u32) {
        if let Some(d) = &mut self.debug {
            d.seen.remove(&id);
            if let Some(a) = &mut d.run {
                a.step_ended |= a.run.step.is_some_and(|s| s.thread == id);
            }
        }
    }

    /// A signal is about to be delivered.
    pub(crate) fn look_at_signal(&mut self, th: &mut Thread, signo: u32) {
        if !self.is_debugged() || self.in_vfork {
            return;
        }
        let here = self.place(th);
        let Some(mut d) = self.debug.take() else {
            return;
        };
        let stops = d.run.as_ref().is_some_and(|a| a.run.signals)
            && d.shown_signal.is_none_or(|s| !s.same_instruction(&here));
        if stops {
            self.stop(&mut d, th, here, Why::Signal(signo));
            while let Some(why) = reason(&mut d, here) {
                self.stop(&mut d, th, here, why);
            }
        }
        self.debug = Some(d);
    }

    /// A system call is about to be made, or was made just now.
    pub(crate) fn look_at_call(&mut self, th: &mut Thread, nr: u32, done: bool) {
        if !self.is_debugged() || self.in_vfork {
            return;
        }
        // What is met here can be come back to: the thread may have waited since it was looked at.
        self.look(th);
        let here = self.place(th);
        let Some(mut d) = self.debug.take() else {
            return;
        };
        let caught = match &d.calls {
            Some(some) if some.is_empty() || some.contains(&nr.into()) => {
                Some(Why::Call { nr, done })
            }
            _ => done.then(|| forked(d.forks, th, nr)).flatten(),
        };
        if let (Some(a), Some(why)) = (d.run.as_mut(), caught) {
            let excepted = a.run.except.is_some_and(|e| e.same_instruction(&here));
            let past = a.run.goal.is_some_and(|g| here.point >= g);
            if !excepted
                && !past
                && let Some(why) = a.meet(here, why)
            {
                self.stop(&mut d, th, here, why);
                while let Some(why) = reason(&mut d, here) {
                    self.stop(&mut d, th, here, why);
                }
            }
        }
        self.debug = Some(d);
    }

    /// The process is at its end: the debugger may look at it until it has seen enough.
    pub(crate) fn debug_end(&mut self, th: &mut Thread, how: String) {
        if !self.is_debugged() || self.in_vfork {
            return;
        }
        let here = self.place(th);
        if let Some(mut d) = self.debug.take() {
            loop {
                self.stop(&mut d, th, here, Why::End(how.clone()));
            }
        }
    }

    /// The program that is debugged is about to execute another one.
    pub(crate) fn debug_program_ends(&mut self, th: &mut Thread) {
        if self.in_vfork {
            crate::report::fail(
                crate::start::Failure::Usage,
                format_args!(
                    "what a child of vfork does in its parent's memory cannot be looked at; choose a later --program"
                ),
            );
        }
        let next = (self.options.debug.as_ref()).map_or("", |o| o.next.as_str());
        self.debug_end(th, format!("the process executed {next}"));
    }

    /// Answers the debugger until it wants the process to go on.
    fn stop(&mut self, d: &mut Debugger, th: &mut Thread, here: Place, why: Why) {
        d.shown_signal = matches!(why, Why::Signal(_)).then_some(here);
        let (last, work) = match &mut d.run {
            Some(a) => (a.last.take(), a.done),
            None => (None, 0),
        };
        let stopped = Stopped {
            why,
            place: here,
            last,
            work,
        };
        let run = self.answer(d, th, stopped);
        let step_from = run
            .step
            .and_then(|s| self.place_of(th, s.thread))
            .or(run.step.map(|_| here));
        d.run = Some(Active {
            left: i64::try_from(run.work).unwrap_or(i64::MAX),
            done: 0,
            seen: (here.thread, here.point.clock, here.point.event),
            place: here,
            last: None,
            step_ended: false,
            step_from,
            trail: None,
            single: false,
            touching: None,
            values: watch::values(&d.watches),
            run,
        });
    }

    /// Where another thread is: it waits.
    fn place_of(&mut self, th: &mut Thread, id: u32) -> Option<Place> {
        if th.id.0 == id {
            return Some(self.place(th));
        }
        let other = self
            .threads
            .get(&crewind_trace::event::ThreadId(id))
            .copied()?;
        // SAFETY: all guest threads take turns on this host thread, so the other one does nothing now.
        let other = unsafe { &mut *other.0 };
        Some(self.place(other))
    }

    /// Flags of a thread that are dead, and shown as zeros: what they are depends on how code was cut into translations.
    /// (The thread keeps them: a signal that comes at the end of a system call finds all flags as they were recorded.)
    fn dead_flags(&mut self, th: &mut Thread) -> u64 {
        let par = self.par;
        let pc = th.ctx().rip;
        let src = crate::runtime::Code(std::cell::UnsafeCell::new(&mut self.space));
        match par {
            // SAFETY: one host thread runs all vcpus, and it is here.
            Some(par) => unsafe { par.cache(th) }.dead_flags(pc, &src),
            None => self.cache.dead_flags(pc, &src),
        }
    }

    /// How the thread is to be run from here: true for one instruction. Sets what makes it stop in time; to be called
    /// behind the arming for its log.
    pub(crate) fn aim_debug(&mut self, th: &mut Thread) -> bool {
        if !self.is_debugged() || self.in_vfork || self.mode == Mode::Record {
            return false;
        }
        let (clock, pc) = (th.ctx().clock(), th.ctx().rip);
        let id = th.id.0;
        let Some(d) = &self.debug else { return false };
        let Some(a) = &d.run else { return false };
        let stepped = a.run.step.is_some_and(|s| s.thread == id)
            || matches!(a.run.collect, Collect::Steps { thread, clock: from } if thread == id && clock >= from);
        let single = stepped || a.single || d.breaks.contains(&pc);
        let mut at = th
            .ctx()
            .tick_at
            .min(clock.saturating_add(a.left.max(1) as u64));
        if let Collect::Steps {
            thread,
            clock: from,
        } = a.run.collect
            && thread == id
            && clock < from
        {
            at = at.min(from);
        }
        if let Some((thread, c)) = a.run.until
            && thread == id
            && clock < c
        {
            at = at.min(c);
        }
        let mut site = None;
        if let Some(g) = a.run.goal.filter(|g| g.event == events()) {
            // If the place does not exist, the next tick is behind it.
            at = at.min(g.clock.max(clock).saturating_add(1));
            if g.clock >= clock {
                at = at.max(clock.saturating_add(1));
                site = Some((g.clock, g.pc));
            }
        }
        if th.ctx().tick_at != at {
            th.ctx().set_limit(at);
        }
        let logged = th.stop_site();
        let first = match (logged, site) {
            (Some(l), Some(s)) => Some(l.min(s)),
            (l, s) => l.or(s),
        };
        if let Some((_, pc)) = first {
            match self.par {
                // SAFETY: one host thread runs all vcpus, and it is here.
                Some(par) => unsafe { par.cache(th) }.add_event_site(pc),
                None => self.cache.add_event_site(pc),
            };
        }
        th.ctx().arm_site(first);
        single
    }

    /// The thread has left translated code.
    pub(crate) fn left_for_debug(&mut self, th: &mut Thread, exit: &Exit, single: bool) {
        if let (Exit::Fault, Some(a)) = (exit, self.debug.as_mut().and_then(|d| d.run.as_mut())) {
            // It was not done.
            a.touching = None;
        }
        let Exit::Check { site } = exit else { return };
        let here = self.place(th);
        let par = self.par;
        let Some(d) = &mut self.debug else { return };
        let Some(a) = &mut d.run else { return };
        if !single {
            // The check may be for later instructions too: which one it is about is seen one by one.
            a.single = true;
            a.place = here;
            a.took_time(CHECK_WORK);
            return;
        }
        let mut ranges = Vec::new();
        let cache = match par {
            // SAFETY: one host thread runs all vcpus, and it is here.
            Some(par) => unsafe { par.cache(th) },
            None => &mut *self.cache,
        };
        cache.check_ranges(*site, th.ctx(), &mut ranges);
        cache.pass_check(th.ctx(), *site);
        a.single = true;
        a.place = here;
        a.touching = watch::wanted(&d.watches, &ranges).map(|w| (here, w));
    }

    /// The failure that ends the replay is shown to the debugger first.
    pub(crate) fn debug_failure(message: &str) {
        if !ACTIVE.load(Ordering::Relaxed) {
            return;
        }
        let th = crate::thread::current();
        if th.is_null() {
            return;
        }
        // SAFETY: the process ends from here, so nothing that was borrowed is used again; all runs on this host thread.
        let (rt, th) = unsafe { (crate::runtime::get(), &mut *th) };
        rt.debug_end(th, message.to_owned());
    }
}

/// A system call has come back: the process that it has made, if that is to be caught.
fn forked(wanted: Forks, th: &mut Thread, nr: u32) -> Option<Why> {
    let g = &th.ctx().gpr;
    let (ret, first) = (g[0] as i64, g[7]);
    let flags = match i64::from(nr) {
        libc::SYS_fork => 0,
        libc::SYS_vfork => libc::CLONE_VFORK as u64,
        libc::SYS_clone => first,
        libc::SYS_clone3 => crate::guestmem::read_u64(first).ok()?,
        _ => return None,
    };
    let vfork = flags & libc::CLONE_VFORK as u64 != 0;
    let is_wanted = if vfork { wanted.vfork } else { wanted.fork };
    let made = ret > 0 && flags & libc::CLONE_THREAD as u64 == 0;
    (made && is_wanted).then_some(Why::Forked {
        pid: ret as i32,
        vfork,
    })
}

/// Why the thread should stop here, if it should.
fn reason(d: &mut Debugger, here: Place) -> Option<Why> {
    let Some(a) = &mut d.run else {
        return Some(Why::Start);
    };
    a.count_work(here);
    let came = d.seen.get(&here.thread).copied().unwrap_or(here);
    let moved = !here.same_instruction(&a.place) || here.point.event != a.place.point.event;
    if moved {
        a.single = false;
        let before = a.place;
        if let Some(w) = watch::touched(a, &d.watches, here, before)
            && let Some(why) = a.meet(before, Why::Watch(w))
        {
            return Some(why);
        }
    }
    if let Collect::Steps { thread, clock } = a.run.collect
        && here.thread == thread
    {
        match a.trail {
            Some(t) if !t.same_instruction(&here) => {
                a.took_time(CHECK_WORK);
                a.last = Some(Hit {
                    place: t,
                    why: Why::Step,
                });
                a.trail = Some(came);
            }
            None if here.point.clock >= clock => a.trail = Some(came),
            _ => {}
        }
    }
    let until = (a.run.until).is_some_and(|(t, c)| t == here.thread && here.point.clock >= c);
    if until || a.run.goal.is_some_and(|g| here.point >= g) {
        return Some(Why::Goal);
    }
    if a.step_ended {
        return Some(Why::StepEnded);
    }
    if let (Some(s), Some(from)) = (a.run.step, &a.step_from)
        && s.thread == here.thread
        && !here.same_instruction(from)
    {
        let inside = |r: (u64, u64)| (r.0..r.1).contains(&here.point.pc);
        if !s.range.is_some_and(inside) {
            return Some(Why::Step);
        }
        a.step_from = Some(here);
    }
    let excepted = a.run.except.is_some_and(|e| e.same_instruction(&here));
    // A thread may wait in front of an instruction while others go on, and is looked at again then: that is no second visit.
    let visit = came.point == here.point;
    if d.breaks.contains(&here.point.pc)
        && visit
        && !excepted
        && let Some(why) = a.meet(here, Why::Break)
    {
        return Some(why);
    }
    // (An access that is to be noted is done first.)
    (a.left <= 0 && a.touching.is_none()).then_some(Why::Work)
}

impl Active {
    fn count_work(&mut self, here: Place) {
        let (thread, clock, event) = self.seen;
        let ticks = if thread == here.thread {
            here.point.clock.saturating_sub(clock)
        } else {
            0
        };
        let work = ticks + here.point.event.saturating_sub(event) * EVENT_WORK;
        self.seen = (here.thread, here.point.clock, here.point.event);
        self.done += work;
        self.left -= i64::try_from(work).unwrap_or(i64::MAX);
    }

    /// What takes time besides running, and is no progress: whoever waits for this to stop looks after so much less of it.
    fn took_time(&mut self, work: i64) {
        self.left -= work;
    }

    /// Something that is looked for: a reason to stop, or one to be noted.
    fn meet(&mut self, place: Place, why: Why) -> Option<Why> {
        if self.run.collect == Collect::Hits {
            self.took_time(HIT_WORK);
            self.last = Some(Hit { place, why });
            return None;
        }
        (self.run.collect == Collect::Nothing).then_some(why)
    }
}

impl Access {
    fn wants(self, read: bool, write: bool) -> bool {
        match self {
            Access::Write => write,
            Access::Read => read,
            Access::Any => read || write,
        }
    }
}

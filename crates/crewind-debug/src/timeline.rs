//! Moving in time.
//!
//! Going forwards is running on. Going backwards is going forwards from a checkpoint: to find out what was met last before
//! the present moment, the replay runs up to it and notes what it meets; then it runs again, up to there.
//!
//! # Checkpoints
//! A checkpoint is a sleeping process. They are made on the way, at first as often as costs nothing against running; when
//! there are many, every other one is dropped and the distance doubles, so that their number stays bounded and any moment
//! is at most two distances behind one. Besides there are a few made where somebody looks around, which are near. Where
//! memory is short, fewer are kept.

use crate::engine::{Engine, Error, LookOut, Result};
use crate::memory;
use crate::point::Wanted;
use crewind_guest::debug::wire::{
    Access, Collect, Forks, Hit, Place, Point, ProgramInfo, Registers, Run, Step, Stopped,
    ThreadInfo, Watch, Why,
};
use std::collections::{BTreeMap, VecDeque};

/// Work between two looks at the connection: some 20 ms.
const QUANTUM: u64 = 8_000_000;
/// Work between checkpoints at first: a fork costs about a millisecond, this some 100.
const DISTANCE: u64 = 40_000_000;
/// Most checkpoints of the regular kind.
const REGULAR: usize = 40;
/// Most doublings of the distance where memory is short.
const FEWEST: u32 = 6;
/// Most near ones.
const NEAR: usize = 6;
/// Work from which on a checkpoint is worth a fork: some 5 ms.
const WORTH: u64 = 2_000_000;
/// Pages of memory remembered while the process stands still.
const PAGE: u64 = 4096;

struct Checkpoint {
    engine: Engine,
    place: Place,
    /// Work since the beginning, about.
    work: u64,
    /// Clocks of the threads.
    threads: Vec<ThreadInfo>,
}

/// Why a movement ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The step is done, or the goal reached.
    Done,
    /// The thread that was stepped has ended.
    ThreadEnded,
    /// In front of a breakpoint.
    Break,
    /// An access to watched memory: behind it when going forwards, in front of it when going backwards.
    Watch(Watch),
    /// In front of a system call, or behind it.
    Call {
        /// Its number.
        nr: u32,
        /// Behind it.
        done: bool,
    },
    /// Behind the making of a process.
    Forked {
        /// Its id.
        pid: i32,
        /// By `vfork`.
        vfork: bool,
    },
    /// In front of the delivery of a signal.
    Signal(u32),
    /// Away from the recording, the thread cannot go on: why.
    Cannot(String),
    /// There is nothing before.
    Start,
    /// There is nothing behind; how the process ended.
    End(String),
    /// Somebody wants attention.
    Interrupted,
}

/// The replay of one process, and where in it the debugger is.
pub struct Timeline {
    current: Engine,
    checkpoints: BTreeMap<Point, Checkpoint>,
    near: VecDeque<Point>,
    distance: u64,
    /// How often the distance is doubled because memory is short, and the work at which that was last.
    short: u32,
    given_back: u64,
    /// Work since the beginning, about.
    work: u64,
    ended: Option<String>,
    looks_out: LookOut,
    pages: BTreeMap<u64, Vec<u8>>,
}

/// Called now and then while the replay runs; true: stop.
pub type Poll<'a> = &'a mut dyn FnMut() -> bool;

impl Timeline {
    /// For a process that stands at its beginning.
    ///
    /// # Errors
    /// It cannot be forked.
    pub fn new(mut first: Engine, stopped: &Stopped) -> Result<Timeline> {
        let place = stopped.place;
        let start = Checkpoint {
            engine: first.fork()?,
            place,
            work: 0,
            threads: first.threads()?,
        };
        Ok(Timeline {
            current: first,
            checkpoints: BTreeMap::from([(place.point, start)]),
            near: VecDeque::new(),
            distance: DISTANCE,
            short: 0,
            given_back: 0,
            work: 0,
            ended: ended(&stopped.why),
            looks_out: LookOut::default(),
            pages: BTreeMap::new(),
        })
    }

    // Looking.

    /// Where the debugger is.
    pub fn place(&self) -> Place {
        self.current.place()
    }

    /// The process where the debugger is. What moves it is for the timeline to do.
    pub fn engine(&mut self) -> &mut Engine {
        &mut self.current
    }

    /// How the process ended, if this is its end.
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// How many checkpoints there are.
    pub fn checkpoints(&self) -> usize {
        self.checkpoints.len()
    }

    /// The threads there are.
    ///
    /// # Errors
    /// The process is gone.
    pub fn threads(&mut self) -> Result<Vec<ThreadInfo>> {
        self.current.threads()
    }

    /// Registers of a thread.
    ///
    /// # Errors
    /// There is no such thread.
    pub fn registers(&mut self, thread: u32) -> Result<Registers> {
        self.current.registers(thread)
    }

    /// The program.
    ///
    /// # Errors
    /// The process is gone.
    pub fn program(&mut self) -> Result<ProgramInfo> {
        self.current.program()
    }

    /// A hash of all registers and writable memory.
    ///
    /// # Errors
    /// The process is gone.
    pub fn checksum(&mut self) -> Result<u64> {
        self.current.checksum()
    }

    /// Reads memory; returns how much could be read.
    ///
    /// # Errors
    /// The process is gone.
    pub fn read(&mut self, addr: u64, out: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|r| !r.is_empty()) {
            let Some(at) = addr.checked_add(done as u64) else {
                break;
            };
            let page = at & !(PAGE - 1);
            if !self.pages.contains_key(&page) {
                let bytes = self.current.read(page, PAGE)?;
                self.pages.insert(page, bytes);
            }
            let bytes = self.pages.get(&page).map_or(&[][..], Vec::as_slice);
            let from = bytes.get((at - page) as usize..).unwrap_or(&[]);
            let n = from.len().min(rest.len());
            if let (Some(to), Some(from)) = (rest.get_mut(..n), from.get(..n)) {
                to.copy_from_slice(from);
            }
            done += n;
            if n == 0 {
                break;
            }
        }
        Ok(done)
    }

    // What is looked out for.

    /// The breakpoints.
    pub fn breaks(&self) -> &[u64] {
        &self.looks_out.breaks
    }

    /// Adds or removes a breakpoint.
    pub fn set_break(&mut self, pc: u64, on: bool) {
        let breaks = &mut self.looks_out.breaks;
        breaks.retain(|b| *b != pc);
        if on {
            breaks.push(pc);
            breaks.sort_unstable();
        }
    }

    /// Adds or removes a watched range.
    pub fn set_watch(&mut self, watch: Watch, on: bool) {
        let watches = &mut self.looks_out.watches;
        match watches.iter().position(|w| *w == watch) {
            Some(at) if !on => {
                watches.remove(at);
            }
            None if on => watches.push(watch),
            _ => {}
        }
    }

    /// Catches these system calls; an empty list: all of them.
    pub fn set_calls(&mut self, calls: Option<Vec<u64>>) {
        self.looks_out.calls = calls;
    }

    /// Stops behind the making of processes.
    pub fn set_forks(&mut self, forks: Forks) {
        self.looks_out.forks = forks;
    }

    // Moving.

    fn moved(&mut self, engine: Engine, work: u64, end: Option<String>) {
        self.current = engine;
        self.work = work;
        self.ended = end;
        self.pages.clear();
    }

    /// Runs the present process until there is a reason to stop, making checkpoints.
    fn forwards(&mut self, run: Run, poll: Poll<'_>) -> Result<Stopped> {
        self.pages.clear();
        loop {
            let stopped = self.current.run(Run {
                work: QUANTUM,
                ..run
            })?;
            self.work += stopped.work;
            self.ended = ended(&stopped.why);
            if stopped.why != Why::Work {
                return Ok(stopped);
            }
            self.checkpoint_when_due()?;
            if poll() {
                return Ok(stopped);
            }
        }
    }

    fn checkpoint_when_due(&mut self) -> Result<()> {
        let here = self.place();
        // Near ones go when others are made: they leave no room for a regular one.
        let mut before = self.checkpoints.range(..=here.point).rev();
        let before = before.find(|(p, _)| !self.near.contains(p));
        let distance = self.distance.saturating_mul(1 << self.short);
        let last = before.map_or(0, |(_, c)| c.work).max(self.given_back);
        if self.work < last.saturating_add(distance) {
            return Ok(());
        }
        if memory::is_short() {
            self.give_memory_back();
            return Ok(());
        }
        self.short = self.short.saturating_sub(1);
        if self.checkpoints.contains_key(&here.point) {
            // One of those made for somebody who looks around stays.
            self.near.retain(|p| *p != here.point);
        } else if !self.checkpoint()? {
            self.give_memory_back();
            return Ok(());
        }
        let regular = self.checkpoints.len() - self.near.len();
        if regular > REGULAR {
            self.distance = self.distance.saturating_mul(2);
            self.thin_out();
        }
        Ok(())
    }

    /// Drops every other regular checkpoint. The first one, the beginning, stays.
    fn thin_out(&mut self) {
        let mut keep = true;
        let near = &self.near;
        self.checkpoints.retain(|p, _| {
            if near.contains(p) {
                return true;
            }
            keep = !keep;
            !keep
        });
    }

    /// Memory is short: sleeping processes keep what the running one changes. There will be fewer, until there is more.
    fn give_memory_back(&mut self) {
        for old in std::mem::take(&mut self.near) {
            self.checkpoints.remove(&old);
        }
        self.thin_out();
        self.short = (self.short + 1).min(FEWEST);
        self.given_back = self.work;
    }

    /// Makes one here. False: there is no room for another process.
    fn checkpoint(&mut self) -> Result<bool> {
        let place = self.place();
        let engine = match self.current.fork() {
            Err(Error::Refused(_)) => return Ok(false),
            other => other?,
        };
        let made = Checkpoint {
            engine,
            place,
            work: self.work,
            threads: self.current.threads()?,
        };
        self.checkpoints.insert(place.point, made);
        Ok(true)
    }

    /// A checkpoint here, for somebody who moves around here.
    fn checkpoint_near(&mut self) -> Result<()> {
        let point = self.place().point;
        if self.checkpoints.contains_key(&point) {
            return Ok(());
        }
        if memory::is_short() {
            self.give_memory_back();
        }
        // It only saves time.
        if !self.checkpoint()? {
            return Ok(());
        }
        self.near.push_back(point);
        if self.near.len() > NEAR
            && let Some(old) = self.near.pop_front()
        {
            self.checkpoints.remove(&old);
        }
        Ok(())
    }

    /// Goes on: until something happens, or one thread has done a step.
    ///
    /// # Errors
    /// The process is gone.
    pub fn go(&mut self, step: Option<Step>, poll: Poll<'_>) -> Result<Reason> {
        if let Some(how) = self.ended() {
            return Ok(Reason::End(how.to_owned()));
        }
        self.current.look_out(&self.looks_out)?;
        let run = Run {
            step,
            signals: true,
            except: Some(self.place()),
            ..Run::default()
        };
        let stopped = self.forwards(run, poll)?;
        Ok(match stopped.why {
            Why::Start | Why::Goal | Why::Step => Reason::Done,
            Why::StepEnded => Reason::ThreadEnded,
            Why::Work => Reason::Interrupted,
            Why::Break => Reason::Break,
            Why::Watch(w) => Reason::Watch(w),
            Why::Call { nr, done } => Reason::Call { nr, done },
            Why::Forked { pid, vfork } => Reason::Forked { pid, vfork },
            Why::Signal(s) => Reason::Signal(s),
            Why::Cannot(why) => Reason::Cannot(why),
            Why::End(how) => Reason::End(how),
        })
    }

    /// Makes the present process one that is at the checkpoint, or leaves it if that is as good for going to `point`.
    fn start_from(&mut self, checkpoint: Point, point: Point) -> Result<()> {
        let here = self.place().point;
        if self.ended.is_none() && here <= point && here >= checkpoint {
            return Ok(());
        }
        let Some(c) = self.checkpoints.get_mut(&checkpoint) else {
            return Err(Error::Refused("that checkpoint is gone".into()));
        };
        let (engine, work) = (c.engine.fork()?, c.work);
        self.moved(engine, work, None);
        Ok(())
    }

    /// The last checkpoint at or before a moment.
    fn before(&self, point: Point) -> Point {
        let found = self.checkpoints.range(..=point).next_back();
        found
            .or(self.checkpoints.first_key_value())
            .map_or_else(Point::default, |(p, _)| *p)
    }

    /// Goes to the first moment that is not before this one.
    ///
    /// # Errors
    /// The process is gone.
    pub fn go_to_point(&mut self, point: Point, poll: Poll<'_>) -> Result<Reason> {
        self.start_from(self.before(point), point)?;
        self.current.look_out(&LookOut::default())?;
        let run = Run {
            goal: Some(point),
            ..Run::default()
        };
        let stopped = self.forwards(run, poll)?;
        Ok(match stopped.why {
            Why::End(how) => Reason::End(how),
            Why::Work => Reason::Interrupted,
            _ => Reason::Done,
        })
    }

    /// Goes to a little before a place, where a checkpoint is worth its time: see `stops_before`. True: interrupted.
    fn go_near(&mut self, place: Place, poll: Poll<'_>) -> Result<bool> {
        let point = place.point;
        self.start_from(self.before(point), point)?;
        self.current.look_out(&LookOut::default())?;
        let run = Run {
            goal: Some(point),
            until: Some((place.thread, point.clock.saturating_sub(1))),
            ..Run::default()
        };
        self.stops_before(run, poll)
    }

    /// Goes to a moment.
    ///
    /// # Errors
    /// There is no such moment, or the process is gone.
    pub fn go_to(&mut self, wanted: Wanted, poll: Poll<'_>) -> Result<Reason> {
        match wanted {
            Wanted::Start => self.go_to_point(self.first(), poll),
            Wanted::Event(event) => {
                let point = Point {
                    event,
                    clock: 0,
                    pc: 0,
                };
                self.go_to_point(point.max(self.first()), poll)
            }
            Wanted::End => {
                let far = Point {
                    event: u64::MAX,
                    clock: 0,
                    pc: 0,
                };
                if self.ended.is_some() {
                    return Ok(Reason::Done);
                }
                self.go_to_point(far, poll)
            }
            Wanted::Position { thread, clock, pc } => self.go_to_position(thread, clock, pc, poll),
        }
    }

    fn first(&self) -> Point {
        self.before(Point::default())
    }

    fn go_to_position(
        &mut self,
        thread: u32,
        clock: u64,
        pc: Option<u64>,
        poll: Poll<'_>,
    ) -> Result<Reason> {
        let present = self.place().point;
        let is_before = |c: &Checkpoint| {
            let t = c.threads.iter().find(|t| t.id == thread);
            // Where the thread is gone or has come to run, it is behind.
            match t {
                Some(t) => t.clock < clock || c.place.point == self.first(),
                None => !self.has_been(thread, c.place.point),
            }
        };
        let from = self
            .checkpoints
            .values()
            .rev()
            .find(|c| is_before(c))
            .map_or_else(|| self.first(), |c| c.place.point);
        let c = self.checkpoints.get_mut(&from);
        let Some(c) = c else {
            return Err(Error::Refused("there is no checkpoint".into()));
        };
        let (engine, work) = (c.engine.fork()?, c.work);
        self.moved(engine, work, None);
        self.current.look_out(&LookOut::default())?;
        let before = Run {
            until: Some((thread, clock.saturating_sub(1))),
            ..Run::default()
        };
        if self.stops_before(before, poll)? {
            return Ok(Reason::Interrupted);
        }
        loop {
            let here = self.place();
            if self.ended.is_some() {
                break;
            }
            let mut run = Run {
                until: Some((thread, clock)),
                ..Run::default()
            };
            if here.thread == thread && here.point.clock >= clock {
                let found = pc.is_none_or(|pc| (here.point.clock, here.point.pc) == (clock, pc));
                if found {
                    return Ok(Reason::Done);
                }
                let pc = pc.unwrap_or(0);
                if here.point.clock > clock || here.point.pc > pc {
                    break;
                }
                run = Run {
                    goal: Some(Point {
                        event: here.point.event,
                        clock,
                        pc,
                    }),
                    ..Run::default()
                };
            }
            match self.forwards(run, poll)?.why {
                Why::End(_) => break,
                Why::Work => return Ok(Reason::Interrupted),
                _ => {}
            }
        }
        self.go_to_point(present, poll)?;
        Err(Error::Refused(format!(
            "thread {thread} never is at clock {clock}{}",
            pc.map(|pc| format!(", pc {pc:#x}")).unwrap_or_default()
        )))
    }

    /// Runs up to a little before where somebody wants to go, and makes a checkpoint there if that is far from the last one:
    /// who has come there goes on in small steps, also backwards. True: interrupted.
    fn stops_before(&mut self, run: Run, poll: Poll<'_>) -> Result<bool> {
        let work = self.work;
        let stopped = self.forwards(run, poll)?;
        match stopped.why {
            Why::Work => return Ok(true),
            Why::End(_) => {}
            _ if self.work - work < WORTH => {}
            _ => self.checkpoint_near()?,
        }
        Ok(false)
    }

    /// Whether a thread was seen at or before a moment.
    fn has_been(&self, thread: u32, point: Point) -> bool {
        self.checkpoints
            .range(..=point)
            .any(|(_, c)| c.threads.iter().any(|t| t.id == thread))
    }

    /// What was met last before `upper`, with what is looked out for now.
    fn last_met(
        &mut self,
        upper: Point,
        looks_out: &LookOut,
        except: Option<Place>,
        poll: Poll<'_>,
    ) -> Result<Option<Hit>> {
        let mut upper = upper;
        while let Some((_, c)) = self.checkpoints.range_mut(..upper).next_back() {
            let from = c.place.point;
            let mut engine = c.engine.fork()?;
            engine.look_out(looks_out)?;
            let run = Run {
                goal: Some(upper),
                collect: Collect::Hits,
                except,
                work: QUANTUM,
                ..Run::default()
            };
            let mut last = None;
            loop {
                let stopped = engine.run(run)?;
                last = stopped.last.or(last);
                if stopped.why != Why::Work {
                    break;
                }
                if poll() {
                    return Ok(None);
                }
            }
            if last.is_some() {
                return Ok(last);
            }
            upper = from;
        }
        Ok(None)
    }

    /// Goes back to what was met last.
    ///
    /// # Errors
    /// The process is gone.
    pub fn go_back(&mut self, poll: Poll<'_>) -> Result<Reason> {
        let present = self.place();
        let looks_out = self.looks_out.clone();
        let mut interrupted = false;
        let mut asked = || {
            interrupted |= poll();
            interrupted
        };
        let hit = if looks_out.is_empty() {
            None
        } else {
            self.last_met(present.point, &looks_out, Some(present), &mut asked)?
        };
        if interrupted {
            return Ok(Reason::Interrupted);
        }
        match hit {
            Some(hit) => {
                if self.go_near(hit.place, poll)? {
                    return Ok(Reason::Interrupted);
                }
                let came = self.go_to_point(hit.place.point, poll)?;
                if came == Reason::Interrupted {
                    return Ok(came);
                }
                Ok(match hit.why {
                    Why::Watch(w) => Reason::Watch(w),
                    Why::Call { nr, done } => Reason::Call { nr, done },
                    Why::Forked { pid, vfork } => Reason::Forked { pid, vfork },
                    _ => Reason::Break,
                })
            }
            None => match self.go_to_point(self.first(), poll)? {
                Reason::Interrupted => Ok(Reason::Interrupted),
                _ => Ok(Reason::Start),
            },
        }
    }

    /// Goes to where a thread was before its last instruction.
    ///
    /// # Errors
    /// The process is gone.
    pub fn step_back(&mut self, thread: u32, poll: Poll<'_>) -> Result<Reason> {
        let present = self.place();
        let clock = self
            .threads()?
            .iter()
            .find(|t| t.id == thread)
            .map_or(present.point.clock, |t| t.clock);
        let from_clock = clock.saturating_sub(1);
        let mut upper = present.point;
        while let Some((_, c)) = self.checkpoints.range_mut(..upper).next_back() {
            let from = c.place.point;
            let (engine, work) = (c.engine.fork()?, c.work);
            self.moved(engine, work, None);
            self.current.look_out(&LookOut::default())?;
            // Up to where single steps begin, which is worth a checkpoint: the next step back is there too.
            let near = Run {
                goal: Some(present.point),
                until: Some((thread, from_clock)),
                ..Run::default()
            };
            let stopped = self.forwards(near, poll)?;
            if stopped.why == Why::Work {
                self.go_to_point(present.point, &mut || false)?;
                return Ok(Reason::Interrupted);
            }
            if stopped.place.point < present.point {
                self.checkpoint_near()?;
                let steps = Run {
                    goal: Some(present.point),
                    collect: Collect::Steps {
                        thread,
                        clock: from_clock,
                    },
                    ..Run::default()
                };
                let mut last = None;
                loop {
                    let stopped = self.current.run(Run {
                        work: QUANTUM,
                        ..steps
                    })?;
                    last = stopped.last.or(last);
                    if stopped.why != Why::Work {
                        break;
                    }
                    if poll() {
                        self.go_to_point(present.point, &mut || false)?;
                        return Ok(Reason::Interrupted);
                    }
                }
                self.pages.clear();
                if let Some(hit) = last {
                    return self.go_to_point(hit.place.point, poll);
                }
            }
            upper = from;
        }
        // The thread is in front of its first instruction: others may have a history, it has none. To go to the start of the
        // recording would be a step over all that they did.
        self.go_to_point(present.point, poll)?;
        Ok(Reason::Start)
    }

    /// The last write to memory before the present moment, and the moment it was made in.
    ///
    /// # Errors
    /// The process is gone.
    pub fn last_write(&mut self, addr: u64, len: u64, poll: Poll<'_>) -> Result<Option<Place>> {
        let watch = Watch {
            addr,
            len,
            access: Access::Write,
        };
        let upper = self.place().point;
        let looks_out = LookOut {
            watches: vec![watch],
            ..LookOut::default()
        };
        let hit = self.last_met(upper, &looks_out, None, poll)?;
        Ok(hit.map(|h| h.place))
    }
}

fn ended(why: &Why) -> Option<String> {
    match why {
        Why::End(how) => Some(how.clone()),
        _ => None,
    }
}

//! A thread's log: written when recording, followed when replaying.

use crate::diag::Level;
use crate::start::Failure;
use crate::thread::Thread;
use crewind_trace::event::{Event, Record, Stop};
use crewind_trace::{StreamReader, StreamWriter};
use std::borrow::Cow;
use std::collections::VecDeque;

/// The log of one thread.
pub enum Log {
    /// Recording.
    Record(StreamWriter),
    /// Nothing is recorded yet, or any more: what would be logged is forgotten.
    Off,
    /// Replaying.
    Replay(Box<Follower>),
    /// The thread has ended, or another process writes it.
    Closed,
}

/// Events shown around a divergence.
const CONTEXT: usize = 6;

/// The reading side, with one record of look-ahead, and one more where that is asked for.
pub struct Follower {
    reader: StreamReader,
    /// Records that are replayed.
    extent: u64,
    next: Option<Record<'static>>,
    after: Option<Record<'static>>,
    /// The last events without their data, and how much that was.
    recent: VecDeque<(Record<'static>, usize)>,
    /// Why there is no next record, when that is not the end of the stream.
    failure: Option<String>,
}

impl Follower {
    /// Starts following a stream, behind its first `skip` records and not beyond its first `extent`.
    ///
    /// # Errors
    /// The stream is damaged.
    pub fn new(mut reader: StreamReader, skip: u64, extent: u64) -> crewind_trace::Result<Self> {
        while reader.seq() < skip.min(extent) {
            if reader.next()?.is_none() {
                break;
            }
        }
        let mut f = Follower {
            reader,
            extent,
            next: None,
            after: None,
            recent: VecDeque::new(),
            failure: None,
        };
        f.advance()?;
        Ok(f)
    }

    fn advance(&mut self) -> crewind_trace::Result<()> {
        self.next = match self.after.take() {
            Some(r) => Some(r),
            None if self.reader.seq() >= self.extent => None,
            None => self.reader.next()?.map(Record::into_owned),
        };
        Ok(())
    }

    /// The record behind the next one. (An error is met again when it is the next.)
    fn second(&mut self) -> Option<&Record<'static>> {
        if self.after.is_none() && self.next.is_some() && self.reader.seq() < self.extent {
            self.after = self.reader.next().ok()?.map(Record::into_owned);
        }
        self.after.as_ref()
    }

    /// Keeps an event, to be shown if something goes wrong soon. Without its data, which is not shown.
    fn note(&mut self, record: &Record<'static>) {
        let mut bytes = 0;
        let event = match &record.event {
            Event::Syscall {
                nr,
                args,
                ret,
                outs,
                output,
                turn,
            } => {
                bytes = outs.iter().map(|o| o.data.len()).sum();
                Event::Syscall {
                    nr: *nr,
                    args: args.clone(),
                    ret: *ret,
                    outs: Vec::new(),
                    output: *output,
                    turn: *turn,
                }
            }
            Event::Image { .. } => Event::Image {
                info: Cow::Borrowed(&[]),
            },
            other => other.clone(),
        };
        if self.recent.len() == CONTEXT {
            self.recent.pop_front();
        }
        self.recent.push_back((Record { event, ..*record }, bytes));
    }

    /// The next record, `None` at the end of the stream.
    pub fn peek(&self) -> Option<&Record<'static>> {
        self.next.as_ref()
    }

    /// Records consumed so far.
    pub fn consumed(&self) -> u64 {
        self.reader.seq() - u64::from(self.next.is_some()) - u64::from(self.after.is_some())
    }
}

impl Thread {
    /// Appends an event at the thread's present position.
    pub fn append(&mut self, event: Event<'_>) {
        let (clock, pc) = (self.ctx().clock(), self.ctx().rip);
        let regs = self.reg_hash();
        self.append_at(clock, pc, regs, event);
    }

    /// Appends an event at a position noted earlier. In a parallel recording its place in the order, and what it comes
    /// behind, go in front.
    pub fn append_at(&mut self, clock: u64, pc: u64, regs: u32, event: Event<'_>) {
        if matches!(self.log, Log::Off) {
            return self.nothing_logged();
        }
        let is_call = matches!(event, Event::Syscall { .. });
        if !is_call && !matches!(event, Event::Shared { .. }) {
            let writes = crate::shared::take_pending();
            if !writes.is_empty() {
                let step = false;
                self.append_at(clock, pc, 0, Event::Shared { step, writes });
            }
        }
        if let Some(par) = crate::par::get() {
            // Signals come at any tick, and a thread is ended anywhere: replay has to look out for these.
            let stop = match &event {
                Event::Killed
                | Event::Shared { .. }
                | Event::Signal {
                    synchronous: false, ..
                } => Stop::Find,
                _ => Stop::Comes,
            };
            // The instruction of such an event has been done by now.
            let before = matches!(event, Event::Shared { .. }).then_some(regs);
            self.log_order(par, (clock, pc), stop, before);
        }
        self.append_record(clock, pc, regs, event);
        if is_call
            && std::mem::take(&mut self.maps)
            && let Some(par) = crate::par::get()
        {
            par.mapping_changed(self);
        }
    }

    /// Appends what the thread waited for, at its present position.
    pub(crate) fn append_sync(&mut self, event: Event<'_>) {
        let at = (self.ctx().clock(), self.ctx().rip);
        self.append_sync_at(at, event);
    }

    /// As above, at a position noted earlier.
    pub(crate) fn append_sync_at(&mut self, at: (u64, u64), event: Event<'_>) {
        let regs = match &event {
            Event::Sync {
                stop: Stop::Find, ..
            } => self.gpr_hash(),
            // The registers may have changed since.
            _ => 0,
        };
        self.append_sync_with(at, regs, event);
    }

    /// As above, with the hash of the registers there; 0 if it is not known.
    pub(crate) fn append_sync_with(&mut self, at: (u64, u64), regs: u32, event: Event<'_>) {
        self.append_record(at.0, at.1, regs, event);
    }

    /// Not recording: what an event would have been ordered by is of no interest.
    fn nothing_logged(&mut self) {
        self.edges.clear();
        self.vcpu_note = None;
        self.read_shared_code = false;
        self.maps = false;
    }

    pub(crate) fn append_record(&mut self, clock: u64, pc: u64, regs: u32, event: Event<'_>) {
        let record = Record {
            clock,
            pc,
            regs,
            event,
        };
        if crate::diag::enabled(Level::Debug) {
            crate::log!(
                Level::Debug,
                "t{} {}",
                self.id.0,
                crate::diverge::brief(&record)
            );
        }
        if matches!(self.log, Log::Off) {
            return self.nothing_logged();
        }
        let Log::Record(w) = &mut self.log else {
            crate::diag::die(
                Failure::Internal,
                format_args!("append to a log that is replayed"),
            );
        };
        if let Err(e) = w.append(&record) {
            crate::report::fail(Failure::Usage, format_args!("cannot go on recording: {e}"));
        }
        self.completed += 1;
    }

    /// Replaying: the next record.
    pub fn upcoming(&self) -> Option<&Record<'static>> {
        match &self.log {
            Log::Replay(f) => f.peek(),
            _ => None,
        }
    }

    /// Replaying: the record behind that.
    pub fn second(&mut self) -> Option<&Record<'static>> {
        match &mut self.log {
            Log::Replay(f) => f.second(),
            _ => None,
        }
    }

    /// Replaying: takes the next record, which `upcoming` showed.
    pub fn take(&mut self) -> Option<Record<'static>> {
        let id = self.id.0;
        let Log::Replay(f) = &mut self.log else {
            return None;
        };
        let record = f.next.take()?;
        self.was_killed |= matches!(record.event, Event::Killed);
        self.completed += 1;
        crate::debug::count();
        if crate::diag::enabled(Level::Debug) {
            crate::log!(Level::Debug, "t{id} {}", crate::diverge::brief(&record));
        }
        f.note(&record);
        if let Err(e) = f.advance() {
            // What came before is good; the failure is met when the missing record is needed.
            f.failure = Some(format!("({e})"));
            f.next = None;
        }
        Some(record)
    }

    /// Replaying: the last events before the present position, oldest first.
    pub fn recent(&self) -> Vec<String> {
        match &self.log {
            Log::Replay(f) => f
                .recent
                .iter()
                .map(|(record, bytes)| crate::diverge::brief_with(record, *bytes))
                .chain(f.failure.clone())
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Replaying: the clock of the next event, if it is one that comes at a tick; `u64::MAX` if not.
    pub fn due_tick(&self) -> u64 {
        match self.upcoming() {
            Some(r) => match &r.event {
                Event::Signal {
                    synchronous: false, ..
                }
                | Event::Preempt { .. }
                // It may have been waiting for its next turn there.
                | Event::Killed => r.clock,
                _ => u64::MAX,
            },
            None => u64::MAX,
        }
    }

    /// Replaying: arms the clock for the next event that comes at a tick, if that is what comes next.
    pub fn arm(&mut self) {
        let at = self.due_tick();
        let ctx = self.ctx();
        if ctx.tick_at != at {
            ctx.set_limit(at);
        }
    }
}

impl Thread {
    /// Replaying: the log has nothing more for any thread of this process, which therefore ends. In a `complete`
    /// trace it was killed from outside (SIGKILL).
    pub fn log_is_over(&mut self, complete: bool, trace: &std::path::Path) -> ! {
        let own = (self.id, self.consumed());
        self.logs_are_over(complete, trace, &[own])
    }

    /// Records of the log that the replay has done.
    pub fn consumed(&self) -> u64 {
        match &self.log {
            Log::Replay(f) => f.consumed(),
            _ => 0,
        }
    }

    /// As above; the threads that have come to the ends of their logs, with as many records done, are these: others wait for
    /// them.
    pub fn logs_are_over(
        &mut self,
        complete: bool,
        trace: &std::path::Path,
        ended: &[(crewind_trace::event::ThreadId, u64)],
    ) -> ! {
        let failure = match &self.log {
            Log::Replay(f) => f.failure.clone(),
            _ => None,
        };
        if complete && failure.is_none() {
            for (id, found) in ended {
                let stated = records_stated(trace, *id);
                if *found < stated {
                    crate::report::fail(
                        Failure::TraceEnd,
                        format_args!(
                            "the trace is damaged: of the {stated} records of thread t{} it has only {found}, which were replayed",
                            id.0
                        ),
                    );
                }
            }
            crate::runtime::Runtime::debug_failure(crate::process::end::KILLED);
            crate::process::die_of(libc::SIGKILL as u32);
        }
        let clock = self.ctx().clock();
        let last = self.recent().pop().unwrap_or_default();
        let message = format!(
            "the trace ends here: thread t{} at clock {clock}, after: {last}; everything up to this point was replayed",
            self.id.0
        );
        if failure.is_some() {
            crate::report::fail(Failure::TraceEnd, format_args!("{message}"));
        }
        crate::report::stream_ends(self.id.0, message)
    }

    /// Replaying: all other threads of the process have come to the ends of their logs, and none passed this thread
    /// the turn that its log says it got. A `complete` trace has every turn that was taken before one that it has.
    pub fn turn_never_comes(&mut self, complete: bool, trace: &std::path::Path) -> ! {
        if complete {
            crate::report::fail(
                Failure::TraceEnd,
                format_args!(
                    "the trace is damaged: thread t{} waits for a turn that no other thread's log leads to",
                    self.id.0
                ),
            );
        }
        self.log_is_over(complete, trace)
    }
}

/// How many records a finished trace says that a thread has.
pub fn records_stated(trace: &std::path::Path, thread: crewind_trace::event::ThreadId) -> u64 {
    let end = crewind_trace::TraceDir::open(trace).and_then(|t| t.end());
    end.ok()
        .flatten()
        .and_then(|end| end.threads.get(&thread.0).copied())
        .unwrap_or(0)
}

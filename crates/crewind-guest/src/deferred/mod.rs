//! Runs that are recorded only when somebody asks for it: `crewind run`.
//!
//! Such a run is a recording whose logs are off ([`Log::Off`]): everything is done as for a recording, and what would be
//! logged is forgotten. With threads it has the parallel state of a recording, without rights to memory, so that all
//! threads run at full speed. A recording begins with a checkpoint: the world stands still, memory and the state of all
//! threads go to a new trace, and the logs are on. It ends when the logs are off again. Nothing else changes for the
//! program.
//!
//! # Who may begin and end a recording
//! The program itself (`calls`), and the control thread (`control`), a host thread of the runtime that others talk to.
//! Both do so only while the world stands still:
//! - With threads in parallel: with the runtime lock, and all other threads out of guest code.
//! - With one thread: with the [`TOKEN`], which the thread has whenever it is not in a system call that may block. It
//!   lets others have it where it stands between two instructions ([`let_others_in`]).
//!
//! # What is not recorded
//! One process is. Its children are left out of the trace, except those of `vfork` until they execute a program, because
//! they change its memory.

pub(crate) mod calls;
pub mod checkpoint;
mod control;
mod function;

pub use control::socket_name;
mod memory;
mod missed;
mod restore;

pub(crate) use restore::first_record;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::log::Log;
use crate::par::lock::Lock;
use crate::par::{self, Par};
use crate::process::clone::open_writer;
use crate::runtime::{self, HOLDER, Runtime};
use crate::start::{Deferred, Report};
use crate::syscall::Call;
use crate::thread::Thread;
use crewind_trace::event::{Event, ProcId, Record, StartHow, ThreadId};
use crewind_trace::{FileStore, Meta, Session, TraceDir};
use crewind_x86::Exit;

/// What a process does about its recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Phase {
    /// Nothing is recorded.
    Off = 0,
    /// A recording is being begun or ended.
    Changing = 1,
    /// It is recorded.
    Recording = 2,
    /// A recorded order of `rec_owner` calls is followed in place.
    Following = 3,
    /// A recording has ended, and its trace is being completed.
    Finishing = 4,
}

static PHASE: AtomicU32 = AtomicU32::new(Phase::Off as u32);

fn phase() -> Phase {
    match PHASE.load(Ordering::Acquire) {
        0 => Phase::Off,
        1 => Phase::Changing,
        2 => Phase::Recording,
        3 => Phase::Following,
        _ => Phase::Finishing,
    }
}

fn set_phase(p: Phase) {
    PHASE.store(p as u32, Ordering::Release);
}

/// Makes one phase another; false when it was a different one.
fn change_phase(from: Phase, to: Phase) -> bool {
    PHASE
        .compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Acquire)
        .is_ok()
}

/// Whether this process is of such a run: then x87 state is noted where threads let others in.
static DEFERRED: AtomicBool = AtomicBool::new(false);

/// Had by the one thread of a process unless it is in a call that may block.
static TOKEN: Lock = Lock::new();
/// The control thread wants the token.
static WANTED: AtomicU32 = AtomicU32::new(0);

/// State of such a run.
pub struct State {
    options: Deferred,
    /// Number of the next thread, while there is no session that says.
    next_thread: u32,
    /// The recording under way.
    active: Option<Active>,
    calls: calls::Calls,
    /// A recording begins where this is first called.
    function: Option<function::Function>,
}

/// A recording under way.
struct Active {
    trace: PathBuf,
    /// The process that writes memory.
    writer: i32,
}

impl State {
    /// Of a process that begins, with its one thread having the token.
    pub fn new(options: &Deferred) -> Box<State> {
        DEFERRED.store(true, Ordering::Relaxed);
        TOKEN.mine();
        Box::new(State {
            options: options.clone(),
            next_thread: 2,
            active: None,
            calls: calls::Calls::default(),
            function: (options.start_function.as_deref()).map(function::Function::new),
        })
    }
}

/// Notes what only the calling host thread can see of its guest thread, before others may go on.
pub(crate) fn note_x87(th: &mut Thread) {
    if DEFERRED.load(Ordering::Relaxed) {
        th.x87.note();
    }
}

/// The one thread of a process is about to be in a call that may block.
pub(crate) fn step_aside(th: &mut Thread) {
    note_x87(th);
    TOKEN.unlock();
}

/// It is out of it.
pub(crate) fn come_back() {
    TOKEN.lock();
}

/// The one thread of a process stands between two instructions.
pub(crate) fn let_others_in(th: &mut Thread) {
    if WANTED.load(Ordering::Acquire) == 0 {
        return;
    }
    step_aside(th);
    while WANTED.load(Ordering::Acquire) != 0 {
        std::thread::yield_now();
    }
    come_back();
}

/// There are threads in parallel now: the runtime lock is what counts.
pub(crate) fn now_parallel() {
    if DEFERRED.load(Ordering::Relaxed) {
        TOKEN.unlock();
    }
}

/// Starts listening to requests from outside, in a process that has just begun.
pub(crate) fn listen(rt: &mut Runtime) {
    if let Some(state) = &rt.deferred {
        control::start(&state.options);
    }
    rt.look_for_function(None);
}

/// The world standing still for a host thread that runs no guest thread.
struct Still {
    par: Option<&'static Par>,
}

impl Still {
    fn bring() -> Still {
        WANTED.store(1, Ordering::Release);
        while !TOKEN.try_lock() {
            let ctx = HOLDER.load(Ordering::Acquire);
            if !ctx.is_null() && par::get().is_none() {
                // SAFETY: contexts are thread-locals of threads that clear this before they end.
                unsafe { crewind_x86::ctx::Ctx::request_stop(ctx) };
            }
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        WANTED.store(0, Ordering::Release);
        let par = par::get();
        if let Some(par) = par {
            par.stop_for_control();
        }
        Still { par }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if let Some(par) = self.par {
            par.go_on_after_control();
        }
        TOKEN.unlock();
    }
}

/// Why a recording cannot begin or end.
#[derive(Debug)]
pub(crate) struct Refused {
    /// What a call returns.
    pub errno: i32,
    /// For people.
    pub why: String,
}

fn refused(errno: i32, why: impl Into<String>) -> Refused {
    Refused {
        errno,
        why: why.into(),
    }
}

impl Runtime {
    /// Whether a recording is under way that ends before its process does.
    pub(crate) fn records_a_part(&self) -> bool {
        self.deferred.as_ref().is_some_and(|d| d.active.is_some())
    }

    /// Whether the program repeats a recorded order in place.
    pub(crate) fn follows_order(&self) -> bool {
        phase() == Phase::Following
    }

    /// The number of a new thread.
    pub(crate) fn number_of_new_thread(&mut self) -> Option<ThreadId> {
        if let Some(session) = &self.session {
            return Some(session.next_thread());
        }
        let state = self.deferred.as_mut()?;
        state.next_thread += 1;
        Some(ThreadId(state.next_thread - 1))
    }

    /// The child of a fork: nothing of it is recorded.
    pub(crate) fn begin_unrecorded(&mut self, th: &mut Thread) {
        if let Log::Record(w) = std::mem::replace(&mut th.log, Log::Off) {
            w.detach();
        }
        let Some(state) = &mut self.deferred else {
            return;
        };
        state.options.start_now = false;
        if state.function.is_none() {
            // Its parent has got there.
            state.options.start_function = None;
        }
        *state = State::new(&state.options);
        WANTED.store(0, Ordering::Release);
        set_phase(Phase::Off);
        self.session = None;
        self.proc = ProcId(1);
        listen(self);
    }

    /// Replaying: a thread that was in a system call when the recording began goes on from there.
    pub(crate) fn begins_in_call(&mut self, th: &mut Thread) -> Option<Exit> {
        /// Length of a `syscall` instruction.
        const SYSCALL: u64 = 2;
        if !std::mem::take(&mut th.begins_in_call) {
            return None;
        }
        Some(Exit::Syscall {
            next: th.ctx().rip + SYSCALL,
        })
    }

    /// Whether a signal is one that begins a recording.
    pub(crate) fn is_start_signal(&self, signo: u32) -> bool {
        self.deferred
            .as_ref()
            .is_some_and(|d| d.options.start_signal == Some(signo))
    }

    /// It has come.
    pub(crate) fn start_by_signal(&mut self) {
        control::begin_soon();
    }

    /// Begins a recording. The world stands still, the phase is [`Phase::Changing`], and the calling thread's own
    /// x87 state has been noted.
    fn begin_recording(&mut self) -> Result<PathBuf, Refused> {
        let began = std::time::Instant::now();
        let begun = self.try_begin();
        crate::log!(
            crate::diag::Level::Info,
            "the process stood still for {:?} while its recording began",
            began.elapsed()
        );
        set_phase(if begun.is_ok() {
            Phase::Recording
        } else {
            Phase::Off
        });
        begun
    }

    fn try_begin(&mut self) -> Result<PathBuf, Refused> {
        self.can_be_saved()?;
        if self.space.has_shared_writable() {
            self.warn_once(libc::SYS_mmap as u32, format_args!("the program shares writable memory with other processes; a recording that begins in the middle of a run does not have what they write there from now on, and a replay that depends on it diverges"));
        }
        let _lifted = crewind_trace::LiftedLimits::new();
        let cannot = |e: crewind_trace::TraceError| {
            refused(libc::EIO, format!("the trace cannot be written: {e}"))
        };
        let trace = self.make_trace().map_err(cannot)?;
        let path = trace.path().to_owned();
        let session = Session::create(&path).map_err(cannot)?;
        self.store = FileStore::open(&self.exec.trace_root, &path).map_err(cannot)?;
        self.keep_first_thread();
        let last = self.threads.keys().next_back().map_or(1, |t| t.0);
        while session.next_thread().0 < last {}
        session.next_proc();
        if let Some(par) = self.par {
            let vcpus = self.options.parallel() as usize;
            par.begin_logging(vcpus).map_err(|e| {
                refused(
                    libc::ENOMEM,
                    format!("no memory for recording threads: {e}"),
                )
            })?;
        }
        let mut image = self.image.clone();
        for f in &mut image.files {
            if let Some(stored) = self.store_by_path(&f.path.0, f.dev, f.ino) {
                (f.hash, f.len) = (stored.hash, stored.len);
            }
        }
        let (checkpoint, ranges) = self.checkpoint();
        image.checkpoint = Some(Box::new(checkpoint));
        let writer = memory::write(&path, ranges)
            .map_err(|e| refused(libc::EIO, format!("memory cannot be saved: {e}")))?;
        self.trace = path.clone();
        self.session = Some(session);
        self.file_data = crate::filedata::FileData::default();
        self.begin_logs(&image.to_bytes());
        if let Some(state) = &mut self.deferred {
            state.active = Some(Active {
                trace: path.clone(),
                writer,
            });
        }
        self.begin_region();
        Report::Began {
            trace: path.clone(),
        }
        .send(self.exec.control);
        Ok(path)
    }

    fn make_trace(&self) -> crewind_trace::Result<TraceDir> {
        use std::os::unix::ffi::OsStringExt;
        let Some(state) = &self.deferred else {
            return TraceDir::open(std::path::Path::new(""));
        };
        let vcpus = self.options.parallel();
        let options = crewind_trace::Options {
            cpus: vcpus,
            pkeys: false,
            checksum: false,
            more: state.options.more.clone(),
        };
        let argv: Vec<_> = (self.image.argv.iter())
            .map(|a| std::ffi::OsString::from_vec(a.0.clone()))
            .collect();
        let cwd = std::env::current_dir().unwrap_or_default();
        let meta = Meta::now(&argv, &cwd, options);
        let root = &self.exec.trace_root;
        if let Some(output) = &state.options.output {
            let trace = TraceDir::create_at(output, meta)?;
            // Whether it becomes the latest changes nothing about it.
            let _ = TraceDir::point_latest(root, trace.path());
            return Ok(trace);
        }
        let name: String = String::from_utf8_lossy(self.image.comm())
            .chars()
            .map(|c| {
                if c.is_alphanumeric() || "_+-".contains(c) {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        let base = if name.is_empty() { "trace" } else { &name };
        TraceDir::create_numbered(root, base, meta)
    }

    /// A trace's first stream is that of thread 1, which may have ended long ago: then the oldest one takes its number.
    fn keep_first_thread(&mut self) {
        if self.threads.contains_key(&ThreadId(1)) {
            return;
        }
        if let Some((number, oldest)) = self.threads.pop_first() {
            // SAFETY: the world stands still.
            unsafe { (*oldest.0).id = ThreadId(1) };
            if let Some(par) = self.par {
                par.renumber(number, ThreadId(1));
            }
            self.threads.insert(ThreadId(1), oldest);
        }
    }

    /// Turns the logs on, each with what a stream begins with.
    fn begin_logs(&mut self, image: &[u8]) {
        let threads: Vec<_> = self.threads.iter().map(|(id, t)| (*id, t.0)).collect();
        for (id, t) in threads {
            // SAFETY: the world stands still.
            let th = unsafe { &mut *t };
            th.completed = 0;
            th.edges.clear();
            th.known.clear();
            th.epoch = 0;
            th.log = open_writer(&self.trace, id);
            let first: Vec<Event<'_>> = if id == ThreadId(1) {
                vec![
                    Event::ProcessStart {
                        proc: ProcId(1),
                        parent: None,
                        how: StartHow::Root,
                        pid: self.pid,
                    },
                    Event::Image { info: image.into() },
                ]
            } else if th.started {
                vec![Event::ThreadStart {
                    proc: ProcId(1),
                    tid: th.tid,
                    turn: 0,
                }]
            } else {
                Vec::new()
            };
            let regs = th.reg_hash();
            let ctx = th.ctx();
            let (clock, pc) = (ctx.clock(), ctx.rip);
            for event in first {
                th.append_record(clock, pc, regs, event);
            }
        }
    }

    /// Ends the recording where all threads stand. `by` is the thread that ends it by a system call. The world stands
    /// still, and the phase is [`Phase::Changing`]; it stays so until [`finish`].
    fn end_recording(&mut self, by: Option<(&mut Thread, &Call)>) -> Option<Active> {
        let active = self.deferred.as_mut()?.active.take()?;
        if let Some((th, call)) = by {
            let end = Event::ProcessExit {
                status: Some(0),
                signal: None,
                memory: None,
            };
            th.append_at(call.clock, call.pc, call.regs, end);
            Self::finish_log(&mut th.log);
        }
        let threads: Vec<_> = self.threads.values().map(|t| t.0).collect();
        for t in threads {
            // SAFETY: the world stands still.
            let th = unsafe { &mut *t };
            if matches!(th.log, Log::Record(_)) {
                th.append(Event::Killed);
                Self::finish_log(&mut th.log);
            }
            th.log = Log::Off;
        }
        if let Some(par) = self.par {
            par.end_logging();
        }
        let last = self.threads.keys().next_back().map_or(1, |t| t.0);
        if let Some(state) = &mut self.deferred {
            state.next_thread = last.max(state.next_thread) + 1;
            if let Some(session) = self.session.take() {
                state.next_thread = state.next_thread.max(session.next_thread().0);
            }
        }
        self.trace = PathBuf::new();
        set_phase(Phase::Finishing);
        Some(active)
    }

    /// The process is about to end or to execute a program: what its trace began with has to be there.
    pub(crate) fn last_of_recording(&mut self) -> Option<PathBuf> {
        if self.in_vfork {
            return None;
        }
        // Whoever asked for the end is to be told that the trace is complete.
        let began = std::time::Instant::now();
        while self.deferred.is_some() && phase() == Phase::Finishing && began.elapsed() < PATIENCE {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let active = self.deferred.as_mut()?.active.take()?;
        memory::wait(active.writer);
        Some(active.trace)
    }

    /// The process executes a program: its recording ends here.
    pub(crate) fn recording_ends_at_exec(&mut self, th: &mut Thread, call: &Call) {
        self.end_logs_at_exec(th, call);
        if let Some(trace) = self.last_of_recording() {
            Report::Ended { trace }.send(self.exec.control);
        }
    }
}

/// So long completing a trace may take: compressing takes a second per gigabyte or so.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Waits until the trace of a recording that has ended is complete, and lets the next one begin.
fn finish(active: Active, control: i32) -> PathBuf {
    memory::wait(active.writer);
    Report::Ended {
        trace: active.trace.clone(),
    }
    .send(control);
    let began = std::time::Instant::now();
    // The supervisor compresses it: it may open files as it likes, which this process may not.
    while !active.trace.join("end.json").exists() && began.elapsed() < PATIENCE {
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
    set_phase(Phase::Off);
    active.trace
}

/// For a replay: a record that has to be the next one of a thread that the recording began with.
fn is_start(r: Option<&Record<'_>>) -> bool {
    matches!(r.map(|r| &r.event), Some(Event::ThreadStart { .. }))
}

/// The runtime, for the control thread.
///
/// # Safety
/// The world stands still.
unsafe fn runtime_of_control(_still: &mut Still) -> &mut Runtime {
    // SAFETY: by contract; nobody else is in the runtime.
    unsafe { runtime::get() }
}

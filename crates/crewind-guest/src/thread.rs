//! A guest thread: its context, signal state and log.

use std::cell::{Cell, UnsafeCell};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::log::Log;
use crate::signal::{SigInfo, Stack};
use crewind_trace::event::{Edge, ThreadId};
use crewind_x86::ctx::Ctx;
use crewind_x86::{CheckedRange, CodeCache};

thread_local! {
    static CURRENT: Cell<*mut Thread> = const { Cell::new(std::ptr::null_mut()) };
}

/// The calling host thread's guest thread; null in the runtime's own threads. Async-signal-safe.
pub fn current() -> *mut Thread {
    CURRENT.with(Cell::get)
}

/// Makes `th` the calling host thread's guest thread.
pub fn set_current(th: *mut Thread) {
    CURRENT.with(|c| c.set(th));
}

/// A system call that ended with EINTR and may have to be done again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted {
    /// Its number.
    pub nr: u32,
    /// Address of its `syscall` instruction.
    pub pc: u64,
    /// True when a handler with `SA_RESTART` restarts it.
    pub restartable: bool,
}

/// A guest thread. Owned by its host thread; other threads look at it only while they hold the vcpu.
pub struct Thread {
    /// Its number in the trace.
    pub id: ThreadId,
    /// Thread id the guest sees.
    pub tid: i32,
    /// Its register context (the host thread's thread-local).
    pub ctx: *mut Ctx,
    /// 1 when `slot` holds a signal that has not been let in. Written by the host handler.
    pub pending: AtomicU32,
    /// The signal; valid while `pending` is 1, then everything is blocked on the host.
    pub slot: UnsafeCell<SigInfo>,
    /// The fault that made translated code leave with `Exit::Fault`.
    pub fault: SigInfo,
    /// Guest signal mask.
    pub mask: u64,
    /// Mask in force during the call just ended (`ppoll`, `rt_sigsuspend`, ...): what it let in is not blocked,
    /// and a handler starts from it.
    pub temp_mask: Option<u64>,
    /// Blocked synchronous signals that were sent by a process (the host cannot hold them back).
    pub held: Vec<SigInfo>,
    /// Alternate stack.
    pub altstack: Stack,
    /// Set when the last call ended with EINTR.
    pub interrupted: Option<Interrupted>,
    /// `set_tid_address`.
    pub clear_tid: u64,
    /// `set_robust_list`: head and length.
    pub robust: (u64, u64),
    /// Its stream.
    pub log: Log,
    /// Events completed since the thread's start (or its process's).
    pub completed: u64,
    /// The code cache it runs from; null as long as there is only the serial one. For the signal handler.
    pub cache: *mut CodeCache,
    /// Of a run that is recorded only when asked for: state that only its host thread can read, as it was when others
    /// could last go on.
    pub x87: crate::fpstate::X87,
    /// It is in a system call that may block, without a vcpu.
    pub in_call: bool,
    /// It has logged its start, or would have.
    pub started: bool,
    /// Replaying: its last record has come, which another thread or a request from outside brought about.
    pub was_killed: bool,
    /// Replaying: it begins in a system call that had been entered before the recording began.
    pub begins_in_call: bool,
    /// Its part in the list of `rec_owner` calls.
    pub region: crate::deferred::calls::Region,
    /// Replaying in parallel: it uses its vcpu's cache for the last stretch before an event.
    pub near: bool,
    /// Parallel: the vcpu it holds, or had last.
    pub vcpu: u8,
    /// Parallel recording: the vcpu it got, not logged yet.
    pub vcpu_note: Option<u8>,
    /// Recording in parallel: it has read code in memory that processes share. What another thread has logged of that must come first.
    pub read_shared_code: bool,
    /// Parallel recording: points of others that its next event comes behind.
    pub edges: Vec<Edge>,
    /// Parallel recording: the newest points of others that it has waited for: clock, event.
    pub known: crewind_crew::Known,
    /// Parallel recording: how often the world had been stopped at its last event in the order.
    pub epoch: u64,
    /// Parallel: it is in an event, under the runtime lock.
    pub in_event: bool,
    /// Parallel recording: the event under way changes mappings.
    pub maps: bool,
    /// Its events need no place in the order: it is a `vfork` child, for which the world stands still, or the event under way
    /// concerns only itself (`par::quick`).
    pub unordered: bool,
    /// Parallel recording: it has waited long for the vcpu that it has, and that has not been judged yet.
    pub waited_long: bool,
    /// Parallel replay: place in the order of the event under way.
    pub order: Option<u64>,
    /// Parallel replay: what others see of it.
    pub published: Option<Arc<crate::par::replay::Published>>,
    /// Parallel replay: output to be shown: where, its number, the text.
    pub output: Option<(u8, u64, Vec<u8>)>,
    /// Parallel replay: the output of the call under way has been shown.
    pub shown: bool,
    /// Kept between failed checks.
    pub(crate) ranges: Vec<CheckedRange>,
    /// As above.
    pub(crate) wants: Vec<crate::par::rights::Want>,
    /// Runs of memory that it took lately.
    pub(crate) streams: crewind_crew::Streams,
    /// What it gives back before somebody asks.
    pub(crate) later: crate::par::hold::GivesBack,
}

impl Thread {
    /// A thread with default signal state.
    pub fn new(id: ThreadId, tid: i32, log: Log) -> Box<Thread> {
        Box::new(Thread {
            id,
            tid,
            ctx: crewind_x86::ctx::ctx(),
            pending: AtomicU32::new(0),
            slot: UnsafeCell::new(SigInfo::zeroed()),
            fault: SigInfo::zeroed(),
            mask: 0,
            temp_mask: None,
            held: Vec::new(),
            altstack: Stack::default(),
            interrupted: None,
            clear_tid: 0,
            robust: (0, 0),
            log,
            completed: 0,
            cache: std::ptr::null_mut(),
            x87: crate::fpstate::X87::default(),
            in_call: false,
            started: false,
            was_killed: false,
            begins_in_call: false,
            region: Default::default(),
            near: false,
            vcpu: 0,
            vcpu_note: None,
            read_shared_code: false,
            edges: Vec::new(),
            known: crewind_crew::Known::default(),
            epoch: 0,
            in_event: false,
            maps: false,
            unordered: false,
            waited_long: false,
            order: None,
            published: None,
            output: None,
            shown: false,
            ranges: Vec::new(),
            wants: Vec::new(),
            streams: crewind_crew::Streams::default(),
            later: crate::par::hold::GivesBack::default(),
        })
    }

    /// The register context.
    pub fn ctx(&mut self) -> &mut Ctx {
        // SAFETY: the host thread's own thread-local, which outlives its `Thread`; the thread is not in
        // translated code while Rust code holds `&mut Thread`.
        unsafe { &mut *self.ctx }
    }

    /// Hash of the guest's general registers alone: for positions at which flags may be dead.
    pub fn gpr_hash(&mut self) -> u32 {
        hash(0x9e37_79b9_7f4a_7c15, &self.ctx().gpr)
    }

    /// Hash of the guest's general registers and flags, logged with every event.
    pub fn reg_hash(&mut self) -> u32 {
        let ctx = self.ctx();
        hash(
            0x9e37_79b9_7f4a_7c15u64 ^ (ctx.rflags & GUEST_FLAGS),
            &ctx.gpr,
        )
    }
}

fn hash(seed: u64, registers: &[u64; 16]) -> u32 {
    let mut h = seed;
    for r in registers {
        h = (h ^ r).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h ^= h >> 32;
    }
    h as u32
}

/// Flags that belong to the guest: status flags, DF, AC, ID.
const GUEST_FLAGS: u64 = 0x0024_0cd5;

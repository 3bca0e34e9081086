//! The runtime's state in one guest process, and the loop that runs a guest thread.
//!
//! With one vcpu (N = 1) all of it belongs to the vcpu's holder. A thread that gives the vcpu up keeps no
//! reference into it: functions that do so take `&mut Runtime`, so that nothing read before is used after.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::diag::Level;
use crate::fds::FdTable;
use crate::loader::ImageInfo;
use crate::log::Log;
use crate::mm::{Object, Space};
use crate::par::{self, Par};
use crate::replayed::ReplayShared;
use crate::sched::{self, Wait};
use crate::signal::{MAX, SigAction};
use crate::start::{Checksum, Mode, Options};
use crate::thread::Thread;
use crate::vcpu::Vcpu;
use crewind_trace::event::{Event, ProcId, ThreadId};
use crewind_trace::{FileStore, Session};
use crewind_x86::{CodeCache, CodeSource, Exit, FetchFault};

static RUNTIME: AtomicPtr<Runtime> = AtomicPtr::new(std::ptr::null_mut());

/// A thread as its siblings see it.
#[derive(Clone, Copy)]
pub struct ThreadRef(pub *mut Thread);

// SAFETY: dereferenced only by the vcpu's holder.
unsafe impl Send for ThreadRef {}

/// Everything about one guest process.
pub struct Runtime {
    /// Recording or replaying.
    pub mode: Mode,
    /// What the user chose.
    pub options: Options,
    /// The trace's directory.
    pub trace: PathBuf,
    /// Number in the trace.
    pub proc: ProcId,
    /// Process id the guest sees.
    pub pid: i32,
    /// Its address space.
    pub space: Space,
    /// Its translations.
    pub cache: Box<CodeCache>,
    /// Its signal dispositions, by number.
    pub actions: [SigAction; MAX + 1],
    /// What is known about its descriptors.
    pub fds: FdTable,
    /// Its threads.
    pub threads: BTreeMap<ThreadId, ThreadRef>,
    /// Who may run, as long as the process is serial.
    pub vcpu: Vcpu,
    /// Threads in parallel, from the second thread on, if the user wants that.
    pub par: Option<&'static Par>,
    /// The program it runs.
    pub image: ImageInfo,
    /// State that all recorded processes share (recording).
    pub session: Option<Session>,
    /// State that all replayed processes share (replaying).
    pub shared: Option<ReplayShared>,
    /// Contents of mapped files.
    pub store: FileStore,
    /// Files that are read a lot.
    pub file_data: crate::filedata::FileData,
    /// A child made by `vfork` runs in this memory: the vcpu is never given up.
    pub in_vfork: bool,
    /// What a program executed from here needs.
    pub exec: ExecContext,
    /// True once the preemption timer of this process runs.
    pub preempter: bool,
    /// Where the program was loaded.
    pub loaded: crate::loader::Loaded,
    /// Name in `ps`.
    pub comm: Vec<u8>,
    /// Replaying: the recording was ended in order, so a stream that stops belongs to a killed process.
    pub complete_trace: bool,
    /// Resource limits that are not the kernel's.
    pub limits: crate::syscall::limits::Limits,
    /// System calls the user was told about.
    pub warned: std::collections::BTreeSet<u32>,
    /// Identity of directories that list descriptors.
    pub fd_directories: std::collections::BTreeSet<(u64, u64)>,
    /// Runs a native twin beside this process, for development.
    pub lockstep: Option<Box<crate::lockstep::Lockstep>>,
    /// Replaying: the debugger that watches.
    pub debug: Option<Box<crate::debug::Debugger>>,
    /// A run that is recorded only when somebody asks for it.
    pub deferred: Option<Box<crate::deferred::State>>,
    /// Replaying: the recording began in the middle of the program.
    pub from_checkpoint: bool,
    /// Kept between system calls, so that they need no allocation.
    pub plan: crewind_syscalls::Plan,
    /// As above.
    pub ranges: Vec<crewind_syscalls::Range>,
    /// As above.
    pub changes: Vec<crewind_syscalls::FdChange>,
}

/// What `execve` passes on to the next runtime.
#[derive(Clone, Debug)]
pub struct ExecContext {
    /// The guest's personality bits.
    pub personality: u32,
    /// The guest's stack limit.
    pub stack_limit: crate::start::Limit,
    /// Control socket.
    pub control: i32,
    /// Shared replay state, or -1.
    pub shared: i32,
    /// Ways into the trace that is recorded.
    pub anchors: Option<[i32; 3]>,
    /// `/proc/self/exe` of the runtime, opened at the start.
    pub exe: i32,
    /// Where traces are kept.
    pub trace_root: std::path::PathBuf,
    /// `CREWIND_LOG`.
    pub log_level: String,
}

/// Makes `rt` the process's runtime.
pub fn install(rt: Box<Runtime>) {
    RUNTIME.store(Box::into_raw(rt), Ordering::Release);
}

/// The process's runtime.
///
/// # Safety
/// The caller holds the vcpu, and no other reference from here is in use.
pub unsafe fn get() -> &'static mut Runtime {
    // SAFETY: set once at start and never freed; exclusive by the caller's promise.
    unsafe { &mut *RUNTIME.load(Ordering::Acquire) }
}

/// The vcpu, for threads that do not hold it.
pub fn vcpu() -> &'static Vcpu {
    // SAFETY: the runtime is never freed and a vcpu is made of atomics.
    unsafe { &(*RUNTIME.load(Ordering::Acquire)).vcpu }
}

/// The code cache that a thread runs from, for the signal handler.
///
/// # Safety
/// `th` is the calling thread's. Only `contains` may be called unless the calling thread is inside translated code.
pub unsafe fn cache_for_handler(th: *const Thread) -> Option<&'static CodeCache> {
    // SAFETY: by contract.
    let own = unsafe { (*th).cache };
    if !own.is_null() {
        // SAFETY: caches of vcpus are kept as long as threads run from them.
        return Some(unsafe { &*own });
    }
    let rt = RUNTIME.load(Ordering::Acquire);
    // SAFETY: never freed once set.
    (!rt.is_null()).then(|| unsafe { &*(*rt).cache })
}

/// The translator's view of guest code.
pub(crate) struct Code<'a>(pub(crate) UnsafeCell<&'a mut Space>);

/// Code that threads may be writing is read in pieces of this size, which are acquired first.
const WRITABLE_PIECE: u64 = 1024;

/// Bytes.
const LONGEST_INSTRUCTION: u64 = 15;

impl CodeSource for Code<'_> {
    fn fetch(&self, pc: u64) -> Result<&[u8], FetchFault> {
        // SAFETY: the translator makes one call at a time and keeps no reference to the space.
        let space = unsafe { &mut **self.0.get() };
        let (_, end) = space.executable_range(pc).ok_or(FetchFault { addr: pc })?;
        let mut len = (end - pc).min(8 << 10) as usize;
        let fixed = space
            .find(pc)
            .is_some_and(|v| !v.prot.write && matches!(v.object, Object::File(_)));
        if !fixed && par::get().is_some() {
            // Reading code is reading memory. An instruction may go on on the next page.
            let rest = crate::layout::PAGE - pc % crate::layout::PAGE;
            len = len.min(rest.clamp(LONGEST_INSTRUCTION, WRITABLE_PIECE) as usize);
            par::rights::touch(pc, len as u64, false);
            // Replaying, a thread that changes this code is not kept out. The order of events says that it does so before this
            // thread executes it, or after: but not before it is read here. So from here on it is noticed.
            self.translated(pc, pc + len as u64);
        }
        if crate::shared::touches(pc, len as u64) {
            crate::shared::fetched(pc, len as u64);
        }
        // SAFETY: the space says that these bytes are mapped and readable, and only the vcpu's holder, which
        // is here, changes mappings.
        Ok(unsafe { std::slice::from_raw_parts(pc as *const u8, len) })
    }

    fn peek(&self, addr: u64) -> Option<u64> {
        crate::guestmem::peek_u64(addr)
    }

    /// What others write to memory that they share with the program comes to a replay when the recording looked at it, and code
    /// when it was translated: until then there are translations of what was there before.
    fn unsteady(&self, pc: u64) -> bool {
        // SAFETY: as above.
        let space = unsafe { &**self.0.get() };
        space.find(pc).is_some_and(|v| v.flags.shared)
    }

    fn translated(&self, start: u64, end: u64) {
        // SAFETY: as above.
        let space = unsafe { &mut **self.0.get() };
        if let Err(e) = space.note_translated(start, end) {
            crate::report::warn(format_args!(
                "changes of code at {start:#x} cannot be noticed: {e}"
            ));
        }
    }
}

/// How to go on after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Run the guest.
    Go,
    /// This thread is at its end.
    End,
}

/// How one instruction is to be run.
enum How {
    Run,
    Step,
}

impl Runtime {
    /// True when there are other threads to think of.
    pub fn multi(&self) -> bool {
        self.threads.len() > 1
    }

    /// True when guest memory is hashed at exit.
    pub fn checksums(&self) -> bool {
        self.options.checksum == Checksum::Memory
    }

    /// Throws translations away after a change of the address space.
    pub fn apply(&mut self, effects: crate::mm::Effects) {
        let ranges = effects.invalidate;
        if !ranges.is_empty() {
            crate::shared::forget_code();
        }
        match self.par {
            Some(par) if !ranges.is_empty() => self.in_all_caches(par, |c| {
                for r in &ranges {
                    c.invalidate(r.start, r.end);
                }
            }),
            _ => {
                for r in &ranges {
                    self.cache.invalidate(r.start, r.end);
                }
            }
        }
        if effects.out_of_mappings {
            crate::report::fail(
                crate::start::Failure::Unsupported,
                format_args!(
                    "the program has more memory mappings than this machine allows; raise it: sysctl vm.max_map_count=262144"
                ),
            );
        }
    }

    /// Before the kernel or the runtime writes guest memory: pages write-protected for the translator's sake
    /// become writable again.
    pub fn prepare_write(&mut self, addr: u64, len: u64) {
        if let Some(l) = &mut self.lockstep {
            l.wrote(addr, len);
        }
        let effects = self.space.prepare_kernel_write(addr, len);
        self.apply(effects);
    }

    /// Changes the caches of all vcpus, while the world stands still.
    pub fn in_all_caches(&mut self, par: &'static Par, what: impl Fn(&mut CodeCache)) {
        if crate::debug::strays() {
            // One host thread, and nobody will ever go on from where the others stand.
            let _ = par.each_cache(|c| {
                what(c);
                Ok(())
            });
            return;
        }
        let th = crate::thread::current();
        // SAFETY: the calling thread's own; callers use no field of it that is used here.
        if let Some(th) = unsafe { th.as_mut() } {
            self.invalidate_everywhere(th, par, what);
        }
    }

    fn enter(&mut self, th: &mut Thread, how: How) -> Exit {
        if let Some(par) = self.par {
            return match how {
                How::Run => self.run_parallel(th, par),
                How::Step => self.step_parallel(th, par),
            };
        }
        if self.recording() && crate::shared::active() {
            return self.run_sharing(th, matches!(how, How::Step));
        }
        let by_block = self.lockstep.as_ref().is_some_and(|l| l.by_block());
        let src = Code(UnsafeCell::new(&mut self.space));
        // SAFETY: the context is the calling thread's own; the guest may do to its memory what it likes, and
        // the runtime's is out of its sight.
        unsafe {
            match how {
                How::Run if by_block => self.cache.run_block(th.ctx, &src),
                How::Run => self.cache.run(th.ctx, &src),
                How::Step => self.cache.step(th.ctx, &src),
            }
        }
    }

    /// Runs a guest thread until it ends. The caller holds the vcpu, and no longer does on return.
    pub fn run_thread(&mut self, th: &mut Thread) {
        let mut how = How::Run;
        // Signals are let in where replay can do the same: not behind an exit that only this run has.
        let mut steady = true;
        loop {
            if self.debug.is_some() {
                self.look(th);
            }
            if self.deferred.is_some() && steady && self.par.is_none() && !self.in_vfork {
                crate::deferred::let_others_in(th);
            }
            if steady && self.let_signals_in(th) == Flow::End {
                return;
            }
            let mut stepped = None;
            if self.mode == Mode::Replay {
                if self.par.is_some() || self.from_checkpoint {
                    self.killed_here(th);
                }
                let done = th.completed;
                stepped = self.repeat_shared(th);
                if stepped.is_none() && th.completed != done {
                    // The tick that brought the thread here found this event before its own, and does not come again.
                    if self.par.is_none() && self.tick(th) == Flow::End {
                        return;
                    }
                    steady = true;
                    continue;
                }
                // Killed while it computed: how far it got is unknown, and nothing of it was seen.
                if th.upcoming().is_none() {
                    self.end_of_log(th);
                }
                th.arm();
                if self.par.is_none() {
                    self.aim_shared(th);
                }
            }
            // (In parallel `run_replaying` does this: it also lets others wait for what a single step does.)
            if self.debug.is_some() && self.par.is_none() && self.aim_debug(th) {
                how = How::Step;
            }
            let single = matches!(how, How::Step);
            if self.lockstep.is_some() {
                self.lockstep_before(th);
            }
            let next = std::mem::replace(&mut how, How::Run);
            let exit = match stepped.or_else(|| self.begins_in_call(th)) {
                Some(exit) => exit,
                None => self.enter(th, next),
            };
            if self.debug.is_some() {
                self.left_for_debug(th, &exit, single);
                if self.par.is_none() && !matches!(exit, Exit::Check { .. }) {
                    // Before it waits, during which others go on. (In parallel `run_replaying` does this.)
                    self.look(th);
                }
            }
            if self.lockstep.is_some() {
                self.lockstep_after(th, &exit);
            }
            if crate::diag::enabled(Level::Trace) {
                let (rip, clock) = (th.ctx().rip, th.ctx().clock());
                crate::log!(
                    Level::Trace,
                    "t{} {exit:?} rip {rip:#x} clock {clock}",
                    th.id.0
                );
            }
            let (clock, rip) = (th.ctx().clock(), th.ctx().rip);
            let flow = match exit {
                Exit::Syscall { next } => self.syscall(th, next),
                Exit::Tick => self.tick(th),
                Exit::Insn(insn) => self.instruction(th, &insn),
                Exit::Fault => self.fault(th, &mut how),
                Exit::FetchFault { addr } => {
                    let code = if self.space.find(addr).is_some() {
                        2
                    } else {
                        1
                    };
                    let mut info = crate::signal::SigInfo::fault(libc::SIGSEGV, code, addr);
                    (info.trapno, info.err, info.cr2) = (14, 0x14 + u64::from(code == 2), addr);
                    self.raise(th, info)
                }
                Exit::Unsupported { what } => {
                    let rip = th.ctx().rip;
                    crate::report::warn(format_args!(
                        "the program executed {what} at {rip:#x}, which crewind does not support; it gets SIGILL there. Please report this program"
                    ));
                    let mut info = crate::signal::SigInfo::fault(libc::SIGILL, 2, rip);
                    info.trapno = 6;
                    self.raise(th, info)
                }
                Exit::Break => {
                    if self.reached_function(th) {
                        how = How::Step;
                    }
                    Flow::Go
                }
                Exit::Stepped | Exit::EventSite | Exit::Check { .. } | Exit::Untranslated => {
                    Flow::Go
                }
            };
            if flow == Flow::End {
                return;
            }
            steady = matches!(exit, Exit::EventSite)
                || !matches!(exit, Exit::Fault | Exit::Stepped)
                || (clock, rip) != (th.ctx().clock(), th.ctx().rip);
        }
    }

    /// Records or repeats a preemption; signals are let in by the loop.
    fn tick(&mut self, th: &mut Thread) -> Flow {
        match self.mode {
            Mode::Record => match self.par {
                Some(par) if !self.in_vfork && par.contended() => self.preempt_parallel(th, par),
                None if self.multi() && !self.in_vfork && self.vcpu.contended() => {
                    self.preempt(th);
                }
                _ => {}
            },
            Mode::Replay => {
                let (clock, pc) = (th.ctx().clock(), th.ctx().rip);
                match th
                    .upcoming()
                    .filter(|r| r.clock == clock)
                    .map(|r| (&r.event, r.pc))
                {
                    // It may also have been preempted at the entry of a call, later at the same clock.
                    Some((Event::Preempt { .. }, at)) if at == pc => self.replay_preempt(th),
                    // The process ended while this thread, preempted here, waited for its next turn. (One that was
                    // blocked in a call goes on to that call.)
                    Some((Event::Killed, at)) if at == pc => self.park(th),
                    _ => {}
                }
            }
        }
        Flow::Go
    }

    /// Recording: gives the vcpu up at a tick and takes it again.
    pub fn preempt(&mut self, th: &mut Thread) {
        let (clock, pc, regs) = (th.ctx().clock(), th.ctx().rip, th.reg_hash());
        self.log_way_out(th);
        self.vcpu.release();
        let turn = self.vcpu.acquire();
        // Else the timer asks a thread that waits, and this one spins for ever.
        HOLDER.store(th.ctx, Ordering::Release);
        th.append_at(clock, pc, regs, Event::Preempt { turn });
    }

    /// Recording with threads that take turns: the thread is about to give the vcpu away here. If the process is killed
    /// before it goes on, nothing else says that it got this far. The turn that it still has tells this from a preemption
    /// that is over.
    pub(crate) fn log_way_out(&mut self, th: &mut Thread) {
        if !self.multi() || self.in_vfork || matches!(th.log, crate::log::Log::Off) {
            return;
        }
        let (clock, pc, regs) = (th.ctx().clock(), th.ctx().rip, th.reg_hash());
        let turn = self.vcpu.serving();
        th.append_at(clock, pc, regs, Event::Preempt { turn });
    }

    /// Replaying: does the same at the same place.
    pub fn replay_preempt(&mut self, th: &mut Thread) {
        let (clock, pc, regs) = (th.ctx().clock(), th.ctx().rip, th.reg_hash());
        loop {
            let Some(r) = self.take_record(th) else {
                return;
            };
            if r.regs != regs || r.pc != pc {
                self.diverged(th, &r, "a preemption with other registers");
            }
            let Event::Preempt { turn } = r.event else {
                return;
            };
            if turn != self.vcpu.serving() {
                self.vcpu.release();
                return self.wait_turn(th, turn);
            }
            // It is about to give the vcpu away. What came of that is next, if it was told.
            match th.upcoming() {
                None => self.end_of_log(th),
                Some(next) if (next.clock, next.pc) != (clock, pc) => return,
                Some(next) => match &next.event {
                    Event::Preempt { .. } => {}
                    Event::Killed => self.park(th),
                    _ => return,
                },
            }
        }
    }

    /// Replaying: waits until the vcpu serves `turn`.
    pub fn wait_turn(&mut self, th: &mut Thread, turn: u64) {
        let waited = if sched::active() {
            sched::wait(Wait::Turn(turn)).is_ok()
        } else {
            self.vcpu.replay_wait(turn).is_ok()
        };
        if !waited {
            th.turn_never_comes(self.complete_trace, &self.trace);
        }
    }

    /// A fault in guest code: one of ours (a write to a page with translations), or a signal.
    fn fault(&mut self, th: &mut Thread, how: &mut How) -> Flow {
        let info = th.fault;
        let signo = info.signo() as i32;
        if signo == libc::SIGSEGV
            && info.err & 2 != 0
            && let crate::mm::WriteFault::Code(effects) = self.space.write_fault(info.addr())
        {
            let rip = th.ctx().rip;
            if effects
                .invalidate
                .iter()
                .any(|r| rip < r.end && rip + 15 > r.start)
            {
                // The instruction lies on the page it writes: translating it would protect the page again.
                *how = How::Step;
            }
            self.apply(effects);
            return Flow::Go;
        }
        if signo == libc::SIGSEGV && self.space.grow_down(info.addr()) {
            return Flow::Go;
        }
        if self.is_over(&info) {
            return Flow::Go;
        }
        self.raise(th, info)
    }

    /// Whether what a thread was refused is allowed by now: since its access another thread has opened the page, because it wrote to
    /// the code there as well, or mapped it. The access is done again. (With an access that its mapping allows, the kernel
    /// finds fault only for the sake of protection keys, which is another code.)
    pub(crate) fn is_over(&self, info: &crate::signal::SigInfo) -> bool {
        const WRITE: u64 = 2;
        let access = match info.err & WRITE {
            0 => crate::mm::Access::Read,
            _ => crate::mm::Access::Write,
        };
        info.signo() as i32 == libc::SIGSEGV
            && matches!(info.code(), SEGV_MAPERR | SEGV_ACCERR)
            && self.space.check(info.addr(), 1, access)
    }

    /// Delivers a signal that the guest's own instruction raised.
    pub fn raise(&mut self, th: &mut Thread, info: crate::signal::SigInfo) -> Flow {
        if self.recording()
            && matches!(info.signo() as i32, libc::SIGSEGV | libc::SIGBUS)
            && let Some(par) = self.par
        {
            par.faulted(th, info.addr());
        }
        match self.mode {
            Mode::Record => self.deliver(th, info, true),
            Mode::Replay => {
                if self.debug.is_some() {
                    self.look_at_signal(th, info.signo());
                }
                let (clock, pc, regs) = (th.ctx().clock(), th.ctx().rip, th.reg_hash());
                let Some(r) = self.take_record(th) else {
                    self.end_of_log(th)
                };
                match &r.event {
                    Event::Signal {
                        signo,
                        info: logged,
                        synchronous: true,
                        ..
                    } if r.clock == clock
                        && r.pc == pc
                        && r.regs == regs
                        && u32::from(*signo) == info.signo() =>
                    {
                        let mut i = info;
                        if logged.len() == 128 {
                            i.bytes.copy_from_slice(logged);
                        }
                        self.deliver(th, i, true)
                    }
                    _ => {
                        let found = format!(
                            "signal {} raised by the instruction (address {:#x})",
                            info.signo(),
                            info.addr()
                        );
                        self.diverged(th, &r, &found)
                    }
                }
            }
        }
    }
}

/// The preemption timer: a host thread that makes the vcpu's holder come to the runtime at a tick while
/// others wait. Asked again every period, because a request can be lost to the owner's next clock update.
pub fn start_preempter() {
    let spawned = std::thread::Builder::new()
        .name("crewind-timer".into())
        .stack_size(64 << 10)
        .spawn(|| {
            crate::signal::host::block_all();
            let v = vcpu();
            let mut seen = u64::MAX;
            let mut watch = par::Watch::default();
            let mut period = par::PERIOD;
            loop {
                std::thread::sleep(period);
                if let Some(par) = par::get() {
                    period = par.watch(&mut watch);
                    par.preempt_long_runners();
                    continue;
                }
                let now = v.serving();
                if now == seen && v.contended() {
                    let ctx = HOLDER.load(Ordering::Acquire);
                    if !ctx.is_null() {
                        // SAFETY: contexts are thread-locals of threads that clear this before they end.
                        unsafe { crewind_x86::ctx::Ctx::request_stop(ctx) };
                    }
                }
                seen = now;
            }
        });
    if spawned.is_err() {
        crate::report::warn(format_args!(
            "no preemption timer: threads that spin may wait for each other long"
        ));
    }
}

/// Context of the thread that holds the vcpu, for the preemption timer.
pub static HOLDER: AtomicPtr<crewind_x86::ctx::Ctx> = AtomicPtr::new(std::ptr::null_mut());

/// `si_code` of SIGSEGV: nothing is mapped there.
const SEGV_MAPERR: i32 = 1;
/// The mapping does not allow it.
const SEGV_ACCERR: i32 = 2;

/// Guest memory for the system call table and emulated instructions.
pub struct GuestMem;

impl crewind_syscalls::Mem for GuestMem {
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        crate::guestmem::copy_from_guest(buf, addr).is_ok()
    }
}

impl crewind_x86::insn::GuestMemory for GuestMem {
    fn read(&mut self, addr: u64, buf: &mut [u8]) -> Result<(), u64> {
        crate::guestmem::copy_from_guest(buf, addr).map_err(|e| addr + e.copied as u64)
    }

    fn write(&mut self, addr: u64, buf: &[u8]) -> Result<(), u64> {
        crate::guestmem::copy_to_guest(addr, buf).map_err(|e| addr + e.copied as u64)
    }
}

/// Pending flag that is never set, for calls that need none.
pub static NEVER_PENDING: AtomicU32 = AtomicU32::new(0);

impl Runtime {
    /// True when this thread's log is being written.
    pub fn recording(&self) -> bool {
        self.mode == Mode::Record
    }

    /// Ends a stream that is written, so that the recorder can compress it.
    pub fn finish_log(log: &mut Log) {
        if let Log::Record(_) = log {
            let old = std::mem::replace(log, Log::Closed);
            if let Log::Record(w) = old
                && let Err(e) = w.finish()
            {
                crate::report::warn(format_args!("the end of the trace may be missing: {e}"));
            }
        }
    }
}

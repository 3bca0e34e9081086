//! What gdb sees of a replay.

use crate::arch::{Regs, X86, description};
use crate::connection::Interrupts;
use crate::copy::Copy;
use crate::engine::{Engine, Error};
use crate::files::Files;
use crate::point::Wanted;
use crate::timeline::{Poll, Reason, Timeline};
use crewind_guest::debug::wire::{Access, Forks, ProgramInfo, Step, Stopped, Watch};
use gdbstub::common::{Pid, Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::auxv::{Auxv, AuxvOps};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume,
    MultiThreadResumeOps, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps,
    MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::reverse_exec::{
    ReplayLogPosition, ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::catch_syscalls::{
    CatchSyscallPosition, CatchSyscalls, CatchSyscallsOps, SyscallNumbers,
};
use gdbstub::target::ext::exec_file::{ExecFile, ExecFileOps};
use gdbstub::target::ext::host_info::HostInfoOps;
use gdbstub::target::ext::host_io::HostIoOps;
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps, outputln};
use gdbstub::target::ext::process_info::ProcessInfoOps;
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};

/// What gdb wants to happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resume {
    Continue,
    Step(Step),
    StepBack(u32),
    Back,
}

/// A debugging session: it outlives connections.
pub struct Session {
    pub(crate) timeline: Timeline,
    program: ProgramInfo,
    resume: Resume,
    /// Where the next resumption goes, whatever gdb says; `Some(None)`: nowhere.
    pub(crate) jump: Option<Option<Wanted>>,
    /// Where the program's functions are called.
    copy: Option<Copy>,
    description: String,
    pub(crate) files: Files,
    /// What is caught of the making of processes.
    pub(crate) forks: Forks,
}

/// The reason for a stop.
pub(crate) type Stop = MultiThreadStopReason<u64>;

impl Session {
    /// For a replaying process that stands at its beginning.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn new(first: Engine, stopped: &Stopped) -> Result<Session, Error> {
        let mut timeline = Timeline::new(first, stopped)?;
        let program = timeline.program()?;
        Ok(Session {
            description: description(program.avx512),
            program,
            timeline,
            resume: Resume::Continue,
            jump: None,
            copy: None,
            files: Files::default(),
            forks: Forks::default(),
        })
    }

    /// The program that is debugged.
    pub fn program(&self) -> &ProgramInfo {
        &self.program
    }

    /// Where the session is.
    pub fn timeline(&mut self) -> &mut Timeline {
        &mut self.timeline
    }

    /// Does what gdb wants.
    pub(crate) fn run(&mut self, interrupts: &mut Interrupts<'_>) -> Result<Stop, Error> {
        let mut poll = || interrupts.pending();
        if let Some(stop) = self.run_copy(&mut poll) {
            return Ok(stop);
        }
        if let Some(jump) = self.jump.take() {
            let reason = match jump.map(|to| self.timeline.go_to(to, &mut poll)) {
                Some(Err(Error::Refused(why))) => {
                    eprintln!("crewind: {why}");
                    Reason::Interrupted
                }
                None | Some(Ok(Reason::Done)) => Reason::Interrupted,
                Some(Ok(Reason::End(_))) if jump == Some(Wanted::End) => Reason::Interrupted,
                Some(other) => other?,
            };
            // A stop without a signal: gdb shows the place.
            return Ok(self.stop(reason, Signal::SIGZERO));
        }
        let reason = match self.resume {
            Resume::Continue => self.timeline.go(None, &mut poll)?,
            Resume::Step(s) => self.timeline.go(Some(s), &mut poll)?,
            Resume::Back => self.timeline.go_back(&mut poll)?,
            Resume::StepBack(t) => self.timeline.step_back(t, &mut poll)?,
        };
        Ok(self.stop(reason, Signal::SIGINT))
    }

    /// Goes on in the copy, if a call is under way there; else there is none from now on.
    fn run_copy(&mut self, poll: Poll<'_>) -> Option<Stop> {
        let mut copy = self.copy.take()?;
        let step = match self.resume {
            Resume::Continue => None,
            Resume::Step(s) => Some(s),
            Resume::Back | Resume::StepBack(_) => return None,
        };
        if self.jump.is_some() {
            return None;
        }
        // A copy that is gone says so below.
        if !copy.is_away().unwrap_or(true) {
            if copy.is_changed() {
                eprintln!(
                    "crewind: what was written to memory and registers is gone: a recording cannot be changed, only a copy of the process while it stands here"
                );
            }
            return None;
        }
        let reason = match copy.go(step, self.timeline.breaks(), poll) {
            Ok(reason) => reason,
            // The recording is where it was.
            Err(e) => {
                eprintln!("crewind: the call is over: {e}");
                return Some(self.stop(Reason::Interrupted, Signal::SIGSYS));
            }
        };
        self.copy = Some(copy);
        Some(self.stop(reason, Signal::SIGINT))
    }

    /// The copy, which is made if there is none.
    fn copy(&mut self) -> Result<&mut Copy, Error> {
        if self.copy.is_none() {
            let thread = self.timeline.place().thread;
            self.copy = Some(Copy::of(self.timeline.engine(), thread)?);
        }
        self.copy
            .as_mut()
            .ok_or_else(|| Error::Refused("there is no copy of the process".into()))
    }

    /// Ends the copy, if there is one.
    pub(crate) fn forget_copy(&mut self) {
        self.copy = None;
    }

    /// A front end has gone: who comes next finds the recording.
    pub(crate) fn left_alone(&mut self) {
        self.forget_copy();
        self.files.close();
        self.forks = Forks::default();
        self.timeline.set_forks(self.forks);
    }

    /// What a change led to. A copy that is gone leaves the recording as it is.
    fn changed(&mut self, done: Result<(), Error>, errno: i32) -> TargetResult<(), Self> {
        done.map_err(|e| {
            if matches!(e, Error::Gone(_)) {
                self.forget_copy();
            }
            eprintln!("crewind: {e}");
            TargetError::Errno(errno as u8)
        })
    }

    /// The thread that goes on when something does.
    fn runs(&self) -> u32 {
        match &self.copy {
            Some(copy) => copy.thread(),
            None => self.timeline.place().thread,
        }
    }

    fn stop(&mut self, reason: Reason, interrupted: Signal) -> Stop {
        let tid = tid(self.runs());
        let signal = |signal| Stop::SignalWithThread { tid, signal };
        match reason {
            Reason::Done => signal(Signal::SIGTRAP),
            Reason::ThreadEnded => {
                eprintln!("crewind: the thread has ended; this is the one that goes on");
                signal(Signal::SIGZERO)
            }
            Reason::Break => Stop::SwBreak(tid),
            Reason::Watch(w) => Stop::Watch {
                tid,
                kind: match w.access {
                    Access::Write => WatchKind::Write,
                    Access::Read => WatchKind::Read,
                    Access::Any => WatchKind::ReadWrite,
                },
                addr: w.addr,
            },
            Reason::Call { nr, done } => Stop::CatchSyscall {
                tid: Some(tid),
                number: nr.into(),
                position: if done {
                    CatchSyscallPosition::Return
                } else {
                    CatchSyscallPosition::Entry
                },
            },
            Reason::Forked { pid, vfork } => {
                let how = if vfork { "vfork" } else { "fork" };
                eprintln!(
                    "crewind: process {pid} was made here ({how}); `crewind debug --process {pid}` shows that one"
                );
                signal(Signal::SIGZERO)
            }
            Reason::Signal(n) => signal(gdb_signal(n)),
            Reason::Interrupted => signal(interrupted),
            Reason::Cannot(why) => {
                eprintln!("crewind: the call stops here: {why}");
                signal(Signal::SIGSYS)
            }
            Reason::Start => Stop::ReplayLog {
                tid: Some(tid),
                pos: ReplayLogPosition::Begin,
            },
            Reason::End(how) => {
                eprintln!("crewind: {how}; going backwards works from here");
                Stop::ReplayLog {
                    tid: Some(tid),
                    pos: ReplayLogPosition::End,
                }
            }
        }
    }

    /// The answer to Ctrl-C when nothing runs.
    pub(crate) fn interrupted(&mut self) -> Stop {
        self.stop(Reason::Interrupted, Signal::SIGINT)
    }
}

/// Threads have the numbers that they have in the trace.
fn tid(thread: u32) -> Tid {
    Tid::new(thread as usize).unwrap_or(Tid::MIN)
}

fn thread(tid: Tid) -> u32 {
    u32::try_from(tid.get()).unwrap_or(u32::MAX)
}

/// gdb has numbers of its own.
fn gdb_signal(linux: u32) -> Signal {
    match linux as i32 {
        libc::SIGHUP => Signal::SIGHUP,
        libc::SIGINT => Signal::SIGINT,
        libc::SIGQUIT => Signal::SIGQUIT,
        libc::SIGILL => Signal::SIGILL,
        libc::SIGTRAP => Signal::SIGTRAP,
        libc::SIGABRT => Signal::SIGABRT,
        libc::SIGBUS => Signal::SIGBUS,
        libc::SIGFPE => Signal::SIGFPE,
        libc::SIGKILL => Signal::SIGKILL,
        libc::SIGUSR1 => Signal::SIGUSR1,
        libc::SIGSEGV => Signal::SIGSEGV,
        libc::SIGUSR2 => Signal::SIGUSR2,
        libc::SIGPIPE => Signal::SIGPIPE,
        libc::SIGALRM => Signal::SIGALRM,
        libc::SIGTERM => Signal::SIGTERM,
        libc::SIGCHLD => Signal::SIGCHLD,
        libc::SIGCONT => Signal::SIGCONT,
        libc::SIGSTOP => Signal::SIGSTOP,
        libc::SIGTSTP => Signal::SIGTSTP,
        libc::SIGTTIN => Signal::SIGTTIN,
        libc::SIGTTOU => Signal::SIGTTOU,
        libc::SIGURG => Signal::SIGURG,
        libc::SIGXCPU => Signal::SIGXCPU,
        libc::SIGXFSZ => Signal::SIGXFSZ,
        libc::SIGVTALRM => Signal::SIGVTALRM,
        libc::SIGPROF => Signal::SIGPROF,
        libc::SIGWINCH => Signal::SIGWINCH,
        libc::SIGIO => Signal::SIGIO,
        libc::SIGPWR => Signal::SIGPWR,
        libc::SIGSYS => Signal::SIGSYS,
        32 => Signal::SIG32,
        // SIG33 to SIG63 have consecutive numbers; SIG64 lies apart.
        n @ 33..=63 => Signal(Signal::SIG33.0 + (n - 33) as u8),
        64 => Signal::SIG64,
        _ => Signal::UNKNOWN,
    }
}

fn kind(kind: WatchKind) -> Access {
    match kind {
        WatchKind::Write => Access::Write,
        WatchKind::Read => Access::Read,
        WatchKind::ReadWrite => Access::Any,
    }
}

/// Copies a part of `data` as packets ask for it.
fn part(data: &[u8], offset: u64, length: usize, out: &mut [u8]) -> usize {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = data.get(from..).unwrap_or(&[]);
    let n = rest.len().min(length).min(out.len());
    if let (Some(to), Some(from)) = (out.get_mut(..n), rest.get(..n)) {
        to.copy_from_slice(from);
    }
    n
}

/// What the other side is told of an error that ends nothing.
fn shown(e: Error) -> TargetError<Error> {
    match e {
        Error::Gone(_) => TargetError::Fatal(e),
        Error::Refused(_) => TargetError::NonFatal,
    }
}

/// The same for a copy, whose end ends nothing.
fn harmless(_: Error) -> TargetError<Error> {
    TargetError::NonFatal
}

impl Target for Session {
    type Arch = X86;
    type Error = Error;

    fn base_ops(&mut self) -> BaseOps<'_, X86, Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_catch_syscalls(&mut self) -> Option<CatchSyscallsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_exec_file(&mut self) -> Option<ExecFileOps<'_, Self>> {
        Some(self)
    }

    fn support_auxv(&mut self) -> Option<AuxvOps<'_, Self>> {
        Some(self)
    }

    fn support_host_info(&mut self) -> Option<HostInfoOps<'_, Self>> {
        Some(self)
    }

    fn support_process_info(&mut self) -> Option<ProcessInfoOps<'_, Self>> {
        Some(self)
    }

    fn support_host_io(&mut self) -> Option<HostIoOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Session {
    fn read_registers(&mut self, regs: &mut Regs, tid: Tid) -> TargetResult<(), Self> {
        let r = match &mut self.copy {
            Some(copy) => copy.registers(thread(tid)).map_err(harmless)?,
            None => self.timeline.registers(thread(tid)).map_err(shown)?,
        };
        *regs = Regs::new(&r, self.program.avx512);
        Ok(())
    }

    fn write_registers(&mut self, regs: &Regs, tid: Tid) -> TargetResult<(), Self> {
        let original = self.timeline.registers(thread(tid)).map_err(shown)?;
        let done = self
            .copy()
            .and_then(|copy| copy.set(thread(tid), regs, original));
        self.changed(done, libc::EINVAL)
    }

    fn read_addrs(&mut self, addr: u64, data: &mut [u8], _: Tid) -> TargetResult<usize, Self> {
        let read = match &mut self.copy {
            Some(copy) => copy.read(addr, data).map_err(harmless)?,
            None => self.timeline.read(addr, data).map_err(shown)?,
        };
        match read {
            0 if !data.is_empty() => Err(TargetError::Errno(libc::EFAULT as u8)),
            n => Ok(n),
        }
    }

    fn write_addrs(&mut self, addr: u64, data: &[u8], _: Tid) -> TargetResult<(), Self> {
        let done = self.copy().and_then(|copy| copy.write(addr, data));
        self.changed(done, libc::EFAULT)
    }

    fn list_active_threads(&mut self, register: &mut dyn FnMut(Tid)) -> Result<(), Error> {
        // Where gdb leaves the choice, the first one is taken: that is the one that runs.
        let runs = self.runs();
        let threads = self.timeline.threads()?;
        let (first, others): (Vec<_>, Vec<_>) = threads.iter().partition(|t| t.id == runs);
        for t in first.iter().chain(&others) {
            register(tid(t.id));
        }
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadResume for Session {
    fn resume(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Error> {
        self.resume = Resume::Continue;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _: Tid, _: Option<Signal>) -> Result<(), Error> {
        // Threads run as they were recorded, so there is nothing to choose.
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }

    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, Tid, Self>> {
        Some(self)
    }

    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, Tid, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Session {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Error> {
        self.resume = Resume::Step(Step {
            thread: thread(tid),
            range: None,
        });
        Ok(())
    }
}

impl MultiThreadRangeStepping for Session {
    fn set_resume_action_range_step(
        &mut self,
        tid: Tid,
        start: u64,
        end: u64,
    ) -> Result<(), Error> {
        self.resume = Resume::Step(Step {
            thread: thread(tid),
            range: Some((start, end)),
        });
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Session {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Error> {
        // The others do what they did: a recording cannot go on without them.
        Ok(())
    }
}

impl ReverseCont<Tid> for Session {
    fn reverse_cont(&mut self) -> Result<(), Error> {
        self.resume = Resume::Back;
        Ok(())
    }
}

impl ReverseStep<Tid> for Session {
    fn reverse_step(&mut self, tid: Tid) -> Result<(), Error> {
        self.resume = Resume::StepBack(thread(tid));
        Ok(())
    }
}

impl Breakpoints for Session {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Session {
    fn add_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.timeline.set_break(addr, true);
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.timeline.set_break(addr, false);
        Ok(true)
    }
}

impl HwBreakpoint for Session {
    fn add_hw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.timeline.set_break(addr, true);
        Ok(true)
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.timeline.set_break(addr, false);
        Ok(true)
    }
}

impl HwWatchpoint for Session {
    fn add_hw_watchpoint(&mut self, addr: u64, len: u64, k: WatchKind) -> TargetResult<bool, Self> {
        let access = kind(k);
        self.timeline.set_watch(Watch { addr, len, access }, true);
        Ok(true)
    }

    fn remove_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        k: WatchKind,
    ) -> TargetResult<bool, Self> {
        let access = kind(k);
        self.timeline.set_watch(Watch { addr, len, access }, false);
        Ok(true)
    }
}

impl CatchSyscalls for Session {
    fn enable_catch_syscalls(
        &mut self,
        filter: Option<SyscallNumbers<'_, u64>>,
    ) -> TargetResult<(), Self> {
        let calls = filter.map(|some| some.collect()).unwrap_or_default();
        self.timeline.set_calls(Some(calls));
        Ok(())
    }

    fn disable_catch_syscalls(&mut self) -> TargetResult<(), Self> {
        self.timeline.set_calls(None);
        Ok(())
    }
}

impl MonitorCmd for Session {
    fn handle_monitor_cmd(&mut self, cmd: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Error> {
        let text = self.command(&String::from_utf8_lossy(cmd))?;
        outputln!(out, "{}", text);
        Ok(())
    }
}

impl ExecFile for Session {
    fn get_exec_file(
        &self,
        _: Option<Pid>,
        offset: u64,
        length: usize,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        Ok(part(self.program.path.as_bytes(), offset, length, buf))
    }
}

impl TargetDescriptionXmlOverride for Session {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(TargetError::Errno(libc::ENOENT as u8));
        }
        Ok(part(self.description.as_bytes(), offset, length, buf))
    }
}

impl Auxv for Session {
    fn get_auxv(&self, offset: u64, length: usize, buf: &mut [u8]) -> TargetResult<usize, Self> {
        let bytes: Vec<u8> = self
            .program
            .auxv
            .iter()
            .flat_map(|(k, v)| [k.to_le_bytes(), v.to_le_bytes()])
            .flatten()
            .collect();
        Ok(part(&bytes, offset, length, buf))
    }
}

impl ThreadExtraInfo for Session {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, Error> {
        let text = format!("{}, t{}", self.program.name, thread(tid));
        Ok(part(text.as_bytes(), 0, text.len(), buf))
    }
}

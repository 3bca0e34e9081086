//! The lock-step checker: runs the translated program beside a native one and stops at the first difference.
//!
//! A development aid. At some point of the run, with one guest thread, the process is forked twice: the *tracer*
//! and, its child, the *twin*, which has the same guest memory and runs the guest's own code under ptrace. After
//! every stretch of translated code the run loop tells the tracer where it got to ([`wire`]); the tracer brings
//! the twin to the same position (clock and pc) by single steps and compares registers ([`compare`]).
//!
//! The twin makes no system calls of the guest's and does no instruction that leaves translated code: their
//! effects (registers, guest memory, mappings, signal frames) are copied into it. Everything the runtime and
//! the kernel write to guest memory passes [`Runtime::prepare_write`] or is in the event's record, every change of
//! a mapping passes `mm::host`; these are the hooks. Off, they cost a test of an `Option` at exits.
//!
//! Not covered: children, programs executed from this one, more than one thread, and memory that other processes
//! change (the twin's mappings are all private).

mod compare;
mod memory;
mod tracer;
mod twin;
mod wire;

use crate::diag;
use crate::fpstate;
use crate::hostcall;
use crate::mm::{Space, Vma};
use crate::process::leave;
use crate::report;
use crate::runtime::Runtime;
use crate::signal::host;
use crate::start::{CloseOnExec, Failure, LockstepOptions, Report, dup_high};
use crate::thread::Thread;
use compare::{ARITHMETIC, GUEST_FLAGS};
use crewind_x86::Exit;
use crewind_x86::ctx::Ctx;
use memory::Compared;
pub use memory::{Change, changed};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use tracer::Tracer;
use wire::{Check, Message, Regs};

/// The runtime's side.
pub struct Lockstep {
    options: LockstepOptions,
    state: State,
    /// Guest memory written by the runtime or the kernel since the twin was last told.
    written: Vec<Range<u64>>,
    /// Number of the stretch under way.
    number: u64,
    /// Where it began.
    start: u64,
    /// State at the last exit.
    last: Regs,
    compared: Compared,
}

enum State {
    /// The clock to start at is not reached.
    Waiting,
    /// There is a twin.
    Running(Link),
}

/// The connection to the tracer.
struct Link {
    socket: UnixStream,
    out: Vec<u8>,
}

/// Messages are sent when there are so many bytes of them.
const BATCH: usize = 32 << 10;

impl Link {
    fn tell(&mut self, m: &Message) {
        m.put(&mut self.out);
        if self.out.len() >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let sent = self.socket.write_all(&self.out);
        self.out.clear();
        if sent.is_err() {
            tracer_gone();
        }
    }

    /// Waits until the tracer has done everything told so far; returns the twin's process id.
    fn barrier(&mut self) -> i32 {
        self.tell(&Message::Barrier);
        self.flush();
        let mut pid = [0; 4];
        if self.socket.read_exact(&mut pid).is_err() {
            tracer_gone();
        }
        i32::from_le_bytes(pid)
    }
}

/// The tracer ends first only when it has something to report, and then it kills this process.
fn tracer_gone() -> ! {
    std::thread::sleep(std::time::Duration::from_secs(2));
    report::fail(
        Failure::Internal,
        format_args!("lockstep: the process that compares ended early"),
    )
}

impl Drop for Lockstep {
    fn drop(&mut self) {
        memory::record_changes(memory::Recording::Off);
    }
}

fn regs_of(ctx: &Ctx) -> Regs {
    Regs {
        gpr: ctx.gpr,
        rip: ctx.rip,
        rflags: ctx.rflags,
        fs_base: ctx.fs_base,
        clock: ctx.clock(),
    }
}

impl Lockstep {
    /// A checker that begins at the clock that the options say.
    pub fn new(options: LockstepOptions) -> Lockstep {
        Lockstep {
            options,
            state: State::Waiting,
            written: Vec::new(),
            number: 0,
            start: 0,
            last: Regs::default(),
            compared: Compared::default(),
        }
    }

    /// How the program is to be translated.
    pub fn translation(options: &LockstepOptions) -> crewind_x86::Options {
        match options.every {
            Some(_) => crewind_x86::Options::default(),
            None => crewind_x86::Options {
                max_block_insns: 16,
                superblocks: false,
                chaining: false,
                inline_lookup: false,
                ..Default::default()
            },
        }
    }

    /// True when translations are to run one at a time.
    pub fn by_block(&self) -> bool {
        self.options.every.is_none() && matches!(self.state, State::Running(_))
    }

    /// Guest memory is about to be written by the runtime or the kernel, or was.
    pub fn wrote(&mut self, addr: u64, len: u64) {
        if matches!(self.state, State::Running(_)) && len > 0 {
            self.written.push(addr..addr.saturating_add(len));
        }
    }

    /// All memory may have changed (a `vfork` child ran in it).
    pub fn all_changed(&mut self, space: &Space) {
        for v in space.vmas().iter() {
            changed(Change::Content, v.start, v.len());
        }
    }

    fn tell(&mut self, m: &Message) {
        if let State::Running(link) = &mut self.state {
            link.tell(m);
        }
    }

    /// Ends the comparison, with a reason for the summary.
    pub fn finish(mut self: Box<Self>, why: &str) {
        match &mut self.state {
            State::Waiting => report::warn(format_args!(
                "lockstep: nothing was compared, as {why} before clock {}",
                self.options.from
            )),
            State::Running(link) => {
                link.tell(&Message::Finish(why.into()));
                link.flush();
            }
        }
    }

    /// Brings the twin's memory up to date.
    fn send_changes(&mut self, space: &Space) {
        for (change, range) in memory::take_changes() {
            memory::replay(space, change, range, &mut |m| self.tell(&m));
        }
        for range in std::mem::take(&mut self.written) {
            memory::contents(range, &mut |m| self.tell(&m));
        }
    }

    /// Flags that are alive at the exit.
    fn live_flags(space: &Space, exit: &Exit, rip: u64) -> u64 {
        if matches!(exit, Exit::FetchFault { .. }) {
            return GUEST_FLAGS & !ARITHMETIC;
        }
        let mut code = [0u8; 512];
        let n = space.fetch(rip, &mut code);
        GUEST_FLAGS & !crewind_x86::dead_flags(rip, code.get(..n).unwrap_or(&[]))
    }
}

impl Runtime {
    /// Before guest code runs: starts the twin when it is time, else tells it what happened since the last exit.
    pub fn lockstep_before(&mut self, th: &mut Thread) {
        let Some(mut l) = self.lockstep.take() else {
            return;
        };
        match l.state {
            State::Waiting if th.ctx().clock() < l.options.from => {
                th.ctx().set_limit(l.options.from)
            }
            State::Waiting => {
                if self.multi() {
                    return l.finish("the program has several threads");
                }
                l.state = State::Running(self.start_twin(th));
                memory::record_changes(memory::Recording::On);
                l.tell(&Message::Set {
                    regs: regs_of(th.ctx()),
                    fp: fpstate::save(th.ctx()),
                });
            }
            State::Running(_) => {
                l.send_changes(&self.space);
                let now = regs_of(th.ctx());
                if now != l.last {
                    l.tell(&Message::Set {
                        regs: now,
                        fp: fpstate::save(th.ctx()),
                    });
                }
            }
        }
        if let State::Running(_) = l.state {
            l.number += 1;
            l.start = th.ctx().rip;
            if let Some(every) = l.options.every {
                let limit = th.ctx().clock() + every.max(1);
                th.ctx().set_limit(limit);
            } else {
                th.ctx().set_limit(u64::MAX);
            }
        }
        self.lockstep = Some(l);
    }

    /// After guest code ran: has the twin do the same.
    pub fn lockstep_after(&mut self, th: &mut Thread, exit: &Exit) {
        let Some(mut l) = self.lockstep.take() else {
            return;
        };
        if matches!(l.state, State::Running(_)) {
            if let Some(flip) = l.options.flip.filter(|f| f.after == l.number)
                && let Some(r) = th.ctx().gpr.get_mut(usize::from(flip.register & 15))
            {
                *r ^= 1 << (flip.bit & 63);
            }
            let regs = regs_of(th.ctx());
            let flags = Lockstep::live_flags(&self.space, exit, regs.rip);
            let check = Check {
                number: l.number,
                start: l.start,
                regs,
                flags,
                fp: fpstate::save(th.ctx()),
            };
            l.tell(&Message::Check(check));
            l.last = regs;
            let ends = match exit {
                Exit::Syscall { .. } => {
                    matches!(regs.gpr[0] as i64, libc::SYS_exit_group | libc::SYS_exit)
                }
                _ => false,
            };
            if matches!(exit, Exit::Syscall { .. }) || l.options.memory {
                let now = if ends || l.options.memory {
                    memory::When::Now
                } else {
                    memory::When::WhenCheap
                };
                self.compare_memory(&mut l, regs.clock, now);
            }
            if ends {
                return l.finish("the end of the program");
            }
        }
        self.lockstep = Some(l);
    }

    fn compare_memory(&mut self, l: &mut Lockstep, clock: u64, when: memory::When) {
        let State::Running(link) = &mut l.state else {
            return;
        };
        link.flush();
        if !l.compared.due(when) {
            return;
        }
        let twin = link.barrier();
        if let Some(difference) = l.compared.compare(&self.space, twin) {
            let since = l.compared.clock;
            link.tell(&Message::Finish(String::new()));
            link.flush();
            report::fail(
                Failure::Internal,
                format_args!(
                    "lockstep: memory differs from the native program's at clock {clock} (registers do not)\n{difference}\nIt was the same at clock {since}: `--from {since} --memory` finds the block"
                ),
            );
        }
        l.compared.clock = clock;
    }

    /// Forks the tracer, which forks the twin.
    fn start_twin(&mut self, th: &Thread) -> Link {
        let cannot = |what: &str, e: std::io::Error| -> ! {
            report::fail(
                Failure::Unsupported,
                format_args!("lockstep: cannot start the native program: {what}: {e}"),
            )
        };
        let (ours, theirs) = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(e) => cannot("socket", e),
        };
        let low = self.fds.own().first().copied().unwrap_or(100);
        let ours = match dup_high(ours.as_raw_fd(), low, CloseOnExec::Yes) {
            // SAFETY: just made, nobody else owns it.
            Ok(fd) => UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(e) => cannot("descriptor", e),
        };
        self.fds.add_own(ours.as_raw_fd());
        // SAFETY: returns a number.
        let guest = unsafe { hostcall::raw(libc::SYS_getpid, [0; 6]) } as i32;
        let mask = host::current_mask();
        host::block_all();
        // SAFETY: the child has a copy of everything, goes its own way below and never returns. Without an exit signal
        // the guest neither hears of it nor waits for it. There is no other thread whose locks it could miss.
        match unsafe { hostcall::raw(libc::SYS_clone, [0; 6]) } {
            0 => {
                drop(ours);
                let run = || trace(&self.space, theirs, self.exec.control, guest);
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                leave(Failure::Internal.status())
            }
            pid if pid > 0 => {}
            errno => cannot("clone", std::io::Error::from_raw_os_error(-errno as i32)),
        }
        host::set_mask(mask);
        crate::log!(
            diag::Level::Info,
            "lockstep begins at clock {}",
            self.clock_of(th)
        );
        Link {
            socket: ours,
            out: Vec::new(),
        }
    }

    fn clock_of(&self, th: &Thread) -> u64 {
        // SAFETY: the calling thread's own context, not in translated code.
        unsafe { (*th.ctx).clock() }
    }
}

/// The tracer's process.
fn trace(space: &Space, socket: UnixStream, control: i32, guest: i32) {
    tracer::close_others(&tracer::kept(&socket, control));
    tracer::stay_on_one_cpu();
    // SAFETY: as in `start_twin`; the tracer is what waits for this one.
    let pid = unsafe { hostcall::raw(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]) };
    if pid == 0 {
        be_twin(space);
    }
    match Tracer::new(pid as i32, socket, control, guest) {
        Ok(t) => t.run(),
        Err(e) => {
            let message =
                format!("lockstep: cannot trace the native program ({e}); is ptrace allowed here?");
            Report::Failed {
                failure: Failure::Unsupported,
                message,
            }
            .send(control);
            // SAFETY: ends the process that this one was made to check.
            unsafe { libc::kill(guest, libc::SIGKILL) };
        }
    }
}

/// The twin's process: gives guest memory its real rights, and stops for ever as far as this code is concerned.
fn be_twin(space: &Space) -> ! {
    tracer::close_others(&[]);
    for v in space.vmas().iter() {
        if prepare(v).is_err() {
            leave(1);
        }
    }
    // SAFETY: plain calls.
    unsafe {
        libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
        let pid = hostcall::raw(libc::SYS_getpid, [0; 6]) as u64;
        hostcall::raw(libc::SYS_kill, [pid, libc::SIGSTOP as u64, 0, 0, 0, 0]);
    }
    leave(1)
}

/// In the twin: memory shared with the translated program becomes a private copy; code becomes executable.
fn prepare(v: &Vma) -> Result<(), ()> {
    let fixed = |prot: i32| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: a guest mapping of this process, replaced by one of the same size.
        unsafe {
            libc::mmap(v.start as *mut _, v.len() as usize, prot, flags, -1, 0) != libc::MAP_FAILED
        }
    };
    if v.flags.shared {
        let mut pieces = Vec::new();
        memory::contents(v.start..v.end, &mut |m| pieces.push(m));
        if !fixed(libc::PROT_READ | libc::PROT_WRITE) {
            return Err(());
        }
        for m in pieces {
            if let Message::Bytes { addr, data } = m {
                crate::guestmem::copy_to_guest(addr, &data).map_err(drop)?;
            }
        }
    }
    // SAFETY: a guest mapping of this process, whose code nothing of ours runs.
    let done = unsafe { libc::mprotect(v.start as *mut _, v.len() as usize, v.prot.bits()) };
    if done == 0 { Ok(()) } else { Err(()) }
}

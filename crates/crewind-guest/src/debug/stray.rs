//! Going on without the recording: what the debugger calls functions of the program in.
//!
//! A copy of the replaying process (a fork, as a checkpoint is one) whose registers and memory the debugger may change, and
//! in which one thread runs alone, from wherever it was put. Nothing of the log is used: what the thread asks the system
//! for is done where that is harmless (memory, time, output), refused with a message where a program can live with that,
//! and stops the thread where it cannot. The process never comes back to the recording, so neither does anything it did.
//!
//! # Rules
//! - The thread runs inside the answer to the debugger's question, on the stack of whoever stood there. The other threads'
//!   stacks are left alone for good.
//! - Nothing here waits: what would wait stops the thread, and loops come back after their work.

use std::cell::UnsafeCell;
use std::sync::atomic::Ordering;

use super::wire::{Registers, Stray, Why};
use super::{Debugger, QUIET, STRAYS};
use crate::guestmem;
use crate::hostcall;
use crate::runtime::{Code, Runtime};
use crate::sched;
use crate::syscall::Call;
use crate::thread::Thread;
use crewind_syscalls::Row;
use crewind_trace::event::ThreadId;
use crewind_x86::Exit;

/// Flags that a program can have: CF, PF, AF, ZF, SF, DF, OF.
const FLAGS: u64 = 0xcd5;

const ENOSYS: i64 = -(libc::ENOSYS as i64);

/// What becomes of a call.
enum Done {
    /// The thread goes on.
    Gone,
    /// It stays in front of the call.
    Stop(Why),
}

impl Runtime {
    /// Changes the registers of a thread; false if there is none.
    pub(super) fn set_registers(&mut self, th: &mut Thread, id: u32, r: &Registers) -> bool {
        STRAYS.store(true, Ordering::Relaxed);
        let runs = sched::stand_for(ThreadId(id));
        if runs.is_null() {
            return false;
        }
        sched::set_x87(ThreadId(id), &r.x87);
        let set = self.with_thread(th, id, |t| {
            let ctx = t.ctx();
            ctx.gpr = r.gpr;
            ctx.rip = r.rip;
            ctx.rflags = ctx.rflags & !FLAGS | r.rflags & FLAGS;
            ctx.mxcsr = r.mxcsr;
            ctx.vec.zmm = r.zmm;
            ctx.vec.k = r.k;
            if r.fs_base < crate::layout::TASK_SIZE {
                ctx.fs_base = r.fs_base;
                crewind_x86::set_guest_fs_base(r.fs_base);
            }
        });
        set.is_some()
    }

    /// Changes memory, whatever rights the guest has to it.
    pub(super) fn write_for_debugger(&mut self, addr: u64, bytes: &[u8]) -> Result<(), String> {
        STRAYS.store(true, Ordering::Relaxed);
        let page = crate::layout::PAGE;
        let end = addr.saturating_add(bytes.len() as u64);
        let mut at = crate::layout::page_down(addr);
        while at < end {
            if self.space.find(at).is_none() {
                return Err(format!("there is no memory at {:#x}", at.max(addr)));
            }
            at = at.saturating_add(page);
        }
        self.prepare_write(addr, bytes.len() as u64);
        if guestmem::copy_to_guest(addr, bytes).is_err() {
            self.force_write(addr, bytes);
            self.changed_code(addr, end);
        }
        Ok(())
    }

    /// Code without the right to be written was written all the same.
    fn changed_code(&mut self, start: u64, end: u64) {
        match self.par {
            Some(par) => self.in_all_caches(par, |c| {
                c.invalidate(start, end);
            }),
            None => {
                self.cache.invalidate(start, end);
            }
        }
    }

    /// Runs a thread alone; returns why it stopped, where, and the ticks it took. None: there is no such thread.
    pub(super) fn stray(
        &mut self,
        d: &mut Debugger,
        th: &mut Thread,
        how: Stray,
    ) -> Option<(Why, u64, u64)> {
        STRAYS.store(true, Ordering::Relaxed);
        let runs = sched::stand_for(ThreadId(how.thread));
        let th = if th.id.0 == how.thread {
            th
        } else {
            // SAFETY: threads live as long as they are in the scheduler's list; this host thread is the only one, and `th` is
            // another one.
            unsafe { runs.as_mut() }?
        };
        th.ctx().arm_site(None);
        th.ctx().passed_check = 0;
        let from = th.ctx().clock();
        let until = from.saturating_add(how.work.max(1));
        th.ctx().set_limit(until);
        let why = self.stray_until(d, th, &how, until);
        let (pc, clock) = (th.ctx().rip, th.ctx().clock());
        Some((why, pc, clock.saturating_sub(from)))
    }

    fn stray_until(&mut self, d: &Debugger, th: &mut Thread, how: &Stray, until: u64) -> Why {
        let mut alone = how.step;
        let mut stepped = false;
        loop {
            let pc = th.ctx().rip;
            let inside = |(from, to): (u64, u64)| (from..to).contains(&pc);
            if how.step && stepped && !how.range.is_some_and(inside) {
                return Why::Step;
            }
            // A step does its first instruction whatever is there.
            if d.breaks.contains(&pc) && (!how.step || stepped) {
                return Why::Break;
            }
            if th.ctx().clock() >= until {
                return Why::Work;
            }
            let single = std::mem::replace(&mut alone, how.step);
            let exit = self.stray_enter(th, single);
            if !matches!(exit, Exit::Fault | Exit::FetchFault { .. }) {
                stepped |= single;
            }
            match exit {
                Exit::Syscall { next } => match self.stray_call(th, next) {
                    Done::Gone => stepped = true,
                    Done::Stop(why) => return why,
                },
                Exit::Insn(insn) => match self.instruction_now(th, &insn) {
                    Ok(()) => stepped = true,
                    Err(signo) => return Why::Signal(signo),
                },
                Exit::Fault => match self.stray_fault(th) {
                    Ok(on_own_page) => alone |= on_own_page,
                    Err(signo) => return Why::Signal(signo),
                },
                // A debugger has its breakpoints also where nothing can be executed: where its calls return to.
                Exit::FetchFault { .. } if d.breaks.contains(&th.ctx().rip) => {}
                Exit::FetchFault { .. } => return Why::Signal(libc::SIGSEGV as u32),
                Exit::Unsupported { .. } => return Why::Signal(libc::SIGILL as u32),
                Exit::Check { site } => {
                    // Nothing is watched here.
                    let par = self.par;
                    match par {
                        // SAFETY: one host thread runs all vcpus, and it is here.
                        Some(par) => unsafe { par.cache(th) }.pass_check(th.ctx(), site),
                        None => self.cache.pass_check(th.ctx(), site),
                    }
                }
                Exit::Tick | Exit::Stepped | Exit::EventSite | Exit::Break | Exit::Untranslated => {
                }
            }
        }
    }

    fn stray_enter(&mut self, th: &mut Thread, single: bool) -> Exit {
        let par = self.par;
        let src = Code(UnsafeCell::new(&mut self.space));
        let cache = match par {
            // SAFETY: one host thread runs all vcpus, and it is here.
            Some(par) => unsafe { par.cache(th) },
            None => &mut *self.cache,
        };
        // SAFETY: the context is the thread's own and this host thread's; the guest may do to its memory what it likes,
        // and the runtime's is out of its sight.
        unsafe {
            if single {
                return cache.step(th.ctx, &src);
            }
            match cache.run(th.ctx, &src) {
                Exit::Untranslated => match cache.translate_pending(th.ctx, &src) {
                    Ok(()) => Exit::Untranslated,
                    Err(f) => Exit::FetchFault { addr: f.addr },
                },
                exit => exit,
            }
        }
    }

    /// A fault: one of the runtime's, or an error, which the program's handler does not get to see. `Ok(true)`: the
    /// instruction changes the page it is on, and has to be done alone.
    fn stray_fault(&mut self, th: &mut Thread) -> Result<bool, u32> {
        let info = th.fault;
        if info.signo() as i32 == libc::SIGSEGV {
            if info.err & 2 != 0
                && let crate::mm::WriteFault::Code(effects) = self.space.write_fault(info.addr())
            {
                let rip = th.ctx().rip;
                let own = effects
                    .invalidate
                    .iter()
                    .any(|r| rip < r.end && rip + 15 > r.start);
                self.apply(effects);
                return Ok(own);
            }
            if self.space.grow_down(info.addr()) {
                return Ok(false);
            }
        }
        Err(info.signo())
    }

    /// A system call that is not in the recording.
    fn stray_call(&mut self, th: &mut Thread, next: u64) -> Done {
        let call = Call::of(th, next);
        let Some(row) = crewind_syscalls::row(call.nr) else {
            self.finish(th, &call, ENOSYS);
            return Done::Gone;
        };
        let [a, b, ..] = call.args;
        let ret = match i64::from(call.nr) {
            libc::SYS_exit | libc::SYS_exit_group => {
                return Done::Stop(Why::Cannot(format!(
                    "{} would end the process, which only a copy could do that nobody could look at any more",
                    crewind_syscalls::format(row, &call.args, None, None, &[])
                )));
            }
            libc::SYS_write | libc::SYS_writev if a == 1 || a == 2 => stray_output(row, &call),
            libc::SYS_fstat if a <= 2 => self.stray_pass(row, &call),
            libc::SYS_ioctl if a <= 2 && (b == libc::TCGETS || b == libc::TIOCGWINSZ) => {
                self.stray_pass(row, &call)
            }
            libc::SYS_newfstatat if a <= 2 && empty_path(b) => self.stray_pass(row, &call),
            libc::SYS_getpid => i64::from(self.pid),
            libc::SYS_gettid => i64::from(th.tid),
            libc::SYS_kill | libc::SYS_tkill | libc::SYS_tgkill => {
                let target = if i64::from(call.nr) == libc::SYS_tgkill {
                    1
                } else {
                    0
                };
                let (to, signo) = (call.int(target), call.int(target + 1));
                if to != self.pid && to != th.tid {
                    return self.stray_refuse(th, row, &call);
                }
                self.finish(th, &call, 0);
                return match u32::try_from(signo) {
                    Ok(signo) if signo > 0 => Done::Stop(Why::Signal(signo)),
                    _ => Done::Gone,
                };
            }
            // Time does not pass while others stand still.
            libc::SYS_nanosleep | libc::SYS_clock_nanosleep | libc::SYS_sched_yield => 0,
            libc::SYS_clock_gettime
            | libc::SYS_clock_getres
            | libc::SYS_gettimeofday
            | libc::SYS_time
            | libc::SYS_times
            | libc::SYS_getuid
            | libc::SYS_geteuid
            | libc::SYS_getgid
            | libc::SYS_getegid
            | libc::SYS_uname
            | libc::SYS_sysinfo
            | libc::SYS_getrandom
            | libc::SYS_getcpu
            | libc::SYS_getrusage => self.stray_pass(row, &call),
            libc::SYS_futex => match stray_futex(&call) {
                Some(ret) => ret,
                None => {
                    return Done::Stop(Why::Cannot(
                        "it waits for another thread (for a lock that one holds, perhaps), and the others stand still".into(),
                    ));
                }
            },
            libc::SYS_mmap if call.int(3) & libc::MAP_ANONYMOUS == 0 => {
                return self.stray_refuse(th, row, &call);
            }
            libc::SYS_mmap
            | libc::SYS_munmap
            | libc::SYS_mprotect
            | libc::SYS_mremap
            | libc::SYS_brk
            | libc::SYS_madvise => {
                return match self.memory_call(th, row, &call) {
                    Some(_) => Done::Gone,
                    None => self.stray_refuse(th, row, &call),
                };
            }
            libc::SYS_rt_sigaction | libc::SYS_rt_sigprocmask | libc::SYS_sigaltstack => {
                return match self.signal_call(th, &call) {
                    Some(_) => Done::Gone,
                    None => self.stray_refuse(th, row, &call),
                };
            }
            libc::SYS_set_tid_address
            | libc::SYS_set_robust_list
            | libc::SYS_get_robust_list
            | libc::SYS_arch_prctl => {
                return match self.misc_call(th, &call) {
                    Some(_) => Done::Gone,
                    None => self.stray_refuse(th, row, &call),
                };
            }
            _ => return self.stray_refuse(th, row, &call),
        };
        self.finish(th, &call, ret);
        Done::Gone
    }

    /// The program gets an error, and the user is told.
    fn stray_refuse(&mut self, th: &mut Thread, row: &'static Row, call: &Call) -> Done {
        if self.warned.insert(call.nr) {
            crate::report::warn(format_args!(
                "the function called {}, which is not done outside of the recording; it got ENOSYS",
                row.name
            ));
        }
        self.finish(th, call, ENOSYS);
        Done::Gone
    }

    /// A call that changes nothing but the guest's memory: the kernel does it, now.
    fn stray_pass(&mut self, row: &'static Row, call: &Call) -> i64 {
        let plan = crewind_syscalls::before(row, &call.args, &crate::runtime::GuestMem);
        for op in plan.operands.iter().filter(|op| op.dir.writes()) {
            self.prepare_write(op.addr, op.cap);
        }
        // SAFETY: the guest's own call with its own buffers; the caller has chosen it as one that neither waits nor changes
        // anything else.
        unsafe { hostcall::raw(i64::from(call.nr), call.args) }
    }
}

/// What is written to the standard output or the standard error appears, as it would have.
fn stray_output(row: &'static Row, call: &Call) -> i64 {
    // A program writes the rest with another call.
    const MOST: u64 = 1 << 20;
    let len = match i64::from(call.nr) {
        libc::SYS_write => call.args[2].min(MOST),
        _ => MOST,
    };
    let text = crate::syscall::output_text(row, &call.args, len as i64);
    if text.is_empty() && len > 0 && i64::from(call.nr) == libc::SYS_write {
        return -i64::from(libc::EFAULT);
    }
    if !QUIET.load(Ordering::Relaxed) {
        crate::replayed::write_all(call.int(0), &text);
    }
    text.len() as i64
}

/// Whether the path of a `newfstatat` is empty, which asks about the descriptor.
fn empty_path(addr: u64) -> bool {
    matches!(guestmem::read::<u8>(addr), Ok(0))
}

/// What a futex call gives while nobody else runs; none: it would wait for ever.
fn stray_futex(call: &Call) -> Option<i64> {
    let [addr, _, value, timeout, ..] = call.args;
    match call.int(1) & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => match guestmem::read_u32(addr) {
            Err(_) => Some(-i64::from(libc::EFAULT)),
            Ok(now) if now != value as u32 => Some(-i64::from(libc::EAGAIN)),
            Ok(_) if timeout != 0 => Some(-i64::from(libc::ETIMEDOUT)),
            Ok(_) => None,
        },
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET | libc::FUTEX_WAKE_OP => Some(0),
        libc::FUTEX_REQUEUE | libc::FUTEX_CMP_REQUEUE => Some(0),
        _ => Some(ENOSYS),
    }
}

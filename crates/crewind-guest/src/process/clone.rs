//! fork, vfork, clone: new processes and threads.

use crate::debug::Child;
use crate::deferred::checkpoint::Of;
use crate::diag::Level;
use crate::fpstate;
use crate::hostcall;
use crate::log::{Follower, Log, records_stated};
use crate::runtime::{Flow, HOLDER, Runtime, ThreadRef, start_preempter};
use crate::sched::{self, Wait};
use crate::signal::host;
use crate::start::{Failure, Mode};
use crate::syscall::{Call, Logged};
use crate::thread::{self, Thread};
use crate::vcpu::Vcpu;
use crewind_trace::event::{Event, ProcId, StartHow, ThreadId};
use crewind_trace::{StreamReader, StreamWriter};
use crewind_x86::ctx::{Ctx, VecState};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const VM: u64 = libc::CLONE_VM as u64;
const THREAD: u64 = libc::CLONE_THREAD as u64;
const VFORK: u64 = libc::CLONE_VFORK as u64;
const SETTLS: u64 = libc::CLONE_SETTLS as u64;
const PARENT_SETTID: u64 = libc::CLONE_PARENT_SETTID as u64;
const CHILD_SETTID: u64 = libc::CLONE_CHILD_SETTID as u64;
const CHILD_CLEARTID: u64 = libc::CLONE_CHILD_CLEARTID as u64;
/// Namespaces and other flags that only the kernel can give effect to.
const EXOTIC: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_PARENT) as u64;

/// Stack of the host side of a guest thread: runtime code only.
const HOST_STACK: usize = 512 << 10;

/// What a call asks for.
#[derive(Clone, Copy, Debug)]
struct Ask {
    flags: u64,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
}

/// The guest's registers, to be given to a child.
pub(crate) struct State {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    mxcsr: u32,
    fs_base: u64,
    /// None: what the following says.
    vec: Option<Box<VecState>>,
    fp: Vec<u8>,
    clock: u64,
}

impl State {
    fn save(ctx: &Ctx) -> State {
        let mut vec = Box::new(VecState {
            zmm: [[0; 64]; 32],
            k: [0; 8],
        });
        vec.zmm.copy_from_slice(&ctx.vec.zmm);
        vec.k = ctx.vec.k;
        State {
            gpr: ctx.gpr,
            rip: ctx.rip,
            rflags: ctx.rflags,
            mxcsr: ctx.mxcsr,
            fs_base: ctx.fs_base,
            vec: Some(vec),
            fp: fpstate::save(ctx),
            clock: ctx.clock(),
        }
    }

    pub(crate) fn restore(&self, ctx: &mut Ctx) {
        // The image is one of ours, so it is valid; it brings the x87 state over to this host thread.
        let _ = fpstate::restore(ctx, &self.fp);
        ctx.gpr = self.gpr;
        ctx.rip = self.rip;
        ctx.rflags = self.rflags;
        ctx.mxcsr = self.mxcsr;
        if let Some(vec) = &self.vec {
            ctx.vec.zmm.copy_from_slice(&vec.zmm);
            ctx.vec.k = vec.k;
        }
        ctx.fs_base = self.fs_base;
        ctx.set_clock(self.clock);
        crewind_x86::set_guest_fs_base(self.fs_base);
    }
}

impl Runtime {
    /// `fork`, `vfork`, `clone`. `clone3` is refused, which makes C libraries use `clone`.
    pub fn sys_clone(&mut self, th: &mut Thread, call: &Call) -> Flow {
        let [a, b, c, d, e, _] = call.args;
        let ask = match i64::from(call.nr) {
            libc::SYS_fork => Ask {
                flags: libc::SIGCHLD as u64,
                stack: 0,
                parent_tid: 0,
                child_tid: 0,
                tls: 0,
            },
            libc::SYS_vfork => Ask {
                flags: VM | VFORK | libc::SIGCHLD as u64,
                stack: 0,
                parent_tid: 0,
                child_tid: 0,
                tls: 0,
            },
            libc::SYS_clone => Ask {
                flags: a,
                stack: b,
                parent_tid: c,
                child_tid: d,
                tls: e,
            },
            _ => return self.emulated(th, call, -i64::from(libc::ENOSYS)),
        };
        if ask.flags & THREAD != 0 {
            let needed = VM | libc::CLONE_SIGHAND as u64;
            if ask.flags & needed != needed {
                return self.emulated(th, call, -i64::from(libc::EINVAL));
            }
            return self.new_thread(th, call, &ask);
        }
        if ask.flags & VM != 0 && ask.flags & VFORK == 0 {
            self.warn_once(call.nr, format_args!("clone(CLONE_VM) of a process that runs beside its parent is not supported; the program got EINVAL (if it is LeakSanitizer: set ASAN_OPTIONS=detect_leaks=0)"));
            return self.emulated(th, call, -i64::from(libc::EINVAL));
        }
        match self.mode {
            Mode::Record => self.fork_record(th, call, &ask),
            Mode::Replay => self.fork_replay(th, call, &ask),
        }
    }

    // ---- processes ----

    fn fork_record(&mut self, th: &mut Thread, call: &Call, ask: &Ask) -> Flow {
        let (child, child_thread) = match &self.session {
            Some(session) if self.deferred.is_none() || ask.flags & VM != 0 => {
                (session.next_proc(), session.next_thread())
            }
            // Not in the trace.
            _ => (ProcId(1), ThreadId(1)),
        };
        host::block_all();
        if let Some(par) = self.par {
            par.stop_world(th);
        }
        if ask.flags & VM == 0 {
            self.share_at_fork();
        }
        th.log_shared();
        let made = self.make_process(th, call, ask, child, child_thread, None);
        if let (Some(par), Made::Parent(_)) = (self.par, &made) {
            par.resume_world();
        }
        match made {
            Made::Child => {
                if self.deferred.is_none() {
                    self.await_own_record(th, ask.flags);
                }
                self.begin_child(th, call, ask, child, child_thread, None);
                Flow::Go
            }
            // The child has written the record.
            Made::Parent(pid) if pid >= 0 && ask.flags & VM != 0 => {
                self.finish(th, call, pid);
                self.reopen_signals(th);
                Flow::Go
            }
            Made::Parent(pid) if pid >= 0 => {
                if ask.flags & PARENT_SETTID != 0 {
                    self.put_guest(ask.parent_tid, &(pid as i32).to_le_bytes());
                }
                if self.deferred.is_some() {
                    if self.records_a_part() {
                        self.warn_once(libc::SYS_fork as u32, format_args!("the program forked a process ({pid}) while a part of its run is recorded; only the one process is in the trace (crewind start {pid} records the other one by itself)"));
                    }
                    self.complete(
                        th,
                        call,
                        Logged {
                            ret: pid,
                            ..Logged::default()
                        },
                    );
                    self.reopen_signals(th);
                    return Flow::Go;
                }
                let event = Event::Fork {
                    child,
                    child_thread,
                    nr: call.nr,
                    pid: pid as i32,
                    turn: None,
                };
                th.append_at(call.clock, call.pc, call.regs, event);
                self.finish(th, call, pid);
                self.reopen_signals(th);
                Flow::Go
            }
            Made::Parent(errno) => {
                self.complete(
                    th,
                    call,
                    Logged {
                        ret: errno,
                        ..Logged::default()
                    },
                );
                self.reopen_signals(th);
                Flow::Go
            }
        }
    }

    fn fork_replay(&mut self, th: &mut Thread, call: &Call, ask: &Ask) -> Flow {
        let r = self.logged_record(th, call);
        let (child, child_thread, pid) = match &r.event {
            Event::Fork {
                child,
                child_thread,
                nr,
                pid,
                ..
            } if *nr == call.nr => (*child, *child_thread, *pid),
            // Where the recording began in the middle, children are left out.
            Event::Syscall { nr, ret, .. } if *nr == call.nr => {
                let ret = *ret;
                if ret > 0 && ask.flags & PARENT_SETTID != 0 {
                    self.put_guest(ask.parent_tid, &(ret as i32).to_le_bytes());
                }
                self.finish(th, call, ret);
                return Flow::Go;
            }
            _ => self.diverged_call(th, call, &r),
        };
        let shares = ask.flags & VM != 0;
        let made = match self.what_of_child(child) {
            // One that shares this memory may change it, until it ends or executes a program.
            Child::LeftOut if !shares => Made::Parent(i64::from(pid)),
            Child::Followed => {
                self.followed();
                self.in_vfork |= shares;
                Made::Child
            }
            Child::Made | Child::LeftOut => {
                if let Some(par) = self.par {
                    par.stop_world(th);
                }
                let made = self.make_process(th, call, ask, child, child_thread, Some(pid));
                if let (Some(par), Made::Parent(_)) = (self.par, &made) {
                    par.resume_world();
                }
                made
            }
        };
        match made {
            Made::Child => {
                self.begin_child(th, call, ask, child, child_thread, Some(pid));
                Flow::Go
            }
            Made::Parent(host) if host >= 0 => {
                if ask.flags & PARENT_SETTID != 0 {
                    self.put_guest(ask.parent_tid, &pid.to_le_bytes());
                }
                self.finish(th, call, i64::from(pid));
                Flow::Go
            }
            Made::Parent(errno) => crate::report::fail(
                Failure::Usage,
                format_args!(
                    "this machine cannot make another process (errno {}); the recording had one here",
                    -errno
                ),
            ),
        }
    }

    fn reopen_signals(&mut self, th: &mut Thread) {
        if th.pending.load(Ordering::Acquire) == 0 {
            host::set_mask(th.mask);
        }
    }

    /// Makes the host process. A `vfork` child shares this memory and runs on its own host stack inside
    /// this function; the parent continues when it has gone.
    fn make_process(
        &mut self,
        th: &mut Thread,
        call: &Call,
        ask: &Ask,
        child: ProcId,
        child_thread: ThreadId,
        pid: Option<i32>,
    ) -> Made {
        let shares = ask.flags & VM != 0;
        if shares {
            return Made::Parent(self.vfork(th, call, ask, child, child_thread, pid));
        }
        let exotic = self.recording() && ask.flags & (EXOTIC | VFORK) != 0;
        let result = if exotic {
            let flags = (ask.flags & (EXOTIC | VFORK)) | (ask.flags & 0xff);
            // SAFETY: a clone without shared memory: the child continues here with a copy of everything.
            unsafe { hostcall::raw(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]) }
        } else {
            // SAFETY: the vcpu is held, so no other thread is inside runtime code that a child could miss;
            // the C library takes care of its own locks.
            match unsafe { libc::fork() } {
                -1 => crate::errno::Errno::last().to_ret(),
                p => i64::from(p),
            }
        };
        if result == 0 {
            Made::Child
        } else {
            Made::Parent(result)
        }
    }

    /// In a new process: waits until its parent has logged it. A parent that is killed before that would leave a
    /// process whose doings are in the trace and that no replay makes; then this process ends here, as if the
    /// parent had been killed before the fork.
    fn await_own_record(&self, th: &Thread, flags: u64) {
        // The parent needs some microseconds, unless there is no processor for it.
        const TRIES: u32 = 100;
        const NAP: Duration = Duration::from_micros(200);
        // For the death of a parent that cannot be seen.
        const PATIENCE: Duration = Duration::from_secs(30);
        let Log::Record(parents) = &th.log else {
            return;
        };
        let start = Instant::now();
        let mut tries = 0;
        while !parents.has_gone_on() {
            // SAFETY: returns a number.
            let parent = unsafe { hostcall::raw(libc::SYS_getppid, [0; 6]) };
            let hidden = parent == 0 || flags & libc::CLONE_PARENT as u64 != 0;
            let gone = if hidden {
                start.elapsed() > PATIENCE
            } else {
                parent != i64::from(self.pid)
            };
            // It may have died right after.
            if gone && !parents.has_gone_on() {
                super::leave(0);
            }
            tries += 1;
            if tries < TRIES {
                std::thread::yield_now();
            } else {
                std::thread::sleep(NAP);
            }
        }
    }

    /// In the child: a process of its own, with its own stream.
    fn begin_child(
        &mut self,
        th: &mut Thread,
        call: &Call,
        ask: &Ask,
        proc: ProcId,
        id: ThreadId,
        pid: Option<i32>,
    ) {
        // A child has no twin. (One of `vfork` does not find its parent's here.)
        self.lockstep = None;
        let how = if ask.flags & VM != 0 {
            StartHow::Vfork
        } else {
            StartHow::Fork
        };
        let parent = self.proc;
        // SAFETY: returns a number.
        let host_pid = unsafe { hostcall::raw(libc::SYS_getpid, [0; 6]) } as i32;
        self.proc = proc;
        self.pid = pid.unwrap_or(host_pid);
        self.threads.clear();
        self.threads.insert(id, ThreadRef(th));
        self.warned.clear();
        th.id = id;
        th.tid = self.pid;
        th.pending.store(0, Ordering::Release);
        th.held.clear();
        th.clear_tid = if ask.flags & CHILD_CLEARTID != 0 {
            ask.child_tid
        } else {
            0
        };
        th.robust = (0, 0);
        th.completed = 0;
        th.unordered = how == StartHow::Vfork && self.par.is_some();
        if how == StartHow::Fork {
            sched::only(id);
            self.go_serial(th);
            self.vcpu = Vcpu::held();
            self.preempter = false;
            HOLDER.store(th.ctx, Ordering::Release);
            let effects = self.space.after_fork();
            self.apply(effects);
        }
        if ask.flags & CHILD_SETTID != 0 {
            let tid = th.tid;
            self.put_guest(ask.child_tid, &tid.to_le_bytes());
        }
        if ask.stack != 0 {
            th.ctx().gpr[4] = ask.stack;
        }
        if ask.flags & SETTLS != 0 {
            th.ctx().fs_base = ask.tls;
            crewind_x86::set_guest_fs_base(ask.tls);
        }
        self.finish(th, call, 0);
        match self.mode {
            Mode::Record if self.deferred.is_some() && how == StartHow::Fork => {
                self.begin_unrecorded(th);
                host::set_mask(th.mask);
            }
            Mode::Record if matches!(th.log, Log::Off) => host::set_mask(th.mask),
            Mode::Record => {
                let old = std::mem::replace(&mut th.log, Log::Closed);
                if how == StartHow::Fork {
                    if let Log::Record(w) = old {
                        w.detach();
                    }
                } else {
                    // The parent's writer: it goes on with it.
                    std::mem::forget(old);
                }
                th.log = open_writer(&self.trace, id);
                let pid = self.pid;
                th.append(Event::ProcessStart {
                    proc,
                    parent: Some(parent),
                    how,
                    pid,
                });
                host::set_mask(th.mask);
            }
            Mode::Replay => {
                let old = std::mem::replace(&mut th.log, Log::Closed);
                if how == StartHow::Vfork {
                    std::mem::forget(old);
                }
                th.log = open_follower(&self.trace, id, 0);
                let Some(r) = self.take_record(th) else {
                    self.end_of_log(th)
                };
                if !matches!(r.event, Event::ProcessStart { proc: p, .. } if p == proc) {
                    self.diverged(th, &r, "the start of a process");
                }
            }
        }
        crate::log!(
            Level::Info,
            "process {} (pid {}) started by {}",
            proc.0,
            self.pid,
            parent.0
        );
    }

    /// `vfork`: the child runs in this memory, on a host stack of its own, and this thread continues when
    /// the child has executed a program or ended. What is the process's own is put aside meanwhile. Nobody
    /// else runs: the vcpu stays with this thread and its child.
    fn vfork(
        &mut self,
        th: &mut Thread,
        call: &Call,
        ask: &Ask,
        child: ProcId,
        child_thread: ThreadId,
        pid: Option<i32>,
    ) -> i64 {
        let state = State::save(th.ctx());
        let tick_at = th.ctx().tick_at;
        // SAFETY: a copy that is put back below; the child leaves the original alone (`forget`) once it has appended
        // the record of its own start, and then renews the copy.
        let mut log = unsafe { std::ptr::read(&th.log) };
        let kept = (
            self.proc,
            self.pid,
            self.actions,
            self.fds.clone(),
            std::mem::take(&mut self.threads),
            self.in_vfork,
            std::mem::take(&mut self.warned),
            self.limits,
        );
        let own = (
            th.id,
            th.tid,
            th.mask,
            th.altstack,
            th.clear_tid,
            th.robust,
            th.interrupted,
            std::mem::take(&mut th.held),
            (th.unordered, th.order.take()),
        );
        let ordering = Ordered::of(th);
        let lockstep = self.lockstep.take();
        self.in_vfork = true;
        let mut start = VforkStart {
            rt: self,
            th,
            ask: *ask,
            child,
            child_thread,
            pid,
            host_pid: 0,
            call: *call,
            log: &raw mut log,
            ordering,
        };
        let host_pid = &raw mut start.host_pid;
        let mut stack = vec![0u8; HOST_STACK];
        let top = (stack.as_mut_ptr() as usize + HOST_STACK) & !63;
        // SAFETY: the child runs `vfork_child` on `stack`, which lives until this thread is resumed, that is
        // until the child no longer uses this memory.
        let result = unsafe {
            libc::clone(
                vfork_child,
                top as *mut libc::c_void,
                libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID | libc::SIGCHLD,
                (&raw mut start).cast(),
                host_pid,
            )
        };
        let errno = crate::errno::Errno::last();
        let (rt, th) = (start.rt, start.th);
        // SAFETY: these are the references this function was called with, passed through `start` because the
        // child changed what they refer to.
        let (rt, th) = unsafe { (&mut *rt, &mut *th) };
        // SAFETY: what is there now is the child's log, whose owner is gone, or the bytes of `log`.
        unsafe {
            std::ptr::write(&mut th.log, log);
        }
        (
            rt.proc,
            rt.pid,
            rt.actions,
            rt.fds,
            rt.threads,
            rt.in_vfork,
            rt.warned,
            rt.limits,
        ) = kept;
        (
            th.id,
            th.tid,
            th.mask,
            th.altstack,
            th.clear_tid,
            th.robust,
            th.interrupted,
            th.held,
            (th.unordered, th.order),
        ) = own;
        start.ordering.put_back(th);
        rt.lockstep = lockstep;
        if let Some(l) = &mut rt.lockstep {
            l.all_changed(&rt.space);
        }
        th.temp_mask = None;
        th.pending.store(0, Ordering::Release);
        let ctx = th.ctx();
        state.restore(ctx);
        ctx.set_limit(tick_at);
        if result < 0 {
            errno.to_ret()
        } else {
            i64::from(result)
        }
    }

    // ---- threads ----

    fn new_thread(&mut self, th: &mut Thread, call: &Call, ask: &Ask) -> Flow {
        if let Some(l) = self.lockstep.take() {
            l.finish("the program made a second thread; only one can be compared");
        }
        if let Err(e) = self.go_parallel(th) {
            crate::report::fail(
                Failure::Unsupported,
                format_args!(
                    "there is no memory for running threads in parallel ({e}); record with --cpus 1"
                ),
            );
        }
        let planned = match self.mode {
            Mode::Record => match self.number_of_new_thread() {
                Some(id) => (id, None),
                None => return Flow::Go,
            },
            Mode::Replay => {
                let r = self.logged_record(th, call);
                match &r.event {
                    Event::Clone { thread, tid } => (*thread, Some(*tid)),
                    Event::Syscall { nr, ret, .. } if *nr == call.nr && *ret < 0 => {
                        self.finish(th, call, *ret);
                        return Flow::Go;
                    }
                    _ => self.diverged_call(th, call, &r),
                }
            }
        };
        let (id, tid) = planned;
        let mut state = State::save(th.ctx());
        state.gpr[0] = 0;
        state.gpr[1] = call.next;
        state.gpr[11] = state.rflags;
        state.rip = call.next;
        if ask.stack != 0 {
            state.gpr[4] = ask.stack;
        }
        if ask.flags & SETTLS != 0 {
            state.fs_base = ask.tls;
        }
        let (tell, told) = mpsc::channel();
        let birth = Birth {
            id,
            tid,
            mask: th.mask,
            clear_tid: if ask.flags & CHILD_CLEARTID != 0 {
                ask.child_tid
            } else {
                0
            },
            state,
            trace: self.trace.clone(),
            mode: self.mode,
            par: self.par,
            vcpu: th.vcpu,
            tell,
            off: matches!(th.log, Log::Off),
            begins: None,
        };
        host::block_all();
        // Before the child can wait for its turn.
        if self.par.is_none() {
            self.vcpu.thread_joined();
        }
        let spawned = birth.spawn(id);
        let answer = match spawned {
            Ok(()) => told.recv().ok(),
            Err(_) => None,
        };
        self.reopen_signals(th);
        let Some((child, tid)) = answer else {
            let again = -i64::from(libc::EAGAIN);
            if self.mode == Mode::Replay {
                crate::report::fail(
                    Failure::Usage,
                    format_args!(
                        "this machine cannot make another thread; the recording had one here"
                    ),
                );
            }
            self.complete(
                th,
                call,
                Logged {
                    ret: again,
                    ..Logged::default()
                },
            );
            return Flow::Go;
        };
        self.threads.insert(id, child);
        // SAFETY: the new thread waits for its turn.
        self.number_in_region(unsafe { &mut *child.0 });
        if ask.flags & PARENT_SETTID != 0 {
            self.put_guest(ask.parent_tid, &tid.to_le_bytes());
        }
        if ask.flags & CHILD_SETTID != 0 {
            self.put_guest(ask.child_tid, &tid.to_le_bytes());
        }
        if self.recording() {
            th.append_at(
                call.clock,
                call.pc,
                call.regs,
                Event::Clone { thread: id, tid },
            );
            if !self.preempter && !self.in_vfork {
                self.preempter = true;
                start_preempter();
            }
        }
        self.finish(th, call, i64::from(tid));
        // Only now may the child take its turn: it would find the thread table without itself.
        Flow::Go
    }
}

enum Made {
    Child,
    /// The child's host pid, or a negative errno.
    Parent(i64),
}

struct VforkStart {
    rt: *mut Runtime,
    th: *mut Thread,
    ask: Ask,
    child: ProcId,
    child_thread: ThreadId,
    pid: Option<i32>,
    /// Set by the kernel before the child starts: its number as its parent sees it.
    host_pid: i32,
    /// The parent's call.
    call: Call,
    /// The parent's log, which it will go on with.
    log: *mut Log,
    /// What the parent goes on with besides.
    ordering: Ordered,
}

/// What a thread's events are ordered by.
struct Ordered {
    completed: u64,
    epoch: u64,
    edges: Vec<crewind_trace::event::Edge>,
    known: crewind_crew::Known,
}

impl Ordered {
    fn of(th: &Thread) -> Self {
        Ordered {
            completed: th.completed,
            epoch: th.epoch,
            edges: th.edges.clone(),
            known: th.known.clone(),
        }
    }

    fn put_back(&mut self, th: &mut Thread) {
        th.completed = self.completed;
        th.epoch = self.epoch;
        th.edges = std::mem::take(&mut self.edges);
        th.known = std::mem::take(&mut self.known);
    }
}

/// Appends the record of a `vfork`, in the child: the parent gets no further until the child has executed a program
/// or ended, and may be killed meanwhile. What the child did must not be without it.
fn log_vfork(th: &mut Thread, s: &mut VforkStart) {
    let event = Event::Fork {
        child: s.child,
        child_thread: s.child_thread,
        nr: s.call.nr,
        pid: s.host_pid,
        turn: None,
    };
    th.append_at(s.call.clock, s.call.pc, s.call.regs, event);
    // SAFETY: the parent's copy of the same log, which it neither uses nor drops before the child has gone; the
    // child forgets its own.
    unsafe { std::ptr::copy_nonoverlapping(&raw const th.log, s.log, 1) };
    s.ordering = Ordered::of(th);
}

extern "C" fn vfork_child(arg: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `vfork` passes its `VforkStart`, and waits until this process has gone.
    let s = unsafe { &mut *arg.cast::<VforkStart>() };
    // SAFETY: as above: the parent's references are not used meanwhile.
    let (rt, th) = unsafe { (&mut *s.rt, &mut *s.th) };
    let regs = th.reg_hash();
    let ctx = th.ctx();
    let call = Call {
        nr: 0,
        args: [0; 6],
        pc: ctx.rip,
        next: ctx.rip + 2,
        clock: ctx.clock(),
        regs,
        argc: 0,
    };
    if rt.recording() {
        log_vfork(th, s);
    }
    rt.begin_child(th, &call, &s.ask, s.child, s.child_thread, s.pid);
    rt.run_thread(th);
    super::leave(0)
}

/// A thread that a recording began with.
pub(crate) struct Begins {
    pub of: Of,
    pub par: &'static crate::par::Par,
}

/// What a new thread starts with.
pub(crate) struct Birth {
    id: ThreadId,
    tid: Option<i32>,
    mask: u64,
    clear_tid: u64,
    state: State,
    trace: std::path::PathBuf,
    mode: Mode,
    par: Option<&'static crate::par::Par>,
    /// The creator's.
    vcpu: u8,
    tell: mpsc::Sender<(ThreadRef, i32)>,
    /// Recording: nothing is logged.
    off: bool,
    /// Replaying: it is there when the recording begins.
    begins: Option<Begins>,
}

impl Birth {
    /// The registers of a thread that a recording began with.
    pub(crate) fn state_of(of: &Of) -> State {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&of.registers[..16]);
        let [rip, rflags, fs_base, clock] = [16, 17, 18, 19].map(|i| of.registers[i]);
        /// Where MXCSR is in the image of a signal frame.
        const MXCSR: usize = 24;
        let mxcsr = (of.vectors.0.get(MXCSR..MXCSR + 4))
            .and_then(|b| b.try_into().ok())
            .map_or(0x1f80, u32::from_le_bytes);
        State {
            gpr,
            rip,
            rflags,
            mxcsr,
            fs_base,
            vec: None,
            fp: of.vectors.0.clone(),
            clock,
        }
    }

    /// Replaying: makes a thread again that a recording began with.
    pub(crate) fn again(rt: &mut Runtime, begins: Begins, vcpu: u8) -> Option<ThreadRef> {
        let (tell, told) = mpsc::channel();
        let id = begins.of.thread_id();
        let birth = Birth {
            id,
            tid: Some(begins.of.tid),
            mask: begins.of.mask,
            clear_tid: begins.of.clear_tid,
            state: Birth::state_of(&begins.of),
            trace: rt.trace.clone(),
            mode: rt.mode,
            par: Some(begins.par),
            vcpu,
            tell,
            off: false,
            begins: Some(begins),
        };
        host::block_all();
        let spawned = birth.spawn(id);
        let answer = spawned.ok().and_then(|()| told.recv().ok());
        host::set_mask(0);
        answer.map(|(child, _)| child)
    }

    /// Begins its life on a host thread.
    fn spawn(self, id: ThreadId) -> std::io::Result<()> {
        if sched::active() {
            return sched::spawn(id, move || self.live());
        }
        std::thread::Builder::new()
            .stack_size(HOST_STACK)
            .spawn(move || self.live())
            .map(drop)
    }

    fn live(self) {
        if !sched::active() && host::install_stack().is_err() {
            return;
        }
        // SAFETY: returns a number.
        let own = unsafe { hostcall::raw(libc::SYS_gettid, [0; 6]) } as i32;
        let tid = self.tid.unwrap_or(own);
        let log = match self.mode {
            Mode::Record if self.off => Log::Off,
            Mode::Record => open_writer(&self.trace, self.id),
            Mode::Replay => open_follower(&self.trace, self.id, 0),
        };
        let mut th = Thread::new(self.id, tid, log);
        th.mask = self.mask;
        th.clear_tid = self.clear_tid;
        self.state.restore(th.ctx());
        crate::deferred::note_x87(&mut th);
        let p: *mut Thread = &mut *th;
        thread::set_current(p);
        if let Some(par) = self.par {
            return self.live_parallel(th, par);
        }
        let turn = match th.upcoming().map(|r| &r.event) {
            Some(Event::ThreadStart { turn, .. }) => Some(*turn),
            _ => None,
        };
        if self.tell.send((ThreadRef(p), tid)).is_err() {
            return;
        }
        let v = crate::runtime::vcpu();
        if sched::active() {
            let _ = sched::wait(Wait::Nothing);
        }
        let turn = match (self.mode, turn) {
            (Mode::Record, _) => v.acquire(),
            (Mode::Replay, Some(turn)) => {
                let waited = if sched::active() {
                    sched::wait(Wait::Turn(turn)).is_ok()
                } else {
                    v.replay_wait(turn).is_ok()
                };
                if !waited {
                    // SAFETY: nobody has the vcpu, nor ever will.
                    let rt = unsafe { crate::runtime::get() };
                    th.turn_never_comes(rt.complete_trace, &rt.trace);
                }
                turn
            }
            // Never got a turn before the recording ended.
            (Mode::Replay, None) if sched::active() => {
                let sched::Stuck = sched::wait_for_ever();
                // SAFETY: nobody has the vcpu, nor ever will.
                let rt = unsafe { crate::runtime::get() };
                th.log_is_over(rt.complete_trace, &rt.trace)
            }
            (Mode::Replay, None) => loop {
                if v.idle().is_err() {
                    // SAFETY: nobody has the vcpu, nor ever will.
                    let rt = unsafe { crate::runtime::get() };
                    th.log_is_over(rt.complete_trace, &rt.trace);
                }
                // SAFETY: waits for the end of the process.
                unsafe {
                    libc::pause();
                }
            },
        };
        HOLDER.store(th.ctx, Ordering::Release);
        // SAFETY: the vcpu is held.
        let rt = unsafe { crate::runtime::get() };
        match self.mode {
            Mode::Record => {
                th.append(Event::ThreadStart {
                    proc: rt.proc,
                    tid,
                    turn,
                });
                host::set_mask(th.mask);
            }
            Mode::Replay => {
                th.take();
            }
        }
        rt.run_thread(&mut th);
        thread::set_current(std::ptr::null_mut());
    }
}

impl Birth {
    fn live_parallel(self, mut th: Box<Thread>, par: &'static crate::par::Par) {
        th.vcpu = self.vcpu;
        if let Some(b) = &self.begins {
            par.began_with(&mut th, b.of.doing);
            b.of.put_into(&mut th);
            crate::deferred::first_record(&mut th, b.of.doing);
        }
        if self.mode == Mode::Replay {
            par.register(&mut th);
        }
        let p: *mut Thread = &mut *th;
        if self.tell.send((ThreadRef(p), th.tid)).is_err() {
            return;
        }
        if sched::active() {
            let _ = sched::wait(Wait::Nothing);
        }
        if let Some(b) = &self.begins {
            Runtime::run_restored(&mut th, b.of.doing, par);
            return thread::set_current(std::ptr::null_mut());
        }
        par.first_vcpu(&mut th);
        // SAFETY: the runtime lock is held.
        let rt = unsafe { crate::runtime::get() };
        match self.mode {
            Mode::Record => {
                let event = Event::ThreadStart {
                    proc: rt.proc,
                    tid: th.tid,
                    turn: 0,
                };
                th.append(event);
                th.started = true;
                host::set_mask(th.mask);
            }
            Mode::Replay => {
                let r = th.take();
                if !matches!(
                    r.as_ref().map(|r| &r.event),
                    Some(Event::ThreadStart { .. })
                ) {
                    rt.end_of_log(&mut th);
                }
            }
        }
        rt.run_thread(&mut th);
        thread::set_current(std::ptr::null_mut());
    }
}

/// The stream of a new thread.
pub fn open_writer(trace: &std::path::Path, id: ThreadId) -> Log {
    match StreamWriter::create(trace, id) {
        Ok(w) => Log::Record(w),
        Err(e) => crate::report::fail(Failure::Usage, format_args!("cannot go on recording: {e}")),
    }
}

/// The recorded stream of a thread, behind its first `skip` records. `Closed` when its thread was killed before it
/// had one.
pub fn open_follower(trace: &std::path::Path, id: ThreadId, skip: u64) -> Log {
    let extent = crate::replayed::extent_of(id);
    if extent == 0 {
        return Log::Closed;
    }
    match StreamReader::open(trace, id).and_then(|r| Follower::new(r, skip, extent)) {
        Ok(f) => Log::Replay(Box::new(f)),
        Err(_) if records_stated(trace, id) == 0 && extent == u64::MAX => Log::Closed,
        Err(e) => crate::report::fail(Failure::TraceEnd, format_args!("{e}")),
    }
}

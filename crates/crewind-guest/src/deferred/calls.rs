//! The calls by which a program has itself recorded: `start_rec`, `stop_rec`, `rec_owner`, `start_rep`, `stop_rep`.
//!
//! They are system calls with numbers outside of Linux's table, so any kernel answers ENOSYS when no crewind is there.
//! `crewind-api` has the wrappers and says what each returns.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{Phase, change_phase, finish, phase, set_phase};
use crate::par::lock::{futex_wait, futex_wake};
use crate::runtime::{Flow, Runtime};
use crate::start::Mode;
use crate::syscall::{Call, Logged};
use crate::thread::Thread;
use crewind_trace::event::Event;

/// Numbers of the calls. They have no meaning to any kernel, and not the bit that selects the x32 table.
pub const START: u32 = 0x00c3_e001;
/// Ends what `START` began.
pub const STOP: u32 = 0x00c3_e002;
/// One step in the order.
pub const OWNER: u32 = 0x00c3_e003;
/// Copies the list of steps.
pub const LIST: u32 = 0x00c3_e004;

/// States of `START` and `STOP`.
const RECORD: u64 = 0;
const REPLAY: u64 = 1;

/// Bytes of a `struct recording`.
const NODE: u64 = 40;
/// Where its `next` is.
const NEXT: u64 = 32;

/// So long a thread waits for another one's step when it replays in place. What takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Changes with each step, for those who wait.
static STEPS: AtomicU32 = AtomicU32::new(0);

/// One call of `rec_owner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// Of the thread since the region began; 0 in a list to replay: not to be compared.
    branches: u64,
    /// What the processor counted of those that it predicted wrongly.
    missed: u64,
    thread: u32,
    pc: u64,
}

/// A thread's part in a region.
#[derive(Debug, Default)]
pub struct Region {
    /// Its number, from 1.
    number: u32,
    /// The clock from which its branches are counted.
    since: u64,
}

impl Step {
    fn bytes(&self, next: u64) -> [u8; NODE as usize] {
        let mut b = [0; NODE as usize];
        b[..8].copy_from_slice(&self.branches.to_le_bytes());
        b[8..16].copy_from_slice(&self.missed.to_le_bytes());
        b[16..20].copy_from_slice(&self.thread.to_le_bytes());
        b[24..32].copy_from_slice(&self.pc.to_le_bytes());
        b[32..].copy_from_slice(&next.to_le_bytes());
        b
    }
}

/// What the calls of a process are about.
#[derive(Default)]
pub(super) struct Calls {
    /// Steps since the region began.
    steps: Vec<Step>,
    /// What they have to be, when replaying in place.
    wanted: Vec<Step>,
    /// By thread, at its last call: its branches, and what they had to be.
    compared: HashMap<u32, (u64, u64)>,
    /// By thread.
    counters: HashMap<u32, super::missed::Counter>,
    /// Number of the next thread in the region.
    next_thread: u32,
    /// A thread did not fit, so the rest cannot be followed.
    broken: bool,
}

impl Runtime {
    /// One of the calls; none: it is another system call.
    pub(crate) fn recording_call(&mut self, th: &mut Thread, call: &Call) -> Option<Flow> {
        if !matches!(call.nr, START | STOP | OWNER | LIST) {
            return None;
        }
        if self.mode == Mode::Replay {
            let r = self.logged_record(th, call);
            match &r.event {
                Event::Syscall { nr, ret, outs, .. } if *nr == call.nr => {
                    let ret = *ret;
                    self.write_outs(outs);
                    self.finish(th, call, ret);
                }
                // `stop_rec`.
                Event::ProcessExit { .. } => {
                    self.debug_end(th, "the program ended its recording here".into());
                    crate::process::leave(0);
                }
                _ => self.diverged_call(th, call, &r),
            }
            return Some(Flow::Go);
        }
        let ret = match (call.nr, self.deferred.is_some()) {
            // The recording is not the program's.
            (START | STOP, false) => -libc::EBUSY,
            (OWNER, false) => 0,
            (START, true) => match call.args[0] {
                RECORD => return Some(self.start_rec(th, call)),
                REPLAY => self.start_rep(th, call.args[1]),
                _ => -libc::EINVAL,
            },
            (STOP, true) => match call.args[0] {
                RECORD => return Some(self.stop_rec(th, call)),
                REPLAY => self.stop_rep(th),
                _ => -libc::EINVAL,
            },
            (OWNER, true) => return Some(self.rec_owner(th, call)),
            _ => return Some(self.list(th, call)),
        };
        Some(self.emulated(th, call, ret.into()))
    }

    fn start_rec(&mut self, th: &mut Thread, call: &Call) -> Flow {
        if self.in_vfork || !change_phase(Phase::Off, Phase::Changing) {
            return self.emulated(th, call, -i64::from(libc::EBUSY));
        }
        // The recording begins behind the call.
        self.finish(th, call, 0);
        super::note_x87(th);
        if let Some(par) = self.par {
            par.stop_world(th);
        }
        let begun = self.begin_recording();
        if let Some(par) = self.par {
            par.resume_world();
        }
        if let Err(e) = begun {
            crate::report::warn(format_args!("start_rec: {}", e.why));
            th.ctx().gpr[0] = (-i64::from(e.errno)) as u64;
        }
        Flow::Go
    }

    fn stop_rec(&mut self, th: &mut Thread, call: &Call) -> Flow {
        if self.in_vfork || !change_phase(Phase::Recording, Phase::Changing) {
            return self.emulated(th, call, -i64::from(libc::EINVAL));
        }
        if let Some(par) = self.par {
            par.stop_world(th);
        }
        let ended = self.end_recording(Some((th, call)));
        if let Some(par) = self.par {
            par.resume_world();
        }
        let steps = self.deferred.as_ref().map_or(0, |d| d.calls.steps.len());
        self.close_counters();
        self.finish(th, call, steps as i64);
        let control = self.exec.control;
        // Not while others wait for the runtime.
        if self.par.is_some() {
            self.release_vcpu(th);
            // It stands behind the call.
            th.in_call = false;
        } else {
            super::step_aside(th);
        }
        match ended {
            Some(active) => drop(finish(active, control)),
            None => set_phase(Phase::Off),
        }
        if self.par.is_some() {
            self.acquire_vcpu(th);
        } else {
            super::come_back();
        }
        Flow::Go
    }

    /// A region begins: its threads are numbered, and their branches counted from here.
    pub(super) fn begin_region(&mut self) {
        let mut n = 0;
        for t in self.threads.values() {
            // SAFETY: the world stands still.
            let th = unsafe { &mut *t.0 };
            n += 1;
            th.region = Region {
                number: n,
                since: th.ctx().clock(),
            };
        }
        self.close_counters();
        if let Some(state) = &mut self.deferred {
            state.calls = Calls {
                next_thread: n + 1,
                ..Calls::default()
            };
        }
    }

    fn close_counters(&mut self) {
        if let Some(state) = &mut self.deferred {
            for (_, mut counter) in state.calls.counters.drain() {
                counter.close(&mut self.fds);
            }
        }
    }

    /// A thread was made in the region.
    pub(crate) fn number_in_region(&mut self, th: &mut Thread) {
        if let Some(state) = &mut self.deferred {
            th.region = Region {
                number: state.calls.next_thread.max(1),
                since: th.ctx().clock(),
            };
            state.calls.next_thread = th.region.number + 1;
        }
    }

    /// One thread runs at a time, as when a recording is made with one virtual processor: code between a step and the
    /// next jump backwards is not interleaved with that of other steps.
    fn run_at_once(&mut self, th: &mut Thread, vcpus: usize, then: impl FnOnce(&mut Runtime)) {
        match self.par {
            Some(par) => {
                par.stop_world(th);
                par.run_at_once(vcpus);
                then(self);
                par.resume_world();
            }
            None => then(self),
        }
    }

    fn start_rep(&mut self, th: &mut Thread, list: u64) -> i32 {
        let mut wanted = Vec::new();
        let mut at = match crate::guestmem::read_u64(list.wrapping_add(NEXT)) {
            Ok(first) => first,
            Err(_) => return -libc::EFAULT,
        };
        while at != 0 {
            let mut node = [0; NODE as usize];
            if crate::guestmem::copy_from_guest(&mut node, at).is_err() {
                return -libc::EFAULT;
            }
            let long = |at: usize| {
                node.get(at..at + 8)
                    .and_then(|b| b.try_into().ok())
                    .map_or(0, u64::from_le_bytes)
            };
            wanted.push(Step {
                branches: long(0),
                missed: 0,
                thread: long(16) as u32,
                pc: long(24),
            });
            at = long(32);
            // A list that leads back into itself has no end.
            if wanted.len() > MOST_STEPS {
                return -libc::EINVAL;
            }
        }
        if self.in_vfork || !change_phase(Phase::Off, Phase::Following) {
            return -libc::EBUSY;
        }
        self.run_at_once(th, 1, Runtime::begin_region);
        if let Some(state) = &mut self.deferred {
            state.calls.wanted = wanted;
        }
        0
    }

    fn stop_rep(&mut self, th: &mut Thread) -> i32 {
        if !change_phase(Phase::Following, Phase::Off) {
            return -libc::EINVAL;
        }
        self.run_at_once(th, usize::MAX, |_| ());
        self.close_counters();
        STEPS.fetch_add(1, Ordering::AcqRel);
        futex_wake(&STEPS, u32::MAX >> 1);
        let Some(state) = &self.deferred else {
            return -libc::EINVAL;
        };
        let (done, wanted) = (state.calls.steps.len(), state.calls.wanted.len());
        if state.calls.broken || done != wanted {
            crate::report::warn(format_args!(
                "stop_rep: the recording has {wanted} calls of rec_owner, the replay made {done}"
            ));
            return -libc::ERANGE;
        }
        i32::try_from(done).unwrap_or(i32::MAX)
    }

    fn rec_owner(&mut self, th: &mut Thread, call: &Call) -> Flow {
        let phase = phase();
        if !matches!(phase, Phase::Recording | Phase::Following) {
            return self.emulated(th, call, -i64::from(libc::EINVAL));
        }
        let Some(state) = &mut self.deferred else {
            return Flow::Go;
        };
        let calls = &mut state.calls;
        let counter = calls.counters.entry(th.region.number).or_default();
        let step = Step {
            branches: call.clock.saturating_sub(th.region.since),
            missed: counter.read(&mut self.fds),
            thread: th.region.number,
            pc: call.pc,
        };
        if phase == Phase::Following {
            return self.follow(th, call, step);
        }
        let ret = if calls.steps.len() < MOST_STEPS {
            calls.steps.push(step);
            0
        } else {
            -libc::ENOSPC
        };
        self.emulated(th, call, ret.into())
    }

    /// Replaying in place: waits until it is the thread's turn.
    fn follow(&mut self, th: &mut Thread, call: &Call, step: Step) -> Flow {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.turn_of(&step, Instant::now() >= until) {
                Turn::Now => return self.emulated(th, call, 0),
                Turn::Never(errno) => return self.emulated(th, call, -i64::from(errno)),
                Turn::Later => {}
            }
            let seen = STEPS.load(Ordering::Acquire);
            if self.par.is_some() {
                self.release_vcpu(th);
            } else {
                super::step_aside(th);
            }
            futex_wait(&STEPS, seen, Some(20_000_000));
            if self.par.is_some() {
                self.acquire_vcpu(th);
            } else {
                super::come_back();
            }
            // A handler runs first; then the call is made again.
            if th.pending.load(Ordering::Acquire) != 0 {
                return Flow::Go;
            }
        }
    }

    fn turn_of(&mut self, step: &Step, patience_is_over: bool) -> Turn {
        if phase() != Phase::Following {
            return Turn::Never(libc::EINVAL);
        }
        let alive: Vec<u32> = (self.threads.values())
            // SAFETY: the runtime lock, or the token, is held; numbers are only changed with it.
            .map(|t| unsafe { (*t.0).region.number })
            .collect();
        let Some(state) = &mut self.deferred else {
            return Turn::Never(libc::EINVAL);
        };
        let calls = &mut state.calls;
        if calls.broken {
            return Turn::Never(libc::ECANCELED);
        }
        let done = calls.steps.len();
        let mut never = |errno: i32, why: String| {
            calls.broken = true;
            crate::report::warn(format_args!("rec_owner, call {}: {why}", done + 1));
            Turn::Never(errno)
        };
        let me = step.thread;
        let Some(next) = calls.wanted.get(done).copied() else {
            return never(
                libc::ERANGE,
                format!("thread {me} makes a call more than the {done} of the recording"),
            );
        };
        if next.thread == me {
            if next.pc != step.pc {
                return never(
                    libc::ESRCH,
                    format!(
                        "thread {me} calls from {:#x}, in the recording it did from {:#x}",
                        step.pc, next.pc
                    ),
                );
            }
            // Only what lies between two steps of a thread: where it was when the region began is chance, and how threads
            // come to life depends on what the process did before.
            let last = calls.compared.insert(me, (step.branches, next.branches));
            if let Some((found, wanted)) = last
                && wanted != 0
                && next.branches != 0
                && let found = step.branches.wrapping_sub(found)
                && let wanted = next.branches.wrapping_sub(wanted)
                && found != wanted
            {
                return never(
                    libc::ERANGE,
                    format!(
                        "thread {me} comes {found} branches after its last call, in the recording it came after {wanted}; its \
                         work was not the same (or functions were bound at their first call: link with -z now); where branchNum \
                         is 0 only the order counts"
                    ),
                );
            }
            calls.steps.push(*step);
            STEPS.fetch_add(1, Ordering::AcqRel);
            futex_wake(&STEPS, u32::MAX >> 1);
            return Turn::Now;
        }
        if !calls.wanted[done..].iter().any(|s| s.thread == me) {
            return never(
                libc::ESRCH,
                format!("thread {me} has no call any more in the recording"),
            );
        }
        let gone = !alive.contains(&next.thread) && next.thread < calls.next_thread;
        if gone || patience_is_over {
            let what = if gone {
                "has ended"
            } else {
                "does not make it"
            };
            return never(
                libc::ETIMEDOUT,
                format!(
                    "thread {me} waits for the call of thread {}, which {what}",
                    next.thread
                ),
            );
        }
        Turn::Later
    }

    /// Copies the list: nodes in the caller's memory, linked from the head it gives.
    fn list(&mut self, th: &mut Thread, call: &Call) -> Flow {
        let [head, nodes, room, ..] = call.args;
        let steps = match &self.deferred {
            Some(state) => state.calls.steps.clone(),
            None => return self.emulated(th, call, -i64::from(libc::EINVAL)),
        };
        let n = (steps.len() as u64).min(room);
        let Some(end) = n.checked_mul(NODE).and_then(|len| nodes.checked_add(len)) else {
            return self.emulated(th, call, -i64::from(libc::EFAULT));
        };
        let mut bytes = Vec::with_capacity((n * NODE) as usize);
        for (k, step) in steps.iter().take(n as usize).enumerate() {
            let next = nodes + (k as u64 + 1) * NODE;
            bytes.extend_from_slice(&step.bytes(if next == end { 0 } else { next }));
        }
        let first = if n == 0 { 0 } else { nodes };
        let written = self.put_guest(nodes, &bytes)
            && self.put_guest(head.wrapping_add(NEXT), &first.to_le_bytes());
        if !written {
            return self.emulated(th, call, -i64::from(libc::EFAULT));
        }
        let outs = [
            crate::syscall::capture(nodes, bytes.len() as u64),
            crate::syscall::capture(head.wrapping_add(NEXT), 8),
        ];
        self.complete(
            th,
            call,
            Logged {
                ret: steps.len() as i64,
                outs: outs.into_iter().flatten().collect(),
                ..Logged::default()
            },
        );
        Flow::Go
    }
}

/// Calls that a list holds at most: 2 GiB of nodes.
const MOST_STEPS: usize = 50_000_000;

/// When a thread may make its step.
enum Turn {
    Now,
    Later,
    Never(i32),
}

//! Ends of threads and processes, and of logs.

use crate::diag::Level;
use crate::guestmem;
use crate::hostcall;
use crate::log::Log;
use crate::par::replay::At;
use crate::process::{die_of, leave};
use crate::runtime::{Flow, Runtime};
use crate::start::{Failure, Mode};
use crate::syscall::Call;
use crate::thread::Thread;
use crewind_trace::event::{Event, Record};

/// `FUTEX_TID_MASK`, `FUTEX_WAITERS`, `FUTEX_OWNER_DIED`.
const TID_MASK: u32 = 0x3fff_ffff;
const WAITERS: u32 = 0x8000_0000;
const OWNER_DIED: u32 = 0x4000_0000;
/// Entries of a robust list that are looked at (the kernel's ROBUST_LIST_LIMIT).
const ROBUST_LIMIT: usize = 2048;
/// What a debugger is told of a process whose log just stops.
pub(crate) const KILLED: &str = "the process was killed here by SIGKILL";

impl Runtime {
    /// `exit`: the thread ends; the process too when it was the last one.
    pub fn sys_exit(&mut self, th: &mut Thread, call: &Call) -> Flow {
        if self.threads.len() <= 1 {
            return self.sys_exit_group(th, call);
        }
        let status = call.int(0);
        match self.mode {
            Mode::Record => {
                // First, for what it takes to touch that memory belongs in front of the event. The kernel is not to do it
                // again, when the list may be something else.
                hostcall::set_robust_list(0);
                self.thread_ends(th);
                th.append_at(call.clock, call.pc, call.regs, Event::ThreadExit { status })
            }
            Mode::Replay => {
                let r = self.logged_record(th, call);
                if !matches!(r.event, Event::ThreadExit { status: s } if s == status) {
                    self.diverged_call(th, call, &r);
                }
                self.thread_ends(th);
            }
        }
        Self::finish_log(&mut th.log);
        self.threads.remove(&th.id);
        if let Some(par) = self.par {
            crate::signal::host::block_all();
            if self.recording() {
                par.note_end(th);
            }
            par.give_vcpu(th);
            par.finish_order(th);
            par.unregister(th);
            par.unlock();
            return Flow::End;
        }
        self.vcpu.thread_left();
        crate::runtime::HOLDER.store(std::ptr::null_mut(), std::sync::atomic::Ordering::Release);
        crate::signal::host::block_all();
        self.vcpu.release();
        Flow::End
    }

    /// What the kernel does in guest memory when a thread ends and the process goes on. When the process ends, what matters is
    /// left to the kernel: robust mutexes in memory that others share.
    fn thread_ends(&mut self, th: &mut Thread) {
        self.walk_robust_list(th);
        if th.clear_tid != 0 && self.put_guest(th.clear_tid, &0u32.to_le_bytes()) {
            self.wake(th.clear_tid);
        }
    }

    fn walk_robust_list(&mut self, th: &mut Thread) {
        let (head, _) = th.robust;
        if head == 0 {
            return;
        }
        let word = |a: u64| guestmem::read_u64(a).ok();
        let (Some(mut entry), Some(offset), Some(pending)) =
            (word(head), word(head + 8), word(head + 16))
        else {
            return;
        };
        for _ in 0..ROBUST_LIMIT {
            if entry & !1 == head {
                break;
            }
            let next = word(entry & !1);
            if entry != pending {
                self.owner_died((entry & !1).wrapping_add(offset), th.tid);
            }
            match next {
                Some(n) => entry = n,
                None => return,
            }
        }
        if pending & !1 != 0 {
            self.owner_died((pending & !1).wrapping_add(offset), th.tid);
        }
    }

    fn owner_died(&mut self, addr: u64, tid: i32) {
        self.prepare_write(addr, 4);
        // Others may come to wait at the same moment, in other processes too.
        while let Ok(v) = guestmem::read_u32(addr)
            && v & TID_MASK == tid as u32
        {
            match guestmem::swap_u32(addr, v, (v & WAITERS) | OWNER_DIED) {
                Ok(true) => {
                    if v & WAITERS != 0 {
                        self.wake(addr);
                    }
                    return;
                }
                Ok(false) => {}
                Err(_) => return,
            }
        }
    }

    /// Wakes one waiter; in replay nobody waits in the kernel.
    fn wake(&self, addr: u64) {
        if self.recording() {
            // SAFETY: the kernel only uses the address as a key.
            unsafe {
                hostcall::raw(libc::SYS_futex, [addr, libc::FUTEX_WAKE as u64, 1, 0, 0, 0]);
            }
        }
    }

    /// `exit_group`, or the last thread's `exit`.
    pub fn sys_exit_group(&mut self, th: &mut Thread, call: &Call) -> Flow {
        let status = call.int(0) & 0xff;
        self.still(th);
        self.tell_translations();
        self.last_of_recording();
        let memory = self.checksums().then(|| self.space.checksum());
        match self.mode {
            Mode::Record => {
                let event = Event::ProcessExit {
                    status: Some(status),
                    signal: None,
                    memory,
                };
                th.append_at(call.clock, call.pc, call.regs, event);
                self.end_other_logs(th);
            }
            Mode::Replay => {
                let r = self.logged_record(th, call);
                self.check_end(th, &r, Some(status), None, memory);
                self.debug_end(th, format!("the process exited here with status {status}"));
            }
        }
        Self::finish_log(&mut th.log);
        leave(status)
    }

    /// For the developer: what the process's translations cost. Nobody else is in translated code.
    fn tell_translations(&self) {
        let tell = |c: &crewind_x86::CodeCache| {
            let s = c.stats();
            crate::log!(
                Level::Info,
                "translated {} blocks of {} bytes, thrown away {} and {} times everything; left translated code {} times",
                s.fragments,
                s.guest_bytes,
                s.invalidated,
                s.flushes,
                s.entries
            );
        };
        tell(&self.cache);
        if let Some(par) = self.par {
            let _ = par.each_cache(|c| {
                tell(c);
                Ok(())
            });
        }
    }

    /// The process is about to end, or to become another: its other threads stop for good.
    pub fn still(&mut self, th: &mut Thread) {
        if let Some(par) = self.par
            && !self.in_vfork
            && self.recording()
        {
            par.stop_world(th);
        }
    }

    /// A signal ends the process.
    pub fn fatal(&mut self, th: &mut Thread, signo: u32) -> Flow {
        self.still(th);
        self.last_of_recording();
        match self.mode {
            Mode::Record => {
                let memory = self.checksums().then(|| self.space.checksum());
                th.append(Event::ProcessExit {
                    status: None,
                    signal: Some(signo as u8),
                    memory,
                });
                self.end_other_logs(th);
            }
            Mode::Replay => {
                let Some(r) = self.take_record(th) else {
                    self.end_of_log(th)
                };
                // Hashed only now: until the record was taken, other threads may have been on their way to their ends.
                self.check_end(th, &r, None, Some(signo as u8), None);
                let name = crewind_syscalls::signal_name(signo as i32).unwrap_or("a signal");
                self.debug_end(th, format!("the process was ended here by {name}"));
            }
        }
        Self::finish_log(&mut th.log);
        die_of(signo)
    }

    fn check_end(
        &mut self,
        th: &mut Thread,
        r: &Record<'_>,
        status: Option<i32>,
        signal: Option<u8>,
        memory: Option<u64>,
    ) {
        let Event::ProcessExit {
            status: s,
            signal: g,
            memory: m,
        } = &r.event
        else {
            self.diverged(th, r, "the end of the process");
        };
        if (*s, *g) != (status, signal) {
            self.diverged(
                th,
                r,
                &format!("the end of the process with status {status:?}, signal {signal:?}"),
            );
        }
        if let Some(logged) = *m {
            let found = memory.unwrap_or_else(|| self.space.checksum());
            if logged != found {
                self.diverged(
                    th,
                    r,
                    &format!("other memory at the end: checksum {found:#x}"),
                );
            }
        }
    }

    /// Recording: the other threads end where they are.
    pub fn end_other_logs(&mut self, th: &mut Thread) {
        let others: Vec<_> = self
            .threads
            .iter()
            .filter(|(id, _)| **id != th.id)
            .map(|(_, t)| t.0)
            .collect();
        for t in others {
            // SAFETY: the vcpu is held, so the sibling is waiting for it or blocked in the kernel, and the
            // process ends before it can run again.
            let t = unsafe { &mut *t };
            if matches!(t.log, Log::Record(_)) {
                t.append(Event::Killed);
                Self::finish_log(&mut t.log);
            }
        }
    }

    /// Replaying: the log has nothing more for this thread.
    ///
    /// The process was killed here, or the recording cut. Other threads may have more to do: the last one that
    /// comes to its end ends the process.
    pub fn end_of_log(&mut self, th: &mut Thread) -> ! {
        if self.threads.len() > 1 {
            self.park(th);
        }
        th.log_is_over(self.complete_trace, &self.trace)
    }

    /// Replaying: this thread does nothing any more; another one ends the process.
    pub fn park(&mut self, th: &mut Thread) -> ! {
        let is_end =
            th.was_killed || matches!(th.upcoming().map(|r| &r.event), Some(Event::Killed));
        if is_end && self.all_at_end() {
            self.debug_end(th, "the recording was ended here".into());
            leave(0);
        }
        if self.threads.len() == 1 {
            let what = "more, although the log ends the thread here";
            let r = self.take_record(th);
            if let Some(r) = r {
                self.diverged(th, &r, what);
            }
            crate::report::fail(
                Failure::Divergence,
                format_args!("thread t{} does {what}", th.id.0),
            );
        }
        if let Some(par) = self.par {
            par.finish_order(th);
            if th.in_event {
                th.in_event = false;
                // Others come to their ends on the same vcpu.
                par.stand_still(th);
                par.unlock();
            }
            par.idle_for_ever(th, At::Place);
        }
        if crate::sched::active() {
            self.vcpu.release();
            let crate::sched::Stuck = crate::sched::wait_for_ever();
            th.log_is_over(self.complete_trace, &self.trace);
        }
        if self.vcpu.park().is_err() {
            th.log_is_over(self.complete_trace, &self.trace);
        }
        loop {
            // SAFETY: waits for the end of the process.
            unsafe {
                libc::pause();
            }
        }
    }
}

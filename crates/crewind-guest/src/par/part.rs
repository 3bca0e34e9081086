//! Recordings of a part of a run: a process has its parallel state from its second thread on, and rights only while it
//! is recorded.

use std::sync::atomic::Ordering;

use super::replay::Here;
use super::{ORDERED, Par, State};
use crate::deferred::checkpoint::Doing;
use crate::replayed::ReplayShared;
use crate::thread::Thread;
use crewind_trace::event::ThreadId;

impl Par {
    /// A recording begins: `vcpus` threads run at once from now on, and what they access is ordered. The world stands
    /// still.
    ///
    /// # Errors
    /// There is no memory for the tables of rights.
    pub(crate) fn begin_logging(&self, vcpus: usize) -> std::io::Result<()> {
        let vcpus = vcpus.clamp(1, self.slots.len());
        // One thread at a time needs no rights.
        if vcpus > 1 {
            for (v, slot) in self.slots.iter().enumerate().take(vcpus) {
                let at = crate::layout::rights(v);
                slot.rights.map_at(at)?;
                // SAFETY: nobody is in translated code or will be before the world goes on, and no other reference to
                // the cache is used.
                unsafe { &mut *slot.cache.get() }.set_rights(Some(at))?;
            }
        }
        for slot in &self.slots {
            // SAFETY: nobody looks at it while the world stands still.
            unsafe { *slot.spot.get() = crewind_crew::Point::default() };
        }
        self.crew.reset();
        self.order.store(0, Ordering::Release);
        super::lock::write(&self.ends).clear();
        self.most.store(vcpus, Ordering::Release);
        ORDERED.store(vcpus > 1, Ordering::Release);
        Ok(())
    }

    /// So many threads run at once from now on. The world stands still.
    pub(crate) fn run_at_once(&self, vcpus: usize) {
        self.most
            .store(vcpus.clamp(1, self.slots.len()), Ordering::Release);
    }

    /// It has ended. The world stands still.
    pub(crate) fn end_logging(&self) {
        ORDERED.store(false, Ordering::Release);
        self.most.store(self.slots.len(), Ordering::Release);
        for slot in &self.slots {
            // SAFETY: as above.
            let cache = unsafe { &mut *slot.cache.get() };
            if let Err(e) = cache.set_rights(None) {
                crate::report::fail(
                    crate::start::Failure::Internal,
                    format_args!("the recording cannot be ended: {e}"),
                );
            }
            slot.rights.unmap();
        }
    }

    /// Whether accesses are ordered.
    pub(crate) fn is_ordered(&self) -> bool {
        ORDERED.load(Ordering::Relaxed)
    }

    /// Whether the thread may not go on with the vcpu it has: fewer run at once than when it got it.
    pub(super) fn is_too_many(&self, v: usize) -> bool {
        v >= self.most.load(Ordering::Acquire)
    }

    /// Brings all threads out of guest code, for a host thread that runs none.
    pub(crate) fn stop_for_control(&self) {
        self.runtime.lock();
        self.stop.fetch_add(1, Ordering::SeqCst);
        for slot in &self.slots {
            slot.wait_parked();
        }
    }

    /// Lets them go on.
    pub(crate) fn go_on_after_control(&self) {
        self.resume_world();
        self.runtime.unlock();
    }

    /// Whether the thread holds the vcpu that it had last.
    pub(crate) fn holds_vcpu(&self, th: &Thread) -> bool {
        self.slot(th).owner.load(Ordering::Acquire) == th.id.0
    }

    /// A thread has another number now.
    pub(crate) fn renumber(&self, from: ThreadId, to: ThreadId) {
        for slot in &self.slots {
            let _ = slot
                .owner
                .compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Replaying: the thread that puts the process together begins on vcpu `v`. It has the runtime lock.
    pub(crate) fn begin_on(&self, th: &mut Thread, v: u8) {
        self.begin_on_none(th);
        th.vcpu = v;
        th.cache = self.slot(th).cache_ptr(false);
        self.slot(th)
            .state
            .store(State::Busy as u32, Ordering::SeqCst);
    }

    /// As above, on none yet.
    pub(crate) fn begin_on_none(&self, th: &mut Thread) {
        for slot in &self.slots {
            slot.state.store(State::Parked as u32, Ordering::SeqCst);
        }
        th.vcpu = 0;
        th.cache = self.slot(th).cache_ptr(false);
    }

    /// Replaying: what a thread that the recording began with had when it began.
    pub(crate) fn began_with(&self, th: &mut Thread, doing: Doing) {
        th.vcpu = match doing {
            Doing::Holds(v) if usize::from(v) < self.slots.len() => v,
            _ => 0,
        };
        th.cache = self.slot(th).cache_ptr(false);
    }

    /// Replaying: a thread that has a vcpu comes to the runtime.
    pub(crate) fn lock_for(&self, th: &mut Thread) {
        self.runtime.lock();
        self.slot(th).become_busy(State::Parked);
    }

    /// The thread does nothing any more.
    pub(crate) fn stand_still(&self, th: &mut Thread) {
        self.slot(th).park(th, State::Parked);
    }

    /// Replaying: a thread without a vcpu gets one where it stands.
    pub(crate) fn settle_start(&self, th: &mut Thread) -> bool {
        if !self.settle(th, Here::Event, &mut |_, _| ()) {
            return false;
        }
        self.slot(th).become_busy(State::Parked);
        true
    }

    /// Replaying: a thread without a vcpu gets one at the end of the system call that it is in.
    pub(crate) fn settle_call(&self, th: &mut Thread, shared: Option<&ReplayShared>) -> bool {
        let next = th.ctx().rip;
        let exit = crewind_x86::Exit::Syscall { next };
        if !self.settle(th, Here::Event, &mut |th, moment| {
            th.output_early(&exit, moment, shared);
        }) {
            return false;
        }
        self.slot(th).become_busy(State::Parked);
        true
    }
}

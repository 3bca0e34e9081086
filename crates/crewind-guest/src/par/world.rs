//! Stopping the world: bringing all other threads out of guest code, for what concerns all of memory or all code.

use std::sync::atomic::Ordering;

use super::lock::Backoff;
use super::replay::{At, Here};
use super::{Par, Slot, State};
use crate::start::Mode;
use crate::thread::Thread;
use crewind_trace::Counter;

impl Slot {
    /// Waits until its thread is out of guest code while the world is being stopped, with the runtime lock. Parked: waiting
    /// for that lock, or free. All other states end soon: who asks for a right gives up or gets it, and then
    /// finds that it may not enter.
    pub(super) fn wait_parked(&self) {
        let mut wait = Backoff::default();
        while self.state() != State::Parked {
            if wait.rounds() % 64 == 0 {
                self.poke();
            }
            wait.snooze();
        }
    }
}

impl Par {
    /// Brings all other threads out of guest code and keeps them out until [`Par::resume_world`]. The runtime lock is
    /// held. The event under way comes behind all that they have done.
    pub(crate) fn stop_world(&self, th: &mut Thread) {
        self.stop.fetch_add(1, Ordering::SeqCst);
        self.count(Counter::WorldStops, 1);
        self.add_tally(self.slot(th));
        for (v, slot) in self.slots.iter().enumerate() {
            if v == usize::from(th.vcpu) {
                continue;
            }
            slot.wait_parked();
            self.add_tally(slot);
            if self.mode == Mode::Record {
                // SAFETY: parked, and it gets out of that with the runtime lock only, which is held here.
                th.edges.extend(unsafe { &*slot.spot.get() }.edges());
            }
        }
    }

    /// Lets the others go on. What they do from now on comes behind the event, so each logs a place in the order.
    pub(crate) fn resume_world(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.stop.fetch_sub(1, Ordering::SeqCst);
    }

    /// A new thread waits for its first vcpu, or for what the log says; then it holds the runtime lock.
    pub(crate) fn first_vcpu(&self, th: &mut Thread) {
        match self.mode {
            Mode::Record => self.take_vcpu(th),
            Mode::Replay => {
                if !self.settle(th, Here::Event, &mut |_, _| ()) {
                    // Never got one before the recording ended.
                    self.idle_for_ever(th, At::Place);
                }
                self.slot(th).become_busy(State::Parked);
            }
        }
        th.epoch = self.epoch();
        th.in_event = true;
    }

    /// Whether the world is stopped or being stopped.
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst) != 0
    }
}

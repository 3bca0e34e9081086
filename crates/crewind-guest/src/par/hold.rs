//! How long a thread keeps what it has taken: others wait while it works with that, and some of it is given back before
//! somebody asks. All of this is about speed; `rights` decides nothing by it but when to claim and what to give back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::rights::{Want, cycles};
use super::{Par, State};
use crate::thread::Thread;
use crewind_crew::{Later, WRITE};

/// How long what was taken is left to its owner, at least and at most. Cycles; some 2 and 200 us: a few hundred blocks of an
/// allocator take as long to get together.
const HELD: u64 = 6_000;
const MOST_HELD: u64 = 500_000;
/// Claims further apart than this do not belong to one burst. Cycles; some 30 us.
const APART: u64 = 80_000;

/// What a vcpu's thread has spent lately on getting together what it works with. Others look at it: a guess will do.
#[derive(Default)]
pub(super) struct Burst {
    /// Cycles.
    spent: AtomicU64,
    /// When it got the last piece; cycles.
    last: AtomicU64,
    /// It waits for another one's burst to end.
    waits: AtomicBool,
}

impl Burst {
    /// It has waited for somebody else's to end, and begins anew.
    fn begin(&self) {
        self.spent.store(0, Ordering::Relaxed);
    }

    /// A claim took from `begun` to `now`.
    pub(super) fn add(&self, begun: u64, now: u64) {
        let spent = match begun.wrapping_sub(self.last.load(Ordering::Relaxed)) > APART {
            true => 0,
            false => self.spent.load(Ordering::Relaxed),
        };
        let took = now.wrapping_sub(begun).min(HELD);
        self.spent
            .store(spent.saturating_add(took), Ordering::Relaxed);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Whether its owner is to be left alone with what it has got.
    fn goes_on(&self, now: u64) -> bool {
        let held = self.spent.load(Ordering::Relaxed).clamp(HELD, MOST_HELD);
        now < self.last.load(Ordering::Relaxed).saturating_add(held)
            && !self.waits.load(Ordering::Relaxed)
    }
}

/// Rights that a thread is going to give back unasked.
#[derive(Debug, Default)]
pub(crate) struct GivesBack {
    list: VecDeque<(u32, Later)>,
    /// The vcpu that has them.
    vcpu: usize,
}

/// Claims after which a right is given back: what is used together is taken together.
const GIVE_BACK_AFTER: usize = 8;

impl GivesBack {
    pub(super) fn note(&mut self, i: u32, later: Later, vcpu: usize) {
        if self.vcpu != vcpu {
            self.list.clear();
            self.vcpu = vcpu;
        }
        self.list.retain(|(g, _)| *g != i);
        if later != Later::Keep {
            self.list.push_back((i, later));
        }
    }

    /// The next one whose time has come.
    pub(super) fn due(&mut self, vcpu: usize) -> Option<(u32, Later)> {
        match self.vcpu == vcpu && self.list.len() > GIVE_BACK_AFTER {
            true => self.list.pop_front(),
            false => None,
        }
    }
}

impl Par {
    /// Leaves what the thread wants to its owner for a while, if that one has only just got together what it works with:
    /// for as long as that took. So at most half of the time goes into hand-overs, however small the pieces are that
    /// threads share. An owner that waits itself is not waited for.
    pub(super) fn hold_off(&self, th: &Thread, list: &[Want]) {
        let me = usize::from(th.vcpu);
        let missing = list.iter().find_map(|w| self.first_missing(me, w.start, w));
        let Some(i) = missing else { return };
        // A guess: nothing is locked.
        let others = self.slots.iter().enumerate().filter(|(v, _)| *v != me);
        let owner = others.map(|(_, s)| s).find(|s| s.rights.get(i) == WRITE);
        let Some(owner) = owner else { return };
        let mine = &self.slots[me].burst;
        let begun = cycles();
        let mut now = begun;
        mine.waits.store(true, Ordering::Relaxed);
        while now.wrapping_sub(begun) < MOST_HELD
            && owner.burst.goes_on(now)
            && owner.state() != State::Parked
            && self.stop.load(Ordering::Relaxed) == 0
        {
            std::hint::spin_loop();
            now = cycles();
        }
        mine.waits.store(false, Ordering::Relaxed);
        if now.wrapping_sub(begun) > HELD {
            mine.begin();
        }
    }
}

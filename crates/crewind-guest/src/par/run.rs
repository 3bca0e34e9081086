//! Running guest code on a vcpu, out of the runtime lock and back into it.

use std::cell::UnsafeCell;
use std::sync::atomic::Ordering;

use super::replay::{At, Here, Moment};
use super::rights::Got;
use super::{Caches, Par, State, Turn};
use crate::diag::Level;
use crate::replayed::ReplayShared;
use crate::runtime::{Code, Flow, Runtime};
use crate::start::Mode;
use crate::thread::Thread;
use crewind_trace::Counter;
use crewind_trace::event::{Event, Stop};
use crewind_x86::{CheckedRange, CodeSource, Exit, FetchFault};

/// Ranges of a check from this size on are looked at: they may reach beyond what is mapped.
const LARGE: u64 = 16 << 20;

/// A replay runs code that does not look out for the next event while there are more ticks than this to go. To meet the
/// tick there costs a visit or two per halving of the distance, which is what some thousand comparisons cost.
const FAR: u64 = 4096;

/// Translated code is run without the runtime lock, so nothing is translated on the way.
struct Nothing;

impl CodeSource for Nothing {
    fn fetch(&self, pc: u64) -> Result<&[u8], FetchFault> {
        Err(FetchFault { addr: pc })
    }
    fn translated(&self, _: u64, _: u64) {}
}

impl Par {
    /// The thread is about to run guest code; false when the world is being stopped.
    fn enter(&self, th: &mut Thread) -> bool {
        let slot = self.slot(th);
        th.ctx().pkru = self.pkru(slot);
        slot.state.store(State::Running as u32, Ordering::SeqCst);
        if self.stopping() {
            slot.leave(th);
            return false;
        }
        if slot.inbox.load(Ordering::SeqCst) != 0 {
            // Not answered now: what was just got is to be used first. The next tick is soon.
            slot.poke();
        }
        if self.wanted(th).is_some_and(|w| w + 1 < th.ctx().tick_at) {
            // Somebody began to wait behind `aim`.
            slot.poke();
        }
        true
    }

    /// With keys, after a fault in translated code: the access, if the thread has no right to it. Else the fault is the
    /// guest's own.
    fn kept_out(&self, th: &Thread) -> Option<CheckedRange> {
        /// Trap number of page faults.
        const PAGE_FAULT: u64 = 14;
        /// `si_code` of a fault by a key, which is never the guest's.
        const SEGV_PKUERR: i32 = 4;
        let fault = &th.fault;
        if !self.has_keys() || fault.trapno != PAGE_FAULT {
            return None;
        }
        let (addr, write) = (fault.cr2, fault.err & 2 != 0);
        let by_key = fault.signo() == libc::SIGSEGV as u32 && fault.code() == SEGV_PKUERR;
        (by_key || self.lacks(th, addr, write)).then_some(CheckedRange {
            addr,
            len: 1,
            write,
            read: !write,
        })
    }

    #[cfg(test)]
    pub(super) fn enter_for_test(&self, th: &mut Thread) -> bool {
        self.enter(th)
    }

    #[cfg(test)]
    pub(super) fn come_in_for_test(&self, th: &mut Thread) {
        self.come_in(th);
    }

    /// Waits for the runtime lock; meanwhile others may take what the vcpu has.
    fn come_in(&self, th: &mut Thread) {
        let slot = self.slot(th);
        slot.park(th, State::Parked);
        self.runtime.lock();
        if self.is_too_many(usize::from(th.vcpu)) {
            // A recording has begun, in which fewer threads run at once.
            self.give_vcpu_of_parked(th);
            self.runtime.unlock();
            self.take_vcpu(th);
        } else {
            slot.become_busy(State::Parked);
        }
        th.in_event = true;
    }
}

impl Runtime {
    /// Runs a thread until something happens that needs the runtime. The runtime lock is held before and after, not
    /// in between. (Not inlined: what the caller read of `self` before must not be used after.)
    #[inline(never)]
    pub(crate) fn run_parallel(&mut self, th: &mut Thread, par: &'static Par) -> Exit {
        if self.in_vfork {
            return self.run_vfork_child(th, par);
        }
        match self.mode {
            Mode::Record => self.run_recording(th, par),
            Mode::Replay => self.run_replaying(th, par),
        }
    }

    fn run_recording(&mut self, th: &mut Thread, par: &'static Par) -> Exit {
        th.log_shared();
        if par.is_too_many(usize::from(th.vcpu)) {
            self.preempt_parallel(th, par);
        }
        self.placed(th, par);
        th.in_event = false;
        par.unlock();
        let exit = loop {
            if par.wants_change() {
                par.come_in(th);
                // Others may have taken meanwhile what a check had got.
                th.ctx().passed_check = 0;
                self.change(th, par);
                self.placed(th, par);
                th.in_event = false;
                par.unlock();
                if par.is_too_many(usize::from(th.vcpu)) {
                    break Exit::Stepped;
                }
            }
            par.choose_cache(th);
            if !par.enter(th) {
                // Others may take now what a check has just got.
                th.ctx().passed_check = 0;
                break Exit::Stepped;
            }
            // SAFETY: this thread holds the vcpu.
            let cache = unsafe { par.cache(th) };
            // SAFETY: the context is this thread's own, the guest may do to its memory what it likes, and the runtime's is
            // out of its sight.
            let exit = unsafe { cache.run(th.ctx, &Nothing) };
            par.slot(th).leave(th);
            match exit {
                Exit::Check { site } => {
                    let mut ranges = std::mem::take(&mut th.ranges);
                    ranges.clear();
                    cache.check_ranges(site, th.ctx(), &mut ranges);
                    if par.bars(&ranges) {
                        th.ranges = ranges;
                        match self.access_in_turn(th, par) {
                            Exit::Stepped => continue,
                            exit => return exit,
                        }
                    }
                    let got = if ranges.iter().any(|r| r.len > LARGE) {
                        self.get_large(th, par, &ranges)
                    } else {
                        par.check_failed(th, &ranges)
                    };
                    th.ranges = ranges;
                    if got == Got::Stopped {
                        break Exit::Stepped;
                    }
                    Self::log_acquire(par, th, Stop::Find);
                    cache.pass_check(th.ctx(), site);
                }
                Exit::Fault if let Some(range) = par.kept_out(th) => {
                    if par.bars(&[range]) {
                        match self.access_in_turn(th, par) {
                            Exit::Stepped => continue,
                            exit => return exit,
                        }
                    }
                    if par.check_failed(th, &[range]) == Got::Stopped {
                        break Exit::Stepped;
                    }
                    Self::log_acquire(par, th, Stop::Find);
                }
                Exit::Untranslated => {
                    par.come_in(th);
                    if let Err(e) = self.translate_pending(th, par) {
                        return e;
                    }
                    self.placed(th, par);
                    th.in_event = false;
                    par.unlock();
                }
                Exit::Tick if !th.is_wanted(par) => {}
                other if self.quick_event(th, par, &other) => {}
                other => break other,
            }
        };
        par.come_in(th);
        self.settle_flags(th, par, &exit);
        exit
    }

    /// Logs what the thread waits for before it goes on, with the runtime lock: after a stop of the world, and on another
    /// vcpu, a place in the order of events. True when it is that.
    fn placed(&self, th: &mut Thread, par: &Par) -> bool {
        let place = th.needs_place(par);
        if place {
            th.log_place(par);
        } else {
            Self::log_acquire(par, th, Stop::Find);
        }
        place
    }

    /// As above, where an instruction at a position has brought the thread to the runtime that is not an event, but has accessed
    /// memory. What others did while the world stood still comes in front of that, and rights do not always say so: none are
    /// left when the way that accesses are ordered has changed.
    pub(crate) fn placed_in_front(&self, th: &mut Thread, par: &Par, at: (u64, u64)) {
        if self.recording() && !th.unordered && th.needs_place(par) {
            th.log_order(par, at, Stop::Comes, None);
        } else {
            Self::log_acquire_at(par, th, at, Stop::Comes);
        }
    }

    /// Does an instruction that accesses memory shared with other processes, or the like. The runtime lock is held
    /// afterwards, unless the instruction is done and nothing else happened.
    fn access_in_turn(&mut self, th: &mut Thread, par: &'static Par) -> Exit {
        par.come_in(th);
        let exit = self.shared_access(th);
        if exit == Exit::Stepped {
            th.in_event = false;
            par.unlock();
        } else {
            self.settle_flags(th, par, &exit);
        }
        exit
    }

    /// A failed check of a string instruction whose count covers more than it will touch (`repne scasb` from a pointer on):
    /// takes what is mapped of it, which needs the runtime lock.
    fn get_large(
        &mut self,
        th: &mut Thread,
        par: &'static Par,
        ranges: &[crewind_x86::CheckedRange],
    ) -> Got {
        par.come_in(th);
        for r in ranges {
            let last = r.addr.saturating_add(r.len);
            let mut at = r.addr;
            while at < last
                && let Some(vma) = self.space.find(at)
            {
                let end = vma.end.min(last);
                par.event_touches(th, at, end - at, r.write);
                at = end;
            }
        }
        // The world may have stood still before the lock was had, and the check may be gone.
        let stopped = self.placed(th, par);
        th.in_event = false;
        par.unlock();
        if stopped { Got::Stopped } else { Got::All }
    }

    /// One instruction, which writes to the page it lies on. The runtime lock is kept, and the vcpu's rights with it.
    pub(crate) fn step_parallel(&mut self, th: &mut Thread, par: &'static Par) -> Exit {
        if self.mode == Mode::Record {
            th.log_place(par);
        }
        loop {
            if self.mode == Mode::Record {
                par.choose_cache(th);
            }
            th.ctx().pkru = par.pkru(par.slot(th));
            let src = Code(UnsafeCell::new(&mut self.space));
            // SAFETY: this thread holds its vcpu, whose cache it is, and the runtime lock.
            let cache = unsafe { par.cache(th) };
            // SAFETY: as in `run_recording`.
            let exit = unsafe { cache.step(th.ctx, &src) };
            if exit == Exit::Fault
                && let Some(r) = par.kept_out(th)
            {
                if par.bars(&[r]) {
                    return self.shared_access(th);
                }
                par.event_touches(th, r.addr, r.len, r.write);
                Self::log_acquire(par, th, Stop::Find);
                continue;
            }
            let Exit::Check { site } = exit else {
                return exit;
            };
            let mut ranges = std::mem::take(&mut th.ranges);
            ranges.clear();
            cache.check_ranges(site, th.ctx(), &mut ranges);
            if par.bars(&ranges) {
                th.ranges = ranges;
                return self.shared_access(th);
            }
            for r in &ranges {
                par.event_touches(th, r.addr, r.len, r.write);
            }
            th.ranges = ranges;
            Self::log_acquire(par, th, Stop::Find);
            cache.pass_check(th.ctx(), site);
        }
    }

    fn run_replaying(&mut self, th: &mut Thread, par: &'static Par) -> Exit {
        par.finish_order(th);
        th.in_event = false;
        par.unlock();
        let debugged = self.is_debugged();
        let exit = loop {
            if th.upcoming().is_none() {
                // Killed on its way to an event: how far it got is unknown, and others may have come in between.
                par.stand_still(th);
                par.idle_for_ever(th, At::Place);
            }
            if debugged {
                self.look(th);
            }
            self.aim(th, par);
            let single = debugged && self.aim_debug(th);
            if !par.enter(th) {
                break Exit::Stepped;
            }
            // SAFETY: this thread holds the vcpu.
            let cache = unsafe { par.cache(th) };
            let exit = if single {
                let src = Code(UnsafeCell::new(&mut self.space));
                // SAFETY: as when recording. A debugger is there only when one host thread runs all, so nothing is locked.
                unsafe { cache.step(th.ctx, &src) }
            } else {
                // SAFETY: as when recording.
                unsafe { cache.run(th.ctx, &Nothing) }
            };
            par.slot(th).leave(th);
            par.publish(th, false);
            if debugged {
                self.left_for_debug(th, &exit, single);
            }
            if crate::diag::enabled(Level::Trace) {
                let (rip, clock) = (th.ctx().rip, th.ctx().clock());
                crate::log!(
                    Level::Trace,
                    "t{} {exit:?} rip {rip:#x} clock {clock}",
                    th.id.0
                );
            }
            match exit {
                Exit::EventSite => {
                    if debugged {
                        // Before it waits, during which others go on.
                        self.look(th);
                    }
                    par.slot(th).park(th, State::Parked);
                    if par.settle(th, Here::Position, &mut |_, _| ()) {
                        return self.came_in_order(th, par, Exit::EventSite);
                    }
                    par.slot(th).become_busy(State::Parked);
                }
                Exit::Untranslated => {
                    par.come_in(th);
                    if let Err(e) = self.translate_pending(th, par) {
                        return e;
                    }
                    th.in_event = false;
                    par.unlock();
                }
                Exit::Tick if th.ctx().clock() < th.ctx().tick_at || th.stop_site().is_some() => {}
                Exit::Tick if th.ctx().clock() < th.due_tick() => {}
                Exit::Break | Exit::Stepped | Exit::Check { .. } if debugged => {}
                other if !debugged && self.repeat_quick(th, par, &other) => {}
                other => {
                    if debugged {
                        self.look(th);
                    }
                    break other;
                }
            }
        };
        par.slot(th).park(th, State::Parked);
        let shared = self.shared.as_ref();
        let mut early = |th: &mut Thread, moment: Moment| th.output_early(&exit, moment, shared);
        if par.settle(th, Here::from(&exit), &mut early) {
            return self.came_in_order(th, par, exit);
        }
        if th.upcoming().is_none() && Here::from(&exit) == Here::Event {
            // Killed in it.
            par.idle_for_ever(th, At::Event);
        }
        par.runtime.lock();
        par.slot(th).become_busy(State::Parked);
        th.in_event = true;
        self.settle_flags(th, par, &exit);
        exit
    }

    /// The thread's turn has come, with the runtime lock.
    fn came_in_order(&mut self, th: &mut Thread, par: &Par, exit: Exit) -> Exit {
        par.slot(th).become_busy(State::Parked);
        th.in_event = true;
        self.settle_flags(th, par, &exit);
        exit
    }

    /// The child of `vfork` runs in its parent's memory while the world stands still.
    fn run_vfork_child(&mut self, th: &mut Thread, par: &Par) -> Exit {
        loop {
            Self::log_acquire(par, th, Stop::Find);
            if self.mode == Mode::Replay {
                match self.repeat_shared(th) {
                    None => {}
                    Some(Exit::Stepped) => continue,
                    Some(exit) => return exit,
                }
                self.aim(th, par);
            } else {
                par.choose_cache(th);
            }
            th.ctx().pkru = par.pkru(par.slot(th));
            // SAFETY: as in `run_recording`; nobody else runs.
            let cache = unsafe { par.cache(th) };
            // SAFETY: as there.
            let exit = unsafe { cache.run(th.ctx, &Nothing) };
            match exit {
                Exit::Check { site } => {
                    let mut ranges = std::mem::take(&mut th.ranges);
                    ranges.clear();
                    cache.check_ranges(site, th.ctx(), &mut ranges);
                    if par.bars(&ranges) {
                        th.ranges = ranges;
                        match self.shared_access(th) {
                            Exit::Stepped => continue,
                            exit => return exit,
                        }
                    }
                    for r in &ranges {
                        par.event_touches(th, r.addr, r.len, r.write);
                    }
                    th.ranges = ranges;
                    cache.pass_check(th.ctx(), site);
                }
                Exit::Fault if let Some(r) = par.kept_out(th) => {
                    if par.bars(&[r]) {
                        match self.shared_access(th) {
                            Exit::Stepped => continue,
                            exit => return exit,
                        }
                    }
                    par.event_touches(th, r.addr, r.len, r.write);
                }
                Exit::Untranslated => {
                    if let Err(e) = self.translate_pending(th, par) {
                        return e;
                    }
                }
                Exit::EventSite => {
                    par.settle(th, Here::Position, &mut |_, _| ());
                }
                other => {
                    if self.mode == Mode::Replay {
                        par.settle(th, Here::from(&other), &mut |_, _| ());
                    }
                    self.settle_flags(th, par, &other);
                    return other;
                }
            }
        }
    }

    /// Replaying: arms clock and event site for the next record.
    fn aim(&mut self, th: &mut Thread, par: &Par) {
        let site = th.stop_site();
        let left = |th: &mut Thread, clock: u64| clock.saturating_sub(th.ctx().clock());
        let two_caches = par.slot(th).near.is_some();
        match site {
            Some((clock, _)) if two_caches && left(th, clock) > FAR => {
                th.near = false;
                th.ctx().arm_site(None);
                if th.ctx().tick_at != clock {
                    th.ctx().set_limit(clock);
                }
            }
            Some((clock, pc)) => {
                th.arm();
                th.near = true;
                // SAFETY: this thread holds the vcpu.
                unsafe { par.cache(th) }.add_event_site(pc);
                th.ctx().arm_site(Some((clock, pc)));
            }
            None => {
                th.arm();
                th.near = false;
                th.ctx().arm_site(None);
            }
        }
        // Where others wait for, if that comes first.
        if !crate::sched::active()
            && let Some(wanted) = par.wanted(th)
            && wanted + 1 < th.ctx().tick_at
        {
            th.ctx().set_limit(wanted + 1);
        }
        th.cache = par.slot(th).cache_ptr(th.near);
    }

    fn translate_pending(&mut self, th: &mut Thread, par: &Par) -> Result<(), Exit> {
        let src = Code(UnsafeCell::new(&mut self.space));
        // SAFETY: this thread holds the vcpu.
        let cache = unsafe { par.cache(th) };
        // SAFETY: the thread's own context.
        unsafe { cache.translate_pending(th.ctx, &src) }
            .map_err(|f| Exit::FetchFault { addr: f.addr })
    }

    /// Flags that are dead at the position are not to be seen.
    fn settle_flags(&mut self, th: &mut Thread, par: &Par, exit: &Exit) {
        if matches!(exit, Exit::Tick | Exit::Stepped | Exit::EventSite) {
            let src = Code(UnsafeCell::new(&mut self.space));
            // SAFETY: this thread holds the vcpu.
            let cache = unsafe { par.cache(th) };
            cache.settle_flags(th.ctx(), &src);
        }
    }

    /// The process is about to have a second thread: from now on its threads run in parallel, if the user wants that.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn go_parallel(&mut self, th: &mut Thread) -> std::io::Result<()> {
        let part = self.deferred.is_some() || self.from_checkpoint;
        let vcpus = self.options.parallel();
        if vcpus < 2 && !part || self.par.is_some() || self.in_vfork {
            return Ok(());
        }
        if self.recording() {
            // Its table lies where those of vcpus will.
            self.no_checks();
        }
        let (slots, caches) = if self.deferred.is_some() {
            let cores = std::thread::available_parallelism().map_or(2, usize::from);
            let slots = cores.clamp(vcpus.max(2) as usize, super::MAX_VCPUS);
            (slots, Caches::Plain)
        } else {
            let caches = match self.mode {
                Mode::Record => Caches::Checked,
                Mode::Replay => self.replay_caches(),
            };
            (vcpus as usize, caches)
        };
        // Tables are mappings of files in memory.
        let _lifted = crewind_trace::LiftedLimits::new();
        let par = Par::start(
            self.mode,
            self.options.sharing,
            slots,
            th.id,
            self.complete_trace,
            caches,
            &self.trace,
        )?;
        if self.options.by_granule {
            par.claim_by_granule();
        }
        if self.options.alternate {
            par.alternate();
        }
        self.par = Some(par);
        if self.deferred.is_some() {
            crate::deferred::now_parallel();
            if self.records_a_part() {
                par.begin_logging(vcpus as usize)?;
            } else if self.follows_order() {
                par.run_at_once(1);
            }
        }
        if par.has_keys() {
            par.protect_all(&self.space.host_rights())
                .map_err(|e| std::io::Error::from_raw_os_error(e.0))?;
        }
        if self.recording() {
            self.look_out_again();
        }
        th.vcpu = 0;
        th.vcpu_note = None;
        th.near = false;
        th.cache = par.slot(th).cache_ptr(false);
        th.epoch = par.epoch();
        th.in_event = true;
        self.handlers_want_flags(th, par);
        self.stop_in_new_caches(th);
        if self.mode == Mode::Replay {
            self.new_caches();
            par.register(th);
            self.settle_again(th, par, Here::Event);
        }
        Ok(())
    }

    /// Handlers of faults are to see flags, in all caches.
    pub(crate) fn handlers_want_flags(&mut self, th: &mut Thread, par: &'static Par) {
        let actions = self.actions.iter().zip(0u32..).skip(1);
        let mut actions = actions.map(|(action, signo)| (signo, action));
        let handles_faults = actions.any(|(n, a)| crate::signal::deliver::wants_flags(n, a));
        if handles_faults {
            self.invalidate_everywhere(th, par, crewind_x86::CodeCache::show_flags_at_faults);
        }
    }

    /// What vcpus of a replay have. A debugger looks out for events itself.
    pub(crate) fn replay_caches(&self) -> Caches {
        match self.is_debugged() {
            true => Caches::Plain,
            false => Caches::Two,
        }
    }

    /// In the child of a fork: it has one thread, and is serial again.
    pub(crate) fn go_serial(&mut self, th: &mut Thread) {
        let Some(par) = self.par.take() else { return };
        th.cache = std::ptr::null_mut();
        th.in_event = false;
        th.edges.clear();
        th.known.clear();
        th.order = None;
        th.published = None;
        th.vcpu_note = None;
        th.maps = false;
        par.forget();
        // What was translated before there were threads may have changed since.
        self.cache.flush();
        if self.recording() {
            self.look_out_again();
        }
    }

    /// Recording, at a tick: gives the vcpu up and takes one again.
    #[inline(never)]
    pub(crate) fn preempt_parallel(&mut self, th: &mut Thread, par: &'static Par) {
        Self::log_acquire(par, th, Stop::Find);
        par.give_vcpu(th);
        th.in_event = false;
        par.unlock();
        par.take_vcpu_in_turn(th, Turn::AfterOthers);
        th.in_event = true;
    }

    /// Throws translations away in all caches: the world stops for it. `None`: everything.
    pub(crate) fn invalidate_everywhere(
        &mut self,
        th: &mut Thread,
        par: &'static Par,
        what: impl Fn(&mut crewind_x86::CodeCache),
    ) {
        let own = !par.stopping();
        if own {
            par.stop_world(th);
        }
        // Nobody else is in translated code, or will be before `resume_world`.
        let _ = par.each_cache(|c| {
            what(c);
            Ok(())
        });
        if own {
            par.resume_world();
        }
    }

    /// Replaying: takes the thread's next record. What has to be waited for is waited for first, where that was not done
    /// when the thread left translated code: at the second record of one event.
    pub(crate) fn take_record(
        &mut self,
        th: &mut Thread,
    ) -> Option<crewind_trace::event::Record<'static>> {
        if let Some(par) = self.par
            && matches!(th.upcoming().map(|r| &r.event), Some(Event::Sync { .. }))
        {
            self.settle_again(th, par, Here::Event);
        }
        th.take()
    }

    /// Replaying: what the log has to wait for at the thread's present position, when it did not leave translated code
    /// just now: a signal comes at the end of a system call. What belongs to an event that the instruction there brings about
    /// is left for when it does: the instruction comes first, and others wait for it.
    pub(crate) fn settle_here(&mut self, th: &mut Thread) {
        let Some(par) = self.par else { return };
        let (clock, pc) = (th.ctx().clock(), th.ctx().rip);
        if matches!(th.upcoming(), Some(r) if r.clock == clock && r.pc == pc && matches!(r.event, Event::Sync { .. }))
        {
            self.settle_again(th, par, Here::Position);
        }
    }

    #[inline(never)]
    fn settle_again(&mut self, th: &mut Thread, par: &'static Par, here: Here) {
        if self.in_vfork {
            par.settle(th, here, &mut |_, _| ());
            return;
        }
        par.finish_order(th);
        th.in_event = false;
        par.slot(th).park(th, State::Parked);
        par.unlock();
        if !par.settle(th, here, &mut |_, _| ()) {
            par.runtime.lock();
        }
        par.slot(th).become_busy(State::Parked);
        th.in_event = true;
    }

    /// A thread in replay whose next record ends it.
    pub(crate) fn killed_here(&mut self, th: &mut Thread) -> Option<Flow> {
        let (clock, pc) = (th.ctx().clock(), th.ctx().rip);
        match th.upcoming() {
            Some(r) if matches!(r.event, Event::Killed) && r.clock == clock && r.pc == pc => {
                self.park(th)
            }
            _ => None,
        }
    }
}

impl Thread {
    /// Recording: the number of the event under way, behind which the thread knows itself from now on.
    fn next_order(&mut self, par: &Par) -> u64 {
        let order = par.next_order();
        self.known.comes_at(order);
        order
    }

    /// Whether it may only go on behind a place in the order of events: after a stop of the world, on another vcpu, and with code
    /// that others have logged.
    pub(super) fn needs_place(&self, par: &Par) -> bool {
        self.epoch != par.epoch() || self.vcpu_note.is_some() || self.read_shared_code
    }

    /// Recording: logs a place in the order of events, with what the thread has to wait for. The runtime lock is held.
    pub(super) fn log_place(&mut self, par: &Par) {
        let edges = self.reduce(par);
        par.count(Counter::EdgesLogged, edges.len());
        self.epoch = par.epoch();
        let vcpu = self.vcpu_note.take();
        self.read_shared_code = false;
        let order = Some(self.next_order(par));
        self.append_sync(Event::Sync {
            order,
            vcpu,
            stop: Stop::Find,
            edges: edges.into(),
        });
    }

    /// Recording: what goes in front of an ordinary event.
    /// `regs`: the hash of the registers there, if they may have changed since.
    pub(crate) fn log_order(&mut self, par: &Par, at: (u64, u64), stop: Stop, regs: Option<u32>) {
        let edges = self.reduce(par);
        par.count(Counter::EdgesLogged, edges.len());
        self.epoch = par.epoch();
        let vcpu = self.vcpu_note.take();
        let order = (!self.unordered).then(|| self.next_order(par));
        self.read_shared_code &= order.is_none();
        if order.is_none() && edges.is_empty() && vcpu.is_none() {
            return;
        }
        let event = Event::Sync {
            order,
            vcpu,
            stop,
            edges: edges.into(),
        };
        match regs {
            Some(regs) => self.append_sync_with(at, regs, event),
            None => self.append_sync_at(at, event),
        }
    }

    /// Replaying a call that gave its vcpu up: what it wrote out is read and shown when it is reached, as it was when it
    /// was recorded. Its place in the order of events is that of its end, and others may have written more between.
    fn read_output(&mut self, exit: &Exit) {
        self.output = None;
        self.shown = false;
        if !matches!(exit, Exit::Syscall { .. }) {
            return;
        }
        let Some(Event::Syscall {
            nr,
            ret,
            output: Some((fd, seq)),
            turn: Some(_),
            ..
        }) = self.second().map(|r| &r.event)
        else {
            return;
        };
        let (nr, ret, fd, seq) = (*nr, *ret, *fd, *seq);
        let g = self.ctx().gpr;
        let args = [g[7], g[6], g[2], g[10], g[8], g[9]];
        if let Some(row) = crewind_syscalls::row(nr) {
            self.output = Some((fd, seq, crate::syscall::output_text(row, &args, ret)));
        }
    }

    /// Replaying: what a call does before its place in the order.
    pub(super) fn output_early(
        &mut self,
        exit: &Exit,
        moment: Moment,
        shared: Option<&ReplayShared>,
    ) {
        match moment {
            Moment::Reached => self.read_output(exit),
            Moment::Published => self.show_output(shared),
        }
    }

    fn show_output(&mut self, shared: Option<&ReplayShared>) {
        if let (Some((fd, seq, text)), Some(shared)) = (self.output.take(), shared) {
            shared.show(fd, seq, &text);
            self.shown = true;
        }
    }

    /// Recording, at a tick: whether there is more to do than to answer requests.
    fn is_wanted(&mut self, par: &Par) -> bool {
        self.pending.load(Ordering::Acquire) != 0
            || par.slot(self).preempt.load(Ordering::Relaxed) != 0
            || self.ctx().clock() >= self.ctx().tick_at
    }
}

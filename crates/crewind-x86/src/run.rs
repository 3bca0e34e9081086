//! Entering and leaving translated code.

use crate::api::{CodeSource, Exit, FetchFault};
use crate::cache::{Came, CodeCache};
use crate::ctx::Ctx;
use crate::guard::STEP_CHECK;
use crate::index::{FragId, LinkId, NONE};
use crate::insn::InsnExit;
use crate::stubs::{ENTER_SCRATCH, kind};
use crate::translate::{MARKS, Purpose, SiteKind};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering, compiler_fence};

/// How translated code was left, for the dispatcher.
enum Left {
    Exit(Exit),
    Link(LinkId),
    Ticked,
    Indirect,
}

/// Whether a step looks at rights.
#[derive(Clone, Copy, PartialEq)]
enum Checks {
    On,
    Off,
}

impl CodeCache {
    /// Runs the guest from `ctx.rip` until something the caller must see.
    ///
    /// # Safety
    /// `ctx` is the calling thread's own; the guest's code may do anything to guest memory; GS base is the guest's FS
    /// base.
    pub unsafe fn run(&mut self, ctx: *mut Ctx, src: &dyn CodeSource) -> Exit {
        // SAFETY: `ctx` is valid by contract. (So in all of this function.)
        unsafe { resume_request(ctx) };
        // SAFETY: see above.
        let start = unsafe { (*ctx).rip };
        let came = self.came.take().filter(|c| c.pc == start);
        let mut from: Option<(LinkId, u64)> = came.and_then(|c| c.from);
        let mut indirect = came.is_some_and(|c| c.indirect);
        // SAFETY: see above.
        match unsafe { self.passed(ctx, src) } {
            Some(Left::Exit(Exit::Stepped)) | None => {}
            Some(Left::Exit(e)) => return e,
            Some(Left::Link(l)) => from = Some((l, self.generation)),
            Some(Left::Ticked) => {}
            Some(Left::Indirect) => indirect = true,
        }
        loop {
            // SAFETY: see above.
            let pc = unsafe { (*ctx).rip };
            if self.deferred && self.lacks(pc, from, indirect) {
                self.came = Some(Came { pc, from, indirect });
                return Exit::Untranslated;
            }
            let purpose = if indirect {
                Purpose::Indirect
            } else {
                Purpose::Direct
            };
            let id = match self.frag_at(pc, from, src, purpose) {
                Ok(id) => id,
                Err(f) => return Exit::FetchFault { addr: f.addr },
            };
            if let Some((link, generation)) = from.take()
                && generation == self.generation
                && self.cfg.options.chaining
            {
                self.patch(link, id);
            }
            if indirect && self.cfg.options.inline_lookup {
                self.ensure_entry(id, src);
            }
            let host = self.body_of(id);
            // SAFETY: `host` is the body of a live translation of the guest's pc.
            unsafe { self.enter(ctx, host) };
            indirect = false;
            // SAFETY: see above.
            match unsafe { self.leave(ctx, src) } {
                Left::Exit(e) => return e,
                Left::Link(l) => from = Some((l, self.generation)),
                Left::Ticked => {}
                Left::Indirect => indirect = true,
            }
        }
    }

    /// Translates what `run` returned `Untranslated` for.
    ///
    /// # Safety
    /// `ctx` is valid.
    pub unsafe fn translate_pending(
        &mut self,
        ctx: *mut Ctx,
        src: &dyn CodeSource,
    ) -> Result<(), FetchFault> {
        // SAFETY: valid by contract.
        let rip = unsafe { (*ctx).rip };
        let came = self.came.filter(|c| c.pc == rip);
        let indirect = came.is_some_and(|c| c.indirect);
        let purpose = if indirect {
            Purpose::Indirect
        } else {
            Purpose::Direct
        };
        let from = came.and_then(|c| c.from);
        let id = self.frag_at(rip, from, src, purpose)?;
        if indirect && self.cfg.options.inline_lookup {
            self.ensure_entry(id, src);
        }
        Ok(())
    }

    /// Hides the flags that are dead at `ctx.rip`, as `run` does at a tick when translating is not deferred.
    pub fn settle_flags(&self, ctx: &mut Ctx, src: &dyn CodeSource) {
        self.hide_dead_flags(ctx, src);
    }

    /// Runs one translation from `ctx.rip`, entered by the dispatcher. Returns `Stepped` where `run` would have gone on
    /// with another one.
    ///
    /// # Safety
    /// As for `run`.
    pub unsafe fn run_block(&mut self, ctx: *mut Ctx, src: &dyn CodeSource) -> Exit {
        // SAFETY: `ctx` is valid by contract. (So in all of this function.)
        unsafe { resume_request(ctx) };
        // SAFETY: see above.
        match unsafe { self.passed(ctx, src) } {
            Some(Left::Exit(e)) => return e,
            Some(_) => return Exit::Stepped,
            None => {}
        }
        // SAFETY: see above.
        let rip = unsafe { (*ctx).rip };
        let id = match self.frag_at(rip, None, src, Purpose::Direct) {
            Ok(id) => id,
            Err(f) => return Exit::FetchFault { addr: f.addr },
        };
        let host = self.body_of(id);
        // SAFETY: `host` is the body of a live translation of the guest's pc.
        unsafe { self.enter(ctx, host) };
        // SAFETY: see above.
        match unsafe { self.leave(ctx, src) } {
            Left::Exit(e) => e,
            Left::Link(_) | Left::Ticked | Left::Indirect => Exit::Stepped,
        }
    }

    /// Does exactly one guest instruction from a throw-away translation, without calling `CodeSource::translated`:
    /// for an instruction that writes to the page it lies on. Returns `Stepped`, or another exit like `run`.
    ///
    /// # Safety
    /// As for `run`.
    pub unsafe fn step(&mut self, ctx: *mut Ctx, src: &dyn CodeSource) -> Exit {
        // SAFETY: `ctx` is valid by contract. (So in all of this function.)
        unsafe { resume_request(ctx) };
        // SAFETY: see above.
        let checks = if unsafe { self.take_pass(&mut *ctx) }.is_some() {
            Checks::Off
        } else {
            Checks::On
        };
        // SAFETY: see above.
        match unsafe { self.step_with(ctx, src, checks) } {
            Left::Exit(e) => e,
            Left::Link(_) | Left::Ticked | Left::Indirect => Exit::Stepped,
        }
    }

    /// As `step`, without checks of rights, for an instruction that is done often: its translation is kept until code in
    /// the cache is forgotten. `variant` tells apart what `src` may have at one pc.
    ///
    /// # Safety
    /// As for `run`.
    pub unsafe fn step_again(&mut self, ctx: *mut Ctx, variant: u8, src: &dyn CodeSource) -> Exit {
        // SAFETY: `ctx` is valid by contract. (So in all of this function.)
        let rip = unsafe {
            resume_request(ctx);
            (*ctx).passed_check = 0;
            (*ctx).rip
        };
        let alive = |id: &&FragId| {
            let frag = self.frags.get(**id as usize);
            frag.is_some_and(|f| !f.is_dead())
        };
        let id = match self.kept.get(&(rip, variant)).filter(alive) {
            Some(id) => *id,
            None => {
                self.tr.unchecked = true;
                let made = self.single(rip, src);
                self.tr.unchecked = false;
                match made {
                    Ok(id) => {
                        self.kept.insert((rip, variant), id);
                        id
                    }
                    Err(f) => return Exit::FetchFault { addr: f.addr },
                }
            }
        };
        let host = self.body_of(id);
        // SAFETY: `host` is the body of a live translation of the instruction.
        unsafe { self.enter(ctx, host) };
        // SAFETY: see above.
        match unsafe { self.leave(ctx, src) } {
            Left::Exit(e) => e,
            Left::Link(_) | Left::Ticked | Left::Indirect => Exit::Stepped,
        }
    }

    /// As `step`, with or without checks of rights.
    ///
    /// # Safety
    /// As for `run`.
    unsafe fn step_with(&mut self, ctx: *mut Ctx, src: &dyn CodeSource, checks: Checks) -> Left {
        // SAFETY: `ctx` is valid by contract. (So in all of this function.)
        let rip = unsafe { (*ctx).rip };
        self.tr.unchecked = checks == Checks::Off;
        let made = self.single(rip, src);
        self.tr.unchecked = false;
        let id = match made {
            Ok(id) => id,
            Err(f) => return Left::Exit(Exit::FetchFault { addr: f.addr }),
        };
        let host = self.body_of(id);
        // SAFETY: `host` is the body of a translation of the guest's pc.
        unsafe { self.enter(ctx, host) };
        // SAFETY: see above.
        let left = unsafe { self.leave(ctx, src) };
        self.discard_last();
        match left {
            // Its link was thrown away with it.
            Left::Link(_) => Left::Ticked,
            l => l,
        }
    }

    /// The check that is to be passed, if the guest is still there. Clears it.
    fn take_pass(&self, ctx: &mut Ctx) -> Option<u32> {
        let site = std::mem::take(&mut ctx.passed_check).checked_sub(1)?;
        if ctx.passed_generation != self.generation {
            // Nothing is known about it any more.
            return Some(STEP_CHECK);
        }
        let (s, _) = self.check_site(site)?;
        (s.pc == ctx.rip).then_some(site)
    }

    /// Goes on behind a check that the runtime lets pass: in the translation, or by one instruction if it is gone.
    ///
    /// # Safety
    /// As for `run`.
    unsafe fn passed(&mut self, ctx: *mut Ctx, src: &dyn CodeSource) -> Option<Left> {
        // SAFETY: `ctx` is valid by contract. (So in all of this function.)
        let site = unsafe { self.take_pass(&mut *ctx) }?;
        let place = self
            .check_sites
            .get(site as usize)
            .filter(|s| {
                self.frags
                    .get(s.frag as usize)
                    .is_some_and(|f| !f.is_dead())
            })
            // Where the clock is ahead, it has to be again.
            // SAFETY: see above.
            .filter(|s| s.owed.is_none_or(|o| unsafe { (*ctx).borrow(o) }))
            .map(|s| (s.resume, s.held));
        let Some((host, held)) = place else {
            if self.deferred {
                // Nothing may be translated here: the check is made again, in a new translation.
                return None;
            }
            // SAFETY: see above.
            return Some(unsafe { self.step_with(ctx, src, Checks::Off) });
        };
        // SAFETY: see above. The cells are this cache's, whose code does not run now.
        unsafe {
            let value = (*ctx).gpr.get(usize::from(held)).copied();
            if let (Some(hot), Some(v)) = (self.hot(), value) {
                (*hot).borrowed = v;
            }
            // SAFETY: `host` lies in a live translation, behind a check before the guest's pc.
            self.enter(ctx, host);
            Some(self.leave(ctx, src))
        }
    }

    /// Translates the code at `pc` without running it.
    pub fn prepare(&mut self, pc: u64, src: &dyn CodeSource) -> Result<(), FetchFault> {
        self.frag_at(pc, None, src, Purpose::Direct).map(|_| ())
    }

    /// Enters translated code at `host` and returns when it is left.
    ///
    /// # Safety
    /// `ctx` is the calling thread's, `host` the body of the translation for its pc.
    unsafe fn enter(&mut self, ctx: *mut Ctx, host: u64) {
        self.stats.entries += 1;
        // SAFETY: the stub keeps the C ABI: it saves callee-saved registers, flags it changes are not preserved by the
        // ABI, and the context is the calling thread's by contract. The cells are this cache's, which one thread at a
        // time runs. A request for a stop that a handler makes on the way sets `stop` first, so it is seen here, or it
        // finds the clock where it is in force.
        unsafe {
            (*ctx).scratch[ENTER_SCRATCH] = host;
            if let Some(hot) = self.hot() {
                (&raw mut (*hot).clk).write_volatile((&raw const (*ctx).clk).read_volatile());
                (&raw mut (*ctx).live_clk).write_volatile(&raw mut (*hot).clk as u64);
                (*hot).disarm = (*ctx).disarm;
                (*hot).armed_pc = (*ctx).armed_pc;
                (*hot).fs_base = (*ctx).fs_base;
                compiler_fence(Ordering::SeqCst);
                resume_request(ctx);
            }
            let enter: extern "sysv64" fn() = std::mem::transmute(self.stubs.enter);
            enter();
            compiler_fence(Ordering::SeqCst);
            if let Some(hot) = self.hot() {
                (&raw mut (*ctx).clk).write_volatile((&raw const (*hot).clk).read_volatile());
                compiler_fence(Ordering::SeqCst);
                (&raw mut (*ctx).live_clk).write_volatile(0);
                (*ctx).target = (*hot).target;
                (*ctx).exit_arg = (*hot).exit_arg;
            }
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// Makes sense of an exit; sets `ctx.rip`.
    ///
    /// # Safety
    /// `ctx` is valid.
    unsafe fn leave(&mut self, ctx: *mut Ctx, src: &dyn CodeSource) -> Left {
        // SAFETY: valid by contract; signal handlers of this thread only touch `clk` and `stop`, which are accessed
        // through atomics. (So in all of this function.)
        unsafe {
            let arg = (*ctx).exit_arg;
            match (*ctx).exit_kind {
                kind::LINK => {
                    let link = self.slot_owner.get(arg as usize).copied().unwrap_or(NONE);
                    if let Some(target) = self.links.target(link) {
                        (*ctx).rip = target & !MARKS;
                    }
                    Left::Link(link)
                }
                kind::TICK => {
                    let link = self.slot_owner.get(arg as usize).copied().unwrap_or(NONE);
                    if let Some(target) = self.links.target(link) {
                        (*ctx).rip = target & !MARKS;
                    }
                    self.ticked(ctx, src).unwrap_or(Left::Link(link))
                }
                kind::INDIRECT_TICK => {
                    (*ctx).rip = (*ctx).target;
                    self.ticked(ctx, src).unwrap_or(Left::Ticked)
                }
                kind::MISS => {
                    self.stats.indirect_misses += 1;
                    (*ctx).rip = (*ctx).target;
                    let old = AtomicI64::from_ptr((&raw mut (*ctx).clk).cast())
                        .fetch_add(1, Ordering::SeqCst);
                    if (old.wrapping_add(1)) >= 0 {
                        return self.ticked(ctx, src).unwrap_or(Left::Indirect);
                    }
                    Left::Indirect
                }
                kind::SITE => Left::Exit(self.site_exit(&mut *ctx, src, arg)),
                kind::CHECK => {
                    // A translation of `step` is one instruction: the guest is still there.
                    if let Some(s) = self.check_sites.get(arg as usize) {
                        (*ctx).rip = s.pc;
                        if let Some(owed) = s.owed {
                            Ctx::pay_back(ctx, owed);
                        }
                    }
                    self.hide_dead_flags(&mut *ctx, src);
                    Left::Exit(Exit::Check { site: arg })
                }
                _ => Left::Exit(Exit::Fault),
            }
        }
    }

    fn site_exit(&self, ctx: &mut Ctx, src: &dyn CodeSource, arg: u32) -> Exit {
        let Some(site) = self.sites.get(arg as usize) else {
            return Exit::Unsupported {
                what: "translated code was left in an unknown way",
            };
        };
        ctx.rip = site.pc;
        match site.what {
            SiteKind::Syscall { len } => Exit::Syscall {
                next: site.pc.wrapping_add(u64::from(len)),
            },
            SiteKind::Insn { kind, len, bytes } => Exit::Insn(InsnExit { kind, len, bytes }),
            SiteKind::Unsupported(what) => Exit::Unsupported { what },
            SiteKind::Break => {
                self.hide_dead_flags(ctx, src);
                Exit::Break
            }
            SiteKind::Event => {
                self.hide_dead_flags(ctx, src);
                Exit::EventSite
            }
        }
    }

    /// A tick found `clk` not negative. `Exit::Tick` if the limit is reached or a stop requested; else the budget ran
    /// out and is renewed.
    ///
    /// # Safety
    /// `ctx` is valid.
    unsafe fn ticked(&self, ctx: *mut Ctx, src: &dyn CodeSource) -> Option<Left> {
        // SAFETY: valid by contract; a handler of this thread may store to `stop` and `clk` at any time: `stop` is set
        // first, and looked at after `clk` was written.
        let due = unsafe {
            let stop = AtomicU32::from_ptr(&raw mut (*ctx).stop);
            let count = (*ctx).clock();
            let tick_at = (*ctx).tick_at;
            (*ctx).rebase(count, tick_at);
            compiler_fence(Ordering::SeqCst);
            let poked = self.hot().is_some_and(|hot| {
                AtomicU32::from_ptr(&raw mut (*hot).calm).swap(1, Ordering::SeqCst) == 0
            });
            (stop.swap(0, Ordering::SeqCst) != 0) | poked | (count >= tick_at)
        };
        if !due {
            return None;
        }
        if !self.deferred {
            // SAFETY: as above.
            self.hide_dead_flags(unsafe { &mut *ctx }, src);
        }
        Some(Left::Exit(Exit::Tick))
    }
}

/// A stop requested while the thread was outside may have been overwritten by a new limit.
///
/// # Safety
/// `ctx` is valid.
unsafe fn resume_request(ctx: *mut Ctx) {
    // SAFETY: valid by contract.
    unsafe {
        if AtomicU32::from_ptr(&raw mut (*ctx).stop).load(Ordering::SeqCst) != 0 {
            Ctx::request_stop(ctx);
        }
    }
}

//! Memory that processes share: recorded as input.
//!
//! Each process of a recording is replayed by itself, so what others write into memory that it shares with them must be
//! in its own log. For each shared mapping the recording keeps a *shadow*: what this process's replay will have there. A
//! load, or a read by the runtime, of a byte that is not what the shadow says is an event: it holds the bytes at the position
//! of the load, and the shadow takes them. Stores go to the memory and to the shadow. In the replay the mapping is private
//! memory, and the events' bytes are put there at their positions. So a replay does not need the other processes, and it
//! does not matter whether they were recorded. What a process itself writes is never logged.
//!
//! How accesses are found: the process runs translations that check rights, as for threads in parallel, and has no
//! right to shared memory. At a failed check the instruction is done by [`access`]. With threads in parallel each
//! such instruction is an event in the order of events, so that those of several threads come in one order.
//!
//! What is shared: files mapped shared that may be written, or that lie in memory; System V segments; and shared
//! anonymous memory once the process has forked. Programs without these run unchecked.
//!
//! The kernel accesses shared memory directly. What it reads is not needed for a replay. What it writes is logged with
//! the call (and goes to the shadow), or it is found by the next load.

mod access;
mod maps;
pub mod raw;

pub(crate) use access::forget_code;
pub use maps::{
    active, logged_already, replayed_page, take_pending, touches, was_read, was_written,
};

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::layout::{self, PAGE, page_up};
use crate::mm::{Object, Vma};
use crate::runtime::Runtime;
use crate::start::Failure;
use crate::thread::Thread;
use crewind_trace::event::{Event, FileRef, MemWrite};
use crewind_x86::Exit;
use crewind_x86::rights::{GRANULE, NO_READ, NO_WRITE, RIGHTS_LEN, RIGHTS_SLACK, index};
use maps::with;

/// A page in the runtime's part of the low window, between look-up table and cache: operands of instructions go there.
const BOUNCE: u64 = 0x700c_0000;
/// Bytes copied at once.
const STEP: usize = 64 << 10;

impl Runtime {
    /// Whether what others write into shared memory is recorded. Not in recordings that begin in the middle of a run: a
    /// warning says so.
    fn follows_shared(&self) -> bool {
        self.lockstep.is_none() && self.deferred.is_none()
    }

    /// Recording: memory was mapped. What was there before is not shared any more.
    pub(crate) fn mapped_anew(&mut self, addr: u64, len: u64) {
        if active() {
            self.unshare(addr, addr.saturating_add(page_up(len).unwrap_or(len)));
        }
    }

    /// Recording: mappings may have gone, among them shared ones.
    pub(crate) fn unmapped(&mut self) {
        if !active() {
            return;
        }
        let kept: Vec<(u64, u64)> = self
            .space
            .vmas()
            .iter()
            .filter(|v| v.flags.shared)
            .map(|v| (v.start, v.end))
            .collect();
        let mut at = 0;
        for (start, end) in kept.into_iter().chain([(u64::MAX, u64::MAX)]) {
            self.unshare(at, start);
            at = end;
        }
    }

    /// Recording: a file was mapped, whose content at that moment is in the trace.
    pub(crate) fn file_mapped(
        &mut self,
        fd: i32,
        range: (u64, u64),
        offset: u64,
        content: &FileRef,
    ) {
        if !self.follows_shared() {
            return;
        }
        let (start, end) = (range.0, range.0 + layout::page_up_wrapping(range.1));
        let Some(vma) = self.space.find(start).filter(|v| v.flags.shared) else {
            return;
        };
        let writable = matches!(&vma.object, Object::File(f) if f.may_write);
        if !writable && !lies_in_memory(fd) {
            return;
        }
        let file = match self.store.open_ref(content) {
            Ok(f) => f,
            Err(e) => crate::report::fail(Failure::Usage, format_args!("{e}")),
        };
        let there = content.len.saturating_sub(offset);
        self.share(start, end, page_up(there).unwrap_or(u64::MAX));
        let mut at = start;
        let mut buffer = vec![0; STEP];
        while at < end && at - start < there {
            let most = (end - at).min(there - (at - start)).min(STEP as u64) as usize;
            let Some(piece) = buffer.get_mut(..most) else {
                break;
            };
            if file.read_exact_at(piece, offset + (at - start)).is_err() {
                break;
            }
            if piece.iter().any(|b| *b != 0) {
                with(|m| m.fill(at, piece));
            }
            at += most as u64;
        }
    }

    /// Recording: a segment was attached, with this content.
    pub(crate) fn segment_attached(&mut self, addr: u64, content: &[u8]) {
        if !self.follows_shared() || content.is_empty() {
            return;
        }
        let end = addr + page_up(content.len() as u64).unwrap_or(0);
        self.unshare(addr, end);
        self.share(addr, end, u64::MAX);
        with(|m| m.fill(addr, content));
    }

    /// Recording: a mapping was moved, made larger or (`old_len` 0) mapped once more.
    pub(crate) fn remapped(&mut self, old: u64, old_len: u64, new: u64, new_len: u64, flags: i32) {
        if !self.follows_shared() {
            return;
        }
        let (old_len, new_len) = (
            layout::page_up_wrapping(old_len),
            layout::page_up_wrapping(new_len),
        );
        let shared_now = with(|m| m.touches(old, old_len.max(1)));
        let anonymous = |v: &&Vma| matches!(v.object, Object::SharedAnon { .. });
        let once_more = old_len == 0 && self.space.find(new).is_some_and(|v| v.flags.shared);
        if once_more {
            if let Some(v) = self.space.find(old).filter(anonymous).cloned()
                && !shared_now
            {
                self.share_with_content(&v);
            }
            self.share(new, new + new_len, u64::MAX);
            return;
        }
        if !shared_now {
            if new != old {
                self.unshare(new, new + new_len);
            }
            self.unmapped();
            return;
        }
        let keeps = flags & libc::MREMAP_DONTUNMAP != 0;
        let common = old_len.min(new_len);
        if new != old {
            self.unshare(new, new + new_len);
            for (start, map) in with(|m| m.cut(old, old + common)) {
                with(|m| m.put_at(start - old + new, start, map));
            }
            self.look_out(new, common);
        }
        if keeps {
            self.share(old, old + common, u64::MAX);
        }
        if new_len > common {
            // Of a file there is no more than there was; other objects have nothing there.
            let file =
                matches!(self.space.find(new), Some(v) if matches!(v.object, Object::File(_)));
            self.share(new + common, new + new_len, if file { 0 } else { u64::MAX });
        }
        self.unmapped();
    }

    /// Recording: pages of shared memory were emptied.
    pub(crate) fn emptied(&mut self, addr: u64, len: u64) {
        if !active() {
            return;
        }
        for (at, len) in with(|m| m.parts(addr, page_up(len).unwrap_or(len))) {
            let zeros = vec![0; len as usize];
            with(|m| m.fill(at, &zeros));
        }
    }

    /// Recording: the process is about to fork, and shares its shared anonymous memory from now on. Nobody else runs.
    pub(crate) fn share_at_fork(&mut self) {
        if !self.follows_shared() {
            return;
        }
        let new: Vec<Vma> = self
            .space
            .vmas()
            .iter()
            .filter(|v| matches!(v.object, Object::SharedAnon { .. }))
            .filter(|v| !touches(v.start, v.end - v.start))
            .cloned()
            .collect();
        for v in new {
            self.share_with_content(&v);
        }
    }

    fn share_with_content(&mut self, v: &Vma) {
        self.share(v.start, v.end, u64::MAX);
        let touched = touched_pages(v.start, v.end);
        let _lifted = crewind_trace::LiftedLimits::new();
        let memory = match File::open("/proc/self/mem") {
            Ok(f) => f,
            Err(e) => cannot(&e),
        };
        let mut page = [0; PAGE as usize];
        for at in touched {
            // Beyond the end of the object there is nothing.
            if memory.read_exact_at(&mut page, at).is_ok() && page.iter().any(|b| *b != 0) {
                with(|m| m.fill(at, &page));
            }
        }
    }

    fn share(&mut self, start: u64, end: u64, backed: u64) {
        if start >= end {
            return;
        }
        crate::log!(
            crate::diag::Level::Debug,
            "memory {start:#x}-{end:#x} is shared"
        );
        map_page(BOUNCE);
        if let Err(e) = with(|m| m.add(start, end, backed)) {
            cannot(&e);
        }
        self.look_out(start, end - start);
    }

    fn unshare(&mut self, start: u64, end: u64) {
        let parts = with(|m| m.parts(start, end.saturating_sub(start)));
        if parts.is_empty() {
            return;
        }
        with(|m| m.remove(start, end));
        match self.par {
            Some(par) => parts.iter().for_each(|(at, len)| par.unbar(*at, *len)),
            None => parts.iter().for_each(|(at, len)| mark(*at, *len, 0)),
        }
        // Addresses that share entries with others.
        self.look_out_again();
    }

    /// The process has other tables of rights from now on.
    pub(crate) fn look_out_again(&mut self) {
        let list: Vec<(u64, u64)> =
            with(|m| m.list.iter().map(|(a, map)| (*a, map.end - a)).collect());
        if list.is_empty() {
            return self.no_checks();
        }
        for (at, len) in list {
            self.look_out(at, len);
        }
    }

    /// From now on accesses to a range are seen.
    fn look_out(&mut self, addr: u64, len: u64) {
        match self.par {
            Some(par) => {
                // SAFETY: the calling thread's own; callers use no field of it that is used here.
                if let Some(th) = unsafe { crate::thread::current().as_mut() } {
                    par.event_maps(th, addr, len);
                    par.bar(th, addr, len);
                }
            }
            None => {
                let base = layout::rights(0);
                map_rights(base);
                if let Err(e) = self.cache.set_rights(Some(base)) {
                    cannot(&e);
                }
                mark(addr, len, NO_READ | NO_WRITE);
            }
        }
    }

    /// The serial process checks nothing from now on.
    pub(crate) fn no_checks(&mut self) {
        if self.par.is_some() || !self.recording() || self.lockstep.is_some() {
            return;
        }
        if let Err(e) = self.cache.set_rights(None) {
            cannot(&e);
        }
        // SAFETY: the table, if it is mapped; nothing looks into it any more.
        unsafe {
            libc::munmap(
                layout::rights(0) as *mut libc::c_void,
                RIGHTS_LEN + RIGHTS_SLACK,
            )
        };
    }

    /// Recording a serial process that shares memory: runs the guest until something else than an access to that
    /// happens.
    pub(crate) fn run_sharing(&mut self, th: &mut Thread, single: bool) -> Exit {
        th.log_shared();
        loop {
            let src = crate::runtime::Code(std::cell::UnsafeCell::new(&mut self.space));
            // SAFETY: the context is the calling thread's own; the guest may do to its memory what it likes, and the
            // runtime's is out of its sight.
            let exit = unsafe {
                if single {
                    self.cache.step(th.ctx, &src)
                } else {
                    self.cache.run(th.ctx, &src)
                }
            };
            let Exit::Check { site } = exit else {
                return exit;
            };
            if !self.check_is_shared(th, site) {
                self.cache.pass_check(th.ctx(), site);
                continue;
            }
            match self.shared_access(th) {
                Exit::Stepped if !single => {}
                exit => return exit,
            }
        }
    }

    fn check_is_shared(&mut self, th: &mut Thread, site: u32) -> bool {
        let mut ranges = std::mem::take(&mut th.ranges);
        ranges.clear();
        self.cache.check_ranges(site, th.ctx(), &mut ranges);
        let shared = ranges.iter().any(|r| touches(r.addr, r.len));
        th.ranges = ranges;
        shared
    }

    /// Replaying a serial process: stops at the position of the next such event.
    pub(crate) fn aim_shared(&mut self, th: &mut Thread) {
        let at = th.stop_site();
        if let Some((_, pc)) = at {
            self.cache.add_event_site(pc);
        }
        th.ctx().arm_site(at);
    }

    /// Replaying: puts into memory what it held at this position. The result is what came of the instruction there, if
    /// that is a part of the event.
    pub(crate) fn repeat_shared(&mut self, th: &mut Thread) -> Option<Exit> {
        loop {
            let (clock, pc) = (th.ctx().clock(), th.ctx().rip);
            let here = |r: &crewind_trace::event::Record<'_>| {
                r.clock == clock && r.pc == pc && matches!(r.event, Event::Shared { .. })
            };
            if !th.upcoming().is_some_and(here) {
                return None;
            }
            let regs = th.gpr_hash();
            let r = th.take()?;
            if r.regs != 0 && r.regs != regs {
                self.diverged(th, &r, "the same position with other registers");
            }
            let Event::Shared { step, writes } = &r.event else {
                return None;
            };
            self.write_outs(writes);
            self.code_came(writes);
            if *step {
                return Some(self.step_in_turn(th));
            }
        }
    }

    /// Replaying: translations of code that came from elsewhere are stale. (Writes to memory that the program may write
    /// itself are noticed as they are.)
    fn code_came(&mut self, writes: &[MemWrite<'_>]) {
        let mut effects = crate::mm::Effects::default();
        for w in writes {
            let end = w.addr.saturating_add(w.data.len() as u64);
            if self.space.find(w.addr).is_some_and(|v| v.prot.exec) {
                let end = page_up(end).unwrap_or(end);
                effects.invalidate.push(layout::page_down(w.addr)..end);
            }
        }
        if !effects.invalidate.is_empty() {
            self.apply(effects);
        }
    }

    /// Replaying: memory is to be there that the recording found behind the end of a file, because it had grown.
    pub(crate) fn make_present(&mut self, addr: u64) {
        let page = layout::page_down(addr);
        let shared = |v: &&Vma| v.flags.shared;
        let Some(prot) = self.space.find(page).filter(shared).map(|v| v.prot) else {
            return;
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        use crate::mm::host::Host;
        let rights = prot.bits() & (libc::PROT_READ | libc::PROT_WRITE);
        if let Err(e) = self.space.host().mmap(page, PAGE, rights, flags, -1, 0) {
            cannot(&std::io::Error::from_raw_os_error(e.0));
        }
    }
}

/// Code in shared memory is about to be translated: a replay has to have the same code.
#[cold]
pub(crate) fn fetched(pc: u64, len: u64) {
    let th = crate::thread::current();
    let _ = crate::guestmem::copy_of_guest(pc, len as usize);
    // SAFETY: the calling thread's own; what calls this uses no field of it that is used here.
    if let Some(th) = unsafe { th.as_mut() } {
        th.read_shared_code = crate::par::get().is_some();
        th.log_shared();
    }
}

impl Thread {
    /// Recording: logs what the runtime has read of shared memory, at the thread's present position.
    pub(crate) fn log_shared(&mut self) {
        let writes = take_pending();
        if !writes.is_empty() {
            let (clock, pc) = (self.ctx().clock(), self.ctx().rip);
            let event = Event::Shared {
                step: false,
                writes,
            };
            self.append_at(clock, pc, 0, event);
        }
    }
}

fn cannot(e: &std::io::Error) -> ! {
    crate::report::fail(
        Failure::Usage,
        format_args!("memory that the program shares cannot be watched: {e}"),
    )
}

/// Whether a file is in a file system of memory (`/dev/shm`, `memfd_create`): meant to be shared.
fn lies_in_memory(fd: i32) -> bool {
    const HUGETLBFS: i64 = 0x9584_58f6;
    // SAFETY: plain data that the kernel fills.
    let mut st: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `st` is live.
    let ok = unsafe { libc::fstatfs(fd, &raw mut st) } == 0;
    let kind = st.f_type;
    ok && (kind == libc::TMPFS_MAGIC || kind == HUGETLBFS)
}

/// Sets the entries of the serial process's table for a range.
fn mark(addr: u64, len: u64, value: u8) {
    let base = layout::rights(0) as usize;
    let (first, last) = (addr / GRANULE, (addr + len.max(1) - 1) / GRANULE);
    for g in first..=last.min(first + RIGHTS_LEN as u64 - 1) {
        // SAFETY: the table is mapped, and the runtime's; `index` is less than its length.
        unsafe { *((base + index(g * GRANULE)) as *mut u8) = value };
    }
}

/// Maps the table of rights of a serial process, in which everything is allowed, unless it is there.
fn map_rights(base: u64) {
    map_at(base, RIGHTS_LEN + RIGHTS_SLACK);
}

fn map_page(at: u64) {
    map_at(at, 2 * PAGE as usize);
}

fn map_at(at: u64, len: usize) {
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a place of the runtime's that nothing else uses; if something is there, it is this, and stays.
    let p = unsafe { libc::mmap(at as *mut libc::c_void, len, rw, flags, -1, 0) };
    if p == libc::MAP_FAILED {
        let e = std::io::Error::last_os_error();
        if e.raw_os_error() != Some(libc::EEXIST) {
            cannot(&e);
        }
    }
}

/// Pages of shared anonymous memory that may hold something: in memory, or known to this process's page table.
fn touched_pages(start: u64, end: u64) -> Vec<u64> {
    const KNOWN: u64 = 1 << 63 | 1 << 62;
    let count = ((end - start) / PAGE) as usize;
    let mut here = vec![0u8; count];
    // SAFETY: a live buffer with a byte for each page of guest memory that is mapped.
    let all = unsafe {
        libc::mincore(
            start as *mut libc::c_void,
            (end - start) as usize,
            here.as_mut_ptr(),
        )
    } != 0;
    let mut map = vec![0u8; count * 8];
    let read =
        File::open("/proc/self/pagemap").and_then(|f| f.read_exact_at(&mut map, start / PAGE * 8));
    let entries = map.as_chunks::<8>().0;
    (here.iter().zip(entries).enumerate())
        .filter(|(_, (h, e))| {
            all || read.is_err() || **h & 1 != 0 || u64::from_le_bytes(**e) & KNOWN != 0
        })
        .map(|(i, _)| start + i as u64 * PAGE)
        .collect()
}

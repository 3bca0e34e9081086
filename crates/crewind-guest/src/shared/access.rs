//! One instruction that accesses shared memory, when recording.
//!
//! What it reads is read once, by the runtime, logged where it is new, and given to the instruction in a copy: in a
//! *bounce buffer* that its memory operand is moved to, or, for instructions whose operand is implied, in private pages
//! in place of the shared ones. What it writes is then taken from there: at once, as the processor would have, and where
//! the instruction has read the same bytes, only if nobody has changed them meanwhile; else it is done again.

use std::cell::UnsafeCell;
use std::rc::Rc;

use super::maps::{self, with};
use super::raw::{self, Gone, Swap};
use crate::layout::{PAGE, page_down, page_up};
use crate::runtime::{Code, Runtime};
use crate::start::Failure;
use crate::thread::Thread;
use crewind_trace::event::{Event, MemWrite};
use crewind_x86::touch::{MAX_INSN, Touching};
use crewind_x86::{CheckedRange, CodeSource, Exit, FetchFault};

/// Longest operand that goes through the bounce buffer: `xsave` areas without AMX are shorter.
const MAX_BOUNCE: u64 = 4096 - 64;
/// Variant of `CodeCache::step_again` that is the program's own instruction; smaller ones are offsets in the buffer.
const IN_PLACE: u8 = 64;
/// Longest copy that is done at once.
const MAX_FILLED: u64 = 16 << 20;
/// Most shared memory that one instruction may access.
const MAX_SWAPPED: u64 = 1 << 30;

/// An instruction that has accessed shared memory.
#[derive(Debug)]
struct Insn {
    pc: u64,
    touching: Touching,
    /// With its operand in the bounce buffer at this offset from a cache line.
    moved: [std::cell::OnceCell<Option<Vec<u8>>>; 64],
}

/// Instructions that were decoded.
#[derive(Debug)]
pub(super) struct Known(Vec<Option<Rc<Insn>>>);

impl Known {
    pub const fn new() -> Known {
        Known(Vec::new())
    }

    fn slot(&mut self, pc: u64) -> Option<&mut Option<Rc<Insn>>> {
        const SLOTS: usize = 1024;
        if self.0.is_empty() {
            self.0.resize(SLOTS, None);
        }
        self.0.get_mut(pc as usize % SLOTS)
    }
}

/// Code may have changed.
pub(crate) fn forget_code() {
    if maps::active() {
        with(|m| m.known.0.clear());
    }
}

/// A part of what an instruction accesses that is shared.
#[derive(Clone, Copy, Debug)]
struct Part {
    addr: u64,
    len: usize,
    read: bool,
    write: bool,
}

/// Instruction bytes that stand for those of the program.
struct Instead<'a> {
    pc: u64,
    bytes: &'a [u8],
}

impl CodeSource for Instead<'_> {
    fn fetch(&self, pc: u64) -> Result<&[u8], FetchFault> {
        (pc == self.pc)
            .then_some(self.bytes)
            .ok_or(FetchFault { addr: pc })
    }
    fn translated(&self, _: u64, _: u64) {}
}

/// The guest's registers that an instruction may change which reads and writes the same memory.
#[derive(Clone, Copy)]
struct Registers {
    gpr: [u64; 16],
    rflags: u64,
    rip: u64,
}

impl Registers {
    fn of(th: &mut Thread) -> Registers {
        let ctx = th.ctx();
        Registers {
            gpr: ctx.gpr,
            rflags: ctx.rflags,
            rip: ctx.rip,
        }
    }

    fn put_back(&self, th: &mut Thread) {
        let ctx = th.ctx();
        (ctx.gpr, ctx.rflags, ctx.rip) = (self.gpr, self.rflags, self.rip);
    }
}

impl Runtime {
    /// Recording: does the instruction at the thread's position, which accesses shared memory or lies before one that
    /// does, as `CodeCache::step` would. With threads in parallel the runtime lock is held, and the instruction is an event
    /// in the order.
    pub(crate) fn shared_access(&mut self, th: &mut Thread) -> Exit {
        let (clock, pc) = (th.ctx().clock(), th.ctx().rip);
        let regs = th.gpr_hash();
        let in_turn = self.par.is_some();
        let Some(insn) = self.insn_at(pc) else {
            return self.one_insn(th);
        };
        let mut ranges = std::mem::take(&mut th.ranges);
        ranges.clear();
        insn.touching.ranges(th.ctx(), &mut ranges);
        let mut patches = Vec::new();
        let exit = self.access(th, &insn, &ranges, &mut patches);
        th.ranges = ranges;
        if in_turn || !patches.is_empty() {
            let event = Event::Shared {
                step: in_turn,
                writes: patches,
            };
            th.append_at(clock, pc, regs, event);
        }
        exit
    }

    fn insn_at(&mut self, pc: u64) -> Option<Rc<Insn>> {
        let known = with(|m| m.known.slot(pc).and_then(|s| s.clone()));
        if let Some(insn) = known.filter(|i| i.pc == pc) {
            return Some(insn);
        }
        let (_, end) = self.space.executable_range(pc)?;
        let len = (end - pc).min(MAX_INSN as u64) as usize;
        let bytes = crate::guestmem::copy_of_guest(pc, len).ok()?;
        let insn = Rc::new(Insn {
            pc,
            touching: Touching::decode(pc, &bytes)?,
            moved: [const { std::cell::OnceCell::new() }; 64],
        });
        with(|m| {
            if let Some(slot) = m.known.slot(pc) {
                *slot = Some(insn.clone());
            }
        });
        Some(insn)
    }

    /// What the instruction does to memory that is nobody else's, in front of it.
    fn prepare_access(&mut self, th: &mut Thread, ranges: &[CheckedRange]) {
        for r in ranges {
            // Counts of repeated instructions may reach far beyond what is mapped.
            let end = r.addr.saturating_add(r.len);
            let mut at = r.addr;
            if self.par.is_none() && !r.write {
                continue;
            }
            while at < end
                && let Some(vma) = self.space.find(at)
            {
                let to = vma.end.min(end);
                if let Some(par) = self.par
                    && self.recording()
                {
                    par.event_touches(th, at, to - at, r.write);
                }
                if r.write {
                    self.prepare_write(at, to - at);
                }
                at = to;
            }
        }
    }

    fn access(
        &mut self,
        th: &mut Thread,
        insn: &Insn,
        ranges: &[CheckedRange],
        patches: &mut Vec<MemWrite<'static>>,
    ) -> Exit {
        self.prepare_access(th, ranges);
        let in_part = insn.touching.writes_in_part();
        let mut parts = Vec::new();
        for r in ranges {
            for (addr, len) in with(|m| m.parts(r.addr, r.len)) {
                let lacks = with(|m| m.lacks(addr, len));
                parts.push(Part {
                    addr,
                    len: len as usize,
                    // What is left alone of what it may write is as good as read.
                    read: r.read || in_part || lacks,
                    write: r.write,
                });
            }
        }
        let allowed = |p: &Part| {
            use crate::mm::Access;
            let (addr, len) = (p.addr, p.len as u64);
            (p.write || self.space.check(addr, len, Access::Read))
                && (!p.write || self.space.check(addr, len, Access::Write))
        };
        if parts.is_empty() || !parts.iter().all(allowed) {
            // It faults, on the memory itself.
            return self.one_insn(th);
        }
        if let ([part], [range]) = (&parts[..], ranges)
            && part.len as u64 == range.len
            && range.len <= MAX_BOUNCE
        {
            let offset = (part.addr % 64) as usize;
            let moved = insn.moved.get(offset).and_then(|m| {
                m.get_or_init(|| {
                    let to = super::BOUNCE + offset as u64;
                    insn.touching.moved_to(insn.pc, to as u32)
                })
                .as_deref()
            });
            if let Some(bytes) = moved {
                return self.through_bounce(th, insn, bytes, part, patches);
            }
        }
        if self.filled(th, insn, ranges, patches) {
            return Exit::Stepped;
        }
        self.in_private_pages(th, &parts, patches)
    }

    /// Does `rep movs` or `rep stos`, upwards and from elsewhere. False: nothing was done.
    fn filled(
        &mut self,
        th: &mut Thread,
        insn: &Insn,
        ranges: &[CheckedRange],
        patches: &mut Vec<MemWrite<'static>>,
    ) -> bool {
        use crate::mm::Access;
        const DIRECTION: u64 = 0x400;
        let Some((copies, size)) = insn.touching.fills() else {
            return false;
        };
        let (from, to) = match ranges {
            [from, to] if copies => (*from, *to),
            [to] if !copies => (*to, *to),
            _ => return false,
        };
        let len = to.len;
        let apart = !copies || from.addr + len <= to.addr || to.addr + len <= from.addr;
        if th.ctx().rflags & DIRECTION != 0 || from.len != len || len > MAX_FILLED || !apart {
            return false;
        }
        let there = |r: &CheckedRange, access| {
            let shared = with(|m| (m.touches(r.addr, len), m.holds(r.addr, len).is_some()));
            (shared == (false, false) || shared == (true, true))
                && self.space.check(r.addr, len, access)
        };
        let lacks = |r: &CheckedRange| {
            with(|m| {
                (0..len)
                    .step_by(PAGE as usize)
                    .any(|i| m.lacks(r.addr + i, 1))
            })
        };
        if !there(&from, Access::Read) || !there(&to, Access::Write) || lacks(&to) {
            return false;
        }
        let mut bytes = vec![0; len as usize];
        if !copies {
            let value = th.ctx().gpr[0].to_le_bytes();
            for (i, b) in bytes.iter_mut().enumerate() {
                *b = value[i % size as usize];
            }
        } else if maps::touches(from.addr, len) {
            if raw::load(from.addr, &mut bytes).is_err() {
                return false;
            }
            with(|m| m.seen(from.addr, &bytes, patches));
        } else if crate::guestmem::copy_from_guest(&mut bytes, from.addr).is_err() {
            return false;
        }
        if maps::touches(to.addr, len) {
            if raw::store(to.addr, &bytes).is_err() {
                return false;
            }
            with(|m| m.wrote(to.addr, &bytes));
        } else if crate::guestmem::copy_to_guest(to.addr, &bytes).is_err() {
            // As far as it got it will get again.
            return false;
        }
        let ctx = th.ctx();
        ctx.gpr[1] = 0;
        ctx.gpr[7] = ctx.gpr[7].wrapping_add(len);
        if copies {
            ctx.gpr[6] = ctx.gpr[6].wrapping_add(len);
        }
        ctx.rip = insn.pc + insn.touching.len();
        true
    }

    fn through_bounce(
        &mut self,
        th: &mut Thread,
        insn: &Insn,
        bytes: &[u8],
        part: &Part,
        patches: &mut Vec<MemWrite<'static>>,
    ) -> Exit {
        let before = Registers::of(th);
        let mut space = [[0u8; 64]; 2];
        let mut large = Vec::new();
        let [old, new] = if part.len <= 64 {
            let [a, b] = &mut space;
            [&mut a[..part.len], &mut b[..part.len]]
        } else {
            large.resize(2 * part.len, 0);
            let (a, b) = large.split_at_mut(part.len);
            [a, b]
        };
        let offset = (part.addr % 64) as u8;
        let buffer = (super::BOUNCE + part.addr % 64) as *mut u8;
        loop {
            if part.read {
                if raw::load(part.addr, old).is_err() {
                    return self.one_insn(th);
                }
                with(|m| m.seen(part.addr, old, patches));
            }
            // SAFETY: the buffer is mapped since memory is shared, has room for operands of this size, and is used by
            // whoever holds the vcpu or the runtime lock.
            unsafe { std::ptr::copy_nonoverlapping(old.as_ptr(), buffer, part.len) };
            let source = Instead { pc: insn.pc, bytes };
            let exit = self.step_from(th, offset, &source);
            if exit != Exit::Stepped {
                return exit;
            }
            th.ctx().rip = insn.pc + insn.touching.len();
            if !part.write {
                return exit;
            }
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(buffer, new.as_mut_ptr(), part.len) };
            let result = if part.read {
                put_changes(part.addr, old, new)
            } else {
                raw::store(part.addr, new).map(|()| Swap::Done)
            };
            match result {
                Ok(Swap::Done) => {
                    with(|m| m.wrote(part.addr, new));
                    return exit;
                }
                Ok(Swap::Changed) => before.put_back(th),
                Err(Gone) => {
                    before.put_back(th);
                    return self.one_insn(th);
                }
            }
        }
    }

    /// Does the instruction with private copies of the shared pages in their place.
    fn in_private_pages(
        &mut self,
        th: &mut Thread,
        parts: &[Part],
        patches: &mut Vec<MemWrite<'static>>,
    ) -> Exit {
        let before = Registers::of(th);
        loop {
            let mut olds = Vec::new();
            for p in parts {
                let mut old = vec![0; p.len];
                if p.read {
                    if raw::load(p.addr, &mut old).is_err() {
                        return self.one_insn(th);
                    }
                    with(|m| m.seen(p.addr, &old, patches));
                } else {
                    with(|m| m.shadow(p.addr, &mut old));
                }
                olds.push(old);
            }
            let pages = self.pages_of(parts);
            let aside: Vec<Aside> = pages.iter().map(|(a, b)| Aside::put(*a, *b)).collect();
            let exit = self.one_insn(th);
            let mut news = Vec::new();
            for p in parts {
                let mut new = vec![0; p.len];
                // Private memory is there, whatever became of the instruction.
                let _ = raw::load(p.addr, &mut new);
                news.push(new);
            }
            drop(aside);
            let whole = exit == Exit::Stepped || matches!(exit, Exit::Tick);
            let mut again = false;
            for ((p, old), new) in parts.iter().zip(&olds).zip(&news) {
                if !p.write {
                    continue;
                }
                let result = if p.read || !whole {
                    put_changes(p.addr, old, new)
                } else {
                    raw::store(p.addr, new).map(|()| Swap::Done)
                };
                match result {
                    Ok(Swap::Done) => with(|m| m.wrote(p.addr, new)),
                    Ok(Swap::Changed) => again = true,
                    Err(Gone) => crate::report::warn(format_args!(
                        "shared memory at {:#x} went away while the program wrote there",
                        p.addr
                    )),
                }
            }
            if !again {
                return exit;
            }
            before.put_back(th);
        }
    }

    /// The runs of pages that parts lie in, each in one mapping.
    fn pages_of(&self, parts: &[Part]) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for p in parts {
            let end = page_up(p.addr + p.len as u64).unwrap_or(u64::MAX);
            for v in self.space.vmas().overlapping(page_down(p.addr)..end) {
                runs.push((v.start.max(page_down(p.addr)), v.end.min(end)));
            }
        }
        runs.sort_unstable();
        let mut out: Vec<(u64, u64)> = Vec::new();
        for (a, b) in runs {
            let same = |at: u64| self.space.find(at).map(|v| v.start);
            match out.last_mut() {
                Some(last) if a <= last.1 && same(last.0) == same(a) => last.1 = last.1.max(b),
                _ => out.push((a, b)),
            }
        }
        let total: u64 = out.iter().map(|(a, b)| b - a).sum();
        if total > MAX_SWAPPED {
            crate::report::fail(
                Failure::Unsupported,
                format_args!("one instruction accesses {total} bytes of shared memory"),
            );
        }
        out
    }

    /// Does the instruction at the thread's position as it is.
    fn one_insn(&mut self, th: &mut Thread) -> Exit {
        let space: *mut crate::mm::Space = &raw mut self.space;
        // SAFETY: stepping uses the caches, not the space, which nothing else refers to meanwhile.
        let source = Code(UnsafeCell::new(unsafe { &mut *space }));
        self.step_from(th, IN_PLACE, &source)
    }

    fn step_from(&mut self, th: &mut Thread, variant: u8, source: &dyn CodeSource) -> Exit {
        let cache = match self.par {
            // SAFETY: this thread holds its vcpu.
            Some(par) => unsafe { par.cache(th) },
            None => &mut *self.cache,
        };
        // All memory is open to it: who may access what has been settled.
        th.ctx().pkru = 0;
        // SAFETY: the context is the calling thread's own; guest memory is the guest's.
        unsafe { cache.step_again(th.ctx, variant, source) }
    }

    /// Replaying threads in parallel: does the instruction of an event.
    pub(super) fn step_in_turn(&mut self, th: &mut Thread) -> Exit {
        let pc = th.ctx().rip;
        if let Some(insn) = self.insn_at(pc) {
            let mut ranges = Vec::new();
            insn.touching.ranges(th.ctx(), &mut ranges);
            self.prepare_access(th, &ranges);
        }
        // The thread was stopped here, and armed for it. It must not be stopped again: the instruction would be done when
        // the turn is over.
        th.ctx().arm_site(None);
        self.one_insn(th)
    }
}

/// Makes `new` of what was `old`: by one exchange if that is possible, else by storing what is different.
fn put_changes(addr: u64, old: &[u8], new: &[u8]) -> Result<Swap, Gone> {
    if old == new {
        return Ok(Swap::Done);
    }
    if raw::swappable(addr, old.len()) {
        return raw::swap(addr, old, new);
    }
    let mut at = 0;
    while at < new.len() {
        let differs = |i: usize| old.get(i) != new.get(i);
        if !differs(at) {
            at += 1;
            continue;
        }
        let end = (at..new.len()).find(|i| !differs(*i)).unwrap_or(new.len());
        raw::store(addr + at as u64, new.get(at..end).unwrap_or_default())?;
        at = end;
    }
    Ok(Swap::Done)
}

/// Shared pages that private ones with the content of their shadow stand for.
struct Aside {
    addr: u64,
    len: usize,
    at: *mut libc::c_void,
}

impl Aside {
    fn put(start: u64, end: u64) -> Aside {
        let len = (end - start) as usize;
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let anon = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let addr = start as *mut libc::c_void;
        // SAFETY: guest memory is moved aside as it is and put back when this is dropped; meanwhile nobody but the
        // stepped instruction accesses it. What is mapped in between is new.
        let (at, ok) = unsafe {
            let at = libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, anon, -1, 0);
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let ok = at != libc::MAP_FAILED
                && libc::mremap(addr, len, len, flags, at) == at
                && libc::mmap(addr, len, rw, anon | libc::MAP_FIXED, -1, 0) == addr;
            (at, ok)
        };
        if !ok {
            Aside::failed();
        }
        let mut page = [0; PAGE as usize];
        let mut p = start;
        while p < end {
            with(|m| m.shadow(p, &mut page));
            // SAFETY: mapped above.
            unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), p as *mut u8, page.len()) };
            p += PAGE;
        }
        Aside {
            addr: start,
            len,
            at,
        }
    }

    fn failed() -> ! {
        crate::report::fail(
            Failure::Unsupported,
            format_args!(
                "shared memory cannot be moved aside: {}",
                std::io::Error::last_os_error()
            ),
        )
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let addr = self.addr as *mut libc::c_void;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: puts the pages back that were there.
        if unsafe { libc::mremap(self.at, self.len, self.len, flags, addr) } != addr {
            Aside::failed();
        }
    }
}

//! Calls that give advice about, lock, write back or ask about mappings: `madvise`, `msync`, `mlock*`,
//! `mincore`, protection keys, and the ones that are refused.

use super::host::Host;
use super::vma::{Object, Vma};
use super::{Effects, Outcome, Space};
use crate::errno::Errno;
use crate::layout::*;
use std::ops::Range;

const MADV_DONTNEED_LOCKED: i32 = 24;
const MADV_COLLAPSE: i32 = 25;

/// What an advice means here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Advice {
    /// Only speed: told to the host, whose refusal does not count.
    Hint,
    /// Pages go. `MADV_FREE` too: when the kernel takes pages is not repeatable, so they go at once.
    Drop {
        /// `MADV_FREE`, which is for private anonymous memory only.
        free: bool,
        /// Also of locked memory.
        locked: bool,
    },
    /// Pages go from the object itself.
    Remove,
    DontFork(bool),
    WipeOnFork(bool),
    Populate {
        write: bool,
    },
    Collapse,
}

fn classify(advice: i32) -> Result<Advice, Errno> {
    Ok(match advice {
        libc::MADV_NORMAL
        | libc::MADV_RANDOM
        | libc::MADV_SEQUENTIAL
        | libc::MADV_WILLNEED
        | libc::MADV_MERGEABLE
        | libc::MADV_UNMERGEABLE
        | libc::MADV_HUGEPAGE
        | libc::MADV_NOHUGEPAGE
        | libc::MADV_DONTDUMP
        | libc::MADV_DODUMP
        | libc::MADV_COLD
        | libc::MADV_PAGEOUT => Advice::Hint,
        libc::MADV_DONTNEED => Advice::Drop {
            free: false,
            locked: false,
        },
        libc::MADV_FREE => Advice::Drop {
            free: true,
            locked: false,
        },
        MADV_DONTNEED_LOCKED => Advice::Drop {
            free: false,
            locked: true,
        },
        libc::MADV_REMOVE => Advice::Remove,
        libc::MADV_DONTFORK => Advice::DontFork(true),
        libc::MADV_DOFORK => Advice::DontFork(false),
        libc::MADV_WIPEONFORK => Advice::WipeOnFork(true),
        libc::MADV_KEEPONFORK => Advice::WipeOnFork(false),
        libc::MADV_POPULATE_READ => Advice::Populate { write: false },
        libc::MADV_POPULATE_WRITE => Advice::Populate { write: true },
        MADV_COLLAPSE => Advice::Collapse,
        libc::MADV_HWPOISON | libc::MADV_SOFT_OFFLINE => return Err(Errno(libc::EPERM)),
        // Guard markers (102, 103) are newer than what the guest is shown.
        _ => return Err(Errno(libc::EINVAL)),
    })
}

impl<H: Host> Space<H> {
    /// `madvise`
    pub fn madvise(&mut self, addr: u64, len: u64, advice: i32) -> Outcome<()> {
        let mut effects = Effects::default();
        let result = self.do_madvise(addr, len, advice, &mut effects);
        Outcome { result, effects }
    }

    fn do_madvise(
        &mut self,
        addr: u64,
        len: u64,
        advice: i32,
        fx: &mut Effects,
    ) -> Result<(), Errno> {
        let kind = classify(advice)?;
        if !page_aligned(addr) {
            return Err(Errno(libc::EINVAL));
        }
        let end = page_up(len)
            .and_then(|len| addr.checked_add(len))
            .ok_or(Errno(libc::EINVAL))?;
        if end == addr {
            return Ok(());
        }
        let mut at = addr;
        let mut hole = false;
        for piece in self.pieces(addr..end) {
            if piece.start > at {
                hole = true;
                if matches!(kind, Advice::Populate { .. }) {
                    return Err(Errno(libc::ENOMEM));
                }
            }
            self.advise_piece(&piece, kind, advice, fx)?;
            at = piece.end;
        }
        if hole || at < end {
            Err(Errno(libc::ENOMEM))
        } else {
            Ok(())
        }
    }

    fn advise_piece(
        &mut self,
        v: &Vma,
        kind: Advice,
        raw: i32,
        fx: &mut Effects,
    ) -> Result<(), Errno> {
        let range = v.start..v.end;
        let refuse = |bad: bool, errno| if bad { Err(Errno(errno)) } else { Ok(()) };
        match kind {
            Advice::Hint => {
                let _ = self.host.madvise(v.start, v.len(), raw);
                Ok(())
            }
            Advice::Drop { free, locked } => {
                refuse(v.flags.locked && !locked, libc::EINVAL)?;
                refuse(free && v.object != Object::Anon, libc::EINVAL)?;
                self.drop_pages(v, fx)
            }
            Advice::Remove => {
                refuse(v.flags.locked || v.object == Object::Anon, libc::EINVAL)?;
                refuse(!v.flags.shared || !v.prot.write, libc::EACCES)?;
                self.drop_code(range, fx);
                match &v.object {
                    Object::File(f) if f.stand_in => {
                        self.zero_stand_in(v);
                        Ok(())
                    }
                    Object::SharedAnon { .. } | Object::Shm { .. } if self.private => {
                        self.zero_stand_in(v);
                        Ok(())
                    }
                    _ => self.host.madvise(v.start, v.len(), raw),
                }
            }
            Advice::DontFork(on) => {
                self.vmas.update(range, |v| v.flags.dontfork = on);
                Ok(())
            }
            Advice::WipeOnFork(on) => {
                refuse(on && v.object != Object::Anon, libc::EINVAL)?;
                self.vmas.update(range, |v| v.flags.wipeonfork = on);
                Ok(())
            }
            Advice::Populate { write } => {
                refuse(
                    if write {
                        !v.prot.write
                    } else {
                        !v.prot.readable()
                    },
                    libc::EINVAL,
                )?;
                // Guarded pages of code cannot be populated for writing; reading brings them in too.
                self.host
                    .madvise(v.start, v.len(), libc::MADV_POPULATE_READ)
            }
            Advice::Collapse => self.host.madvise(v.start, v.len(), raw),
        }
    }

    /// Pages of a private mapping go back to what they were when mapped. Of shared mappings only the page
    /// table entries would go, which nobody sees; and a stand-in would wrongly lose its changes.
    fn drop_pages(&mut self, v: &Vma, fx: &mut Effects) -> Result<(), Errno> {
        if v.flags.shared {
            return Ok(());
        }
        self.drop_code(v.start..v.end, fx);
        let advice = if v.flags.locked {
            MADV_DONTNEED_LOCKED
        } else {
            libc::MADV_DONTNEED
        };
        match self.host.madvise(v.start, v.len(), advice) {
            // Locked by our bookkeeping or not, the host may see it the other way round.
            Err(Errno(libc::EINVAL)) => {
                let _ = self.host.munlock(v.start, v.len());
                self.host.madvise(v.start, v.len(), libc::MADV_DONTNEED)
            }
            other => other,
        }
    }

    fn zero_stand_in(&mut self, v: &Vma) {
        const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
        let mut at = v.start;
        while at < v.end {
            self.host.write(at, &ZEROS);
            at += PAGE;
        }
    }

    /// `msync`
    pub fn msync(&mut self, addr: u64, len: u64, flags: i32) -> Result<(), Errno> {
        let known = libc::MS_ASYNC | libc::MS_INVALIDATE | libc::MS_SYNC;
        let both = libc::MS_ASYNC | libc::MS_SYNC;
        if flags & !known != 0 || !page_aligned(addr) || flags & both == both {
            return Err(Errno(libc::EINVAL));
        }
        let end = addr
            .checked_add(page_up_wrapping(len))
            .ok_or(Errno(libc::ENOMEM))?;
        for v in self.pieces(addr..end) {
            if flags & libc::MS_INVALIDATE != 0 && v.flags.locked {
                return Err(Errno(libc::EBUSY));
            }
            if matches!(v.object, Object::File(_)) && v.flags.shared {
                self.host.msync(v.start, v.len(), flags)?;
            }
        }
        self.covered(addr..end)
    }

    fn covered(&self, range: Range<u64>) -> Result<(), Errno> {
        if range.is_empty() || self.vmas.is_covered(range) {
            Ok(())
        } else {
            Err(Errno(libc::ENOMEM))
        }
    }

    /// The pages that a lock call with these arguments is about.
    fn lock_range(addr: u64, len: u64) -> Result<Range<u64>, Errno> {
        let inner = page_up_wrapping(len.wrapping_add(addr & (PAGE - 1)));
        let start = page_down(addr);
        Ok(start..start.checked_add(inner).ok_or(Errno(libc::EINVAL))?)
    }

    /// `mlock` (flags 0) and `mlock2`. The host's answer counts, since it has the limit.
    pub fn mlock(&mut self, addr: u64, len: u64, flags: u32) -> Result<(), Errno> {
        if flags & !libc::MLOCK_ONFAULT != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let range = Self::lock_range(addr, len)?;
        let mut refused = None;
        for run in self.mapped_runs(range.clone()) {
            refused = refused.or(self.host.mlock(run.start, run.end - run.start, flags).err());
        }
        // ENOMEM of unreadable pages comes after the mapping was marked; EPERM and EAGAIN come before.
        if let Some(e @ Errno(libc::EPERM | libc::EAGAIN)) = refused {
            return Err(e);
        }
        self.mark(range.clone(), true);
        self.covered(range)?;
        refused.map_or(Ok(()), Err)
    }

    fn mark(&mut self, range: Range<u64>, locked: bool) {
        self.vmas.update(range, |v| v.flags.locked = locked);
    }

    /// What a call of the `mlock` kind that gave `result` when it was recorded has changed: which memory counts as locked, which
    /// `madvise` and `msync` ask. A replay locks nothing.
    pub fn locked_as_logged(&mut self, nr: i64, addr: u64, len: u64, result: Result<(), Errno>) {
        let refused = match nr {
            libc::SYS_mlock | libc::SYS_mlock2 => {
                matches!(
                    result,
                    Err(Errno(libc::EPERM | libc::EAGAIN | libc::EINVAL))
                )
            }
            libc::SYS_munlock => result == Err(Errno(libc::EINVAL)),
            _ => result.is_err(),
        };
        if refused {
            return;
        }
        match nr {
            libc::SYS_mlock | libc::SYS_mlock2 | libc::SYS_munlock => {
                if let Ok(range) = Self::lock_range(addr, len) {
                    self.mark(range, nr != libc::SYS_munlock);
                }
            }
            libc::SYS_mlockall => self.mark_all(addr as i32),
            libc::SYS_munlockall => self.mark_none(),
            _ => {}
        }
    }

    fn mark_all(&mut self, flags: i32) {
        self.lock_future = flags & libc::MCL_FUTURE != 0;
        if flags & libc::MCL_CURRENT != 0 {
            self.mark(0..GUEST_LAST, true);
        }
    }

    pub(super) fn mark_none(&mut self) {
        self.lock_future = false;
        self.mark(0..GUEST_LAST, false);
    }

    /// `munlock`
    pub fn munlock(&mut self, addr: u64, len: u64) -> Result<(), Errno> {
        let range = Self::lock_range(addr, len)?;
        let mut refused = None;
        for run in self.mapped_runs(range.clone()) {
            refused = refused.or(self.host.munlock(run.start, run.end - run.start).err());
        }
        self.mark(range.clone(), false);
        self.covered(range)?;
        refused.map_or(Ok(()), Err)
    }

    /// `mlockall`: of the guest's mappings only.
    pub fn mlockall(&mut self, flags: i32) -> Result<(), Errno> {
        const ONFAULT: i32 = libc::MCL_ONFAULT;
        if flags == 0
            || flags & !(libc::MCL_CURRENT | libc::MCL_FUTURE | ONFAULT) != 0
            || flags == ONFAULT
        {
            return Err(Errno(libc::EINVAL));
        }
        if flags & libc::MCL_CURRENT != 0 {
            // The main stack is mapped whole here, but only its used pages are worth locking.
            for run in self.mapped_runs(0..GUEST_LAST) {
                let _ = self
                    .host
                    .mlock(run.start, run.end - run.start, libc::MLOCK_ONFAULT);
            }
        }
        self.mark_all(flags);
        Ok(())
    }

    /// `munlockall`
    pub fn munlockall(&mut self) -> Result<(), Errno> {
        for run in self.mapped_runs(0..GUEST_LAST) {
            let _ = self.host.munlock(run.start, run.end - run.start);
        }
        self.mark_none();
        Ok(())
    }

    /// `mincore`: one byte per page. Not repeatable: log the result.
    pub fn mincore(&mut self, addr: u64, len: u64) -> Result<Vec<u8>, Errno> {
        if !page_aligned(addr) {
            return Err(Errno(libc::EINVAL));
        }
        let end = page_up(len)
            .and_then(|len| addr.checked_add(len))
            .ok_or(Errno(libc::ENOMEM))?;
        self.covered(addr..end)?;
        let mut vec = vec![0; ((end - addr) / PAGE) as usize];
        if !vec.is_empty() {
            self.host.mincore(addr, &mut vec)?;
        }
        Ok(vec)
    }

    /// `pkey_alloc` on a machine without protection keys.
    pub fn pkey_alloc(&self, flags: u64, rights: u64) -> Result<i32, Errno> {
        let bad = flags != 0 || rights & !3 != 0;
        Err(Errno(if bad { libc::EINVAL } else { libc::ENOSPC }))
    }

    /// `pkey_free` on a machine without protection keys.
    pub fn pkey_free(&self, _key: i32) -> Result<(), Errno> {
        Err(Errno(libc::EINVAL))
    }

    /// `pkey_mprotect` on a machine without protection keys.
    pub fn pkey_mprotect(&mut self, addr: u64, len: u64, prot: i32, key: i32) -> Outcome<()> {
        if key == -1 {
            self.mprotect(addr, len, prot)
        } else {
            Outcome::fail(libc::EINVAL)
        }
    }

    /// `remap_file_pages`: deprecated for long and not supported; the caller should say so.
    pub fn remap_file_pages(&self) -> Result<(), Errno> {
        Err(Errno(libc::ENOSYS))
    }

    /// `mseal`: newer than what the guest is shown.
    pub fn mseal(&self) -> Result<(), Errno> {
        Err(Errno(libc::ENOSYS))
    }
}

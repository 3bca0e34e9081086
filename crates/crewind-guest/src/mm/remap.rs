//! `mremap`.

use super::host::Host;
use super::space::host_prot;
use super::vma::{Object, Vma};
use super::{Effects, Outcome, Placement, Space};
use crate::errno::Errno;
use crate::layout::*;

const KNOWN: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;

impl<H: Host> Space<H> {
    /// `mremap`; `new_addr` counts only with `MREMAP_FIXED`.
    pub fn mremap(
        &mut self,
        addr: u64,
        old_len: u64,
        new_len: u64,
        flags: i32,
        new_addr: u64,
    ) -> Outcome<u64> {
        let mut effects = Effects::default();
        let result = self.do_mremap(addr, old_len, new_len, flags, new_addr, &mut effects);
        Outcome { result, effects }
    }

    fn do_mremap(
        &mut self,
        addr: u64,
        old_len: u64,
        new_len: u64,
        flags: i32,
        new_addr: u64,
        fx: &mut Effects,
    ) -> Result<u64, Errno> {
        let fixed = flags & libc::MREMAP_FIXED != 0;
        let maymove = flags & libc::MREMAP_MAYMOVE != 0;
        let keep = flags & libc::MREMAP_DONTUNMAP != 0;
        let bad = flags & !KNOWN != 0 || (fixed || keep) && !maymove || keep && old_len != new_len;
        if bad || !page_aligned(addr) {
            return Err(Errno(libc::EINVAL));
        }
        let old_len = page_up_wrapping(old_len);
        let new_len = page_up(new_len)
            .filter(|&l| l != 0 && l <= TASK_SIZE)
            .ok_or(Errno(libc::EINVAL))?;
        if fixed {
            let bad = !page_aligned(new_addr) || new_addr > TASK_SIZE - new_len;
            let overlap = addr.saturating_add(old_len) > new_addr && new_addr + new_len > addr;
            if bad || overlap {
                return Err(Errno(libc::EINVAL));
            }
            if new_addr < GUEST_START {
                return Err(Errno(libc::EPERM));
            }
            if !is_guest(new_addr, new_len) {
                return Err(Errno(libc::ENOMEM));
            }
        }
        let vma = self.vmas.find(addr).cloned().ok_or(Errno(libc::EFAULT))?;
        if !fixed && !keep && old_len >= new_len {
            if old_len > new_len {
                self.do_munmap(addr + new_len, old_len - new_len, fx)?;
            }
            return Ok(addr);
        }
        if old_len == 0 && (keep || !vma.flags.shared) {
            return Err(Errno(libc::EINVAL));
        }
        // What is beyond the new length goes first, also when it is not part of the mapping.
        let moved_len = old_len.min(new_len);
        if moved_len > vma.end - addr {
            return Err(Errno(libc::EFAULT));
        }
        if fixed {
            self.do_munmap(new_addr, new_len, fx)?;
        }
        if old_len > new_len {
            self.do_munmap(addr + new_len, old_len - new_len, fx)?;
        }
        // The shape of the host's mappings must not depend on what was translated.
        self.drop_code(addr..addr + moved_len.max(PAGE), fx);
        let piece = vma.clipped(&(addr..addr + moved_len));

        if !fixed && !keep && old_len != 0 && self.grow_in_place(&vma, &piece, new_len, fx) {
            return Ok(addr);
        }
        if !maymove {
            return Err(Errno(libc::ENOMEM));
        }
        let to = if fixed {
            new_addr
        } else {
            self.place_moved(&vma, new_len)?
        };
        self.move_to(
            &piece,
            moved_len,
            new_len,
            flags & libc::MREMAP_DONTUNMAP,
            to,
            fx,
        )?;
        Ok(to)
    }

    fn grow_in_place(&mut self, vma: &Vma, piece: &Vma, new_len: u64, fx: &mut Effects) -> bool {
        let Some(end) = piece.start.checked_add(new_len) else {
            return false;
        };
        let free = piece.end == vma.end
            && is_guest(piece.start, new_len)
            && self
                .vmas
                .first_above(vma.end)
                .is_none_or(|next| end <= next.guarded_start());
        if !free
            || self
                .host
                .mremap(piece.start, piece.len(), new_len, 0, None)
                .is_err()
        {
            return false;
        }
        let grown = Vma {
            end,
            ..piece.clone()
        };
        self.vmas.insert(grown.clipped(&(vma.end..end)));
        self.guard_new_alias(vma.end..end, fx);
        true
    }

    fn place_moved(&self, vma: &Vma, len: u64) -> Result<u64, Errno> {
        let low = (LOW_PLACE_START..LOW_END).contains(&vma.start);
        let placement = if low && vma.object != Object::Anon {
            Placement::ElfImage
        } else {
            Placement::Normal
        };
        self.place(len, PAGE, placement).ok_or(Errno(libc::ENOMEM))
    }

    fn move_to(
        &mut self,
        piece: &Vma,
        old_len: u64,
        new_len: u64,
        keep: i32,
        to: u64,
        fx: &mut Effects,
    ) -> Result<(), Errno> {
        let moved = if old_len == 0 && self.private {
            // Mapped once more: a recording has an empty shadow for it too.
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            self.host
                .mmap(to, new_len, host_prot(piece.prot), flags, -1, 0)
        } else {
            self.host
                .mremap(piece.start, old_len, new_len, keep, Some(to))
        };
        match moved {
            Ok(()) => {}
            // One mapping to the guest can be several on the host (for instance after parts were protected
            // differently for a while), which the kernel does not move as one.
            Err(Errno(libc::EFAULT)) if piece.object == Object::Anon && keep == 0 => {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
                self.host.mmap(
                    to,
                    new_len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    flags,
                    -1,
                    0,
                )?;
                self.host.mprotect(piece.start, old_len, libc::PROT_READ)?;
                self.host.copy(piece.start, to, old_len);
                self.host.mprotect(to, new_len, host_prot(piece.prot))?;
                self.host.munmap(piece.start, old_len)?;
            }
            Err(e) => return Err(e),
        }
        if keep == 0 && old_len != 0 {
            self.vmas.remove(piece.start..piece.start + old_len);
        }
        let mut new = Vma {
            start: to,
            end: to + new_len,
            ..piece.clone()
        };
        new.flags.role = super::Role::Plain;
        self.vmas.insert(new);
        if keep != 0 {
            self.vmas
                .update(piece.start..piece.end, |v| v.flags.locked = false);
        }
        self.guard_new_alias(to..to + new_len, fx);
        Ok(())
    }
}

//! System V shared memory: `shmat`, `shmdt`.

use super::host::Host;
use super::space::host_prot;
use super::vma::{Object, Prot, Vma, VmaFlags};
use super::{Effects, Outcome, Placement, Space};
use crate::errno::Errno;
use crate::layout::*;

/// What is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShmSource {
    /// The host's segment, when recording.
    Host,
    /// Memory of this many bytes in its place, when replaying. The caller fills it.
    StandIn {
        /// Size of the segment.
        len: u64,
    },
}

impl<H: Host> Space<H> {
    /// `shmat`: attaches segment `id`.
    pub fn shmat(&mut self, id: i32, addr: u64, flags: i32, source: ShmSource) -> Outcome<u64> {
        let mut effects = Effects::default();
        let result = self.do_shmat(id, addr, flags, source, &mut effects);
        Outcome { result, effects }
    }

    fn do_shmat(
        &mut self,
        id: i32,
        addr: u64,
        flags: i32,
        source: ShmSource,
        fx: &mut Effects,
    ) -> Result<u64, Errno> {
        if id < 0 {
            return Err(Errno(libc::EINVAL));
        }
        let remap = flags & libc::SHM_REMAP != 0;
        let mut at = addr;
        if !page_aligned(at) {
            if flags & libc::SHM_RND == 0 {
                return Err(Errno(libc::EINVAL));
            }
            at = page_down(at);
        }
        if at == 0 && (remap || addr != 0) {
            return Err(Errno(libc::EINVAL));
        }
        let bytes = match source {
            ShmSource::Host => self.host.shm_len(id)?,
            ShmSource::StandIn { len } => len,
        };
        let len = page_up(bytes)
            .filter(|&l| l != 0 && l < GUEST_END)
            .ok_or(Errno(libc::ENOMEM))?;
        if addr == 0 {
            at = self
                .place(len, PAGE, Placement::Normal)
                .ok_or(Errno(libc::ENOMEM))?;
        } else if !is_guest(at, len) || !remap && !self.vmas.is_free(at..at + len) {
            return Err(Errno(libc::EINVAL));
        }
        let write = flags & libc::SHM_RDONLY == 0;
        let prot = Prot {
            read: true,
            write,
            exec: flags & libc::SHM_EXEC != 0,
        };
        match source {
            ShmSource::Host => {
                self.host.shmat(id, at, flags & !libc::SHM_EXEC)?;
            }
            ShmSource::StandIn { .. } => {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                self.host.mmap(at, len, host_prot(prot), flags, -1, 0)?;
            }
        }
        self.code.forget(at..at + len, fx);
        self.vmas.remove(at..at + len);
        self.vmas.insert(Vma {
            start: at,
            end: at + len,
            prot,
            flags: VmaFlags {
                shared: true,
                ..VmaFlags::default()
            },
            object: Object::Shm {
                id,
                offset: 0,
                may_write: write,
            },
        });
        self.guard_new_alias(at..at + len, fx);
        Ok(at)
    }

    /// `shmdt`: detaches what was attached at `addr`.
    pub fn shmdt(&mut self, addr: u64) -> Outcome<()> {
        let mut effects = Effects::default();
        let result = self.do_shmdt(addr, &mut effects);
        Outcome { result, effects }
    }

    fn do_shmdt(&mut self, addr: u64, fx: &mut Effects) -> Result<(), Errno> {
        // Parts may have been unmapped or protected since: those left are at their offset from `addr`.
        let attached = |v: &&Vma| match v.object {
            Object::Shm { offset, .. } => v.start.checked_sub(addr) == Some(offset),
            _ => false,
        };
        let id = |v: &Vma| match v.object {
            Object::Shm { id, .. } => Some(id),
            _ => None,
        };
        let Some(first) = self
            .vmas
            .overlapping(addr..GUEST_LAST)
            .find(attached)
            .and_then(id)
        else {
            return Err(Errno(libc::EINVAL));
        };
        let parts: Vec<_> = self
            .vmas
            .overlapping(addr..GUEST_LAST)
            .filter(|v| attached(v) && id(v) == Some(first))
            .map(|v| v.start..v.end)
            .collect();
        for part in parts {
            self.unmap_range(part, fx)?;
        }
        Ok(())
    }
}

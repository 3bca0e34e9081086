//! The look-up table of indirect transfers: 2^16 addresses in the cache, indexed by the low 16 bits of the guest pc.
//!
//! Unused entries lead to the miss stub. So that they cost no memory, the table is a private mapping of one small file
//! that holds nothing but that address, mapped over and over; only pages that get an entry become the process's own.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

const SLOTS: u64 = 1 << 16;
/// Bytes of the table.
pub(crate) const TABLE_SIZE: usize = 8 << 16;
/// Bytes of the file. Larger: more memory at first; smaller: more mappings.
const FILE_SIZE: usize = 64 << 10;

pub(crate) struct Table {
    base: u64,
    miss: u64,
}

impl Table {
    /// Maps the table at `base`.
    pub(crate) fn new(base: u64, miss: u64) -> io::Result<Table> {
        // SAFETY: a name and flags.
        let fd = unsafe { libc::memfd_create(c"crewind-table".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let content: Vec<u8> = miss
            .to_le_bytes()
            .into_iter()
            .cycle()
            .take(FILE_SIZE)
            .collect();
        // SAFETY: a valid buffer.
        let n = unsafe { libc::write(fd.as_raw_fd(), content.as_ptr().cast(), FILE_SIZE) };
        if n != FILE_SIZE as isize {
            return Err(io::Error::other("could not fill the look-up table"));
        }
        let mut table = Table { base, miss };
        for at in (0..TABLE_SIZE).step_by(FILE_SIZE) {
            // SAFETY: NOREPLACE: nothing that is mapped changes.
            let p = unsafe {
                libc::mmap(
                    (base + at as u64) as *mut libc::c_void,
                    FILE_SIZE,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE,
                    fd.as_raw_fd(),
                    0,
                )
            };
            if p as u64 != base + at as u64 {
                let e = io::Error::last_os_error();
                table.unmap(at);
                return Err(e);
            }
        }
        Ok(table)
    }

    fn unmap(&mut self, len: usize) {
        if len > 0 {
            // SAFETY: this much was mapped by `new`.
            unsafe { libc::munmap(self.base as *mut libc::c_void, len) };
        }
        self.base = 0;
    }

    fn slot(&self, pc: u64) -> &AtomicU64 {
        // SAFETY: inside the table, which stays mapped as long as `self`; translated code reads it at the same time.
        unsafe { AtomicU64::from_ptr((self.base + 8 * (pc % SLOTS)) as *mut u64) }
    }

    /// Address that the slot of `pc` leads to; None: the miss stub.
    pub(crate) fn get(&self, pc: u64) -> Option<u64> {
        Some(self.slot(pc).load(Ordering::Relaxed)).filter(|a| *a != self.miss)
    }

    /// Lets the slot of `pc` lead to this address of the cache, or to the miss stub.
    pub(crate) fn set(&self, pc: u64, to: Option<u64>) {
        self.slot(pc)
            .store(to.unwrap_or(self.miss), Ordering::Release);
    }

    /// All slots lead to the miss stub.
    pub(crate) fn clear(&self) {
        // SAFETY: drops the process's own pages of the table, so that those of the file show again.
        unsafe {
            libc::madvise(
                self.base as *mut libc::c_void,
                TABLE_SIZE,
                libc::MADV_DONTNEED,
            )
        };
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if self.base != 0 {
            self.unmap(TABLE_SIZE);
        }
    }
}

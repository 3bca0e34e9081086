//! The system calls that change the guest's mappings. Each does what it says and nothing else: what may be
//! asked, and where, is decided in [`super::Space`].

use super::vma::FileId;
use crate::errno::Errno;
use crate::layout::is_guest;
use crate::lockstep::{Change, changed};
use crate::par::keys;
use std::os::fd::RawFd;

/// What is known about an open file that is to be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// The file.
    pub id: FileId,
    /// Opened for writing.
    pub writable: bool,
    /// On a file system mounted `noexec`.
    pub noexec: bool,
}

/// The host's side of an address space. All addresses are the guest's: `mmap` and `mremap` put mappings
/// exactly where they are told, over what is there.
pub trait Host {
    /// `mmap` with `MAP_FIXED`.
    fn mmap(
        &mut self,
        addr: u64,
        len: u64,
        prot: i32,
        flags: i32,
        fd: RawFd,
        offset: u64,
    ) -> Result<(), Errno>;
    /// `munmap`
    fn munmap(&mut self, addr: u64, len: u64) -> Result<(), Errno>;
    /// `mprotect`
    fn mprotect(&mut self, addr: u64, len: u64, prot: i32) -> Result<(), Errno>;
    /// `mremap`; `to` is where it goes with `MREMAP_FIXED`, or `None` to resize in place.
    fn mremap(
        &mut self,
        addr: u64,
        old: u64,
        new: u64,
        flags: i32,
        to: Option<u64>,
    ) -> Result<(), Errno>;
    /// `madvise`
    fn madvise(&mut self, addr: u64, len: u64, advice: i32) -> Result<(), Errno>;
    /// `msync`
    fn msync(&mut self, addr: u64, len: u64, flags: i32) -> Result<(), Errno>;
    /// `mlock2`
    fn mlock(&mut self, addr: u64, len: u64, flags: u32) -> Result<(), Errno>;
    /// `munlock`
    fn munlock(&mut self, addr: u64, len: u64) -> Result<(), Errno>;
    /// `mincore`
    fn mincore(&mut self, addr: u64, vec: &mut [u8]) -> Result<(), Errno>;
    /// What is needed to know of a file before it is mapped.
    fn file(&mut self, fd: RawFd) -> Result<FileFacts, Errno>;
    /// Size of a System V segment.
    fn shm_len(&mut self, id: i32) -> Result<u64, Errno>;
    /// `shmat` with `SHM_REMAP`.
    fn shmat(&mut self, id: i32, addr: u64, flags: i32) -> Result<(), Errno>;
    /// Writes bytes to memory that is mapped writable.
    fn write(&mut self, addr: u64, bytes: &[u8]);
    /// Copies `len` bytes between mappings that are there, the second of them writable.
    fn copy(&mut self, from: u64, to: u64, len: u64);
}

/// Whether this process has left the guest's part of the address space free, as it must before the first guest
/// mapping. The kernel puts things there when it uses its old, bottom-up layout: the error says what to do.
pub fn check_guest_range_is_free() -> Result<(), String> {
    let maps = std::fs::read_to_string("/proc/self/maps")
        .map_err(|e| format!("/proc/self/maps cannot be read ({e}); is /proc mounted?"))?;
    for line in maps.lines() {
        let start = line
            .split('-')
            .next()
            .and_then(|s| u64::from_str_radix(s, 16).ok());
        use crate::layout::{GUEST_END, SANITIZERS};
        if start.is_some_and(|start| start < GUEST_END || SANITIZERS.contains(&start)) {
            return Err(format!(
                "the recorder's own memory is where the recorded program's has to be ({line}): the kernel uses \
                 its legacy memory layout, because the stack size is unlimited (`ulimit -s 8192` changes that), \
                 or vm.legacy_va_layout is set, or by `setarch --addr-compat-layout`"
            ));
        }
    }
    Ok(())
}

/// The kernel underneath.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealHost;

fn ok(ret: i64) -> Result<(), Errno> {
    if ret == -1 {
        Err(Errno::last())
    } else {
        Ok(())
    }
}

/// Guards every call that changes mappings: they never touch the runtime's own memory.
fn guest_only(addr: u64, len: u64) -> Result<(), Errno> {
    if is_guest(addr, len) {
        Ok(())
    } else {
        Err(Errno(libc::ENOMEM))
    }
}

impl Host for RealHost {
    fn mmap(
        &mut self,
        addr: u64,
        len: u64,
        prot: i32,
        flags: i32,
        fd: RawFd,
        offset: u64,
    ) -> Result<(), Errno> {
        changed(Change::Content, addr, len);
        guest_only(addr, len)?;
        let flags = flags & !libc::MAP_FIXED_NOREPLACE | libc::MAP_FIXED;
        let mut keyed = keys::begin(&[(addr, len)]);
        // With keys nobody gets at it before it has its own.
        let first = if keyed.is_some() {
            libc::PROT_NONE
        } else {
            prot
        };
        // SAFETY: the range is the guest's, in which no Rust object lives.
        let at = unsafe {
            libc::mmap(
                addr as *mut _,
                len as usize,
                first,
                flags,
                fd,
                offset as i64,
            )
        };
        ok(at as i64)?;
        match &mut keyed {
            Some(keyed) => keyed.mapped(addr, len, prot),
            None => Ok(()),
        }
    }

    fn munmap(&mut self, addr: u64, len: u64) -> Result<(), Errno> {
        changed(Change::Content, addr, len);
        guest_only(addr, len)?;
        let keyed = keys::begin(&[(addr, len)]);
        // SAFETY: as in `mmap`.
        ok(unsafe { libc::munmap(addr as *mut _, len as usize) }.into())?;
        if let Some(mut keyed) = keyed {
            keyed.unmapped(addr, len);
        }
        Ok(())
    }

    fn mprotect(&mut self, addr: u64, len: u64, prot: i32) -> Result<(), Errno> {
        changed(Change::Rights, addr, len);
        guest_only(addr, len)?;
        // Who may touch it does not change.
        if let Some(mut keyed) = keys::begin(&[]) {
            return keyed.protect(addr, len, prot);
        }
        // SAFETY: as in `mmap`.
        ok(unsafe { libc::mprotect(addr as *mut _, len as usize, prot) }.into())
    }

    fn mremap(
        &mut self,
        addr: u64,
        old: u64,
        new: u64,
        flags: i32,
        to: Option<u64>,
    ) -> Result<(), Errno> {
        changed(Change::Content, addr, old);
        changed(Change::Content, to.unwrap_or(addr), new);
        guest_only(addr, old)?;
        guest_only(to.unwrap_or(addr), new)?;
        let both = [(addr, old.max(new)), (to.unwrap_or(addr), new)];
        if let Some(mut keyed) = keys::begin(&both) {
            return keyed.moved(addr, old, new, flags, to);
        }
        let fixed = if to.is_some() {
            libc::MREMAP_FIXED | libc::MREMAP_MAYMOVE
        } else {
            0
        };
        // SAFETY: as in `mmap`, for both ranges.
        let at = unsafe {
            libc::mremap(
                addr as *mut _,
                old as usize,
                new as usize,
                flags | fixed,
                to.unwrap_or(0) as *mut u8,
            )
        };
        ok(at as i64)
    }

    fn madvise(&mut self, addr: u64, len: u64, advice: i32) -> Result<(), Errno> {
        changed(Change::Content, addr, len);
        guest_only(addr, len)?;
        // SAFETY: as in `mmap`.
        ok(unsafe { libc::madvise(addr as *mut _, len as usize, advice) }.into())
    }

    fn msync(&mut self, addr: u64, len: u64, flags: i32) -> Result<(), Errno> {
        // SAFETY: writes back; memory is not changed.
        ok(unsafe { libc::msync(addr as *mut _, len as usize, flags) }.into())
    }

    fn mlock(&mut self, addr: u64, len: u64, flags: u32) -> Result<(), Errno> {
        // SAFETY: memory is not changed.
        ok(unsafe { libc::syscall(libc::SYS_mlock2, addr, len, flags) })
    }

    fn munlock(&mut self, addr: u64, len: u64) -> Result<(), Errno> {
        // SAFETY: memory is not changed.
        ok(unsafe { libc::munlock(addr as *const _, len as usize) }.into())
    }

    fn mincore(&mut self, addr: u64, vec: &mut [u8]) -> Result<(), Errno> {
        let len = vec.len() * crate::layout::PAGE as usize;
        // SAFETY: the kernel writes one byte per page to `vec`.
        ok(unsafe { libc::mincore(addr as *mut _, len, vec.as_mut_ptr()) }.into())
    }

    fn file(&mut self, fd: RawFd) -> Result<FileFacts, Errno> {
        // SAFETY: all-zero is a valid value of these plain C structs.
        let (mut st, mut fs) = unsafe { std::mem::zeroed::<(libc::stat, libc::statvfs)>() };
        // SAFETY: the kernel fills the two structs and reads nothing else.
        let (a, flags, b) = unsafe {
            (
                libc::fstat(fd, &mut st),
                libc::fcntl(fd, libc::F_GETFL),
                libc::fstatvfs(fd, &mut fs),
            )
        };
        ok(a.into())?;
        ok(flags.into())?;
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        let path = std::os::unix::ffi::OsStringExt::into_vec(path.into_os_string());
        Ok(FileFacts {
            id: FileId {
                dev: st.st_dev,
                ino: st.st_ino,
                path: path.into(),
            },
            writable: matches!(flags & libc::O_ACCMODE, libc::O_RDWR),
            noexec: b == 0 && fs.f_flag & libc::ST_NOEXEC != 0,
        })
    }

    fn shm_len(&mut self, id: i32) -> Result<u64, Errno> {
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut ds = unsafe { std::mem::zeroed::<libc::shmid_ds>() };
        // SAFETY: the kernel fills the struct.
        ok(unsafe { libc::shmctl(id, libc::IPC_STAT, &mut ds) }.into())?;
        Ok(ds.shm_segsz as u64)
    }

    fn shmat(&mut self, id: i32, addr: u64, flags: i32) -> Result<(), Errno> {
        let len = self.shm_len(id)?;
        guest_only(addr, len)?;
        changed(Change::Content, addr, len);
        let keyed = keys::begin(&[(addr, len)]);
        // SAFETY: the whole segment falls into the guest's range.
        ok(unsafe { libc::shmat(id, addr as *const _, flags | libc::SHM_REMAP) } as i64)?;
        let Some(mut keyed) = keyed else {
            return Ok(());
        };
        let prot = match flags & libc::SHM_RDONLY {
            0 => libc::PROT_READ | libc::PROT_WRITE,
            _ => libc::PROT_READ,
        };
        let len = crate::layout::page_up_wrapping(len);
        keyed.mapped(addr, len, prot)
    }

    fn write(&mut self, addr: u64, bytes: &[u8]) {
        changed(Change::Content, addr, bytes.len() as u64);
        if !is_guest(addr, bytes.len() as u64) {
            return;
        }
        // SAFETY: guest memory, which the caller just mapped writable; no Rust object lives there.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), addr as *mut u8, bytes.len()) }
    }

    fn copy(&mut self, from: u64, to: u64, len: u64) {
        changed(Change::Content, to, len);
        if !is_guest(from, len) || !is_guest(to, len) {
            return;
        }
        // SAFETY: as in `write`, for both ranges.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len as usize) }
    }
}

//! The system calls this crate needs and std does not offer, each behind a safe function.
//!
//! Files of a trace are always opened as (directory, name) with `O_NOFOLLOW` on every component below
//! the trace directory: a trace may come from elsewhere, and a symlink in it must not lead outside.
//! No descriptor outlives the call that needed it, because in a recorded process the descriptor
//! numbers belong to the guest.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

/// A shared mapping of a file's first bytes.
pub(crate) struct SharedMap {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and lives until `drop`. What is reached
// through `&self` is atomics only; plain bytes need `&mut self`.
unsafe impl Send for SharedMap {}
// SAFETY: as above.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps `len` bytes of `file` from its start, readable and writable.
    pub(crate) fn new(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(p.cast()) {
            Some(start) => Ok(SharedMap { start, len }),
            None => Err(io::Error::other("mmap returned address 0")),
        }
    }

    /// All mapped bytes.
    ///
    /// A writer reaches the words it publishes through [`Self::atomic_u64`] only; no other process
    /// writes to the file (readers never map it).
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: start..start+len is mapped readable and writable until drop, and `&mut self` is the
        // only way to its bytes in this process.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// The 8 bytes at `offset` as an atomic; `None` when out of bounds or not aligned.
    pub(crate) fn atomic_u64(&self, offset: usize) -> Option<&AtomicU64> {
        if !offset.is_multiple_of(8) || offset.checked_add(8)? > self.len {
            return None;
        }
        // SAFETY: in bounds, aligned (mappings start at a page), valid for the borrow of self; any bit
        // pattern is a u64, and all other access in this process is atomic or through `&mut self`.
        Some(unsafe { &*self.start.as_ptr().add(offset).cast::<AtomicU64>() })
    }

    /// The 4 bytes at `offset` as an atomic; `None` when out of bounds or not aligned.
    pub(crate) fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(4) || offset.checked_add(4)? > self.len {
            return None;
        }
        // SAFETY: as in `atomic_u64`.
        Some(unsafe { &*self.start.as_ptr().add(offset).cast::<AtomicU32>() })
    }

    /// Makes the pages of `from..to` present and writable, so that a lack of space shows here as an
    /// error and not later as SIGBUS. Kernels before 5.14 do not know how: then nothing happens.
    pub(crate) fn populate(&self, from: usize, to: usize) -> io::Result<()> {
        let from = from & !(PAGE - 1);
        let to = to.min(self.len);
        if from >= to {
            return Ok(());
        }
        loop {
            // SAFETY: from..to lies inside the mapping; populating changes no content.
            let r = unsafe {
                libc::madvise(
                    self.start.as_ptr().add(from).cast(),
                    to - from,
                    libc::MADV_POPULATE_WRITE,
                )
            };
            if r == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => {}
                Some(libc::EINVAL) => return Ok(()),
                // How the kernel reports that touching the pages would raise SIGBUS.
                Some(libc::EFAULT | libc::EHWPOISON) => {
                    return Err(io::Error::from_raw_os_error(libc::ENOSPC));
                }
                _ => return Err(error),
            }
        }
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this start and length, and no borrow of it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Page size of x86-64.
pub(crate) const PAGE: usize = 4096;

fn cstr(name: &[u8]) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// `openat` with `O_CLOEXEC | O_NOFOLLOW`, repeated when interrupted.
pub(crate) fn open_at(dir: &File, name: &str, flags: i32, mode: u32) -> io::Result<File> {
    let name = cstr(name.as_bytes())?;
    loop {
        // SAFETY: `name` is a C string that lives over the call; the descriptor returned is new and
        // owned by nobody else.
        let fd = unsafe {
            libc::openat(
                dir.as_raw_fd(),
                name.as_ptr(),
                flags | libc::O_CLOEXEC | libc::O_NOFOLLOW,
                mode,
            )
        };
        if fd >= 0 {
            // SAFETY: as above.
            return Ok(unsafe { File::from_raw_fd(fd) });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The same place from every working directory: the guest changes it, and paths are used later.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Opens a directory by path (symlinks in the user's path are followed, the last one too).
pub(crate) fn open_dir(path: &Path) -> io::Result<File> {
    let path = cstr(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string that lives over the call; the descriptor returned is new.
    let fd = unsafe {
        libc::open(
            path.as_ptr(),
            libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Opens the subdirectory `sub` of `dir`, which must not be a symlink.
pub(crate) fn open_subdir(dir: &Path, sub: &str) -> io::Result<File> {
    if let Some(own) = crate::anchor::anchored(dir, sub) {
        return own;
    }
    open_at(&open_dir(dir)?, sub, libc::O_PATH | libc::O_DIRECTORY, 0)
}

/// `renameat` inside one directory; replaces `to`.
pub(crate) fn rename_at(dir: &File, from: &str, to: &str) -> io::Result<()> {
    let (from, to) = (cstr(from.as_bytes())?, cstr(to.as_bytes())?);
    // SAFETY: both are C strings that live over the call.
    check(unsafe { libc::renameat(dir.as_raw_fd(), from.as_ptr(), dir.as_raw_fd(), to.as_ptr()) })
}

/// `linkat`; fails when `to` exists.
pub(crate) fn link_at(from_dir: &File, from: &str, to_dir: &File, to: &str) -> io::Result<()> {
    let (from, to) = (cstr(from.as_bytes())?, cstr(to.as_bytes())?);
    // SAFETY: both are C strings that live over the call.
    check(unsafe {
        libc::linkat(
            from_dir.as_raw_fd(),
            from.as_ptr(),
            to_dir.as_raw_fd(),
            to.as_ptr(),
            0,
        )
    })
}

/// What `unlink_at` removes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unlink {
    File,
    Dir,
}

/// `unlinkat`.
pub(crate) fn unlink_at(dir: &File, name: &str, what: Unlink) -> io::Result<()> {
    let name = cstr(name.as_bytes())?;
    let flags = match what {
        Unlink::File => 0,
        Unlink::Dir => libc::AT_REMOVEDIR,
    };
    // SAFETY: `name` is a C string that lives over the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) })
}

/// Type and size of `name` in `dir`, not following a symlink.
pub(crate) fn stat_at(dir: &File, name: &str) -> io::Result<libc::stat> {
    let name = cstr(name.as_bytes())?;
    let mut st = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `name` is a C string and `st` has room for the result, both live over the call.
    check(unsafe {
        libc::fstatat(
            dir.as_raw_fd(),
            name.as_ptr(),
            st.as_mut_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
        )
    })?;
    // SAFETY: fstatat succeeded, so it filled `st`.
    Ok(unsafe { st.assume_init() })
}

/// Names in the subdirectory `sub` of `dir`. One that is not UTF-8 comes out changed, but as no name that
/// anything in a trace has.
pub(crate) fn names(dir: &Path, sub: &str) -> io::Result<Vec<String>> {
    let sub = open_subdir(dir, sub)?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let list = open_at(&sub, ".", flags, 0)?.into_raw_fd();
    // SAFETY: the descriptor is ours, and the stream's from now on.
    let stream = unsafe { libc::fdopendir(list) };
    if stream.is_null() {
        let error = io::Error::last_os_error();
        // SAFETY: still ours, because there is no stream.
        drop(unsafe { File::from_raw_fd(list) });
        return Err(error);
    }
    let mut out = Vec::new();
    let end = loop {
        // SAFETY: this thread's own; tells the end from an error.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: an open stream, used by this thread alone.
        let entry = unsafe { libc::readdir(stream) };
        if entry.is_null() {
            break io::Error::last_os_error();
        }
        // SAFETY: a name is a C string, valid until the next call.
        let name = unsafe { std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()) };
        if name != c"." && name != c".." {
            out.push(name.to_string_lossy().into_owned());
        }
    };
    // SAFETY: open, and not used any more.
    unsafe { libc::closedir(stream) };
    match end.raw_os_error() {
        Some(0) => Ok(out),
        _ => Err(end),
    }
}

/// Reserves disk space for the first `len` bytes, so that writing them cannot run out of it.
pub(crate) fn allocate(file: &File, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    loop {
        // SAFETY: takes no pointers. (glibc writes the blocks itself where the file system cannot.)
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) } {
            0 => return Ok(()),
            libc::EINTR => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Writes all parts at `offset`, one after the other.
pub(crate) fn write_parts_at(file: &File, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
    /// More than this in one call is an error (`UIO_MAXIOV`).
    const MAX_PARTS: usize = 1024;
    let mut parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = parts.as_mut_slice();
    while !rest.is_empty() {
        let at =
            libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        let count = rest.len().min(MAX_PARTS) as libc::c_int;
        // SAFETY: an `IoSlice` is an iovec by its documentation; there are at least `count`, and the bytes
        // they borrow live over the call.
        let written = unsafe { libc::pwritev(file.as_raw_fd(), rest.as_ptr().cast(), count, at) };
        match usize::try_from(written) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                offset += n as u64;
                IoSlice::advance_slices(&mut rest, n);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Makes `to` share the blocks of `from` (btrfs, xfs, bcachefs); fails elsewhere.
pub(crate) fn reflink(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: FICLONE takes a descriptor by value and touches no memory.
    check(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) })
}

/// Sleeps while `word` holds `value`, until woken or `timeout` passed; may wake for no reason.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32, timeout: Duration) {
    let ts = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    };
    // SAFETY: the word and the timeout live over the call. Not FUTEX_PRIVATE: processes share the word.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            &raw const ts,
            0,
            0,
        )
    };
}

/// Wakes one sleeper on `word`.
pub(crate) fn futex_wake_one(word: &AtomicU32) {
    // SAFETY: the word lives over the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1, 0, 0, 0) };
}

/// The calling thread's id, from the kernel (a cached one is wrong after a raw `fork`).
pub(crate) fn gettid() -> u32 {
    // SAFETY: no arguments, cannot fail.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    u32::try_from(tid).unwrap_or(0)
}

/// Whether a thread with this id exists (as far as one may ask).
pub(crate) fn thread_exists(tid: u32) -> bool {
    let Ok(tid) = libc::pid_t::try_from(tid) else {
        return false;
    };
    // SAFETY: signal 0 only checks.
    let r = unsafe { libc::syscall(libc::SYS_tkill, tid, 0) };
    r == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Lets the calling thread run when others do not want to.
pub(crate) fn lower_own_priority() {
    let tid = gettid();
    // SAFETY: takes no pointers; on Linux PRIO_PROCESS with a thread id means that thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, tid, 10) };
}

fn check(r: libc::c_int) -> io::Result<()> {
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

//! Saving memory while the program goes on: a copy of the process (copy-on-write) writes it.

use std::os::fd::AsRawFd;
use std::path::Path;

use crate::hostcall;
use crate::layout::PAGE;
use crewind_trace::{MemoryWriter, create_memory};

/// What of a range is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Pages that there are: the others are zeros.
    Present,
    /// Pages that are not the file's: those are in the trace's store.
    Changed,
    /// All that can be read.
    All,
}

/// Guest memory to be saved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub start: u64,
    pub end: u64,
    pub what: What,
    /// A copy of the process would not have it as it is now.
    pub now: bool,
}

/// Processes that write in parallel. Each takes blocks of this many bytes by turns.
const WRITERS: u32 = 2;
const BLOCK: u64 = 4 << 20;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Has the ranges written. The world stands still. Returns the process to be waited for.
pub(super) fn write(trace: &Path, ranges: Vec<Range>) -> std::io::Result<i32> {
    let file = create_memory(trace, WRITERS + 1).map_err(std::io::Error::other)?;
    let fd = file.as_raw_fd();
    let mut scratch = vec![0u64; (BLOCK / PAGE) as usize];
    let mut own = MemoryWriter::new(fd, WRITERS);
    save(&mut own, &ranges, &mut scratch, |r, _| r.now)?;
    own.finish()?;
    let mut writers: Vec<_> = (0..WRITERS).map(|n| MemoryWriter::new(fd, n)).collect();
    // SAFETY: a copy of the process without a signal at its end. It calls nothing that takes a lock or memory, because
    // other threads may have been at that when it was made.
    let child = unsafe { hostcall::raw(libc::SYS_clone, [0; 6]) };
    if child == 0 {
        leave_alone(fd);
        let mut others = [0i64; WRITERS as usize];
        let mut me = 0;
        for n in 1..WRITERS {
            // SAFETY: as above.
            let other = unsafe { hostcall::raw(libc::SYS_clone, [0; 6]) };
            if other == 0 {
                me = n;
                others = [0; WRITERS as usize];
                break;
            }
            others[n as usize] = other;
        }
        let mut good = false;
        if let Some(writer) = writers.get_mut(me as usize) {
            good = save(writer, &ranges, &mut scratch, |r, at| {
                !r.now && (at / BLOCK) % u64::from(WRITERS) == u64::from(me)
            })
            .and_then(|()| writer.finish())
            .is_ok();
        }
        for other in others.into_iter().filter(|o| *o > 0) {
            wait(other as i32);
        }
        super::super::process::leave(i32::from(!good));
    }
    match i32::try_from(child) {
        Ok(child) if child > 0 => Ok(child),
        _ => Err(std::io::Error::from_raw_os_error(-child as i32)),
    }
}

/// In the copy: no signals, and none of the program's files kept open.
fn leave_alone(fd: i32) {
    crate::signal::host::block_all();
    let fd = fd as u64;
    // SAFETY: descriptors of this process, which is a copy; a session of its own keeps the terminal's signals away.
    unsafe {
        if fd > 0 {
            hostcall::raw(libc::SYS_close_range, [0, fd - 1, 0, 0, 0, 0]);
        }
        hostcall::raw(
            libc::SYS_close_range,
            [fd + 1, u64::from(u32::MAX), 0, 0, 0, 0],
        );
        hostcall::raw(libc::SYS_setsid, [0; 6]);
    }
}

/// A file of the calling process's own in `/proc`, closed by `close`.
fn open(path: &std::ffi::CStr) -> i64 {
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    // SAFETY: a terminated path.
    unsafe {
        hostcall::raw(
            libc::SYS_openat,
            [libc::AT_FDCWD as u64, path.as_ptr() as u64, flags, 0, 0, 0],
        )
    }
}

fn close(fd: i64) {
    // SAFETY: ours.
    unsafe { hostcall::raw(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]) };
}

fn read_at(fd: i64, to: *mut u8, len: usize, at: u64) -> bool {
    // SAFETY: the callers pass a live buffer of that length.
    let n = unsafe {
        hostcall::raw(
            libc::SYS_pread64,
            [fd as u64, to as u64, len as u64, at, 0, 0],
        )
    };
    n == len as i64
}

/// Writes pages of ranges, block by block as `mine` says. Takes no memory.
fn save(
    writer: &mut MemoryWriter,
    ranges: &[Range],
    scratch: &mut [u64],
    mine: impl Fn(&Range, u64) -> bool,
) -> std::io::Result<()> {
    let pagemap = open(c"/proc/self/pagemap");
    let mem = open(c"/proc/self/mem");
    if pagemap < 0 || mem < 0 {
        return Err(std::io::Error::from_raw_os_error(libc::EBADF));
    }
    let mut result = Ok(());
    'all: for r in ranges {
        let mut at = r.start;
        while at < r.end {
            let end = r.end.min((at / BLOCK + 1) * BLOCK);
            let from = at;
            at = end;
            if !mine(r, from) {
                continue;
            }
            let n = ((end - from) / PAGE) as usize;
            let known = read_at(
                pagemap,
                scratch.as_mut_ptr().cast(),
                8 * n,
                8 * (from / PAGE),
            );
            for (k, flags) in scratch[..n].iter().enumerate() {
                let there = flags & (PRESENT | SWAPPED) != 0;
                let wanted = match r.what {
                    _ if !known => true,
                    What::Present => there,
                    What::Changed => there && flags & OF_FILE == 0,
                    What::All => true,
                };
                if !wanted {
                    continue;
                }
                let addr = from + k as u64 * PAGE;
                let done = writer.page(addr, |page| {
                    read_at(mem, page.as_mut_ptr(), page.len(), addr)
                });
                if done.is_err() {
                    result = done;
                    break 'all;
                }
            }
        }
    }
    close(pagemap);
    close(mem);
    result
}

/// Waits for the process that writes memory.
pub(super) fn wait(pid: i32) {
    let mut status = 0i32;
    loop {
        // SAFETY: the kernel fills a live int; the process is a child of ours that tells nobody of its end.
        let got = unsafe {
            hostcall::raw(
                libc::SYS_wait4,
                [
                    pid as u64,
                    &raw mut status as u64,
                    libc::__WALL as u64,
                    0,
                    0,
                    0,
                ],
            )
        };
        if got != -i64::from(libc::EINTR) {
            break;
        }
    }
    if status != 0 {
        crate::report::warn(format_args!(
            "not all memory could be written (is there space?): the trace will not replay"
        ));
    }
}

//! What the processes of one replay and its supervisor share: the order of output, and how far an unfinished trace
//! goes.
//!
//! A number in the order of output is waited for until it is shown. That it will be is certain: whoever has its
//! record comes to it, or fails, which ends the replay; and for numbers that no stream has, the supervisor, which
//! has read them all, passes on ([`ReplayShared::pass`]).

use crate::debug::Shows;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crewind_trace::event::ThreadId;

/// A memory file that the supervisor makes and all processes of a replay map.
pub struct ReplayShared {
    page: *mut Page,
    /// Entries behind the page.
    extents: usize,
}

// SAFETY: the page is made of atomics, what is behind it never changes, and both stay mapped for the life of the
// process.
unsafe impl Send for ReplayShared {}
// SAFETY: as above.
unsafe impl Sync for ReplayShared {}

#[repr(C)]
struct Page {
    /// Next place in the order of output.
    next: AtomicU64,
    /// Counts changes, for waiters.
    word: AtomicU32,
    /// Threads that wait for their place.
    waiting: AtomicU32,
    /// Threads that write: their reader may take its time.
    writing: AtomicU32,
    /// 1 when the trace is finished: its streams end where their threads did.
    finished: AtomicU32,
}

/// Of an unfinished trace: a stream, and how many of its records are replayed.
#[derive(Clone, Copy)]
#[repr(C)]
struct Extent {
    thread: u32,
    unused: u32,
    records: u64,
}

const PAGE: usize = 4096;

/// Wakes are not lost unless a replaying process is killed in the middle of one; then this is how late a waiter
/// notices.
const LOOK_AGAIN_NS: i64 = 200_000_000;

/// Whether a recording came to its end in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// A stream that stops is that of a process killed by SIGKILL.
    Finished,
    /// It was cut, or goes on: streams stop where they happen to.
    Unfinished,
}

impl ReplayShared {
    /// A new one, by the supervisor. An unfinished trace is replayed as far as `extents` says, because it may grow
    /// meanwhile, and each process must stop where it does in relation to the others.
    ///
    /// # Errors
    /// No memory file can be made.
    pub fn create(
        recording: Recording,
        extents: &BTreeMap<ThreadId, u64>,
    ) -> std::io::Result<(Self, std::os::fd::OwnedFd)> {
        use std::io::{Seek, SeekFrom, Write};
        use std::os::fd::{AsRawFd, FromRawFd};
        // SAFETY: a literal name; the descriptor is new and ours alone.
        let mut file = unsafe {
            let fd = libc::memfd_create(c"crewind-replay".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            std::fs::File::from_raw_fd(fd)
        };
        let mut table = Vec::with_capacity(extents.len() * size_of::<Extent>());
        for (thread, records) in extents {
            table.extend_from_slice(&u64::from(thread.0).to_ne_bytes());
            table.extend_from_slice(&records.to_ne_bytes());
        }
        file.set_len(PAGE as u64)?;
        file.seek(SeekFrom::Start(PAGE as u64))?;
        file.write_all(&table)?;
        let shared = Self::open(file.as_raw_fd())?;
        let finished = u32::from(recording == Recording::Finished);
        shared.page().finished.store(finished, Ordering::SeqCst);
        Ok((shared, file.into()))
    }

    /// Maps the one behind `fd`.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn open(fd: i32) -> std::io::Result<Self> {
        // SAFETY: plain data that the kernel fills; then a fresh shared mapping of a file of that size.
        let (size, p) = unsafe {
            let mut st: libc::stat = std::mem::zeroed();
            if libc::fstat(fd, &raw mut st) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            let size = usize::try_from(st.st_size).unwrap_or(0);
            if size < PAGE {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            let p = libc::mmap(std::ptr::null_mut(), size, rights, libc::MAP_SHARED, fd, 0);
            (size, p)
        };
        if p == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(ReplayShared {
            page: p.cast(),
            extents: (size - PAGE) / size_of::<Extent>(),
        })
    }

    /// Makes it what [`extent_of`] asks.
    pub fn install(&self) {
        INSTALLED.store(self.page, Ordering::Release);
        EXTENTS.store(self.extents as u64, Ordering::Release);
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped for ever.
        unsafe { &*self.page }
    }

    /// Whether the trace is finished.
    pub fn recording(&self) -> Recording {
        if self.page().finished.load(Ordering::Relaxed) == 1 {
            Recording::Finished
        } else {
            Recording::Unfinished
        }
    }

    /// The next place in the order of output.
    pub fn next(&self) -> u64 {
        self.page().next.load(Ordering::Acquire)
    }

    /// Whether somebody waits for a place.
    pub fn is_waited_for(&self) -> bool {
        self.page().waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether somebody writes output.
    pub fn is_written(&self) -> bool {
        self.page().writing.load(Ordering::Relaxed) > 0
    }

    /// Waits for output number `seq` to be due, writes it to `fd`, and lets the next one go.
    pub fn show(&self, fd: u8, seq: u64, text: &[u8]) {
        match crate::debug::shows_output() {
            Shows::All => {}
            Shows::New => {
                // Other processes are not there, and going back shows nothing twice.
                if self.next() <= seq {
                    write_all(if fd == 0 { 1 } else { i32::from(fd) }, text);
                    self.go_on_at(seq.saturating_add(1));
                }
                return;
            }
            Shows::Nothing => return,
        }
        let page = self.page();
        self.wait_for(seq);
        let out = if fd == 0 { 1 } else { i32::from(fd) };
        page.writing.fetch_add(1, Ordering::Relaxed);
        write_all(out, text);
        page.writing.fetch_sub(1, Ordering::Relaxed);
        self.go_on_at(seq.saturating_add(1));
    }

    /// When the places `missing` are due, which nobody has, goes on behind them.
    pub fn pass(&self, missing: Range<u64>) {
        self.wait_for(missing.start);
        self.go_on_at(missing.end);
    }

    fn wait_for(&self, seq: u64) {
        let page = self.page();
        if self.next() >= seq {
            return;
        }
        page.waiting.fetch_add(1, Ordering::Relaxed);
        loop {
            let word = page.word.load(Ordering::Acquire);
            if self.next() >= seq {
                break;
            }
            let t = libc::timespec {
                tv_sec: 0,
                tv_nsec: LOOK_AGAIN_NS,
            };
            let args = [
                &raw const page.word as u64,
                libc::FUTEX_WAIT as u64,
                u64::from(word),
                &raw const t as u64,
                0,
                0,
            ];
            // SAFETY: a futex wait on a mapped word with a timeout.
            unsafe { crate::hostcall::raw(libc::SYS_futex, args) };
        }
        page.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    fn go_on_at(&self, seq: u64) {
        let page = self.page();
        page.next.fetch_max(seq, Ordering::AcqRel);
        page.word.fetch_add(1, Ordering::AcqRel);
        let args = [
            &raw const page.word as u64,
            libc::FUTEX_WAKE as u64,
            i32::MAX as u64,
            0,
            0,
            0,
        ];
        // SAFETY: a futex wake on a mapped word.
        unsafe { crate::hostcall::raw(libc::SYS_futex, args) };
    }
}

/// The process's one, for threads that have no other way to it.
static INSTALLED: AtomicPtr<Page> = AtomicPtr::new(std::ptr::null_mut());
static EXTENTS: AtomicU64 = AtomicU64::new(0);

/// How many records of a thread's stream are replayed: all of them when the trace is finished.
pub fn extent_of(thread: ThreadId) -> u64 {
    let page = INSTALLED.load(Ordering::Acquire);
    if page.is_null() {
        return u64::MAX;
    }
    // SAFETY: mapped for ever, with as many entries behind the page as `EXTENTS` says; nobody changes those.
    let (finished, extents) = unsafe {
        let extents = EXTENTS.load(Ordering::Acquire) as usize;
        let first = page.cast::<u8>().add(PAGE).cast::<Extent>();
        (
            (*page).finished.load(Ordering::Relaxed) == 1,
            std::slice::from_raw_parts(first, extents),
        )
    };
    if finished {
        return u64::MAX;
    }
    extents
        .binary_search_by_key(&thread.0, |e| e.thread)
        .map_or(0, |at| extents[at].records)
}

/// Writes everything; a reader that is gone is not our concern.
pub(crate) fn write_all(fd: i32, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let args = [
            fd as u64,
            bytes.as_ptr() as u64,
            bytes.len() as u64,
            0,
            0,
            0,
        ];
        // SAFETY: a live slice.
        let n = unsafe { crate::hostcall::raw(libc::SYS_write, args) };
        if n == -i64::from(libc::EINTR) {
            continue;
        }
        if n == -i64::from(libc::EAGAIN) {
            let mut room = libc::pollfd {
                fd,
                events: libc::POLLOUT,
                revents: 0,
            };
            // SAFETY: one live struct.
            unsafe { libc::poll(&raw mut room, 1, -1) };
            continue;
        }
        if n <= 0 {
            return;
        }
        bytes = &bytes[n as usize..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn an_unfinished_trace_goes_as_far_as_its_extents() {
        let extents = BTreeMap::from([(ThreadId(1), 70), (ThreadId(5), 3), (ThreadId(9), 0)]);
        let (_made, fd) = ReplayShared::create(Recording::Unfinished, &extents).unwrap();
        let shared = ReplayShared::open(fd.as_raw_fd()).unwrap();
        assert_eq!(shared.recording(), Recording::Unfinished);
        shared.install();
        let found = [1, 2, 5, 9, 10].map(|t| extent_of(ThreadId(t)));
        assert_eq!(found, [70, 0, 3, 0, 0]);
        let (made, _fd) = ReplayShared::create(Recording::Finished, &BTreeMap::new()).unwrap();
        assert_eq!(made.recording(), Recording::Finished);
    }

    #[test]
    fn places_are_taken_in_order_and_missing_ones_are_passed() {
        let (made, fd) = ReplayShared::create(Recording::Finished, &BTreeMap::new()).unwrap();
        let mut pipe = [0; 2];
        // SAFETY: fills a live array of two.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        let (from, to) = (pipe[0], u8::try_from(pipe[1]).unwrap());
        std::thread::scope(|s| {
            let shared = || ReplayShared::open(fd.as_raw_fd()).unwrap();
            s.spawn(move || shared().show(to, 5, b"c"));
            s.spawn(move || shared().show(to, 4, b"b"));
            while made.page().waiting.load(Ordering::Relaxed) < 2 {
                std::thread::yield_now();
            }
            s.spawn(move || shared().pass(1..4));
            shared().show(to, 0, b"a");
        });
        assert_eq!((made.next(), made.is_waited_for()), (6, false));
        let mut got = [0u8; 8];
        // SAFETY: a live buffer; then closes what the test opened.
        unsafe {
            assert_eq!(libc::read(from, got.as_mut_ptr().cast(), got.len()), 3);
            libc::close(pipe[0]);
            libc::close(pipe[1]);
        }
        assert_eq!(&got[..3], b"abc");
    }
}

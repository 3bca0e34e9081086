//! Guest memory: what changed behind the twin's back, and whether both have the same.

use super::wire::Message;
use crate::guestmem;
use crate::layout::{PAGE, page_down, page_up};
use crate::mm::{Object, Space, Vma};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How mappings changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Mappings came or went, or their content changed.
    Content,
    /// Only rights changed.
    Rights,
}

/// Whether changes are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// A twin needs them.
    On,
    /// Nobody does.
    Off,
}

/// Global, because the system calls that change mappings are made by a type without state.
static RECORDING: AtomicBool = AtomicBool::new(false);
static CHANGES: Mutex<Vec<(Change, Range<u64>)>> = Mutex::new(Vec::new());

/// Switches the recording of changes; forgets those there are.
pub fn record_changes(how: Recording) {
    take_changes();
    RECORDING.store(how == Recording::On, Ordering::Relaxed);
}

/// Called for every change of the host's mappings of guest memory.
pub fn changed(change: Change, addr: u64, len: u64) {
    if RECORDING.load(Ordering::Relaxed)
        && let Ok(mut all) = CHANGES.lock()
    {
        let end = addr.saturating_add(page_up(len).unwrap_or(len));
        all.push((change, addr..end));
    }
}

/// The changes since the last call.
pub fn take_changes() -> Vec<(Change, Range<u64>)> {
    CHANGES
        .lock()
        .map(|mut all| std::mem::take(&mut *all))
        .unwrap_or_default()
}

/// Pages are read and sent in pieces of this size at most.
const PIECE: u64 = 64 << 10;

/// What the twin has to do so that `range` is as it is here.
pub fn replay(space: &Space, change: Change, range: Range<u64>, tell: &mut dyn FnMut(Message)) {
    if change == Change::Content {
        tell(Message::Unmap {
            addr: range.start,
            len: range.end - range.start,
        });
    }
    let pieces: Vec<Vma> = space
        .vmas()
        .overlapping(range.clone())
        .map(|v| v.clipped(&range))
        .collect();
    for v in pieces {
        let (addr, len, prot) = (v.start, v.len(), v.prot.bits() as u64);
        match change {
            Change::Rights => tell(Message::Protect { addr, len, prot }),
            Change::Content => {
                tell(Message::Map { addr, len, prot });
                if v.prot.readable() {
                    vma_contents(&v, tell);
                }
            }
        }
    }
}

/// Contents of a mapping: all of a file's, else what is there.
fn vma_contents(v: &Vma, tell: &mut dyn FnMut(Message)) {
    if v.object != Object::Anon {
        return contents(v.start..v.end, tell);
    }
    let here = Pagemap::of("self");
    for run in present(&[&here], v.start..v.end) {
        contents(run, tell);
    }
}

/// The readable bytes of `range`.
pub fn contents(range: Range<u64>, tell: &mut dyn FnMut(Message)) {
    let mut addr = range.start;
    while addr < range.end {
        let len = (page_down(addr) + PIECE).min(range.end) - addr;
        let mut data = vec![0u8; len as usize];
        let whole = guestmem::copy_from_guest(&mut data, addr);
        if let Err(fault) = whole {
            data.truncate(fault.copied);
        }
        if !data.is_empty() {
            tell(Message::Bytes { addr, data });
        }
        // Behind the first bad page; in large unreadable stretches page by page.
        addr = match whole {
            Ok(()) => addr + len,
            Err(fault) => page_down(addr + fault.copied as u64) + PAGE,
        };
    }
}

/// Which pages of a process are there.
struct Pagemap(Option<File>);

impl Pagemap {
    fn of(process: &str) -> Pagemap {
        Pagemap(File::open(format!("/proc/{process}/pagemap")).ok())
    }

    /// One word per page of `range`; all ones where nothing can be learnt.
    fn words(&self, range: &Range<u64>) -> Vec<u64> {
        let pages = ((range.end - range.start) / PAGE) as usize;
        let mut bytes = vec![0xff; pages * 8];
        if let Some(f) = &self.0
            && f.read_exact_at(&mut bytes, range.start / PAGE * 8).is_err()
        {
            bytes.fill(0xff);
        }
        bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|w| u64::from_le_bytes(*w))
            .collect()
    }
}

/// Present or swapped.
const THERE: u64 = 3 << 62;

/// Runs of pages of `range` that are there in one of the processes at least.
fn present(maps: &[&Pagemap], range: Range<u64>) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let part = at..(at + 4096 * PAGE).min(range.end);
        let words: Vec<Vec<u64>> = maps.iter().map(|m| m.words(&part)).collect();
        for i in 0..((part.end - part.start) / PAGE) as usize {
            let there = words
                .iter()
                .any(|w| w.get(i).is_some_and(|w| w & THERE != 0));
            let page = part.start + i as u64 * PAGE;
            match out.last_mut() {
                _ if !there => {}
                Some(run) if run.end == page => run.end += PAGE,
                _ => out.push(page..page + PAGE),
            }
        }
        at = part.end;
    }
    out
}

/// When memory is to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// In any case.
    Now,
    /// When little time went into it so far.
    WhenCheap,
}

/// Comparisons of memory so far.
pub struct Compared {
    /// Clock of the last one.
    pub clock: u64,
    last: Instant,
    took: Duration,
}

impl Default for Compared {
    fn default() -> Self {
        Compared {
            clock: 0,
            last: Instant::now(),
            took: Duration::ZERO,
        }
    }
}

/// Mappings larger than this are left out: looking for their pages would take too long.
const LARGEST: u64 = 1 << 30;

/// Part of the time that goes into comparing memory: one of so many.
const SHARE: u32 = 4;

impl Compared {
    /// Whether it is time.
    pub fn due(&self, when: When) -> bool {
        when == When::Now || self.last.elapsed() >= self.took * SHARE
    }

    /// Compares all writable memory with that of the stopped process `twin`; the first difference, if any.
    pub fn compare(&mut self, space: &Space, twin: i32) -> Option<String> {
        let begun = Instant::now();
        let maps = [Pagemap::of("self"), Pagemap::of(&twin.to_string())];
        let maps: Vec<&Pagemap> = maps.iter().collect();
        let found = space
            .vmas()
            .iter()
            .filter(|v| v.prot.write && v.len() <= LARGEST)
            .find_map(|v| {
                present(&maps, v.start..v.end)
                    .into_iter()
                    .find_map(|run| compare_run(run, twin))
            });
        self.last = Instant::now();
        self.took = begun.elapsed();
        found
    }
}

fn compare_run(run: Range<u64>, twin: i32) -> Option<String> {
    let mut addr = run.start;
    while addr < run.end {
        let len = PIECE.min(run.end - addr);
        let (mut here, mut there) = (vec![0u8; len as usize], vec![0u8; len as usize]);
        let readable = guestmem::copy_from_guest(&mut here, addr).is_ok()
            && read_process(twin, addr, &mut there);
        if readable && let Some(at) = here.iter().zip(&there).position(|(a, b)| a != b) {
            let word = at & !7;
            let part = |b: &[u8]| {
                b.get(word..word + 8)
                    .map(<[u8]>::to_vec)
                    .unwrap_or_default()
            };
            return Some(format!(
                "  at {:#x} (in bytes): translated {:02x?}, native {:02x?}",
                addr + word as u64,
                part(&here),
                part(&there)
            ));
        }
        addr += len;
    }
    None
}

fn read_process(pid: i32, addr: u64, to: &mut [u8]) -> bool {
    let local = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    let remote = libc::iovec {
        iov_base: addr as *mut _,
        iov_len: to.len(),
    };
    // SAFETY: writes at most the length of the live slice.
    let n = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    usize::try_from(n) == Ok(to.len())
}

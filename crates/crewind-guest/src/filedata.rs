//! What is read from files again and again, or in sequence, is in the trace once.
//!
//! What is read of a file is logged at first as the bytes of any system call are. When a process has read as much of a
//! file as there is in it and reads on, its content is taken into the trace's store; so it is at once if the store knows
//! the file, and soon if the file is read from its beginning on, in large pieces: then it will be read to its end, and to
//! log a byte costs ten times what it costs to copy it (it has to be compressed). From then on each result is compared with
//! the stored content, and when it is the same, the log gets a reference. Otherwise it gets the bytes, so it does not matter
//! what happens to the file, nor whether the position that is assumed is right.
//!
//! Bytes that were compared once are compared by their hash from then on: reading two copies of a file instead of one
//! takes twice the room in the caches of the processor. The hash has 128 bits and a seed that nobody else knows.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::runtime::Runtime;
use crate::start::Failure;
use crate::syscall::{Call, Logged};
use crate::thread::Thread;
use crewind_trace::event::{Event, FileRef};
use twox_hash::XxHash3_128;

/// Shorter results are logged as they are: a reference takes some 60 bytes and a comparison.
const MIN_RESULT: usize = 4 << 10;
/// Smaller files are logged as they are, again and again.
const MIN_FILE: u64 = 64 << 10;
/// Larger files are logged as they are: taking one in stops the program for as long as copying it takes.
const MAX_FILE: u64 = 1 << 30;
/// With several threads, who may wait for the one that reads: some 100 ms to copy.
const MAX_FILE_OF_THREADS: u64 = 256 << 20;
/// A file that is read in sequence is taken in after this many bytes, or this part of it if that is more. Copying all of it
/// then costs about what was spent on logging this part.
const SEQUENCE: u64 = 1 << 20;
/// See [`SEQUENCE`]; one part of so many.
const SEQUENCE_PART: u64 = 16;
/// Who reads in sequence by pieces smaller than this may be after a part only (the head of an archive, a page of a database).
const LARGE_RESULT: usize = 32 << 10;
/// Files that are looked after at once; beyond, all are forgotten (their contents stay in the trace).
const MAX_FILES: usize = 256;
/// Parts of a file whose hash is kept.
const MAX_COMPARED: usize = 1 << 16;
/// How often a file that changes is taken in, in one process.
const MAX_TAKEN: u32 = 4;
/// Pages of contents stay mapped up to this size in all; those of others are given back after each use, as they count as
/// memory of the recorded program (which costs half of a read).
const KEEP_MAPPED: usize = 32 << 20;
/// Sizes of contents whose pages stay.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Files that a process reads a lot of.
#[derive(Default)]
pub struct FileData {
    /// Recording: by device and inode.
    read: BTreeMap<(u64, u64), Known>,
    /// Replaying: contents in use.
    contents: BTreeMap<[u8; 32], Content>,
}

/// What is known about a file.
#[derive(Default)]
struct Known {
    /// Never to be taken in: not a regular file, or of the wrong size.
    unfit: bool,
    /// Bytes of it that were logged since it was taken in last.
    logged: u64,
    /// Bytes from its beginning on that were read in sequence, by large pieces, since then.
    sequence: u64,
    /// How often it was taken in.
    taken: u32,
    kept: Option<(FileRef, Content)>,
    /// Hashes of parts of the content (offset, length) that were compared.
    compared: HashMap<(u64, usize), u128>,
}

/// A content in the store, mapped for reading.
struct Content {
    at: *mut libc::c_void,
    len: usize,
    /// Whether its pages stay.
    stays: bool,
}

impl Content {
    fn map(file: &File, len: u64) -> std::io::Result<Content> {
        let len = usize::try_from(len).map_err(std::io::Error::other)?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let stays = KEPT.fetch_add(len, Ordering::Relaxed) + len <= KEEP_MAPPED;
        if !stays {
            KEPT.fetch_sub(len, Ordering::Relaxed);
        }
        Ok(Content { at, len, stays })
    }

    /// Bytes of the content.
    fn get(&self, offset: u64, len: usize) -> Option<&[u8]> {
        // SAFETY: mapped until dropped; the store's contents are never written again.
        let all = unsafe { std::slice::from_raw_parts(self.at.cast::<u8>(), self.len) };
        let from = usize::try_from(offset).ok()?;
        all.get(from..from.checked_add(len)?)
    }

    /// Gives memory back after a use.
    fn used(&self, offset: u64, len: usize) {
        if self.stays {
            return;
        }
        let page = crate::layout::PAGE;
        let from = offset & !(page - 1);
        let to = (offset + len as u64).next_multiple_of(page);
        // SAFETY: inside the mapping (its last page is whole), private and never written: the pages come back from the file.
        unsafe {
            libc::madvise(
                self.at.wrapping_byte_add(from as usize),
                (to - from) as usize,
                libc::MADV_DONTNEED,
            );
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        if self.stays {
            KEPT.fetch_sub(self.len, Ordering::Relaxed);
        }
        // SAFETY: mapped by `map`, and borrowed nowhere.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

impl Runtime {
    /// Recording: if what a call read is in a stored content, logs a reference to it instead of the bytes.
    pub fn refer_to_file(&mut self, th: &mut Thread, call: &Call, l: &mut Logged<'_>) {
        if matches!(th.log, crate::log::Log::Off) {
            return;
        }
        let nr = i64::from(call.nr);
        let [out] = l.outs.as_slice() else { return };
        let len = out.data.len();
        if !matches!(nr, libc::SYS_read | libc::SYS_pread64)
            || len < MIN_RESULT
            || usize::try_from(l.ret) != Ok(len)
        {
            return;
        }
        let fd = call.int(0);
        let info = self.fds.info(fd);
        if info.ino == 0 {
            return;
        }
        let id = (info.dev, info.ino);
        if !self.file_data.read.contains_key(&id) {
            self.first_seen(fd, id);
        }
        let most = match self.multi() {
            true => MAX_FILE_OF_THREADS,
            false => MAX_FILE,
        };
        let Some(known) = self.file_data.read.get_mut(&id).filter(|k| !k.unfit) else {
            return;
        };
        if known.kept.is_none() {
            known.take_in(&self.store, fd, most);
        }
        let offset = || match nr {
            libc::SYS_pread64 => call.args[3],
            _ => position(fd).saturating_sub(len as u64),
        };
        let Some((file, content)) = &known.kept else {
            known.logged += len as u64;
            if len >= LARGE_RESULT && known.sequence == offset() {
                known.sequence += len as u64;
            }
            return;
        };
        let offset = offset();
        let hash = XxHash3_128::oneshot_with_seed(seed(), &out.data);
        let same = known.compared.get(&(offset, len)) == Some(&hash)
            || content.get(offset, len) == Some(&*out.data);
        if !same {
            known.logged += len as u64;
            // It changed, or somebody else moves the position.
            if offset < content.len as u64 {
                known.kept = None;
            }
            return;
        }
        content.used(offset, len);
        if known.compared.len() < MAX_COMPARED {
            known.compared.insert((offset, len), hash);
        }
        let event = Event::FileData {
            addr: out.addr,
            len: len as u64,
            offset,
            file: file.clone(),
        };
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.wrote(out.addr, len as u64);
        }
        l.outs.clear();
        th.append_at(call.clock, call.pc, call.regs, event);
    }

    /// Notes a file that is read for the first time; takes it in if the store has it.
    fn first_seen(&mut self, fd: i32, id: (u64, u64)) {
        if self.file_data.read.len() >= MAX_FILES {
            self.file_data.read.clear();
        }
        let mut known = Known::default();
        // SAFETY: the descriptor stays the guest's; it is only looked at.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        known.unfit = !file.metadata().is_ok_and(|m| m.is_file());
        if !known.unfit
            && file.metadata().is_ok_and(|m| fits(m.len()))
            && let Ok(Some(found)) = self.store.find(&file)
        {
            known.keep(&self.store, found);
        }
        self.file_data.read.insert(id, known);
    }

    /// Replaying: takes the references that stand in front of a call's record.
    pub fn logged_file_data(&mut self, th: &mut Thread, call: &Call) -> Vec<Event<'static>> {
        let mut events = Vec::new();
        while matches!(th.upcoming(), Some(r) if matches!(r.event, Event::FileData { .. })) {
            events.push(self.logged_record(th, call).event);
        }
        events
    }

    /// Replaying: puts what references stand for into guest memory.
    pub fn write_file_data(&mut self, events: &[Event<'_>]) {
        for event in events {
            let Event::FileData {
                addr,
                len,
                offset,
                file,
            } = event
            else {
                continue;
            };
            self.prepare_write(*addr, *len);
            if let Err(e) = self.write_from_file(*addr, *len, *offset, file) {
                crate::report::fail(
                    Failure::TraceEnd,
                    format_args!("what the program read from a file is not in the trace: {e}"),
                );
            }
        }
    }

    fn write_from_file(
        &mut self,
        addr: u64,
        len: u64,
        offset: u64,
        file: &FileRef,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let contents = &mut self.file_data.contents;
        if !contents.contains_key(&file.hash) {
            if contents.len() >= MAX_FILES {
                contents.clear();
            }
            let opened = self.store.open_ref(file)?;
            contents.insert(file.hash, Content::map(&opened, file.len)?);
        }
        let len = usize::try_from(len)?;
        let content = contents.get(&file.hash).ok_or("no content")?;
        let bytes = content
            .get(offset, len)
            .ok_or("it lies beyond the content")?;
        crate::guestmem::copy_to_guest(addr, bytes)
            .map_err(|_| "the program's memory cannot be written")?;
        content.used(offset, len);
        Ok(())
    }
}

impl Known {
    /// Takes the file in when it was read through once, or is being read through; if it has at most `most` bytes.
    fn take_in(&mut self, store: &crewind_trace::FileStore, fd: i32, most: u64) {
        if self.logged < MIN_FILE || self.taken >= MAX_TAKEN {
            return;
        }
        // SAFETY: the descriptor stays the guest's; it is only read, at positions of its own.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        let Ok(len) = file.metadata().map(|m| m.len()) else {
            return;
        };
        let in_sequence = self.sequence >= SEQUENCE.max(len / SEQUENCE_PART);
        if !fits(len) || len > most || self.logged < len && !in_sequence {
            return;
        }
        (self.logged, self.sequence) = (0, 0);
        self.taken += 1;
        // Not readable twice, no space: the bytes are logged.
        if let Ok(stored) = store.put(&file) {
            self.keep(store, stored);
        }
    }

    fn keep(&mut self, store: &crewind_trace::FileStore, stored: FileRef) {
        let mapped = store
            .open_own(&stored)
            .ok()
            .and_then(|f| Content::map(&f, stored.len).ok());
        self.compared.clear();
        self.kept = mapped.map(|content| (stored, content));
    }
}

fn fits(len: u64) -> bool {
    (MIN_FILE..=MAX_FILE).contains(&len)
}

/// The seed of this process's hashes; it never gets anywhere else.
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(0u8)
    })
}

/// Where a descriptor's next read would begin.
fn position(fd: i32) -> u64 {
    // SAFETY: moves nothing.
    let at = unsafe {
        crate::hostcall::raw(
            libc::SYS_lseek,
            [fd as u64, 0, libc::SEEK_CUR as u64, 0, 0, 0],
        )
    };
    u64::try_from(at).unwrap_or(0)
}

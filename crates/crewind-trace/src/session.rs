//! What the processes of one recording share while it runs: `session.bin`, mapped by all of them.
//!
//! It hands out numbers that are unique in the trace, and orders output to the recording's own stdin,
//! stdout and stderr. Replay does not read it.
//!
//! The locks survive the death of their holder at any instruction. A lock is one word with its owner's
//! identity, taken and freed by one compare-and-swap, so there is no state between free and owned. The
//! identity is thread id and start time, because ids are used again. Who waits too long looks whether
//! the owner still lives, and takes the lock from a dead one by compare-and-swap too.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Result, TraceError};
use crate::event::{ProcId, ThreadId};
use crate::segment::FORMAT_VERSION;
use crate::sys::{self, PAGE, SharedMap};

/// File name in the trace directory.
pub(crate) const SESSION: &str = "session.bin";

const MAGIC: u64 = u64::from_le_bytes(*b"CREWSES\n");

// Offsets. Each counter and lock has a cache line of its own.
const MAGIC_AT: usize = 0;
const VERSION_AT: usize = 8;
const NEXT_PROC_AT: usize = 64;
const NEXT_THREAD_AT: usize = 128;
const NEXT_OUTPUT_AT: usize = 192;
const LOCKS_AT: usize = 256;
const LOCK_STRIDE: usize = 64;
/// Counters of parallel recording, eight bytes each.
const COUNTERS_AT: usize = 512;
/// In a lock's line: the owner, a word that changes with every release, the number of sleepers.
const OWNER: usize = 0;
const RELEASES: usize = 8;
const SLEEPERS: usize = 12;

/// How long to sleep before looking whether a lock's owner is alive: long against a write to a terminal,
/// short for a person.
const PATIENCE: Duration = Duration::from_millis(20);

/// Where output goes: what holds one lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputClass {
    /// The recording's descriptor 0 (a terminal can be written to through it).
    Stdin,
    /// The recording's descriptor 1.
    Stdout,
    /// The recording's descriptor 2.
    Stderr,
}

impl OutputClass {
    /// The class of descriptor 0, 1 or 2 of the recording.
    pub fn of_fd(fd: u8) -> Option<Self> {
        match fd {
            0 => Some(OutputClass::Stdin),
            1 => Some(OutputClass::Stdout),
            2 => Some(OutputClass::Stderr),
            _ => None,
        }
    }

    /// The descriptor.
    pub fn fd(self) -> u8 {
        match self {
            OutputClass::Stdin => 0,
            OutputClass::Stdout => 1,
            OutputClass::Stderr => 2,
        }
    }
}

/// What recording in parallel counts, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Acquires logged: events that are nothing but waiting for edges.
    Acquires,
    /// Edges before the reduction.
    Edges,
    /// Edges logged.
    EdgesLogged,
    /// Runs of memory taken for the first time.
    TakenFirst,
    /// Runs of memory taken from others to be read.
    TakenByReads,
    /// Runs of memory taken from others to be written.
    TakenByWrites,
    /// Runs of memory taken for system calls and other events.
    TakenByEvents,
    /// Runs of memory taken for changes of mappings.
    TakenByMappings,
    /// Stops of all threads of a process.
    WorldStops,
    /// Processes that went over from protection keys to checks.
    ModeSwitches,
    /// Times at which a process that had several vcpus went on with one.
    OneVcpu,
}

impl Counter {
    /// All, with the names that `crewind info` uses.
    pub const ALL: [(Counter, &str); 11] = [
        (Counter::Acquires, "acquires"),
        (Counter::Edges, "edges"),
        (Counter::EdgesLogged, "edges-logged"),
        (Counter::TakenFirst, "taken-first"),
        (Counter::TakenByReads, "taken-by-reads"),
        (Counter::TakenByWrites, "taken-by-writes"),
        (Counter::TakenByEvents, "taken-by-events"),
        (Counter::TakenByMappings, "taken-by-mappings"),
        (Counter::WorldStops, "world-stops"),
        (Counter::ModeSwitches, "mode-switches"),
        (Counter::OneVcpu, "one-vcpu"),
    ];
}

/// The shared page of a recording. A forked child keeps using its copy; after `execve`, the new program
/// opens it again.
pub struct Session {
    map: SharedMap,
}

/// Holds an output lock until dropped. Belongs to the thread that took it.
pub struct OutputGuard<'a> {
    lock: Lock<'a>,
    me: u64,
    /// A lock is freed by the thread that took it, so a guard must not move to another.
    not_send: PhantomData<*const ()>,
}

#[derive(Clone, Copy)]
struct Lock<'a> {
    owner: &'a AtomicU64,
    releases: &'a AtomicU32,
    sleepers: &'a AtomicU32,
}

impl Session {
    /// Makes the session of a new trace.
    pub fn create(dir: &Path) -> Result<Self> {
        let path = dir.join(SESSION);
        let made = (|| {
            let dir = sys::open_dir(dir)?;
            let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
            let file = sys::open_at(&dir, SESSION, flags, 0o600)?;
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
            sys::allocate(&file, PAGE as u64)?;
            let map = SharedMap::new(&file, PAGE)?;
            map.populate(0, PAGE)?;
            file.write_all_at(&u64::from(FORMAT_VERSION).to_le_bytes(), VERSION_AT as u64)?;
            file.write_all_at(&1u32.to_le_bytes(), NEXT_PROC_AT as u64)?;
            file.write_all_at(&1u32.to_le_bytes(), NEXT_THREAD_AT as u64)?;
            file.write_all_at(&MAGIC.to_le_bytes(), MAGIC_AT as u64)?;
            Ok(Session { map })
        })();
        made.map_err(|e| TraceError::io(&path, "create", e))
    }

    /// Opens the session of a recording that runs.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(SESSION);
        let io = |e| TraceError::io(&path, "open", e);
        let file = match crate::anchor::anchored(dir, SESSION) {
            Some(file) => file,
            None => sys::open_dir(dir).and_then(|dir| sys::open_at(&dir, SESSION, libc::O_RDWR, 0)),
        }
        .map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        if size != PAGE as u64 {
            return Err(TraceError::corrupt(&path, size, "its size is wrong"));
        }
        let mut intro = [0; 16];
        file.read_exact_at(&mut intro, 0).map_err(io)?;
        if intro[..8] != MAGIC.to_le_bytes()
            || intro[8..] != u64::from(FORMAT_VERSION).to_le_bytes()
        {
            let what = "it is not the session of a recording by this version of crewind";
            return Err(TraceError::corrupt(&path, 0, what));
        }
        let session = Session {
            map: SharedMap::new(&file, PAGE).map_err(io)?,
        };
        session.free_own_locks();
        Ok(session)
    }

    /// A process number that no other process of the trace has.
    pub fn next_proc(&self) -> ProcId {
        ProcId(self.word32(NEXT_PROC_AT).fetch_add(1, Ordering::Relaxed))
    }

    /// A thread number that no other thread of the trace has.
    pub fn next_thread(&self) -> ThreadId {
        ThreadId(self.word32(NEXT_THREAD_AT).fetch_add(1, Ordering::Relaxed))
    }

    /// Adds to a counter.
    pub fn count(&self, counter: Counter, n: u64) {
        self.word64(COUNTERS_AT + 8 * counter as usize)
            .fetch_add(n, Ordering::Relaxed);
    }

    /// All counters that are not 0, by name.
    pub fn counted(&self) -> std::collections::BTreeMap<String, u64> {
        Counter::ALL
            .iter()
            .map(|(c, name)| {
                let at = COUNTERS_AT + 8 * *c as usize;
                ((*name).to_owned(), self.word64(at).load(Ordering::Relaxed))
            })
            .filter(|(_, n)| *n > 0)
            .collect()
    }

    /// The next place in the order of output; take it while holding the class's lock.
    pub fn next_output_seq(&self) -> u64 {
        self.word64(NEXT_OUTPUT_AT).fetch_add(1, Ordering::Relaxed)
    }

    /// Takes the lock of an output class. A thread must not take one that it holds.
    pub fn output_lock(&self, class: OutputClass) -> OutputGuard<'_> {
        let lock = self.lock(class);
        let me = own_identity();
        if !lock.try_take(me) {
            lock.wait(me);
        }
        OutputGuard {
            lock,
            me,
            not_send: PhantomData,
        }
    }

    /// Takes the lock of an output class unless another holds it.
    pub fn try_output_lock(&self, class: OutputClass) -> Option<OutputGuard<'_>> {
        let lock = self.lock(class);
        let me = own_identity();
        lock.try_take(me).then_some(OutputGuard {
            lock,
            me,
            not_send: PhantomData,
        })
    }

    /// Frees locks that this thread seems to own. After `execve` it has the identity of the thread that
    /// led the process before, which may have died holding one.
    fn free_own_locks(&self) {
        let me = own_identity();
        for class in [OutputClass::Stdin, OutputClass::Stdout, OutputClass::Stderr] {
            let lock = self.lock(class);
            if lock.owner.load(Ordering::Relaxed) == me {
                lock.release(me);
            }
        }
    }

    fn lock(&self, class: OutputClass) -> Lock<'_> {
        let at = LOCKS_AT + LOCK_STRIDE * usize::from(class.fd());
        Lock {
            owner: self.word64(at + OWNER),
            releases: self.word32(at + RELEASES),
            sleepers: self.word32(at + SLEEPERS),
        }
    }

    fn word64(&self, at: usize) -> &AtomicU64 {
        static NOWHERE: AtomicU64 = AtomicU64::new(0);
        // All offsets are constants inside the page.
        self.map.atomic_u64(at).unwrap_or(&NOWHERE)
    }

    fn word32(&self, at: usize) -> &AtomicU32 {
        static NOWHERE: AtomicU32 = AtomicU32::new(0);
        self.map.atomic_u32(at).unwrap_or(&NOWHERE)
    }
}

impl Lock<'_> {
    fn try_take(&self, me: u64) -> bool {
        self.take_from(0, me)
    }

    fn take_from(&self, owner: u64, me: u64) -> bool {
        self.owner
            .compare_exchange(owner, me, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    #[cold]
    fn wait(&self, me: u64) {
        // A sleeper that is killed leaves its count behind: then releases wake in vain, no more.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        loop {
            let releases = self.releases.load(Ordering::SeqCst);
            let owner = self.owner.load(Ordering::Relaxed);
            if owner == 0 {
                if self.try_take(me) {
                    break;
                }
                continue;
            }
            let seen = releases;
            sys::futex_wait(self.releases, seen, PATIENCE);
            if self.releases.load(Ordering::Relaxed) == seen
                && !is_alive(owner)
                && self.take_from(owner, me)
            {
                break;
            }
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    fn release(&self, me: u64) {
        // It can fail when someone wrongly took the owner for dead; then the lock is not ours to free.
        let _ = self
            .owner
            .compare_exchange(me, 0, Ordering::Release, Ordering::Relaxed);
        self.releases.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            sys::futex_wake_one(self.releases);
        }
    }
}

impl Drop for OutputGuard<'_> {
    fn drop(&mut self) {
        self.lock.release(self.me);
    }
}

// ---------------------------------------------------------------------------------------------------
// Identity of threads

/// Thread id in the lower half, start time (clock ticks, its lower half) in the upper. Never 0.
fn identity(tid: u32, start: Option<u64>) -> u64 {
    u64::from(tid) | start.unwrap_or(0) << 32
}

fn own_identity() -> u64 {
    thread_local! {
        static OWN: Cell<u64> = const { Cell::new(0) };
    }
    // Asked each time, because a forked child has a copy of its parent's thread-locals.
    let tid = sys::gettid();
    let own = OWN.get();
    if own as u32 == tid {
        return own;
    }
    let own = identity(tid, start_time(tid).map(|(start, _)| start));
    OWN.set(own);
    own
}

fn is_alive(identity: u64) -> bool {
    let tid = identity as u32;
    let started = (identity >> 32) as u32;
    match start_time(tid) {
        // The owner could not find out its own start time.
        Some((_, Life::Running)) if started == 0 => true,
        Some((start, Life::Running)) => start as u32 == started,
        Some((_, Life::Over)) => false,
        // No /proc: at least see whether there is anything with that id.
        None => sys::thread_exists(tid),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    /// Only waiting for its parent.
    Over,
}

/// When the thread started, in clock ticks since boot, and its state.
fn start_time(tid: u32) -> Option<(u64, Life)> {
    let stat = read_small(&format!("/proc/{tid}/stat")).ok()?;
    // The second field is the name in parentheses, which may contain anything.
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace();
    let life = match fields.next()? {
        "Z" | "X" | "x" => Life::Over,
        _ => Life::Running,
    };
    // Field 22, counted from 1; the state was field 3.
    let start = fields.nth(18)?.parse().ok()?;
    Some((start, life))
}

fn read_small(path: &str) -> io::Result<String> {
    let mut buf = [0; 1024];
    let n = File::open(path)?.read_at(&mut buf, 0)?;
    Ok(String::from_utf8_lossy(buf.get(..n).unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_identity_is_alive_and_others_are_not() {
        let me = own_identity();
        assert!(is_alive(me));
        assert!(!is_alive(me ^ 1 << 40), "another start time");
        let gone = std::thread::spawn(own_identity).join().unwrap();
        // The id of the thread goes away shortly after the join.
        for _ in 0..1000 {
            if !is_alive(gone) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("a thread that ended still counts as alive");
    }
}

//! What a thread's log holds: one [`Record`] per event, in program order.
//!
//! A record is a *position* (clock and pc, design section 2), a hash of the guest's registers at that
//! position, and what happened there. Everything the replay needs and cannot compute is in here.

use std::borrow::Cow;

/// A process of the recorded tree; 1 is the root. Never reused in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcId(pub u32);

/// A thread of the recorded tree, unique in the trace (not only in its process); 1 is the root's first
/// thread. Never reused in a trace. A process keeps its first thread's stream over `execve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThreadId(pub u32);

/// One event at one position of one thread.
#[derive(Clone, Debug, PartialEq)]
pub struct Record<'a> {
    /// The thread's branch clock at the event (never decreases within a stream).
    pub clock: u64,
    /// Guest pc at the event: for a system call the address of the `syscall` instruction, for a
    /// nondeterministic instruction its address, for a signal the pc it interrupted.
    pub pc: u64,
    /// Hash of the guest's registers just before the event; compared in replay.
    pub regs: u32,
    /// What happened.
    pub event: Event<'a>,
}

/// Bytes that an event wrote into guest memory.
#[derive(Clone, Debug, PartialEq)]
pub struct MemWrite<'a> {
    /// First guest address written.
    pub addr: u64,
    /// The bytes.
    pub data: Cow<'a, [u8]>,
}

/// How a process came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartHow {
    /// The process that `crewind record` started.
    Root,
    /// `fork`, or `clone` without `CLONE_VM`.
    Fork,
    /// `vfork`, or `clone` with `CLONE_VM | CLONE_VFORK`: shares memory with its parent until it
    /// executes a program or ends.
    Vfork,
}

/// Content of a file that the guest mapped, in the trace's file store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// BLAKE3 of the content: the name in the store.
    pub hash: [u8; 32],
    /// Size of the content in bytes.
    pub len: u64,
}

/// "Before this event may complete, `thread` must have passed `clock`, or reached its event `event`, or ended."
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// The thread waited for.
    pub thread: ThreadId,
    /// Clock to be passed (a greater one must have been shown).
    pub clock: u64,
    /// Number of the event to be reached, counted from 1 since the thread's program started.
    pub event: u64,
}

/// Whether replay has to stop the guest by itself at an event's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Another event of the thread is met at the same position without help (a system call, an instruction, a
    /// fault).
    Comes,
    /// Nothing else happens there: replay has to look out for clock and pc.
    Find,
}

/// An event. New kinds are added at the end with a new tag; a tag never changes its meaning.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// First record of the first thread of a process.
    ProcessStart {
        /// This process.
        proc: ProcId,
        /// The process whose event created it; `None` for the root.
        parent: Option<ProcId>,
        /// How it was created.
        how: StartHow,
        /// Process id the guest saw.
        pid: i32,
    },
    /// First record of every other thread.
    ThreadStart {
        /// Its process.
        proc: ProcId,
        /// Thread id the guest saw.
        tid: i32,
        /// Number of the vcpu turn it started with.
        turn: u64,
    },
    /// A program image was put in place (at start, and after each successful `execve`).
    Image {
        /// Opaque to the trace: the runtime's serialised description (program, arguments, environment,
        /// random bytes, files of the ELF objects, limits).
        info: Cow<'a, [u8]>,
    },
    /// A system call completed.
    Syscall {
        /// x86-64 system call number.
        nr: u32,
        /// Its arguments as passed (as many as the call takes, at most 6).
        args: Cow<'a, [u64]>,
        /// Value returned in rax (negative errno on failure).
        ret: i64,
        /// Guest memory the kernel wrote.
        outs: Vec<MemWrite<'a>>,
        /// Place in the order of output to the recording's own stdin/stdout/stderr, when the call wrote
        /// there: (which of the fds 0, 1, 2, sequence number).
        output: Option<(u8, u64)>,
        /// When the call gave its vcpu up: number of the turn it came back with.
        turn: Option<u64>,
    },
    /// A mapping that the guest made of a file: where its content is.
    FileMapping {
        /// First guest address.
        addr: u64,
        /// Length in bytes.
        len: u64,
        /// Offset in the file, bytes.
        offset: u64,
        /// Device of the file: with `ino`, tells which mappings are of one file.
        dev: u64,
        /// Inode of the file.
        ino: u64,
        /// The content.
        file: FileRef,
    },
    /// A nondeterministic instruction (`rdtsc`, `cpuid`, `rdrand`, ...).
    Insn {
        /// The translator's number for the kind of instruction.
        kind: u8,
        /// Result values, in an order that the kind defines.
        values: Cow<'a, [u64]>,
    },
    /// A signal was delivered to the guest (a handler runs next, or the process ends).
    Signal {
        /// Signal number, 1..=64.
        signo: u8,
        /// The kernel's `siginfo_t`, 128 bytes.
        info: Cow<'a, [u8]>,
        /// The guest address that faulted, for synchronous signals, else 0.
        fault_addr: u64,
        /// `true` when the guest's own instruction raised it (replay meets it by itself).
        synchronous: bool,
    },
    /// The thread gave its vcpu up at a tick and came back; or is about to give it up, at a tick or in a system call that may block
    /// (since format 5).
    Preempt {
        /// Number of the turn it came back with; of the one that it still has.
        turn: u64,
    },
    /// The thread created a process.
    Fork {
        /// The child.
        child: ProcId,
        /// The child's first thread.
        child_thread: ThreadId,
        /// The system call number (fork, vfork, clone, clone3).
        nr: u32,
        /// What the call returned to the parent.
        pid: i32,
        /// As in [`Event::Syscall`].
        turn: Option<u64>,
    },
    /// The thread created a thread in its own process.
    Clone {
        /// The new thread.
        thread: ThreadId,
        /// Thread id the guest saw.
        tid: i32,
    },
    /// `execve` succeeded; the next record is an `Image`, written by the new program's runtime.
    Exec,
    /// The thread ended, the process lives on.
    ThreadExit {
        /// Exit code passed to `exit`.
        status: i32,
    },
    /// The process ended in this thread. Last record of the stream.
    ProcessExit {
        /// Exit status, or `None` when a signal ended it.
        status: Option<i32>,
        /// The signal that ended it.
        signal: Option<u8>,
        /// Hash of all writable guest memory, with `record --checksum`.
        memory: Option<u64>,
    },
    /// The thread was made to end by another thread's `exit_group` or `execve`, or by a fatal signal.
    Killed,
    /// Guest memory that the system call of the next record wrote: bytes of a file whose content the trace holds. So
    /// what a program reads again and again is there once.
    FileData {
        /// First guest address written.
        addr: u64,
        /// Length in bytes.
        len: u64,
        /// Offset in the content, bytes.
        offset: u64,
        /// The content.
        file: FileRef,
    },
    /// Parallel recording: what must have happened elsewhere before the thread goes on from here.
    Sync {
        /// Place in the order of the process's events, from 1; `None` for a mere acquire of memory.
        order: Option<u64>,
        /// The vcpu the thread runs on from here, when that changed.
        vcpu: Option<u8>,
        /// Whether replay meets the position by itself.
        stop: Stop,
        /// Points of other threads to wait for.
        edges: Cow<'a, [Edge]>,
    },
    /// Guest memory that is shared with other processes held something else at this position than this process had
    /// last seen or written there.
    Shared {
        /// The instruction there is done as part of the event: threads in parallel take turns at such memory.
        step: bool,
        /// What it held.
        writes: Vec<MemWrite<'a>>,
    },
}

impl Record<'_> {
    /// The same record, borrowing nothing.
    pub fn into_owned(self) -> Record<'static> {
        Record {
            clock: self.clock,
            pc: self.pc,
            regs: self.regs,
            event: self.event.into_owned(),
        }
    }
}

fn own_all(writes: Vec<MemWrite<'_>>) -> Vec<MemWrite<'static>> {
    let own = |w: MemWrite<'_>| MemWrite {
        addr: w.addr,
        data: own(w.data),
    };
    writes.into_iter().map(own).collect()
}

fn own<T: Clone>(c: Cow<'_, [T]>) -> Cow<'static, [T]> {
    Cow::Owned(c.into_owned())
}

impl Event<'_> {
    /// The same event, borrowing nothing.
    pub fn into_owned(self) -> Event<'static> {
        match self {
            Event::ProcessStart {
                proc,
                parent,
                how,
                pid,
            } => Event::ProcessStart {
                proc,
                parent,
                how,
                pid,
            },
            Event::ThreadStart { proc, tid, turn } => Event::ThreadStart { proc, tid, turn },
            Event::Image { info } => Event::Image { info: own(info) },
            Event::Syscall {
                nr,
                args,
                ret,
                outs,
                output,
                turn,
            } => Event::Syscall {
                nr,
                args: own(args),
                ret,
                outs: own_all(outs),
                output,
                turn,
            },
            Event::FileMapping {
                addr,
                len,
                offset,
                dev,
                ino,
                file,
            } => Event::FileMapping {
                addr,
                len,
                offset,
                dev,
                ino,
                file,
            },
            Event::Insn { kind, values } => Event::Insn {
                kind,
                values: own(values),
            },
            Event::Signal {
                signo,
                info,
                fault_addr,
                synchronous,
            } => Event::Signal {
                signo,
                info: own(info),
                fault_addr,
                synchronous,
            },
            Event::Preempt { turn } => Event::Preempt { turn },
            Event::Fork {
                child,
                child_thread,
                nr,
                pid,
                turn,
            } => Event::Fork {
                child,
                child_thread,
                nr,
                pid,
                turn,
            },
            Event::Clone { thread, tid } => Event::Clone { thread, tid },
            Event::Exec => Event::Exec,
            Event::ThreadExit { status } => Event::ThreadExit { status },
            Event::ProcessExit {
                status,
                signal,
                memory,
            } => Event::ProcessExit {
                status,
                signal,
                memory,
            },
            Event::Killed => Event::Killed,
            Event::FileData {
                addr,
                len,
                offset,
                file,
            } => Event::FileData {
                addr,
                len,
                offset,
                file,
            },
            Event::Sync {
                order,
                vcpu,
                stop,
                edges,
            } => Event::Sync {
                order,
                vcpu,
                stop,
                edges: own(edges),
            },
            Event::Shared { step, writes } => Event::Shared {
                step,
                writes: own_all(writes),
            },
        }
    }
}

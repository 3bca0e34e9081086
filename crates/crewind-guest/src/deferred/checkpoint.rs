//! What a recording that begins in the middle begins with, besides the content of memory: part of its
//! [`ImageInfo`](crate::loader::ImageInfo).

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::memory::{Range, What};
use super::{Refused, refused};
use crate::fpstate;
use crate::loader::{Bytes, Loaded};
use crate::mm::{FileId, FileMap, Object, Prot, Role, Vma, VmaFlags};
use crate::runtime::Runtime;
use crate::signal::{SigAction, SigInfo, Stack};
use crate::thread::{Interrupted, Thread};
use crewind_trace::event::{FileRef, ThreadId};

/// A process at the moment at which its recording began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Mappings.
    pub mappings: Vec<Mapping>,
    /// What else there is to say of the address space.
    pub space: crate::mm::SpaceFacts,
    /// Threads; the first one is the one whose stream this is in.
    pub threads: Vec<Of>,
    /// Dispositions of signals, from signal 1: handler, flags, restorer, mask.
    pub actions: Vec<[u64; 4]>,
    /// Where the program was loaded.
    pub loaded: Loaded,
    /// Name in `ps`.
    pub comm: Bytes,
    /// Descriptors, and what they lead to: for people.
    pub descriptors: Vec<(i32, Bytes)>,
    /// Threads that run at once, when there are several.
    pub vcpus: u32,
}

/// What a thread was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doing {
    /// It had this vcpu. (The only thread of a process: the process.)
    Holds(u8),
    /// It was in a system call that had been entered before.
    Call,
    /// It waited for a vcpu.
    Waits,
    /// It had just been made.
    New,
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Of {
    /// Its number.
    pub id: u32,
    /// Thread id the guest sees.
    pub tid: i32,
    /// What it was doing.
    pub doing: Doing,
    /// General registers, instruction pointer, flags, FS base, clock.
    pub registers: [u64; 20],
    /// The rest, as in a signal frame.
    pub vectors: Bytes,
    /// Blocked signals.
    pub mask: u64,
    /// Blocked synchronous signals that were sent: siginfo, error code, trap number, address.
    pub held: Vec<(Bytes, [u64; 3])>,
    /// Alternate stack: address, flags, size.
    pub altstack: (u64, u32, u64),
    /// The last call ended with EINTR: number, address, whether it is restarted.
    pub interrupted: Option<(u32, u64, bool)>,
    /// `set_tid_address`.
    pub clear_tid: u64,
    /// `set_robust_list`.
    pub robust: (u64, u64),
}

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address behind it.
    pub end: u64,
    /// `PROT_*`.
    pub prot: i32,
    /// shared, growsdown, noreserve, dontfork, wipeonfork, locked.
    pub flags: [bool; 6],
    /// Plain, heap, stack.
    pub role: u8,
    /// What it shows; none: private memory.
    pub object: Option<Shown>,
}

/// What a mapping shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shown {
    /// Shared anonymous memory.
    Anon {
        /// Number of the object.
        object: u64,
        /// Offset in it.
        offset: u64,
    },
    /// A file.
    File {
        /// Device.
        dev: u64,
        /// Inode.
        ino: u64,
        /// Path.
        path: Bytes,
        /// Offset of the first byte.
        offset: u64,
        /// Whether `PROT_WRITE` may be given.
        may_write: bool,
        /// Whether `PROT_EXEC` may be given.
        may_exec: bool,
        /// Its content in the trace, and its size; none: all that was mapped is with the memory.
        stored: Option<(Bytes, u64)>,
    },
}

impl Mapping {
    fn of(v: &Vma, stored: Option<&FileRef>) -> Mapping {
        let f = v.flags;
        Mapping {
            start: v.start,
            end: v.end,
            prot: v.prot.bits(),
            flags: [
                f.shared,
                f.growsdown,
                f.noreserve,
                f.dontfork,
                f.wipeonfork,
                f.locked,
            ],
            role: f.role as u8,
            object: match &v.object {
                Object::Anon | Object::Shm { .. } => None,
                Object::SharedAnon { object, offset } => Some(Shown::Anon {
                    object: *object,
                    offset: *offset,
                }),
                Object::File(m) => Some(Shown::File {
                    dev: m.id.dev,
                    ino: m.id.ino,
                    path: m.id.path.to_vec().into(),
                    offset: m.offset,
                    may_write: m.may_write,
                    may_exec: m.may_exec,
                    stored: stored.map(|s| (s.hash.to_vec().into(), s.len)),
                }),
            },
        }
    }

    /// The same for an address space; files are stood in for.
    pub(crate) fn vma(&self) -> Vma {
        let [shared, growsdown, noreserve, dontfork, wipeonfork, locked] = self.flags;
        Vma {
            start: self.start,
            end: self.end,
            prot: Prot::from_bits(self.prot),
            flags: VmaFlags {
                shared,
                growsdown,
                noreserve,
                dontfork,
                wipeonfork,
                locked,
                role: match self.role {
                    1 => Role::Heap,
                    2 => Role::Stack,
                    _ => Role::Plain,
                },
            },
            object: match &self.object {
                None => Object::Anon,
                Some(Shown::Anon { object, offset }) => Object::SharedAnon {
                    object: *object,
                    offset: *offset,
                },
                Some(Shown::File {
                    dev,
                    ino,
                    offset,
                    may_write,
                    may_exec,
                    ..
                }) => Object::File(FileMap {
                    // As a replayed `mmap` names them.
                    id: FileId {
                        dev: *dev,
                        ino: *ino,
                        path: Arc::from([].as_slice()),
                    },
                    offset: *offset,
                    may_write: *may_write,
                    may_exec: *may_exec,
                    stand_in: true,
                }),
            },
        }
    }
}

impl Of {
    fn thread(th: &mut Thread, doing: Doing) -> Of {
        let mut registers = [0; 20];
        let vectors = {
            // SAFETY: the context of a thread that stands still.
            let ctx = unsafe { &mut *th.ctx };
            registers[..16].copy_from_slice(&ctx.gpr);
            registers[16..].copy_from_slice(&[ctx.rip, ctx.rflags, ctx.fs_base, ctx.clock()]);
            fpstate::save_with(ctx, &th.x87)
        };
        Of {
            id: th.id.0,
            tid: th.tid,
            doing,
            registers,
            vectors: vectors.into(),
            mask: th.mask,
            held: th
                .held
                .iter()
                .map(|s| (s.bytes.to_vec().into(), [s.err, s.trapno, s.cr2]))
                .collect(),
            altstack: (th.altstack.sp, th.altstack.flags, th.altstack.size),
            interrupted: th.interrupted.map(|i| (i.nr, i.pc, i.restartable)),
            clear_tid: th.clear_tid,
            robust: th.robust,
        }
    }

    /// Gives a thread the signal state that it had.
    pub(crate) fn put_into(&self, th: &mut Thread) {
        th.started = self.doing != Doing::New;
        th.mask = self.mask;
        th.clear_tid = self.clear_tid;
        th.robust = self.robust;
        let (sp, flags, size) = self.altstack;
        th.altstack = Stack { sp, flags, size };
        th.interrupted = self.interrupted.map(|(nr, pc, restartable)| Interrupted {
            nr,
            pc,
            restartable,
        });
        th.held = self
            .held
            .iter()
            .map(|(bytes, [err, trapno, cr2])| {
                let mut s = SigInfo::zeroed();
                for (to, from) in s.bytes.iter_mut().zip(&bytes.0) {
                    *to = *from;
                }
                (s.err, s.trapno, s.cr2) = (*err, *trapno, *cr2);
                s
            })
            .collect();
    }
}

impl Checkpoint {
    /// Dispositions as the runtime has them.
    pub(crate) fn actions(&self) -> impl Iterator<Item = (usize, SigAction)> {
        self.actions
            .iter()
            .enumerate()
            .map(|(i, &[handler, flags, restorer, mask])| {
                (
                    i + 1,
                    SigAction {
                        handler,
                        flags,
                        restorer,
                        mask,
                    },
                )
            })
    }
}

impl Runtime {
    /// Whether a recording can begin in this process as it is.
    pub(super) fn can_be_saved(&self) -> Result<(), Refused> {
        let mut shared: Vec<(Vec<u8>, std::ops::Range<u64>)> = Vec::new();
        for v in self.space.vmas().iter().filter(|v| v.flags.shared) {
            let (name, offset) = match &v.object {
                Object::Shm { .. } => {
                    return Err(refused(
                        libc::EOPNOTSUPP,
                        "the process has System V shared memory, with which a recording cannot begin",
                    ));
                }
                Object::SharedAnon { object, offset } => (format!("a{object}"), *offset),
                Object::File(f) => (format!("f{}:{}", f.id.dev, f.id.ino), f.offset),
                Object::Anon => continue,
            };
            let (name, range) = (name.into_bytes(), offset..offset + v.len());
            let twice = shared
                .iter()
                .any(|(n, r)| *n == name && r.start < range.end && range.start < r.end);
            if twice {
                return Err(refused(
                    libc::EOPNOTSUPP,
                    "the process has shared memory mapped twice, with which a recording cannot begin",
                ));
            }
            shared.push((name, range));
        }
        Ok(())
    }

    /// A file's content in the trace, if the file is still where it was.
    pub(super) fn store_by_path(&self, path: &[u8], dev: u64, ino: u64) -> Option<FileRef> {
        use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(std::ffi::OsStr::from_bytes(path))
            .ok()?;
        let m = file.metadata().ok()?;
        if !m.is_file() || (m.dev(), m.ino()) != (dev, ino) {
            return None;
        }
        self.store.put(&file).ok()
    }

    /// The process as it stands, and what of its memory is to be saved.
    pub(super) fn checkpoint(&self) -> (Checkpoint, Vec<Range>) {
        let mut ranges = Vec::new();
        let mut mappings = Vec::new();
        let mut known = std::collections::BTreeMap::new();
        for v in self.space.vmas().iter() {
            let stored = match &v.object {
                // What a shared file holds changes.
                Object::File(m) if !v.flags.shared => known
                    .entry((m.id.dev, m.id.ino))
                    .or_insert_with(|| self.store_by_path(&m.id.path, m.id.dev, m.id.ino))
                    .clone(),
                _ => None,
            };
            ranges.push(Range {
                start: v.start,
                end: v.end,
                what: match (&v.object, &stored) {
                    (Object::File(_), Some(_)) => What::Changed,
                    (Object::File(_), None) => What::All,
                    (Object::SharedAnon { .. }, _) => What::All,
                    _ => What::Present,
                },
                now: v.flags.shared || v.flags.dontfork || v.flags.wipeonfork,
            });
            mappings.push(Mapping::of(v, stored.as_ref()));
        }
        let threads = self
            .threads
            .values()
            .map(|t| {
                // SAFETY: the world stands still.
                let th = unsafe { &mut *t.0 };
                let doing = self.doing(th);
                Of::thread(th, doing)
            })
            .collect();
        let own = self.fds.own();
        let descriptors = std::fs::read_dir("/proc/self/fd")
            .map(|dir| {
                dir.flatten()
                    .filter_map(|e| {
                        let fd = e.file_name().to_str()?.parse::<i32>().ok()?;
                        let to = std::fs::read_link(e.path()).ok()?;
                        (!own.contains(&fd))
                            .then(|| (fd, Bytes::from(to.into_os_string().into_vec())))
                    })
                    .collect()
            })
            .unwrap_or_default();
        let checkpoint = Checkpoint {
            mappings,
            space: self.space.facts(),
            threads,
            actions: self.actions[1..]
                .iter()
                .map(|a| [a.handler, a.flags, a.restorer, a.mask])
                .collect(),
            loaded: self.loaded.clone(),
            comm: self.comm.clone().into(),
            descriptors,
            vcpus: match self.par {
                Some(_) => self.options.parallel().max(1),
                None => 0,
            },
        };
        (checkpoint, ranges)
    }

    fn doing(&self, th: &Thread) -> Doing {
        match self.par {
            None => Doing::Holds(0),
            Some(_) if !th.started => Doing::New,
            Some(par) if par.holds_vcpu(th) => Doing::Holds(th.vcpu),
            Some(_) if th.in_call => Doing::Call,
            Some(_) => Doing::Waits,
        }
    }
}

impl Of {
    /// Its number as the runtime has it.
    pub(crate) fn thread_id(&self) -> ThreadId {
        ThreadId(self.id)
    }
}

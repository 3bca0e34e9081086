//! Mappings as a sorted, merged set of ranges. Pure: no system calls, no unsafe code.

use crate::layout::{PAGE, STACK_GUARD_GAP};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Access rights as the guest asked for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Prot {
    /// `PROT_READ`
    pub read: bool,
    /// `PROT_WRITE`
    pub write: bool,
    /// `PROT_EXEC`
    pub exec: bool,
}

impl Prot {
    /// No access.
    pub const NONE: Prot = Prot {
        read: false,
        write: false,
        exec: false,
    };
    /// Read and write.
    pub const RW: Prot = Prot {
        read: true,
        write: true,
        exec: false,
    };

    /// From `PROT_*` bits; others are ignored.
    pub fn from_bits(bits: i32) -> Prot {
        Prot {
            read: bits & libc::PROT_READ != 0,
            write: bits & libc::PROT_WRITE != 0,
            exec: bits & libc::PROT_EXEC != 0,
        }
    }

    /// As `PROT_*` bits.
    pub fn bits(self) -> i32 {
        (if self.read { libc::PROT_READ } else { 0 })
            | (if self.write { libc::PROT_WRITE } else { 0 })
            | (if self.exec { libc::PROT_EXEC } else { 0 })
    }

    /// Whether loads work: on x86 writable or executable memory is readable (without protection keys).
    pub fn readable(self) -> bool {
        self.read || self.write || self.exec
    }
}

/// A file as `fstat` and `/proc/self/maps` name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Path at the time of mapping; for display only.
    pub path: Arc<[u8]>,
}

impl FileId {
    /// Whether both are the same file, whatever its name.
    pub fn same_file(&self, other: &FileId) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }
}

/// A mapping of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMap {
    /// The file.
    pub id: FileId,
    /// Offset in the file of the mapping's first byte.
    pub offset: u64,
    /// Whether `PROT_WRITE` may be given later: private, or opened for writing.
    pub may_write: bool,
    /// Whether `PROT_EXEC` may be given later: not from a `noexec` file system.
    pub may_exec: bool,
    /// The host's mapping is a private copy from the trace's store, even when the guest's is shared.
    pub stand_in: bool,
}

/// What a mapping shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// Private memory.
    Anon,
    /// `MAP_SHARED | MAP_ANONYMOUS`: number of the object in this space, and offset in it.
    SharedAnon {
        /// Number of the object.
        object: u64,
        /// Offset of the mapping's first byte.
        offset: u64,
    },
    /// A file; shared or private as [`VmaFlags::shared`] says.
    File(FileMap),
    /// A System V segment.
    Shm {
        /// Segment id.
        id: i32,
        /// Offset of the mapping's first byte in the segment.
        offset: u64,
        /// Whether it was attached for writing.
        may_write: bool,
    },
}

impl Object {
    /// The same object seen `by` bytes further on.
    fn advanced(&self, by: u64) -> Object {
        let mut o = self.clone();
        match &mut o {
            Object::Anon => {}
            Object::SharedAnon { offset, .. } | Object::Shm { offset, .. } => *offset += by,
            Object::File(f) => f.offset += by,
        }
        o
    }

    /// Whether `next` continues this object `len` bytes further on.
    fn continues(&self, len: u64, next: &Object) -> bool {
        match (self, next) {
            (Object::Anon, Object::Anon) => true,
            (
                Object::SharedAnon {
                    object: a,
                    offset: o,
                },
                Object::SharedAnon {
                    object: b,
                    offset: p,
                },
            ) => a == b && o + len == *p,
            (
                Object::Shm {
                    id: a,
                    offset: o,
                    may_write: w,
                },
                Object::Shm {
                    id: b,
                    offset: p,
                    may_write: v,
                },
            ) => (a, w) == (b, v) && o + len == *p,
            (Object::File(a), Object::File(b)) => {
                a.offset + len == b.offset
                    && a.id == b.id
                    && (a.may_write, a.may_exec, a.stand_in)
                        == (b.may_write, b.may_exec, b.stand_in)
            }
            _ => false,
        }
    }

    /// Identity of shared content and offset in it, for finding other mappings of the same bytes.
    pub(super) fn place(&self) -> Option<(Identity, u64)> {
        match self {
            Object::Anon => None,
            Object::SharedAnon { object, offset } => Some((Identity::Anon(*object), *offset)),
            Object::File(f) => Some((Identity::File(f.id.dev, f.id.ino), f.offset)),
            Object::Shm { id, offset, .. } => Some((Identity::Shm(*id), *offset)),
        }
    }
}

/// What can be mapped more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Shared anonymous object.
    Anon(u64),
    /// File by device and inode.
    File(u64, u64),
    /// System V segment.
    Shm(i32),
}

/// What a mapping is to the program, for `/proc/self/maps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Nothing special.
    #[default]
    Plain,
    /// The `brk` area.
    Heap,
    /// The main thread's stack.
    Stack,
}

/// Properties of a mapping besides its rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmaFlags {
    /// `MAP_SHARED`.
    pub shared: bool,
    /// `MAP_GROWSDOWN`; the runtime does the growing, the host's mapping has no such flag.
    pub growsdown: bool,
    /// `MAP_NORESERVE`.
    pub noreserve: bool,
    /// `MADV_DONTFORK`.
    pub dontfork: bool,
    /// `MADV_WIPEONFORK`.
    pub wipeonfork: bool,
    /// Locked in memory.
    pub locked: bool,
    /// Heap, stack or neither.
    pub role: Role,
}

/// One mapping: a run of pages that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Rights as the guest asked for them.
    pub prot: Prot,
    /// Other properties.
    pub flags: VmaFlags,
    /// Content.
    pub object: Object,
}

impl Vma {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Never true: a mapping has at least a page.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// First address with the gap that the kernel keeps free below a mapping that grows down.
    pub fn guarded_start(&self) -> u64 {
        let grows = self.flags.growsdown || self.flags.role == Role::Stack;
        if grows {
            self.start.saturating_sub(STACK_GUARD_GAP)
        } else {
            self.start
        }
    }

    /// The part of the mapping within `range`, which must overlap it.
    pub fn clipped(&self, range: &Range<u64>) -> Vma {
        let start = self.start.max(range.start);
        Vma {
            start,
            end: self.end.min(range.end),
            prot: self.prot,
            flags: self.flags,
            object: self.object.advanced(start - self.start),
        }
    }

    fn joins(&self, next: &Vma) -> bool {
        self.end == next.start
            && self.prot == next.prot
            && self.flags == next.flags
            && self.object.continues(self.len(), &next.object)
    }
}

/// All mappings, by address; neighbours that are alike are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmaTree {
    by_start: BTreeMap<u64, Vma>,
}

impl VmaTree {
    /// Number of mappings.
    pub fn count(&self) -> usize {
        self.by_start.len()
    }

    /// All, in address order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Vma> {
        self.by_start.values()
    }

    /// The mapping that holds `addr`.
    pub fn find(&self, addr: u64) -> Option<&Vma> {
        self.by_start
            .range(..=addr)
            .next_back()
            .map(|(_, v)| v)
            .filter(|v| addr < v.end)
    }

    /// The first mapping that ends above `addr`.
    pub fn first_above(&self, addr: u64) -> Option<&Vma> {
        self.find(addr)
            .or_else(|| self.by_start.range(addr..).next().map(|(_, v)| v))
    }

    /// The last mapping that starts below `addr`.
    pub fn last_below(&self, addr: u64) -> Option<&Vma> {
        self.by_start.range(..addr).next_back().map(|(_, v)| v)
    }

    /// Mappings that overlap `range`, whole, in address order.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = &Vma> {
        let to = range.end.max(range.start);
        let from = if range.is_empty() {
            to
        } else {
            self.find(range.start).map_or(range.start, |v| v.start)
        };
        self.by_start.range(from..to).map(|(_, v)| v)
    }

    /// Whether nothing is mapped in `range`.
    pub fn is_free(&self, range: Range<u64>) -> bool {
        self.overlapping(range).next().is_none()
    }

    /// Whether every page of `range` is mapped.
    pub fn is_covered(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        for v in self.overlapping(range.clone()) {
            if v.start > at {
                return false;
            }
            at = v.end;
        }
        at >= range.end
    }

    /// Adds a mapping; its range must be free.
    pub fn insert(&mut self, vma: Vma) {
        debug_assert!(
            vma.start < vma.end && vma.start.is_multiple_of(PAGE) && vma.end.is_multiple_of(PAGE)
        );
        debug_assert!(self.is_free(vma.start..vma.end));
        let start = vma.start;
        self.by_start.insert(start, vma);
        self.join_around(start..start + 1);
    }

    /// Takes everything in `range` out, and returns it in address order.
    pub fn remove(&mut self, range: Range<u64>) -> Vec<Vma> {
        self.split_at(range.start);
        self.split_at(range.end);
        let starts: Vec<u64> = self.by_start.range(range).map(|(s, _)| *s).collect();
        starts
            .iter()
            .filter_map(|s| self.by_start.remove(s))
            .collect()
    }

    /// Changes rights or flags of everything in `range`.
    pub fn update(&mut self, range: Range<u64>, mut change: impl FnMut(&mut Vma)) {
        self.split_at(range.start);
        self.split_at(range.end);
        for (_, v) in self.by_start.range_mut(range.clone()) {
            change(v);
        }
        self.join_around(range);
    }

    /// Highest address of a free hole of `len` bytes in `within`, with `(address - skew) % align == 0`.
    pub fn highest_hole(&self, within: Range<u64>, len: u64, align: u64, skew: u64) -> Option<u64> {
        let mut top = within.end;
        let fits = |top: u64, floor: u64| -> Option<u64> {
            let at = top.checked_sub(len)?;
            let at = at.checked_sub(at.wrapping_sub(skew) & (align - 1))?;
            (at >= floor.max(within.start)).then_some(at)
        };
        for v in self.by_start.range(..within.end).rev().map(|(_, v)| v) {
            if v.end < top
                && let Some(at) = fits(top, v.end)
            {
                return Some(at);
            }
            top = top.min(v.guarded_start());
            if top <= within.start {
                return None;
            }
        }
        fits(top, within.start)
    }

    fn split_at(&mut self, addr: u64) {
        let Some(v) = self.find(addr).filter(|v| v.start < addr) else {
            return;
        };
        let (start, right) = (v.start, v.clipped(&(addr..v.end)));
        if let Some(left) = self.by_start.get_mut(&start) {
            left.end = addr;
        }
        self.by_start.insert(addr, right);
    }

    /// Joins neighbours that are alike at every boundary within and at the ends of `range`.
    fn join_around(&mut self, range: Range<u64>) {
        let mut at = self
            .last_below(range.start)
            .map_or(range.start, |v| v.start);
        while let Some((&start, left)) = self.by_start.range(at..).next() {
            if start > range.end {
                return;
            }
            let next = left.end;
            match self
                .by_start
                .get(&next)
                .filter(|right| left.joins(right))
                .map(|right| right.end)
            {
                Some(end) => {
                    self.by_start.remove(&next);
                    if let Some(left) = self.by_start.get_mut(&start) {
                        left.end = end;
                    }
                    at = start;
                }
                None => at = next,
            }
        }
    }
}

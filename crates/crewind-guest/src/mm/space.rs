//! [`Space`]: making, removing and protecting mappings.

use super::code::CodePages;
use super::host::{Host, RealHost};
use super::vma::{FileId, FileMap, Object, Prot, Role, Vma, VmaFlags, VmaTree};
use super::{Effects, Outcome};
use crate::errno::Errno;
use crate::layout::*;
use std::ops::Range;
use std::os::fd::RawFd;

/// Where a mapping goes that the guest gave no address for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The low window: ELF files with code. Falls back to the data area when it is full.
    ElfImage,
    /// The data area.
    Normal,
}

/// What a mapping that is not `MAP_ANONYMOUS` is made of. Ignored for anonymous ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: the guest passed no file.
    Anon,
    /// The file itself, when recording.
    Fd(RawFd),
    /// The trace's copy of the file's content, when replaying. Mapped privately also where the guest's mapping
    /// is shared.
    Store {
        /// The copy, open for reading.
        fd: RawFd,
        /// The file it is a copy of.
        id: FileId,
        /// Whether the guest's descriptor was open for writing.
        writable: bool,
    },
}

/// Arguments of `mmap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmapArgs {
    /// Address or hint.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// `PROT_*`
    pub prot: i32,
    /// `MAP_*`
    pub flags: i32,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Where it goes without an address.
    pub placement: Placement,
}

/// Kind of access, for [`Space::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Instruction fetch.
    Exec,
}

/// The guest's address space. Not synchronised: the holder of the vcpu uses it.
#[derive(Clone, Debug)]
pub struct Space<H = RealHost> {
    pub(super) vmas: VmaTree,
    pub(super) host: H,
    pub(super) code: CodePages,
    /// Current program break, not rounded.
    brk: u64,
    data_limit: u64,
    stack_limit: u64,
    /// Number of the next shared anonymous object.
    next_object: u64,
    /// Replaying: shared memory is private on the host, and its own in each mapping: what came from elsewhere is in the
    /// log.
    pub(super) private: bool,
    /// `mlockall(MCL_FUTURE)`.
    pub(super) lock_future: bool,
}

/// `MAP_*` flags that reach the host as they are.
const PASSED_FLAGS: i32 =
    libc::MAP_NORESERVE | libc::MAP_POPULATE | libc::MAP_NONBLOCK | libc::MAP_STACK;
const MAP_TYPE: i32 = 0xf;
/// Flags that `MAP_SHARED_VALIDATE` takes for every file (the kernel's `LEGACY_MAP_MASK`).
const OLD_FLAGS: i32 = PASSED_FLAGS
    | libc::MAP_FIXED
    | libc::MAP_ANONYMOUS
    | libc::MAP_DENYWRITE
    | libc::MAP_EXECUTABLE
    | libc::MAP_GROWSDOWN
    | libc::MAP_LOCKED
    | libc::MAP_HUGETLB
    | libc::MAP_32BIT;
const THP: u64 = 2 << 20;

/// Rights of the host's mapping for a guest mapping: guest code is read by the translator, never executed in
/// place, and execute-only memory would need a protection key.
pub(super) fn host_prot(prot: Prot) -> i32 {
    Prot {
        read: prot.readable(),
        write: prot.write,
        exec: false,
    }
    .bits()
}

/// What `mmap` says about a file, its rights and the flags together.
fn check_file_rights(a: &MmapArgs, map: &FileMap, shared: bool, prot: Prot) -> Result<(), Errno> {
    // Of the flags that an old kernel would not know, only MAP_SYNC may work: the host decides.
    let known = MAP_TYPE | OLD_FLAGS | libc::MAP_SYNC;
    if a.flags & MAP_TYPE == libc::MAP_SHARED_VALIDATE && a.flags & !known != 0 {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    if shared && prot.write && !map.may_write {
        return Err(Errno(libc::EACCES));
    }
    if prot.exec && !map.may_exec {
        return Err(Errno(libc::EPERM));
    }
    if a.flags & libc::MAP_HUGETLB != 0 {
        return Err(Errno(libc::EINVAL));
    }
    Ok(())
}

impl Space<RealHost> {
    /// An empty address space in this process.
    pub fn new() -> Self {
        Space::with_host(RealHost)
    }
}

impl Default for Space<RealHost> {
    fn default() -> Self {
        Self::new()
    }
}

/// What there is to say of an address space besides its mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SpaceFacts {
    brk: u64,
    data_limit: u64,
    stack_limit: u64,
    next_object: u64,
    lock_future: bool,
}

impl<H: Host> Space<H> {
    /// For a replay that begins in the middle.
    pub fn facts(&self) -> SpaceFacts {
        SpaceFacts {
            brk: self.brk,
            data_limit: self.data_limit,
            stack_limit: self.stack_limit,
            next_object: self.next_object,
            lock_future: self.lock_future,
        }
    }

    /// Puts a mapping back, writable for now; of a file: of this descriptor from this offset on.
    ///
    /// # Errors
    /// The host refuses it.
    pub fn restore(&mut self, vma: Vma, file: Option<(RawFd, u64)>) -> Result<(), Errno> {
        let sharing = if vma.flags.shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        let (kind, fd, offset) = match file {
            Some((fd, offset)) => (0, fd, offset),
            None => (libc::MAP_ANONYMOUS, -1, 0),
        };
        let flags = sharing | kind | libc::MAP_NORESERVE;
        if !page_aligned(vma.start)
            || !page_aligned(vma.end)
            || vma.start >= vma.end
            || !self.vmas.is_free(vma.start..vma.end)
        {
            return Err(Errno(libc::EINVAL));
        }
        let writable = host_prot(Prot::RW);
        (self.host).mmap(vma.start, vma.len(), writable, flags, fd, offset)?;
        self.vmas.insert(vma);
        Ok(())
    }

    /// All mappings are back, and what is in them.
    ///
    /// # Errors
    /// The host refuses their rights.
    pub fn restored(&mut self, facts: &SpaceFacts) -> Result<(), Errno> {
        let all: Vec<Vma> = self.vmas.iter().cloned().collect();
        for v in all {
            if v.prot != Prot::RW {
                self.host.mprotect(v.start, v.len(), host_prot(v.prot))?;
            }
        }
        let f = *facts;
        (self.brk, self.data_limit, self.stack_limit) = (f.brk, f.data_limit, f.stack_limit);
        (self.next_object, self.lock_future) = (f.next_object, f.lock_future);
        Ok(())
    }

    /// An empty address space on a host.
    pub fn with_host(host: H) -> Self {
        Space {
            vmas: VmaTree::default(),
            host,
            code: CodePages::default(),
            brk: BRK_START,
            data_limit: u64::MAX,
            stack_limit: 8 << 20,
            next_object: 1,
            private: false,
            lock_future: false,
        }
    }

    /// From now on shared memory that is not of a file is private on the host: for replaying.
    pub fn keep_private(&mut self) {
        self.private = true;
    }

    /// The host's side.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// All mappings.
    pub fn vmas(&self) -> &VmaTree {
        &self.vmas
    }

    /// The mapping that holds `addr`.
    pub fn find(&self, addr: u64) -> Option<&Vma> {
        self.vmas.find(addr)
    }

    /// Whether the guest may access every byte of the range in this way. Says nothing of the ends of files.
    pub fn check(&self, addr: u64, len: u64, access: Access) -> bool {
        let Some(end) = addr.checked_add(len.max(1)) else {
            return false;
        };
        let mut at = addr;
        for v in self.vmas.overlapping(addr..end) {
            let allowed = match access {
                Access::Read => v.prot.readable(),
                Access::Write => v.prot.write,
                Access::Exec => v.prot.exec,
            };
            if v.start > at || !allowed {
                return false;
            }
            at = v.end;
        }
        at >= end
    }

    /// The executable range around `pc`: from the start of its mapping to where execute rights end. Bytes in
    /// it can still be beyond the end of a file.
    pub fn executable_range(&self, pc: u64) -> Option<(u64, u64)> {
        let first = self.vmas.find(pc).filter(|v| v.prot.exec)?;
        let mut end = first.end;
        while let Some(v) = self.vmas.find(end).filter(|v| v.prot.exec) {
            end = v.end;
        }
        Some((first.start, end))
    }

    /// Reads code at `pc`: as many bytes as are executable and there, possibly none.
    pub fn fetch(&self, pc: u64, buf: &mut [u8]) -> usize {
        let Some((_, end)) = self.executable_range(pc) else {
            return 0;
        };
        let len = buf.len().min((end - pc) as usize);
        match crate::guestmem::copy_from_guest(&mut buf[..len], pc) {
            Ok(()) => len,
            Err(fault) => fault.copied,
        }
    }

    /// `RLIMIT_DATA` for `brk`.
    pub fn set_data_limit(&mut self, bytes: u64) {
        self.data_limit = bytes;
    }

    /// A change of the soft `RLIMIT_STACK`. The main stack is mapped whole, so that the kernel can write to parts
    /// the guest has not touched; its end moves with the limit, but not over what lies above `sp` and the
    /// kernel's slack below it.
    pub fn set_stack_limit(&mut self, bytes: u64, sp: u64) -> Effects {
        /// What a stack may use below its pointer without growing (the kernel's old limit for `enter`).
        const SLACK: u64 = 128 << 10;
        self.stack_limit = bytes;
        let mut effects = Effects::default();
        let Some(stack) = self
            .vmas
            .find(STACK_TOP - 1)
            .filter(|v| v.flags.role == Role::Stack)
            .cloned()
        else {
            return effects;
        };
        let size = page_up(bytes.clamp(STACK_MIN, STACK_MAX)).unwrap_or(STACK_MAX);
        let mut start = STACK_TOP - size;
        if (stack.start..stack.end).contains(&sp) {
            start = start.min(page_down(sp.saturating_sub(SLACK)));
        }
        if start > stack.start {
            effects = self.munmap(stack.start, start - stack.start).effects;
        } else if start < stack.start && self.vmas.is_free(start - STACK_GUARD_GAP..stack.start) {
            let flags =
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
            if self
                .host
                .mmap(
                    start,
                    stack.start - start,
                    host_prot(stack.prot),
                    flags,
                    -1,
                    0,
                )
                .is_ok()
            {
                self.vmas.insert(Vma {
                    start,
                    end: stack.start,
                    ..stack
                });
            }
        }
        effects
    }

    /// `mmap`
    pub fn mmap(&mut self, args: &MmapArgs, backing: Backing) -> Outcome<u64> {
        let mut effects = Effects::default();
        let result = self.do_mmap(args, backing, &mut effects);
        Outcome { result, effects }
    }

    fn do_mmap(&mut self, a: &MmapArgs, backing: Backing, fx: &mut Effects) -> Result<u64, Errno> {
        if !page_aligned(a.offset) {
            return Err(Errno(libc::EINVAL));
        }
        let anon = a.flags & libc::MAP_ANONYMOUS != 0;
        let sharing = a.flags & MAP_TYPE;
        let shared = matches!(sharing, libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE);
        let prot = Prot::from_bits(a.prot);
        let source = if anon {
            if a.flags & libc::MAP_HUGETLB != 0 {
                return Err(Errno(libc::ENOMEM));
            }
            None
        } else {
            Some(self.file_map(backing, shared, a.offset)?)
        };
        if a.len == 0 {
            return Err(Errno(libc::EINVAL));
        }
        let len = page_up(a.len).ok_or(Errno(libc::ENOMEM))?;
        let at = self.choose_address(a, len, anon && !shared)?;
        let file = source.as_ref().map(|(_, map)| map);
        if file.is_some()
            && a.offset
                .checked_add(len)
                .is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(Errno(libc::EOVERFLOW));
        }
        let valid_sharing =
            shared && !(anon && sharing != libc::MAP_SHARED) || sharing == libc::MAP_PRIVATE;
        let grows = a.flags & libc::MAP_GROWSDOWN != 0;
        if !valid_sharing || grows && (shared || !anon) {
            return Err(Errno(libc::EINVAL));
        }
        if let Some(map) = file {
            check_file_rights(a, map, shared, prot)?;
        }

        let mut flags = a.flags & PASSED_FLAGS;
        let (fd, offset) = match &source {
            None => {
                flags |= libc::MAP_ANONYMOUS
                    | if shared && !self.private {
                        libc::MAP_SHARED
                    } else {
                        libc::MAP_PRIVATE
                    };
                (-1, 0)
            }
            Some((fd, map)) if map.stand_in => {
                flags |= libc::MAP_PRIVATE;
                (*fd, a.offset)
            }
            Some((fd, _)) => {
                flags |= sharing | a.flags & libc::MAP_SYNC;
                (*fd, a.offset)
            }
        };
        self.host
            .mmap(at, len, host_prot(prot), flags, fd, offset)?;

        self.code.forget(at..at + len, fx);
        self.vmas.remove(at..at + len);
        let locked = a.flags & libc::MAP_LOCKED != 0 || self.lock_future;
        let object = match source {
            Some((_, map)) => Object::File(map),
            None if shared => {
                self.next_object += 1;
                Object::SharedAnon {
                    object: self.next_object - 1,
                    offset: 0,
                }
            }
            None => Object::Anon,
        };
        self.vmas.insert(Vma {
            start: at,
            end: at + len,
            prot,
            flags: VmaFlags {
                shared,
                growsdown: grows,
                noreserve: a.flags & libc::MAP_NORESERVE != 0,
                locked,
                ..VmaFlags::default()
            },
            object,
        });
        if locked {
            // A failure to lock is not one of mmap.
            let _ = self.host.mlock(at, len, 0);
        }
        self.guard_new_alias(at..at + len, fx);
        Ok(at)
    }

    fn file_map(
        &mut self,
        backing: Backing,
        shared: bool,
        offset: u64,
    ) -> Result<(RawFd, FileMap), Errno> {
        match backing {
            Backing::Anon => Err(Errno(libc::EBADF)),
            Backing::Fd(fd) => {
                let facts = self.host.file(fd)?;
                let may_write = !shared || facts.writable;
                Ok((
                    fd,
                    FileMap {
                        id: facts.id,
                        offset,
                        may_write,
                        may_exec: !facts.noexec,
                        stand_in: false,
                    },
                ))
            }
            Backing::Store { fd, id, writable } => {
                let may_write = !shared || writable;
                Ok((
                    fd,
                    FileMap {
                        id,
                        offset,
                        may_write,
                        may_exec: true,
                        stand_in: true,
                    },
                ))
            }
        }
    }

    fn choose_address(&self, a: &MmapArgs, len: u64, private_anon: bool) -> Result<u64, Errno> {
        if len > TASK_SIZE {
            return Err(Errno(libc::ENOMEM));
        }
        let noreplace = a.flags & libc::MAP_FIXED_NOREPLACE != 0;
        if noreplace || a.flags & libc::MAP_FIXED != 0 {
            if a.addr > TASK_SIZE - len {
                return Err(Errno(libc::ENOMEM));
            }
            if !page_aligned(a.addr) {
                return Err(Errno(libc::EINVAL));
            }
            if a.addr < GUEST_START {
                return Err(Errno(libc::EPERM));
            }
            if !is_guest(a.addr, len) {
                return Err(Errno(libc::ENOMEM));
            }
            if noreplace && !self.vmas.is_free(a.addr..a.addr + len) {
                return Err(Errno(libc::EEXIST));
            }
            return Ok(a.addr);
        }
        let low = a.flags & libc::MAP_32BIT != 0;
        if a.addr != 0 {
            let hint = page_down(a.addr).max(GUEST_START);
            if self.hint_is_free(hint, len) && (!low || hint + len <= 1 << 31) {
                return Ok(hint);
            }
        }
        if low {
            return self.place_low(len, PAGE, 0).ok_or(Errno(libc::ENOMEM));
        }
        let align = if private_anon && len.is_multiple_of(THP) {
            THP
        } else {
            PAGE
        };
        self.place(len, align, a.placement)
            .ok_or(Errno(libc::ENOMEM))
    }

    fn hint_is_free(&self, at: u64, len: u64) -> bool {
        is_guest(at, len)
            && self
                .vmas
                .first_above(at)
                .is_none_or(|v| at + len <= v.guarded_start())
    }

    fn place_low(&self, len: u64, align: u64, skew: u64) -> Option<u64> {
        self.vmas
            .highest_hole(LOW_PLACE_START..LOW_END, len, align, skew)
    }

    /// A free place for `len` bytes at a multiple of `align` (a power of two): the highest in its area.
    pub fn place(&self, len: u64, align: u64, placement: Placement) -> Option<u64> {
        self.place_skewed(len, align, 0, placement)
    }

    /// As [`Space::place`], but `skew` bytes after a multiple of `align`.
    pub fn place_skewed(
        &self,
        len: u64,
        align: u64,
        skew: u64,
        placement: Placement,
    ) -> Option<u64> {
        let low = match placement {
            Placement::ElfImage => self.place_low(len, align, skew),
            Placement::Normal => None,
        };
        low.or_else(|| {
            self.vmas
                .highest_hole(MMAP_START..MMAP_END, len, align, skew)
        })
        .or_else(|| {
            self.vmas
                .highest_hole(ASAN_SHADOW.end..MMAP_START, len, align, skew)
        })
    }

    /// Maps the main stack: `limit` is the soft `RLIMIT_STACK`. Returns its range.
    pub fn map_stack(&mut self, limit: u64, exec: bool) -> Result<Range<u64>, Errno> {
        self.stack_limit = limit;
        let size = page_up(limit.clamp(STACK_MIN, STACK_MAX)).unwrap_or(STACK_MAX);
        let range = STACK_TOP - size..STACK_TOP;
        if !self.vmas.is_free(range.start - STACK_GUARD_GAP..range.end) {
            return Err(Errno(libc::ENOMEM));
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        let prot = Prot { exec, ..Prot::RW };
        self.host
            .mmap(range.start, size, host_prot(prot), flags, -1, 0)?;
        let flags = VmaFlags {
            noreserve: true,
            role: Role::Stack,
            ..VmaFlags::default()
        };
        self.vmas.insert(Vma {
            start: range.start,
            end: range.end,
            prot,
            flags,
            object: Object::Anon,
        });
        Ok(range)
    }

    /// Grows a `MAP_GROWSDOWN` mapping down to a guest access at `addr`, as the kernel would. `false`: the
    /// access is a real fault.
    pub fn grow_down(&mut self, addr: u64) -> bool {
        let Some(v) = self
            .vmas
            .first_above(addr)
            .filter(|v| v.flags.growsdown && addr < v.start)
            .cloned()
        else {
            return false;
        };
        let start = page_down(addr);
        let clear = self.vmas.last_below(v.start).is_none_or(|p| {
            p.prot == Prot::NONE
                || p.flags.growsdown
                || start.saturating_sub(p.end) >= STACK_GUARD_GAP
        });
        if !clear || v.end - start > self.stack_limit || !is_guest(start, v.end - start) {
            return false;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        if self
            .host
            .mmap(start, v.start - start, host_prot(v.prot), flags, -1, 0)
            .is_err()
        {
            return false;
        }
        self.vmas.insert(Vma {
            start,
            end: v.start,
            ..v
        });
        true
    }

    /// `munmap`
    pub fn munmap(&mut self, addr: u64, len: u64) -> Outcome<()> {
        let mut effects = Effects::default();
        let result = self.do_munmap(addr, len, &mut effects);
        Outcome { result, effects }
    }

    pub(super) fn do_munmap(&mut self, addr: u64, len: u64, fx: &mut Effects) -> Result<(), Errno> {
        if !page_aligned(addr) || addr > TASK_SIZE || len > TASK_SIZE - addr || len == 0 {
            return Err(Errno(libc::EINVAL));
        }
        let end = page_up(addr + len).ok_or(Errno(libc::EINVAL))?;
        self.unmap_range(addr..end, fx)
    }

    /// Unmaps what the guest has mapped in the range, and only that.
    pub(super) fn unmap_range(&mut self, range: Range<u64>, fx: &mut Effects) -> Result<(), Errno> {
        for run in self.mapped_runs(range) {
            self.host.munmap(run.start, run.end - run.start)?;
            self.code.forget(run.clone(), fx);
            self.vmas.remove(run);
        }
        Ok(())
    }

    /// The mapped parts of a range, neighbours joined.
    pub(super) fn mapped_runs(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for v in self.vmas.overlapping(range.clone()) {
            let (start, end) = (v.start.max(range.start), v.end.min(range.end));
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        runs
    }

    /// The mapped parts of a range, one per mapping.
    pub(super) fn pieces(&self, range: Range<u64>) -> Vec<Vma> {
        self.vmas
            .overlapping(range.clone())
            .map(|v| v.clipped(&range))
            .collect()
    }

    /// `mprotect`, and `pkey_mprotect` with key -1.
    pub fn mprotect(&mut self, addr: u64, len: u64, prot: i32) -> Outcome<()> {
        let mut effects = Effects::default();
        let result = self.do_mprotect(addr, len, prot, &mut effects);
        Outcome { result, effects }
    }

    fn do_mprotect(
        &mut self,
        addr: u64,
        len: u64,
        prot: i32,
        fx: &mut Effects,
    ) -> Result<(), Errno> {
        const PROT_SEM: i32 = 8;
        let grows = prot & (libc::PROT_GROWSDOWN | libc::PROT_GROWSUP);
        let prot = prot & !(libc::PROT_GROWSDOWN | libc::PROT_GROWSUP);
        if grows == libc::PROT_GROWSDOWN | libc::PROT_GROWSUP || !page_aligned(addr) {
            return Err(Errno(libc::EINVAL));
        }
        if len == 0 {
            return Ok(());
        }
        let end = page_up(len)
            .and_then(|len| addr.checked_add(len))
            .ok_or(Errno(libc::ENOMEM))?;
        if end <= addr {
            return Err(Errno(libc::ENOMEM));
        }
        if prot & !(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC | PROT_SEM) != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let prot = Prot::from_bits(prot);
        let mut at = addr;
        let first = self.vmas.first_above(addr).ok_or(Errno(libc::ENOMEM))?;
        if grows == libc::PROT_GROWSDOWN {
            if first.start >= end {
                return Err(Errno(libc::ENOMEM));
            }
            // Of the main stack the kernel would take what it has grown to, here it is all there is.
            if !first.flags.growsdown && first.flags.role != Role::Stack {
                return Err(Errno(libc::EINVAL));
            }
            at = first.start;
        } else if grows == libc::PROT_GROWSUP {
            return Err(Errno(libc::EINVAL));
        }
        for piece in self.pieces(at..end) {
            if piece.start > at {
                return Err(Errno(libc::ENOMEM));
            }
            self.protect_piece(&piece, prot, fx)?;
            at = piece.end;
        }
        if at < end {
            Err(Errno(libc::ENOMEM))
        } else {
            Ok(())
        }
    }

    fn protect_piece(&mut self, piece: &Vma, prot: Prot, fx: &mut Effects) -> Result<(), Errno> {
        let (may_write, may_exec) = match &piece.object {
            Object::File(f) => (f.may_write, f.may_exec),
            Object::Shm { may_write, .. } => (*may_write, true),
            Object::Anon | Object::SharedAnon { .. } => (true, true),
        };
        if prot.write && !may_write || prot.exec && !may_exec {
            return Err(Errno(libc::EACCES));
        }
        if prot == piece.prot {
            return Ok(());
        }
        let range = piece.start..piece.end;
        self.host
            .mprotect(piece.start, piece.len(), host_prot(prot))?;
        self.vmas.update(range.clone(), |v| v.prot = prot);
        self.code.unguarded(range.clone());
        if !prot.exec {
            self.code.forget(range.clone(), fx);
        } else if prot.write {
            self.guard_translated(range.clone(), fx);
        }
        self.guard_new_alias(range, fx);
        Ok(())
    }

    /// `brk`: the new program break, or the old one when it cannot be moved there.
    pub fn brk(&mut self, want: u64) -> Outcome<u64> {
        let mut effects = Effects::default();
        if self.move_brk(want, &mut effects).is_some() {
            self.brk = want;
        }
        Outcome {
            result: Ok(self.brk),
            effects,
        }
    }

    fn move_brk(&mut self, want: u64, fx: &mut Effects) -> Option<()> {
        if !(BRK_START..=BRK_LIMIT).contains(&want) || want - BRK_START > self.data_limit {
            return None;
        }
        let (old, new) = (page_up(self.brk)?, page_up(want)?);
        if new < old {
            return self.unmap_range(new..old, fx).ok();
        }
        if new == old {
            return Some(());
        }
        if self
            .vmas
            .first_above(old)
            .is_some_and(|next| new + PAGE > next.guarded_start())
        {
            return None;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        self.host
            .mmap(old, new - old, host_prot(Prot::RW), flags, -1, 0)
            .ok()?;
        let locked = self.lock_future;
        let flags = VmaFlags {
            role: Role::Heap,
            locked,
            ..VmaFlags::default()
        };
        self.vmas.insert(Vma {
            start: old,
            end: new,
            prot: Prot::RW,
            flags,
            object: Object::Anon,
        });
        Some(())
    }

    /// Mapped bytes of a file range: (guest address, length), for refreshing them after the file changed.
    pub fn overlaps(&self, dev: u64, ino: u64, offset: u64, len: u64) -> Vec<(u64, u64)> {
        let end = offset.saturating_add(len);
        let mut out = Vec::new();
        for v in self.vmas.iter() {
            let Object::File(f) = &v.object else { continue };
            if (f.id.dev, f.id.ino) != (dev, ino) {
                continue;
            }
            let (from, to) = (offset.max(f.offset), end.min(f.offset + v.len()));
            if from < to {
                out.push((v.start + (from - f.offset), to - from));
            }
        }
        out
    }

    /// Mappings of files, in address order.
    pub fn mapped_files(&self) -> impl Iterator<Item = (&Vma, &FileMap)> {
        self.vmas.iter().filter_map(|v| match &v.object {
            Object::File(f) => Some((v, f)),
            _ => None,
        })
    }

    /// Bytes mapped in all.
    pub fn mapped_bytes(&self) -> u64 {
        self.vmas.iter().map(Vma::len).sum()
    }

    /// Bytes of what the kernel counts as data: private, writable, and no stack.
    pub fn data_bytes(&self) -> u64 {
        let is_stack = |v: &Vma| v.flags.growsdown || v.flags.role == Role::Stack;
        let is_data = |v: &&Vma| v.prot.write && !v.flags.shared && !is_stack(v);
        self.vmas.iter().filter(is_data).map(Vma::len).sum()
    }

    /// Whether there is memory that other processes may write to as well.
    pub fn has_shared_writable(&self) -> bool {
        let may_write = |v: &Vma| match &v.object {
            Object::File(f) => f.may_write,
            Object::Shm { may_write, .. } => *may_write,
            Object::Anon | Object::SharedAnon { .. } => false,
        };
        self.vmas.iter().any(|v| v.flags.shared && may_write(v))
    }

    /// To be called in the child of a fork: drops what `MADV_DONTFORK` keeps from it, and empties what
    /// `MADV_WIPEONFORK` says. The host is not told of these, so that a checkpoint made by `fork` has all.
    pub fn after_fork(&mut self) -> Effects {
        let mut effects = Effects::default();
        let marked: Vec<Vma> = self
            .vmas
            .iter()
            .filter(|v| v.flags.dontfork || v.flags.wipeonfork)
            .cloned()
            .collect();
        for v in marked {
            // Neither can fail short of running out of mappings, and the guest has nobody to tell.
            if v.flags.dontfork {
                let _ = self.unmap_range(v.start..v.end, &mut effects);
            } else {
                self.drop_code(v.start..v.end, &mut effects);
                let _ = self.host.madvise(v.start, v.len(), libc::MADV_DONTNEED);
            }
        }
        // Memory locks are not inherited.
        self.mark_none();
        effects
    }
}

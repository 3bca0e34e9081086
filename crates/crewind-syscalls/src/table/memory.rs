//! Calls that change or describe mappings.

use super::kinds::*;
use crate::flags as f;
use crate::types::ArgKind::*;
use crate::types::Class::{Refuse, Runtime};
use crate::types::Notice::{Loud, Quiet};
use crate::types::{Cloexec, FdEffect, Len, Row, Shape, When, Wrote};

pub(super) const ROWS: &[Row] = rows! {
    9 mmap(addr: Addr, length: Size, prot: Flags(&f::PROT), flags: Flags(&f::MMAP), fd: Fd, offset: Hex)
        { class: Runtime };
    10 mprotect(addr: Addr, len: Size, prot: Flags(&f::PROT)) { class: Runtime };
    11 munmap(addr: Addr, length: Size) { class: Runtime };
    12 brk(addr: Addr) { class: Runtime };
    25 mremap(old_address: Addr, old_size: Size, new_size: Size, flags: Flags(&f::MREMAP), new_address: Addr)
        { class: Runtime };
    26 msync(addr: Addr, length: Size, flags: Flags(&f::MSYNC)) { class: Runtime };
    27 mincore(addr: Addr, length: Size, vec: Mincore);
    28 madvise(addr: Addr, length: Size, advice: Flags(&f::MADVISE)) { class: Runtime };
    149 mlock(addr: Addr, len: Size) { class: Runtime };
    150 munlock(addr: Addr, len: Size) { class: Runtime };
    151 mlockall(flags: Flags(&f::MLOCKALL)) { class: Runtime };
    152 munlockall() { class: Runtime };
    216 remap_file_pages(addr: Addr, size: Size, prot: Hex, pgoff: Size, flags: Flags(&f::MMAP))
        { class: Refuse(libc::ENOSYS, Loud, "remap_file_pages is obsolete; mmap does the same") };
    237 mbind(addr: Addr, len: Size, mode: Hex, nodemask: Nodemask { bits: 4 }, maxnode: Size, flags: Hex);
    238 set_mempolicy(mode: Hex, nodemask: Nodemask { bits: 2 }, maxnode: Size);
    239 get_mempolicy(mode: U32_OUT, nodemask: NodemaskOut { bits: 2 }, maxnode: Size, addr: Addr, flags: Hex);
    256 migrate_pages(pid: Pid, maxnode: Size, old_nodes: Nodemask { bits: 1 }, new_nodes: Nodemask { bits: 1 });
    // Status is written up to the first page that fails.
    279 move_pages(pid: Pid, count: Size, pages: input(Len::Times(1, 8), Shape::Hex64),
        nodes: input(Len::Times(1, 4), Shape::I32),
        status: output(Len::Times(1, 4), Wrote::All, When::Always, Shape::I32), flags: Hex);
    319 memfd_create(name: Path, flags: Flags(&f::MEMFD)) { fds: FdEffect::New(Cloexec::Flag(1, 1)) };
    323 userfaultfd(flags: Hex)
        { class: Refuse(libc::ENOSYS, Loud, "userfaultfd hands page faults to the program") };
    325 mlock2(addr: Addr, len: Size, flags: Flags(&f::MLOCK2)) { class: Runtime };
    329 pkey_mprotect(addr: Addr, len: Size, prot: Flags(&f::PROT), pkey: Int) { class: Runtime };
    330 pkey_alloc(flags: Hex, access_rights: Hex) { class: Runtime };
    331 pkey_free(pkey: Int) { class: Runtime };
    440 process_madvise(pidfd: Fd, iovec: RemoteIovec { count: 2 }, vlen: Size, advice: Flags(&f::MADVISE), flags: Hex)
        { class: Refuse(libc::EPERM, Loud, "process_madvise changes memory of another process") };
    447 memfd_secret(flags: Flags(&f::CLOEXEC))
        { class: Refuse(libc::ENOSYS, Loud, "memory of memfd_secret is hidden from the recorder") };
    448 process_mrelease(pidfd: Fd, flags: Hex);
    450 set_mempolicy_home_node(start: Addr, len: Size, home_node: Size, flags: Hex);
    453 map_shadow_stack(addr: Addr, size: Size, flags: Hex)
        { class: Refuse(libc::EOPNOTSUPP, Quiet, "no shadow stacks: the program's returns are translated") };
    462 mseal(start: Addr, len: Size, flags: Hex) { class: Runtime };
};

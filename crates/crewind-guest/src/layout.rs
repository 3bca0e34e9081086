//! Where things are in the address space of a recorded process.
//!
//! The guest has everything below [`GUEST_END`] except the window [`RUNTIME_LOW`]`..`[`RUNTIME_LOW_END`], and [`SANITIZERS`]; the
//! runtime has that window and everything else. The same addresses are used in every recording and replay.

use std::ops::Range;

/// Counts changes of the addresses below: a replay needs those of the recording.
pub const VERSION: u32 = 2;

/// Page size.
pub const PAGE: u64 = 4096;

/// Lowest address the guest may map (the usual `vm.mmap_min_addr`).
pub const GUEST_START: u64 = 0x1_0000;
/// Every guest address but those of [`SANITIZERS`] is below this line; the kernel places the runtime above it (position-independent
/// programs from 0x5555_5555_4000 on, mappings downwards from the stack).
pub const GUEST_END: u64 = 0x5500_0000_0000;
/// Where AddressSanitizer and LeakSanitizer have their heaps (`kAllocatorSpace` in compiler-rt's `asan_allocator.h`, 4 TiB and some pages); newer
/// ones have them from 0x5000_0000_0000 on. Nothing else is placed there.
pub const SANITIZERS: Range<u64> = 0x6000_0000_0000..0x6500_0000_0000;
/// Behind the last address that the guest may have.
pub const GUEST_LAST: u64 = SANITIZERS.end;
/// End of the user address space as the kernel sees it; used for error numbers only.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// The low window, where everything that holds code of ELF files goes: such a pc fits a sign-extended imm32.
pub const LOW_START: u64 = GUEST_START;
/// End of the low window.
pub const LOW_END: u64 = 0x3f00_0000;
/// Nothing is placed below this in the low window without being asked for: the usual places of non-PIE
/// programs (4 MiB and a few hundred more) stay free for them.
pub const LOW_PLACE_START: u64 = 0x1000_0000;

/// First address of the low window that belongs to the runtime.
pub const RUNTIME_LOW: u64 = 0x4000_0000;
/// Its end.
pub const RUNTIME_LOW_END: u64 = 0x7f00_0000;
/// Look-up table of indirect transfers.
pub const TABLE_START: u64 = 0x7000_0000;
/// Bytes of the look-up table: 2^16 entries of 4 bytes.
pub const TABLE_LEN: u64 = 0x4_0000;
/// Code cache.
pub const CACHE_START: u64 = 0x7010_0000;
/// End of the code cache.
pub const CACHE_END: u64 = RUNTIME_LOW_END;

/// Where the runtime's part of the low window holds what belongs to one vcpu of a parallel process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuArea {
    /// Table of rights, 64 MiB and a page.
    pub rights: u64,
    /// Look-up table of indirect transfers.
    pub table: u64,
    /// Code cache.
    pub cache: u64,
    /// Its length in bytes.
    pub cache_len: u64,
    /// Look-up table of the cache beside it.
    pub near_table: u64,
    /// The cache that a replay has for the last stretch before events; it takes the last third of `cache`.
    pub near: u64,
}

/// A table of rights with its slack, and what keeps the next one apart.
const RIGHTS_AREA: u64 = 0x0410_0000;
/// End of the areas of vcpus, beside the tables of a serial process, whose cache is not used any more then.
const VCPU_END: u64 = TABLE_START;
/// A look-up table of indirect transfers, 512 KiB.
const VCPU_TABLE: u64 = 0x8_0000;
/// More code than any program has been seen to need; what there is beyond that stays unused.
const CODE_MAX: u64 = 240 << 20;

/// Table of rights of vcpu `n` (0 to 7), wherever the rest is.
pub fn rights(n: usize) -> u64 {
    RUNTIME_LOW + n as u64 * RIGHTS_AREA
}

/// The area of vcpu `n` of `of` (1 to 8): all tables of rights come first, and what is left is shared out, from 30 MiB for each of
/// eight to 240 for one or two. A cache that is too small for what a program executes is filled again and again.
pub fn vcpu(n: usize, of: usize) -> VcpuArea {
    let start = rights(of);
    let len = ((VCPU_END - start) / of as u64).min(CODE_MAX) & !0xffff;
    let base = start + n as u64 * len;
    let cache = base + 2 * VCPU_TABLE;
    let cache_len = len - 2 * VCPU_TABLE;
    VcpuArea {
        rights: rights(n),
        table: base,
        cache,
        cache_len,
        near_table: base + VCPU_TABLE,
        near: cache + page_down(cache_len / 3 * 2),
    }
}

/// Left free of placements: where AddressSanitizer wants its shadow.
pub const ASAN_SHADOW: Range<u64> = 0x7fff_8000..0x1000_7fff_8000;

/// Data mappings are handed out downwards from [`MMAP_END`] to here.
pub const MMAP_START: u64 = 0x2000_0000_0000;
/// End of the area of data mappings.
pub const MMAP_END: u64 = 0x4000_0000_0000;
/// The heap that `brk` moves starts here.
///
/// Tables of rights are indexed by the low half of an address, so the heap, the mappings below [`MMAP_END`], the stack
/// and the low window lie in different parts of it.
pub const BRK_START: u64 = 0x4000_8000_0000;
/// `brk` never goes beyond.
pub const BRK_LIMIT: u64 = 0x4800_0000_0000;
/// First address above the main stack.
pub const STACK_TOP: u64 = 0x4fff_7f00_0000;
/// Largest main stack; it is mapped at once, so that an unlimited `RLIMIT_STACK` must end somewhere.
pub const STACK_MAX: u64 = 1 << 30;
/// Smallest main stack, so that arguments and a program's first frames always fit.
pub const STACK_MIN: u64 = 256 << 10;
/// Bytes the kernel keeps free below a mapping that grows down (`stack_guard_gap`).
pub const STACK_GUARD_GAP: u64 = 256 * PAGE;

/// Whether all of `addr..addr+len` may belong to the guest. An empty range is judged as if one byte long.
pub fn is_guest(addr: u64, len: u64) -> bool {
    let Some(end) = addr.checked_add(len.max(1)) else {
        return false;
    };
    let is_usual = end <= GUEST_END && (end <= RUNTIME_LOW || addr >= RUNTIME_LOW_END);
    addr >= GUEST_START && (is_usual || addr >= SANITIZERS.start && end <= SANITIZERS.end)
}

/// `addr` rounded down to a page boundary.
pub fn page_down(addr: u64) -> u64 {
    addr & !(PAGE - 1)
}

/// `addr` rounded up to a page boundary, `None` when that overflows.
pub fn page_up(addr: u64) -> Option<u64> {
    addr.checked_add(PAGE - 1).map(page_down)
}

/// `len` rounded up to whole pages, wrapping to 0 as in those system calls that do not check.
pub fn page_up_wrapping(len: u64) -> u64 {
    page_down(len.wrapping_add(PAGE - 1))
}

/// Whether `addr` is on a page boundary.
pub fn page_aligned(addr: u64) -> bool {
    addr & (PAGE - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_of_vcpus_lie_beside_everything_else() {
        for of in 1..=crate::par::MAX_VCPUS {
            let mut last = rights(of);
            for n in 0..of {
                let a = vcpu(n, of);
                assert!(a.rights + (64 << 20) + PAGE <= rights(n + 1));
                assert!(last <= a.table && a.table + VCPU_TABLE <= a.near_table);
                assert!(a.near_table + VCPU_TABLE <= a.cache);
                assert!(a.cache + (18 << 20) <= a.near);
                last = a.cache + a.cache_len;
                assert!(a.near + (9 << 20) <= last && last <= TABLE_START);
                assert!(a.cache & 0xfff == 0 && a.near & 0xfff == 0);
                assert!(!is_guest(a.rights, 1) && !is_guest(last - 1, 1));
            }
        }
    }

    #[test]
    fn runtime_ranges_are_not_guest() {
        assert!(is_guest(0x40_0000, 0x1000));
        assert!(is_guest(0x3fff_f000, 0x1000));
        assert!(!is_guest(0x3fff_f000, 0x1001));
        assert!(!is_guest(CACHE_START, 1));
        assert!(is_guest(RUNTIME_LOW_END, 1));
        assert!(!is_guest(0x6000_0000, 0x4000_0000));
        assert!(is_guest(GUEST_END - 1, 1));
        assert!(!is_guest(GUEST_END - 1, 2));
        assert!(is_guest(0x6000_0000_0000, 5 << 40) && !is_guest(0x6000_0000_0000, (5 << 40) + 1));
        assert!(!is_guest(0x5555_5555_4000, 1) && !is_guest(0x5fff_ffff_f000, 0x2000));
        assert!(!is_guest(u64::MAX, 2));
        assert!(!is_guest(0, 8));
    }
}

//! A hash of the guest's writable memory that is the same for equal contents, however the pages came to be.

use super::Space;
use super::vma::{Object, Vma};
use crate::guestmem;
use crate::layout::PAGE;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Present in memory, or swapped out: the page was touched.
const TOUCHED: u64 = 1 << 63 | 1 << 62;
/// Page map entries read at once.
const BATCH: usize = 4096;

impl<H> Space<H> {
    /// Writable mappings, in address order.
    pub fn writable_ranges(&self) -> impl Iterator<Item = &Vma> {
        self.vmas.iter().filter(|v| v.prot.write)
    }

    /// Hash over address and content of every writable page that is not all zeros. Untouched pages of anonymous
    /// memory are skipped without being touched. Needs the handler of [`guestmem`], since a mapping can reach
    /// beyond the end of its file.
    pub fn checksum(&self) -> u64 {
        let pagemap = File::open("/proc/self/pagemap").ok();
        let mut sum = Xxh3::new();
        let mut page = [0u8; PAGE as usize];
        for v in self.writable_ranges() {
            let known = pagemap.as_ref().filter(|_| v.object == Object::Anon);
            for range in touched(known, v.start..v.end) {
                let mut at = range.start;
                while at < range.end {
                    let there = crate::shared::replayed_page(&mut page, at)
                        || guestmem::copy_from_guest(&mut page, at).is_ok();
                    if there && page.iter().any(|&b| b != 0) {
                        sum.update(&at.to_le_bytes());
                        let hash = xxh3_64(&page);
                        crate::log!(crate::diag::Level::Trace, "page {at:#x} hash {hash:016x}");
                        sum.update(&hash.to_le_bytes());
                    }
                    at += PAGE;
                }
            }
        }
        sum.digest()
    }
}

/// Linux's `struct pm_scan_arg` (`linux/fs.h`, from 6.7 on).
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// `PAGE_IS_PRESENT | PAGE_IS_SWAPPED`
const PRESENT_OR_SWAPPED: u64 = 8 | 16;

/// The touched parts of `range`. Knows what is not there by the page table's upper levels, which counts for the terabytes that
/// AddressSanitizer reserves. `None`: the kernel cannot do that.
fn scan(pagemap: &File, range: &Range<u64>) -> Option<Vec<Range<u64>>> {
    let mut found = vec![Region::default(); 1024];
    let mut out: Vec<Range<u64>> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let mut arg = Scan {
            size: size_of::<Scan>() as u64,
            start: at,
            end: range.end,
            vec: found.as_mut_ptr() as u64,
            vec_len: found.len() as u64,
            category_anyof_mask: PRESENT_OR_SWAPPED,
            return_mask: PRESENT_OR_SWAPPED,
            ..Scan::default()
        };
        // SAFETY: live structs; the kernel writes no more regions than `vec_len`.
        let n = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
        let regions = found.get(..usize::try_from(n).ok()?)?;
        for r in regions {
            match out.last_mut() {
                Some(last) if last.end == r.start => last.end = r.end,
                _ => out.push(r.start..r.end),
            }
        }
        if arg.walk_end <= at {
            return None;
        }
        at = arg.walk_end;
    }
    Some(out)
}

/// The parts of `range` that may hold something, by the kernel's page map; all of it when that is not there.
fn touched(pagemap: Option<&File>, range: Range<u64>) -> Vec<Range<u64>> {
    let Some(file) = pagemap else {
        return vec![range];
    };
    if let Some(parts) = scan(file, &range) {
        return parts;
    }
    let mut out: Vec<Range<u64>> = Vec::new();
    let mut buf = vec![0u8; BATCH * 8];
    let mut at = range.start;
    while at < range.end {
        let pages = ((range.end - at) / PAGE).min(BATCH as u64);
        let bytes = &mut buf[..pages as usize * 8];
        if file.read_exact_at(bytes, at / PAGE * 8).is_err() {
            out.push(at..range.end);
            return out;
        }
        for (i, entry) in bytes.as_chunks::<8>().0.iter().enumerate() {
            if u64::from_le_bytes(*entry) & TOUCHED == 0 {
                continue;
            }
            let start = at + i as u64 * PAGE;
            match out.last_mut() {
                Some(last) if last.end == start => last.end += PAGE,
                _ => out.push(start..start + PAGE),
            }
        }
        at += pages * PAGE;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways to ask the kernel find what was touched.
    #[test]
    fn scanning_finds_what_the_page_map_says() {
        const LEN: u64 = 64 << 20;
        // SAFETY: a new mapping.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let p = libc::mmap(
                std::ptr::null_mut(),
                LEN as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            );
            assert_ne!(p, libc::MAP_FAILED);
            libc::madvise(p, LEN as usize, libc::MADV_NOHUGEPAGE);
            p as u64
        };
        let pages = [0, 1, 2, 700, 701, 9000, LEN / PAGE - 1];
        for page in pages {
            // SAFETY: within the mapping.
            unsafe { ((base + page * PAGE) as *mut u8).write_volatile(1) };
        }
        let expected: Vec<Range<u64>> = [(0, 3), (700, 702), (9000, 9001), (16383, 16384)]
            .map(|(a, b)| base + a * PAGE..base + b * PAGE)
            .to_vec();
        let map = File::open("/proc/self/pagemap").unwrap();
        if let Some(parts) = scan(&map, &(base..base + LEN)) {
            assert_eq!(parts, expected);
        }
        assert_eq!(touched(Some(&map), base..base + LEN), expected);
        // SAFETY: the mapping made above.
        unsafe { libc::munmap(base as *mut libc::c_void, LEN as usize) };
    }
}

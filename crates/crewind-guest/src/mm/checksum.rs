//! A hash of the guest's writable memory that is the same for equal contents, however the pages came to be.

use super::Space;
use super::vma::{Object, Vma};
use crate::guestmem;
use crate::layout::PAGE;
use std::fs::File;
use std::ops::Range;
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

/// The parts of `range` that may hold something, by the kernel's page map; all of it when that is not there.
fn touched(pagemap: Option<&File>, range: Range<u64>) -> Vec<Range<u64>> {
    let Some(file) = pagemap else {
        return vec![range];
    };
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

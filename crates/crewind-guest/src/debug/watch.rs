//! Watched memory.
//!
//! What instructions access is seen by the translator's checks of rights: granules with watched bytes are forbidden, and
//! an instruction that touches one is looked at more closely. What events write (system calls, frames of signals) is
//! seen by comparing before and after.

use super::wire::{Access, Place, Watch};
use super::{Active, Debugger};
use crate::layout;
use crate::runtime::Runtime;
use crate::start::Failure;
use crewind_x86::CheckedRange;
use crewind_x86::rights::{GRANULE, NO_READ, NO_WRITE, RIGHTS_LEN, RIGHTS_SLACK, index};

/// Longest range that is compared at events; beyond, only accesses of instructions are seen.
const COMPARED: u64 = 64 << 10;

/// What the watched ranges hold.
pub(super) fn values(watches: &[Watch]) -> Vec<Vec<u8>> {
    watches.iter().map(value).collect()
}

fn value(w: &Watch) -> Vec<u8> {
    if w.len > COMPARED {
        return Vec::new();
    }
    crate::guestmem::copy_of_guest(w.addr, w.len as usize).unwrap_or_default()
}

/// The watch that an instruction which accesses `ranges` is about.
pub(super) fn wanted(watches: &[Watch], ranges: &[CheckedRange]) -> Option<Watch> {
    watches
        .iter()
        .find(|w| {
            ranges.iter().any(|r| {
                w.access.wants(r.read, r.write)
                    && r.addr < w.addr.saturating_add(w.len)
                    && w.addr < r.addr.saturating_add(r.len)
            })
        })
        .copied()
}

/// A thread has moved from `before` to `here`: the watched memory that was accessed on the way.
pub(super) fn touched(
    a: &mut Active,
    watches: &[Watch],
    here: Place,
    before: Place,
) -> Option<Watch> {
    let by_instruction = a.touching.take().map(|(_, w)| w);
    if watches.is_empty() {
        return None;
    }
    if by_instruction.is_none() && here.point.event == before.point.event {
        return None;
    }
    let now = values(watches);
    let changed = watches
        .iter()
        .zip(now.iter().zip(&a.values))
        .find(|(w, (now, was))| w.access != Access::Read && now != was)
        .map(|(w, _)| *w);
    a.values = now;
    by_instruction.or(changed)
}

impl Runtime {
    /// Makes the translator look out for exactly these ranges.
    pub(super) fn set_watches(&mut self, d: &mut Debugger, watches: Vec<Watch>) {
        let base = layout::rights(0);
        if watches == d.watches {
            return;
        }
        if d.checking == watches.is_empty() {
            let rights = if d.checking {
                None
            } else {
                map_table(base);
                Some(base)
            };
            if let Err(e) = self.check_rights(rights) {
                crate::report::fail(
                    Failure::Internal,
                    format_args!("memory cannot be watched: {e}"),
                );
            }
            d.checking = rights.is_some();
        }
        // SAFETY: the table is mapped and nobody's but ours; `index` is less than its length.
        let set = |at: usize, f: &dyn Fn(u8) -> u8| unsafe {
            let p = (base as usize + at) as *mut u8;
            *p = f(*p);
        };
        for at in d.forbidden.drain(..) {
            set(at, &|_| 0);
        }
        for w in &watches {
            let bits = match w.access {
                Access::Write => NO_WRITE,
                Access::Read | Access::Any => NO_READ | NO_WRITE,
            };
            let (first, last) = (w.addr / GRANULE, (w.addr + w.len.max(1) - 1) / GRANULE);
            for g in first..=last.min(first + RIGHTS_LEN as u64 - 1) {
                let at = index(g * GRANULE);
                set(at, &|v| v | bits);
                d.forbidden.push(at);
            }
        }
        d.watches = watches;
    }

    fn check_rights(&mut self, rights: Option<u64>) -> std::io::Result<()> {
        match self.par {
            Some(par) => par.each_cache(|c| c.set_rights(rights)),
            None => self.cache.set_rights(rights),
        }
    }

    /// The process has other caches from now on: they stop where the debugger wants it.
    pub(crate) fn new_caches(&mut self) {
        let Some(mut d) = self.debug.take() else {
            return;
        };
        if d.checking {
            // The table is there.
            if let Err(e) = self.check_rights(Some(layout::rights(0))) {
                crate::report::fail(
                    Failure::Internal,
                    format_args!("memory cannot be watched: {e}"),
                );
            }
        }
        let breaks = std::mem::take(&mut d.breaks);
        self.set_breaks(&mut d, breaks);
        self.debug = Some(d);
    }

    /// Makes the translator stop in front of exactly these instructions.
    pub(super) fn set_breaks(&mut self, d: &mut Debugger, breaks: Vec<u64>) {
        match self.par {
            Some(par) => {
                let set = par.each_cache(|c| {
                    c.set_breaks(&breaks);
                    Ok(())
                });
                debug_assert!(set.is_ok());
            }
            None => self.cache.set_breaks(&breaks),
        }
        d.breaks = breaks;
    }
}

/// Maps the table of rights, in which everything is allowed.
fn map_table(base: u64) {
    // SAFETY: a place of the runtime's that nothing else uses while replaying; if it is mapped already, it is this table,
    // and stays.
    unsafe {
        libc::mmap(
            base as *mut libc::c_void,
            RIGHTS_LEN + RIGHTS_SLACK,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_counts() {
        let watch = |addr, len, access| Watch { addr, len, access };
        let write = |addr, len| CheckedRange {
            addr,
            len,
            write: true,
            read: false,
        };
        let w = [
            watch(100, 4, Access::Write),
            watch(200, 8, Access::Read),
            watch(300, 1, Access::Any),
        ];
        assert_eq!(wanted(&w, &[write(104, 8)]), None);
        assert_eq!(wanted(&w, &[write(96, 5)]), Some(w[0]));
        assert_eq!(wanted(&w, &[write(200, 8)]), None);
        assert_eq!(wanted(&w, &[write(0, 8), write(300, 8)]), Some(w[2]));
        let read = CheckedRange {
            read: true,
            write: false,
            ..write(100, 200)
        };
        assert_eq!(wanted(&w, &[read]), Some(w[1]));
    }
}

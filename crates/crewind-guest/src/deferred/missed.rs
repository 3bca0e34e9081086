//! Branches that the processor predicted wrongly, where it counts them: `missedBranchNum` of the list of `rec_owner` calls.
//!
//! They are for information: nothing else depends on them, and most virtual machines and containers have no such counter.

use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fds::FdTable;
use crate::start::{CloseOnExec, dup_high};

/// From here on it lies, with others of the runtime's, where guests do not look for theirs.
const HIGH: RawFd = 900;

/// It was tried, and there is none.
static MISSING: AtomicBool = AtomicBool::new(false);

/// A thread's counter, from its first call in a region on until the region's end.
#[derive(Debug, Default)]
pub struct Counter(Option<OwnedFd>);

/// The beginning of `struct perf_event_attr` (linux/perf_event.h), which the kernel takes for all of it.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    config1: u64,
}

const HARDWARE: u32 = 0;
const BRANCH_MISSES: u64 = 5;
/// Bits of `flags`: what the kernel and a hypervisor do is not counted.
const EXCLUDE_KERNEL: u64 = 1 << 5;
const EXCLUDE_HYPERVISOR: u64 = 1 << 6;
const CLOEXEC: u64 = 8;

/// Opens a counter of the calling thread.
fn open(kind: u32, config: u64) -> std::io::Result<OwnedFd> {
    let attributes = Attributes {
        kind,
        size: size_of::<Attributes>() as u32,
        config,
        flags: EXCLUDE_KERNEL | EXCLUDE_HYPERVISOR,
        ..Attributes::default()
    };
    // SAFETY: reads a live struct of the size that it says.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            0,
            -1,
            -1,
            CLOEXEC,
        )
    };
    match RawFd::try_from(fd) {
        // SAFETY: just made, owned by nobody else.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The counter's value; None when it does not count.
fn value(fd: &OwnedFd) -> Option<u64> {
    let mut value = [0u8; 8];
    // SAFETY: room for eight bytes.
    let n = unsafe { libc::read(fd.as_raw_fd(), value.as_mut_ptr().cast(), 8) };
    (n == 8).then(|| u64::from_ne_bytes(value))
}

impl Counter {
    /// The calling thread's count since its first call of this. 0 without a counter.
    pub(super) fn read(&mut self, fds: &mut FdTable) -> u64 {
        if self.0.is_none() && !MISSING.load(Ordering::Relaxed) {
            let opened = open(HARDWARE, BRANCH_MISSES).and_then(|low| {
                let high = dup_high(low.as_raw_fd(), HIGH, CloseOnExec::Yes)?;
                // SAFETY: just made, owned by nobody else.
                Ok(unsafe { OwnedFd::from_raw_fd(high) })
            });
            match opened {
                Ok(fd) => {
                    fds.add_own(fd.as_raw_fd());
                    self.0 = Some(fd);
                }
                Err(_) => MISSING.store(true, Ordering::Relaxed),
            }
        }
        self.0.as_ref().and_then(value).unwrap_or(0)
    }

    /// It is not needed any more.
    pub(super) fn close(&mut self, fds: &mut FdTable) {
        if let Some(fd) = self.0.take() {
            fds.remove_own(fd.as_raw_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel takes the struct: a counter of processor time works everywhere where the call is allowed.
    #[test]
    fn a_counter_that_there_is_counts() {
        const SOFTWARE: u32 = 1;
        const TASK_CLOCK: u64 = 1;
        match open(SOFTWARE, TASK_CLOCK) {
            Ok(fd) => {
                let first = value(&fd).expect("a value");
                let mut x = 1u64;
                for _ in 0..1_000_000 {
                    x = std::hint::black_box(x.wrapping_mul(3));
                }
                assert!(value(&fd).expect("a value") > first);
            }
            // Containers often refuse it.
            Err(e) => assert!(
                matches!(
                    e.raw_os_error(),
                    Some(libc::EPERM | libc::EACCES | libc::ENOSYS)
                ),
                "{e}"
            ),
        }
    }

    #[test]
    fn without_a_counter_there_is_nothing() {
        let mut fds = FdTable::new([(0, 0); 3], Vec::new());
        let mut counter = Counter::default();
        let first = counter.read(&mut fds);
        let second = counter.read(&mut fds);
        assert!(first <= second);
        assert_eq!(fds.own().len(), usize::from(counter.0.is_some()));
        counter.close(&mut fds);
        assert!(fds.own().is_empty());
    }
}

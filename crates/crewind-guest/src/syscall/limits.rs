//! Resource limits that must not hit the runtime: it lives in the guest's process, and keeps its files and memory
//! there.
//!
//! - The hard limits of file size and descriptors are kept here and not in the kernel, so that the runtime can lift
//!   the soft ones while it makes a file of its own (`crewind_trace` does). The soft ones are the kernel's.
//! - The limit of address space is kept here alone: the runtime's reserved ranges are larger than what guests ask for.

use super::{Call, Logged, capture};
use crate::guestmem;
use crate::runtime::{Flow, Runtime};
use crate::thread::Thread;
use serde::{Deserialize, Serialize};

/// Limits as the guest sees them, where that is not what the kernel has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Hard limit of file size.
    file_size: Option<u64>,
    /// Hard limit of descriptors.
    descriptors: Option<u64>,
    /// Hard limit of address space.
    space_hard: Option<u64>,
    /// Soft limit of address space.
    space: Option<u64>,
}

impl Limits {
    fn hard(&mut self, resource: u32) -> Option<&mut Option<u64>> {
        match resource {
            libc::RLIMIT_FSIZE => Some(&mut self.file_size),
            libc::RLIMIT_NOFILE => Some(&mut self.descriptors),
            libc::RLIMIT_AS => Some(&mut self.space_hard),
            _ => None,
        }
    }

    /// Notes the soft limit of address space.
    pub fn set_space(&mut self, soft: u64) {
        self.space = Some(soft);
    }
}

impl Runtime {
    /// Recording: `getrlimit`, `setrlimit` and `prlimit64` of this process for those limits.
    pub(super) fn limit_call(&mut self, th: &mut Thread, call: &Call) -> Option<Flow> {
        if !self.recording() {
            return None;
        }
        let [a, b, c, d, ..] = call.args;
        let (resource, new, old) = match i64::from(call.nr) {
            libc::SYS_getrlimit => (a, 0, b),
            libc::SYS_setrlimit => (a, b, 0),
            libc::SYS_prlimit64 if call.int(0) == 0 || call.int(0) == self.pid => (b, c, d),
            _ => return None,
        };
        let resource = u32::try_from(resource).ok()?;
        self.limits.hard(resource)?;
        let mut l = Logged::default();
        match self.set_limit(resource, new) {
            Ok((soft, hard)) => {
                if old != 0 || i64::from(call.nr) == libc::SYS_getrlimit {
                    let bytes = [soft.to_le_bytes(), hard.to_le_bytes()].concat();
                    if self.put_guest(old, &bytes) {
                        l.outs.extend(capture(old, 16));
                    } else {
                        l.ret = -i64::from(libc::EFAULT);
                    }
                }
            }
            Err(errno) => l.ret = -i64::from(errno),
        }
        let ret = l.ret;
        self.complete(th, call, l);
        self.follow_up(th, call, ret);
        Some(Flow::Go)
    }

    /// Sets a limit to what is at `new`, if anything. Returns what the guest had before.
    fn set_limit(&mut self, resource: u32, new: u64) -> Result<(u64, u64), i32> {
        let kernel = get(resource);
        let is_space = resource == libc::RLIMIT_AS;
        let soft = self
            .limits
            .space
            .filter(|_| is_space)
            .unwrap_or(kernel.rlim_cur);
        let known = self.limits.hard(resource).and_then(|h| *h);
        let hard = known.unwrap_or(kernel.rlim_max);
        if new == 0 {
            return Ok((soft, hard));
        }
        let read = |at| guestmem::read_u64(at).map_err(|_| libc::EFAULT);
        let (want, want_hard) = (read(new)?, read(new + 8)?);
        if want > want_hard {
            return Err(libc::EINVAL);
        }
        // SAFETY: returns a number.
        let privileged = || unsafe { libc::geteuid() } == 0;
        if want_hard > hard && want_hard <= kernel.rlim_max && !privileged() {
            return Err(libc::EPERM);
        }
        let wanted = libc::rlimit {
            rlim_cur: if is_space { kernel.rlim_cur } else { want },
            rlim_max: kernel.rlim_max.max(want_hard),
        };
        // SAFETY: a live struct.
        if unsafe { libc::setrlimit(resource, &raw const wanted) } != 0 {
            return Err(crate::errno::Errno::last().0);
        }
        if let Some(known) = self.limits.hard(resource) {
            *known = Some(want_hard);
        }
        Ok((soft, hard))
    }

    /// A call that would map more than the limit of address space allows gets the kernel's answer.
    pub(super) fn over_address_space(&mut self, th: &mut Thread, call: &Call) -> Option<Flow> {
        let limit = self.limits.space.filter(|limit| *limit != u64::MAX)?;
        let [a, b, c, ..] = call.args;
        let more = match i64::from(call.nr) {
            libc::SYS_mmap => b,
            libc::SYS_mremap => c.saturating_sub(b),
            libc::SYS_brk => a.saturating_sub(self.space.brk(0).result.unwrap_or(a)),
            _ => 0,
        };
        if more == 0 || self.space.mapped_bytes().saturating_add(more) <= limit {
            return None;
        }
        let ret = match i64::from(call.nr) {
            libc::SYS_brk => self.space.brk(0).result.map_or(0, |end| end as i64),
            _ => -i64::from(libc::ENOMEM),
        };
        Some(self.emulated(th, call, ret))
    }
}

fn get(resource: u32) -> libc::rlimit {
    let mut l = libc::rlimit {
        rlim_cur: u64::MAX,
        rlim_max: u64::MAX,
    };
    // SAFETY: the kernel fills the struct.
    unsafe { libc::getrlimit(resource, &raw mut l) };
    l
}

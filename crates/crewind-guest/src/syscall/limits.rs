//! Resource limits that must not hit the runtime: it lives in the guest's process, and keeps its files and memory
//! there.
//!
//! - The hard limits of file size and descriptors are kept here and not in the kernel, so that the runtime can lift
//!   the soft ones while it makes a file of its own (`crewind_trace` does). The soft ones are the kernel's, but that of descriptors
//!   stays a little below what the kernel has as the hard one: else a guest may use up all that there can be.
//! - The limits of address space and of data are kept here alone: the runtime's reserved ranges are larger than what guests ask
//!   for, and its heap is data. (That memory which becomes writable later counts as data too is left to the kernel, which has no
//!   limit then.)

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
    /// Soft limit of descriptors.
    descriptors_soft: Option<u64>,
    /// Hard limit of address space.
    space_hard: Option<u64>,
    /// Soft limit of address space.
    space: Option<u64>,
    /// Hard limit of data.
    data_hard: Option<u64>,
    /// Soft limit of data.
    data: Option<u64>,
}

impl Limits {
    fn hard(&mut self, resource: u32) -> Option<&mut Option<u64>> {
        match resource {
            libc::RLIMIT_FSIZE => Some(&mut self.file_size),
            libc::RLIMIT_NOFILE => Some(&mut self.descriptors),
            libc::RLIMIT_AS => Some(&mut self.space_hard),
            libc::RLIMIT_DATA => Some(&mut self.data_hard),
            _ => None,
        }
    }

    /// The soft limit, if it is one that the kernel does not have as the guest sees it.
    fn own_soft(&mut self, resource: u32) -> Option<&mut Option<u64>> {
        match resource {
            libc::RLIMIT_AS => Some(&mut self.space),
            libc::RLIMIT_DATA => Some(&mut self.data),
            libc::RLIMIT_NOFILE => Some(&mut self.descriptors_soft),
            _ => None,
        }
    }

    /// Recording: a process begins with the kernel's limits.
    pub fn keep_some_descriptors(&mut self) {
        let kernel = get(libc::RLIMIT_NOFILE);
        let most = most_descriptors(kernel.rlim_max);
        if self.descriptors_soft.is_some() || kernel.rlim_cur <= most {
            return;
        }
        let lower = libc::rlimit {
            rlim_cur: most,
            ..kernel
        };
        // SAFETY: a live struct.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const lower) } == 0 {
            self.descriptors_soft = Some(kernel.rlim_cur);
        }
    }

    /// Notes a soft limit that the guest has set.
    pub fn note_soft(&mut self, resource: u32, soft: u64) {
        if let Some(own) = self.own_soft(resource) {
            *own = Some(soft);
        }
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
        let own = self.limits.own_soft(resource).map(|soft| *soft);
        let soft = own.flatten().unwrap_or(kernel.rlim_cur);
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
        let max = kernel.rlim_max.max(want_hard);
        let wanted = libc::rlimit {
            rlim_cur: match resource {
                libc::RLIMIT_AS | libc::RLIMIT_DATA => kernel.rlim_cur,
                libc::RLIMIT_NOFILE => want.min(most_descriptors(max)),
                _ => want,
            },
            rlim_max: max,
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

    /// A call that would map more than the limits of address space and of data allow gets the kernel's answer.
    pub(super) fn over_limit(&mut self, th: &mut Thread, call: &Call) -> Option<Flow> {
        let finite = |limit: Option<u64>| limit.filter(|limit| *limit != u64::MAX);
        let (space, data) = (finite(self.limits.space), finite(self.limits.data));
        if space.is_none() && data.is_none() {
            return None;
        }
        let [a, b, c, d, ..] = call.args;
        let more = match i64::from(call.nr) {
            libc::SYS_mmap => b,
            libc::SYS_mremap => c.saturating_sub(b),
            libc::SYS_brk => a.saturating_sub(self.space.brk(0).result.unwrap_or(a)),
            _ => 0,
        };
        let is_data = match i64::from(call.nr) {
            libc::SYS_mmap => {
                c as i32 & libc::PROT_WRITE != 0
                    && d as i32 & (libc::MAP_SHARED | libc::MAP_GROWSDOWN) == 0
            }
            libc::SYS_mremap => {
                (self.space.find(a)).is_some_and(|v| v.prot.write && !v.flags.shared)
            }
            _ => true,
        };
        let is_over = |limit: Option<u64>, now: u64| {
            limit.is_some_and(|limit| now.saturating_add(more) > limit)
        };
        if more == 0
            || !(is_over(space, self.space.mapped_bytes())
                || is_data && is_over(data, self.space.data_bytes()))
        {
            return None;
        }
        let ret = match i64::from(call.nr) {
            libc::SYS_brk => self.space.brk(0).result.map_or(0, |end| end as i64),
            _ => -i64::from(libc::ENOMEM),
        };
        Some(self.emulated(th, call, ret))
    }
}

/// What a guest may have of so many descriptors: the runtime needs a few.
fn most_descriptors(of: u64) -> u64 {
    of - (of / 8).min(64)
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

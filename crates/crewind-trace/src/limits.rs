//! A recorded process makes files of the trace, but has the guest's limits.

/// While this lives, the process's soft limits of file size and of descriptors are as high as they may be. A guest's
/// thread that is inside the kernel meanwhile has them too; none can ask for them.
pub struct LiftedLimits {
    was: [Option<libc::rlimit>; 2],
}

const LIFTED: [libc::__rlimit_resource_t; 2] = [libc::RLIMIT_FSIZE, libc::RLIMIT_NOFILE];

impl LiftedLimits {
    /// Lifts them, where they are lower.
    #[allow(clippy::new_without_default, reason = "making one has an effect")]
    pub fn new() -> Self {
        LiftedLimits {
            was: LIFTED.map(|resource| {
                let mut was = libc::rlimit {
                    rlim_cur: 0,
                    rlim_max: 0,
                };
                // SAFETY: live structs.
                unsafe {
                    if libc::getrlimit(resource, &raw mut was) != 0 || was.rlim_cur >= was.rlim_max
                    {
                        return None;
                    }
                    let high = libc::rlimit {
                        rlim_cur: was.rlim_max,
                        ..was
                    };
                    (libc::setrlimit(resource, &raw const high) == 0).then_some(was)
                }
            }),
        }
    }
}

impl Drop for LiftedLimits {
    fn drop(&mut self) {
        for (resource, was) in LIFTED.into_iter().zip(&self.was) {
            if let Some(was) = was {
                // SAFETY: a live struct.
                unsafe { libc::setrlimit(resource, was) };
            }
        }
    }
}

//! The guest's address space.
//!
//! The runtime chooses the address of every guest mapping, as a function of the mappings there are, so that a
//! replay that makes the same calls gets the same addresses whatever its host does. [`vma`] is the pure
//! bookkeeping, [`host`] the system calls, [`Space`] brings both together with the rules of each call.
//!
//! Knows nothing about traces or events: in replay the same functions are called with the same arguments, and
//! only the [`Backing`] differs.

mod advice;
mod checksum;
mod code;
pub mod host;
mod maps;
mod remap;
mod shm;
mod space;
#[cfg(test)]
mod tests;
pub mod vma;

pub use code::WriteFault;
pub use shm::ShmSource;
pub use space::{Access, Backing, MmapArgs, Placement, Space, SpaceFacts};
pub use vma::{FileId, FileMap, Object, Prot, Role, Vma, VmaFlags};

use crate::errno::Errno;
use std::ops::Range;

/// What the caller has to do after a call, also after one that failed half way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "translations of these ranges are stale"]
pub struct Effects {
    /// Translations of these guest ranges (page multiples) are no longer valid.
    pub invalidate: Vec<Range<u64>>,
    /// The host has no more mappings (`vm.max_map_count`), and memory that the guest may write stays read-only.
    /// The caller cannot go on: it says so and names the limit.
    pub out_of_mappings: bool,
}

/// Result of a call that changes the address space.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Outcome<T> {
    /// What the guest sees.
    pub result: Result<T, Errno>,
    /// What the caller has to do in either case.
    pub effects: Effects,
}

impl<T> Outcome<T> {
    fn fail(errno: i32) -> Self {
        Outcome {
            result: Err(Errno(errno)),
            effects: Effects::default(),
        }
    }
}

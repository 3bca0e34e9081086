//! The CREW protocol of crewind: which vcpu may touch which memory, and which order of threads the log must say.
//!
//! Threads are recorded while they run in parallel. A granule of memory may be read by several vcpus or written by one
//! (concurrent read, exclusive write; SMP-ReVirt, Dunlap et al., VEE 2008). Whoever needs more takes it from the others,
//! and logs an *edge* for each: "before this thread goes on from here, thread T must have left clock C behind or reached
//! its event S". Replay waits for the edges, needs no rights, and gets every conflicting access in the recorded order.
//!
//! This crate decides; it does nothing. It has no unsafe code, no system calls, no threads and no clock, so all of it
//! runs in a model of the mechanism, in all interleavings (`model`, in the tests). The mechanism (`crewind-guest`, `par`:
//! tables of rights, requests, protection keys, the log) tells it facts and does what comes out.
//!
//! - [`Class`]: the rights of all vcpus to a granule. [`Claim`]: what one vcpu's wish makes of them.
//! - [`Pages`]: edges that are kept with pages of granules, and how far a claim reaches.
//! - [`Wish`]: how a granule that is fought over is best taken, and when it is best given back.
//! - [`Streams`]: which way a thread goes through memory, and so how much more it will want.
//! - [`Point`]: what lies behind all that a thread did with the rights that are taken from it.
//! - [`Known`]: what a thread waits for already, so that it need not be logged.
//!
//! # Why nothing is missed
//!
//! Let x and y be conflicting accesses of threads u and t to a granule, x first, on different vcpus. When x happened, u's
//! vcpu had a right to it; when y happened, t's vcpu had one, and not both may have them at once when one writes. So the
//! right of u's vcpu was taken in between, where its thread stood at a point behind x. That point went to the taker.
//!
//! *The taker goes on to y*, or to an access of its own, before which it logs the edge: what is taken from it later is
//! taken at a point behind that.
//!
//! *The taker does not come to use what it got*: a part of what it wants is held by a busy vcpu, and somebody takes the
//! rest away again; or the world is stopped. Then its log does not say yet what it waits for, and an edge to its
//! position orders nothing of u. So a [`Point`] has the edges that are not logged.
//!
//! *The taker does not even get it*: of several readers one is busy, and those before it have lost their right.
//! Nobody has those edges, so they stay with the page ([`Pages::lost`]).
//!
//! *A writer that becomes a reader* gives its edge to the reader that took the right to write. Others that join later
//! find it with the page. So does whoever writes, and a reader that has the granule for itself, and so may
//! write to it without asking: that one takes the edges of lost readers as well ([`Pages::joined`]).
//!
//! *A right is given back unasked*, at any time at which its vcpu's thread is out of translated code: all of it, or the
//! right to write. The position stays with the page, as that of a writer that became a reader: nobody else has it.
//!
//! *On one vcpu* x and y are ordered by hand-overs of the vcpu: the taker has the last holder's point.
//!
//! *The reduction* drops an edge only if the thread waits for the same point or a later one already. Both components
//! must be covered: a thread passes points (5, 3), (5, 4), (6, 4), and who left the first behind says nothing of the others.

#![forbid(unsafe_code)]

mod claim;
mod edges;
#[cfg(test)]
mod model;
mod nature;
mod page;
mod region;
mod streams;

pub use claim::{Claim, Class, NONE, READ, WRITE};
pub use edges::{Ends, Known, Point};
pub use nature::{Later, Wish};
pub use page::{PAGE, Pages};
pub use streams::Streams;

/// A protocol that is wrong in one way: the model has to find each.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mutant {
    /// A point has no edges but the position.
    PointWithoutEdges,
    /// Edges of a claim that failed half way are dropped.
    LostForgotten,
    /// A writer that became a reader is known to who took its right only.
    WriterForgotten,
    /// Who gives a right back unasked is forgotten.
    GivenBackForgotten,
    /// A reader alone with a granule may write to it, and does not take the edges of readers that lost it.
    AloneWithoutReaders,
    /// A new holder of a vcpu does not take the last one's point.
    VcpuWithoutPoint,
    /// Who reads takes the right to write, and leaves the readers theirs.
    WritersBesideReaders,
    /// An edge that is covered in one component is dropped.
    ReducedByHalf,
}

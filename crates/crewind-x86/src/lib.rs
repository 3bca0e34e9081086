//! The translator: guest code to code cache, with an exact branch clock.
//!
//! Knows nothing about traces, system calls or signals: it runs guest code until something happens that its
//! caller has to see, and can give the guest's exact state at any instruction of the cache.

mod api;
mod cache;
mod checks;
pub mod cpuid;
pub mod ctx;
mod emit;
pub mod fpu;
mod guard;
mod index;
pub mod insn;
mod liveness;
mod poke;
mod recover;
mod rep;
pub mod rights;
mod run;
mod signals;
mod sites;
mod stubs;
mod table;
pub mod touch;
mod translate;

pub use api::{
    CodeSource, Config, Exit, FetchFault, HotState, Options, Recovered, RecoveredKind, Stats,
    set_guest_fs_base,
};
pub use cache::CodeCache;
pub use insn::{GuestMemory, InsnExit, InsnFault, InsnKind, InsnResult};
pub use poke::Poke;
pub use rights::CheckedRange;

/// The arithmetic flags at `pc` that are overwritten before anything can read them, as in the flags register. Where
/// guest state is shown (faults, ticks) such flags are zeros.
pub fn dead_flags(pc: u64, bytes: &[u8]) -> u64 {
    liveness::dead_flags(
        pc,
        bytes,
        insn::decoder_options(),
        liveness::Faults::ShowZeros,
    )
}

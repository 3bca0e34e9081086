//! Making another thread leave translated code, through the cells of the cache that it runs.
//!
//! Unlike `Ctx::request_stop` this does not touch the other thread's context, so that it is right whoever runs the
//! cache at the moment, and also when that thread ends meanwhile: the cells stay mapped as long as the cache.
//!
//! It does not go through the clock either. In a short loop the clock's updates follow each other so fast that each
//! takes the value of the one before out of the store buffer, and what another processor stores to the clock is
//! overwritten unseen, for millions of rounds. So ticks of such a cache look at a cell of its own, that they only read.

use std::sync::atomic::{AtomicU32, Ordering};

/// Where to poke. Valid as long as its cache lives.
#[derive(Clone, Copy, Debug)]
pub struct Poke {
    pub(crate) flag: usize,
}

impl Poke {
    /// Asks whoever runs the cache to leave it with `Exit::Tick` at the next tick. Nobody there: the next one to run it
    /// leaves at its first tick.
    pub fn now(&self) {
        // SAFETY: cells of a cache that lives (contract of the type); accessed with atomics here and plain moves there.
        unsafe {
            AtomicU32::from_ptr(self.flag as *mut u32).store(0, Ordering::SeqCst);
        }
    }
}

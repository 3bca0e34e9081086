//! The hot per-thread context that translated code addresses as `fs:[constant]`.

use crate::recover::Owed;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

/// Number of general-purpose registers.
pub const GPRS: usize = 16;

/// Counters of the clock; the clock is their sum. Ticks take turns on them by where they stand in the code: each adds to
/// what the last one on its counter stored, and code with a tick every dozen instructions waited for that chain more than
/// for anything else (sqlite 2.7 times native with one counter, 2.1 with two or four; more gain nothing).
pub const COUNTERS: usize = 4;

/// Guest vector state while the thread is in the runtime. x87/MMX state stays in the host registers: runtime
/// code never uses it.
#[repr(C, align(64))]
pub struct VecState {
    /// zmm0..zmm31 (only ymm/xmm parts are used on lesser cpus).
    pub zmm: [[u8; 64]; 32],
    /// k0..k7.
    pub k: [u64; 8],
}

/// Per-thread context, a thread-local of the executable and so at one constant offset from FS in every
/// thread. Translated code keeps the clock and its scratch values here; `gpr`, `rip`, `rflags`, `vec` hold
/// the guest's state whenever the thread is not in translated code.
#[repr(C, align(64))]
pub struct Ctx {
    /// Ticks counted by each counter minus its share of the budget; negative until the share is used up.
    pub clk: [i64; COUNTERS],
    /// The clock minus the sum of `clk`.
    pub limit: u64,
    /// Scratch slots that translated code spills guest registers to.
    pub scratch: [u64; 8],
    /// Target of the indirect transfer under way.
    pub target: u64,
    /// Why translated code was left; see `Exit`.
    pub exit_kind: u32,
    /// Argument of the exit (link number, instruction kind).
    pub exit_arg: u32,
    /// Runtime stack pointer while translated code runs.
    pub host_rsp: u64,
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8..r15.
    pub gpr: [u64; GPRS],
    /// Guest pc.
    pub rip: u64,
    /// Guest flags.
    pub rflags: u64,
    /// Guest MXCSR.
    pub mxcsr: u32,
    /// 1 while the thread's pc may be in translated code or its entry and exit stubs.
    pub in_guest: u32,
    /// Guest FS base (held in the GS base while translated code runs).
    pub fs_base: u64,
    /// Count at which `Exit::Tick` is due. The budget of `clk` reaches as far towards it as is safe.
    pub tick_at: u64,
    /// 1 from `stop_at_next_tick` until `run` returns `Exit::Tick`.
    pub stop: u32,
    /// Address of the counters that are in force instead of `clk`, or 0: translated code of a cache with cells at a fixed
    /// address keeps it there while it runs.
    pub(crate) live_clk: u64,
    /// Number of the check that `run` passes, plus 1, or 0: see `CodeCache::pass_check`.
    pub passed_check: u32,
    /// What `disarm` of the cells is to be; see `sites`.
    pub(crate) disarm: u32,
    /// Low half of the pc at which an event site leaves translated code.
    pub(crate) armed_pc: u32,
    /// Generation of the cache that the check belongs to.
    pub passed_generation: u64,
    /// Count at which event sites leave translated code.
    pub(crate) armed: Option<u64>,
    /// MXCSR of the runtime while translated code runs.
    pub host_mxcsr: u32,
    /// Rights to protection keys with which translated code of a cache with `Config::pkru` runs.
    pub pkru: u32,
    /// Guest vector registers.
    pub vec: VecState,
}

impl Ctx {
    /// A zeroed context.
    pub const fn new() -> Self {
        Ctx {
            clk: [0; COUNTERS],
            limit: 0,
            scratch: [0; 8],
            target: 0,
            exit_kind: 0,
            exit_arg: 0,
            host_rsp: 0,
            gpr: [0; GPRS],
            rip: 0,
            rflags: 0x202,
            mxcsr: 0x1f80,
            in_guest: 0,
            fs_base: 0,
            tick_at: u64::MAX,
            stop: 0,
            live_clk: 0,
            passed_check: 0,
            disarm: crate::sites::NEVER,
            armed_pc: 0,
            passed_generation: 0,
            armed: None,
            host_mxcsr: 0x1f80,
            pkru: 0,
            vec: VecState {
                zmm: [[0; 64]; 32],
                k: [0; 8],
            },
        }
    }

    /// Where the counters are now.
    fn counters(ctx: *mut Ctx) -> *mut [i64; COUNTERS] {
        // SAFETY: callers pass a valid context; the address is 0 or that of a cache that lives on.
        unsafe {
            match (*ctx).live_clk {
                0 => &raw mut (*ctx).clk,
                live => live as *mut [i64; COUNTERS],
            }
        }
    }

    /// Transfers counted so far. Exact also while a stop is requested. Of a thread that is running translated code it may be some
    /// ticks ahead: loops count several rounds at once.
    pub fn clock(&self) -> u64 {
        let counters = Ctx::counters(std::ptr::from_ref(self).cast_mut()).cast::<i64>();
        (0..COUNTERS).fold(self.limit, |sum, n| {
            // SAFETY: one of the counters, which are valid; translated code may be writing to it.
            let c = unsafe { counters.add(n).read_volatile() };
            sum.wrapping_add(c as i32 as i64 as u64)
        })
    }

    /// Sets the clock (start of a thread, fork, restore); the limit stays.
    pub fn set_clock(&mut self, count: u64) {
        let tick_at = self.tick_at;
        self.rebase(count, tick_at);
    }

    /// Asks for `Exit::Tick` at the tick that makes the count `>= count`.
    pub fn set_limit(&mut self, count: u64) {
        let now = self.clock();
        self.rebase(now, count);
    }

    /// Asks for `Exit::Tick` at the next tick. Async-signal-safe; see `CodeCache::note_stop` for the one on the
    /// thread's own handler. Another thread calls `request_stop`.
    pub fn stop_at_next_tick(&mut self) {
        // SAFETY: a valid reference.
        unsafe { Ctx::request_stop(self) }
    }

    /// As `stop_at_next_tick`, for a context that another thread may be running on. The owner's next update can lose
    /// the request (never the count): ask again.
    ///
    /// # Safety
    /// `ctx` is valid.
    pub unsafe fn request_stop(ctx: *mut Ctx) {
        let counters = Ctx::counters(ctx).cast::<i64>();
        // SAFETY: valid and naturally aligned; the runtime accesses it atomically where it matters.
        unsafe { AtomicU32::from_ptr(&raw mut (*ctx).stop) }.store(1, Ordering::SeqCst);
        for n in 0..COUNTERS {
            // SAFETY: one of the counters, valid and naturally aligned; translated code accesses them with plain moves.
            let counter = unsafe { AtomicI64::from_ptr(counters.add(n)) };
            // With the low half at -1 the counter's next tick reaches the limit anyway, and its carry would make the upper
            // half 1, which the flag-free check does not see.
            let _ = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |v| {
                (v < 0 && v as i32 != -1).then_some(v & 0xffff_ffff)
            });
        }
    }

    /// Takes back what was counted in advance.
    ///
    /// # Safety
    /// `ctx` is the calling thread's, whose translated code does not run now.
    pub(crate) unsafe fn pay_back(ctx: *mut Ctx, owed: Owed) {
        let counters = Ctx::counters(ctx).cast::<i64>();
        // SAFETY: one of the counters. A handler of this thread may ask for a stop meanwhile.
        let counter =
            unsafe { AtomicI64::from_ptr(counters.add(usize::from(owed.counter) % COUNTERS)) };
        counter.fetch_sub(i64::from(owed.ticks), Ordering::SeqCst);
    }

    /// Counts the same in advance, if no limit and no request for a stop lies in between.
    pub(crate) fn borrow(&mut self, owed: Owed) -> bool {
        let Some(c) = self.clk.get_mut(usize::from(owed.counter)) else {
            return false;
        };
        let ahead = c.wrapping_add(i64::from(owed.ticks));
        let goes = *c < 0 && ahead < 0;
        if goes {
            *c = ahead;
        }
        goes
    }

    /// Sets `clk` and `limit` for a count and the count to stop at, keeping each counter within the budget.
    ///
    /// Whichever counter uses its share up first brings the thread to the runtime, which shares out what is left. That is
    /// never too late: with shares of `s` the last tick before is number `COUNTERS * (s - 1)` at most, and the next one is
    /// within what is left if `COUNTERS * (s - 1) + 1 <= left`. With one tick left all shares are 1. A loop that ticks on
    /// one counter only comes `COUNTERS * ln(left)` times, which for a hundred million ticks is 74.
    pub(crate) fn rebase(&mut self, count: u64, tick_at: u64) {
        self.tick_at = tick_at;
        // A limit that has passed means the next tick.
        let left = tick_at.saturating_sub(count).clamp(1, BUDGET);
        let share = (left - 1) / COUNTERS as u64 + 1;
        self.limit = count.wrapping_add(share * COUNTERS as u64);
        self.clk = [-(share as i64); COUNTERS];
        self.disarm = crate::sites::disarm(self.limit, self.armed);
    }
}

/// Ticks that one setting of `clk` reaches: below 2^31, so that upper halves are all ones until the limit.
pub const BUDGET: u64 = 1 << 30;

impl Default for Ctx {
    fn default() -> Self {
        Self::new()
    }
}

thread_local! {
    static CTX: UnsafeCell<Ctx> = const { UnsafeCell::new(Ctx::new()) };
}

/// Address of the calling thread's context.
pub fn ctx() -> *mut Ctx {
    CTX.with(|c| c.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever counters the ticks come on, the one that makes the count reach the limit is seen, and the thread does not
    /// come to the runtime much more often than `rebase` says.
    #[test]
    fn limits_are_exact_however_ticks_fall_on_counters() {
        let patterns: [fn(u64) -> usize; 4] = [
            |_| 0,
            |n| n as usize % COUNTERS,
            |n| (n / 1000) as usize % COUNTERS,
            |n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61) as usize % COUNTERS,
        ];
        for pattern in patterns {
            for distance in [1, 2, 3, 4, 5, 8, 13, 1000, 4096, 99_999] {
                let mut ctx = Ctx::new();
                ctx.set_clock(70);
                ctx.set_limit(70 + distance);
                let mut visits = 0;
                for n in 1..=distance {
                    let counter = &mut ctx.clk[pattern(n)];
                    *counter += 1;
                    let due = *counter >= 0;
                    assert_eq!(ctx.clock(), 70 + n);
                    if n == distance {
                        assert!(due, "distance {distance}");
                    } else if due {
                        visits += 1;
                        let (count, tick_at) = (ctx.clock(), ctx.tick_at);
                        ctx.rebase(count, tick_at);
                    }
                }
                let most = COUNTERS as f64 * ((distance as f64).ln() + 1.0);
                assert!(f64::from(visits) <= most, "{visits} for {distance}");
            }
        }
    }

    #[test]
    fn a_request_brings_the_next_tick_on_any_counter() {
        for n in 0..COUNTERS {
            let mut ctx = Ctx::new();
            ctx.set_limit(u64::MAX);
            ctx.stop_at_next_tick();
            assert_eq!(ctx.clock(), 0);
            ctx.clk[n] += 1;
            assert!(ctx.clk[n] >= 0 && ctx.clk[n] >> 32 == 0);
            assert_eq!(ctx.clock(), 1);
        }
    }
}

//! Waiting: spinning, yielding, sleeping. Two threads on one core must not spin at each other for a time slice.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Spins, then gives the core up.
#[derive(Default)]
pub struct Backoff(u32);

/// Rounds of spinning before the core is offered to others: some microseconds, about what a tick of another thread takes
/// to come.
const SPINS: u32 = 200;

impl Backoff {
    /// Waits a little; longer each time.
    pub fn snooze(&mut self) {
        if self.0 < SPINS {
            std::hint::spin_loop();
        } else {
            // SAFETY: takes nothing.
            unsafe { crate::hostcall::raw(libc::SYS_sched_yield, [0; 6]) };
        }
        self.0 = self.0.saturating_add(1);
    }

    /// Counts a wait that was made in another way.
    pub fn count(&mut self) {
        self.0 = self.0.saturating_add(1);
    }

    /// How often it has waited.
    pub fn rounds(&self) -> u32 {
        self.0
    }
}

/// A mutual exclusion lock on a futex: 0 free, 1 held, 2 held and waited for. Not fair: its holders are short.
///
/// Not std's: it is taken and given back in different functions, and across a fork.
#[derive(Default)]
pub struct Lock {
    word: AtomicU32,
}

impl Lock {
    /// One that nobody has.
    pub const fn new() -> Self {
        Lock {
            word: AtomicU32::new(0),
        }
    }

    /// Takes it.
    pub fn lock(&self) {
        let mut wait = Backoff::default();
        while wait.rounds() < SPINS {
            if self.try_lock() {
                return;
            }
            wait.snooze();
        }
        while self.word.swap(2, Ordering::Acquire) != 0 {
            futex_wait(&self.word, 2, None);
        }
    }

    /// In a process with one thread, which has it from here on, whoever had it in the process that this is a fork of.
    pub fn mine(&self) {
        self.word.store(1, Ordering::Release);
    }

    /// Takes it if it is free.
    pub fn try_lock(&self) -> bool {
        self.word
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Gives it back.
    pub fn unlock(&self) {
        if self.word.swap(0, Ordering::Release) == 2 {
            futex_wake(&self.word, 1);
        }
    }
}

/// A look at what a lock of std's guards. Whoever panicked with it has ended the process, so what is there is whole.
pub fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// The same, for a change.
pub fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Sleeps while `word` has this value, at most `nanoseconds`.
pub fn futex_wait(word: &AtomicU32, value: u32, nanoseconds: Option<i64>) {
    let t = libc::timespec {
        tv_sec: nanoseconds.unwrap_or(0) / 1_000_000_000,
        tv_nsec: nanoseconds.unwrap_or(0) % 1_000_000_000,
    };
    let timeout = nanoseconds.map_or(std::ptr::null(), |_| &raw const t);
    // SAFETY: a wait on a live word, with a live timeout or none.
    unsafe {
        crate::hostcall::raw(
            libc::SYS_futex,
            [
                word.as_ptr() as u64,
                (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u64,
                u64::from(value),
                timeout as u64,
                0,
                0,
            ],
        );
    }
}

/// Wakes up to `n` sleepers.
pub fn futex_wake(word: &AtomicU32, n: u32) {
    // SAFETY: the kernel uses the address as a key only.
    unsafe {
        crate::hostcall::raw(
            libc::SYS_futex,
            [
                word.as_ptr() as u64,
                (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64,
                u64::from(n),
                0,
                0,
                0,
            ],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn one_at_a_time() {
        struct Both {
            lock: Lock,
            value: std::cell::UnsafeCell<u64>,
        }
        // SAFETY: the value is only used under the lock.
        unsafe impl Sync for Both {}
        // SAFETY: as above.
        unsafe impl Send for Both {}
        let b = Arc::new(Both {
            lock: Lock::default(),
            value: std::cell::UnsafeCell::new(0),
        });
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let b = b.clone();
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        b.lock.lock();
                        // SAFETY: under the lock.
                        unsafe { *b.value.get() += 1 };
                        b.lock.unlock();
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().unwrap();
        }
        // SAFETY: all threads have ended.
        assert_eq!(unsafe { *b.value.get() }, 80_000);
    }
}

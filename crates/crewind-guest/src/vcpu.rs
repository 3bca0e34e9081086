//! The vcpu of the serialised mode (N = 1): a ticket lock whose tickets are the turn numbers of the trace.
//!
//! Recording, a thread that wants the vcpu draws the next number and waits until it is served; replaying, it
//! waits for the number that the trace says. Both therefore give one total order of turns per process.
//!
//! Runs in normal context only, never in a signal handler.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A process's one vcpu.
#[derive(Default)]
pub struct Vcpu {
    /// Next turn number to hand out (recording).
    next: AtomicU64,
    /// Turn being served now.
    serving: AtomicU64,
    /// Low half of `serving`, which waiters sleep on.
    word: std::sync::atomic::AtomicU32,
    /// Replaying: who waits for what, to notice that nobody can go on.
    replay: Mutex<Waiting>,
}

/// Threads of a replay that are not running.
#[derive(Default)]
struct Waiting {
    /// Threads besides the first.
    others: usize,
    /// Threads whose log has ended.
    parked: usize,
    /// Turns that threads wait for.
    turns: BTreeSet<u64>,
}

/// The log gives nobody the next turn: the trace was cut there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck;

impl Vcpu {
    /// A vcpu held by its creator, as turn 0.
    pub fn held() -> Self {
        Vcpu {
            next: AtomicU64::new(1),
            ..Default::default()
        }
    }

    /// Recording: takes a turn at the end of the queue and waits for it. Returns its number.
    pub fn acquire(&self) -> u64 {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.wait_for(turn);
        turn
    }

    /// Replaying: waits for the turn that the trace gives.
    pub fn wait_for(&self, turn: u64) {
        while self.serving.load(Ordering::Acquire) != turn {
            let word = self.word.load(Ordering::Acquire);
            if self.serving.load(Ordering::Acquire) == turn {
                break;
            }
            futex(
                &self.word,
                libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG,
                word,
                bit(turn),
            );
        }
    }

    /// Replaying: as `wait_for`, unless nobody can ever be served again.
    ///
    /// # Errors
    /// All threads wait or have ended, and the next turn is nobody's.
    pub fn replay_wait(&self, turn: u64) -> Result<(), Stuck> {
        {
            let mut w = self
                .replay
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            w.turns.insert(turn);
            self.check(&w)?;
        }
        self.wait_for(turn);
        self.replay
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .turns
            .remove(&turn);
        Ok(())
    }

    /// Replaying: the holder's log has ended; it releases the vcpu for good.
    ///
    /// # Errors
    /// As for `replay_wait`.
    pub fn park(&self) -> Result<(), Stuck> {
        self.release();
        self.idle()
    }

    /// Replaying: a thread that does not hold the vcpu will never ask for it.
    ///
    /// # Errors
    /// As for `replay_wait`.
    pub fn idle(&self) -> Result<(), Stuck> {
        let mut w = self
            .replay
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        w.parked += 1;
        self.check(&w)
    }

    fn check(&self, w: &Waiting) -> Result<(), Stuck> {
        let all = w.parked + w.turns.len() == w.others + 1;
        if all && w.parked > 0 && !w.turns.contains(&self.serving.load(Ordering::Acquire)) {
            return Err(Stuck);
        }
        Ok(())
    }

    /// A thread was made.
    pub fn thread_joined(&self) {
        self.replay
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .others += 1;
    }

    /// A thread has ended.
    pub fn thread_left(&self) {
        let mut w = self
            .replay
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        w.others = w.others.saturating_sub(1);
    }

    /// Ends the holder's turn.
    pub fn release(&self) {
        let turn = self.serving.load(Ordering::Relaxed) + 1;
        self.serving.store(turn, Ordering::Release);
        self.word.store(turn as u32, Ordering::SeqCst);
        futex(
            &self.word,
            libc::FUTEX_WAKE_BITSET | libc::FUTEX_PRIVATE_FLAG,
            i32::MAX as u32,
            bit(turn),
        );
    }

    /// True when another thread waits for a turn.
    pub fn contended(&self) -> bool {
        self.next.load(Ordering::Relaxed) > self.serving.load(Ordering::Relaxed) + 1
    }

    /// The turn being served, for noticing that the holder has not changed.
    pub fn serving(&self) -> u64 {
        self.serving.load(Ordering::Relaxed)
    }
}

/// Waiters sleep on the bit of their turn, so that a release wakes one thread and not all.
fn bit(turn: u64) -> u32 {
    1 << (turn % 32)
}

fn futex(word: &std::sync::atomic::AtomicU32, op: i32, val: u32, bits: u32) {
    // SAFETY: a futex call on a live word; the kernel only reads it.
    unsafe {
        crate::hostcall::raw(
            libc::SYS_futex,
            [
                word.as_ptr() as u64,
                op as u64,
                u64::from(val),
                0,
                0,
                u64::from(bits),
            ],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn turns_are_exclusive_and_in_order() {
        let v = Arc::new(Vcpu::held());
        let log = Arc::new(std::sync::Mutex::new(Vec::new()));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (v, log) = (v.clone(), log.clone());
                std::thread::spawn(move || {
                    for _ in 0..500 {
                        let t = v.acquire();
                        log.lock().unwrap().push(t);
                        v.release();
                    }
                })
            })
            .collect();
        v.release();
        for t in threads {
            t.join().unwrap();
        }
        let log = log.lock().unwrap();
        assert!(log.iter().copied().eq(1..=4000));
    }
}

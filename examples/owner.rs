//! Two threads race on a counter. Their order is recorded and then repeated in the same process.
//!
//! ```text
//! cargo build --release && cargo build --release -p crewind-api --example owner
//! target/release/crewind run -- target/release/examples/owner 1000
//! ```
//!
//! With crewind it prints
//!
//! ```text
//! 1000 rounds: the replay had the recorded order and value each time
//! ```
//!
//! and each round leaves a trace. Without crewind:
//!
//! ```text
//! recording is not available: the program does not run under crewind; counting anyway
//! value 8141235930264420337
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use crewind_api::{Error, Step, rec_owner, start_rec, start_rep, stop_rec, stop_rep};

const STEPS: u64 = 50;

static VALUE: AtomicU64 = AtomicU64::new(0);

fn racer(me: u64) -> Result<(), Error> {
    for i in 0..STEPS {
        // Who comes first is left to chance.
        if (i * 7 + me).is_multiple_of(4) {
            std::thread::yield_now();
        }
        match rec_owner() {
            Ok(()) | Err(Error::NotAvailable) => {}
            Err(e) => return Err(e),
        }
        // A race: others may write between the load and the store.
        let value = VALUE.load(Ordering::Relaxed);
        VALUE.store(value.wrapping_mul(31).wrapping_add(me), Ordering::Relaxed);
    }
    Ok(())
}

fn region() -> Result<u64, Error> {
    VALUE.store(1, Ordering::Relaxed);
    let threads = [1, 2].map(|me| std::thread::spawn(move || racer(me)));
    for t in threads {
        t.join().unwrap_or(Err(Error::TimedOut))?;
    }
    Ok(VALUE.load(Ordering::Relaxed))
}

/// The order: which thread, and where it called.
fn order(steps: &[Step]) -> Vec<(u32, u64)> {
    steps.iter().map(|s| (s.thread, s.address)).collect()
}

fn main() -> Result<(), Error> {
    let rounds = std::env::args()
        .nth(1)
        .and_then(|a| a.parse().ok())
        .unwrap_or(1);
    for round in 0..rounds {
        match start_rec() {
            Ok(()) => {}
            Err(e @ Error::NotAvailable) => {
                println!("{e}; counting anyway");
                println!("value {}", region()?);
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        let first = region()?;
        let recorded = stop_rec()?;
        start_rep(&recorded)?;
        let second = region()?;
        let replayed = stop_rep()?;
        if first != second || order(&recorded) != order(&replayed) {
            println!("round {round}: recorded {first}, replayed {second}");
            std::process::exit(1);
        }
    }
    println!("{rounds} rounds: the replay had the recorded order and value each time");
    Ok(())
}

//! The codec behind the checksums: any bytes decode to a record that survives, or to an error.

mod common;

use std::time::{Duration, Instant};

use common::*;
use crewind_trace::fuzz;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn encoded_bodies_decode(records in stream(12)) {
        prop_assert_eq!(fuzz::decode_bodies(&fuzz::encode_bodies(&records)), records.len());
    }

    #[test]
    fn noise(data in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz::decode_bodies(&data);
        prop_assert_eq!(fuzz::read_segment(&data), 0);
        fuzz::read_meta(&data);
    }
}

/// As `mutations` in damage.rs, but the damage passes for content.
#[test]
fn mutated_bodies() {
    let seconds = std::env::var("CREWIND_FUZZ_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let (mut rounds, mut records) = (0, 0);
    while Instant::now() < until {
        let good = fuzz::encode_bodies(&stream(6).new_tree(&mut runner).unwrap().current());
        for _ in 0..200 {
            let change = (0..good.len(), any::<u8>(), 0usize..4);
            let (at, value, cut) = change.new_tree(&mut runner).unwrap().current();
            let mut bad = good.clone();
            bad[at] = value;
            bad.drain(at / 2..(at / 2 + cut).min(at));
            records += fuzz::decode_bodies(&bad);
            rounds += 1;
        }
    }
    println!("{rounds} changes, {records} records still decoded");
    assert!(records > 0);
}

//! Work stealing with rayon: a program for the end-to-end tests to record.

use rayon::prelude::*;

fn main() {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok());
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(3))
        .build_global()
        .expect("this is the first pool");
    let mut numbers: Vec<u64> = (0..200_000u64)
        .into_par_iter()
        .map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20)
        .collect();
    numbers.par_sort_unstable();
    let sum: u64 = numbers.par_iter().map(|n| n % 1009).sum();
    let words: usize = numbers
        .par_chunks(1000)
        .map(|chunk| {
            let text = chunk.iter().map(u64::to_string).collect::<Vec<_>>();
            text.join(" ").len()
        })
        .sum();
    // Which thread did what differs from run to run.
    let workers: Vec<usize> = (0..64)
        .into_par_iter()
        .map(|_| rayon::current_thread_index().unwrap_or(usize::MAX))
        .collect();
    let (a, b) = rayon::join(|| fib(24), || fib(22));
    println!("{sum} {words} {a} {b} {workers:?}");
}

fn fib(n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let (a, b) = rayon::join(|| fib(n - 1), || fib(n - 2));
    a + b
}

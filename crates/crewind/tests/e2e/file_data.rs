//! Files that are read again and again are in a trace once; so a trace whose copy of one is gone says so.

use std::path::Path;
use std::time::Duration;

use crate::harness::{Output, Place, show};

const LIMIT: Duration = Duration::from_secs(60);
/// The status of a replay whose trace ends early.
const TRACE_END: i32 = 119;

fn crewind(place: &Place, args: &[&str]) -> Output {
    place.crewind(args, LIMIT).expect("it ends")
}

fn size_below(directory: &Path) -> u64 {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(m) if m.is_dir() => size_below(&entry.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Replays a recording without its input; returns how many references to contents the trace has.
fn replayed_with_references(place: &Place, input: &Path, recorded: &Output) -> usize {
    std::fs::remove_file(input).expect("it is there");
    let replayed = crewind(place, &["replay", "trace"]);
    assert_eq!(replayed.stdout, recorded.stdout, "{}", show(&replayed));
    let dump = crewind(place, &["dump", "trace"]);
    String::from_utf8_lossy(&dump.stdout)
        .lines()
        .filter(|line| line.contains(" file-data "))
        .count()
}

#[test]
fn what_is_read_again_is_kept_once() {
    const SIZE: usize = 1 << 20;
    const TIMES: usize = 20;
    let place = Place::new("what_is_read_again_is_kept_once");
    // Nothing that compresses.
    let mut state = 1u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
    .take(SIZE)
    .collect();
    let input = place.work.join("input");
    std::fs::write(&input, &content).expect("the scratch directory can be written");
    let script = format!("cat $(yes input | head -{TIMES}) > /dev/null; cksum < input");
    let recorded = crewind(
        &place,
        &["record", "-o", "trace", "--", "sh", "-c", &script],
    );
    assert_eq!(recorded.status.code(), Some(0), "{}", show(&recorded));
    let references = replayed_with_references(&place, &input, &recorded);
    assert!(references > TIMES, "{references} references");
    // Each of the two processes logs what it reads first.
    let streams = size_below(&place.work.join("trace/streams"));
    assert!(streams < 4 * SIZE as u64, "{streams} bytes");

    // Without the content, the replay ends there.
    for entry in std::fs::read_dir(place.work.join("trace/files"))
        .expect("there are files")
        .flatten()
    {
        if entry.metadata().is_ok_and(|m| m.len() == SIZE as u64) {
            std::fs::remove_file(entry.path()).expect("it can be removed");
        }
    }
    let cut = crewind(&place, &["replay", "trace"]);
    assert_eq!(cut.status.code(), Some(TRACE_END), "{}", show(&cut));
    assert!(recorded.stdout.starts_with(&cut.stdout));
}

/// Reads a file of 8 MiB from its beginning on, and changes it on the way: behind what was read, and in length.
const READS_AND_CHANGES: &str = "
import os, threading, zlib
threading.Thread(target=int).start()
f = os.open('input', os.O_RDWR)
total, crc, n = 0, 0, 0
while data := os.read(f, 1 << 16):
    total, crc, n = total + len(data), zlib.crc32(data, crc), n + 1
    if n == 60:
        os.pwrite(f, b'changed', 70 << 16)
    if n == 100:
        os.ftruncate(f, 120 << 16)
print(total, crc)
";

#[test]
fn what_is_read_in_sequence_is_referred_to_and_may_change() {
    const SIZE: usize = 8 << 20;
    let place = Place::new("what_is_read_in_sequence");
    let content: Vec<u8> = (0..SIZE as u32 / 4)
        .flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes())
        .collect();
    let input = place.work.join("input");
    std::fs::write(&input, &content).expect("the scratch directory can be written");
    let python = "/usr/bin/python3";
    let recorded = crewind(
        &place,
        &[
            "record",
            "-o",
            "trace",
            "--",
            python,
            "-c",
            READS_AND_CHANGES,
        ],
    );
    assert_eq!(recorded.status.code(), Some(0), "{}", show(&recorded));
    let said = String::from_utf8_lossy(&recorded.stdout).into_owned();
    assert!(said.starts_with(&format!("{} ", 120 << 16)), "{said}");
    let references = replayed_with_references(&place, &input, &recorded);
    // Of 120 results those between the first MiB and the first change: the bytes of what comes then are logged.
    assert!((50..=54).contains(&references), "{references} references");
}

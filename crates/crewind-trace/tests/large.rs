//! Large data: written past the mapping, and left uncompressed where compressing gains nothing.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use crewind_trace::event::Record;
use crewind_trace::{Compactor, Descriptors, StreamEnd, StreamReader, StreamWriter, compact};

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

/// Large records of many sizes between small ones.
fn mixed(i: u64) -> Record<'static> {
    let len = match i % 5 {
        0 => 65_536,
        1 => 0,
        2 => 40,
        3 => 16_000 + 97 * i as usize,
        _ => 4096,
    };
    syscall(i * 3, (i % 70) as u32, &noise(i, len))
}

fn write_mixed(dir: &Path, records: u64) -> StreamWriter {
    let mut writer = StreamWriter::create(dir, T1).unwrap();
    for i in 0..records {
        // In any order: the writer may be told before each record.
        writer.set_descriptors(if i % 11 < 8 {
            Descriptors::Momentary
        } else {
            Descriptors::Avoid
        });
        writer.append(&mixed(i)).unwrap();
    }
    writer
}

fn assert_mixed(dir: &Path, records: u64) -> StreamReader {
    let (found, reader) = read(dir, T1);
    let reader = reader.unwrap();
    assert_eq!(found.len() as u64, records);
    for (i, record) in (0..).zip(&found) {
        assert_eq!(*record, mixed(i), "record {i}");
    }
    reader
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir.join("streams"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn large_and_small_records_in_any_mix() {
    const N: u64 = 600;
    let (_root, dir) = new_trace();
    write_mixed(&dir, N).finish().unwrap();
    assert_mixed(&dir, N);
    let (totals, error) = compact(&dir);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(totals.counts["syscall"], N);
    // What cannot be made smaller stays, without the space that was reserved behind it.
    assert!(names(&dir).iter().any(|name| name.ends_with(".raw")));
    assert!(totals.stored_bytes <= totals.raw_bytes, "{totals:?}");
    assert_mixed(&dir, N);
    let (again, error) = compact(&dir);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(
        (again.counts, again.threads),
        (totals.counts, totals.threads)
    );
}

#[test]
fn a_writer_that_vanishes_leaves_all_its_large_records() {
    const N: u64 = 100;
    let (_root, dir) = new_trace();
    // As after SIGKILL: nothing is finished.
    std::mem::forget(write_mixed(&dir, N));
    let reader = assert_mixed(&dir, N);
    assert!(matches!(reader.end(), StreamEnd::Cut { .. }));
    let (totals, error) = compact(&dir);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(totals.counts["syscall"], N);
    assert_mixed(&dir, N);
    let mut writer = StreamWriter::resume(&dir, T1).unwrap();
    writer.append(&mixed(N)).unwrap();
    writer.finish().unwrap();
    assert_mixed(&dir, N + 1);
}

#[test]
fn a_segment_file_that_is_gone_is_written_through_the_mapping() {
    let (_root, dir) = new_trace();
    let mut writer = StreamWriter::create(&dir, T1).unwrap();
    writer.set_descriptors(Descriptors::Momentary);
    // The guest changed its root, say, and there is another file of that name.
    let path = dir.join("streams/t1.000000.raw");
    let aside = dir.join("aside");
    fs::rename(&path, &aside).unwrap();
    fs::write(&path, b"something else").unwrap();
    writer.append(&syscall(1, 1, &noise(1, 30_000))).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"something else");
    fs::rename(&aside, &path).unwrap();
    writer.finish().unwrap();
    assert_eq!(read(&dir, T1).0, [syscall(1, 1, &noise(1, 30_000))]);
}

#[test]
fn damage_in_large_data_is_noticed() {
    let (_root, dir) = new_trace();
    write_mixed(&dir, 150).finish().unwrap();
    compact(&dir);
    let name = names(&dir)
        .into_iter()
        .find(|name| name.ends_with(".raw"))
        .unwrap();
    let path = dir.join("streams").join(name);
    let good = fs::read(&path).unwrap();
    for place in [200, good.len() / 3, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[place] ^= 0x10;
        fs::write(&path, bad).unwrap();
        let (found, end) = read(&dir, T1);
        assert!(end.is_err(), "byte {place} of {}", good.len());
        for (i, record) in (0..).zip(&found) {
            assert_eq!(*record, mixed(i));
        }
    }
}

#[test]
fn the_compactor_leaves_noise_alone_while_it_is_written() {
    const N: u64 = 400;
    let (_root, dir) = new_trace();
    let compactor = Compactor::start(&dir).unwrap();
    let writer = write_mixed(&dir, N);
    std::thread::sleep(std::time::Duration::from_millis(100));
    writer.finish().unwrap();
    let (totals, error) = compactor.finish();
    assert!(error.is_none(), "{error:?}");
    assert_eq!(totals.counts["syscall"], N);
    assert_mixed(&dir, N);
    assert!(names(&dir).iter().all(|name| !name.ends_with(".new")));
}

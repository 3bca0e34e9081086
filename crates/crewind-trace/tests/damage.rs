//! Damage of any kind gives an error, or a shorter stream that says so. Never a wrong record, a panic or
//! an end that looks complete.

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::*;
use crewind_trace::event::{Event, MemWrite, ProcId, Record, StartHow};
use crewind_trace::{End, StreamEnd, StreamReader, StreamWriter, TraceDir, TraceError, compact};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

/// Asserts that what can be read is a prefix of `records`, and that a complete end means all of them.
fn check_prefix(dir: &Path, records: &[Record<'_>], what: &str) -> usize {
    let (found, end) = read(dir, T1);
    assert!(found.len() <= records.len(), "{what}: too many records");
    for (i, (found, expected)) in found.iter().zip(records).enumerate() {
        assert_eq!(found, expected, "{what}: record {i} is wrong");
    }
    match end {
        Ok(reader) if found.len() < records.len() => {
            assert_ne!(reader.end(), StreamEnd::Complete, "{what}: looks complete");
        }
        Ok(_) => {}
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains("streams"),
                "{what}: error names no file: {text}"
            );
        }
    }
    found.len()
}

fn small_stream() -> Vec<Record<'static>> {
    let mut records = vec![Record {
        clock: 0,
        pc: 0,
        regs: 0,
        event: Event::ProcessStart {
            proc: ProcId(1),
            parent: None,
            how: StartHow::Root,
            pid: 100,
        },
    }];
    records.extend((1..12u64).map(|i| syscall(i * 40, (i % 3) as u32, &i.to_le_bytes())));
    let outs = vec![
        MemWrite {
            addr: 5,
            data: vec![1; 40].into(),
        },
        MemWrite {
            addr: 3,
            data: vec![0; 200].into(),
        },
    ];
    let event = Event::Syscall {
        nr: 0,
        args: vec![3, 4].into(),
        ret: -1,
        outs,
        output: Some((1, 7)),
        turn: Some(70),
    };
    records.push(Record {
        clock: 600,
        pc: 7,
        regs: 9,
        event,
    });
    records.push(exit(700));
    records
}

/// How a stream was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Unfinished,
    Finished,
    Compressed,
    /// In several segments, which `resume` gives.
    Segments,
}

const ALL: [Left; 4] = [
    Left::Unfinished,
    Left::Finished,
    Left::Compressed,
    Left::Segments,
];

fn make(left: Left, records: &[Record<'_>]) -> (tempfile::TempDir, PathBuf, Vec<PathBuf>) {
    let (root, dir) = new_trace();
    let mut writer = StreamWriter::create(&dir, T1).unwrap();
    for (i, record) in records.iter().enumerate() {
        if left == Left::Segments && i % 5 == 4 {
            writer.detach();
            writer = StreamWriter::resume(&dir, T1).unwrap();
        }
        writer.append(record).unwrap();
    }
    match left {
        Left::Unfinished | Left::Segments => writer.detach(),
        Left::Finished | Left::Compressed => writer.finish().unwrap(),
    }
    if left == Left::Compressed {
        let (_, error) = compact(&dir);
        assert!(error.is_none(), "{error:?}");
    }
    let mut files: Vec<_> = fs::read_dir(dir.join("streams"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    (root, dir, files)
}

/// Replaces a file's content. Not by `fs::write`, because truncating to 0 first makes some file systems
/// write to the disk on closing, and these tests do it thousands of times.
fn put(file: &Path, content: &[u8]) {
    let file = fs::File::options().write(true).open(file).unwrap();
    file.write_all_at(content, 0).unwrap();
    file.set_len(content.len() as u64).unwrap();
}

/// The part of a file that matters, and a few zeros.
fn read_used(file: &Path) -> Vec<u8> {
    let mut content = fs::read(file).unwrap();
    content.truncate(used(&content) + 32);
    content
}

/// Length of the part of a file that matters: without the zeros that were allocated in advance.
fn used(content: &[u8]) -> usize {
    content.len() - content.iter().rev().take_while(|b| **b == 0).count()
}

#[test]
fn every_flip() {
    let records = small_stream();
    for left in ALL {
        let (_root, dir, files) = make(left, &records);
        assert_eq!(check_prefix(&dir, &records, "undamaged"), records.len());
        for file in &files {
            let good = read_used(file);
            for i in (0..used(&good) + 16).filter(|i| *i < good.len()) {
                for flip in [1u8, 0x80, 0xff] {
                    let mut bad = good.clone();
                    bad[i] ^= flip;
                    put(file, &bad);
                    check_prefix(
                        &dir,
                        &records,
                        &format!("{left:?} {file:?} byte {i} ^ {flip:#x}"),
                    );
                }
            }
            put(file, &good);
        }
    }
}

#[test]
fn every_cut() {
    let records = small_stream();
    for left in ALL {
        let (_root, dir, files) = make(left, &records);
        for file in &files {
            let good = read_used(file);
            for len in 0..=used(&good) {
                put(file, &good[..len]);
                let found =
                    check_prefix(&dir, &records, &format!("{left:?} {file:?} cut to {len}"));
                assert!(len >= used(&good) || found < records.len());
            }
            put(file, &good);
        }
    }
}

#[test]
fn every_run_of_zeros() {
    let records = small_stream();
    for left in ALL {
        let (_root, dir, files) = make(left, &records);
        for file in &files {
            let good = read_used(file);
            for start in (0..used(&good)).step_by(3) {
                for len in [8, 64, 512] {
                    let mut bad = good.clone();
                    let end = bad.len().min(start + len);
                    bad[start..end].fill(0);
                    put(file, &bad);
                    check_prefix(&dir, &records, &format!("{left:?} zeros at {start}+{len}"));
                }
            }
            put(file, &good);
        }
    }
}

#[test]
fn segments_of_another_trace_or_thread_do_not_pass() {
    let records = small_stream();
    let mut others = small_stream();
    others[1].regs ^= 1;
    for left in [Left::Segments, Left::Unfinished] {
        let (_a, dir, files) = make(left, &records);
        let (_b, _, other_files) = make(left, &others);
        for (file, other) in files.iter().zip(&other_files).skip(1) {
            let good = fs::read(file).unwrap();
            fs::copy(other, file).unwrap();
            assert!(check_prefix(&dir, &records, "mixed") < records.len());
            put(file, &good);
        }
    }
    let (_a, dir, files) = make(Left::Unfinished, &records);
    fs::copy(&files[0], dir.join("streams/t2.000000.raw")).unwrap();
    let mut reader = StreamReader::open(&dir, crewind_trace::event::ThreadId(2)).unwrap();
    assert!(reader.next().is_err());
    assert!(reader.next().is_err(), "an error stays");
    assert_ne!(reader.end(), StreamEnd::Complete);
}

#[test]
fn a_lowered_length_does_not_shorten() {
    let records = small_stream();
    let (_root, dir, files) = make(Left::Unfinished, &records);
    let mut bytes = fs::read(&files[0]).unwrap();
    bytes[64..72].fill(0);
    fs::write(&files[0], bytes).unwrap();
    assert_eq!(check_prefix(&dir, &records, "committed = 0"), records.len());
}

#[test]
fn later_frames_do_not_spoil_earlier_ones() {
    let (_root, dir) = new_trace();
    let mut seed = 1u64;
    let mut noise = |n: usize| -> Vec<u8> {
        std::iter::repeat_with(|| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as u8
        })
        .take(n)
        .collect()
    };
    let mut records: Vec<_> = (0..30).map(|i| syscall(i, 0, &noise(100_000))).collect();
    records.push(exit(100));
    write(&dir, T1, &records);
    compact(&dir);
    let mut files: Vec<_> = fs::read_dir(dir.join("streams"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort_by_key(|f| fs::metadata(f).unwrap().len());
    let largest = files.pop().unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    let n = bytes.len();
    bytes[n - 100] ^= 1;
    fs::write(&largest, &bytes).unwrap();
    let found = check_prefix(&dir, &records, "flip near the end");
    assert!(found > 10 && found < records.len(), "{found}");
}

#[test]
fn symlinks_in_a_trace_are_not_followed() {
    let records = small_stream();
    let (_root, dir, files) = make(Left::Unfinished, &records);
    let outside = tempfile::tempdir().unwrap();
    let moved = outside.path().join("segment");
    fs::rename(&files[0], &moved).unwrap();
    symlink(&moved, &files[0]).unwrap();
    assert!(read(&dir, T1).1.is_err());
    fs::remove_file(&files[0]).unwrap();
    fs::rename(&moved, &files[0]).unwrap();
    assert!(read(&dir, T1).1.is_ok());
    let streams = outside.path().join("streams");
    fs::rename(dir.join("streams"), &streams).unwrap();
    symlink(&streams, dir.join("streams")).unwrap();
    assert!(read(&dir, T1).1.is_err());
    assert!(StreamWriter::create(&dir, crewind_trace::event::ThreadId(9)).is_err());
    assert!(TraceDir::remove(&dir).is_err());
    assert!(streams.exists());
}

#[test]
fn meta_and_end_say_what_is_wrong() {
    let (_root, dir) = new_trace();
    let trace = TraceDir::open(&dir).unwrap();
    assert!(trace.end().unwrap().is_none());
    trace.write_end(&End::default()).unwrap();
    assert_eq!(trace.end().unwrap(), Some(End::default()));
    fs::write(dir.join("end.json"), "{").unwrap();
    assert!(matches!(trace.end(), Err(TraceError::Truncated { .. })));

    let meta = fs::read_to_string(dir.join("meta.json")).unwrap();
    fs::write(
        dir.join("meta.json"),
        meta.replace(
            &format!("\"version\": {}", crewind_trace::FORMAT_VERSION),
            "\"version\": 99",
        ),
    )
    .unwrap();
    let error = TraceDir::open(&dir).unwrap_err();
    assert!(
        matches!(error, TraceError::FutureVersion { found: 99, .. }),
        "{error}"
    );
    fs::write(dir.join("meta.json"), meta.replace("prog", "prag")).unwrap();
    assert!(matches!(
        TraceDir::open(&dir),
        Err(TraceError::Corrupt { .. })
    ));
    fs::write(dir.join("meta.json"), b"\xff\xfe").unwrap();
    assert!(matches!(
        TraceDir::open(&dir),
        Err(TraceError::Corrupt { .. })
    ));
    fs::remove_file(dir.join("meta.json")).unwrap();
    for path in [
        &dir,
        &dir.join("streams"),
        Path::new("/proc/self/exe"),
        Path::new("/nonexistent"),
    ] {
        let error = TraceDir::open(path).unwrap_err();
        assert!(matches!(error, TraceError::NotATrace { .. }), "{error}");
        assert!(TraceDir::remove(path).is_err());
    }
    assert!(dir.join("streams").exists());
}

/// Random damage of random streams, for as long as `CREWIND_FUZZ_SECONDS` says (default 2). The seeds
/// are the numbers from 0, so a failure comes again.
#[test]
fn mutations() {
    let seconds = std::env::var("CREWIND_FUZZ_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
    let mut seed = 0u64;
    while Instant::now() < until {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(proptest::test_runner::Config::default(), rng);
        let records = stream(30).new_tree(&mut runner).unwrap().current();
        let (_root, dir, files) = make(ALL[seed as usize % ALL.len()], &records);
        let good: Vec<_> = files.iter().map(|f| read_used(f)).collect();
        let damage = proptest::collection::vec(
            (
                0..files.len(),
                0u8..5,
                0..1usize << 20,
                0..1usize << 20,
                proptest::prelude::any::<u8>(),
            ),
            1..4,
        );
        for round in 0..40 {
            for (file, good) in files.iter().zip(&good) {
                put(file, good);
            }
            let damage = damage.new_tree(&mut runner).unwrap().current();
            for (file, kind, a, b, value) in &damage {
                let mut bytes = fs::read(&files[*file]).unwrap();
                let n = used(&bytes).max(1);
                let (a, b) = (a % n, b % n);
                match kind {
                    0 if !bytes.is_empty() => bytes[a] ^= value,
                    1 if !bytes.is_empty() => bytes[a] = *value,
                    2 => bytes.truncate(a),
                    3 if a.max(b) < bytes.len() => {
                        bytes.copy_within(a.min(b)..a.max(b), a.min(b) / 2)
                    }
                    4 if a < bytes.len() => {
                        bytes.remove(a);
                    }
                    _ => {}
                }
                put(&files[*file], &bytes);
            }
            check_prefix(
                &dir,
                &records,
                &format!("seed {seed} round {round}: {damage:?}"),
            );
        }
        seed += 1;
    }
    println!("{seed} streams damaged 40 times each");
}

//! What is written is what is read, in every form a stream can be stored in.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use crewind_trace::event::{Event, ThreadId};
use crewind_trace::{
    Compactor, End, MAX_RECORD_DATA, StreamEnd, StreamReader, StreamWriter, TraceDir, TraceError,
    compact,
};
use proptest::prelude::*;

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir.join("streams"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn assert_complete(dir: &Path, thread: ThreadId, expected: &[crewind_trace::event::Record<'_>]) {
    let (records, reader) = read(dir, thread);
    assert_eq!(records.len(), expected.len());
    for (i, (found, expected)) in records.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "record {i}");
    }
    assert_eq!(reader.unwrap().end(), StreamEnd::Complete);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn all_events_survive(records in stream(60)) {
        let (_root, dir) = new_trace();
        write(&dir, T1, &records);
        assert_complete(&dir, T1, &records);
        let (totals, error) = compact(&dir);
        prop_assert!(error.is_none(), "{error:?}");
        prop_assert_eq!(totals.threads[&1], records.len() as u64);
        prop_assert!(files(&dir).iter().all(|name| name.ends_with(".zst")));
        assert_complete(&dir, T1, &records);
    }
}

#[test]
fn peeking_changes_nothing() {
    let (_root, dir) = new_trace();
    let records: Vec<_> = (0..5).map(|i| syscall(i, i as u32, b"x")).collect();
    write(&dir, T1, &records);
    let mut reader = StreamReader::open(&dir, T1).unwrap();
    for (i, expected) in records.iter().enumerate() {
        assert_eq!(reader.seq(), i as u64);
        assert_eq!(reader.peek().unwrap().as_ref(), Some(expected));
        assert_eq!(reader.peek().unwrap().as_ref(), Some(expected));
        assert_eq!(reader.next().unwrap().as_ref(), Some(expected));
    }
    assert!(reader.peek().unwrap().is_none());
    assert!(reader.next().unwrap().is_none());
    assert!(matches!(reader.end(), StreamEnd::Cut { why } if why.contains("syscall")));
}

#[test]
fn seeking() {
    let (_root, dir) = new_trace();
    let nth = |i: u64| syscall(i * 5, (i % 60) as u32, &[i as u8; 30]);
    let records: Vec<_> = (0..20_000).map(nth).collect();
    write(&dir, T1, &records);
    for form in 0..2 {
        let mut reader = StreamReader::open(&dir, T1).unwrap();
        for seq in [
            0, 1, 19_999, 5, 700, 701, 15_000, 3000, 20_000, 12_345, 99_999, 0,
        ] {
            reader.seek(seq).unwrap();
            assert_eq!(reader.seq(), seq.min(20_000), "form {form}");
            let expected = (seq < 20_000).then(|| nth(seq));
            assert_eq!(reader.peek().unwrap(), expected);
            assert_eq!(reader.next().unwrap(), expected);
        }
        compact(&dir);
    }
}

#[test]
fn many_segments_in_every_mix_of_forms() {
    let (_root, dir) = new_trace();
    let mut records: Vec<_> = (0..20_000u64)
        .map(|i| syscall(i * 3, (i % 300) as u32, &i.to_le_bytes()))
        .collect();
    records.push(exit(60_000));
    write(&dir, T1, &records);
    let raw = files(&dir);
    assert!(raw.len() >= 3, "{raw:?}");
    // Both forms of each, as after a crash between rename and unlink.
    let saved: Vec<_> = raw
        .iter()
        .map(|name| fs::read(dir.join("streams").join(name)).unwrap())
        .collect();
    let (totals, error) = compact(&dir);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(totals.counts["syscall"], 20_000);
    assert_eq!(totals.counts["process-exit"], 1);
    assert!(totals.stored_bytes * 2 < totals.raw_bytes, "{totals:?}");
    for mix in 0..1usize << raw.len() {
        for (i, name) in raw.iter().enumerate() {
            let path = dir.join("streams").join(name);
            if mix >> i & 1 == 1 {
                fs::write(path, &saved[i]).unwrap();
            } else {
                let _ = fs::remove_file(path);
            }
        }
        assert_complete(&dir, T1, &records);
    }
    // A compactor that comes later tidies up.
    let (again, error) = compact(&dir);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(
        (again.counts, again.threads),
        (totals.counts, totals.threads)
    );
    assert!(files(&dir).iter().all(|name| name.ends_with(".zst")));
    assert_complete(&dir, T1, &records);
}

#[test]
fn large_records() {
    let (_root, dir) = new_trace();
    let big: Vec<u8> = (0..20 << 20).map(|i: u32| (i / 7) as u8).collect();
    let mut records = vec![syscall(0, 0, &[1; 60_000]), syscall(1, 0, &[2; 10_000])];
    records.push(syscall(2, 0, &big));
    records.push(syscall(3, 0, b"small"));
    records.push(syscall(4, 0, &big));
    records.push(exit(5));
    write(&dir, T1, &records);
    assert_complete(&dir, T1, &records);
    let (_, error) = compact(&dir);
    assert!(error.is_none(), "{error:?}");
    assert_complete(&dir, T1, &records);
}

#[test]
fn the_largest_record_fits_and_larger_ones_are_refused() {
    let (_root, dir) = new_trace();
    let mut data = vec![0; MAX_RECORD_DATA];
    data[MAX_RECORD_DATA - 1] = 9;
    let largest = syscall(0, 0, &data);
    let mut writer = StreamWriter::create(&dir, T1).unwrap();
    let too_large = syscall(0, 0, &vec![0; MAX_RECORD_DATA + (2 << 20)]);
    let error = writer.append(&too_large).unwrap_err();
    assert!(matches!(error, TraceError::TooLarge { .. }), "{error}");
    writer.append(&largest).unwrap();
    writer.append(&exit(1)).unwrap();
    writer.finish().unwrap();
    for _ in 0..2 {
        let mut reader = StreamReader::open(&dir, T1).unwrap();
        assert!(reader.next().unwrap().unwrap() == largest);
        assert_eq!(reader.next().unwrap().unwrap(), exit(1));
        assert!(reader.next().unwrap().is_none());
        let (_, error) = compact(&dir);
        assert!(error.is_none(), "{error:?}");
    }
}

#[test]
fn background_compression_while_writing() {
    let (_root, dir) = new_trace();
    let compactor = Compactor::start(&dir).unwrap();
    let records = |thread: u64| {
        let mut records: Vec<_> = (0..60_000u64)
            .map(|i| syscall(i * thread, (i % 90) as u32, b"abc"))
            .collect();
        records.push(exit(1 << 40));
        records
    };
    std::thread::scope(|scope| {
        for thread in 1..=3 {
            let dir = &dir;
            scope.spawn(move || write(dir, ThreadId(thread), &records(u64::from(thread))));
        }
        // Reading along gives a prefix at all times.
        scope.spawn(|| {
            for _ in 0..20 {
                std::thread::sleep(std::time::Duration::from_millis(5));
                let Ok(mut reader) = StreamReader::open(&dir, T1) else {
                    continue;
                };
                let mut n = 0;
                while let Ok(Some(record)) = reader.next() {
                    if n < 60_000 {
                        assert_eq!(record, syscall(n, (n % 90) as u32, b"abc"));
                    }
                    n += 1;
                }
            }
        });
    });
    let (totals, error) = compactor.finish();
    assert!(error.is_none(), "{error:?}");
    assert_eq!(totals.counts["syscall"], 180_000);
    for thread in 1..=3 {
        assert_complete(&dir, ThreadId(thread), &records(u64::from(thread)));
    }
    let trace = TraceDir::open(&dir).unwrap();
    assert_eq!(trace.threads().unwrap().len(), 3);
    let end = End {
        threads: totals.threads,
        ..End::default()
    };
    trace.write_end(&end).unwrap();
    assert!(
        trace
            .verify()
            .unwrap()
            .iter()
            .all(|s| s.end == StreamEnd::Complete)
    );
    for name in files(&dir).iter().filter(|name| name.starts_with("t2.")) {
        fs::remove_file(dir.join("streams").join(name)).unwrap();
    }
    let cut: Vec<_> = trace.verify().unwrap();
    assert!(
        cut.iter()
            .any(|s| s.thread.0 == 2 && s.end != StreamEnd::Complete)
    );
}

#[test]
fn a_stream_continues_after_exec() {
    let (_root, dir) = new_trace();
    let exec = |clock| crewind_trace::event::Record {
        event: Event::Exec,
        ..exit(clock)
    };
    let mut all = Vec::new();
    // Left unfinished, finished, compressed.
    for how in 0..3u64 {
        let mut writer = if how == 0 {
            StreamWriter::create(&dir, T1).unwrap()
        } else {
            StreamWriter::resume(&dir, T1).unwrap()
        };
        assert_eq!(writer.records(), all.len() as u64);
        for i in 0..3000 {
            let record = syscall(how * 10_000 + i, i as u32 % 50, b"data");
            writer.append(&record).unwrap();
            all.push(record);
        }
        writer.append(&exec(how * 10_000 + 5000)).unwrap();
        all.push(exec(how * 10_000 + 5000));
        match how {
            0 => writer.detach(),
            1 => writer.finish().unwrap(),
            _ => {
                writer.detach();
                compact(&dir);
            }
        }
        let (records, reader) = read(&dir, T1);
        assert_eq!(records, all);
        let end = reader.unwrap().end();
        assert!(matches!(end, StreamEnd::Cut { why } if why.contains("execve")));
    }
    let mut writer = StreamWriter::resume(&dir, T1).unwrap();
    writer.append(&exit(1 << 33)).unwrap();
    all.push(exit(1 << 33));
    writer.finish().unwrap();
    assert_complete(&dir, T1, &all);
    let trace = TraceDir::open(&dir).unwrap();
    assert_eq!(trace.thread_end(T1).unwrap(), Some(exit(0).event));
}

#[test]
fn a_stream_is_created_once() {
    let (_root, dir) = new_trace();
    write(&dir, T1, &[exit(0)]);
    assert!(StreamWriter::create(&dir, T1).is_err());
    compact(&dir);
    assert!(StreamWriter::create(&dir, T1).is_err());
    assert!(StreamWriter::resume(&dir, ThreadId(2)).is_err());
}

#[test]
fn a_missing_segment_is_noticed() {
    let (_root, dir) = new_trace();
    let mut records: Vec<_> = (0..20_000u64).map(|i| syscall(i, 1, b"abcdefgh")).collect();
    records.push(exit(20_000));
    write(&dir, T1, &records);
    let names = files(&dir);
    assert!(names.len() >= 3);
    for (i, name) in names.iter().enumerate() {
        let path = dir.join("streams").join(name);
        let content = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let (found, reader) = read(&dir, T1);
        assert_eq!(found, records[..found.len()]);
        match reader {
            Ok(reader) => {
                assert_eq!(i, names.len() - 1);
                assert!(matches!(reader.end(), StreamEnd::Cut { .. }));
            }
            Err(e) => assert!(matches!(e, TraceError::Truncated { .. }), "{e}"),
        }
        fs::write(&path, content).unwrap();
    }
    assert_complete(&dir, T1, &records);
}

//! Traces of earlier versions stay readable: one of each format version is kept in `tests/golden`.
//!
//! `CREWIND_BLESS=1` writes the one of the current version anew; do so only when the version was raised,
//! or before it was ever released.

mod common;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use crewind_trace::event::{Event, FileRef, MemWrite, ProcId, Record, StartHow, ThreadId};
use crewind_trace::{
    CpuInfo, End, FORMAT_VERSION, Meta, Options, StreamReader, Text, TraceDir, compact,
};

/// At least one of each kind of event.
fn records() -> Vec<Record<'static>> {
    let events = vec![
        Event::ProcessStart {
            proc: ProcId(1),
            parent: None,
            how: StartHow::Root,
            pid: 4711,
        },
        Event::ProcessStart {
            proc: ProcId(2),
            parent: Some(ProcId(1)),
            how: StartHow::Vfork,
            pid: -1,
        },
        Event::ThreadStart {
            proc: ProcId(1),
            tid: 4712,
            turn: 3,
        },
        Event::Image {
            info: b"description".as_slice().into(),
        },
        Event::Syscall {
            nr: 0,
            args: vec![3, 0x4fff_ffff_0010, 100].into(),
            ret: -11,
            outs: vec![
                MemWrite {
                    addr: 0x4fff_ffff_0010,
                    data: b"some text".as_slice().into(),
                },
                MemWrite {
                    addr: 0x10_0000,
                    data: b"".as_slice().into(),
                },
            ],
            output: Some((2, 1 << 40)),
            turn: Some(77),
        },
        Event::Syscall {
            nr: 39,
            args: Vec::new().into(),
            ret: 4711,
            outs: Vec::new(),
            output: None,
            turn: None,
        },
        Event::FileMapping {
            addr: 0x1_0000,
            len: 4096,
            offset: 8192,
            dev: 0xfe00,
            ino: 10_011_063,
            file: FileRef {
                hash: [0xab; 32],
                len: 123_456,
            },
        },
        Event::FileData {
            addr: 0x7fff_0000,
            len: 65536,
            offset: 131_072,
            file: FileRef {
                hash: [0xcd; 32],
                len: 1 << 33,
            },
        },
        Event::Insn {
            kind: 2,
            values: vec![u64::MAX, 0, 0x1234].into(),
        },
        Event::Signal {
            signo: 11,
            info: vec![7; 128].into(),
            fault_addr: 0xdead_b000,
            synchronous: true,
        },
        Event::Preempt { turn: 80 },
        Event::Fork {
            child: ProcId(2),
            child_thread: ThreadId(3),
            nr: 57,
            pid: 4713,
            turn: Some(90),
        },
        Event::Clone {
            thread: ThreadId(2),
            tid: 4712,
        },
        Event::Exec,
        Event::Shared {
            step: true,
            writes: vec![
                MemWrite {
                    addr: 0x2000_0000_1008,
                    data: vec![1, 0, 0, 0].into(),
                },
                MemWrite {
                    addr: 0x2000_0000_2000,
                    data: vec![0xff].into(),
                },
            ],
        },
    ];
    let last = [
        Event::ThreadExit { status: 3 },
        Event::ProcessExit {
            status: Some(-1),
            signal: Some(9),
            memory: Some(0x1122_3344),
        },
        Event::Killed,
    ];
    let mut all = Vec::new();
    for (thread, last) in last.into_iter().enumerate() {
        let record = |i: usize, event: &Event<'static>| Record {
            clock: (i * i * 100) as u64,
            pc: 0x40_0000 + (i % 4) as u64,
            regs: (i * thread) as u32,
            event: event.clone(),
        };
        all.extend(events.iter().enumerate().map(|(i, event)| record(i, event)));
        all.push(record(events.len(), &last));
    }
    all
}

fn streams() -> Vec<Vec<Record<'static>>> {
    let all = records();
    all.chunks(all.len() / 3).map(<[_]>::to_vec).collect()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn bless_if_asked() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    if std::env::var_os("CREWIND_BLESS").is_some() {
        ONCE.call_once(bless);
    }
}

fn bless() {
    let version = format!("v{FORMAT_VERSION}");
    let _ = fs::remove_dir_all(golden().join(&version));
    let meta = Meta {
        format: "crewind trace".into(),
        version: FORMAT_VERSION,
        crewind: "0.1.0".into(),
        created: 1_700_000_000,
        argv: vec![Text("prog".into()), Text("argument".into())],
        cwd: Text("/".into()),
        options: Options {
            cpus: 1,
            ..Options::default()
        },
        cpu: CpuInfo {
            vendor: "GenuineIntel".into(),
            ..CpuInfo::default()
        },
        kernel: "6.1.0".into(),
    };
    let trace = TraceDir::create(&golden(), &version, meta).unwrap();
    fs::remove_file(golden().join("latest")).unwrap();
    let streams = streams();
    write(trace.path(), ThreadId(1), &streams[0]);
    write(trace.path(), ThreadId(2), &streams[1]);
    let (totals, error) = compact(trace.path());
    assert!(error.is_none(), "{error:?}");
    write(trace.path(), ThreadId(3), &streams[2]);
    // The zeros that are allocated in advance need not be kept.
    let raw = trace.path().join("streams/t3.000000.raw");
    let mut content = fs::read(&raw).unwrap();
    content.truncate(2048);
    fs::write(&raw, content).unwrap();
    let end = End {
        status: Some(0),
        counts: totals.counts,
        ..End::default()
    };
    trace.write_end(&end).unwrap();
    fs::write(trace.path().join("dump.txt"), dump(&trace)).unwrap();
}

fn dump(trace: &TraceDir) -> String {
    let mut out = String::new();
    for thread in trace.threads().unwrap() {
        let mut reader = StreamReader::open(trace.path(), thread).unwrap();
        while let Some(record) = reader.next().unwrap() {
            writeln!(out, "{thread} {record}").unwrap();
        }
        writeln!(out, "{thread} {:?}", reader.end()).unwrap();
    }
    out
}

#[test]
fn old_traces_are_readable() {
    bless_if_asked();
    for version in 1..=FORMAT_VERSION {
        let trace = TraceDir::open(&golden().join(format!("v{version}"))).unwrap();
        assert_eq!(trace.meta().version, version);
        assert!(trace.end().unwrap().is_some());
        let expected = fs::read_to_string(trace.path().join("dump.txt")).unwrap();
        assert_eq!(dump(&trace), expected, "version {version}");
    }
}

#[test]
fn the_current_version_is_what_is_written() {
    bless_if_asked();
    let trace = TraceDir::open(&golden().join(format!("v{FORMAT_VERSION}"))).unwrap();
    for (i, expected) in streams().iter().enumerate() {
        let (found, end) = read(trace.path(), ThreadId(i as u32 + 1));
        assert_eq!(found, *expected);
        end.unwrap();
    }
    // The same bytes, so a change of the format cannot go unnoticed (compression may change).
    let (_root, dir) = new_trace();
    write(&dir, ThreadId(3), &streams()[2]);
    let raw = "streams/t3.000000.raw";
    let old = fs::read(trace.path().join(raw)).unwrap();
    let new = fs::read(dir.join(raw)).unwrap();
    assert!(
        new[..2048] == old,
        "the format changed: raise FORMAT_VERSION and bless the new one"
    );
}

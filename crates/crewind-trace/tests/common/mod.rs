//! What the tests share.
#![allow(dead_code)]

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crewind_trace::event::{
    Edge, Event, FileRef, MemWrite, ProcId, Record, StartHow, Stop, ThreadId,
};
use crewind_trace::{Meta, Options, Result, StreamReader, StreamWriter, TraceDir};
use proptest::prelude::*;

pub const T1: ThreadId = ThreadId(1);

/// A new trace in a new temporary directory.
pub fn new_trace() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let trace = new_trace_in(root.path());
    (root, trace)
}

pub fn new_trace_in(root: &Path) -> PathBuf {
    let meta = Meta::now(&["prog".into()], Path::new("/"), Options::default());
    TraceDir::create_numbered(root, "prog", meta)
        .unwrap()
        .path()
        .to_owned()
}

/// Writes a whole stream.
pub fn write(dir: &Path, thread: ThreadId, records: &[Record<'_>]) {
    let mut writer = StreamWriter::create(dir, thread).unwrap();
    for record in records {
        writer.append(record).unwrap();
    }
    writer.finish().unwrap();
}

/// All records up to the end or an error.
pub fn read(dir: &Path, thread: ThreadId) -> (Vec<Record<'static>>, Result<StreamReader>) {
    let mut records = Vec::new();
    let mut reader = match StreamReader::open(dir, thread) {
        Ok(reader) => reader,
        Err(e) => return (records, Err(e)),
    };
    loop {
        match reader.next() {
            Ok(Some(record)) => records.push(record.into_owned()),
            Ok(None) => return (records, Ok(reader)),
            Err(e) => return (records, Err(e)),
        }
    }
}

pub fn syscall(clock: u64, nr: u32, out: &[u8]) -> Record<'static> {
    let outs = if out.is_empty() {
        Vec::new()
    } else {
        vec![MemWrite {
            addr: 0x4fff_ffff_1000,
            data: Cow::Owned(out.to_vec()),
        }]
    };
    Record {
        clock,
        pc: 0x40_1000 + u64::from(nr) * 16,
        regs: (clock as u32).wrapping_mul(0x9e37_79b1),
        event: Event::Syscall {
            nr,
            args: Cow::Owned(vec![3, 0x4fff_ffff_1000, 512]),
            ret: out.len() as i64,
            outs,
            output: None,
            turn: None,
        },
    }
}

pub fn exit(clock: u64) -> Record<'static> {
    let event = Event::ProcessExit {
        status: Some(0),
        signal: None,
        memory: None,
    };
    Record {
        clock,
        pc: 0x40_2000,
        regs: 1,
        event,
    }
}

/// Mostly small values, but all of them.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..300, 2 => any::<u32>().prop_map(u64::from), 1 => any::<u64>()]
}

fn values() -> impl Strategy<Value = Cow<'static, [u64]>> {
    prop::collection::vec(number(), 0..9).prop_map(Cow::Owned)
}

fn bytes(max: usize) -> impl Strategy<Value = Cow<'static, [u8]>> {
    prop::collection::vec(any::<u8>(), 0..max).prop_map(Cow::Owned)
}

fn how() -> impl Strategy<Value = StartHow> {
    prop_oneof![
        Just(StartHow::Root),
        Just(StartHow::Fork),
        Just(StartHow::Vfork)
    ]
}

/// Any event that does not end a stream.
pub fn event() -> impl Strategy<Value = Event<'static>> {
    let out = (number(), bytes(5000)).prop_map(|(addr, data)| MemWrite { addr, data });
    let syscall = (
        any::<u32>(),
        values(),
        any::<i64>(),
        prop::collection::vec(out, 0..4),
        prop::option::of((0u8..3, number())),
        prop::option::of(number()),
    )
        .prop_map(|(nr, args, ret, mut outs, output, turn)| {
            // Some outputs go where an argument points to.
            for (out, arg) in outs.iter_mut().zip(args.iter().rev()) {
                if out.addr % 2 == 0 {
                    out.addr = *arg;
                }
            }
            Event::Syscall {
                nr,
                args,
                ret,
                outs,
                output,
                turn,
            }
        });
    let fork = (
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        any::<i32>(),
        prop::option::of(number()),
    )
        .prop_map(|(child, thread, nr, pid, turn)| Event::Fork {
            child: ProcId(child),
            child_thread: ThreadId(thread),
            nr,
            pid,
            turn,
        });
    prop_oneof![
        5 => syscall,
        1 => (any::<u32>(), prop::option::of(any::<u32>()), how(), any::<i32>()).prop_map(
            |(proc, parent, how, pid)| Event::ProcessStart {
                proc: ProcId(proc),
                parent: parent.map(ProcId),
                how,
                pid
            }
        ),
        1 => (any::<u32>(), any::<i32>(), number())
            .prop_map(|(proc, tid, turn)| Event::ThreadStart { proc: ProcId(proc), tid, turn }),
        1 => bytes(2000).prop_map(|info| Event::Image { info }),
        1 => (any::<u64>(), number(), number(), number(), number(), any::<[u8; 32]>(), number()).prop_map(
            |(addr, len, offset, dev, ino, hash, file_len)| Event::FileMapping {
                addr,
                len,
                offset,
                dev,
                ino,
                file: FileRef { hash, len: file_len }
            }
        ),
        1 => (any::<u64>(), number(), number(), any::<[u8; 32]>(), number()).prop_map(
            |(addr, len, offset, hash, file_len)| Event::FileData {
                addr,
                len,
                offset,
                file: FileRef { hash, len: file_len }
            }
        ),
        2 => (any::<u8>(), values()).prop_map(|(kind, values)| Event::Insn { kind, values }),
        1 => (any::<u8>(), bytes(130), any::<u64>(), any::<bool>()).prop_map(
            |(signo, info, fault_addr, synchronous)| Event::Signal {
                signo,
                info,
                fault_addr,
                synchronous
            }
        ),
        1 => number().prop_map(|turn| Event::Preempt { turn }),
        1 => fork,
        1 => (any::<u32>(), any::<i32>())
            .prop_map(|(thread, tid)| Event::Clone { thread: ThreadId(thread), tid }),
        1 => Just(Event::Exec),
        2 => (any::<bool>(), prop::collection::vec((any::<u64>(), bytes(40)), 0..5)).prop_map(
            |(step, writes)| Event::Shared {
                step,
                writes: writes
                    .into_iter()
                    .map(|(addr, data)| MemWrite { addr, data })
                    .collect(),
            }
        ),
        2 => (
            prop::option::of(number()),
            prop::option::of(any::<u8>()),
            any::<bool>(),
            prop::collection::vec((any::<u32>(), number(), number()), 0..80)
        )
            .prop_map(|(order, vcpu, find, edges)| Event::Sync {
                order,
                vcpu,
                stop: if find { Stop::Find } else { Stop::Comes },
                edges: edges
                    .into_iter()
                    .map(|(t, clock, event)| Edge { thread: ThreadId(t), clock, event })
                    .collect(),
            }),
    ]
}

/// Any event that ends a stream.
pub fn last_event() -> impl Strategy<Value = Event<'static>> {
    prop_oneof![
        any::<i32>().prop_map(|status| Event::ThreadExit { status }),
        (
            prop::option::of(any::<i32>()),
            prop::option::of(any::<u8>()),
            any::<Option<u64>>()
        )
            .prop_map(|(status, signal, memory)| Event::ProcessExit {
                status,
                signal,
                memory
            }),
        Just(Event::Killed),
    ]
}

/// A complete stream of up to `max` records.
pub fn stream(max: usize) -> impl Strategy<Value = Vec<Record<'static>>> {
    let position = (
        number(),
        prop_oneof![3 => 0u64..20, 1 => any::<u64>()],
        any::<u32>(),
    );
    let records = prop::collection::vec((position, event()), 0..max);
    (records, last_event()).prop_map(|(records, last)| {
        let mut clock = 0u64;
        let mut all: Vec<_> = records
            .into_iter()
            .map(|((delta, pc, regs), event)| {
                clock = clock.wrapping_add(delta);
                Record {
                    clock,
                    pc,
                    regs,
                    event,
                }
            })
            .collect();
        all.push(Record {
            clock,
            pc: 7,
            regs: 0,
            event: last,
        });
        all
    })
}

//! A small measurement of appending and reading; `cargo test --release --test bench -- --ignored --nocapture`.

mod common;

use std::borrow::Cow;
use std::time::Instant;

use common::*;
use crewind_trace::event::{Event, MemWrite, Record};
use crewind_trace::{Descriptors, StreamReader, StreamWriter, compact};

fn small(i: u64) -> Record<'static> {
    static ARGS: [u64; 4] = [3, 0x4fff_ffff_1230, 0x2000_1234_5000, 64];
    let event = Event::Syscall {
        nr: 1,
        args: Cow::Borrowed(&ARGS),
        ret: 64,
        outs: Vec::new(),
        output: None,
        turn: None,
    };
    Record {
        clock: i * 57,
        pc: 0x40_1000 + i % 37 * 80,
        regs: i as u32,
        event,
    }
}

#[test]
#[ignore = "a measurement"]
fn append_and_read() {
    const N: u64 = 4_000_000;
    for round in 0..3 {
        let (_root, dir) = new_trace();
        let mut writer = StreamWriter::create(&dir, T1).unwrap();
        let records: Vec<_> = (0..100_000).map(small).collect();
        let start = Instant::now();
        for i in 0..N {
            writer.append(&records[(i % 100_000) as usize]).unwrap();
        }
        let append = start.elapsed();
        let bytes = writer.bytes();
        writer.finish().unwrap();
        let read = || {
            let start = Instant::now();
            let mut reader = StreamReader::open(&dir, T1).unwrap();
            let mut n = 0;
            while reader.next().unwrap().is_some() {
                n += 1;
            }
            assert_eq!(n, N);
            start.elapsed()
        };
        let raw = read();
        let start = Instant::now();
        let (totals, _) = compact(&dir);
        let compressing = start.elapsed();
        let zst = read();
        let per = |d: std::time::Duration| d.as_nanos() as f64 / N as f64;
        println!(
            "round {round}: append {:.1} ns, {:.1} bytes; read raw {:.1} ns; compress {:.1} ns to \
             {:.2} bytes; read compressed {:.1} ns",
            per(append),
            bytes as f64 / N as f64,
            per(raw),
            per(compressing),
            totals.stored_bytes as f64 / N as f64,
            per(zst),
        );
    }
}

#[test]
#[ignore = "a measurement"]
fn append_data() {
    let (_root, dir) = new_trace();
    let mut writer = StreamWriter::create(&dir, T1).unwrap();
    let data: Vec<u8> = (0..65536u32)
        .map(|i| (i.wrapping_mul(i) >> 5) as u8)
        .collect();
    let outs = vec![MemWrite {
        addr: 0x2000_1234_5000,
        data: Cow::Borrowed(&data),
    }];
    let mut record = small(1);
    if let Event::Syscall { outs: o, .. } = &mut record.event {
        *o = outs;
    }
    const N: u32 = 10_000;
    for round in 0..3 {
        for descriptors in [Descriptors::Avoid, Descriptors::Momentary] {
            writer.set_descriptors(descriptors);
            let start = Instant::now();
            for _ in 0..N {
                writer.append(&record).unwrap();
            }
            let took = start.elapsed();
            println!(
                "round {round}: 64 KiB outputs, descriptors {descriptors:?}: {:?} each, {:.2} GB/s",
                took / N,
                f64::from(N) * data.len() as f64 / took.as_secs_f64() / 1e9
            );
        }
    }
    writer.finish().unwrap();
}

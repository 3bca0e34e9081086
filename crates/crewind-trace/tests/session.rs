//! The session between processes, some of which are killed holding its locks.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use crewind_trace::{OutputClass, Session};

const DIR: &str = "CREWIND_TEST_DIR";

fn child(test: &str, dir: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            test,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn dir_of_child() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

/// Counts in a file, under the lock, in two steps that others would disturb.
#[test]
#[ignore = "a child of other tests"]
fn child_counter() {
    let Some(dir) = dir_of_child() else { return };
    let session = Session::open(&dir).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(dir.join("count"))
        .unwrap();
    for _ in 0..2000 {
        let guard = session.output_lock(OutputClass::Stdout);
        let seq = session.next_output_seq();
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let (count, last) = bytes.split_at(8);
        let count = u64::from_le_bytes(count.try_into().unwrap());
        let last = u64::from_le_bytes(last.try_into().unwrap());
        assert!(
            count == 0 || seq > last,
            "sequence numbers are in the order of the lock"
        );
        file.write_all_at(&(count + 1).to_le_bytes(), 0).unwrap();
        file.write_all_at(&seq.to_le_bytes(), 8).unwrap();
        drop(guard);
        session.next_proc();
        session.next_thread();
    }
}

#[test]
fn processes_exclude_each_other() {
    let (_root, dir) = new_trace();
    let session = Session::create(&dir).unwrap();
    assert!(Session::create(&dir).is_err());
    assert_eq!(session.next_proc().0, 1);
    assert_eq!(session.next_thread().0, 1);
    fs::write(dir.join("count"), [0; 16]).unwrap();
    let children: Vec<_> = (0..4).map(|_| child("child_counter", &dir)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let bytes = fs::read(dir.join("count")).unwrap();
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()), 8000);
    assert_eq!(session.next_proc().0, 8002);
    assert_eq!(session.next_thread().0, 8002);
    assert_eq!(session.next_output_seq(), 8000);
}

/// Takes and frees the lock until killed, nearly always holding it.
#[test]
#[ignore = "a child of other tests"]
fn child_holder() {
    let Some(dir) = dir_of_child() else { return };
    let session = Session::open(&dir).unwrap();
    loop {
        let guard = session.output_lock(OutputClass::Stderr);
        println!("held");
        std::io::stdout().flush().unwrap();
        std::thread::sleep(Duration::from_micros(300));
        drop(guard);
    }
}

#[test]
fn a_lock_survives_its_holder() {
    let (_root, dir) = new_trace();
    let session = Session::create(&dir).unwrap();
    for round in 0..10u64 {
        let mut holder = child("child_holder", &dir);
        let mut out = holder.stdout.take().unwrap();
        // The harness's first lines, then "held".
        let mut seen = String::new();
        while !seen.contains("held") {
            let mut buf = [0; 256];
            let n = out.read(&mut buf).unwrap();
            assert!(n > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buf[..n]));
        }
        std::thread::sleep(Duration::from_micros(137 * round));
        holder.kill().unwrap();
        if round % 2 == 0 {
            holder.wait().unwrap();
        }
        // Otherwise it is a zombie, which holds nothing either.
        let start = Instant::now();
        let guard = session.output_lock(OutputClass::Stderr);
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(session.try_output_lock(OutputClass::Stderr).is_none());
        drop(guard);
        assert!(session.try_output_lock(OutputClass::Stderr).is_some());
        holder.wait().unwrap();
    }
}

#[test]
fn a_living_holder_keeps_its_lock() {
    let (_root, dir) = new_trace();
    let session = Session::create(&dir).unwrap();
    let guard = session.output_lock(OutputClass::Stdin);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let start = Instant::now();
            drop(session.output_lock(OutputClass::Stdin));
            start.elapsed()
        });
        std::thread::sleep(Duration::from_millis(120));
        drop(guard);
        assert!(waiter.join().unwrap() >= Duration::from_millis(60));
    });
    // The classes are independent.
    let _stdin = session.output_lock(OutputClass::Stdin);
    let _stdout = session.output_lock(OutputClass::Stdout);
    assert!(session.try_output_lock(OutputClass::Stderr).is_some());
}

#[test]
fn a_damaged_session_is_refused() {
    let (_root, dir) = new_trace();
    assert!(Session::open(&dir).is_err());
    drop(Session::create(&dir).unwrap());
    drop(Session::open(&dir).unwrap());
    let good = fs::read(dir.join("session.bin")).unwrap();
    for i in 0..16 {
        let mut bad = good.clone();
        bad[i] ^= 4;
        fs::write(dir.join("session.bin"), bad).unwrap();
        assert!(Session::open(&dir).is_err(), "byte {i}");
    }
    fs::write(dir.join("session.bin"), &good[..100]).unwrap();
    assert!(Session::open(&dir).is_err());
}

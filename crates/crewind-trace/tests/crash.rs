//! Writers that are killed, disks that are full, processes that fork.
//!
//! Child processes are this test binary again, running one of the ignored tests `child_*`.

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;
use crewind_trace::event::{Record, ThreadId};
use crewind_trace::{
    Compactor, FileStore, Meta, Options, StreamEnd, StreamReader, StreamWriter, TraceDir,
    TraceError, compact,
};

const DIR: &str = "CREWIND_TEST_DIR";

fn child(test: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            test,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn dir_of_child() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

fn nth(i: u64) -> Record<'static> {
    let data = [i as u8; 300];
    syscall(i * 2, (i % 700) as u32, &data[..(i % 97) as usize])
}

/// Writes until it is killed, and notes how many records count for sure. Continues a stream that is
/// there, and sometimes takes a new segment as after `execve`.
#[test]
#[ignore = "a child of other tests"]
fn child_writer() {
    let Some(dir) = dir_of_child() else { return };
    let progress = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join("progress"));
    let progress = progress.unwrap();
    let mut writer = StreamWriter::resume(&dir, T1)
        .or_else(|_| StreamWriter::create(&dir, T1))
        .unwrap();
    let mut i = writer.records();
    loop {
        writer.append(&nth(i)).unwrap();
        i += 1;
        if i.is_multiple_of(16) {
            progress.write_all_at(&i.to_le_bytes(), 0).unwrap();
        }
        if i.is_multiple_of(10_007) {
            writer.detach();
            writer = StreamWriter::resume(&dir, T1).unwrap();
        }
    }
}

fn noted(dir: &Path) -> u64 {
    let bytes = fs::read(dir.join("progress")).unwrap_or_default();
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

fn assert_nothing_lost(dir: &Path, least: u64) -> u64 {
    let Ok(mut reader) = StreamReader::open(dir, T1) else {
        assert_eq!(least, 0);
        return 0;
    };
    let mut i = 0;
    while let Some(record) = reader.next().unwrap() {
        assert_eq!(record, nth(i));
        i += 1;
    }
    assert!(i >= least, "{i} records, {least} were written");
    assert!(matches!(reader.end(), StreamEnd::Cut { .. }));
    i
}

#[test]
fn kill_9_loses_nothing() {
    let mut seed = 12345u64;
    let mut total = 0;
    for round in 0..12 {
        let (_root, dir) = new_trace();
        let compactor = (round % 2 == 0).then(|| Compactor::start(&dir).unwrap());
        // Several lives of one stream, as a shell that executes programs has them.
        for _ in 0..3 {
            let mut child = child("child_writer", &dir);
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            std::thread::sleep(Duration::from_millis(3 + (seed >> 33) % 40));
            child.kill().unwrap();
            child.wait().unwrap();
            assert_nothing_lost(&dir, noted(&dir));
        }
        let found = assert_nothing_lost(&dir, noted(&dir));
        let (totals, error) = match compactor {
            Some(compactor) => compactor.finish(),
            None => compact(&dir),
        };
        assert!(error.is_none(), "{error:?}");
        assert_eq!(assert_nothing_lost(&dir, found), found);
        assert_eq!(totals.threads.get(&1).copied().unwrap_or(0), found);
        total += found;
    }
    println!("{total} records, none lost");
    assert!(total > 1000, "the children wrote nothing to speak of");
}

/// A small tmpfs, as long as it lives; `None` (printed) where it cannot be mounted.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "crewind-test"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(out) if out.status.success() => Some(SmallDisk(dir)),
            other => {
                eprintln!("SKIPPED: no small file system can be mounted here: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|s| s.success()));
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let Some(disk) = SmallDisk::new("1m") else {
        return;
    };
    let dir = new_trace_in(disk.0.path());
    let mut writer = StreamWriter::create(&dir, T1).unwrap();
    let mut written = 0;
    let error = loop {
        match writer.append(&nth(written)) {
            Ok(()) => written += 1,
            Err(e) => break e,
        }
        assert!(written < 1_000_000);
    };
    assert!(
        matches!(error, TraceError::NoSpace { needed: 1.., .. }),
        "{error}"
    );
    assert!(error.to_string().contains("crewind rm"), "{error}");
    // No record after the one that failed, though there is room for a smaller one.
    assert!(matches!(
        writer.append(&exit(1 << 40)),
        Err(TraceError::Poisoned { .. })
    ));
    assert!(writer.finish().is_err());
    let (found, reader) = read(&dir, T1);
    assert_eq!(found.len() as u64, written);
    assert!(matches!(reader.unwrap().end(), StreamEnd::Cut { .. }));

    // What else needs space says so as well.
    fs::write(disk.0.path().join("filler"), vec![1; 2 << 20]).unwrap_err();
    let no_space = |e: TraceError| assert!(matches!(e, TraceError::NoSpace { .. }), "{e}");
    no_space(StreamWriter::create(&dir, ThreadId(2)).err().unwrap());
    let (_, error) = compact(&dir);
    no_space(error.unwrap());
    assert_eq!(
        read(&dir, T1).0.len() as u64,
        written,
        "failed compressing loses nothing"
    );
    let store = FileStore::open(disk.0.path(), &dir);
    if let Ok(store) = store {
        let big = tempfile::NamedTempFile::new().unwrap();
        fs::write(big.path(), vec![7; 100_000]).unwrap();
        no_space(store.put(big.as_file()).unwrap_err());
    }
    let leftovers: Vec<_> = fs::read_dir(dir.join("streams"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".new"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
    // There is space again: everything can go on but the stream that failed.
    fs::remove_file(disk.0.path().join("filler")).unwrap();
    let (_, error) = compact(&dir);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(read(&dir, T1).0.len() as u64, written);
}

#[test]
fn a_fork_leaves_the_parents_stream_alone() {
    let (_root, dir) = new_trace();
    let mut writer = StreamWriter::create(&dir, T1).unwrap();
    writer.append(&nth(0)).unwrap();
    // SAFETY: the child only unmaps memory and ends.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        writer.detach();
        // SAFETY: ends the process without running the test harness's exit handlers.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: `status` has room for the result.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
    writer.append(&exit(2)).unwrap();
    writer.finish().unwrap();
    let (found, reader) = read(&dir, T1);
    assert_eq!(found, [nth(0), exit(2)]);
    assert_eq!(reader.unwrap().end(), StreamEnd::Complete);
}

#[test]
fn a_umask_does_not_hide_the_trace_from_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    // SAFETY: umask cannot fail; other tests of this binary only make files of their own in it.
    let old = unsafe { libc::umask(0) };
    let meta = Meta::now(&["prog".into()], Path::new("/"), Options::default());
    let trace = TraceDir::create(&root.path().join("deep/root"), "x", meta).unwrap();
    write(trace.path(), T1, &[exit(0)]);
    // SAFETY: as above.
    unsafe { libc::umask(old) };
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(trace.path()), 0o700);
    // Root's processes may become anybody; the trace's directory keeps all others out.
    // SAFETY: returns a number.
    let root = unsafe { libc::geteuid() } == 0;
    let (streams, segment) = if root { (0o777, 0o666) } else { (0o700, 0o600) };
    assert_eq!(mode(&trace.path().join("streams")), streams);
    assert_eq!(mode(&trace.path().join("meta.json")), 0o600);
    assert_eq!(mode(&trace.path().join("streams/t1.000000.raw")), segment);
}

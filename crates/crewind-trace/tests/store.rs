//! The store of files, and traces as directories.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use common::*;
use crewind_trace::event::{Event, FileRef, ProcId, StartHow, ThreadId};
use crewind_trace::{FileStore, Meta, Options, TraceDir, TraceError, Verify};

/// A file whose times are so old that they count.
fn old_file(dir: &Path, name: &str, content: &[u8]) -> File {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    file.set_modified(long_ago).unwrap();
    file
}

/// The change time cannot be set, so what depends on it has to wait.
fn settle() {
    std::thread::sleep(Duration::from_millis(3100));
}

fn stored(root: &Path) -> usize {
    fs::read_dir(root.join(".store")).unwrap().count() - 1
}

fn in_trace(dir: &Path) -> Vec<fs::DirEntry> {
    fs::read_dir(dir.join("files"))
        .unwrap()
        .map(|e| e.unwrap())
        .collect()
}

fn content(store: &FileStore, file: &FileRef) -> Vec<u8> {
    let file = store.open_ref(file).unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn files_are_stored_once() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let a = old_file(elsewhere.path(), "a", &[b'x'; 300_000]);
    let same = old_file(elsewhere.path(), "same", &[b'x'; 300_000]);
    let empty = old_file(elsewhere.path(), "empty", b"");
    settle();
    let mut refs = Vec::new();
    let mut inodes = Vec::new();
    for _ in 0..3 {
        let dir = new_trace_in(root.path());
        let store = FileStore::open(root.path(), &dir).unwrap();
        let a_ref = store.put(&a).unwrap();
        assert_eq!(store.put(&a).unwrap(), a_ref);
        assert_eq!(store.put(&same).unwrap(), a_ref);
        assert_eq!(store.put_fresh(&a).unwrap(), a_ref);
        let empty_ref = store.put(&empty).unwrap();
        assert_eq!(in_trace(&dir).len(), 2);
        assert_eq!(content(&store, &a_ref), [b'x'; 300_000]);
        assert_eq!(content(&store, &empty_ref), b"");
        assert_eq!(stored(root.path()), 2);
        let names = in_trace(&dir);
        let largest = names
            .iter()
            .map(|e| e.metadata().unwrap())
            .max_by_key(|m| m.len())
            .unwrap();
        assert_eq!(largest.permissions().mode() & 0o777, 0o400);
        inodes.push(largest.ino());
        refs.push((a_ref, empty_ref));
    }
    assert!(refs.windows(2).all(|w| w[0] == w[1]));
    assert!(
        inodes.windows(2).all(|w| w[0] == w[1]),
        "hard links: {inodes:?}"
    );
}

#[test]
fn a_changed_file_is_another_file() {
    let (root, dir) = new_trace();
    let store = FileStore::open(root.path(), &dir).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let mut refs = Vec::new();
    // Fast changes that keep the size, as a build makes them.
    for i in 0..50u8 {
        file.write_all_at(&[i; 100], 0).unwrap();
        let file_ref = store.put(&file).unwrap();
        assert_eq!(content(&store, &file_ref), [i; 100]);
        refs.push(file_ref);
    }
    refs.dedup();
    assert_eq!(refs.len(), 50);
    file.write_all(b"").unwrap();
    assert!(
        store.put(&File::open("/").unwrap()).is_err(),
        "a directory has no content"
    );
}

#[test]
fn a_file_that_changes_while_it_is_copied_is_stored_as_copied() {
    let (root, dir) = new_trace();
    let store = FileStore::open(root.path(), &dir).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), vec![0; 1 << 20]).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut i = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                i += 4099;
                file.as_file()
                    .write_all_at(&i.to_le_bytes(), i % (1 << 20))
                    .unwrap();
            }
        });
        for _ in 0..20 {
            let file_ref = store.put(file.as_file()).unwrap();
            // Checks the hash.
            store.open_ref(&file_ref).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn known_files_cost_little() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let files: Vec<_> = (0..50u32)
        .map(|i| old_file(elsewhere.path(), &i.to_string(), &i.to_le_bytes()))
        .collect();
    settle();
    for round in 0..3 {
        let dir = new_trace_in(root.path());
        let store = FileStore::open(root.path(), &dir).unwrap();
        for what in ["first", "again"] {
            let start = Instant::now();
            for file in &files {
                store.put(file).unwrap();
            }
            println!("trace {round}, {what}: {:?} per file", start.elapsed() / 50);
        }
    }
}

#[test]
fn damaged_and_foreign_contents_are_refused() {
    let (root, dir) = new_trace();
    let store = FileStore::open(root.path(), &dir).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"the content").unwrap();
    let file_ref = store.put(&file).unwrap();
    let stored = in_trace(&dir)[0].path();
    let by_hash = || FileStore::for_replay(&dir, Verify::Hash).open_ref(&file_ref);
    let by_size = || FileStore::for_replay(&dir, Verify::Size).open_ref(&file_ref);
    by_hash().unwrap();
    let replace = |bytes: &[u8]| {
        fs::remove_file(&stored).unwrap();
        fs::write(&stored, bytes).unwrap();
    };
    replace(b"the c0ntent");
    assert!(matches!(by_hash(), Err(TraceError::Corrupt { .. })));
    by_size().unwrap();
    replace(b"the conten");
    assert!(matches!(by_size(), Err(TraceError::Truncated { .. })));
    replace(b"the content!");
    assert!(matches!(by_size(), Err(TraceError::Corrupt { .. })));
    fs::remove_file(&stored).unwrap();
    assert!(by_size().unwrap_err().to_string().contains("files/"));
    symlink("/etc/passwd", &stored).unwrap();
    let passwd = FileRef {
        len: fs::metadata("/etc/passwd").unwrap().len(),
        ..file_ref.clone()
    };
    assert!(
        FileStore::for_replay(&dir, Verify::Size)
            .open_ref(&passwd)
            .is_err()
    );
}

#[test]
fn gc_removes_what_no_trace_has() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    assert_eq!(FileStore::gc(root.path()).unwrap().files, 0);
    let a = old_file(elsewhere.path(), "a", b"aaaa");
    let b = old_file(elsewhere.path(), "b", b"bb");
    settle();
    let first = new_trace_in(root.path());
    let second = new_trace_in(root.path());
    let first_store = FileStore::open(root.path(), &first).unwrap();
    let second_store = FileStore::open(root.path(), &second).unwrap();
    first_store.put(&a).unwrap();
    let b_ref = first_store.put(&b).unwrap();
    second_store.put(&b).unwrap();
    assert_eq!(FileStore::gc(root.path()).unwrap().files, 0);
    TraceDir::remove(&first).unwrap();
    let removed = FileStore::gc(root.path()).unwrap();
    assert_eq!((removed.files, removed.bytes), (1, 4));
    assert_eq!(
        fs::read_dir(root.path().join(".store/index"))
            .unwrap()
            .count(),
        1
    );
    assert_eq!(content(&second_store, &b_ref), b"bb");
    // Gone from the store means copied again.
    let a_ref = second_store.put(&a).unwrap();
    assert_eq!(content(&second_store, &a_ref), b"aaaa");
    // The store is only a cache.
    fs::remove_dir_all(root.path().join(".store")).unwrap();
    assert_eq!(content(&second_store, &a_ref), b"aaaa");
    let third = new_trace_in(root.path());
    assert!(
        FileStore::open(root.path(), &third)
            .unwrap()
            .put(&a)
            .is_ok()
    );
}

#[test]
fn traces_are_listed_and_removed() {
    let root = tempfile::tempdir().unwrap();
    assert!(
        TraceDir::list(&root.path().join("none"))
            .unwrap()
            .is_empty()
    );
    assert!(TraceDir::latest(root.path()).is_err());
    let first = new_trace_in(root.path());
    let second = new_trace_in(root.path());
    assert_eq!(
        TraceDir::latest(root.path()).unwrap().path(),
        second.canonicalize().unwrap()
    );
    fs::create_dir(root.path().join("not-a-trace")).unwrap();
    fs::write(root.path().join("not-a-trace/important"), "x").unwrap();
    let names: Vec<_> = TraceDir::list(root.path())
        .unwrap()
        .iter()
        .map(|t| t.path().file_name().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["prog-0", "prog-1"]);
    for name in ["", ".", "..", "a/b", ".hidden", "latest"] {
        let meta = Meta::now(&[], Path::new("/"), Options::default());
        assert!(
            TraceDir::create(root.path(), name, meta).is_err(),
            "{name:?}"
        );
    }
    assert!(TraceDir::remove(&root.path().join("not-a-trace")).is_err());
    assert!(root.path().join("not-a-trace/important").exists());
    // Something of the user's in a trace keeps it.
    fs::write(first.join("notes.txt"), "x").unwrap();
    assert!(TraceDir::remove(&first).is_err());
    assert!(first.join("notes.txt").exists());
    assert!(
        TraceDir::open(&first)
            .unwrap()
            .threads()
            .unwrap()
            .is_empty(),
        "nothing was removed"
    );
    write(&second, T1, &[exit(0)]);
    TraceDir::remove(&second).unwrap();
    assert!(!second.exists());
    assert!(fs::symlink_metadata(root.path().join("latest")).is_err());
    fs::remove_file(first.join("notes.txt")).unwrap();
    TraceDir::remove(&first).unwrap();
}

#[test]
fn a_trace_in_a_place_of_its_own() {
    let root = tempfile::tempdir().unwrap();
    let meta = || Meta::now(&[], Path::new("/"), Options::default());
    let path = root.path().join("new");
    let trace = TraceDir::create_at(&path, meta()).unwrap();
    assert!(TraceDir::create_at(&path, meta()).is_err());
    assert!(TraceDir::latest(root.path()).is_err());
    TraceDir::point_latest(root.path(), trace.path()).unwrap();
    assert_eq!(TraceDir::latest(root.path()).unwrap().path(), trace.path());
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    TraceDir::create_at(&empty, meta()).unwrap();
    assert!(TraceDir::create_at(&root.path().join("no/parent"), meta()).is_err());
}

#[test]
fn processes_and_threads() {
    let (_root, dir) = new_trace();
    let trace = TraceDir::open(&dir).unwrap();
    let start = |proc, parent, how| {
        let event = Event::ProcessStart {
            proc: ProcId(proc),
            parent,
            how,
            pid: proc as i32 + 100,
        };
        crewind_trace::event::Record { event, ..exit(0) }
    };
    let thread = |proc| {
        let event = Event::ThreadStart {
            proc: ProcId(proc),
            tid: 7,
            turn: 1,
        };
        crewind_trace::event::Record { event, ..exit(0) }
    };
    write(
        &dir,
        ThreadId(1),
        &[start(1, None, StartHow::Root), exit(1)],
    );
    write(
        &dir,
        ThreadId(3),
        &[
            start(2, Some(ProcId(1)), StartHow::Fork),
            syscall(9, 1, b""),
        ],
    );
    write(&dir, ThreadId(2), &[thread(1), exit(3)]);
    write(&dir, ThreadId(4), &[]);
    let processes = trace.processes().unwrap();
    assert_eq!(processes.len(), 2);
    assert_eq!(processes[0].threads, [ThreadId(1), ThreadId(2)]);
    assert_eq!(
        (processes[1].pid, processes[1].parent),
        (102, Some(ProcId(1)))
    );
    assert_eq!(trace.thread_end(ThreadId(2)).unwrap(), Some(exit(0).event));
    assert_eq!(trace.thread_end(ThreadId(3)).unwrap(), None);
    assert_eq!(trace.thread_end(ThreadId(4)).unwrap(), None);
    assert_eq!(trace.thread_end(ThreadId(5)).unwrap(), None);
}

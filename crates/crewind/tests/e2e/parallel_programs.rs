//! Real programs with threads, in each way to record.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{CREWIND, Case, find_program, guest_sources, scratch, skip};

/// A file of a few megabytes that compresses as text does, made by the script itself.
const DATA: &str = "seq 1 300000 | awk '{ print $1 * 7919 % 10007, \"line\", $1 }' > data; ";

/// A script that packs `data`, unpacks it and compares.
fn packing(name: &str, program: &str, pack: &str, unpack: &str) {
    let script = format!(
        "{DATA}{pack} < data > packed && wc -c < packed && {unpack} < packed | cmp - data && echo same"
    );
    Case::bash(name, &script)
        .needs(&[program, "awk"])
        .timeout(240)
        .run_in_modes(1);
}

#[test]
fn pigz() {
    packing("pigz", "pigz", "pigz -n -p 3 -c", "pigz -p 3 -dc");
}

#[test]
fn pbzip2() {
    packing("pbzip2", "pbzip2", "pbzip2 -p2 -1 -c", "pbzip2 -p2 -1 -dc");
}

#[test]
fn xz_threads() {
    packing(
        "xz_threads",
        "xz",
        "xz -0 -T2 --block-size=1MiB -c",
        "xz -T2 -dc",
    );
}

#[test]
fn zstd_threads() {
    packing(
        "zstd_threads",
        "zstd",
        "zstd -q -5 -T2 -B512K -c",
        "zstd -q -dc",
    );
}

#[test]
fn seven_zip() {
    // The archive holds times.
    let script = format!(
        "{DATA}7z a -bd -mx=1 -mmt=2 packed.7z data > log && 7z e -so packed.7z | cmp - data && echo same"
    );
    Case::bash("seven_zip", &script)
        .needs(&["7z", "awk"])
        .varies()
        .timeout(240)
        .run_in_modes(1);
}

#[test]
fn sort_parallel() {
    let script = format!(
        "{DATA}sort --parallel=4 -S 8M -n data | md5sum; sort --parallel=2 -k2,2 -k1,1nr -u data | tail -2"
    );
    Case::bash("sort_parallel", &script)
        .needs(&["sort", "awk"])
        .timeout(240)
        .run_in_modes(1);
}

#[test]
fn rust_rayon() {
    let program = Path::new(CREWIND).with_file_name("examples").join("rayon");
    let program = program.to_str().expect("paths are UTF-8");
    Case::new("rust_rayon", &[program])
        .varies()
        .timeout(120)
        .run_in_modes(2);
}

/// Builds the Go program of that name in `tests/guests/go`.
fn go_program(name: &str) -> PathBuf {
    let directory = scratch().join("go");
    std::fs::create_dir_all(&directory).expect("the scratch directory can be written");
    let program = directory.join(name);
    let output = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(guest_sources().join("go").join(format!("{name}.go")))
        .env("GOCACHE", directory.join("cache"))
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", "0")
        .output()
        .expect("go can be started");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    program
}

#[test]
fn go_goroutines() {
    if find_program("go").is_none() {
        return skip("go_goroutines", "go is not installed");
    }
    let program = go_program("goroutines");
    let program = program.to_str().expect("paths are UTF-8");
    Case::new("go_goroutines", &[program])
        .env("GOMAXPROCS", "3")
        .varies()
        .timeout(120)
        .run_in_modes(2);
}

#[test]
fn numpy_threads() {
    let script = r#"
import numpy, threading
n = numpy.arange(400 * 400, dtype=float).reshape(400, 400) % 97
m = n @ n.T
print(m.sum(), m[17, 33], numpy.linalg.solve(n @ n.T + numpy.eye(400) * 1e6, n[0])[:2].round(12))
results = [None] * 3
def work(i): results[i] = (n[i:] @ n.T[:, i:]).trace()
threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
for t in threads: t.start()
for t in threads: t.join()
print(results)
"#;
    let numpy = "/usr/lib/python3/dist-packages/numpy/__init__.py";
    Case::new("numpy_threads", &["/usr/bin/python3", "script.py"])
        .needs(&["/usr/bin/python3", numpy])
        .env("OPENBLAS_NUM_THREADS", "2")
        .file("script.py", script)
        .varies()
        .timeout(240)
        .run_in_modes(1);
}

#[test]
fn python_threads() {
    let script = r#"
import queue, random, threading, time, concurrent.futures, hashlib, zlib
counter, seen, q, lock = 0, [], queue.Queue(5), threading.Lock()
def busy(n):
    global counter
    for i in range(30000):
        counter += 1
        if i % 1000 == 0: seen.append((n, counter))
threads = [threading.Thread(target=busy, args=(n,)) for n in range(3)]
for t in threads: t.start()
def producer():
    for i in range(300): q.put(i)
    q.put(None)
def consumer():
    while (x := q.get()) is not None: seen.append(x)
threads += [threading.Thread(target=producer), threading.Thread(target=consumer)]
for t in threads[3:]: t.start()
for t in threads: t.join()
print(counter, hashlib.md5(repr(seen).encode()).hexdigest())
data = random.Random(1).randbytes(300000)
with concurrent.futures.ThreadPoolExecutor(3) as pool:
    # These let go of the interpreter's lock.
    print([len(x) for x in pool.map(lambda i: zlib.compress(data, i), range(1, 7))])
    print(list(pool.map(lambda i: hashlib.sha256(data * i).hexdigest()[:8], range(1, 5))))
event, done = threading.Event(), []
timer = threading.Timer(0.02, event.set); timer.start()
print(event.wait(10), threading.active_count() >= 1)
local = threading.local()
def use(n):
    local.n = n; time.sleep(0.001); done.append(local.n == n)
threads = [threading.Thread(target=use, args=(n,)) for n in range(10)]
for t in threads: t.start()
for t in threads: t.join()
print(all(done), len(done))
"#;
    Case::new("python_threads", &["/usr/bin/python3", "script.py"])
        .needs(&["/usr/bin/python3"])
        .file("script.py", script)
        .varies()
        .timeout(120)
        .run_in_modes(2);
}

#[test]
fn sqlite_threads() {
    let script = r#"
import sqlite3, threading
connect = lambda: sqlite3.connect('test.db', timeout=60, isolation_level=None)
with connect() as db: db.execute('PRAGMA journal_mode=WAL'); db.execute('CREATE TABLE t(id INTEGER PRIMARY KEY, who INT, n INT)')
order = []
def work(who):
    db = connect()
    for n in range(15):
        db.execute('BEGIN IMMEDIATE')
        db.executemany('INSERT INTO t(who, n) VALUES (?, ?)', [(who, n * 100 + i) for i in range(100)])
        order.append((who, db.execute('SELECT count(*) FROM t').fetchone()[0]))
        db.execute('COMMIT')
threads = [threading.Thread(target=work, args=(w,)) for w in range(4)]
for t in threads: t.start()
for t in threads: t.join()
shared = sqlite3.connect(':memory:', check_same_thread=False)
shared.execute('CREATE TABLE s(x)')
threads = [threading.Thread(target=lambda: shared.executemany('INSERT INTO s VALUES (?)', [(i,) for i in range(3000)])) for _ in range(3)]
for t in threads: t.start()
for t in threads: t.join()
print(order, connect().execute('SELECT who, count(*), sum(n) FROM t GROUP BY who').fetchall(), shared.execute('SELECT count(*), sum(x) FROM s').fetchall())
"#;
    // WAL shares an index file between connections, through memory.
    Case::new("sqlite_threads", &["/usr/bin/python3", "script.py"])
        .needs(&["/usr/bin/python3"])
        .file("script.py", script)
        .varies()
        .timeout(120)
        .run_in_modes(1);
}

#[test]
fn make_jobs() {
    let makefile = "OBJ = $(patsubst %.c,%.o,$(wildcard *.c))\nprogram: $(OBJ)\n\tgcc -o $@ $(OBJ)\n%.o: %.c\n\tgcc -O1 -c -o $@ $<\n";
    let mut case = Case::bash("make_jobs", "make -s -j4 && ./program")
        .needs(&["make", "gcc"])
        .file("Makefile", makefile);
    let (mut calls, mut declarations) = (String::new(), String::new());
    for i in 0..8 {
        case = case.file(
            &format!("f{i}.c"),
            format!("int f{i}(int x) {{ return x * {i} + 1; }}\n"),
        );
        let _ = write!(declarations, "int f{i}(int);");
        let _ = write!(calls, "x = f{i}(x);");
    }
    let main = format!(
        "#include <stdio.h>\n{declarations}\nint main(void) {{ int x = 3; {calls} printf(\"%d\\n\", x); }}\n"
    );
    case.file("main.c", main).timeout(120).run_in_modes(1);
}

#[test]
fn redis() {
    // A free port, which nobody else takes in the moment before redis does.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("there is a loopback interface")
        .port();
    let script = format!(
        "redis-server --port {port} --bind 127.0.0.1 --io-threads 2 --io-threads-do-reads yes --save '' > server.log & \
         for i in $(seq 100); do [ -s server.log ] && redis-cli -p {port} ping 2>/dev/null | grep -q PONG && break; sleep 0.1; done; \
         redis-benchmark -p {port} -q -n 400 -c 8 -P 4 -t set,get,incr,lpush,zadd > benchmark.log; grep -c . benchmark.log; \
         redis-cli -p {port} set key value; redis-cli -p {port} incr counter; redis-cli -p {port} get key; \
         redis-cli -p {port} shutdown nosave; wait; echo ended $?"
    );
    Case::bash("redis", &script)
        .needs(&["redis-server", "redis-benchmark", "redis-cli"])
        .varies()
        .timeout(240)
        .run_in_modes(1);
}

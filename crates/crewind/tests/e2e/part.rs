//! Recordings of parts of a run: begun and ended by the program, or from outside.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{CREWIND, Output, Place, build, find_program, run, show, skip};

const LIMIT: Duration = Duration::from_secs(200);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The newest `crewind-api` that was built: for C (`.a`) or Rust (`.rlib`).
fn library(ending: &str) -> String {
    let entries = std::fs::read_dir(deps()).expect("deps are there").flatten();
    let newest = entries
        .filter(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            name.starts_with("libcrewind_api-") && name.ends_with(ending)
        })
        .max_by_key(|e| e.metadata().and_then(|m| m.modified()).ok());
    newest
        .expect("crewind-api is built as a library")
        .path()
        .display()
        .to_string()
}

fn deps() -> PathBuf {
    let directory = Path::new(CREWIND).parent();
    directory
        .expect("the command is in a directory")
        .join("deps")
}

/// Builds a program with the calls.
fn program(source: &Path) -> String {
    let include = root().join("crates/crewind-api/include");
    let flags = [
        "-pthread".to_owned(),
        format!("-I{}", include.display()),
        "-Wl,--whole-archive".to_owned(),
        library(".a"),
        "-Wl,--no-whole-archive".to_owned(),
        "-Wl,-z,now".to_owned(),
    ];
    build(source, &flags, ".part").display().to_string()
}

fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/part")
        .join(name)
}

fn crewind(place: &Place, words: &[&str]) -> Output {
    place
        .crewind(words, LIMIT)
        .unwrap_or_else(|e| panic!("{e}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The traces that a run named.
fn traces(output: &Output) -> Vec<String> {
    text(&output.stderr)
        .lines()
        .filter_map(|l| l.strip_prefix("crewind: trace in "))
        .map(str::to_owned)
        .collect()
}

fn replays(place: &Place, trace: &str) -> Output {
    let replayed = crewind(place, &["replay", trace]);
    assert_eq!(replayed.status.code(), Some(0), "{}", show(&replayed));
    replayed
}

/// Runs one of the examples that repeat an order in place, and replays some of the traces that it leaves.
fn order_is_repeated(name: &str, owner: &str, rounds: usize, how: &[&str]) {
    let place = Place::new(name);
    let number = rounds.to_string();
    let words: Vec<&str> = std::iter::once("run")
        .chain(how.iter().copied())
        .chain(["--", owner, &number])
        .collect();
    let ran = crewind(&place, &words);
    assert_eq!(ran.status.code(), Some(0), "{}", show(&ran));
    let wanted = format!("{rounds} rounds: the replay had the recorded order and value each time");
    assert!(text(&ran.stdout).starts_with(&wanted), "{}", show(&ran));
    let traces = traces(&ran);
    assert_eq!(traces.len(), rounds, "{}", show(&ran));
    for trace in traces.iter().step_by(rounds.div_ceil(10)) {
        replays(&place, trace);
    }
    place.clear();
}

#[test]
fn part_order_is_repeated_in_place() {
    let owner = program(&root().join("examples/owner.c"));
    order_is_repeated("part_order", &owner, 1000, &["--sharing", "serial"]);
    order_is_repeated("part_order_one", &owner, 25, &["--cpus", "1"]);
}

#[test]
fn part_order_is_repeated_in_place_in_rust() {
    let source = root().join("examples/owner.rs");
    let api = format!("crewind_api={}", library(".rlib"));
    let dependencies = format!("dependency={}", deps().display());
    let flags = ["--extern", &api, "-L", &dependencies].map(str::to_owned);
    let owner = build(&source, &flags, ".rust").display().to_string();
    order_is_repeated("part_order_rust", &owner, 1000, &[]);
    let place = Place::new("part_order_alone");
    let ran = run(place.command(&[&owner], &place.work, &[]), b"", LIMIT).unwrap();
    assert!(
        text(&ran.stdout).starts_with("recording is not available"),
        "{}",
        show(&ran)
    );
    place.clear();
}

#[test]
fn part_without_crewind_the_program_goes_on() {
    let owner = program(&root().join("examples/owner.c"));
    let place = Place::new("part_without");
    let ran = run(place.command(&[&owner], &place.work, &[]), b"", LIMIT).unwrap();
    assert_eq!(ran.status.code(), Some(0), "{}", show(&ran));
    assert!(
        text(&ran.stdout).starts_with("recording is not available"),
        "{}",
        show(&ran)
    );
    // `crewind record` is not the program's to begin.
    let misuse = program(&own("misuse.c"));
    let recorded = crewind(&place, &["record", "-o", "t", "--", &misuse]);
    let out = text(&recorded.stdout);
    assert!(out.contains("start_rec(&a): -16\n"), "{out}");
    assert!(out.contains("rec_owner(): 0\n"), "{out}");
    let replayed = crewind(&place, &["replay", "t"]);
    assert_eq!(text(&replayed.stdout), out, "{}", show(&replayed));
    place.clear();
}

#[test]
fn part_work_that_is_not_the_same_is_told() {
    let counts = program(&own("counts.c"));
    let place = Place::new("part_counts");
    let ran = crewind(&place, &["run", "--", &counts]);
    const EXPECTED: &str = "\
stop_rec: 4
the same: 0
stop_rep: 4
one round more: -34
stop_rep: -34
one round more: 0
stop_rep: 4
only the order: 0
stop_rep: 4
";
    assert_eq!(text(&ran.stdout), EXPECTED, "{}", show(&ran));
    let warned = text(&ran.stderr);
    let told = "rec_owner, call 3: thread 2 comes ";
    assert!(warned.contains(told), "{warned}");
    place.clear();
}

#[test]
fn part_misuse_is_told() {
    const EXPECTED: &str = "\
nothing is on
stop_rec(): -22
stop_rep(): -22
rec_owner(): -22
start_rep(NULL): -14
start_rep((void *)16): -14
raw(0xc3e001, 7): -22
raw(0xc3e002, 7): -22
recording
start_rec(&a): 0
start_rec(&a): -16
start_rep(&a): -16
stop_rep(): -22
rec_owner(): 0
in_thread(2): 0
WEXITSTATUS(status): 7
posix_spawnp(&child, \"true\", NULL, NULL, words, environ): 0
WEXITSTATUS(status): 0
posix_spawnp(&child, \"/nonexistent\", NULL, NULL, words, environ): 2
stop_rec(): 3
stop_rec(): -22
count(a.next): 3
replaying
start_rep(&a): 0
start_rep(&a): -16
start_rec(&b): -16
stop_rec(): -22
rec_owner(): -3
rec_owner(): -125
stop_rep(): -34
start_rep(&a): 0
in_thread(3): -125
stop_rep(): -34
lists
start_rec(&b): 0
in_thread(3): 0
stop_rec(): 3
count(b.next): 2
start_rep(&b): 0
in_thread(3): -34
stop_rep(): -34
rec_list((void *)8): -14
start_rep(&b): -22
";
    let misuse = program(&own("misuse.c"));
    let place = Place::new("part_misuse");
    let ran = crewind(&place, &["run", "--", &misuse]);
    assert_eq!(text(&ran.stdout), EXPECTED, "{}", show(&ran));
    let warned = text(&ran.stderr);
    assert!(
        warned.contains("only the one process is in the trace"),
        "{warned}"
    );
    let traces = traces(&ran);
    assert_eq!(traces.len(), 2, "{}", show(&ran));
    let replayed = replays(&place, &traces[0]);
    let part = EXPECTED
        .split_once("recording\n")
        .and_then(|(_, rest)| rest.split_once("stop_rec()"))
        .map(|(part, _)| part.to_owned());
    assert_eq!(Some(text(&replayed.stdout)), part, "{}", show(&replayed));
    replays(&place, &traces[1]);
    place.clear();
}

/// A server that `crewind run` runs, under load.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(place: &Place, how: &[&str]) -> Server {
        let program = program(&own("server.c"));
        let port_file = place.work.join("port");
        let port_name = port_file.display().to_string();
        let words: Vec<&str> = [CREWIND, "run"]
            .into_iter()
            .chain(how.iter().copied())
            .chain(["--", &program, &port_name])
            .collect();
        let child = place
            .command(&words, &place.work, &[])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("crewind can be started");
        let until = Instant::now() + LIMIT;
        let port = loop {
            assert!(Instant::now() < until, "the server does not start");
            if let Ok(port) = std::fs::read_to_string(&port_file) {
                break port.trim().parse().expect("a port");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Server { child, port }
    }

    /// Runs `during` while four clients ask all the time.
    fn under_load<T>(&self, during: impl FnOnce(&AtomicU64) -> T) -> T {
        let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut stream =
                        TcpStream::connect(("127.0.0.1", self.port)).expect("the server listens");
                    let mut answer = [0; 256];
                    while !stop.load(Ordering::Relaxed) {
                        stream.write_all(b"hello world").expect("it reads");
                        let n = stream.read(&mut answer).expect("it answers");
                        assert!(n > 0, "it goes on");
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let done = during(&served);
            stop.store(true, Ordering::Relaxed);
            done
        })
    }

    /// Waits until so many more requests were served.
    fn serve(served: &AtomicU64, more: u64) {
        let (from, until) = (served.load(Ordering::Relaxed), Instant::now() + LIMIT);
        while served.load(Ordering::Relaxed) < from + more {
            assert!(Instant::now() < until, "the server does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).unwrap_or(0);
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let _ = self.child.wait();
    }
}

#[test]
fn part_of_a_server_is_recorded_from_outside() {
    for how in [
        &["--sharing", "serial"][..],
        &["--sharing", "software", "--cpus", "2"],
    ] {
        let place = Place::new("part_server");
        let server = Server::start(&place, how);
        let pid = server.child.id().to_string();
        let stopped = server.under_load(|served| {
            Server::serve(served, 200);
            let early = crewind(&place, &["stop", &pid]);
            assert_eq!(early.status.code(), Some(120), "{}", show(&early));
            let mut last = None;
            for _ in 0..3 {
                let started = crewind(&place, &["start", &pid]);
                assert_eq!(started.status.code(), Some(0), "{}", show(&started));
                let again = crewind(&place, &["start", &pid]);
                assert_eq!(again.status.code(), Some(120), "{}", show(&again));
                Server::serve(served, 300);
                let stopped = crewind(&place, &["stop", &pid]);
                assert_eq!(stopped.status.code(), Some(0), "{}", show(&stopped));
                let trace = traces(&stopped).pop().expect("a trace");
                replays(&place, &trace);
                Server::serve(served, 100);
                last = Some(trace);
            }
            last
        });
        drop(server);
        let trace = stopped.expect("three were made");
        if find_program("gdb").is_none() {
            skip("part_server", "gdb is not installed");
        } else {
            debug(&place, &trace);
        }
        place.clear();
    }
}

/// From the checkpoint forwards, and back to it.
fn debug(place: &Place, trace: &str) {
    let commands = [
        "set $first = served",
        "info threads",
        "watch served",
        "continue",
        "continue",
        "printf \"forwards %ld\\n\", served - $first",
        "reverse-continue",
        "reverse-continue",
        "printf \"back %ld\\n\", served - $first",
    ];
    let words: Vec<&str> = ["debug", trace, "--", "-nx", "-batch"]
        .into_iter()
        .chain(commands.iter().flat_map(|c| ["-ex", *c]))
        .collect();
    let shown = crewind(place, &words);
    let out = text(&shown.stdout);
    assert!(out.contains("forwards 2\n"), "{}", show(&shown));
    assert!(out.contains("back 0\n"), "{}", show(&shown));
    assert!(out.contains("t4)"), "four threads: {}", show(&shown));
}

#[test]
fn part_begins_at_a_signal_and_ends_after_a_time() {
    let place = Place::new("part_signal");
    let script = "kill -USR1 $$; for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done; exit 5";
    let words = [
        "record",
        "-o",
        "t",
        "--start-at-signal",
        "USR1",
        "--stop-after",
        "350ms",
        "--",
        "bash",
        "-c",
        script,
    ];
    let recorded = crewind(&place, &words);
    assert_eq!(recorded.status.code(), Some(5), "{}", show(&recorded));
    assert_eq!(text(&recorded.stdout), "1\n2\n3\n4\n5\n6\n");
    let replayed = replays(&place, "t");
    let out = text(&replayed.stdout);
    assert!(
        !out.is_empty() && "1\n2\n3\n4\n5\n6\n".contains(&out),
        "{out}"
    );
    assert!(out.len() < 12, "it ended before the program: {out}");
    place.clear();
}

#[test]
fn part_of_a_process_that_crewind_did_not_start() {
    let place = Place::new("part_foreign");
    let own = std::process::id().to_string();
    let started = crewind(&place, &["start", &own]);
    assert_eq!(started.status.code(), Some(120), "{}", show(&started));
    assert!(
        text(&started.stderr).contains("crewind run -- CMD"),
        "{}",
        show(&started)
    );
    place.clear();
}

/// Records from a function on; the run's result, and the output of the replay if there is a recording.
fn recorded_from(function: &str, command: &[&str]) -> (Output, Option<String>) {
    let place = Place::new("part_function");
    let words: Vec<&str> = ["record", "-o", "t", "--start-at-function", function, "--"]
        .into_iter()
        .chain(command.iter().copied())
        .collect();
    let recorded = crewind(&place, &words);
    let replayed = place.work.join("t").exists().then(|| {
        let words = ["replay", "t"];
        let replayed = crewind(&place, &words);
        assert_eq!(
            replayed.status.code(),
            recorded.status.code(),
            "{}",
            show(&replayed)
        );
        text(&replayed.stdout)
    });
    place.clear();
    (recorded, replayed)
}

#[test]
fn part_begins_where_a_function_is_first_called() {
    let source = own("function.cc");
    let flags = ["-lpthread".into(), "-ldl".into()];
    let program = build(&source, &flags, ".part");
    let program = program.to_str().expect("it is a name");
    let fixed = build(&source, &["-static".into()], ".static");
    let fixed = fixed.to_str().expect("it is a name");
    let place = Place::new("part_library");
    let library = place.work.join("late.so");
    let code = place.work.join("late.c");
    std::fs::write(
        &code,
        "#include <stdio.h>\nvoid in_library(int k) { printf(\"library %d\\n\", k); }\n",
    )
    .expect("the scratch directory can be written");
    let made = std::process::Command::new("gcc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &code])
        .status()
        .expect("gcc runs");
    assert!(made.success());
    let library = library.to_str().expect("it is a name");

    let all =
        "before\nrun 0\nrun 1\nrun 2\nrun 0\nrun 1\nrun 2\nlate 6\nlibrary 0\nlibrary 1\nend\n";
    for (function, first) in [
        ("main", "before"),
        ("outer::Work::run", "run 0"),
        ("outer::Work::run(int)", "run 0"),
        ("_ZN5outer4Work3runEi", "run 0"),
        ("late", "late 6"),
        ("in_library", "library 0"),
    ] {
        let (ran, replayed) = recorded_from(function, &[program, library]);
        assert_eq!(ran.status.code(), Some(7), "{}", show(&ran));
        assert_eq!(text(&ran.stdout), all, "{}", show(&ran));
        let from = all.find(first).expect("it is printed");
        assert_eq!(replayed.as_deref(), Some(&all[from..]), "{function}");
    }
    let (_, replayed) = recorded_from("late", &[fixed]);
    assert_eq!(replayed.as_deref(), Some("late 6\nend\n"));
    // In a child, whose recording it then is.
    let script = "$0; echo between; $0; exit 7";
    let (ran, replayed) = recorded_from("late", &["sh", "-c", script, program]);
    assert_eq!(replayed.as_deref(), Some("late 6\nend\n"), "{}", show(&ran));
    // Nowhere.
    let (ran, replayed) = recorded_from("nowhere", &[program]);
    assert_eq!((ran.status.code(), replayed), (Some(7), None));
    assert!(
        text(&ran.stderr).contains("nothing was recorded: no process called nowhere"),
        "{}",
        show(&ran)
    );
    place.clear();
}

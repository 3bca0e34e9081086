//! The debugger's own control: Ctrl-C, signals that end it, front ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::debug::{
    Recording, SERIAL, crewind, no_difference, program, program_text, python, text,
};
use crate::harness::{CREWIND, build, scratch};

/// For things that take no time on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sends Ctrl-C to gdb, from itself, when a command takes long.
const INTERRUPTING: &str = r#"
import os, signal, threading, time
def interrupted(command):
    over = threading.Event()
    def press():
        # gdb gives up a target that does not stop for the second one.
        if not over.wait(0.5):
            os.kill(os.getpid(), signal.SIGINT)
    presses = threading.Thread(target=press)
    text = ""
    # What comes when gdb itself works ends the script's command, not the session.
    try:
        presses.start()
        text = do(command)
    except KeyboardInterrupt:
        text = "interrupted"
    except gdb.error as e:
        text = str(e)
    over.set()
    while presses.is_alive():
        try:
            presses.join()
        except KeyboardInterrupt:
            pass
    return text
"#;

#[test]
fn debug_ctrl_c_stops_what_takes_long() {
    let program = program("spin.c", "-O1");
    let Some(r) = Recording::new("debug_interrupt", SERIAL, &[&program.display().to_string()])
    else {
        return;
    };
    let output = r.gdb(&python(&format!(
        r#"{INTERRUPTING}
def middle(what):
    check(what + ": in the middle", "here" not in when() and "event 0," not in when(), True)
do("goto end")
end = position()
# Backwards, to something that never was.
do("watch never")
interrupted("reverse-continue")
check("back: not at the beginning", "event 0," in when(), False)
do("goto end")
check("the end is still there", position(), end)
do("delete")
do("goto start")
do("break main")
do("continue")
do("delete")
interrupted("continue")
middle("continue")
here = state()
do("stepi")
do("reverse-stepi")
check("state", state(), here)
# Steps backwards one after the other.
before = position()
interrupted("reverse-stepi 1000000")
middle("reverse-stepi")
check("went back", position() != before, True)
# A breakpoint that never counts.
do("break turn if never")
do("break *$pc if never")
interrupted("reverse-continue")
check("conditions: not at the beginning", "event 0," in when(), False)
do("delete")
do("goto start")
print(when())
print("all done")
"#
    )));
    no_difference(&output);
    assert!(output.contains("SIGINT"), "{output}");
    assert!(output.contains("event 0, thread 1"), "{output}");
}

/// Waits for the end of a process that was told to end.
fn ends(child: &mut Child, what: &str) -> std::process::ExitStatus {
    let start = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return status;
        }
        assert!(start.elapsed() < PATIENCE, "{what} goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_there(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // One that has ended and that nobody has asked about yet is gone, too.
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.trim_start().starts_with('Z') && !rest.is_empty())
}

/// All processes below this one.
fn below(pid: u32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let own: Vec<i32> = list
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|p| p.parse().ok())
        .collect();
    let more: Vec<i32> = own
        .iter()
        .flat_map(|p| below(u32::try_from(*p).unwrap_or_default()))
        .collect();
    own.into_iter().chain(more).collect()
}

#[test]
fn debug_signals_end_it_and_its_gdb() {
    use std::os::unix::process::ExitStatusExt;
    let program = program("steps.c", "-O0");
    let Some(r) = Recording::new("debug_ends", SERIAL, &[&program.display().to_string()]) else {
        return;
    };
    let script = r.place.work.join("waits.py");
    let text = "import gdb, sys, time\nprint('it runs')\nsys.stdout.flush()\ngdb.execute('break store')\nwhile True:\n    time.sleep(0.1)\n";
    std::fs::write(&script, text).expect("the work directory is there");
    let script = script.display().to_string();
    let socket = r.place.work.join("socket").display().to_string();
    let with_gdb = ["debug", &r.trace, "--", "-nx", "-q", "-x", &script];
    let server = ["debug", &r.trace, "--server", &socket];
    for (words, signal) in [
        (&with_gdb[..], libc::SIGTERM),
        (&with_gdb, libc::SIGHUP),
        (&with_gdb, libc::SIGKILL),
        (&server, libc::SIGTERM),
        (&server, libc::SIGINT),
        (&server, libc::SIGHUP),
    ] {
        let what = format!("{words:?} after signal {signal}");
        let mut command: Command = r.place.crewind_command(words, &[]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("crewind starts");
        // One of the two says that it is there.
        let (tell, told) = std::sync::mpsc::channel();
        let pipes: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(child.stdout.take().expect("piped")),
            Box::new(child.stderr.take().expect("piped")),
        ];
        for pipe in pipes {
            let tell = tell.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if line.contains("it runs") || line.contains("waiting for a debugger") {
                        let _ = tell.send(());
                    }
                }
            });
        }
        told.recv_timeout(PATIENCE)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let family = below(child.id());
        assert!(!family.is_empty(), "{what}");
        // SAFETY: a child that was not waited for yet.
        unsafe { libc::kill(child.id().cast_signed(), signal) };
        let status = ends(&mut child, &what);
        assert_eq!(status.signal(), Some(signal), "{what}: {status}");
        let start = Instant::now();
        while family.iter().any(|p| is_there(*p)) {
            assert!(
                start.elapsed() < PATIENCE,
                "{what}: of {family:?} some are still there"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let left = std::path::Path::new(&socket).exists();
        assert!(!left, "{what}: the socket is still there");
    }
}

/// A program with a library of its own, both in a directory that can be changed.
fn with_library(directory: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let directory = scratch().join("debug-sources").join(directory);
    std::fs::create_dir_all(&directory).expect("scratch is writable");
    let library = program_text(
        "deep.c",
        "__attribute__((noinline)) int deepest(int n) { return n * 2; }\nint deep(int n) { return deepest(n) + 1; }\n",
    );
    let flags = ["-g", "-O0", "-shared", "-fPIC", "-Wl,-soname,libdeep.so"].map(str::to_owned);
    let built = build(&library, &flags, "library");
    let at = directory.join("libdeep.so");
    std::fs::copy(built, &at).expect("it was built");
    let main = program_text(
        "shallow.c",
        "#include <stdio.h>\nint deep(int);\nint main(void) { printf(\"%d\\n\", deep(20)); return 0; }\n",
    );
    let flags = [
        "-g".to_owned(),
        "-O0".to_owned(),
        "-Wl,--no-as-needed".to_owned(),
        at.display().to_string(),
        format!("-Wl,-rpath,{}", directory.display()),
    ];
    let built = build(
        &main,
        &flags,
        &directory.file_name().expect("it has one").to_string_lossy(),
    );
    let program = directory.join("shallow");
    std::fs::copy(built, &program).expect("it was built");
    (program, at)
}

#[test]
fn debug_libraries_come_from_the_trace() {
    let (program, library) = with_library("libraries");
    let Some(r) = Recording::new("debug_libraries", SERIAL, &[&program.display().to_string()])
    else {
        return;
    };
    let script = "set breakpoint pending on\nbreak deepest\ncontinue\nbt\ndelete\nprint deep(4)\ninfo sharedlibrary\n";
    let check = |what: &str, copies: bool| {
        let output = r.gdb(script);
        assert!(output.contains("deepest (n=20) at "), "{what}: {output}");
        assert!(output.contains("deep (n=20) at "), "{what}: {output}");
        assert!(output.contains("in main () at "), "{what}: {output}");
        let said = output.contains("libraries have changed");
        assert_eq!(said, copies, "{what}: {output}");
    };
    check("as it was", false);
    std::fs::write(&library, "something else").expect("scratch is writable");
    check("replaced", true);
    std::fs::remove_file(&library).expect("it is there");
    check("gone", true);
    std::fs::remove_file(&program).expect("it is there");
    check("program gone, too", true);
}

#[test]
fn debug_programs_of_a_process_are_chosen() {
    let Some(r) = Recording::new(
        "debug_programs",
        SERIAL,
        &["sh", "-c", "exec env SOME=thing sh -c 'exec true'"],
    ) else {
        return;
    };
    let last = r.gdb("continue\n");
    assert!(last.contains("program 4 of process"), "{last}");
    assert!(last.contains("exited here with status 0"), "{last}");
    let first = r.gdb_with(
        &["--program", "1"],
        "continue\nmonitor when\nreverse-continue\nmonitor when\n",
    );
    assert!(first.contains("bin/env here;"), "{first}");
    assert!(first.contains("--program 2` shows that program"), "{first}");
    assert!(first.contains("event 0, thread 1"), "{first}");
    // The shell tries one directory after the other.
    let script = "catch exec\n".to_owned() + &"continue\n".repeat(12);
    let caught = r.gdb_with(&["--program", "1"], &script);
    assert!(caught.contains("(call to syscall execve)"), "{caught}");
    assert!(caught.contains("bin/env here;"), "{caught}");
    let env = r.gdb_with(&["--program", "env"], "info auxv\ncontinue\n");
    assert!(env.contains("/env"), "{env}");
    assert!(env.contains("sh here; `crewind debug"), "{env}");
    let bad = crewind(&r.place, &["debug", &r.trace, "--program", "7"]);
    let said = text(&bad.stderr);
    assert_eq!(bad.status.code(), Some(120), "{said}");
    assert!(said.contains("2 env"), "{said}");
}

#[test]
fn debug_catches_processes() {
    let source = program_text(
        "makes.c",
        "#include <spawn.h>\n#include <sys/wait.h>\n#include <unistd.h>\n#include <pthread.h>\nextern char **environ;\nstatic void *nothing(void *p) { return p; }\nint main(void) {\n    pthread_t t;\n    pid_t p;\n    char *a[] = { \"true\", 0 };\n    pthread_create(&t, 0, nothing, 0);\n    pthread_join(t, 0);\n    if (!fork()) _exit(0);\n    if (posix_spawnp(&p, \"true\", 0, 0, a, environ)) return 1;\n    if (!fork()) _exit(0);\n    while (wait(0) > 0);\n    return 0;\n}\n",
    );
    let program = build(
        &source,
        &["-O0", "-g", "-pthread"].map(str::to_owned),
        "debug",
    );
    let program = program.display().to_string();
    for (mode, how) in [("serial", SERIAL), ("parallel", crate::debug::PARALLEL)] {
        let name = format!("debug_catches_{mode}");
        let Some(r) = Recording::new(&name, how, &[&program]) else {
            return;
        };
        let script = python(
            r#"
def stops(command, end):
    seen = []
    while True:
        do(command)
        if end in when():
            return seen
        seen.append(position())
for what, wanted in ("fork", 2), ("vfork", 1):
    do("catch " + what)
    forwards = stops("continue", "here")
    check("number of " + what, len(forwards), wanted)
    check(what + " backwards", stops("reverse-continue", "event 0,")[::-1], forwards)
    do("monitor catch none")
    check("none", stops("continue", "here"), [])
    do("goto start")
print(do("catch exec"))
check("catch exec", "execve" in do("info breakpoints"), True)
print("all done")
"#,
        );
        // (Which process that is would differ in each run: the one that was recorded first.)
        let output = r.gdb_with(&["--process", "makesdebug"], &script);
        no_difference(&output);
        for part in [
            "was made here (fork)",
            "was made here (vfork)",
            "crewind debug --process ",
            "a session is about one program",
        ] {
            assert!(output.contains(part), "no {part} in {output}");
        }
    }
}

/// A server, and where it waits.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(r: &Recording) -> Server {
        let words = [CREWIND, "debug", &r.trace, "--server", "0"];
        let mut child = r
            .place
            .command(&words, &r.place.work, &[])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("crewind starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|l| {
                Some(
                    l.split_once("target remote ")?
                        .1
                        .trim_end_matches('"')
                        .to_owned(),
                )
            })
            .expect("it says where it waits");
        // What it says later does not stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// gdb as front ends use it.
struct Mi {
    gdb: Child,
    lines: std::sync::mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Mi {
    fn start(r: &Recording) -> Mi {
        let words = ["gdb", "-nx", "-q", "--interpreter=mi"];
        let mut gdb = r
            .place
            .command(&words, &r.place.work, &[])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("gdb starts");
        let output = BufReader::new(gdb.stdout.take().expect("piped"));
        let (to, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .for_each(|l| drop(to.send(l)));
        });
        Mi {
            gdb,
            lines,
            seen: Vec::new(),
        }
    }

    fn send(&mut self, command: &str) {
        use std::io::Write;
        let pipe = self.gdb.stdin.as_mut().expect("piped");
        writeln!(pipe, "{command}").expect("gdb is there");
    }

    /// Waits for a line that begins so.
    fn wait(&mut self, begin: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|e| {
                panic!("no {begin} ({e}) in\n{}", self.seen.join("\n"));
            });
            self.seen.push(line.clone());
            assert!(
                begin == "^error" || !line.starts_with("^error"),
                "{}",
                self.seen.join("\n")
            );
            if line.starts_with(begin) {
                return line;
            }
        }
    }

    fn ask(&mut self, command: &str, answer: &str) -> String {
        self.send(command);
        self.wait(answer)
    }

    /// Lets it run until it stops.
    fn go(&mut self, command: &str, reason: &str) {
        self.ask(command, "^running");
        let stopped = self.wait("*stopped");
        assert!(stopped.contains(reason), "{}", self.seen.join("\n"));
    }
}

impl Drop for Mi {
    fn drop(&mut self) {
        let _ = self.gdb.kill();
        let _ = self.gdb.wait();
    }
}

#[test]
fn debug_front_ends_drive_gdb_by_mi() {
    let program = program("spin.c", "-O1");
    let Some(r) = Recording::new("debug_mi", SERIAL, &[&program.display().to_string()]) else {
        return;
    };
    let server = Server::start(&r);
    let mut mi = Mi::start(&r);
    // In the order of Visual Studio Code's extension.
    mi.ask("-gdb-set mi-async on", "^done");
    mi.ask("-environment-cd /", "^done");
    let file = format!("-file-exec-and-symbols {}", program.display());
    mi.ask(&file, "^done");
    let target = format!("-target-select remote {}", server.address);
    mi.ask(&target, "^connected");
    mi.ask("-break-insert -f turn", "^done,bkpt");
    mi.go("-exec-continue", "breakpoint-hit");
    let threads = mi.ask("-thread-info", "^done,threads");
    assert!(threads.contains("func=\"turn\""), "{threads}");
    let frames = mi.ask("-stack-list-frames", "^done,stack");
    assert!(frames.contains("func=\"main\""), "{frames}");
    mi.ask("-var-create value * \"sum * 2\"", "^done,name=\"value\"");
    let names = mi.ask("-stack-list-variables --simple-values", "^done,variables");
    assert!(names.contains("name=\"n\""), "{names}");
    // A function is called.
    mi.ask("-interpreter-exec console \"delete\"", "^done");
    mi.ask(
        "-data-evaluate-expression \"(turn(3), sum)\"",
        "^done,value",
    );
    mi.go("-exec-step", "end-stepping-range");
    mi.go("-exec-step --reverse", "end-stepping-range");
    mi.go("-exec-next --reverse", "end-stepping-range");
    // Pause.
    mi.ask("-exec-continue", "^running");
    mi.wait("*running");
    mi.ask("-exec-interrupt --all", "^done");
    let stopped = mi.wait("*stopped");
    assert!(stopped.contains("SIGINT"), "{stopped}");
    mi.go("-exec-continue --reverse", "func=\"_start\"");
    mi.ask("-target-detach", "^done");
    mi.send("-gdb-exit");
    mi.wait("^exit");
    // The session outlives it.
    let mut again = Mi::start(&r);
    again.ask(&file, "^done");
    again.ask(&target, "^connected");
    again.go("-exec-continue", "func=\"__GI__exit\"");
}

#[test]
fn debug_server_answers_what_lldb_asks() {
    use std::io::{Read, Write};
    let program = program("steps.c", "-O0");
    let Some(r) = Recording::new("debug_lldb", SERIAL, &[&program.display().to_string()]) else {
        return;
    };
    let server = Server::start(&r);
    let connect = || {
        let stream = std::net::TcpStream::connect(&server.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    };
    // None: it has hung up.
    let ask = |stream: &mut std::net::TcpStream, packet: &str| -> Option<String> {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        stream
            .write_all(format!("${packet}#{sum:02x}").as_bytes())
            .ok()?;
        let mut answer = String::new();
        while answer.find('#').is_none_or(|at| answer.len() < at + 3) {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => answer.push(byte[0].into()),
                Ok(_) => return None,
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("no answer to {packet}: {e}"),
            }
        }
        stream.write_all(b"+").ok()?;
        Some(answer)
    };
    let hex = |text: &str| -> String { text.bytes().map(|b| format!("{b:02x}")).collect() };
    let triple = hex("x86_64-unknown-linux-gnu");
    let mut stream = connect();
    for packet in ["qHostInfo", "qProcessInfo"] {
        let answer = ask(&mut stream, packet).unwrap_or_default();
        assert!(answer.contains(&triple), "{answer}");
        assert!(answer.contains("ptrsize:8;"), "{answer}");
    }
    let answer = ask(&mut stream, "qProcessInfo").unwrap_or_default();
    assert!(answer.contains("pid:1;"), "{answer}");
    drop(stream);
    // After nonsense of any kind the session is what it was, over the same connection or the next.
    let when = format!("qRcmd,{}", hex("when"));
    let mut place = ask(&mut connect(), &when).expect("an answer");
    for packet in [
        "qNonsense",
        "Hg77777",
        "m0,8",
        "M0,1:00",
        "Mzz",
        "G00",
        "Gzz",
        "p9999",
        "vCont;x",
        "vCont;s:7777",
        "Z9,0,0",
        "Z2,0,fffffffffffffff0",
        "vFile:open:zz",
        "vFile:pread:77,10,0",
        "vFile:close:5",
        "D;5",
        "",
    ] {
        let mut stream = connect();
        let _ = ask(&mut stream, packet);
        drop(stream);
        let mut stream = connect();
        let now = ask(&mut stream, &when);
        if packet.starts_with("vCont;s") {
            // Nobody is stepped, so it runs on until the other side is gone.
            place = now.unwrap_or_else(|| panic!("nothing after {packet}"));
        } else {
            assert_eq!(now.as_ref(), Some(&place), "after {packet}");
        }
        drop(stream);
    }
}

//! The command line: help, mistakes, signals, full disks, other users, damaged traces.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{CREWIND, Output, Place, guest, run, show, skip};

const LIMIT: Duration = Duration::from_secs(30);

/// Exit statuses, as the documentation has them.
const TRACE_END: i32 = 119;
const USAGE: i32 = 120;
const UNSUPPORTED: i32 = 121;
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Runs crewind in a place.
fn crewind(place: &Place, args: &[&str]) -> Output {
    place.crewind(args, LIMIT).unwrap_or_else(|e| panic!("{e}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Checks status and a part of the error output.
fn expect(output: &Output, status: i32, error: &str) {
    assert_eq!(output.status.code(), Some(status), "{}", show(output));
    assert!(
        text(&output.stderr).contains(error),
        "no \"{error}\" in {}",
        show(output)
    );
}

fn is_root() -> bool {
    // SAFETY: has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

#[test]
fn help_and_version() {
    let place = Place::new("help_and_version");
    let help = crewind(&place, &["--help"]);
    expect(&help, 0, "");
    for word in [
        "record",
        "replay",
        "ls",
        "rm",
        "info",
        "dump",
        "doctor",
        "CREWIND_TRACE_DIR",
        "123",
    ] {
        assert!(text(&help.stdout).contains(word), "{word}");
    }
    for command in ["record", "replay", "ls", "rm", "info", "dump", "doctor"] {
        let help = crewind(&place, &[command, "--help"]);
        expect(&help, 0, "");
        assert!(text(&help.stdout).contains("Usage: crewind"), "{command}");
    }
    assert!(text(&crewind(&place, &["--version"]).stdout).starts_with("crewind "));
    expect(&crewind(&place, &[]), USAGE, "Usage");
    expect(&crewind(&place, &["bogus"]), USAGE, "unrecognized");
    expect(&crewind(&place, &["record"]), USAGE, "required");
    expect(
        &crewind(&place, &["record", "--cpus", "0", "true"]),
        USAGE,
        "0",
    );
    place.clear();
}

#[test]
fn completions_and_manual() {
    let place = Place::new("completions_and_manual");
    for shell in ["bash", "zsh", "fish"] {
        let script = crewind(&place, &["completions", shell]);
        assert!(text(&script.stdout).contains("crewind"), "{shell}");
    }
    assert!(text(&crewind(&place, &["man"]).stdout).starts_with(".ie"));
    expect(&crewind(&place, &["man", "."]), 0, "");
    assert!(place.work.join("crewind-record.1").exists());
    place.clear();
}

#[test]
fn programs_that_cannot_run() {
    let place = Place::new("programs_that_cannot_run");
    let put = |name: &str, content: &[u8], mode: u32| {
        let path = place.work.join(name);
        std::fs::write(&path, content).expect("the scratch directory can be written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("modes can be set");
    };
    expect(
        &crewind(&place, &["record", "no-such-program-at-all"]),
        NOT_FOUND,
        "no such program in PATH",
    );
    expect(
        &crewind(&place, &["record", "./none"]),
        NOT_FOUND,
        "no such file",
    );
    expect(
        &crewind(&place, &["record", "/etc"]),
        CANNOT_EXECUTE,
        "directory",
    );
    put("text", b"echo text is run by sh \"$1\"\n", 0o644);
    expect(
        &crewind(&place, &["record", "./text"]),
        CANNOT_EXECUTE,
        "permission denied",
    );
    put("text", b"echo text is run by sh \"$1\"\n", 0o755);
    let output = crewind(&place, &["record", "./text", "too"]);
    expect(&output, 0, "trace in");
    assert_eq!(text(&output.stdout), "text is run by sh too\n");
    put("binary", b"\0\x01\x02 neither\n", 0o755);
    expect(
        &crewind(&place, &["record", "./binary"]),
        CANNOT_EXECUTE,
        "neither",
    );
    put("bad", b"#!/no/such/interpreter\n", 0o755);
    expect(
        &crewind(&place, &["record", "./bad"]),
        NOT_FOUND,
        "No such file",
    );
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[16] = 2;
    elf[18] = 183;
    put("other", &elf, 0o755);
    expect(
        &crewind(&place, &["record", "./other"]),
        UNSUPPORTED,
        "another processor",
    );
    elf[4] = 1;
    elf[18] = 3;
    put("old", &elf, 0o755);
    expect(
        &crewind(&place, &["record", "./old"]),
        UNSUPPORTED,
        "32-bit",
    );
    elf.truncate(17);
    put("short", &elf, 0o755);
    expect(&crewind(&place, &["record", "./short"]), UNSUPPORTED, "");
    // Nothing ran, so no trace is left but that of the script.
    let listed = text(&crewind(&place, &["ls"]).stdout);
    assert_eq!(listed.lines().count(), 2, "{listed}");
    place.clear();
}

#[test]
fn life_of_a_trace() {
    let place = Place::new("life_of_a_trace");
    expect(&crewind(&place, &["replay"]), USAGE, "no latest trace");
    expect(&crewind(&place, &["ls"]), 0, "no traces");
    let recorded = crewind(
        &place,
        &[
            "record",
            "--verbose",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 3",
        ],
    );
    assert_eq!(recorded.status.code(), Some(3), "{}", show(&recorded));
    let errors = text(&recorded.stderr);
    let lines: Vec<&str> = errors.lines().collect();
    assert!(
        lines[0].starts_with("crewind: recording into ") && lines[1] == "err",
        "{errors}"
    );
    assert!(
        lines[2].starts_with("crewind: trace in ") && lines[2].contains(" events, "),
        "{errors}"
    );
    let listed = text(&crewind(&place, &["ls"]).stdout);
    assert!(
        listed.contains("sh-0") && listed.contains("exit 3") && listed.contains("'echo out;"),
        "{listed}"
    );
    let json: serde_json::Value =
        serde_json::from_slice(&crewind(&place, &["ls", "--json"]).stdout).expect("JSON");
    assert_eq!(json[0]["status"], "exit 3");
    for which in [
        "sh-0",
        "latest",
        place.traces.join("sh-0").to_str().expect("paths are UTF-8"),
    ] {
        let replayed = crewind(&place, &["replay", which]);
        assert_eq!(replayed.status.code(), Some(3), "{}", show(&replayed));
        assert_eq!(
            (text(&replayed.stdout), text(&replayed.stderr)),
            ("out\n".into(), "err\n".into())
        );
    }
    let info = text(&crewind(&place, &["info"]).stdout);
    assert!(
        info.contains("exit 3") && info.contains("syscall") && info.contains("p1 (root)"),
        "{info}"
    );
    let json: serde_json::Value =
        serde_json::from_slice(&crewind(&place, &["info", "--json"]).stdout).expect("JSON");
    assert_eq!(json["processes"][0]["end"], "exit 3");
    assert!(json["events"]["syscall"].as_u64() > Some(5), "{json}");
    let dump = text(&crewind(&place, &["dump"]).stdout);
    assert!(
        dump.lines()
            .next()
            .is_some_and(|l| l.contains("process-start")),
        "{dump}"
    );
    assert!(
        dump.lines()
            .last()
            .is_some_and(|l| l.contains("process-exit status 3")),
        "{dump}"
    );
    let calls = text(
        &crewind(
            &place,
            &[
                "dump",
                "--kind",
                "syscall",
                "--thread",
                "1",
                "--process",
                "1",
            ],
        )
        .stdout,
    );
    assert!(
        calls.lines().all(|l| l.contains("syscall")) && calls.contains("write"),
        "{calls}"
    );
    assert!(
        crewind(&place, &["dump", "--thread", "99"])
            .stdout
            .is_empty()
    );
    // Another recording, into a directory of one's own; it becomes the latest.
    let own = crewind(&place, &["record", "-o", "own", "echo", "second"]);
    expect(&own, 0, "/own");
    assert!(!place.work.join("latest").exists() && !place.work.join(".store").exists());
    assert_eq!(text(&crewind(&place, &["replay"]).stdout), "second\n");
    assert_eq!(
        text(&crewind(&place, &["replay", "own"]).stdout),
        "second\n"
    );
    expect(
        &crewind(&place, &["record", "-o", "own", "true"]),
        USAGE,
        "holds a trace already",
    );
    expect(
        &crewind(&place, &["record", "-o", "/no/such/folder/x", "true"]),
        USAGE,
        "cannot make a trace",
    );
    expect(&crewind(&place, &["rm", "own"]), 0, "");
    assert!(!place.work.join("own").exists());
    expect(&crewind(&place, &["replay"]), USAGE, "gone");
    expect(&crewind(&place, &["rm"]), USAGE, "required");
    expect(&crewind(&place, &["rm", "--older", "1y"]), USAGE, "no age");
    expect(&crewind(&place, &["rm", "--older", "1h"]), 0, "");
    assert!(place.traces.join("sh-0").exists());
    expect(
        &crewind(&place, &["rm", "sh-0", "never-there"]),
        USAGE,
        "no trace never-there",
    );
    assert!(!place.traces.join("sh-0").exists());
    crewind(&place, &["record", "true"]);
    expect(&crewind(&place, &["rm", "--all"]), 0, "");
    expect(&crewind(&place, &["ls"]), 0, "no traces");
    place.clear();
}

#[test]
fn directories_that_are_no_traces() {
    let place = Place::new("directories_that_are_no_traces");
    std::fs::create_dir(place.work.join("empty")).expect("the scratch directory can be written");
    std::fs::write(place.work.join("file"), "x").expect("the scratch directory can be written");
    for command in ["replay", "info", "dump"] {
        expect(
            &crewind(&place, &[command, "empty"]),
            USAGE,
            "not a crewind trace",
        );
        expect(
            &crewind(&place, &[command, "file"]),
            USAGE,
            "not a directory",
        );
        expect(&crewind(&place, &[command, "none"]), USAGE, "no trace none");
        expect(
            &crewind(&place, &[command, "/usr"]),
            USAGE,
            "not a crewind trace",
        );
    }
    expect(
        &crewind(&place, &["rm", "empty"]),
        USAGE,
        "not a crewind trace",
    );
    assert!(place.work.join("empty").exists());
    expect(
        &crewind(&place, &["record", "-o", "/usr", "true"]),
        USAGE,
        "exists",
    );
    place.clear();
}

#[test]
fn traces_of_the_future_and_damaged_ones() {
    let place = Place::new("traces_of_the_future_and_damaged_ones");
    expect(
        &crewind(&place, &["record", "-o", "t", "echo", "some output"]),
        0,
        "trace in",
    );
    let meta = place.work.join("t/meta.json");
    let original = std::fs::read_to_string(&meta).expect("there is a meta.json");
    std::fs::write(
        &meta,
        original.replacen(
            &format!("\"version\": {},", crewind_trace::FORMAT_VERSION),
            "\"version\": 1000,",
            1,
        ),
    )
    .expect("it can be written");
    expect(&crewind(&place, &["replay", "t"]), USAGE, "version 1000");
    std::fs::write(&meta, &original[..original.len() / 2]).expect("it can be written");
    expect(&crewind(&place, &["replay", "t"]), TRACE_END, "meta.json");
    std::fs::write(&meta, &original).expect("it can be written");
    // Cut the stream: what is there is replayed, and the end is told.
    let streams = place.work.join("t/streams");
    let stream = std::fs::read_dir(&streams)
        .expect("there are streams")
        .flatten()
        .next()
        .expect("there is a stream")
        .path();
    let bytes = std::fs::read(&stream).expect("it can be read");
    for keep in [0, 10, bytes.len() / 3, bytes.len() - 1] {
        std::fs::write(&stream, &bytes[..keep]).expect("it can be written");
        let replayed = crewind(&place, &["replay", "t"]);
        assert_eq!(
            replayed.status.code(),
            Some(TRACE_END),
            "cut to {keep}: {}",
            show(&replayed)
        );
        assert!(
            "some output\n".starts_with(&text(&replayed.stdout)),
            "{}",
            show(&replayed)
        );
        expect(&crewind(&place, &["dump", "t"]), TRACE_END, "");
    }
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 0x10;
    std::fs::write(&stream, &flipped).expect("it can be written");
    let replayed = crewind(&place, &["replay", "t"]);
    assert_eq!(
        replayed.status.code(),
        Some(TRACE_END),
        "{}",
        show(&replayed)
    );
    std::fs::write(&stream, &bytes).expect("it can be written");
    std::fs::remove_file(place.work.join("t/end.json")).expect("there is an end.json");
    expect(&crewind(&place, &["replay", "t"]), TRACE_END, "cut off");
    place.clear();
}

#[test]
fn closed_output() {
    let place = Place::new("closed_output");
    for i in 0..2 {
        expect(
            &crewind(&place, &["record", "-o", &format!("t{i}"), "ls", "/"]),
            0,
            "trace in",
        );
    }
    for command in ["dump", "info"] {
        let script =
            format!("{CREWIND} {command} t0 | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}");
        let output = run(
            place.command(&["bash", "-c", &script], &place.work, &[]),
            b"",
            LIMIT,
        )
        .unwrap();
        assert!(output.stderr.is_empty(), "{}", show(&output));
        assert!(
            ["0\n", "141\n"].contains(&text(&output.stdout).as_str()),
            "{}",
            show(&output)
        );
    }
    // The guest's own broken pipe ends the guest as it would without crewind.
    let script = format!(
        "{CREWIND} record -o pipe yes | head -2; echo ${{PIPESTATUS[0]}}; {CREWIND} replay pipe | tail -n +100000 | wc -l"
    );
    let output = run(
        place.command(&["bash", "-c", &script], &place.work, &[]),
        b"",
        LIMIT,
    )
    .unwrap();
    assert!(
        text(&output.stdout).starts_with("y\ny\n141\n"),
        "{}",
        show(&output)
    );
    // No standard descriptors at all.
    let script = format!(
        "{CREWIND} record -o closed sh -c 'echo x > file; ls -l /proc/self/fd | wc -l > count' <&- >&- 2>&-; echo $?; {CREWIND} replay closed; cat count"
    );
    let output = run(
        place.command(&["bash", "-c", &script], &place.work, &[]),
        b"",
        LIMIT,
    )
    .unwrap();
    assert!(text(&output.stdout).starts_with("0\n"), "{}", show(&output));
    let script = format!("{CREWIND} ls > /dev/full; echo $?");
    let output = run(
        place.command(&["bash", "-c", &script], &place.work, &[]),
        b"",
        LIMIT,
    )
    .unwrap();
    assert!(
        text(&output.stdout).is_empty()
            || text(&output.stdout).starts_with("120")
            || text(&output.stderr).contains("no traces"),
        "{}",
        show(&output)
    );
    place.clear();
}

/// Starts crewind without waiting, in a process group of its own.
fn start(place: &Place, args: &[&str]) -> std::process::Child {
    use std::os::unix::process::CommandExt;
    let mut command = place.crewind_command(args, &[]);
    command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn().expect("crewind can be started")
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + LIMIT;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{path:?} does not appear");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn send(pid: i32, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(pid, signal) };
}

#[test]
fn signals_reach_the_guest() {
    let place = Place::new("signals_reach_the_guest");
    let script = "trap 'echo got TERM; exit 5' TERM; trap 'echo got USR1' USR1; trap 'echo got INT; exit 6' INT; touch ready; while :; do sleep 0.01; done";
    // Sent to crewind alone, and, as the terminal does, to the whole group.
    for (signal, group, status) in [(libc::SIGTERM, 1, 5), (libc::SIGINT, -1, 6)] {
        let _ = std::fs::remove_file(place.work.join("ready"));
        let child = start(&place, &["record", "bash", "-c", script]);
        wait_for(&place.work.join("ready"));
        send(group * i32::try_from(child.id()).unwrap(), signal);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(
            output.status.code(),
            Some(status),
            "{}",
            text(&output.stderr)
        );
        let replayed = crewind(&place, &["replay"]);
        assert_eq!(replayed.status.code(), Some(status), "{}", show(&replayed));
        assert!(
            text(&replayed.stdout).starts_with("got "),
            "{}",
            show(&replayed)
        );
    }
    // A guest without handlers dies by the signal, and so does crewind.
    let child = start(
        &place,
        &["record", "sh", "-c", "touch waiting; exec sleep 20"],
    );
    wait_for(&place.work.join("waiting"));
    std::thread::sleep(Duration::from_millis(100));
    send(i32::try_from(child.id()).unwrap(), libc::SIGTERM);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        output.status.signal(),
        Some(libc::SIGTERM),
        "{}",
        text(&output.stderr)
    );
    let replayed = crewind(&place, &["replay"]);
    assert_eq!(
        replayed.status.signal(),
        Some(libc::SIGTERM),
        "{}",
        show(&replayed)
    );
    place.clear();
}

#[test]
fn killed_recordings_replay_up_to_their_end() {
    let place = Place::new("killed_recordings");
    let script = "i=0; while [ $i -lt 100000 ]; do echo line $i; i=$((i+1)); [ $i = 500 ] && : > ready; done; sleep 30";
    for victim in ["guest", "recorder", "both"] {
        let _ = std::fs::remove_file(place.work.join("ready"));
        let mut child = start(&place, &["record", "dash", "-c", script]);
        wait_for(&place.work.join("ready"));
        let pid = i32::try_from(child.id()).unwrap();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        // Another one sees to it that nothing outlives the recorder.
        let is_guest = |pid: &&str| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "dash"
        };
        let guest = children.split_ascii_whitespace().find(is_guest);
        let guest: i32 = guest
            .and_then(|pid| pid.parse().ok())
            .expect("the recorder has a child that is the guest");
        if victim != "guest" {
            send(pid, libc::SIGKILL);
        }
        if victim != "recorder" {
            send(guest, libc::SIGKILL);
        }
        if victim == "recorder" {
            // The guest ends with it.
            let stat = format!("/proc/{guest}/stat");
            let start = Instant::now();
            while std::fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z ")) {
                assert!(
                    start.elapsed() < Duration::from_secs(10),
                    "the guest goes on"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let status = child.wait().expect("it ends");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        drop(child.stderr.take());
        let replayed = crewind(&place, &["replay"]);
        let output = text(&replayed.stdout);
        let lines = output.lines().count();
        assert!(
            lines >= 400,
            "{victim}: {lines} lines\n{}",
            text(&replayed.stderr)
        );
        assert!(
            output
                .lines()
                .take(lines - 1)
                .enumerate()
                .all(|(i, line)| line == format!("line {i}")),
            "{victim}"
        );
        let expected = [Some(TRACE_END), None];
        assert!(
            expected.contains(&replayed.status.code()),
            "{victim}: {}",
            replayed.status
        );
    }
    place.clear();
}

#[test]
fn daemons_go_on() {
    let place = Place::new("daemons_go_on");
    let start = Instant::now();
    let script = "(sleep 8; echo late > late) >/dev/null 2>&1 </dev/null & echo done";
    let recorded = crewind(&place, &["record", "sh", "-c", script]);
    assert!(
        start.elapsed() < Duration::from_secs(7),
        "it waited for the daemon"
    );
    expect(&recorded, 0, "go on");
    assert!(text(&crewind(&place, &["ls"]).stdout).contains("recording"));
    expect(&crewind(&place, &["rm", "sh-0"]), USAGE, "being recorded");
    wait_for(&place.work.join("late"));
    let end = place.traces.join("sh-0/end.json");
    wait_for(&end);
    let replayed = crewind(&place, &["replay"]);
    assert_eq!(replayed.status.code(), Some(0), "{}", show(&replayed));
    assert_eq!(text(&replayed.stdout), "done\n");
    place.clear();
}

#[test]
fn job_control() {
    let place = Place::new("job_control");
    let script = format!(
        "set -m; {CREWIND} record -o t bash -c 'echo $$ > pid; for i in 1 2 3 4 5 6; do sleep 0.1; done; echo done' & \
         while [ ! -s pid ]; do sleep 0.01; done; kill -STOP $(cat pid); sleep 0.3; jobs; kill -CONT %1; wait %1; echo $?"
    );
    let output = run(
        place.command(&["bash", "-c", &script], &place.work, &[]),
        b"",
        LIMIT,
    )
    .unwrap();
    let out = text(&output.stdout);
    assert!(
        out.contains("Stopped") && out.contains("done\n0\n"),
        "{}",
        show(&output)
    );
    place.clear();
}

#[test]
fn no_space_for_the_trace() {
    if !is_root() {
        return skip(
            "no_space_for_the_trace",
            "mounting a small file system needs root",
        );
    }
    let place = Place::new("no_space_for_the_trace");
    let small = place.base.join("small");
    std::fs::create_dir(&small).expect("the scratch directory can be written");
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(&small)
        .status();
    if !mount.is_ok_and(|s| s.success()) {
        return skip("no_space_for_the_trace", "tmpfs cannot be mounted");
    }
    let directory = small.join("t");
    let script = "i=0; while [ $i -lt 20000 ]; do cat /etc/passwd > /dev/null; i=$((i+1)); done";
    let output = std::panic::catch_unwind(|| {
        let shown = directory.to_str().expect("paths are UTF-8").to_owned();
        crewind(&place, &["record", "-o", &shown, "sh", "-c", script])
    });
    let _ = Command::new("umount").arg(&small).status();
    let output = output.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    expect(&output, USAGE, "space");
    place.clear();
}

#[test]
fn unwritable_place_for_traces() {
    let place = Place::new("unwritable_place_for_traces");
    std::fs::write(&place.traces, "a file is in the way")
        .expect("the scratch directory can be written");
    let output = crewind(&place, &["record", "true"]);
    expect(&output, USAGE, "CREWIND_TRACE_DIR");
    place.clear();
}

#[test]
fn unprivileged_user() {
    if !is_root() {
        return; // Then every other test is this one.
    }
    let place = Place::new("unprivileged_user");
    // A place that anybody can get at, with a copy of the binary.
    let open = std::env::temp_dir().join(format!("crewind-unprivileged-{}", std::process::id()));
    std::fs::create_dir(&open).expect("the temporary directory can be written");
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).expect("modes can be set");
    let binary = open.join("crewind");
    std::fs::copy(CREWIND, &binary).expect("the binary can be copied");
    let script = format!(
        "cd {0}; export CREWIND_TRACE_DIR={0}/traces; {0}/crewind record sh -c 'id -u; ls / | head -1' && {0}/crewind replay",
        open.display()
    );
    let output = run(
        place.command(
            &[
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "sh",
                "-c",
                &script,
            ],
            &open,
            &[],
        ),
        b"",
        LIMIT,
    );
    let _ = std::fs::remove_dir_all(&open);
    let output = output.unwrap_or_else(|e| panic!("{e}"));
    let out = text(&output.stdout);
    assert!(
        out.starts_with("65534\n") && out.lines().count() == 4,
        "{}",
        show(&output)
    );
    place.clear();
}

#[test]
fn user_namespace() {
    let place = Place::new("user_namespace");
    let possible = Command::new("unshare")
        .args(["-r", "true"])
        .status()
        .is_ok_and(|s| s.success());
    if !possible {
        return skip("user_namespace", "user namespaces are not allowed");
    }
    let output = run(
        place.command(
            &["unshare", "-r", CREWIND, "record", "id", "-u"],
            &place.work,
            &[],
        ),
        b"",
        LIMIT,
    );
    let output = output.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(text(&output.stdout), "0\n", "{}", show(&output));
    assert_eq!(text(&crewind(&place, &["replay"]).stdout), "0\n");
    place.clear();
}

#[test]
fn odd_limits_and_environments() {
    let place = Place::new("odd_limits");
    for setup in [
        "ulimit -s unlimited",
        "ulimit -n 20",
        "trap '' CHLD PIPE INT",
        "setarch -R true",
        "unset HOME PATH",
    ] {
        let script = format!(
            "{setup}; {CREWIND} record -o t /bin/sh -c 'ulimit -s; ulimit -n; trap; echo fine' && {CREWIND} replay t"
        );
        let output = run(
            place.command(&["/bin/bash", "-c", &script], &place.work, &[]),
            b"",
            LIMIT,
        );
        let output = output.unwrap_or_else(|e| panic!("{e}"));
        let out = text(&output.stdout);
        assert_eq!(out.matches("fine").count(), 2, "{setup}: {}", show(&output));
        if setup.contains("unlimited") {
            assert!(out.contains("unlimited"), "{}", show(&output));
        }
        let _ = std::fs::remove_dir_all(place.work.join("t"));
    }
    // All descriptors used up that there can be.
    let program = guest("limits_descriptors").program().to_owned();
    let script = format!("ulimit -n 300; {CREWIND} record -o t4 {program} && {CREWIND} replay t4");
    let output = run(
        place.command(&["/bin/bash", "-c", &script], &place.work, &[]),
        b"",
        LIMIT,
    );
    let output = output.unwrap_or_else(|e| panic!("{e}"));
    let out = text(&output.stdout);
    assert_eq!(out.matches("enough").count(), 2, "{}", show(&output));
    // Ignored signals are the recording's, not the replaying shell's.
    let python = "import signal; print(signal.getsignal(signal.SIGINT))";
    let script = format!(
        "{CREWIND} record -o t3 /usr/bin/python3 -c '{python}' && (trap '' INT USR1; {CREWIND} replay t3)"
    );
    if crate::harness::find_program("/usr/bin/python3").is_some() {
        let output = run(
            place.command(&["bash", "-c", &script], &place.work, &[]),
            b"",
            LIMIT,
        )
        .unwrap();
        assert_eq!(
            text(&output.stdout).matches("default_int_handler").count(),
            2,
            "{}",
            show(&output)
        );
    }
    let script = format!(
        "LD_PRELOAD=/no/such/library.so {CREWIND} record -o t sh -c 'echo $LD_PRELOAD' 2>/dev/null"
    );
    let output = run(
        place.command(&["bash", "-c", &script], &place.work, &[]),
        b"",
        LIMIT,
    )
    .unwrap();
    assert_eq!(
        text(&output.stdout),
        "/no/such/library.so\n",
        "{}",
        show(&output)
    );
    let script = format!(
        "setarch -R {CREWIND} record -o t2 sh -c 'echo fine' && setarch -L {CREWIND} replay t2"
    );
    let output = run(
        place.command(&["bash", "-c", &script], &place.work, &[]),
        b"",
        LIMIT,
    )
    .unwrap();
    assert_eq!(text(&output.stdout), "fine\nfine\n", "{}", show(&output));
    place.clear();
}

#[test]
fn doctor() {
    let place = Place::new("doctor");
    let output = crewind(&place, &["doctor"]);
    expect(&output, 0, "");
    assert!(
        text(&output.stdout).contains("\nmode  "),
        "{}",
        show(&output)
    );
    let json: serde_json::Value =
        serde_json::from_slice(&crewind(&place, &["doctor", "--json"]).stdout).expect("JSON");
    assert!(json["findings"].as_array().is_some_and(|f| f.len() > 5));
    place.clear();
}

//! Replays of traces in which something stops without an end: processes killed between a write and the record of
//! it or before their first record, recordings that were cut or still go on. All that is there is shown, at once.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crewind_trace::event::{Event, Record, ThreadId};
use crewind_trace::{StreamReader, StreamWriter, TraceDir};

use crate::harness::{CREWIND, Output, Place, run, show};

const TRACE_END: i32 = 119;

/// Far below what anything in a replay may wait for; the replays here take some 50 ms.
const SOON: Duration = Duration::from_secs(20);

fn record(place: &Place, script: &str) {
    let words = [CREWIND, "record", "-o", "t", "bash", "-c", script];
    let recorded = run(place.command(&words, &place.work, &[]), b"", SOON).unwrap();
    assert!(recorded.status.success(), "{}", show(&recorded));
}

fn replay(place: &Place) -> Output {
    let words = [CREWIND, "replay", "t"];
    run(place.command(&words, &place.work, &[]), b"", SOON).unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}

/// The stream of the process that wrote `text`, cut before the record of that, as when it had been killed there.
fn cut_before_output(trace: &Path, text: &[u8]) -> (ThreadId, u64) {
    let threads = TraceDir::open(trace).unwrap().threads().unwrap();
    for thread in threads.into_iter().filter(|t| t.0 != 1) {
        let mut reader = StreamReader::open(trace, thread).unwrap();
        let mut before: Vec<Record<'static>> = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            if let Event::Syscall {
                ret,
                output: Some(_),
                ..
            } = record.event
                && usize::try_from(ret) == Ok(text.len())
            {
                remove_stream(trace, thread);
                let mut writer = StreamWriter::create(trace, thread).unwrap();
                before.iter().for_each(|r| writer.append(r).unwrap());
                drop(writer);
                return (thread, u64::try_from(before.len()).unwrap());
            }
            before.push(record.into_owned());
        }
    }
    panic!("no process but the first wrote {} bytes", text.len());
}

fn remove_stream(trace: &Path, thread: ThreadId) {
    let prefix = format!("t{}.", thread.0);
    let streams = std::fs::read_dir(trace.join("streams")).unwrap().flatten();
    let own = streams.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix));
    let removed = own.map(|e| std::fs::remove_file(e.path()).unwrap()).count();
    assert!(removed > 0, "thread {} has a stream", thread.0);
}

/// Says in the trace's end that a thread has so many records; none at all for `None`.
fn state_records(trace: &Path, thread: ThreadId, records: Option<u64>) {
    let trace = TraceDir::open(trace).unwrap();
    let mut end = trace.end().unwrap().unwrap();
    match records {
        Some(records) => end.threads.insert(thread.0, records),
        None => end.threads.remove(&thread.0),
    };
    trace.write_end(&end).unwrap();
}

const SCRIPT: &str =
    "echo one; (echo lost in the hole; true); echo two; (echo three; true); echo four";

#[test]
fn killed_between_write_and_record() {
    let place = Place::new("killed_between_write_and_record");
    record(&place, SCRIPT);
    let trace = place.work.join("t");
    let (thread, records) = cut_before_output(&trace, b"lost in the hole\n");
    // The trace was ended in order: only that process was killed.
    state_records(&trace, thread, Some(records));
    let replayed = replay(&place);
    assert_eq!(
        lines(&replayed),
        ["one", "two", "three", "four"],
        "{}",
        show(&replayed)
    );
    assert_eq!(replayed.status.code(), Some(0), "{}", show(&replayed));
    // Everything was killed at once.
    std::fs::remove_file(trace.join("end.json")).unwrap();
    let replayed = replay(&place);
    assert_eq!(
        lines(&replayed),
        ["one", "two", "three", "four"],
        "{}",
        show(&replayed)
    );
    assert_eq!(
        replayed.status.code(),
        Some(TRACE_END),
        "{}",
        show(&replayed)
    );
    place.clear();
}

#[test]
fn missing_records_that_the_end_knows_are_damage() {
    let place = Place::new("missing_records");
    record(&place, SCRIPT);
    cut_before_output(&place.work.join("t"), b"lost in the hole\n");
    let replayed = replay(&place);
    assert_eq!(
        replayed.status.code(),
        Some(TRACE_END),
        "{}",
        show(&replayed)
    );
    let said = String::from_utf8_lossy(&replayed.stderr).into_owned();
    assert!(said.contains("damaged"), "{}", show(&replayed));
    place.clear();
}

#[test]
fn killed_before_the_first_record() {
    let place = Place::new("killed_before_the_first_record");
    record(&place, SCRIPT);
    let trace = place.work.join("t");
    let (thread, _) = cut_before_output(&trace, b"lost in the hole\n");
    remove_stream(&trace, thread);
    state_records(&trace, thread, None);
    let replayed = replay(&place);
    assert_eq!(
        lines(&replayed),
        ["one", "two", "three", "four"],
        "{}",
        show(&replayed)
    );
    assert_eq!(replayed.status.code(), Some(0), "{}", show(&replayed));
    std::fs::remove_file(trace.join("end.json")).unwrap();
    let replayed = replay(&place);
    assert_eq!(
        lines(&replayed),
        ["one", "two", "three", "four"],
        "{}",
        show(&replayed)
    );
    assert_eq!(
        replayed.status.code(),
        Some(TRACE_END),
        "{}",
        show(&replayed)
    );
    place.clear();
}

/// A replay of what there is so far, killed processes included, again and again while more comes.
#[test]
fn while_it_is_recorded() {
    let place = Place::new("while_it_is_recorded");
    let script = "bash -c 'kill -9 $$'; echo begun; i=0; while ! [ -e enough ]; do (echo $i; kill -9 $BASHPID); \
                  i=$((i + 1)); sleep 0.02; done; echo enough";
    let words = [CREWIND, "record", "-o", "t", "bash", "-c", script];
    let mut recording = place
        .command(&words, &place.work, &[])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut most = 0;
    let begin = Instant::now();
    for round in 0.. {
        let replayed = if place.work.join("t/session.bin").exists() {
            replay(&place)
        } else {
            std::thread::sleep(Duration::from_millis(20));
            assert!(begin.elapsed() < SOON, "the recording begins");
            continue;
        };
        assert_eq!(
            replayed.status.code(),
            Some(TRACE_END),
            "{}",
            show(&replayed)
        );
        let found = lines(&replayed);
        let expected = (0..).map(|i| i.to_string());
        let numbers = found.iter().skip(1).cloned();
        assert!(
            found.first().is_none_or(|l| l == "begun"),
            "{}",
            show(&replayed)
        );
        assert!(
            numbers.zip(expected).all(|(a, b)| a == b),
            "{}",
            show(&replayed)
        );
        assert!(
            found.len() >= most,
            "earlier replays had more: {}",
            show(&replayed)
        );
        most = found.len();
        if round > 5 && most > 10 {
            break;
        }
        assert!(
            begin.elapsed() < 4 * SOON,
            "the recording goes on: {most} lines"
        );
    }
    std::fs::write(place.work.join("enough"), "").unwrap();
    assert!(recording.wait().unwrap().success());
    let replayed = replay(&place);
    assert_eq!(replayed.status.code(), Some(0), "{}", show(&replayed));
    assert_eq!(lines(&replayed).last().map(String::as_str), Some("enough"));
    place.clear();
}

/// `pid` has ended, or waits only for somebody to take its status.
fn is_gone(pid: &str) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_killed_supervisor_leaves_no_processes_behind() {
    let place = Place::new("a_killed_supervisor");
    let script =
        "(trap '' TERM HUP; echo $BASHPID > inner; while :; do :; done) & echo $$ > outer; wait";
    for command in ["record", "replay"] {
        let mut words = vec![CREWIND, command];
        if command == "record" {
            words.extend(["-o", "t", "bash", "-c", script]);
        } else {
            words.push("t");
        }
        let mut supervisor = place
            .command(&words, &place.work, &[])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pids = || {
            let of = |name| std::fs::read_to_string(place.work.join(name)).unwrap_or_default();
            [of("inner"), of("outer")].map(|pid| pid.trim().to_owned())
        };
        if command == "record" {
            eventually("the program starts", || {
                pids().iter().all(|pid| !pid.is_empty())
            });
        }
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
        if command == "record" {
            let pids = pids();
            eventually("the program's processes end", || {
                pids.iter().all(|pid| is_gone(pid))
            });
        }
        let trace = place.work.join("t").display().to_string();
        eventually("nothing uses the trace", || {
            let users = std::process::Command::new("grep")
                .args(["-lsF", &trace])
                .args(
                    std::fs::read_dir("/proc")
                        .unwrap()
                        .flatten()
                        .map(|e| e.path().join("maps"))
                        .filter(|maps| maps.exists()),
                )
                .output()
                .unwrap();
            users.stdout.is_empty()
        });
    }
    let replayed = replay(&place);
    assert_eq!(
        replayed.status.code(),
        Some(TRACE_END),
        "{}",
        show(&replayed)
    );
    place.clear();
}

#[test]
fn a_supervisor_that_is_asked_to_end_ends_its_program() {
    use std::os::unix::process::ExitStatusExt;
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
        let place = Place::new(&format!("a_supervisor_is_asked_{signal}"));
        let words = [
            CREWIND,
            "record",
            "-o",
            "t",
            "bash",
            "-c",
            "echo > ready; exec sleep 1000",
        ];
        let mut supervisor = place
            .command(&words, &place.work, &[])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the program starts", || place.work.join("ready").exists());
        let pid = libc::pid_t::try_from(supervisor.id()).unwrap();
        // SAFETY: a signal to a child that was not waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        assert_eq!(supervisor.wait().unwrap().signal(), Some(signal));
        let replayed = replay(&place);
        assert_eq!(
            replayed.status.signal(),
            Some(signal),
            "{}",
            show(&replayed)
        );
        place.clear();
    }
}

#[test]
fn written_mappings_stay_small() {
    let place = Place::new("written_mappings_stay_small");
    let program = crate::harness::build(
        &crate::harness::guest_sources().join("mmap_written.c"),
        &[],
        "",
    );
    let program = program.display().to_string();
    let words = [CREWIND, "record", "-o", "t", &program];
    let recorded = run(place.command(&words, &place.work, &[]), b"", 3 * SOON).unwrap();
    assert!(recorded.status.success(), "{}", show(&recorded));
    let end = TraceDir::open(&place.work.join("t"))
        .unwrap()
        .end()
        .unwrap()
        .unwrap();
    // 500 writes of 4 KiB into two mappings, and truncations that show half of the file anew; each write logged with
    // all that is mapped would be 16 GiB.
    assert!(end.raw_bytes < 64 << 20, "{} bytes", end.raw_bytes);
    place.clear();
}

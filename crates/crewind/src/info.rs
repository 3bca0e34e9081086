//! `crewind info`: a trace in short.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use crewind_guest::debug::wire::{Point, Run, Why};
use crewind_trace::event::{Event, ThreadId};
use crewind_trace::{ProcessSummary, StreamEnd, StreamReader, TraceDir};
use serde_json::{Value, json};

use crate::backtrace::{Backtrace, Objects, mapped_files};
use crate::cli::{InfoArgs, When, output_error};
use crate::debug::{self, Opened, Quiet};
use crate::fail::{Error, Result};
use crate::human;
use crate::list::{self, Status};
use crate::locate::{self, trace_error};

/// Name of a system call, or its number.
pub fn syscall_name(nr: u32) -> String {
    crewind_syscalls::syscall_name(nr).map_or_else(|| nr.to_string(), str::to_owned)
}

/// Name of a signal, as `kill -l` writes it with `SIG`.
pub fn signal_name(signo: u8) -> String {
    crewind_syscalls::signal_name(signo.into()).map_or_else(|| format!("SIG{signo}"), str::to_owned)
}

/// How a process ended, in words.
fn end_of(trace: &TraceDir, process: &ProcessSummary) -> String {
    for &thread in &process.threads {
        if let Ok(Some(Event::ProcessExit { status, signal, .. })) = trace.thread_end(thread) {
            return match (status, signal) {
                (_, Some(signal)) => format!("ended by {}", signal_name(signal)),
                (Some(status), None) => format!("exit {status}"),
                (None, None) => "ended".into(),
            };
        }
    }
    "no end recorded".into()
}

/// The end of a process that crashed.
struct Crash {
    process: ProcessSummary,
    thread: ThreadId,
    signal: u8,
    /// What the signal was about, in words.
    about: String,
    /// Position in the trace.
    clock: u64,
    pc: u64,
    /// Its frames, or why they are not here.
    backtrace: std::result::Result<Backtrace, String>,
}

/// Recordings of so long are replayed for a backtrace without being asked.
const SHORT: Duration = Duration::from_secs(30);

/// The first process that crashed.
fn crash_of(trace: &TraceDir, processes: &[ProcessSummary], when: When) -> Result<Option<Crash>> {
    let Some(process) = processes.iter().find(|p| debug::crashed(trace, p)) else {
        return Ok(None);
    };
    for &thread in &process.threads {
        let Ok(Some(Event::ProcessExit {
            signal: Some(signal),
            ..
        })) = trace.thread_end(thread)
        else {
            continue;
        };
        let mut reader = StreamReader::open(trace.path(), thread).map_err(|e| trace_error(&e))?;
        let mut about = String::new();
        let (mut clock, mut pc) = (0, 0);
        while let Ok(Some(record)) = reader.next() {
            (clock, pc) = (record.clock, record.pc);
            if let Event::Signal {
                info, synchronous, ..
            } = &record.event
            {
                about = about_signal(info, *synchronous);
            }
        }
        let time = trace.end().ok().flatten();
        let time = time.map_or(Duration::MAX, |end| Duration::from_nanos(end.wall_ns));
        let backtrace = match when {
            When::Never => Err("not asked for (--backtrace never)".into()),
            When::Auto if time > SHORT => Err(format!(
                "`crewind info --backtrace always` shows it; it replays {}",
                human::duration(time)
            )),
            When::Auto | When::Always => backtrace_at_end(trace, process).map_err(|e| e.message),
        };
        return Ok(Some(Crash {
            process: process.clone(),
            thread,
            signal,
            about,
            clock,
            pc,
            backtrace,
        }));
    }
    Ok(None)
}

/// What a `siginfo_t` tells.
fn about_signal(info: &[u8], synchronous: bool) -> String {
    let word = |at: usize| {
        let bytes = info.get(at..at + 4)?.try_into().ok()?;
        Some(i32::from_le_bytes(bytes))
    };
    let (Some(signo), Some(code)) = (word(0), word(8)) else {
        return String::new();
    };
    // SI_USER, SI_TKILL, SI_QUEUE: a process sent it, whose id stands where a fault has its address.
    if code <= 0 {
        return word(16).map_or_else(String::new, |pid| format!(", sent by process {pid}"));
    }
    // SI_KERNEL: the processor does not tell which address.
    if code == 0x80 || !synchronous {
        return String::new();
    }
    match (signo, info.get(16..24).map(<[u8; 8]>::try_from)) {
        (libc::SIGSEGV | libc::SIGBUS, Some(Ok(addr))) => {
            format!(" at address {:#x}", u64::from_le_bytes(addr))
        }
        _ => String::new(),
    }
}

/// Replays a process to its end and looks at it there.
fn backtrace_at_end(trace: &TraceDir, process: &ProcessSummary) -> Result<Backtrace> {
    let Opened {
        mut engine, chosen, ..
    } = debug::open(trace, Some(&process.pid.to_string()), Quiet::Yes)?;
    let failed = |e: crewind_debug::engine::Error| Error::internal(e.to_string());
    let end = Run {
        goal: Some(Point {
            event: u64::MAX,
            clock: 0,
            pc: 0,
        }),
        work: u64::MAX,
        ..Run::default()
    };
    let stopped = loop {
        let stopped = engine.run(end).map_err(failed)?;
        if stopped.why != Why::Work {
            break stopped;
        }
    };
    let regs = engine.registers(stopped.place.thread).map_err(failed)?;
    let mapped = mapped_files(trace, &chosen.path)?;
    let mut objects = Objects::of(&mut engine, trace, &chosen.image, &mapped).map_err(failed)?;
    Ok(objects.backtrace(&mut engine, &regs))
}

impl Crash {
    fn line(&self) -> String {
        format!(
            "{} in process {} pid {}, thread {}{}, at {}:{}:{:#x}",
            signal_name(self.signal),
            self.process.proc,
            self.process.pid,
            self.thread,
            self.about,
            self.thread.0,
            self.clock,
            self.pc,
        )
    }

    fn as_json(&self) -> Value {
        json!({
            "signal": signal_name(self.signal),
            "about": self.about.trim_start_matches([',', ' ']),
            "process": self.process.proc.0,
            "pid": self.process.pid,
            "thread": self.thread.0,
            "clock": self.clock,
            "pc": self.pc,
            "backtrace": self.backtrace.as_ref().ok().map(Backtrace::as_json),
            "no_backtrace": self.backtrace.as_ref().err(),
        })
    }
}

/// Counts by kind of event: from the end of the recording, else by reading everything.
fn counts(trace: &TraceDir) -> Result<(BTreeMap<String, u64>, Vec<String>)> {
    if let Ok(Some(end)) = trace.end() {
        return Ok((end.counts, Vec::new()));
    }
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut cut = Vec::new();
    for thread in trace.threads().map_err(|e| trace_error(&e))? {
        let mut reader = StreamReader::open(trace.path(), thread).map_err(|e| trace_error(&e))?;
        while let Ok(Some(record)) = reader.next() {
            let text = record.event.to_string();
            let kind = text.split(' ').next().unwrap_or_default().to_owned();
            *counts.entry(kind).or_default() += 1;
        }
        if let StreamEnd::Cut { why } = reader.end() {
            cut.push(format!("{thread}: {why}"));
        }
    }
    Ok((counts, cut))
}

/// Shows a trace.
pub fn run(args: &InfoArgs) -> Result<i32> {
    let trace = locate::open(args.trace.as_deref())?;
    let (counts, cut) = counts(&trace)?;
    let processes = trace.processes().map_err(|e| trace_error(&e))?;
    let crash = crash_of(&trace, &processes, args.backtrace)?;
    let text = if args.json {
        let value = as_json(&trace, &counts, &cut, &processes, crash.as_ref());
        serde_json::to_string_pretty(&value).map_err(|e| Error::internal(e.to_string()))? + "\n"
    } else {
        as_text(&trace, &counts, &cut, &processes, crash.as_ref())
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| output_error(&e))?;
    Ok(0)
}

fn as_json(
    trace: &TraceDir,
    counts: &BTreeMap<String, u64>,
    cut: &[String],
    processes: &[ProcessSummary],
    crash: Option<&Crash>,
) -> Value {
    let end = trace.end().ok().flatten();
    let processes: Vec<Value> = processes
        .iter()
        .map(|p| {
            json!({
                "process": p.proc.0,
                "parent": p.parent.map(|p| p.0),
                "how": p.how.to_string(),
                "pid": p.pid,
                "threads": p.threads.iter().map(|t| t.0).collect::<Vec<_>>(),
                "end": end_of(trace, p),
            })
        })
        .collect();
    let threads: usize = trace.threads().map_or(0, |t| t.len());
    json!({
        "path": trace.path().to_string_lossy(),
        "status": Status::of(trace).to_string(),
        "meta": trace.meta(),
        "end": end,
        "vcpus": trace.meta().options.cpus,
        "thread_count": threads,
        "events": counts,
        "sharing": end.as_ref().map(|e| e.sharing.clone()).unwrap_or_default(),
        "cut": cut,
        "processes": processes,
        "crash": crash.map(Crash::as_json),
        "disk_bytes": list::disk_size(trace.path()),
    })
}

fn as_text(
    trace: &TraceDir,
    counts: &BTreeMap<String, u64>,
    cut: &[String],
    processes: &[ProcessSummary],
    crash: Option<&Crash>,
) -> String {
    let meta = trace.meta();
    let end = trace.end().ok().flatten();
    let status = Status::of(trace);
    let mut rows: Vec<(&str, String)> = vec![
        ("trace", trace.path().display().to_string()),
        ("command", list::command_line(trace)),
        ("directory", meta.cwd.to_string()),
        (
            "recorded",
            format!("{}, by crewind {}", list::ago(meta.created), meta.crewind),
        ),
        (
            "machine",
            format!("{}, Linux {}", meta.cpu.name, meta.kernel),
        ),
        ("vcpus", meta.options.cpus.to_string()),
        ("status", status.to_string()),
    ];
    if let Status::Damaged(why) = &status {
        rows.push(("", why.clone()));
    }
    if let Some(end) = &end {
        rows.push(("time", human::duration(Duration::from_nanos(end.wall_ns))));
        rows.push((
            "events",
            format!(
                "{} in {} (before compression {})",
                counts.values().sum::<u64>(),
                human::size(end.stored_bytes),
                human::size(end.raw_bytes)
            ),
        ));
    } else {
        rows.push(("events", counts.values().sum::<u64>().to_string()));
    }
    for (kind, count) in counts.iter().filter(|(_, count)| **count > 0) {
        rows.push(("", format!("{count:>10} {kind}")));
    }
    if let Some(end) = end.as_ref().filter(|e| !e.sharing.is_empty()) {
        for (n, (what, count)) in end.sharing.iter().enumerate() {
            let key = if n == 0 { "sharing" } else { "" };
            rows.push((key, format!("{count:>10} {what}")));
        }
    }
    rows.push(("on disk", human::size(list::disk_size(trace.path()))));
    for process in processes {
        let parent = process
            .parent
            .map_or_else(String::new, |p| format!(" by {p}"));
        let threads = match process.threads.len() {
            1 => String::new(),
            n => format!(", {n} threads"),
        };
        let line = format!(
            "{} ({}{parent}) pid {}{threads}: {}",
            process.proc,
            process.how,
            process.pid,
            end_of(trace, process)
        );
        rows.push(("process", line));
    }
    for why in cut {
        rows.push(("cut off", why.clone()));
    }
    if let Some(crash) = crash {
        rows.push(("crash", crash.line()));
        match &crash.backtrace {
            Ok(b) => rows.extend(b.lines().into_iter().map(|line| ("", line))),
            Err(why) => rows.push(("", format!("no backtrace: {why}"))),
        }
    }
    let mut text = String::new();
    for (key, value) in rows {
        text.push_str(&format!("{key:<10} {value}\n"));
    }
    text
}

//! `crewind dump`: events as lines of text.

use std::io::Write;

use crewind_trace::event::{Event, Record, ThreadId};
use crewind_trace::{ProcessSummary, StreamEnd, StreamReader, TraceDir};

use crate::cli::{DumpArgs, Kind, output_error};
use crate::fail::{Error, Result, say};
use crate::locate::{self, trace_error};

/// Prints the events: process after process, in each in the order in which they happened.
pub fn run(args: &DumpArgs) -> Result<i32> {
    let trace = locate::open(args.trace.as_deref())?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut worst = 0;
    let processes = trace.processes().map_err(|e| trace_error(&e))?;
    if processes.is_empty() {
        say("this trace has no events");
    }
    for process in processes {
        if !args.process.is_empty() && !args.process.contains(&process.proc.0) {
            continue;
        }
        let status = dump_process(&trace, &process, args, &mut out).map_err(|e| match e {
            Stop::Output(e) => output_error(&e),
            Stop::Trace(e) => e,
        })?;
        worst = worst.max(status);
    }
    out.flush().map_err(|e| output_error(&e))?;
    Ok(worst)
}

enum Stop {
    Output(std::io::Error),
    Trace(Error),
}

impl From<std::io::Error> for Stop {
    fn from(e: std::io::Error) -> Self {
        Stop::Output(e)
    }
}

/// A thread's events, and where it stands in the order of turns.
struct Thread {
    id: ThreadId,
    reader: StreamReader,
    /// Turn in which its next event happened; `None` at its end.
    turn: Option<u64>,
}

impl Thread {
    /// Finds out the turn of the next event: an event that came back with a new turn counts there.
    fn look_ahead(&mut self) {
        let next = self.reader.peek().ok().flatten();
        self.turn = next.map(|record| turn_of(&record.event).or(self.turn).unwrap_or(0));
    }
}

fn turn_of(event: &Event<'_>) -> Option<u64> {
    match event {
        Event::ThreadStart { turn, .. } | Event::Preempt { turn } => Some(*turn),
        Event::Syscall { turn, .. } | Event::Fork { turn, .. } => *turn,
        Event::Sync { order, .. } => *order,
        _ => None,
    }
}

/// Prints one process; returns the exit status that its streams' ends deserve.
fn dump_process(
    trace: &TraceDir,
    process: &ProcessSummary,
    args: &DumpArgs,
    out: &mut impl Write,
) -> std::result::Result<i32, Stop> {
    let mut threads = Vec::new();
    for &id in &process.threads {
        let reader =
            StreamReader::open(trace.path(), id).map_err(|e| Stop::Trace(trace_error(&e)))?;
        let mut thread = Thread {
            id,
            reader,
            turn: None,
        };
        thread.look_ahead();
        threads.push(thread);
    }
    // Serialised recordings number the turns in which threads ran, so the smallest number is next.
    while let Some(thread) = threads
        .iter_mut()
        .filter(|t| t.turn.is_some())
        .min_by_key(|t| (t.turn, t.id))
    {
        let number = thread.reader.seq();
        let wanted = args.thread.is_empty() || args.thread.contains(&thread.id.0);
        // An error ends the stream; its `end` tells below.
        if let Ok(Some(record)) = thread.reader.next()
            && wanted
            && (args.kind.is_empty() || args.kind.contains(&kind_of(&record.event)))
        {
            print(out, process, thread.id, number, &record)?;
        }
        thread.look_ahead();
    }
    let mut status = 0;
    for thread in &threads {
        if let StreamEnd::Cut { why } = thread.reader.end() {
            out.flush()?;
            say(&format!("the stream of {} ends early: {why}", thread.id));
            status = crewind_guest::start::Failure::TraceEnd.status();
        }
    }
    Ok(status)
}

fn print(
    out: &mut impl Write,
    process: &ProcessSummary,
    thread: ThreadId,
    number: u64,
    record: &Record<'_>,
) -> std::io::Result<()> {
    write!(
        out,
        "{} {thread} #{number} {} {:#x} {:08x} ",
        process.proc, record.clock, record.pc, record.regs
    )?;
    match &record.event {
        Event::Syscall { nr, .. } => {
            let text = record.event.to_string();
            // The trace knows numbers only.
            let rest = text.split_once('(').map_or("", |(_, rest)| rest);
            writeln!(out, "syscall {}({rest}", crate::info::syscall_name(*nr))
        }
        Event::Signal { signo, .. } => {
            let text = record.event.to_string();
            let rest = text
                .split_once(' ')
                .and_then(|(_, rest)| rest.split_once(' '))
                .map_or("", |(_, rest)| rest);
            writeln!(
                out,
                "signal {signo} {} {rest}",
                crate::info::signal_name(*signo)
            )
        }
        event => writeln!(out, "{event}"),
    }
}

fn kind_of(event: &Event<'_>) -> Kind {
    match event {
        Event::ProcessStart { .. } => Kind::Start,
        Event::ThreadStart { .. } => Kind::Thread,
        Event::Image { .. } => Kind::Image,
        Event::Syscall { .. } => Kind::Syscall,
        Event::FileMapping { .. } => Kind::Mapping,
        Event::FileData { .. } => Kind::Syscall,
        Event::Insn { .. } => Kind::Insn,
        Event::Signal { .. } => Kind::Signal,
        Event::Preempt { .. } => Kind::Preempt,
        Event::Sync { .. } => Kind::Sync,
        Event::Shared { .. } => Kind::Shared,
        Event::Fork { .. } => Kind::Fork,
        Event::Clone { .. } => Kind::Clone,
        Event::Exec => Kind::Exec,
        Event::ThreadExit { .. } | Event::ProcessExit { .. } | Event::Killed => Kind::Exit,
    }
}

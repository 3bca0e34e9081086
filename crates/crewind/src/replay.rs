//! `crewind replay`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crewind_guest::replayed::{Recording, ReplayShared};
use crewind_guest::start::{Checksum, Failure, GuestStart, Mode, Options, Pkeys, Sharing};
use crewind_trace::{CpuInfo, Outline, TraceDir};

use crate::cli::ReplayArgs;
use crate::fail::{Error, Result, say};
use crate::locate::{self, Activity};
use crate::record::LAYOUT;
use crate::supervise::{self, Ended, Inherited, SignalsGo, Until, Watch};

/// Replays; returns the exit status, or does not return when the guest ended by a signal.
pub fn run(args: ReplayArgs) -> Result<i32> {
    let inherited = Inherited::read()
        .map_err(|e| Error::internal(format!("cannot look at my own state: {e}")))?;
    let trace = locate::open(args.trace.as_deref())?;
    let live = locate::activity(trace.path()) == Activity::Recording;
    if live {
        say("this trace is still being recorded; replaying what there is");
    }
    let mut replay = prepare(&trace, &inherited)?;
    replay.start.options.one_thread = args.one_thread;
    let damage: Vec<String> = replay
        .unfinished
        .iter()
        .flat_map(|outline| &outline.damage)
        .map(ToString::to_string)
        .collect();
    let is_finished = replay.unfinished.is_none();
    let passed = vec![replay.passed];
    let mut guest = supervise::spawn(replay.start, &inherited, SignalsGo::ToSupervisor, passed)?;
    guest.watch(Watch::new(replay.shared, &trace, replay.unfinished));
    let outcome = guest.wait(Until::All)?;
    if let Some((failure, _)) = outcome.failure {
        return Ok(failure.status());
    }
    if !is_finished {
        outcome
            .stream_end
            .iter()
            .chain(&damage)
            .for_each(|m| say(m));
        say(&format!(
            "replayed up to the end of the trace in {}, whose recording {}",
            trace.path().display(),
            if live { "goes on" } else { "was cut off" }
        ));
        return Ok(Failure::TraceEnd.status());
    }
    let recorded_signal = trace.end().ok().flatten().and_then(|end| end.signal);
    if outcome.ended == Ended::Signaled(libc::SIGKILL) && recorded_signal != Some(libc::SIGKILL) {
        say(&format!(
            "replayed up to where the recording failed; the rest is not in the trace in {}",
            trace.path().display()
        ));
        return Ok(Failure::TraceEnd.status());
    }
    if args.verbose {
        say(&format!("replayed {}", trace.path().display()));
    }
    Ok(outcome.ended.repeat())
}

/// A replay about to be started.
pub struct Prepared {
    /// What the root process is told.
    pub start: GuestStart,
    /// What all processes and the supervisor share.
    pub shared: ReplayShared,
    /// The same, to be passed on.
    pub passed: OwnedFd,
    /// What an unfinished trace has.
    pub unfinished: Option<Outline>,
}

/// Prepares a replay.
pub fn prepare(trace: &TraceDir, inherited: &Inherited) -> Result<Prepared> {
    let layout = trace
        .meta()
        .options
        .more
        .get(LAYOUT)
        .map_or("1", String::as_str);
    if layout != crewind_guest::layout::VERSION.to_string() {
        return Err(Error::usage(format!(
            "this trace was recorded by crewind {} with memory layout {layout}; this crewind replays layout {}: replay it with the crewind that recorded it",
            trace.meta().crewind,
            crewind_guest::layout::VERSION
        )));
    }
    // The guest's own state begins as it was then, whatever this replay's caller ignores or blocks.
    let recorded = inherited.with_meta(&trace.meta().options.more);
    compare_cpus(&trace.meta().cpu, &CpuInfo::host());
    let start = GuestStart {
        trace: trace.path().to_owned(),
        trace_root: trace.path().parent().unwrap_or(trace.path()).to_owned(),
        ..recorded.start(Mode::Replay, options(trace))
    };
    let unfinished = match trace.end() {
        Ok(Some(_)) => None,
        Ok(None) => Some(Outline::read(trace).map_err(|e| locate::trace_error(&e))?),
        Err(e) => return Err(locate::trace_error(&e)),
    };
    let (shared, passed) = match &unfinished {
        None => ReplayShared::create(Recording::Finished, &BTreeMap::new()),
        Some(outline) => ReplayShared::create(Recording::Unfinished, &outline.records),
    }
    .map_err(|e| Error::internal(format!("cannot make shared memory for the replay: {e}")))?;
    Ok(Prepared {
        start,
        shared,
        passed,
        unfinished,
    })
}

fn options(trace: &TraceDir) -> Options {
    let recorded = &trace.meta().options;
    Options {
        cpus: Some(recorded.cpus),
        pkeys: if recorded.pkeys {
            Pkeys::Auto
        } else {
            Pkeys::Off
        },
        checksum: if recorded.checksum {
            Checksum::Memory
        } else {
            Checksum::Registers
        },
        sharing: match recorded.more.get("sharing").map(String::as_str) {
            Some("software") => Sharing::Software,
            Some("pkeys") => Sharing::Pkeys,
            Some("adaptive") => Sharing::Adaptive,
            _ => Sharing::Serial,
        },
        lockstep: None,
        one_thread: false,
        by_granule: false,
        alternate: false,
        debug: None,
        deferred: None,
    }
}

/// Warns when this machine may compute something else than the recording one.
fn compare_cpus(recorded: &CpuInfo, here: &CpuInfo) {
    if recorded.vendor != here.vendor {
        say(&format!(
            "recorded on {} ({}), replaying on {} ({}): x87 functions, approximations and undefined flags differ \
             between vendors, so the replay may diverge; replay on a machine of the same vendor if it does",
            recorded.vendor, recorded.name, here.vendor, here.name
        ));
    }
    let missing = recorded.features_missing_in(here);
    // Names that say nothing about what programs can execute.
    let relevant: Vec<&str> = missing
        .iter()
        .map(String::as_str)
        .filter(|f| is_instruction_set(f))
        .collect();
    if !relevant.is_empty() {
        say(&format!(
            "the recording machine has instructions that this one lacks ({}); a program that used them will diverge",
            relevant.join(" ")
        ));
    }
}

/// Whether a feature of `/proc/cpuinfo` is a set of instructions that user code executes.
fn is_instruction_set(feature: &str) -> bool {
    const PREFIXES: [&str; 8] = ["sse", "ssse", "avx", "bmi", "sha", "amx", "vaes", "gfni"];
    const NAMES: [&str; 16] = [
        "mmx",
        "fma",
        "f16c",
        "aes",
        "pclmulqdq",
        "vpclmulqdq",
        "popcnt",
        "movbe",
        "abm",
        "adx",
        "rdrand",
        "rdseed",
        "fsgsbase",
        "cx16",
        "clwb",
        "fma4",
    ];
    PREFIXES.iter().any(|p| feature.starts_with(p)) || NAMES.contains(&feature)
}

//! `crewind record`.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crewind_guest::start::{
    Checksum, Failure, GuestStart, LockstepOptions, Mode, Options, Pkeys, Report, Sharing,
};
use crewind_trace::{Compactor, End, Meta, Session, Totals, TraceDir};

use crate::cli::{RecordArgs, SharingArg};
use crate::fail::{CANNOT_EXECUTE, Error, NOT_FOUND, Result, say};
use crate::locate::{self, RecorderLock, trace_error};
use crate::part;
use crate::program::{self, Program};
use crate::supervise::{self, Ended, Guest, Inherited, Others, Outcome, SignalsGo, Until};
use crate::{doctor, human};

/// First argument of the process that looks after a recording whose root ended before its other processes.
pub const KEEPER: &str = "__keeper";

/// How long the root's end waits for that of the other processes. Long against what a pipeline's last process needs
/// to end, short against the patience of somebody who started a daemon.
pub const GRACE: Duration = Duration::from_millis(300);

/// Records; returns the exit status, or does not return when the guest ended by a signal.
pub fn run(args: RecordArgs) -> Result<i32> {
    if part::is_asked(&args) {
        return part::record(&args);
    }
    record(&args, None).map(Ended::repeat)
}

/// Records. With `lockstep` the trace is a by-product: it is not announced, does not become the latest, and its mapped
/// files go beside it.
pub fn record(args: &RecordArgs, lockstep: Option<LockstepOptions>) -> Result<Ended> {
    let inherited = Inherited::read()
        .map_err(|e| Error::internal(format!("cannot look at my own state: {e}")))?;
    let program = program::find(&args.command, std::env::var_os("PATH").as_deref())?;
    for warning in &program.warnings {
        say(warning);
    }
    let options = Options {
        cpus: Some(args.cpus.unwrap_or_else(doctor::cores)),
        pkeys: if args.no_pkeys {
            Pkeys::Off
        } else {
            Pkeys::Auto
        },
        checksum: if args.checksum {
            Checksum::Memory
        } else {
            Checksum::Registers
        },
        sharing: sharing(args, lockstep.is_some())?,
        lockstep,
        one_thread: false,
        by_granule: args.by_granule,
        alternate: args.alternate,
        debug: None,
        deferred: None,
    };
    let (trace, root) = make_trace(args, &program, &options, &inherited)?;
    let path = trace.path().to_owned();
    if args.verbose {
        say(&format!("recording into {}", path.display()));
    }
    let purpose = lockstep.map_or(Purpose::Trace, |_| Purpose::Lockstep);
    let recording = Recording::start(args, program, options, &trace, root, &inherited);
    recording
        .and_then(|r| r.finish(&trace, args, purpose))
        .inspect_err(|e| {
            // Nothing ran, so there is nothing to keep.
            if e.status == CANNOT_EXECUTE || e.status == NOT_FOUND {
                let _ = TraceDir::remove(&path);
            }
        })
}

/// How threads are to be recorded. The default is what this machine does best.
fn sharing(args: &RecordArgs, lockstep: bool) -> Result<Sharing> {
    let asked = match args.sharing {
        _ if lockstep => Sharing::Serial,
        SharingArg::Auto => {
            let keys = !args.no_pkeys && doctor::no_pkeys().is_none();
            doctor::best_sharing(args.cpus, keys)
        }
        SharingArg::Serial => Sharing::Serial,
        SharingArg::Software => Sharing::Software,
        SharingArg::Pkeys => with_keys(args, Sharing::Pkeys)?,
        SharingArg::Adaptive => with_keys(args, Sharing::Adaptive)?,
    };
    Ok(if args.cpus == Some(1) {
        Sharing::Serial
    } else {
        asked
    })
}

/// A way to record that needs protection keys, if there are any.
fn with_keys(args: &RecordArgs, asked: Sharing) -> Result<Sharing> {
    let name = asked.name();
    if args.no_pkeys {
        return Err(Error::usage(format!(
            "--no-pkeys and --sharing {name} contradict each other; leave one of them out"
        )));
    }
    match doctor::no_pkeys() {
        None => Ok(asked),
        Some(why) => Err(Error::usage(format!(
            "--sharing {name} needs memory protection keys: {why}; use --sharing software, which works everywhere"
        ))),
    }
}

/// Name under which a trace says for which layout of the guest's memory it was made.
pub const LAYOUT: &str = "layout";

/// Makes the trace's directory; returns it and the folder where traces are kept.
fn make_trace(
    args: &RecordArgs,
    program: &Program,
    options: &Options,
    inherited: &Inherited,
) -> Result<(TraceDir, PathBuf)> {
    let cwd = std::env::current_dir().unwrap_or_default();
    let mut more = inherited.to_meta();
    more.insert(LAYOUT.into(), crewind_guest::layout::VERSION.to_string());
    more.insert("sharing".into(), options.sharing.name().into());
    let recorded_with = crewind_trace::Options {
        cpus: doctor::vcpus(options),
        pkeys: matches!(options.sharing, Sharing::Pkeys | Sharing::Adaptive),
        checksum: args.checksum,
        more,
    };
    let meta = Meta::now(&program.argv, &cwd, recorded_with);
    let root = locate::trace_root();
    let cannot = |e: crewind_trace::TraceError| {
        let hint = "choose another place with -o DIR or CREWIND_TRACE_DIR";
        match e {
            crewind_trace::TraceError::NoSpace { .. } => trace_error(&e),
            _ => Error::usage(format!("cannot make a trace: {e}; {hint}")),
        }
    };
    let trace = match &args.output {
        None => {
            let root = root.as_ref().map_err(|e| Error::usage(e.message.clone()))?;
            TraceDir::create_numbered(root, &base_name(&program.argv), meta).map_err(cannot)?
        }
        Some(directory) => {
            if directory.join("meta.json").exists() {
                return Err(Error::usage(format!(
                    "{} holds a trace already; remove it with `crewind rm {0}`, or choose another directory",
                    directory.display()
                )));
            }
            TraceDir::create_at(directory, meta).map_err(cannot)?
        }
    };
    // A trace elsewhere shares the store of mapped files when there is one, and becomes the latest.
    let beside = || trace.path().parent().unwrap_or(Path::new("/")).to_owned();
    let root = match (root, &args.output) {
        _ if options.lockstep.is_some() => beside(),
        (Ok(root), None) => root,
        (Ok(root), Some(_)) if std::fs::create_dir_all(&root).is_ok() => {
            let _ = TraceDir::point_latest(&root, trace.path());
            root
        }
        _ => beside(),
    };
    Ok((trace, root))
}

/// The program's name as the beginning of a trace's name.
fn base_name(argv: &[OsString]) -> String {
    let name = argv
        .first()
        .map(|a| {
            Path::new(a)
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
        })
        .unwrap_or_default();
    let safe: String = name
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || "._+-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .take(60)
        .collect();
    let safe = safe.trim_start_matches('.');
    if safe.is_empty() {
        "trace".into()
    } else {
        safe.into()
    }
}

/// What a recording is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Its trace.
    Trace,
    /// The comparison with a native run, whose last word comes when all processes have ended.
    Lockstep,
}

/// A recording that runs.
struct Recording {
    guest: Guest,
    compactor: Compactor,
    lock: Option<RecorderLock>,
    started: Instant,
}

impl Recording {
    fn start(
        args: &RecordArgs,
        program: Program,
        options: Options,
        trace: &TraceDir,
        trace_root: PathBuf,
        inherited: &Inherited,
    ) -> Result<Self> {
        let lock = RecorderLock::take(trace.path());
        // The page lives on in its file; guest processes map it themselves.
        let session = Session::create(trace.path()).map_err(|e| trace_error(&e))?;
        let (proc, thread) = (session.next_proc(), session.next_thread());
        let start = GuestStart {
            trace: trace.path().to_owned(),
            trace_root,
            cwd: trace_cwd(trace),
            proc: proc.0,
            thread: thread.0,
            ..start_of(program, options, inherited)
        };
        let started = Instant::now();
        let anchors = crewind_trace::open_anchors(trace.path()).map_err(|e| trace_error(&e))?;
        let guest = supervise::spawn(start, inherited, SignalsGo::ToGuest, anchors.into())?;
        let compactor = Compactor::start(trace.path()).map_err(|e| trace_error(&e))?;
        let _ = args;
        Ok(Recording {
            guest,
            compactor,
            lock,
            started,
        })
    }

    /// Waits for the end, compresses, and tells.
    fn finish(mut self, trace: &TraceDir, args: &RecordArgs, purpose: Purpose) -> Result<Ended> {
        let until = match purpose {
            Purpose::Trace => Until::RootThen(GRACE),
            Purpose::Lockstep => Until::All,
        };
        let outcome = self.guest.wait(until)?;
        if let Some(errno) = outcome.cannot_execute {
            return Err(cannot_execute(&args.command, errno));
        }
        let mut told = format!("trace in {}", trace.path().display());
        if outcome.others == Others::Live {
            drop(self.compactor);
            keep(
                trace.path(),
                self.lock,
                self.guest.into_control(),
                &outcome,
                self.started,
            )?;
            told.push_str(" (processes of the program go on, and so does their recording)");
        } else {
            let (totals, error) = self.compactor.finish();
            let summary = totals.clone();
            let end = end_of(
                outcome.ended,
                self.started.elapsed(),
                totals,
                sharing_of(trace),
            );
            let written = trace.write_end(&end);
            if let Some(e) = error.or(written.err()) {
                say(&format!(
                    "{e}\nthe trace is complete up to what was written"
                ));
            }
            if args.verbose {
                let events: u64 = summary.counts.values().sum();
                told = format!(
                    "{told}: {events} events, {} stored, {}",
                    human::size(summary.stored_bytes),
                    human::duration(self.started.elapsed())
                );
            }
        }
        if purpose == Purpose::Trace {
            say(&told);
        }
        Ok(outcome.end())
    }
}

/// What the root process of a recording is told of its program.
pub fn start_of(program: Program, options: Options, inherited: &Inherited) -> GuestStart {
    let argv = program.argv.into_iter().map(|a| a.into_vec().into());
    GuestStart {
        program: program.file.as_os_str().as_bytes().into(),
        argv: argv.collect(),
        envp: environment().into_iter().map(Into::into).collect(),
        ..inherited.start(Mode::Record, options)
    }
}

/// The kernel did not take the program.
pub fn cannot_execute(command: &[OsString], errno: i32) -> Error {
    let e = std::io::Error::from_raw_os_error(errno);
    let shown = command.first().map(|c| c.display().to_string());
    Error {
        status: match errno {
            libc::ENOENT => NOT_FOUND,
            _ => CANNOT_EXECUTE,
        },
        message: format!("cannot execute {}: {e}", shown.unwrap_or_default()),
    }
}

/// What was counted while threads ran in parallel.
fn sharing_of(trace: &TraceDir) -> std::collections::BTreeMap<String, u64> {
    Session::open(trace.path()).map_or_else(|_| Default::default(), |s| s.counted())
}

/// What a trace says at its end.
pub fn end_of(
    ended: Ended,
    wall: Duration,
    totals: Totals,
    sharing: std::collections::BTreeMap<String, u64>,
) -> End {
    let (status, signal) = match ended {
        Ended::Exited(status) => (Some(status), None),
        Ended::Signaled(signal) => (None, Some(signal)),
    };
    End {
        status,
        signal,
        wall_ns: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX),
        counts: totals.counts,
        threads: totals.threads,
        sharing,
        raw_bytes: totals.raw_bytes,
        stored_bytes: totals.stored_bytes,
    }
}

fn trace_cwd(trace: &TraceDir) -> crewind_guest::start::Bytes {
    trace.meta().cwd.as_os_str().as_bytes().into()
}

/// The environment as it is, entries without `=` included.
pub fn environment() -> Vec<Vec<u8>> {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    let mut entries = Vec::new();
    // SAFETY: the C library keeps `environ` as a NULL-terminated array of strings; no other thread exists yet that
    // could change it.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            entries.push(std::ffi::CStr::from_ptr(*at).to_bytes().to_vec());
            at = at.add(1);
        }
    }
    entries
}

// ---------------------------------------------------------------------------------------------------
// Daemons

/// Leaves the recording to a process of its own, so that `crewind record` can end with the program as a shell
/// would: what the program left running goes on, recorded.
///
/// The supervisor could instead adopt such processes and stay. But then the shell would wait for a daemon for ever,
/// and the daemon would see another parent than without crewind.
fn keep(
    trace: &Path,
    lock: Option<RecorderLock>,
    control: OwnedFd,
    outcome: &Outcome,
    started: Instant,
) -> Result<()> {
    let (kind, value) = match outcome.ended {
        Ended::Exited(status) => ("status", status),
        Ended::Signaled(signal) => ("signal", signal),
    };
    // SAFETY: duplicates a descriptor we own, without CLOEXEC on purpose.
    let passed = unsafe { libc::fcntl(control.as_raw_fd(), libc::F_DUPFD, 3) };
    if passed < 0 {
        return Err(Error::internal(format!(
            "cannot pass the recording on: {}",
            std::io::Error::last_os_error()
        )));
    }
    // SAFETY: just returned by the kernel.
    let passed = unsafe { OwnedFd::from_raw_fd(passed) };
    // So that at no time nobody records.
    let _lock = lock.map(RecorderLock::pass_on);
    let mut command = Command::new("/proc/self/exe");
    command
        .args([
            KEEPER,
            &passed.as_raw_fd().to_string(),
            kind,
            &value.to_string(),
        ])
        .arg(started.elapsed().as_millis().to_string())
        .arg(trace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: the closure only makes a system call. A session of its own: no terminal, no signals from it.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    command
        .spawn()
        .map_err(|e| Error::internal(format!("cannot pass the recording on: {e}")))?;
    Ok(())
}

/// The keeper: compresses until the last process of the recording ended, then writes the end.
pub fn keeper_main() -> i32 {
    match keep_until_end() {
        Some(()) => 0,
        None => Failure::Internal.status(),
    }
}

fn keep_until_end() -> Option<()> {
    let args: Vec<OsString> = std::env::args_os().skip(2).collect();
    let [control, kind, value, before, trace] = args.as_slice() else {
        return None;
    };
    let control: RawFd = control.to_str()?.parse().ok()?;
    let value: i32 = value.to_str()?.parse().ok()?;
    let before = Duration::from_millis(before.to_str()?.parse().ok()?);
    let ended = if kind == "status" {
        Ended::Exited(value)
    } else {
        Ended::Signaled(value)
    };
    let started = Instant::now();
    // SAFETY: the supervisor passed it for this; nothing else in this process owns it.
    let control = unsafe { OwnedFd::from_raw_fd(control) };
    // SAFETY: sets the flags of a descriptor we own: this process sleeps until a report comes.
    unsafe { libc::fcntl(control.as_raw_fd(), libc::F_SETFL, 0) };
    let trace = TraceDir::open(Path::new(trace)).ok()?;
    // The recorder's lock came with it.
    let compactor = Compactor::start(trace.path()).ok()?;
    while !matches!(Report::receive(control.as_raw_fd()), Ok(None)) {}
    let (totals, _) = compactor.finish();
    trace
        .write_end(&end_of(
            ended,
            before + started.elapsed(),
            totals,
            sharing_of(&trace),
        ))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_traces_are_plain() {
        let base = |name: &str| base_name(&[name.into()]);
        assert_eq!(base("/usr/bin/ls"), "ls");
        assert_eq!(base("./a b*c"), "a_b_c");
        assert_eq!(base("..hidden"), "hidden");
        assert_eq!(base("/"), "trace");
        assert_eq!(base_name(&[]), "trace");
    }
}

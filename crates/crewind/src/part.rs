//! `crewind run`, `crewind start`, `crewind stop`: programs that are recorded only when somebody asks for it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crewind_guest::deferred::socket_name;
use crewind_guest::start::{Checksum, Deferred, GuestStart, Options, Pkeys, Sharing};
use crewind_trace::{Session, TraceDir};

use crate::cli::{ProcessArgs, RecordArgs, RunArgs, SharingArg};
use crate::doctor;
use crate::fail::{Error, Result, say};
use crate::locate::{self, RecorderLock};
use crate::program;
use crate::record::{self, LAYOUT};
use crate::supervise::{self, Ended, Inherited, SignalsGo, Until};

/// `crewind run`.
pub fn run(args: &RunArgs) -> Result<i32> {
    let sharing = sharing(args.sharing, "recordings that begin in the middle")?;
    let deferred = Deferred {
        output: args.output.as_deref().map(absolute).transpose()?,
        ..Deferred::default()
    };
    supervised(&args.command, args.cpus, sharing, deferred)
}

/// Whether `crewind record` is to record only a part of the run.
pub fn is_asked(args: &RecordArgs) -> bool {
    args.start_at_signal.is_some() || args.start_at_function.is_some() || args.stop_after.is_some()
}

/// `crewind record` of a part of the run.
pub fn record(args: &RecordArgs) -> Result<i32> {
    if args.checksum || args.no_pkeys {
        return Err(Error::usage(
            "--checksum and --no-pkeys do not go together with --start-at-signal, --start-at-function and --stop-after",
        ));
    }
    let sharing = sharing(args.sharing, "recordings of a part of the run")?;
    let deferred = Deferred {
        output: args.output.as_deref().map(absolute).transpose()?,
        start_signal: args.start_at_signal,
        start_function: args.start_at_function.clone(),
        start_now: args.start_at_signal.is_none() && args.start_at_function.is_none(),
        stop_after: args.stop_after.map(millis),
        ..Deferred::default()
    };
    supervised(&args.command, args.cpus, sharing, deferred)
}

/// How threads are to be recorded; `what` cannot use keys.
fn sharing(asked: SharingArg, what: &str) -> Result<Sharing> {
    match asked {
        SharingArg::Auto | SharingArg::Serial => Ok(Sharing::Serial),
        SharingArg::Software => Ok(Sharing::Software),
        SharingArg::Pkeys | SharingArg::Adaptive => Err(Error::usage(format!(
            "{what} cannot use protection keys; use --sharing software"
        ))),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::usage(format!("{}: {e}", path.display())))
}

fn millis(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Runs a program that is recorded when somebody asks for it.
fn supervised(
    command: &[std::ffi::OsString],
    cpus: Option<u32>,
    sharing: Sharing,
    mut deferred: Deferred,
) -> Result<i32> {
    let inherited = Inherited::read()
        .map_err(|e| Error::internal(format!("cannot look at my own state: {e}")))?;
    let program = program::find(command, std::env::var_os("PATH").as_deref())?;
    for warning in &program.warnings {
        say(warning);
    }
    let missed = match (&deferred.start_function, deferred.start_signal) {
        (Some(name), _) => Some(format!(
            "no process called {name} (`nm -C` shows the functions of a program; what is stripped, or inlined wherever it is used, is not found)"
        )),
        (None, Some(signal)) => Some(format!(
            "no process got {}",
            crewind_syscalls::signal_name(signal as i32).unwrap_or("the signal")
        )),
        (None, None) => None,
    };
    deferred.more = inherited.to_meta();
    deferred
        .more
        .insert(LAYOUT.into(), crewind_guest::layout::VERSION.to_string());
    deferred
        .more
        .insert("sharing".into(), sharing.name().into());
    let options = Options {
        cpus: Some(cpus.unwrap_or_else(doctor::cores)),
        pkeys: Pkeys::Off,
        checksum: Checksum::Registers,
        sharing,
        lockstep: None,
        one_thread: false,
        by_granule: false,
        alternate: false,
        debug: None,
        deferred: Some(deferred),
    };
    let cwd = std::env::current_dir().unwrap_or_default();
    let start = GuestStart {
        trace_root: locate::trace_root()?,
        cwd: cwd.as_os_str().as_bytes().into(),
        ..record::start_of(program, options, &inherited)
    };
    let mut guest = supervise::spawn(start, &inherited, SignalsGo::ToGuest, Vec::new())?;
    let outcome = guest.wait(Until::RootThen(record::GRACE))?;
    if guest.parts().count() == 0
        && let Some(why) = missed
    {
        say(&format!("nothing was recorded: {why}"));
    }
    if let Some(errno) = outcome.cannot_execute {
        return Err(record::cannot_execute(command, errno));
    }
    Ok(outcome.end().repeat())
}

/// Recordings of parts of a run, as its supervisor sees them.
#[derive(Default)]
pub struct Parts {
    open: BTreeMap<PathBuf, Part>,
    began: usize,
}

struct Part {
    _lock: Option<RecorderLock>,
    began: Instant,
}

impl Parts {
    /// A recording has begun.
    pub fn began(&mut self, trace: PathBuf) {
        let part = Part {
            _lock: RecorderLock::take(&trace),
            began: Instant::now(),
        };
        self.open.insert(trace, part);
        self.began += 1;
    }

    /// How many have begun so far.
    pub fn count(&self) -> usize {
        self.began
    }

    /// It has ended: completes its trace.
    pub fn ended(&mut self, path: &Path) {
        let Some(part) = self.open.remove(path) else {
            return;
        };
        let (totals, error) = crewind_trace::compact(path);
        let written = TraceDir::open(path).and_then(|trace| {
            let sharing = Session::open(path).map_or_else(|_| BTreeMap::new(), |s| s.counted());
            let end = record::end_of(Ended::Exited(0), part.began.elapsed(), totals, sharing);
            trace.write_end(&end)
        });
        if let Some(e) = error.or(written.err()) {
            say(&format!(
                "{e}\nthe trace is complete up to what was written"
            ));
        }
        say(&format!("trace in {}", path.display()));
    }

    /// All processes are gone.
    pub fn all_ended(&mut self) {
        for path in self.open.keys().cloned().collect::<Vec<_>>() {
            self.ended(&path);
        }
    }
}

/// `crewind start PID`.
pub fn start(args: &ProcessArgs) -> Result<i32> {
    ask(args.pid, "start").map(|trace| {
        say(&format!("recording process {} into {trace}", args.pid));
        0
    })
}

/// `crewind stop PID`.
pub fn stop(args: &ProcessArgs) -> Result<i32> {
    ask(args.pid, "stop").map(|trace| {
        say(&format!("trace in {trace}"));
        0
    })
}

/// Asks a process, or the first of its children that can be asked: `crewind run` itself runs no program.
fn ask(pid: i32, what: &str) -> Result<String> {
    let Some(mut stream) = std::iter::once(pid)
        .chain(children(pid))
        .find_map(|pid| connect(pid).ok())
    else {
        let exists = Path::new(&format!("/proc/{pid}")).exists();
        return Err(Error::usage(if exists {
            format!(
                "process {pid} was not started by crewind, so its recording cannot begin now; start the program with `crewind run -- CMD`, and then use `crewind {what} PID`"
            )
        } else {
            format!("there is no process {pid}")
        }));
    };
    let failed = |e: std::io::Error| Error::usage(format!("process {pid} does not answer: {e}"));
    stream
        .write_all(format!("{what}\n").as_bytes())
        .map_err(failed)?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .map_err(failed)?;
    match line.trim_end().split_once(' ') {
        Some(("ok", trace)) => Ok(trace.to_owned()),
        Some(("error", why)) => Err(Error::usage(format!("process {pid}: {why}"))),
        _ => Err(Error::usage(format!(
            "process {pid} has ended without an answer"
        ))),
    }
}

fn connect(pid: i32) -> std::io::Result<UnixStream> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(socket_name(pid))?)
}

fn children(pid: i32) -> Vec<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(|p| p.parse().ok())
        .collect()
}

/// A signal, by name or number.
pub fn parse_signal(text: &str) -> std::result::Result<u32, String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let number = name.parse::<i32>().ok().or_else(|| {
        (1..=64).find(|n| {
            crewind_syscalls::signal_name(*n).is_some_and(|s| s.strip_prefix("SIG") == Some(name))
        })
    });
    match number {
        Some(n)
            if (1..=64).contains(&n)
                && !matches!(
                    n,
                    libc::SIGKILL
                        | libc::SIGSTOP
                        | libc::SIGSEGV
                        | libc::SIGBUS
                        | libc::SIGFPE
                        | libc::SIGILL
                        | libc::SIGTRAP
                ) =>
        {
            Ok(n as u32)
        }
        Some(_) => Err("this signal cannot be taken from the program; use USR1 or USR2".into()),
        None => Err("no such signal".into()),
    }
}

/// A time: 500ms, 10s, 2m.
pub fn parse_time(text: &str) -> std::result::Result<std::time::Duration, String> {
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err("a time is a number with ms, s or m behind it, as in 10s".into()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit))
        .map(std::time::Duration::from_millis)
        .ok_or_else(|| "a time is a number with ms, s or m behind it, as in 10s".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(parse_signal("USR1"), Ok(10));
        assert_eq!(parse_signal("sigusr2"), Ok(12));
        assert_eq!(parse_signal("34"), Ok(34));
        assert!(parse_signal("KILL").is_err());
        assert!(parse_signal("0").is_err());
        assert!(parse_signal("NONE").is_err());
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("10s").map(|d| d.as_millis()), Ok(10_000));
        assert_eq!(parse_time("250ms").map(|d| d.as_millis()), Ok(250));
        assert_eq!(parse_time("2m").map(|d| d.as_millis()), Ok(120_000));
        assert!(parse_time("10").is_err());
        assert!(parse_time("s").is_err());
        assert!(parse_time("99999999999999999999s").is_err());
    }
}

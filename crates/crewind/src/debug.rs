//! `crewind debug`: a debugger on a recording.

mod ending;
mod files;

use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crewind_debug::engine::Engine;
use crewind_debug::{Connection, Ended, Session};
use crewind_guest::debug::DebugOptions;
use crewind_guest::debug::wire::Stopped;
use crewind_guest::loader::ImageInfo;
use crewind_guest::start::{CloseOnExec, Report, dup_high};
use crewind_trace::event::{Event, ProcId};
use crewind_trace::{ProcessSummary, StreamReader, TraceDir};

use self::ending::Ending;
use crate::cli::DebugArgs;
use crate::fail::{Error, Result, say};
use crate::locate::{self, trace_error};
use crate::replay;
use crate::supervise::{self, Inherited, SignalsGo};

/// Commands that make gdb's own out of the server's, and show where they led. (Going on forwards, gdb first steps over a
/// breakpoint where it stands, and cannot cope with a step that ends in another thread. Backwards it does not.)
const COMMANDS: &str = "\
define when
  monitor when
end
document when
Show where in the recording this is: event, thread, position.
end
define goto
  monitor jump $arg0
  reverse-continue
  sharedlibrary
end
document goto
Go to a moment of the recording: goto EVENT, goto start, goto end, goto THREAD:CLOCK[:PC].
end
define last-write
  if $argc == 1
    eval \"monitor last-write 0x%lx\", (unsigned long)($arg0)
  else
    eval \"monitor last-write 0x%lx %lu\", (unsigned long)($arg0), (unsigned long)($arg1)
  end
end
document last-write
Tell which thread wrote to memory last before this moment: last-write ADDRESS [LENGTH].
end
";

/// What stands for gdb's own catchpoints, which would want a second process. A session is about one program: that it executes
/// the next one is caught in front of the call.
const CATCHPOINTS: &str = "\
import gdb
class Catch(gdb.Command):
    def __init__(self, what):
        super().__init__('catch ' + what, gdb.COMMAND_BREAKPOINTS)
        self.what = what
    def invoke(self, argument, from_tty):
        gdb.execute('monitor catch ' + self.what)
        if self.what == 'exec':
            gdb.execute('catch syscall execve execveat')
for what in ('fork', 'vfork', 'exec'):
    Catch(what)
";

/// Where the socket to the replaying process goes, out of the way of what guests expect to be free.
const HIGH_FD: i32 = 900;

/// Opens a debugger; returns its exit status.
pub fn run(args: &DebugArgs) -> Result<i32> {
    let trace = locate::open(args.trace.as_deref())?;
    let Opened {
        engine,
        stopped,
        chosen,
    } = open_program(
        &trace,
        args.process.as_deref(),
        args.program.as_deref(),
        Quiet::No,
    )?;
    let ending = Ending::watch()?;
    let mut session = Session::new(engine, &stopped).map_err(|e| Error::internal(e.to_string()))?;
    session.set_files(files::kept(&trace, &chosen)?);
    if let Some(to) = &args.goto {
        let text = session
            .goto(to)
            .map_err(|e| Error::usage(format!("--goto: {e}")))?;
        say(&text);
    }
    match &args.server {
        Some(address) => serve(&mut session, address, &ending),
        None => with_gdb(&mut session, &trace, &chosen, args, &ending),
    }
}

/// Whether the program's output appears, and which process it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// Nothing appears.
    Yes,
    /// What the program wrote appears when it does so.
    No,
}

/// A process of a recording at its beginning.
pub struct Opened {
    /// It.
    pub engine: Engine,
    /// Where it stands.
    pub stopped: Stopped,
    /// Which one it is.
    pub chosen: Chosen,
}

/// Starts a replay for looking at one process. To be called before there are threads.
pub fn open(trace: &TraceDir, wanted: Option<&str>, quiet: Quiet) -> Result<Opened> {
    open_program(trace, wanted, None, quiet)
}

/// The same for one of the programs that the process executed; none: the last.
fn open_program(
    trace: &TraceDir,
    wanted: Option<&str>,
    program: Option<&str>,
    quiet: Quiet,
) -> Result<Opened> {
    let processes = trace.processes().map_err(|e| trace_error(&e))?;
    let chosen = choose(trace, &processes, wanted, program, quiet)?;
    let options = DebugOptions {
        socket: -1,
        path: chosen.path.clone(),
        programs_before: chosen.programs_before,
        next: chosen.next.clone(),
        quiet: quiet == Quiet::Yes,
    };
    let (engine, stopped) = start(trace, options)?;
    Ok(Opened {
        engine,
        stopped,
        chosen,
    })
}

/// A process to be debugged.
pub struct Chosen {
    /// The processes from the root to it.
    pub path: Vec<u32>,
    /// Programs that it executed before the one that is debugged.
    pub programs_before: u32,
    /// The program.
    pub image: ImageInfo,
    /// What leads to the next program, for the user.
    pub next: String,
}

/// The programs of a process, in their order.
fn images(trace: &TraceDir, process: &ProcessSummary) -> Result<Vec<ImageInfo>> {
    let mut found = Vec::new();
    for &thread in &process.threads {
        let mut reader = StreamReader::open(trace.path(), thread).map_err(|e| trace_error(&e))?;
        while let Ok(Some(record)) = reader.next() {
            if let Event::Image { info } = record.event {
                found.push(
                    ImageInfo::from_bytes(&info).map_err(|e| Error::internal(e.to_string()))?,
                );
            }
        }
    }
    Ok(found)
}

/// Whether a signal ended the process that tells of a mistake.
pub fn crashed(trace: &TraceDir, process: &ProcessSummary) -> bool {
    const CRASHES: [i32; 7] = [
        libc::SIGSEGV,
        libc::SIGABRT,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGSYS,
    ];
    process.threads.iter().any(|&t| {
        matches!(trace.thread_end(t), Ok(Some(Event::ProcessExit { signal: Some(s), .. }))
            if CRASHES.contains(&s.into()))
    })
}

/// The process that is asked for; else the one that crashed, else the first.
fn choose(
    trace: &TraceDir,
    processes: &[ProcessSummary],
    wanted: Option<&str>,
    program: Option<&str>,
    quiet: Quiet,
) -> Result<Chosen> {
    let first = processes
        .first()
        .ok_or_else(|| Error::usage("the trace has no process; nothing was recorded"))?;
    // A process that executes nothing itself, or has not yet, is a fork of the program of its parent.
    let programs_of = |p: &ProcessSummary| -> Result<Vec<ImageInfo>> {
        let mut own = images(trace, p)?;
        let mut at = p;
        while let Some(parent) = at
            .parent
            .and_then(|n| processes.iter().find(|q| q.proc == n))
        {
            let before = images(trace, parent)?.pop();
            if let Some(image) = before {
                own.insert(0, image);
                break;
            }
            at = parent;
        }
        Ok(own)
    };
    let name_of = |image: &Option<ImageInfo>| {
        let comm = image.as_ref().map(ImageInfo::comm).unwrap_or_default();
        String::from_utf8_lossy(comm).into_owned()
    };
    let process = match wanted {
        None => processes
            .iter()
            .find(|p| crashed(trace, p))
            .unwrap_or(first),
        Some(text) => {
            let number = text.parse::<i32>().ok();
            let mut found = None;
            let mut names = Vec::new();
            for p in processes {
                let name = name_of(&programs_of(p)?.pop());
                if number == Some(p.pid) || name == text {
                    found = Some(p);
                    break;
                }
                names.push(format!("{} {name}", p.pid));
            }
            found.ok_or_else(|| {
                Error::usage(format!(
                    "no process {text} in this trace; there are: {}",
                    names.join(", ")
                ))
            })?
        }
    };
    let programs = programs_of(process)?;
    if programs.is_empty() {
        return Err(Error::usage(format!(
            "process {} had not started a program when the recording ended",
            process.pid
        )));
    }
    let names: Vec<String> = (1..)
        .zip(&programs)
        .map(|(n, i)| format!("{n} {}", name_of(&Some(i.clone()))))
        .collect();
    let listed = names.join(", ");
    let at = match program {
        None => programs.len() - 1,
        Some(text) => (text.parse::<usize>().ok())
            .and_then(|n| n.checked_sub(1))
            .filter(|n| *n < programs.len())
            .or_else(|| {
                programs
                    .iter()
                    .rposition(|i| name_of(&Some(i.clone())) == text)
            })
            .ok_or_else(|| {
                Error::usage(format!(
                    "process {} executed no program {text}; there are: {listed}",
                    process.pid
                ))
            })?,
    };
    let Some(image) = programs.get(at).cloned() else {
        return Err(Error::internal("a program is missing".to_owned()));
    };
    if programs.len() > 1 && quiet == Quiet::No {
        say(&format!(
            "program {} of process {}; --program chooses another one: {listed}",
            at + 1,
            process.pid
        ));
    }
    let next = programs
        .get(at + 1)
        .and_then(ImageInfo::program)
        .map_or("another program".into(), |f| {
            String::from_utf8_lossy(f.path.as_slice()).into_owned()
        });
    let next = format!(
        "{next} here; `crewind debug --process {} --program {}` shows that program",
        process.pid,
        at + 2
    );
    if processes.len() > 1 && quiet == Quiet::No {
        say(&format!(
            "process {} ({}); --process chooses another one, `crewind info` lists them",
            process.pid,
            name_of(&Some(image.clone()))
        ));
    }
    Ok(Chosen {
        path: path_to(processes, process.proc),
        programs_before: u32::try_from(at).unwrap_or(u32::MAX),
        image,
        next,
    })
}

/// The processes from the root to `proc`.
fn path_to(processes: &[ProcessSummary], proc: ProcId) -> Vec<u32> {
    let mut path = vec![proc.0];
    let mut at = proc;
    while let Some(parent) = processes
        .iter()
        .find(|p| p.proc == at)
        .and_then(|p| p.parent)
        .filter(|p| !path.contains(&p.0))
    {
        path.push(parent.0);
        at = parent;
    }
    path.reverse();
    path
}

/// Starts the replaying process, and a thread that shows its messages.
fn start(trace: &TraceDir, mut options: DebugOptions) -> Result<(Engine, Stopped)> {
    let cannot = |e: io::Error| Error::internal(format!("cannot start the replay: {e}"));
    let inherited = Inherited::read()
        .map_err(|e| Error::internal(format!("cannot look at my own state: {e}")))?;
    let (ours, theirs) = UnixStream::pair().map_err(cannot)?;
    let high = dup_high(theirs.as_raw_fd(), HIGH_FD, CloseOnExec::No)
        .or_else(|_| dup_high(theirs.as_raw_fd(), 3, CloseOnExec::No))
        .map_err(cannot)?;
    // SAFETY: just made, and nobody else's.
    let high = unsafe { OwnedFd::from_raw_fd(high) };
    drop(theirs);
    options.socket = high.as_raw_fd();
    let mut replay = replay::prepare(trace, &inherited)?;
    replay.start.options.debug = Some(options);
    let passed = vec![replay.passed];
    let quiet = replay.start.options.debug.as_ref().is_some_and(|d| d.quiet);
    // SAFETY: zeros are a valid set, which the kernel fills.
    let mask = unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask);
        mask
    };
    let guest = supervise::spawn(replay.start, &inherited, SignalsGo::ToSupervisor, passed)?;
    if quiet {
        // Nobody reads signals, so they act: Ctrl-C ends a command that looks at something.
        // SAFETY: the set that was there before.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut()) };
    }
    drop(high);
    let control = guest.into_control();
    std::thread::spawn(move || show_reports(&control, quiet));
    match Engine::connect(ours) {
        Ok(started) => Ok(started),
        Err(e) => {
            // Its message comes first.
            std::thread::sleep(std::time::Duration::from_millis(100));
            Err(Error::new(
                crewind_guest::start::Failure::TraceEnd,
                format!("the replay ended before the program began: {e}"),
            ))
        }
    }
}

/// Shows what replaying processes say.
fn show_reports(control: &OwnedFd, quiet: bool) {
    loop {
        let mut fd = libc::pollfd {
            fd: control.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live structure.
        unsafe { libc::poll(&mut fd, 1, -1) };
        match Report::receive(control.as_raw_fd()) {
            Ok(Some(_)) if quiet => {}
            Ok(Some(Report::Warning { message } | Report::Failed { message, .. })) => say(&message),
            Ok(Some(Report::Text { text })) => drop(io::stderr().write_all(text.as_bytes())),
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Serves front ends, one after the other, until one kills the program.
fn serve(session: &mut Session, address: &str, ending: &Ending) -> Result<i32> {
    let cannot = |e: io::Error| Error::usage(format!("cannot listen at {address}: {e}"));
    let is_port = address.parse::<u16>().is_ok();
    let mut accept: Box<dyn FnMut() -> io::Result<Connection>> = if is_port || address.contains(':')
    {
        let local = if is_port {
            format!("127.0.0.1:{address}")
        } else {
            address.to_owned()
        };
        let listener = TcpListener::bind(&local).map_err(cannot)?;
        let at = listener.local_addr().map_err(cannot)?;
        say(&format!(
            "waiting for a debugger: gdb -ex \"target remote {at}\""
        ));
        Box::new(move || crewind_debug::tcp(listener.accept()?.0))
    } else {
        let listener = UnixListener::bind(address).map_err(cannot)?;
        ending.removes(Path::new(address));
        say(&format!(
            "waiting for a debugger: gdb -ex \"target remote {address}\""
        ));
        Box::new(move || Ok(crewind_debug::unix(listener.accept()?.0)))
    };
    loop {
        let connection = accept().map_err(cannot)?;
        match crewind_debug::serve(session, connection) {
            Ok(Ended::Killed) => break,
            Ok(Ended::Detached) => say("the debugger went away; another one may connect"),
            Err(e) => return Err(Error::internal(e.to_string())),
        }
    }
    if !is_port && !address.contains(':') {
        let _ = std::fs::remove_file(address);
    }
    Ok(0)
}

/// Runs gdb on the session.
fn with_gdb(
    session: &mut Session,
    trace: &TraceDir,
    chosen: &Chosen,
    args: &DebugArgs,
    ending: &Ending,
) -> Result<i32> {
    let place = Scratch::new()?;
    ending.removes(place.path());
    let file = files::executable(trace, chosen, place.path())?;
    let socket = place.path().join("gdb");
    let script = place.path().join("commands");
    let cannot = |e: io::Error| Error::internal(format!("cannot prepare for gdb: {e}"));
    std::fs::write(&script, COMMANDS).map_err(cannot)?;
    let catchpoints = place.path().join("catchpoints.py");
    std::fs::write(&catchpoints, CATCHPOINTS).map_err(cannot)?;
    let listener = UnixListener::bind(&socket).map_err(cannot)?;
    let mut gdb = Command::new(&args.gdb);
    gdb.arg("-q");
    let mut execute = |text: String| {
        gdb.arg("-ex").arg(text);
    };
    execute("set confirm off".into());
    // Commands that move in time may take long.
    execute("set remotetimeout 3600".into());
    // A function that is called and crashes is given up.
    execute("set unwindonsignal on".into());
    let sysroot = if files::are_here(trace, chosen)? {
        "/"
    } else {
        say("libraries have changed since the recording; gdb reads the trace's copies");
        "target:"
    };
    execute(format!("set sysroot {sysroot}"));
    execute(format!("file {}", file.display()));
    execute(format!("source {}", script.display()));
    execute(format!("source {}", catchpoints.display()));
    execute(format!("target remote {}", socket.display()));
    gdb.args(&args.gdb_arguments);
    let parent = std::process::id();
    // SAFETY: only system calls, with a valid set.
    unsafe {
        gdb.pre_exec(move || {
            // Whatever ends this process: gdb alone is of no use.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            Ok(())
        });
    }
    let mut child = gdb.spawn().map_err(|e| {
        Error::usage(format!(
            "cannot start {}: {e}; install gdb, or give another one with --gdb",
            Path::new(&args.gdb).display()
        ))
    })?;
    ending.gdb_runs();
    let path = place.path().to_owned();
    std::thread::spawn(move || {
        let status = child.wait();
        let _ = std::fs::remove_dir_all(path);
        let code = status.map_or(1, |s| {
            s.code()
                .unwrap_or_else(|| 128 + s.signal().unwrap_or_default())
        });
        // The replaying processes end when their sockets close.
        std::process::exit(code)
    });
    loop {
        let (stream, _) = listener.accept().map_err(cannot)?;
        if let Err(e) = crewind_debug::serve(session, crewind_debug::unix(stream)) {
            say(&e.to_string());
        }
    }
}

/// A directory of our own, for as long as gdb runs.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let path = std::env::temp_dir().join(format!("crewind-debug-{}", std::process::id()));
        std::fs::create_dir(&path)
            .map_err(|e| Error::usage(format!("cannot make {}: {e}", path.display())))?;
        Ok(Scratch(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

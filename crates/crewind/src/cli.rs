//! Commands and options.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use crewind_guest::start::Failure;

use crate::fail::{Error, Result, say};
use crate::{
    complete, debug, doctor, dump, info, last_write, list, lockstep, part, record, replay,
};

const AFTER_HELP: &str = "\
Exit status:
  record and replay end as the program did: with its exit status, or by the same signal.
  crewind's own failures, each with a message on standard error:
    119  the trace is damaged or cut off (replayed up to its end)
    120  a mistake in the command: option, path, permissions, no space
    121  the program or this machine needs something crewind does not support
    122  a mistake of crewind's
    123  the replay did something else than the recording
    126  the program cannot be executed
    127  the program was not found

Environment:
  CREWIND_TRACE_DIR  where traces are kept; default $XDG_DATA_HOME/crewind,
                     else ~/.local/share/crewind
  CREWIND_LOG        what the runtime tells: warn (default), info, debug, trace

Examples:
  crewind record -- ./server --port 8080
  crewind replay
  crewind run -- ./server        then: crewind start PID, and crewind stop PID
  crewind dump --kind syscall | less";

/// Records a program and replays exactly that run, as often as you like.
///
/// `crewind record` runs an unmodified x86-64 Linux program and all processes that it starts, and logs what
/// cannot be computed again: results of system calls, signals, times. `crewind replay` runs it again from that log:
/// same output, same exit status, same instructions, without touching the files, sockets and clocks that
/// the recording saw.
#[derive(Parser, Debug)]
#[command(name = "crewind", version, after_help = AFTER_HELP, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Record(RecordArgs),
    Replay(ReplayArgs),
    Debug(DebugArgs),
    LastWrite(LastWriteArgs),
    Run(RunArgs),
    /// Begin to record a process that `crewind run` started.
    Start(ProcessArgs),
    /// End the recording of a process, which goes on.
    Stop(ProcessArgs),
    Ls(LsArgs),
    Rm(RmArgs),
    Info(InfoArgs),
    Dump(DumpArgs),
    Doctor(DoctorArgs),
    #[command(hide = true)]
    Lockstep(LockstepArgs),
    /// Prints a completion script for a shell.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Prints the manual page (roff), or writes those of all commands into a directory.
    #[command(hide = true)]
    Man {
        /// Write crewind.1, crewind-record.1, … there.
        directory: Option<PathBuf>,
    },
}

/// Run a program and record it.
///
/// The program keeps your terminal, standard input, output and error, and gets your signals; crewind ends as
/// it does. At the end one line on standard error names the trace.
#[derive(Args, Debug)]
pub struct RecordArgs {
    /// Directory for the trace; it must not exist yet, or be empty. [default: a new one where traces are kept]
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Most threads of a process that run at once, up to 8; 1 lets one run at a time. [default: as many as cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: Option<u32>,
    /// Do not use memory protection keys, even where the machine has them.
    #[arg(long)]
    pub no_pkeys: bool,
    /// How the memory accesses of threads that run at once are ordered.
    #[arg(long, value_enum, default_value_t = SharingArg::Auto, value_name = "HOW")]
    pub sharing: SharingArg,
    /// Also hash all writable memory of each process when it ends, so that replay compares it.
    #[arg(long)]
    pub checksum: bool,
    /// Record only from when the program gets this signal (USR1, or a number), which does not reach it.
    #[arg(long, value_name = "SIGNAL", value_parser = crate::part::parse_signal)]
    pub start_at_signal: Option<u32>,
    /// Record only from the first call of this function: `work`, `ns::Class::method`, `main.handle`, or a symbol.
    #[arg(long, value_name = "FUNCTION", conflicts_with = "start_at_signal")]
    pub start_at_function: Option<String>,
    /// Record only so long: 500ms, 10s, 2m. The program goes on.
    #[arg(long, value_name = "TIME", value_parser = crate::part::parse_time)]
    pub stop_after: Option<std::time::Duration>,
    /// Say where the trace is at the start as well, and what was recorded at the end.
    #[arg(short, long, action = ArgAction::SetTrue)]
    pub verbose: bool,
    /// With checks: take memory by the granule from its first change of hands on. A mode for tests.
    #[arg(long, hide = true)]
    pub by_granule: bool,
    /// With checks: change to one vcpu and back all the time. A mode for tests.
    #[arg(long, hide = true)]
    pub alternate: bool,
    /// The program and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub command: Vec<OsString>,
}

/// Run a program without recording it, ready to be recorded.
///
/// Its threads run at full speed. A recording begins when the program asks for it (start_rec), or with `crewind start PID`,
/// and ends with stop_rec, `crewind stop PID`, or the process. Each makes a trace, which replays and debugs like any other.
/// One process is recorded, not those that it starts.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Directory for the trace; for one recording. [default: new ones where traces are kept]
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Most threads that run at once while the program is recorded. [default: as many as cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: Option<u32>,
    /// How the memory accesses of threads that run at once are ordered while the program is recorded.
    #[arg(long, value_enum, default_value_t = SharingArg::Auto, value_name = "HOW")]
    pub sharing: SharingArg,
    /// The program and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub command: Vec<OsString>,
}

/// A process that `crewind run` started.
#[derive(Args, Debug)]
pub struct ProcessArgs {
    /// Its id, or that of its `crewind run`.
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
}

/// How memory that threads share is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SharingArg {
    /// The best that this machine has.
    #[default]
    Auto,
    /// One thread at a time: nothing is shared at any moment.
    Serial,
    /// All threads at once; each access is checked by code that the translator puts in front of it. Works everywhere.
    Software,
    /// Up to four threads at once; the processor checks each access. Needs memory protection keys.
    Pkeys,
    /// As pkeys, until threads share so much that checks cost less: then as software. Needs memory protection keys.
    Adaptive,
}

/// Run a recording again.
///
/// Everything comes from the trace: files, directories, sockets and the clock are not touched. What the recording wrote
/// to its standard output and standard error appears again, in the same order, and crewind ends as the program did.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// Directory or name of a trace. [default: the latest]
    pub trace: Option<PathBuf>,
    /// Say at the end that every process was verified up to its recorded end.
    #[arg(short, long)]
    pub verbose: bool,
    /// The threads of each process take turns on one host thread, as under a debugger.
    #[arg(long, hide = true)]
    pub one_thread: bool,
}

/// Open gdb on a recording.
///
/// gdb's commands work as on a live program, and backwards too: reverse-continue, reverse-step, reverse-next,
/// reverse-finish, reverse-stepi. Breakpoints and watchpoints hold in both directions. More commands: `when` tells where
/// in the recording this is, `goto EVENT` goes to a moment, `last-write ADDRESS` tells who wrote there last.
#[derive(Args, Debug)]
#[command(after_help = DEBUG_HELP)]
pub struct DebugArgs {
    /// Directory or name of a trace. [default: the latest]
    pub trace: Option<PathBuf>,
    /// The process: its id when recorded, or the name of its program. [default: the one that crashed, else the first]
    #[arg(long, value_name = "PID|NAME")]
    pub process: Option<String>,
    /// Which of the programs that the process executed: a number from 1, or its name. [default: the last]
    #[arg(long, value_name = "N|NAME")]
    pub program: Option<String>,
    /// Where to begin: a number of an event, `end`, or THREAD:CLOCK[:PC]. [default: the program's first instruction]
    #[arg(long, value_name = "MOMENT")]
    pub goto: Option<String>,
    /// Wait for a front end to connect, at this TCP port of this machine (or ADDRESS:PORT, or the path of a Unix socket),
    /// instead of starting gdb.
    #[arg(long, value_name = "PORT|SOCKET")]
    pub server: Option<String>,
    /// The gdb to start.
    #[arg(
        long,
        value_name = "PROGRAM",
        default_value = "gdb",
        conflicts_with = "server"
    )]
    pub gdb: OsString,
    /// Arguments for gdb, behind `--`.
    #[arg(last = true, value_name = "GDB ARGUMENTS", conflicts_with = "server")]
    pub gdb_arguments: Vec<OsString>,
}

const DEBUG_HELP: &str = "\
Examples:
  crewind debug                                the latest recording
  crewind debug --goto end                     begin at the end, where it crashed
  crewind debug -- -batch -x script            gdb follows a script
  crewind debug --server 1234                  then: gdb -ex 'target remote :1234'";

/// Tell who wrote to memory last.
///
/// Shows the moment, the thread, what the memory held before and behind it, and the functions it happened in. The exit
/// status is 1 if nobody wrote there.
#[derive(Args, Debug)]
#[command(after_help = LAST_WRITE_HELP)]
pub struct LastWriteArgs {
    /// Directory or name of a trace; `latest` is the latest.
    pub trace: PathBuf,
    /// The memory: an address, and how many bytes (else 1). Decimal, or hexadecimal with 0x.
    #[arg(value_name = "ADDR[:LEN]", value_parser = last_write::parse_range)]
    pub memory: last_write::Range,
    /// Before this moment: a number of an event, or THREAD:CLOCK[:PC]. [default: the end]
    #[arg(long, value_name = "MOMENT")]
    pub at: Option<String>,
    /// The process: its id when recorded, or the name of its program. [default: the one that crashed, else the first]
    #[arg(long, value_name = "PID|NAME")]
    pub process: Option<String>,
}

const LAST_WRITE_HELP: &str = "\
Examples:
  crewind last-write latest 0x3fffffff1a28:8
  crewind last-write latest 0x3fffffff1a28:8 --at 4:85010   the write before that";

/// List the traces.
#[derive(Args, Debug)]
pub struct LsArgs {
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Remove traces.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(false))]
pub struct RmArgs {
    /// Names or directories of traces.
    #[arg(group = "which")]
    pub traces: Vec<PathBuf>,
    /// All traces that ended.
    #[arg(long, group = "which")]
    pub all: bool,
    /// Those made longer ago than this: 30m, 12h, 7d, 4w.
    #[arg(long, value_name = "AGE", group = "which", value_parser = crate::human::parse_age)]
    pub older: Option<std::time::Duration>,
}

/// Show what a trace holds.
#[derive(Args, Debug)]
pub struct InfoArgs {
    /// As JSON.
    #[arg(long)]
    pub json: bool,
    /// Whether to show where a program that crashed was. That needs a replay up to there.
    #[arg(long, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    pub backtrace: When,
    /// Directory or name of a trace. [default: the latest]
    pub trace: Option<PathBuf>,
}

/// Whether to do something that may take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// If the recording is short: up to half a minute.
    Auto,
    /// In any case.
    Always,
    /// Never.
    Never,
}

/// Print the events of a trace, one a line.
#[derive(Args, Debug)]
pub struct DumpArgs {
    /// Directory or name of a trace. [default: the latest]
    pub trace: Option<PathBuf>,
    /// Only these threads (numbers in the trace, from 1).
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub thread: Vec<u32>,
    /// Only these processes (numbers in the trace, from 1).
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub process: Vec<u32>,
    /// Only these kinds of events.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub kind: Vec<Kind>,
}

/// Kinds of events, as in the filter of `dump`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Start of a process.
    Start,
    /// Start of a thread.
    Thread,
    /// A program image put in place.
    Image,
    /// A system call.
    Syscall,
    /// A file mapped.
    Mapping,
    /// An instruction whose result is not a function of the program's state.
    Insn,
    /// A signal delivered.
    Signal,
    /// A thread preempted.
    Preempt,
    /// What a thread of a parallel recording waited for.
    Sync,
    /// Memory shared with other processes that one of them had changed.
    Shared,
    /// A process created.
    Fork,
    /// A thread created.
    Clone,
    /// A program executed.
    Exec,
    /// End of a thread or process.
    Exit,
}

/// Run a program translated and natively at once, and stop at the first difference.
///
/// A development aid for the translator. The native one is stepped instruction by instruction, so expect well below
/// a million instructions a second. Only the first program is compared, up to its second thread.
#[derive(Args, Debug)]
pub struct LockstepArgs {
    /// Begin when the program's clock (indirect and backward transfers) is there.
    #[arg(long, value_name = "CLOCK", default_value_t = 0)]
    pub from: u64,
    /// Compare every N ticks of the clock, with code translated as for a recording. [default: small translations,
    /// compared after each]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub every: Option<u64>,
    /// Compare all writable memory each time, not only now and then and at the end.
    #[arg(long)]
    pub memory: bool,
    /// Flip a bit of a register after a block: BLOCK:REGISTER:BIT, three numbers.
    #[arg(long, hide = true, value_name = "SPEC", value_parser = crate::lockstep::parse_flip)]
    pub flip: Option<crewind_guest::start::Flip>,
    /// The program and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub command: Vec<OsString>,
}

/// Tell what this machine offers and how crewind would record on it.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// The command as clap sees it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the command line and runs it; returns the exit status.
pub fn main() -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let asked = !e.use_stderr();
            let _ = e.print();
            return if asked { 0 } else { Failure::Usage.status() };
        }
    };
    match run(cli.command) {
        Ok(status) => status,
        Err(e) => {
            say(&e.message);
            e.status
        }
    }
}

fn run(command: Command) -> Result<i32> {
    match command {
        Command::Record(args) => record::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Debug(args) => debug::run(&args),
        Command::LastWrite(args) => last_write::run(&args),
        Command::Run(args) => part::run(&args),
        Command::Start(args) => part::start(&args),
        Command::Stop(args) => part::stop(&args),
        Command::Ls(args) => list::ls(&args),
        Command::Rm(args) => list::rm(&args),
        Command::Info(args) => info::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Lockstep(args) => lockstep::run(args),
        Command::Completions { shell } => complete::completions(shell),
        Command::Man { directory } => complete::man(directory.as_deref()),
    }
}

/// Turns a failed write to standard output into an end: a reader that went away is no error.
pub fn output_error(e: &std::io::Error) -> Error {
    if e.kind() == std::io::ErrorKind::BrokenPipe {
        // As a program that dies of SIGPIPE, without a message.
        return Error {
            status: 128 + libc::SIGPIPE,
            message: String::new(),
        };
    }
    Error::usage(format!("cannot write to standard output: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_guest_keeps_its_options() {
        let cli =
            Cli::try_parse_from(["crewind", "record", "--checksum", "ls", "--all", "-o", "x"])
                .unwrap();
        let Command::Record(args) = cli.command else {
            panic!("not record")
        };
        assert!(args.checksum && args.output.is_none());
        assert_eq!(args.command, ["ls", "--all", "-o", "x"]);
        let cli = Cli::try_parse_from(["crewind", "record", "--", "--odd"]).unwrap();
        let Command::Record(args) = cli.command else {
            panic!("not record")
        };
        assert_eq!(args.command, ["--odd"]);
    }
}

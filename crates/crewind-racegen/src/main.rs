//! Writes an executable of random racy programs; it runs them as `EXECUTABLE FIRST COUNT [THREADS]`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use crewind_racegen::{Kind, Options, build};

/// Generates random multi-threaded programs full of data races and compiles them into one executable,
/// which is run with the number of the first program, how many, and a number of threads (0: as generated).
#[derive(Parser, Debug)]
#[command(max_term_width = 100)]
struct Args {
    /// Determines all programs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many programs.
    #[arg(long, default_value_t = 100)]
    programs: u64,
    /// Leave a kind of instructions out, to find out which one a failure needs; repeatable.
    #[arg(long, value_name = "KIND", value_parser = parse_kind)]
    without: Vec<Kind>,
    /// No timer signals.
    #[arg(long)]
    without_signals: bool,
    /// The executable to write; sources are put beside it.
    #[arg(short, long)]
    output: PathBuf,
}

fn parse_kind(name: &str) -> Result<Kind, String> {
    let known = || {
        Kind::ALL
            .iter()
            .map(|k| k.name())
            .collect::<Vec<_>>()
            .join(", ")
    };
    Kind::by_name(name).ok_or_else(|| format!("the kinds are: {}", known()))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options {
        seed: args.seed,
        programs: args.programs,
        without: args.without,
        without_signals: args.without_signals,
    };
    match build(&options, &args.output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("crewind-racegen: {e}");
            ExitCode::FAILURE
        }
    }
}

//! Programs whose threads race, in each way to record: guests that each try one thing, and random ones.
//!
//! `scripts/stress` runs the same many more times.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use crewind_racegen::Options;

use crate::harness::{Case, Output, Place, build, guest, guest_sources, note_skip, scratch, show};

/// Numbers of threads that the par_ guests run with.
const THREADS: [&str; 2] = ["2", "4"];
/// Programs in one recording: most of the time of a short one is its start and end.
const BATCH: u64 = 10;
/// Tests that share the random programs, so that they run on several cores.
const SHARES: u64 = 4;

macro_rules! parallel {
    (threads from the argument: $($argument:ident)*; fixed: $($fixed:ident)*) => {
        $(
            #[test]
            fn $argument() {
                for threads in THREADS {
                    let name = stringify!($argument);
                    guest(name).arg(threads).named(&format!("{name}-{threads}")).run_in_modes(1);
                }
            }
        )*
        $(
            #[test]
            fn $fixed() {
                let name = stringify!($fixed);
                guest(name).named(&format!("{name}-modes")).run_in_modes(1);
            }
        )*
        /// Guests that only run here.
        pub const GUESTS: &[&str] = &[$(stringify!($argument)),*];
    };
}

parallel! {
    threads from the argument:
    par_counter par_store_buffer par_message_passing par_iriw par_dekker par_seqlock
    par_spin_lock par_ticket_lock par_lock_free par_read_mostly par_false_sharing par_unaligned par_atomics par_rep
    par_pipes par_condvar par_barrier par_futex par_fork par_spawn par_map par_time par_signals par_cancel par_short_threads
    par_tls par_syscalls par_ends par_jit par_exceptions par_malloc par_output par_openmp par_private par_alignment par_asan;
    fixed:
    thread_basic thread_sync thread_races thread_cancel thread_processes thread_many thread_memory thread_cxx thread_setxid thread_direct_io
}

/// Processes that are killed while their threads share memory replay to where they were killed.
#[test]
fn killed_while_memory_is_contended() {
    guest("kill_contended").run_in_modes(3);
}

/// What crewind gave, which has to end well.
fn succeeds(place: &Place, words: &[&str], limit: Duration) -> Output {
    let output = place
        .crewind(words, limit)
        .unwrap_or_else(|e| panic!("{e}\n{}", place.hint()));
    assert!(output.status.success(), "{}{}", show(&output), place.hint());
    output
}

/// What a process with keys did about hand-overs.
struct Adapted {
    /// How often it went over to checks.
    switches: u64,
    /// How often it went on with one vcpu.
    one_vcpu: u64,
}

/// Records a guest with two threads in the mode that adapts itself, replays it twice, and returns what it did; None: the
/// machine has no keys.
fn recorded_adaptively(name: &str, rounds: &str, more: &[&str]) -> Option<Adapted> {
    let modes = crate::modes::all();
    let mode = modes.iter().find(|m| m.name == "adaptive").expect("listed");
    if let Some(missing) = mode.missing() {
        note_skip(&format!("{name}-adaptive"), missing);
        return None;
    }
    let source = guest_sources().join(format!("{name}.c"));
    let program = build(&source, &["-lpthread".into()], "");
    // Tests of one program run at once.
    let place = Place::new(&format!("{name}-adaptive{}", more.concat()));
    let crewind = |words: &[&str]| succeeds(&place, words, Duration::from_secs(60));
    let program = program.to_str().expect("paths are UTF-8");
    let options: Vec<String> = mode.options(2).collect();
    let mut words = vec!["record", "--checksum"];
    words.extend(options.iter().map(String::as_str));
    words.extend(more);
    words.extend(["--", program, "2", rounds]);
    let recorded = crewind(&words);
    for _ in 0..2 {
        let replayed = crewind(&["replay"]);
        assert_eq!(replayed.stdout, recorded.stdout, "{}", place.hint());
    }
    let info: serde_json::Value =
        serde_json::from_slice(&crewind(&["info", "--json"]).stdout).expect("JSON");
    let taken = &info["sharing"]["taken-by-writes"];
    assert!(taken.as_u64() > Some(0), "threads shared nothing: {info}");
    let count = |what: &str| info["sharing"][what].as_u64().unwrap_or(0);
    let adapted = Adapted {
        switches: count("mode-switches"),
        one_vcpu: count("one-vcpu"),
    };
    place.clear();
    Some(adapted)
}

#[test]
fn a_process_that_shares_much_goes_over_from_keys_to_checks() {
    // Without trying one vcpu, on which the threads of this program would stay.
    if let Some(adapted) = recorded_adaptively("par_barrier", "3000", &["--by-granule"]) {
        assert_eq!((adapted.switches, adapted.one_vcpu), (1, 0));
    }
}

#[test]
fn a_process_whose_threads_wait_for_each_other_goes_on_with_one_vcpu() {
    if let Some(adapted) = recorded_adaptively("par_barrier", "3000", &[]) {
        assert!(adapted.one_vcpu > 0);
    }
}

#[test]
fn a_process_that_shares_little_stays_with_keys() {
    if let Some(adapted) = recorded_adaptively("par_private", "40", &[]) {
        assert_eq!((adapted.switches, adapted.one_vcpu), (0, 0));
    }
}

/// Memory that many short threads have used keeps an edge to each of them. Who comes when they have ended is behind them by
/// the order of events.
#[test]
fn threads_that_have_ended_are_not_logged_by_all_that_come_later() {
    let source = guest_sources().join("par_short_threads.c");
    let program = build(&source, &["-lpthread".into()], "");
    let program = program.to_str().expect("paths are UTF-8");
    let place = Place::new("threads_that_have_ended");
    let crewind = |words: &[&str]| succeeds(&place, words, Duration::from_secs(120));
    let options = ["--sharing", "software", "--cpus", "2", "--"];
    let recorded = crewind(&[&["record"], &options[..], &[program, "2", "1000"]].concat());
    assert_eq!(crewind(&["replay"]).stdout, recorded.stdout);
    let info: serde_json::Value =
        serde_json::from_slice(&crewind(&["info", "--json"]).stdout).expect("JSON");
    let threads = info["events"]["thread-exit"].as_u64().expect("a number");
    let edges = info["sharing"]["edges-logged"].as_u64().expect("a number");
    assert!(threads >= 6000, "{info}");
    assert!(edges < 30 * threads, "{edges} edges of {threads} threads");
    place.clear();
}

/// How many random programs all tests run together, and the seed.
fn random_options() -> Options {
    let number = |name: &str, default| {
        let text = std::env::var(name).ok();
        text.map_or(default, |t| t.parse().expect("it is a number"))
    };
    Options {
        seed: number("CREWIND_RANDOM_SEED", 1),
        programs: number("CREWIND_RANDOM_PROGRAMS", 160),
        ..Options::default()
    }
}

fn random_executable(options: &Options) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let directory = scratch().join("random");
            std::fs::create_dir_all(&directory).expect("the scratch directory can be written");
            // Tests are processes of their own; each builds, and needs, its own.
            let path = directory.join(format!("random.{}", std::process::id()));
            crewind_racegen::build(options, &path).expect("gcc takes what was generated");
            path
        })
        .clone()
}

/// Records and replays every `SHARES`th batch.
fn random_share(share: u64) {
    let options = random_options();
    let program = random_executable(&options);
    let path = program.to_str().expect("paths are UTF-8");
    for batch in (share..options.programs.div_ceil(BATCH)).step_by(SHARES as usize) {
        let first = batch * BATCH;
        let count = BATCH.min(options.programs - first);
        let name = format!("random-{}-{first}", options.seed);
        Case::new(&name, &[path, &first.to_string(), &count.to_string()])
            .varies()
            .run_in_modes(1);
    }
    // Kept after a failure.
    for extension in ["", ".c", ".s"] {
        let _ = std::fs::remove_file(format!("{path}{extension}"));
    }
}

#[test]
fn random_programs_0() {
    random_share(0);
}

#[test]
fn random_programs_1() {
    random_share(1);
}

#[test]
fn random_programs_2() {
    random_share(2);
}

#[test]
fn random_programs_3() {
    random_share(3);
}

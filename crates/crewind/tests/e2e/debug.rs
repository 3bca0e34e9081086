//! The debugger, driven by the real gdb.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{CREWIND, Output, Place, build, find_program, guest_sources, run, show, skip};

/// A walk over hundreds of breakpoints takes 20 s, and several times that on a machine that others keep busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// How a guest is recorded.
pub(crate) const SERIAL: &[&str] = &["--sharing", "serial"];
pub(crate) const PARALLEL: &[&str] = &["--sharing", "software", "--cpus", "2"];

pub(crate) fn crewind(place: &Place, args: &[&str]) -> Output {
    crewind_where(place, args, &[])
}

/// With more in the environment.
fn crewind_where(place: &Place, args: &[&str], more: &[(String, String)]) -> Output {
    run(place.crewind_command(args, more), b"", LIMIT).unwrap_or_else(|e| panic!("{e}"))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn program(name: &str, optimise: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/debug")
        .join(name);
    let flags = [optimise, "-g", "-pthread"].map(str::to_owned);
    build(&source, &flags, optimise)
}

/// A recording to be debugged.
pub(crate) struct Recording {
    pub(crate) place: Place,
    pub(crate) trace: String,
}

impl Recording {
    /// None: there is no gdb.
    pub(crate) fn new(name: &str, how: &[&str], command: &[&str]) -> Option<Recording> {
        if find_program("gdb").is_none() {
            skip(name, "gdb is not installed");
            return None;
        }
        let place = Place::new(name);
        let trace = place.work.join("trace").display().to_string();
        let mut words = vec!["record", "-o", &trace];
        words.extend_from_slice(how);
        words.push("--");
        words.extend_from_slice(command);
        crewind(&place, &words);
        Some(Recording { place, trace })
    }

    /// Runs gdb with a script; returns what it prints.
    pub(crate) fn gdb(&self, script: &str) -> String {
        self.gdb_with(&[], script)
    }

    pub(crate) fn gdb_with(&self, options: &[&str], script: &str) -> String {
        self.gdb_where(options, script, &[])
    }

    fn gdb_where(&self, options: &[&str], script: &str, more: &[(String, String)]) -> String {
        let kind = if script.contains("import gdb") {
            "script.py"
        } else {
            "script"
        };
        let file = self.place.work.join(kind);
        std::fs::write(&file, script).expect("the work directory is there");
        let file = file.display().to_string();
        let mut words = vec!["debug", &self.trace];
        words.extend_from_slice(options);
        words.extend_from_slice(&["--", "-nx", "-batch", "-x", &file]);
        let output = crewind_where(&self.place, &words, more);
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(
            output.status.success() && !all.contains("Error"),
            "{}",
            show(&output)
        );
        all
    }
}

/// Lines that begin so.
pub(crate) fn lines<'a>(text: &'a str, with: &str) -> Vec<&'a str> {
    text.lines().filter(|l| l.starts_with(with)).collect()
}

/// What test scripts in Python begin with.
const PYTHON: &str = r#"
import gdb, random
def do(command):
    return gdb.execute(command, to_string=True)
def when():
    return do("monitor when").strip()
def position():
    return when().split("position ")[1].split()[0]
def state():
    return (when().split(",", 1)[1], do("monitor checksum"), do("info registers"), do("info vector"), do("info float"))
def check(what, found, wanted):
    if found != wanted:
        print("DIFFERENT", what, "found:", found, "wanted:", wanted)
"#;

pub(crate) fn python(script: &str) -> String {
    format!("{PYTHON}{script}")
}

pub(crate) fn no_difference(output: &str) {
    assert!(!output.contains("DIFFERENT"), "{output}");
    assert!(output.contains("all done"), "{output}");
}

#[test]
fn debug_breakpoints_hit_in_the_same_order_backwards() {
    for (source, optimise, how, function, hits) in [
        ("steps.c", "-O0", SERIAL, "store", 30),
        ("steps.c", "-O2", SERIAL, "store", 30),
        ("hunt.cc", "-O0", PARALLEL, "corrupt", 1),
        ("hunt.cc", "-O0", PARALLEL, "add", 200),
    ] {
        let program = program(source, optimise);
        let name = format!("debug_breakpoints{optimise}_{function}");
        let Some(r) = Recording::new(&name, how, &[&program.display().to_string()]) else {
            return;
        };
        let output = r.gdb(
            &python(
                r#"
do("handle SIGUSR1 nostop noprint")
do("handle SIGABRT nostop noprint")
do("break FUNCTION")
forwards = []
while True:
    do("continue")
    if "here" in when():
        break
    forwards.append((position(), do("info args")))
check("number of hits", len(forwards), HITS)
backwards = []
while True:
    do("reverse-continue")
    if when().startswith("event 0,"):
        break
    backwards.append((position(), do("info args")))
check("hits backwards", backwards[::-1], forwards)
again = []
while True:
    do("continue")
    if "here" in when():
        break
    again.append((position(), do("info args")))
check("hits again", again, forwards)
print("all done")
"#,
            )
            .replace("FUNCTION", function)
            .replace("HITS", &hits.to_string()),
        );
        no_difference(&output);
    }
}

/// Visits instructions behind events by stepping on, back, on again, and going there in any order. (A thread that ends has
/// no more of them: it is gone where its last step leads.)
fn around(seed: u32, places: &str, steps: u32) -> String {
    python(
        &r#"
random.seed(SEED)
do("goto end")
events = int(when().split()[1].strip(","))
def thread():
    return position().split(":")[0]
visited = 0
for place in PLACES:
    do("goto %d" % place)
    # Here a thread may be waiting in front of an instruction, where it has been for some events. When it ends by this
    # step, the one that goes on may be, too.
    own = thread()
    do("stepi")
    if thread() != own:
        do("stepi")
    own = thread()
    seen = []
    def goes_on():
        # In front of the signal that ends it and at the end it is in the same place.
        return thread() == own and "here" not in when() and not (seen and seen[-1][0] == position())
    while len(seen) < STEPS and goes_on():
        seen.append((position(), state()))
        do("stepi")
    visited += len(seen)
    if len(seen) == STEPS and goes_on():
        for i in reversed(range(STEPS)):
            do("reverse-stepi")
            check("back %d from %d" % (i, place), state(), seen[i][1])
    elif seen:
        do("goto " + seen[0][0])
    for i in range(1, len(seen)):
        do("stepi")
        check("forth %d from %d" % (i, place), state(), seen[i][1])
    random.shuffle(seen)
    for at, wanted in seen:
        do("goto " + at)
        check("goto " + at, state(), wanted)
check("enough of them", visited > len(PLACES) * STEPS // 2, True)
print("all done")
"#
        .replace("SEED", &seed.to_string())
        .replace("PLACES", places)
        .replace("STEPS", &steps.to_string()),
    )
}

/// gdb's commands for going on and back, stopping and looking, in a program with four threads.
#[test]
fn debug_commands_of_gdb_work_in_both_directions() {
    for (kind, optimise) in [("debug", "-O0"), ("release", "-O2")] {
        let program = program("hunt.cc", optimise);
        for (name, how) in [("serial", SERIAL), ("parallel", PARALLEL)] {
            let name = format!("debug_commands_{kind}_{name}");
            let Some(r) = Recording::new(&name, how, &[&program.display().to_string()]) else {
                return;
            };
            let script =
                COMMANDS.replace("PLAIN", if optimise == "-O0" { "True" } else { "False" });
            let output = r.gdb(&python(&script));
            no_difference(&output);
        }
    }
}

const COMMANDS: &str = r#"
import re
plain = PLAIN
def line():
    return gdb.selected_frame().find_sal().line
def name():
    return gdb.selected_frame().name().split("(")[0]
def clock():
    return tuple(int(n) for n in position().split(":")[:2])
do("break main")
do("continue")
do("delete")
# Lines, in one thread.
lines = [line()]
for i in range(2):
    do("next")
    lines.append(line())
if plain:
    check("next", lines, [27, 28, 29])
    for i in reversed(range(2)):
        do("reverse-next")
        check("reverse-next", line(), lines[i])
# Instructions.
places = [position()]
for i in range(5):
    do("stepi 7")
    places.append(position())
for i in reversed(range(5)):
    do("reverse-stepi 7")
    check("reverse-stepi", position(), places[i])
for i in range(5):
    do("stepi 7")
    check("stepi", position(), places[i + 1])
before = clock()
do("nexti")
do("reverse-nexti")
check("reverse-nexti", clock() <= before, True)
# Into a function of one of the threads, and out of it.
do("break add if me == 2 && v == 10")
do("continue")
do("delete")
inside = position()
check("function", name(), "add")
check("argument", int(gdb.parse_and_eval("v")), 10)
check("threads", len(re.findall(r", t\d+\) ", do("info threads"))), len(gdb.selected_inferior().threads()))
check("stack", "body" in do("bt"), True)
check("stacks", len(re.findall("^" + chr(35) + "0 ", do("thread apply all bt 1"), re.M)), len(gdb.selected_inferior().threads()))
do("up")
check("up", name(), "body")
do("down")
check("down", name(), "add")
do("finish")
check("finish", name(), "body")
behind = position()
do("reverse-step")
check("reverse-step", name() != "body", True)
do("goto " + behind)
check("goto", name(), "body")
do("goto " + inside)
do("reverse-finish")
check("reverse-finish", name(), "body")
do("step")
check("step", name() != "body", True)
do("goto " + inside)
# Another thread, and back.
own = gdb.selected_thread()
for other in gdb.selected_inferior().threads():
    other.switch()
    check("registers", int(gdb.parse_and_eval("$pc")) != 0, True)
own.switch()
check("thread", position(), inside)
# Stops that go away.
do("tbreak corrupt")
do("continue")
check("tbreak", name(), "corrupt")
corrupted = position()
do("until")
do("goto end")
do("tbreak corrupt")
do("reverse-continue")
check("tbreak, backwards", position(), corrupted)
do("goto start")
do("hbreak corrupt")
do("continue")
check("hbreak", position(), corrupted)
do("delete")
do("advance body")
check("advance", clock() != (0, 0), True)
# Watched memory: the same stops in both directions, but for the side of the access.
for kind, values in (("watch", True), ("awatch", True), ("rwatch", False)):
    do("goto start")
    do("break main")
    do("continue")
    do("delete")
    do("%s total" % kind)
    totals = []
    for i in range(5):
        do("continue")
        totals.append(int(gdb.parse_and_eval("total")))
    check(kind + " grows", totals, sorted(totals))
    last = totals[-1]
    do("reverse-continue")
    check(kind + " back", int(gdb.parse_and_eval("total")) <= last, True)
    do("delete")
# Looking at things.
for what, part in (("info auxv", "AT_ENTRY"), ("info sharedlibrary", "libc.so"), ("x/2i $pc", "=>"), ("info registers", "rip"),
                   ("info line", "Line"), ("info symbol $pc", " in section "), ("ptype struct Node", "value"), ("p sizeof(Node)", "16"),
                   ("info signals SIGABRT", "SIGABRT"), ("p nodes", "{"), ("info inferiors", "process"), ("disassemble", "=>"),
                   ("p $xmm0", "v4_float"), ("info float", "R7"), ("list corrupt", "0x6666")):
    check(what, part in do(what), True)
do("goto end")
check("the end", "abort" in do("bt"), True)
print("all done")
"#;

#[test]
fn debug_stepping_back_and_forth_shows_the_same() {
    let program = program("hunt.cc", "-O0");
    for (name, how) in [("serial", SERIAL), ("parallel", PARALLEL)] {
        let name = format!("debug_steps_{name}");
        let Some(r) = Recording::new(&name, how, &[&program.display().to_string()]) else {
            return;
        };
        let places = "[events // 3, events // 2, events * 4 // 5]";
        no_difference(&r.gdb(&around(3, places, 40)));
    }
}

/// Random moments: `places` of them, each with what lies behind.
fn random_moments(name: &str, how: &[&str], places: u32, steps: u32) {
    let program = program("hunt.cc", "-O2");
    let Some(r) = Recording::new(name, how, &[&program.display().to_string()]) else {
        return;
    };
    // A different seed in each run: what went wrong is in the message, and the recording is kept.
    let seed = std::process::id();
    let places = format!("random.choices(range(1, events), k={places})");
    let script = around(seed, "places", steps).replace(
        "visited = 0",
        &format!("visited = 0\nplaces = {places}\nprint(\"seed {seed}\")"),
    );
    no_difference(&r.gdb(&script));
}

/// Where memory is short there are next to no checkpoints, and all is as it was.
#[test]
fn debug_without_memory_for_checkpoints() {
    let program = program("hunt.cc", "-O0");
    for (name, how) in [("serial", SERIAL), ("parallel", PARALLEL)] {
        let name = format!("debug_short_{name}");
        let Some(r) = Recording::new(&name, how, &[&program.display().to_string()]) else {
            return;
        };
        let script = around(7, "[events // 3, events * 4 // 5]", 20).replace(
            "print(\"all done\")",
            "check(\"few checkpoints\", int(do(\"monitor checkpoints\").split()[0]) <= 3, True)\nprint(\"all done\")",
        );
        // More than any machine has.
        let short = [("CREWIND_SPARE_MEMORY".to_owned(), "1000T".to_owned())];
        no_difference(&r.gdb_where(&[], &script, &short));
    }
}

// A thousand moments in both, each visited four times: by stepping on, back, on again, and by going there.

#[test]
fn debug_random_moments_are_the_same_at_each_visit() {
    random_moments("debug_random_serial", SERIAL, 50, 10);
}

#[test]
fn debug_random_moments_of_parallel_threads_are_the_same_at_each_visit() {
    random_moments("debug_random_parallel", PARALLEL, 50, 10);
}

/// As those before, for as long as it takes: `cargo nextest run --run-ignored only`.
#[test]
#[ignore = "takes minutes"]
fn debug_a_thousand_random_moments_are_the_same_at_each_visit() {
    random_moments("debug_thousand_serial", SERIAL, 100, 10);
    random_moments("debug_thousand_parallel", PARALLEL, 100, 10);
}

#[test]
fn debug_a_thread_that_ends_under_a_step() {
    let program = program("hunt.cc", "-O0");
    for (name, how) in [("serial", SERIAL), ("parallel", PARALLEL)] {
        let name = format!("debug_thread_end_{name}");
        let Some(r) = Recording::new(&name, how, &[&program.display().to_string()]) else {
            return;
        };
        let output = r.gdb(&python(
            r#"
do("catch syscall exit")
do("continue")
do("delete")
ends = position().split(":")[0]
do("info threads")
# How many have been made by now, the recording decides.
before = len(gdb.selected_inferior().threads())
text = do("stepi")
after = position()
check("another thread", after.split(":")[0] != ends, True)
check("not at the end", "here" in when(), False)
do("info threads")
check("number of threads", len(gdb.selected_inferior().threads()), before - 1)
check("gdb is in that thread", str(gdb.selected_thread().ptid[2] or gdb.selected_thread().ptid[1]), after.split(":")[0])
# The thread that goes on may stand in front of its first instruction: there is nothing before it.
new = "clone" in str(gdb.selected_frame().name())
do("reverse-stepi")
if not new or position() != after:
    check("stepped back", position() != after, True)
    do("stepi")
check("still there", position(), after)
print("all done")
"#,
        ));
        no_difference(&output);
        assert!(output.contains("the thread has ended"), "{output}");
    }
}

/// The lines of `crewind info` about a crash.
fn crash_in_info(r: &Recording) -> String {
    let output = crewind(&r.place, &["info", &r.trace, "--backtrace", "always"]);
    let all = text(&output.stdout);
    let from = all.find("\ncrash ");
    from.and_then(|at| all.get(at..))
        .map_or_else(|| panic!("{}", show(&output)), str::to_owned)
}

#[test]
fn debug_info_says_where_it_crashed() {
    let hunt = program("hunt.cc", "-O0");
    for (name, how) in [("serial", SERIAL), ("parallel", PARALLEL)] {
        let name = format!("debug_info_{name}");
        let Some(r) = Recording::new(&name, how, &[&hunt.display().to_string()]) else {
            return;
        };
        let crash = crash_in_info(&r);
        for part in ["SIGABRT", "thread t1", "abort", "main at ", "hunt.cc:32"] {
            assert!(crash.contains(part), "no {part} in {crash}");
        }
        let json = crewind(&r.place, &["info", "--json", &r.trace]);
        let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
        let frames = value.pointer("/crash/backtrace/frames");
        let names = frames.map(ToString::to_string).unwrap_or_default();
        assert!(names.contains("\"main\""), "{names}");
        let never = crewind(&r.place, &["info", "--backtrace", "never", &r.trace]);
        assert!(
            text(&never.stdout).contains("not asked for"),
            "{}",
            show(&never)
        );
    }
}

#[test]
fn debug_info_of_programs_without_symbols() {
    // In a library's call-back, and through a pointer to nothing.
    let source = program_text(
        "crashes.c",
        "#include <stdlib.h>\nstatic int *volatile p;\n__attribute__((noinline)) static int deep(int n) { return n ? deep(n - 1) + 1 : *p; }\nstatic int compare(const void *a, const void *b) { return deep(3) + (a > b); }\nint main(int argc, char **argv) {\n    int v[2] = { 2, 1 };\n    void (*volatile f)(void) = (void (*)(void))0x1234;\n    if (argc > 1) f();\n    qsort(v, 2, sizeof *v, compare);\n    return argv[0][0];\n}\n",
    );
    // `-O1` keeps the recursion.
    for (kind, flags) in [
        ("stripped", &["-O1", "-s"][..]),
        ("static", &["-O1", "-s", "-static"]),
        ("pointers", &["-O1", "-s", "-fno-omit-frame-pointer"]),
    ] {
        let flags: Vec<String> = flags.iter().map(|f| (*f).to_owned()).collect();
        let built = build(&source, &flags, kind);
        let copy = built.with_file_name(format!("crashes-{kind}"));
        std::fs::copy(&built, &copy).expect("it was built");
        let name = copy.file_name().expect("it has one").to_string_lossy();
        let path = copy.display().to_string();
        let record = |name: &str, command: &[&str]| Recording::new(name, SERIAL, command);
        let (Some(sort), Some(call)) = (
            record(&format!("debug_info_{kind}"), &[&path]),
            record(&format!("debug_info_call_{kind}"), &[&path, "x"]),
        ) else {
            return;
        };
        // The trace has all that is needed.
        std::fs::remove_file(&copy).expect("it is there");
        let crash = crash_in_info(&sort);
        assert!(crash.contains("SIGSEGV in process"), "{crash}");
        assert!(crash.contains("at address 0x0"), "{crash}");
        // Four times `deep`, `compare`, `main`, and what starts a program.
        let frames = crash.matches(&format!("({name}+0x")).count();
        assert!(frames >= 6, "{frames} frames in {crash}");
        let crash = crash_in_info(&call);
        assert!(crash.contains("at address 0x1234"), "{crash}");
        assert!(crash.contains("?? (in no file)"), "{crash}");
        assert!(crash.contains(&format!("({name}+0x")), "{crash}");
    }
}

#[test]
fn debug_last_write_from_the_shell() {
    let hunt = program("hunt.cc", "-O0");
    for (name, how) in [("serial", SERIAL), ("parallel", PARALLEL)] {
        let name = format!("debug_last_write_{name}");
        let Some(r) = Recording::new(&name, how, &[&hunt.display().to_string()]) else {
            return;
        };
        let output = r.gdb("continue\nup 4\nprintf \"at %p\\n\", &nodes[0]->sum\n");
        let at = lines(&output, "at ")
            .first()
            .map(|l| l.trim_start_matches("at "));
        let at = at.unwrap_or_else(|| panic!("{output}"));
        let range = format!("{at}:8");
        let output = crewind(&r.place, &["last-write", &r.trace, &range]);
        let found = text(&output.stdout);
        for part in [
            "before  34 12 00 00",
            "behind  66 66 00 00",
            "corrupt(long*) at ",
            "hunt.cc:17",
            "body(int) at ",
        ] {
            assert!(found.contains(part), "no {part} in {}", show(&output));
        }
        let position = found
            .lines()
            .next()
            .and_then(|l| l.split("position ").nth(1))
            .unwrap_or_else(|| panic!("{found}"));
        // The one before that is who made the object.
        let output = crewind(
            &r.place,
            &["last-write", &r.trace, &range, "--at", position],
        );
        let found = text(&output.stdout);
        assert!(found.contains("behind  34 12 00 00"), "{}", show(&output));
        assert!(
            found.contains("#0") && found.contains("main at "),
            "{found}"
        );
        let nobody = crewind(&r.place, &["last-write", &r.trace, "0x10"]);
        assert_eq!(nobody.status.code(), Some(1), "{}", show(&nobody));
        for bad in [
            &["0x"][..],
            &["0x10", "--at", "99999999"],
            &["0x10", "--process", "nobody"],
        ] {
            let words = [&["last-write", &r.trace], bad].concat();
            let output = crewind(&r.place, &words);
            assert_eq!(output.status.code(), Some(120), "{}", show(&output));
            assert!(!output.stderr.is_empty(), "{}", show(&output));
        }
    }
}

#[test]
fn debug_hunt_for_who_wrote_it() {
    let program = program("hunt.cc", "-O0");
    for (name, how) in [("serial", SERIAL), ("parallel", PARALLEL)] {
        let name = format!("debug_hunt_{name}");
        let Some(r) = Recording::new(&name, how, &[&program.display().to_string()]) else {
            return;
        };
        // The crash, the value that is wrong, who wrote it, who wrote it before.
        let output = r.gdb(
            "continue\nlast-write &nodes[0] 8\nwatch -l nodes[0]->sum\nreverse-continue\nbt 2\nwhen\nreverse-continue\nbt 1\ncontinue\nwhen\n",
        );
        assert!(output.contains("SIGABRT"), "{output}");
        assert!(output.contains("in corrupt"), "{output}");
        assert!(output.contains("Old value = 26214"), "{output}");
        let places = lines(&output, "event ");
        assert_eq!(places.len(), 2, "{output}");
        let thread = |line: &str| line.split("thread ").nth(1).map(|t| t.chars().next());
        // The culprit is the third of the four threads, the one before is who made the object.
        assert_eq!(thread(places[0]), Some(Some('4')), "{output}");
        assert_eq!(thread(places[1]), Some(Some('1')), "{output}");
        assert!(output.contains("last written by event"), "{output}");
        assert!(
            output.matches("hit Hardware watchpoint").count() >= 3,
            "{output}"
        );
    }
}

#[test]
fn debug_watchpoints_see_what_system_calls_write() {
    let source = program_text(
        "reads.c",
        "#include <unistd.h>\n#include <stdio.h>\nstatic char a[64], b[64];\nint main(void) {\n    int p[2];\n    if (pipe(p)) return 1;\n    if (write(p[1], \"0123456789\", 10) != 10) return 2;\n    if (read(p[0], a, 4) != 4) return 3;\n    if (read(p[0], b, 4) != 4) return 4;\n    return a[0] == b[0];\n}\n",
    );
    let program = build(&source, &["-O0", "-g"].map(str::to_owned), "debug");
    let Some(r) = Recording::new(
        "debug_watch_calls",
        SERIAL,
        &[&program.display().to_string()],
    ) else {
        return;
    };
    let output = r.gdb(
        "break main\ncontinue\nwatch b[0]\nrwatch a[0]\ncontinue\np b[0]\ncontinue\np $pc\nreverse-continue\nreverse-continue\np b[0]\np a[0]\n",
    );
    assert!(output.contains("New value = 52 '4'"), "{output}");
    assert!(output.contains("Hardware read watchpoint"), "{output}");
    assert!(output.contains("Old value = 52 '4'"), "{output}");
    // Before the call, what was read before is there.
    let values = lines(&output, "$");
    assert!(values[2].ends_with("0 '\\000'"), "{output}");
    assert!(values[3].ends_with("48 '0'"), "{output}");
}

pub(crate) fn program_text(name: &str, text: &str) -> PathBuf {
    let directory = crate::harness::scratch().join("debug-sources");
    std::fs::create_dir_all(&directory).expect("scratch is writable");
    let path = directory.join(name);
    std::fs::write(&path, text).expect("scratch is writable");
    path
}

#[test]
fn debug_processes_are_chosen() {
    let Some(r) = Recording::new(
        "debug_processes",
        SERIAL,
        &["bash", "-c", "true | head -c 0; ls /proc/self/exe; :"],
    ) else {
        return;
    };
    let output = r.gdb_with(
        &["--process", "ls"],
        "set breakpoint pending on\nbreak write\ncontinue\nwhen\nbt 1\ndelete\ncontinue\n",
    );
    assert!(output.contains("write ("), "{output}");
    assert!(output.contains("exited here with status 0"), "{output}");
    let output = r.gdb_with(
        &["--process", "bash"],
        "catch signal SIGCHLD\ncontinue\nwhen\n",
    );
    assert!(output.contains("SIGCHLD"), "{output}");
    let bad = crewind(&r.place, &["debug", &r.trace, "--process", "nobody"]);
    assert_eq!(bad.status.code(), Some(120), "{}", show(&bad));
    assert!(text(&bad.stderr).contains("there are:"), "{}", show(&bad));
}

#[test]
fn debug_mistakes_leave_it_sane() {
    let program = program("steps.c", "-O0");
    let Some(r) = Recording::new("debug_mistakes", SERIAL, &[&program.display().to_string()])
    else {
        return;
    };
    let output = r.gdb(&python(
        r#"
def refused(command):
    try:
        do(command)
    except gdb.error:
        return
    print("DIFFERENT", command, "was not refused")
do("handle SIGUSR1 nostop")
do("break work")
do("continue")
before = state()
refused("x/4x 0")
refused("set variable *(int *)16 = 5")
refused("thread 77")
print(do("goto nonsense"))
do("goto 1:99999999:0x10")
do("goto 0x")
print(do("monitor nonsense"))
do("break *0x10")
check("state", state(), before)
do("delete")
do("goto 99999999")
print(when())
do("goto start")
print(when())
print("all done")
"#,
    ));
    no_difference(&output);
    assert!(output.contains("there is no memory at 0x10"), "{output}");
    assert!(output.contains("is no moment"), "{output}");
    assert!(output.contains("never is at clock"), "{output}");
    assert!(output.contains("exited here"), "{output}");
    assert!(output.contains("event 0, thread 1"), "{output}");
}

#[test]
fn debug_server_serves_one_after_the_other() {
    let program = program("steps.c", "-O0");
    let name = "debug_server";
    let Some(r) = Recording::new(name, SERIAL, &[&program.display().to_string()]) else {
        return;
    };
    let socket = r.place.work.join("socket").display().to_string();
    let mut server = r
        .place
        .command(
            &[CREWIND, "debug", &r.trace, "--server", &socket],
            &r.place.work,
            &[],
        )
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("crewind starts");
    let stderr = server.stderr.take().expect("piped");
    let mut messages = BufReader::new(stderr).lines();
    let first = messages.next().and_then(Result::ok).unwrap_or_default();
    assert!(first.contains("waiting for a debugger"), "{first}");
    let target = format!("target remote {socket}");
    let file = format!("file {}", program.display());
    let gdb = |commands: &[&str]| {
        let mut words = vec!["gdb", "-nx", "-q", "-batch", "-ex", &file, "-ex", &target];
        for c in commands {
            words.extend_from_slice(&["-ex", c]);
        }
        let output = run(r.place.command(&words, &r.place.work, &[]), b"", LIMIT)
            .unwrap_or_else(|e| panic!("{e}"));
        text(&output.stdout) + &text(&output.stderr)
    };
    let one = gdb(&["break work", "continue", "monitor when", "detach"]);
    let two = gdb(&["monitor when", "disconnect"]);
    let three = gdb(&["monitor when", "reverse-continue", "kill"]);
    let at = |text: &str| {
        lines(text, "event ")
            .first()
            .map(|l| (*l).to_owned())
            .unwrap_or_default()
    };
    assert!(at(&one).contains("thread 1"), "{one}");
    assert_eq!(at(&one), at(&two), "{one}\n{two}");
    assert_eq!(at(&one), at(&three), "{one}\n{three}");
    let status = server.wait().expect("it ends");
    assert!(status.success(), "{status}");
}

#[test]
fn debug_traces_that_were_cut() {
    let source = program_text(
        "killed.c",
        "#include <signal.h>\n#include <stdio.h>\n#include <unistd.h>\nint main(void) {\n    for (int i = 0; i < 100; i++) getppid();\n    kill(getppid(), SIGKILL);\n    kill(getpid(), SIGKILL);\n    pause();\n}\n",
    );
    let program = build(&source, &["-O0", "-g"].map(str::to_owned), "debug");
    let Some(r) = Recording::new("debug_cut", SERIAL, &[&program.display().to_string()]) else {
        return;
    };
    let output = r.gdb(
        "break getppid\ncontinue\ndelete\ncontinue\nwhen\nbreak getppid\nreverse-continue\nwhen\n",
    );
    assert!(
        output.contains("No more reverse-execution history"),
        "{output}"
    );
    let places = lines(&output, "event ");
    assert!(places.len() == 2 && places[0] != places[1], "{output}");
}

#[test]
fn debug_stripped_programs() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/debug/hunt.cc");
    let flags = ["-O1", "-s", "-pthread"].map(str::to_owned);
    let program = build(&source, &flags, "stripped");
    for (name, how) in [("serial", SERIAL), ("parallel", PARALLEL)] {
        let name = format!("debug_stripped_{name}");
        let Some(r) = Recording::new(&name, how, &[&program.display().to_string()]) else {
            return;
        };
        let output = r.gdb(&python(
            r#"
do("goto end")
check("stack", "abort" in do("bt"), True)
# The library still has names.
do("break sched_yield")
do("reverse-continue")
do("delete")
check("breakpoint", gdb.selected_frame().name().endswith("sched_yield"), True)
here = position()
for i in range(20):
    do("reverse-stepi")
for i in range(20):
    do("stepi")
check("there and back", position(), here)
pc = int(gdb.parse_and_eval("$pc"))
do("finish")
check("caller", "=>" in do("x/i $pc"), True)
do("break *%d" % pc)
do("reverse-continue")
check("backwards", int(gdb.parse_and_eval("$pc")), pc)
print("all done")
"#,
        ));
        no_difference(&output);
    }
}

#[test]
fn debug_replaced_programs() {
    let source = program("steps.c", "-O0");
    let copy = crate::harness::scratch()
        .join("debug-sources")
        .join("replaced");
    std::fs::create_dir_all(copy.parent().expect("it has one")).expect("scratch is writable");
    let _ = std::fs::remove_file(&copy);
    std::fs::copy(&source, &copy).expect("it was built");
    let Some(r) = Recording::new("debug_replaced", SERIAL, &[&copy.display().to_string()]) else {
        return;
    };
    std::fs::remove_file(&copy).expect("it is there");
    std::fs::write(&copy, "something else").expect("scratch is writable");
    let output = r.gdb("handle SIGUSR1 nostop\nbreak store\ncontinue\nbt 2\n");
    assert!(
        output.contains("has changed since the recording"),
        "{output}"
    );
    assert!(output.contains("store (i=0"), "{output}");
}

#[test]
fn debug_one_host_thread_replays_the_same() {
    for name in [
        "par_counter",
        "par_condvar",
        "par_signals",
        "par_fork",
        "par_spawn",
    ] {
        let source = guest_sources().join(format!("{name}.c"));
        let flags = ["-O1", "-pthread"].map(str::to_owned);
        let program = build(&source, &flags, "one-thread").display().to_string();
        for (mode, how) in [("serial", SERIAL), ("parallel", PARALLEL)] {
            let place = Place::new(&format!("debug_one_host_{name}_{mode}"));
            let trace = place.work.join("trace").display().to_string();
            let mut words = vec!["record", "--checksum", "-o", &trace];
            words.extend_from_slice(how);
            words.extend_from_slice(&["--", &program]);
            let recorded = crewind(&place, &words);
            let replayed = crewind(&place, &["replay", "--one-thread", &trace]);
            assert_eq!(recorded.status, replayed.status, "{}", show(&replayed));
            assert_eq!(recorded.stdout, replayed.stdout, "{}", show(&replayed));
            place.clear();
        }
    }
}

#[test]
fn debug_session_of_the_documentation() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/debugging.md");
    let docs = std::fs::read_to_string(docs).expect("the documentation is there");
    let session = docs
        .split("```gdb\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("it has a session");
    let program = program("hunt.cc", "-O0");
    let Some(r) = Recording::new("debug_docs", PARALLEL, &[&program.display().to_string()]) else {
        return;
    };
    let output = r.gdb(session);
    for shown in [
        "SIGABRT",
        "sum = 26214",
        "in corrupt (p=",
        "in body (me=2)",
        "event ",
    ] {
        assert!(output.contains(shown), "no {shown} in {output}");
    }
}

#[test]
fn debug_shared_memory_goes_back_too() {
    let source = program_text(
        "shared.c",
        "#include <sys/mman.h>\n#include <stdio.h>\n#include <fcntl.h>\n#include <unistd.h>\nstatic int *p, *q, *r;\n__attribute__((noinline)) void bump(void) { ++*p; *q += 2; *(volatile int *)r; }\nint main(void) {\n    p = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);\n    int fd = open(\"file\", O_RDWR | O_CREAT, 0600);\n    if (ftruncate(fd, 8192)) return 1;\n    q = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);\n    r = mmap(0, 8192, PROT_READ, MAP_SHARED, fd, 0);\n    for (int i = 0; i < 9; i++) bump();\n    return *p + *r == 27 ? 0 : 2;\n}\n",
    );
    let program = build(&source, &["-O0", "-g"].map(str::to_owned), "debug");
    let Some(r) = Recording::new("debug_shared", SERIAL, &[&program.display().to_string()]) else {
        return;
    };
    let output = r.gdb(
        "break bump\ncontinue\ncontinue 5\np {*p, *q, *r}\nreverse-continue\nreverse-continue\np {*p, *q, *r}\ncontinue 4\np {*p, *q, *r}\ndelete\ncontinue\nwhen\n",
    );
    assert_eq!(
        lines(&output, "$"),
        ["$1 = {5, 10, 10}", "$2 = {3, 6, 6}", "$3 = {7, 14, 14}"],
        "{output}"
    );
    assert!(output.contains("exited here with status 0"), "{output}");
}

#[test]
fn debug_catches_system_calls() {
    let program = program("hunt.cc", "-O0");
    for (name, how) in [("serial", SERIAL), ("parallel", PARALLEL)] {
        let name = format!("debug_calls_{name}");
        let Some(r) = Recording::new(&name, how, &[&program.display().to_string()]) else {
            return;
        };
        let output = r.gdb(&python(
            r#"
do("handle SIGABRT nostop")
do("catch syscall sched_yield")
do("catch syscall write")
def run(command, end):
    seen = []
    while True:
        before = position()
        text = do(command)
        if end in when():
            return seen
        seen.append((position(), do("p $rax")[-9:] if "-2" in text else ""))
forwards = run("continue", "ended here")
check("stops", len(forwards) % 2, 0)
check("many stops", len(forwards) > 30, True)
do("goto end")
backwards = run("reverse-continue", "event 0,")
check("backwards", [p for p, _ in backwards[::-1]], [p for p, _ in forwards])
print("all done")
"#,
        ));
        no_difference(&output);
        assert!(output.contains("call to syscall"), "{output}");
        assert!(output.contains("returned from syscall"), "{output}");
    }
}

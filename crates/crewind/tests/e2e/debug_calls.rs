//! Functions of the program that gdb calls, and what it changes: in a copy of the process, next to the recording.

use crate::debug::{PARALLEL, Recording, SERIAL, no_difference, program, python};

/// What scripts here begin with: values, and errors as text.
const ASKING: &str = r#"
def ask(expression):
    try:
        return str(gdb.parse_and_eval(expression))
    except gdb.error as e:
        return "error: " + str(e)
def asks(*pairs):
    for expression, wanted in pairs:
        check(expression, ask(expression), wanted)
def fails(expression, why):
    found = ask(expression)
    check(expression, "error" in found and why in found, True)
    check("state behind " + expression, state(), before)
"#;

fn script(text: &str) -> String {
    python(&format!("{ASKING}{text}"))
}

/// In the ways a program is recorded.
fn in_both(name: &str, text: &str, look: impl Fn(&str)) {
    let program = program("calls.cc", "-O0");
    for (mode, how) in [("serial", SERIAL), ("parallel", PARALLEL)] {
        let name = format!("{name}_{mode}");
        let Some(r) = Recording::new(&name, how, &[&program.display().to_string()]) else {
            return;
        };
        let output = r.gdb(&script(text));
        no_difference(&output);
        look(&output);
    }
}

#[test]
fn debug_calls_give_what_the_program_would() {
    in_both(
        "debug_calls",
        r#"
do("break stop_here if i == 77")
do("continue")
do("up")
before = state()
asks(
    ("counter", "5"), ("bump(3)", "8"), ("counter", "8"), ("bump(1)", "9"),
    ('sum("hello")', "532"), ("half(3.0)", "1.5"),
    # More of them than there are x87 registers.
    *[("third(9.0L)", "3")] * 10,
    ("numbers.size()", "3"), ("numbers[1]", "2"), ("p->area()", "12"),
    ("thrower()", "42"), ("outer(3)", "8"), ("big()", "30000"),
    ("(long)malloc(10) != 0", "true"), ("(int)getpid() == $_gthread * 0 + (int)getpid()", "true"),
    ("(long)time(0) > 1000000", "true"),
)
check("name", '"shape"' in ask("p->name()"), True)
check("names", do("print names").split("=", 1)[1].strip(), 'std::map with 2 elements = {["one"] = 1, ["two"] = 2}')
check("puts", ask('(int)puts("written in the copy")').startswith("error"), False)
ask("(int)fflush(0)")
check("opens", ask("opens()"), "0")
check("state", state(), before)
do("next")
asks(("counter", "5"))
do("next")
asks(("counter", "6"), ("bump(1)", "7"))
do("reverse-next")
asks(("counter", "5"))
do("goto end")
asks(("counter", "6"), ("bump(1)", "7"), ("outer(3)", "8"))
do("goto start")
asks(("outer(3)", "8"))
do("continue")
do("up")
check("place", gdb.selected_frame().name(), "main")
check("state again", state(), before)
print("all done")
"#,
        |output| {
            assert!(output.contains("written in the copy"), "{output}");
            assert!(output.contains("the function called openat"), "{output}");
            assert!(
                !output.contains("a recording cannot be changed"),
                "{output}"
            );
        },
    );
}

#[test]
fn debug_calls_that_go_wrong_leave_the_recording_alone() {
    in_both(
        "debug_bad_calls",
        r#"
do("break stop_here if i == 77")
do("continue")
before = state()
fails("crash()", "signaled")
fails("wait_for_lock()", "signaled")
fails("leave()", "signaled")
fails("(int)abort()", "signaled")
fails("((int (*)(void))0x10)()", "signaled")
asks(("outer(3)", "8"))
# Stopped in a function that was called, walking around there.
do("break inner")
check("breakpoint", "stopped" in ask("outer(5)"), True)
check("in it", gdb.selected_frame().name(), "inner")
check("called", "function called from gdb" in do("bt"), True)
do("stepi")
asks(("n", "5"), ("half(1.0)", "0.5"))
do("finish")
asks(("$", "6"))
check("caller", gdb.selected_frame().name(), "outer")
# Back in the recording.
do("reverse-stepi")
check("in the recording", gdb.selected_frame().name(), "stop_here")
do("delete")
do("stepi")
check("state", state(), before)
# Left in the middle.
do("set unwindonsignal off")
ask("crash()")
check("crashed", gdb.selected_frame().name(), "crash")
do("goto end")
check("state moved", state() != before, True)
do("break stop_here if i == 77")
do("reverse-continue")
check("state at last", state()[0].split("position")[1], before[0].split("position")[1])
check("sum at last", state()[1], before[1])
print("all done")
"#,
        |output| {
            assert!(output.contains("it waits for another thread"), "{output}");
            assert!(output.contains("would end the process"), "{output}");
            assert!(output.contains("SIGABRT"), "{output}");
        },
    );
}

#[test]
fn debug_calls_run_in_the_selected_thread() {
    in_both(
        "debug_calls_threads",
        r#"
do("break stop_here if i == 20")
do("continue")
sums = []
ran = gdb.selected_thread()
ran_in = ran.ptid
for t in gdb.selected_inferior().threads():
    t.switch()
    frame = gdb.newest_frame().pc()
    sums.append((t.ptid, do("info registers"), do("info float")))
    mine = int(ask("own_thread(0)"))
    check("its own counter", mine, int(ask("own_thread(0)")) - 1)
    check("frame", gdb.newest_frame().pc(), frame)
check("threads", len(sums) > 1, True)
for t in gdb.selected_inferior().threads():
    t.switch()
    check("registers", (t.ptid, do("info registers"), do("info float")) in sums, True)
ran.switch()
moment = position()
# From a breakpoint in this thread, and in a function called here, to where there is another thread or this one is gone.
do("goto end")
do("goto " + moment)
check("thread again", gdb.selected_thread().ptid, ran_in)
do("break inner")
ask("outer(1)")
check("in it", gdb.selected_frame().name(), "inner")
do("goto end")
check("at the end", "here" in when(), True)
do("goto start")
do("goto " + moment)
check("thread at last", gdb.selected_thread().ptid, ran_in)
check("frame at last", gdb.selected_frame().name(), "stop_here")
do("delete")
do("stepi")
check("moved", position() != moment, True)
do("reverse-stepi")
check("moment", position(), moment)
print("all done")
"#,
        |_| (),
    );
}

#[test]
fn debug_changes_are_made_in_a_copy() {
    in_both(
        "debug_changes",
        r#"
do("break stop_here if i == 77")
do("continue")
do("delete")
before = state()
do("set variable counter = 70")
do("set variable $rbx = 12345")
do("set variable $xmm3.v2_int64[1] = 678")
do("set variable $st0 = 1.5")
asks(("counter", "70"), ("$rbx", "12345"), ("$xmm3.v2_int64[1]", "678"), ("$st0", "1.5"), ("bump(1)", "71"))
do("stepi")
asks(("counter", "5"))
check("another value", ask("$rbx") != "12345", True)
do("reverse-stepi")
check("state", state(), before)
# Code too, whatever it may be written to.
code = ask("*(unsigned *)$pc")
do("set variable *(unsigned *)$pc = 0x90909090")
asks(("*(unsigned *)$pc", str(0x90909090)))
do("stepi")
do("reverse-stepi")
asks(("*(unsigned *)$pc", code))
check("state again", state(), before)
# What would be if it went on from elsewhere.
do("set variable $pc = outer")
do("stepi")
check("elsewhere", gdb.selected_frame().name(), "outer")
do("reverse-stepi")
do("stepi")
check("state at last", state(), before)
print("all done")
"#,
        |output| {
            assert!(output.contains("a recording cannot be changed"), "{output}");
        },
    );
}

#[test]
fn debug_calls_that_loop_are_interrupted() {
    in_both(
        "debug_calls_loop",
        r#"
import os, signal, threading, time
def interrupt():
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)
do("break stop_here if i == 77")
do("continue")
before = state()
t = threading.Thread(target=interrupt)
t.start()
found = ask("forever()")
t.join()
check("interrupted", "error" in found, True)
asks(("outer(3)", "8"))
check("state", state(), before)
print("all done")
"#,
        |output| assert!(output.contains("SIGINT"), "{output}"),
    );
}

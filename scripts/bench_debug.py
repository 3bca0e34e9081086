"""What the debugger costs: part of `bench`."""

import os
import shutil
import statistics
import subprocess
import time

# Seconds of the recording, and what must hold: (name, unit, must, aim).
LENGTH = 10
MUSTS = {
    "first prompt": ("s", 0.5 + LENGTH / 30, None),
    "reverse-stepi, median": ("ms", 150, 30),
    "reverse-continue over 5 s": ("s", 15, 5),
    "watchpoint / plain replay": ("", 3, None),
}

SCRIPT = """
import random, time
random.seed(1)
def do(command):
    return gdb.execute(command, to_string=True)
def timed(command):
    begin = time.time()
    do(command)
    return time.time() - begin
def position():
    return do("monitor when").split("position ")[1].split()[0].split(":")
do("break work")
do("continue")
do("delete")
do("watch never")
print("RESULT watched", timed("continue"))
do("delete")
do("goto end")
do("goto start")
print("RESULT forwards", timed("continue"))
do("watch mark")
print("RESULT back", timed("reverse-continue"))
if "hit Hardware watchpoint" not in do("info breakpoints") and int(gdb.parse_and_eval("mark")) != 0:
    print("RESULT wrong 1")
do("delete")
do("goto end")
clock = int(position()[1])
for i in range(PLACES):
    do("goto 1:%d" % random.randrange(clock // 100, clock))
    print("RESULT step", timed("reverse-stepi"))
"""


def print_debug(bench):
    """Prints the table; misses of what must hold are failures."""
    if not shutil.which("gdb"):
        bench.failed.append("debug: gdb is not installed")
        return
    length = 3 if bench.options.quick else LENGTH
    program = bench.compile("debugged", "-g", "-pthread")
    script = os.path.join(bench.work, "debug.py")
    with open(script, "w") as f:
        f.write(SCRIPT.replace("PLACES", "10" if bench.options.quick else "40"))
    print(f"\n{length} s of computing in two threads, recorded with `--sharing software`\n")
    print("| debugger | measured | must | aim |")
    print("|---|---|---|---|", flush=True)
    shutil.rmtree(bench.trace, ignore_errors=True)
    record = [bench.crewind, "record", "-o", bench.trace, "--sharing", "software", "--", program, str(length)]
    if bench.run("debug", "record", record) is None:
        return
    replay = bench.run("debug", "replay", [bench.crewind, "replay", bench.trace])
    if replay is None:
        return

    def gdb(*arguments):
        words = [bench.crewind, "debug", bench.trace, "--", "-nx", "-batch", *arguments]
        begin = time.time()
        done = subprocess.run(words, cwd=bench.work, env=bench.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return time.time() - begin, done.stdout + done.stderr

    prompts = [gdb("-ex", "info registers rip")[0] for _ in range(bench.options.rounds)]
    _, output = gdb("-x", script)
    found = {}
    for line in output.splitlines():
        if line.startswith("RESULT "):
            _, name, value = line.split()
            found.setdefault(name, []).append(float(value))
    if "step" not in found or "wrong" in found:
        bench.failed.append("debug: the session failed: " + " ".join(output.strip().splitlines()[-3:]))
        return
    measured = {
        "first prompt": statistics.median(prompts),
        "reverse-stepi, median": statistics.median(found["step"]) * 1000,
        "reverse-continue over 5 s": found["back"][0] * LENGTH / length,
        "watchpoint / plain replay": found["watched"][0] / replay.wall,
    }
    for name, value in measured.items():
        unit, must, aim = MUSTS[name]
        unit = " " + unit if unit else ""
        shown_aim = "" if aim is None else f"{aim}{unit}"
        print(f"| {name} | {value:.2f}{unit} | {must:.2f}{unit} | {shown_aim} |")
        if value > must:
            bench.failed.append(f"debug: {name} is {value:.2f}{unit}, must be {must:.2f}{unit}")
    steps = sorted(found["step"])
    print(f"| reverse-stepi, worst | {steps[-1] * 1000:.2f} ms | | |")
    print(f"| plain replay, threads in parallel | {replay.wall:.2f} s | | |")
    print(f"| run under gdb, threads in turns | {found['forwards'][0]:.2f} s | | |", flush=True)

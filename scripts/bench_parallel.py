"""The part of scripts/bench about programs with threads: kernels that share little, compressors, contended data."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys

import modes

KERNELS = ("fft", "lu", "radix", "ocean", "barnes", "matmul", "mandelbrot", "mergesort")
# What scripts/bench-programs/par_contend.c is asked to do: name, way, rounds.
CONTENTION = (
    ("mutex around a counter", "mutex", 3_000_000),
    ("lock xadd on a counter", "xadd", 10_000_000),
    ("x++ of two threads on one word", "plain", 20_000_000),
    ("two words of one line", "line", 100_000_000),
    ("two lines of one page", "page", 1_000_000_000),
    ("bounded queue", "queue", 500_000),
    ("hash table, 1% writes", "hash", 8_000_000),
    ("malloc and free across threads", "malloc", 2_000_000),
)
PYTHON_BUSY = (
    "import threading\n"
    "def busy():\n s = 0\n for i in range({}): s += i * i % 7\n"
    "ts = [threading.Thread(target=busy) for _ in range({})]\n[t.start() for t in ts]; [t.join() for t in ts]"
)


class Case:
    """A program; `bytes_in` is what it reads from its input."""

    def __init__(self, name, command, bytes_in=0):
        self.name, self.command, self.bytes_in = name, command, bytes_in


def compile_all(bench):
    paths = {}
    for name in [f"par_{k}" for k in KERNELS] + ["par_contend"]:
        paths[name] = bench.compile(name, "-lpthread")
    if shutil.which("go"):
        paths["pingpong"] = bench.compile_go("pingpong")
    return paths


def cases(bench, paths, text):
    """Groups of cases by heading."""
    threads, quick = str(bench.options.threads), bench.options.quick
    kernels = [Case(k, [paths[f"par_{k}"], threads]) for k in KERNELS]
    if not quick:
        # So long that starting up does not count.
        longer = os.path.join(bench.work, "longer")
        with open(text, "rb") as short, open(longer, "wb") as f:
            f.write(short.read() * 5)
        text = longer
    bytes_in = os.path.getsize(text)
    compressors = [
        Case("pigz", ["pigz", "-p", threads, "-n", "-c", text], bytes_in),
        Case("pbzip2", ["pbzip2", f"-p{threads}", "-k", "-c", text], bytes_in),
        Case("zstd", ["zstd", "-q", "-9", f"-T{threads}", "-B1M", "-c", text], bytes_in),
    ]
    scale = 5 if quick else 1
    contention = [Case(name, [paths["par_contend"], threads, str(n // scale), way]) for name, way, n in CONTENTION]
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    contention.append(Case("python3, busy threads", [python, "-c", PYTHON_BUSY.format(2_000_000 // scale, threads)]))
    if "pingpong" in paths:
        contention.append(Case("Go, channel ping-pong", [paths["pingpong"], str(1_000_000 // scale)]))
    return [("little sharing", kernels), ("compressors", compressors), ("contention", contention)]


def chosen_modes(options):
    """(heading, options for `crewind record`) of each mode and number of vcpus to measure."""
    known = modes.read()
    chosen = []
    words = options.modes or [f"{m.name}:{m.cpus[0]}" for m in known.values() if m.cpus]
    for word in dict.fromkeys(words):
        name, _, cpus = word.partition(":")
        if name not in known:
            sys.exit(f"there is no mode {name}; tests/modes.txt has {', '.join(known)}")
        mode = known[name]
        if mode.missing():
            print(f"mode {name} is left out: it needs {mode.missing()}")
            continue
        cpus = int(cpus or mode.cpus[0])
        entry = (f"{name} {cpus}", mode.arguments(cpus))
        if entry not in chosen:
            chosen.append(entry)
    return chosen


def stream_bytes(bench, case):
    """Size of the last trace without the copies of files, which traces share, and without the input. The beginning of that is
    in the trace as well, and how well it was compressed nobody knows afterwards; so of a program with input it is all else before
    compression: more than is stored."""
    if case.bytes_in:
        say = lambda *words: subprocess.run([bench.crewind, *words, bench.trace], check=True, stdout=subprocess.PIPE, env=bench.environment).stdout
        referred = sum(int(n, 16) for n in re.findall(rb" file-data 0x[0-9a-f]+\+0x([0-9a-f]+) of ", say("dump")))
        return max(0, json.loads(say("info", "--json"))["end"]["raw_bytes"] - max(0, case.bytes_in - referred))
    streams = os.path.join(bench.trace, "streams")
    return sum(os.path.getsize(os.path.join(streams, name)) for name in os.listdir(streams))


def measure(bench, case, chosen):
    """Interleaved rounds; medians as {"native": Result, heading: (record Result, replay Result, trace bytes a second)}."""
    runs = {"native": []}
    for _ in range(bench.options.rounds):
        native = bench.run(case.name, "native", case.command)
        if native is None:
            return None
        runs["native"].append(native)
        for heading, arguments in chosen:
            shutil.rmtree(bench.trace, ignore_errors=True)
            record = [bench.crewind, "record", "-o", bench.trace, *arguments, "--", *case.command]
            recorded = bench.run(case.name, f"record ({heading})", record)
            # A mode that fails is a dash in the table, and the others go on.
            if recorded is None:
                continue
            trace_bytes = stream_bytes(bench, case)
            replayed = bench.run(case.name, f"replay ({heading})", [bench.crewind, "replay", bench.trace])
            if replayed is not None:
                runs.setdefault(heading, []).append((recorded, replayed, trace_bytes / recorded.wall))
    median = lambda values: statistics.median(list(values))
    result = {"native": median(r.wall for r in runs.pop("native"))}
    for heading, triples in runs.items():
        if len(triples) == bench.options.rounds:
            result[heading] = (median(t[0].wall for t in triples), median(t[1].wall for t in triples), median(t[2] for t in triples))
    return result


def print_parallel(bench, text):
    chosen = chosen_modes(bench.options)
    paths = compile_all(bench)
    print(f"\n{bench.options.threads} threads; native is the same program in parallel. For each mode: recording and replay, as ratios to")
    print("native, and kB of trace per second of recording (compressors: without their input, the rest not compressed)\n")
    columns = [f"{what}, {heading}" for heading, _ in chosen for what in ("record", "replay", "kB/s")]
    print("| program | native s |" + "".join(f" {c} |" for c in columns))
    print("|---|---|" + "---|" * len(columns), flush=True)
    for group, members in cases(bench, paths, text):
        ratios = {}
        for case in members:
            if bench.options.only and bench.options.only not in case.name:
                continue
            if not shutil.which(case.command[0]):
                print(f"| {case.name} | not installed |" + " |" * len(columns), flush=True)
                continue
            result = measure(bench, case, chosen)
            if result is None:
                print(f"| {case.name} | fails |" + " |" * len(columns), flush=True)
                continue
            native = result["native"]
            cells = []
            for heading, _ in chosen:
                if heading not in result:
                    cells += ["–"] * 3
                    continue
                record, replay, rate = result[heading]
                ratios.setdefault(heading, []).append((record / native, replay / native))
                cells += [f"{record / native:.2f}", f"{replay / native:.2f}", f"{rate / 1000:.0f}"]
            print(f"| {case.name} | {native:.2f} | " + " | ".join(cells) + " |", flush=True)
        cells = []
        for heading, _ in chosen:
            pairs = ratios.get(heading)
            cells += [f"**{statistics.geometric_mean(p[k] for p in pairs):.2f}**" for k in (0, 1)] if pairs else ["–"] * 2
            cells.append("")
        print(f"| **{group}, geometric mean** | | " + " | ".join(cells) + " |", flush=True)

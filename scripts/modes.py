"""The ways to record of crates/crewind/tests/modes.txt, for the scripts beside this file."""

import ctypes
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def kernel_gives_keys():
    """Whether pkey_alloc works; a container may forbid it."""
    libc = ctypes.CDLL(None)
    key = libc.pkey_alloc(0, 0)
    return key >= 0 and libc.pkey_free(key) == 0


class Mode:
    """One way to record."""

    def __init__(self, name, need, cpus, many_cpus, options):
        self.name, self.need, self.cpus, self.many_cpus, self.options = name, need, cpus, many_cpus, options

    def missing(self):
        """What the machine lacks for it, or None."""
        if self.need == "pkeys":
            with open("/proc/cpuinfo") as f:
                flags = next((line for line in f if line.startswith("flags")), "").split()
            return None if "ospke" in flags and kernel_gives_keys() else "memory protection keys"
        return None

    def arguments(self, cpus=None):
        """Options for `crewind record`, with so many vcpus (default: the first that the list has)."""
        return [word.replace("{cpus}", str(cpus or self.cpus[0])) for word in self.options]


def read():
    """All modes, by name."""
    modes = {}
    with open(os.path.join(ROOT, "crates/crewind/tests/modes.txt")) as f:
        for line in f:
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            name, need, cpus, many_cpus = words[:4]
            if need not in ("always", "pkeys"):
                raise ValueError(f"mode {name}: unknown need {need}")
            numbers = ([int(n) for n in text.split(",") if n != "-"] for text in (cpus, many_cpus))
            modes[name] = Mode(name, need, *numbers, words[4:])
    return modes

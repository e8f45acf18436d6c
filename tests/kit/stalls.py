"""How long the machine has kept a process waiting that asks for next to nothing.

A machine that gives a test no time makes every call late. So that such a moment is not taken for a fault of the
library, and a bound need not be wider than what it is about, somebody else watches the clock meanwhile, on every CPU:
one of them may stand still alone.
"""

from __future__ import annotations

import atexit
import functools
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from typing import Final

_PAUSE: Final = 0.02
_SLOT: Final = struct.Struct("dd")
"""For each CPU: seconds of the longest stall, and when it was last seen to be over."""

_WATCH: Final = f"""
import mmap, os, struct, sys, threading, time
parent, held = os.getppid(), mmap.mmap(0, 0)
def watch(at, cpu):
    os.sched_setaffinity(0, [cpu])
    while os.getppid() == parent:
        before = time.monotonic()
        time.sleep({_PAUSE})
        now = time.monotonic()
        longest, _ = struct.unpack_from("dd", held, at)
        struct.pack_into("dd", held, at, max(now - before - {_PAUSE}, longest), now)
for at, cpu in enumerate(sys.argv[1:]):
    threading.Thread(target=watch, args=({_SLOT.size} * at, int(cpu))).start()
"""


@functools.cache
def _watched() -> mmap.mmap:
    cpus = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryFile() as file:
        file.truncate(_SLOT.size * len(cpus))
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _WATCH, *map(str, cpus)], stdin=file)
        atexit.register(process.wait)
        atexit.register(process.kill)
        held = mmap.mmap(file.fileno(), 0)
    while not all(seen for _, seen in _SLOT.iter_unpack(held[:])):
        assert process.poll() is None, "nobody watches"
        time.sleep(_PAUSE)
    return held


def watch() -> None:
    """From now on."""
    held = _watched()
    for at in range(0, len(held), _SLOT.size):
        struct.pack_into("d", held, at, 0.0)


def longest() -> float:
    """Seconds of the longest stall since `watch`, also of one that is hardly over."""
    now = time.monotonic()
    return max(max(seconds, now - seen - _PAUSE) for seconds, seen in _SLOT.iter_unpack(_watched()[:]))

"""How long the machine has kept a process waiting that asks for next to nothing.

A machine that gives a test no time makes every call late. So that such a moment is not taken for a fault of the
library, and a bound need not be wider than what it is about, somebody else watches the clock meanwhile.
"""

from __future__ import annotations

import atexit
import functools
import mmap
import struct
import subprocess
import sys
import tempfile
from typing import Final

_WATCH: Final = """
import mmap, os, struct, sys, time
parent, held = os.getppid(), mmap.mmap(0, 8)
while os.getppid() == parent:
    before = time.monotonic()
    time.sleep(0.01)
    late = time.monotonic() - before - 0.01
    held[:] = struct.pack("d", max(late, *struct.unpack("d", held[:])))
"""


@functools.cache
def _watched() -> mmap.mmap:
    with tempfile.TemporaryFile() as file:
        file.truncate(8)
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _WATCH], stdin=file)
        atexit.register(process.wait)
        atexit.register(process.kill)
        return mmap.mmap(file.fileno(), 8)


def watch() -> None:
    """From now on."""
    _watched()[:] = struct.pack("d", 0.0)


def longest() -> float:
    """Seconds of the longest stall since `watch`."""
    (seconds,) = struct.unpack("d", _watched()[:])
    return float(seconds)

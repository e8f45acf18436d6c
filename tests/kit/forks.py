"""Forked children of a test."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Fork:
    """A forked child that runs `body` with one end of a pipe. Leaving waits for it, and fails if it failed."""

    def __init__(self, body: Callable[[Connection], Any]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                body(theirs)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        theirs.close()

    def hear(self) -> Any:
        assert self.pipe.poll(10), "the child says nothing"
        return self.pipe.recv()

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        status = os.waitpid(self.pid, 0)[1]
        self.pipe.close()
        assert os.waitstatus_to_exitcode(status) == 0, "the child failed"

"""The lock between processes: a lease in Redis that ends by itself unless it is renewed.

As in Redlock's single-instance part: SET if nobody holds it, with an expiry, and release by a script that
compares a token. The fencing number is for whoever must refuse the work of a holder whose lease ran out (M.
Kleppmann, "How to do distributed locking", 2016): mutual exclusion is not promised over a Redis failover.
"""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

from aimemo.core.ports import Lease
from aimemo.core.runtime import drive, forget_after_fork, fork_safe_lock
from aimemo.link.layout import Layout
from aimemo.link.link import Link, script

LEASE_SECONDS: Final = 3.0
UNKEPT_SECONDS: Final = 1.0
UNKEPT: Final = "-"


class Renewer:
    """Renews the leases of a process from one thread, which ends when there have been none for a while."""

    def __init__(self) -> None:
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """The leases are the parent process's."""
        self._lock = fork_safe_lock()
        self._leases: dict[str, Callable[[], bool]] = {}
        self._is_running = False

    def add(self, token: str, extend: Callable[[], bool]) -> None:
        """Call `extend` three times in the life of a lease, until it says that the lease is lost."""
        with self._lock:
            self._leases[token] = extend
            if not self._is_running:
                threading.Thread(target=self._run, name="aimemo-leases", daemon=True).start()
                self._is_running = True

    def remove(self, token: str) -> None:
        self._leases.pop(token, None)

    def _run(self) -> None:
        while True:
            time.sleep(LEASE_SECONDS / 3)
            with self._lock:
                leases = list(self._leases.items())
                self._is_running = bool(leases)
            if not leases:
                return
            for token, extend in leases:
                if not extend():
                    self.remove(token)


_renewer: Final = Renewer()


class LeaseLock:
    """Locks by name, in one world of one process.

    Args:
        blocking_link: renews the leases of both worlds.
        owner: names this process; a lease that it holds itself, in its other world, is not waited for.
    """

    def __init__(self, link: Link, layout: Layout, *, blocking_link: Link, owner: Callable[[], str]) -> None:
        self._link = link
        self._layout = layout
        self._blocking_link = blocking_link
        self._owner = owner

    async def acquire(self, name: str) -> Lease:
        bucket, *keys = self._layout.lock(name)
        owner = self._owner()
        token = f"{owner}:{secrets.token_hex(8)}"
        [[fence, holder]] = await self._link.ask(bucket, script("acquire")(keys, token, _ms(LEASE_SECONDS)))
        if fence:
            lease = Lease(name, "ours", token, fence)
            _renewer.add(token, functools.partial(self._extend, lease))
            return lease
        holder = holder.decode()
        return Lease(name, "free" if holder == UNKEPT or holder.startswith(f"{owner}:") else "theirs")

    async def release(self, lease: Lease, *, unkept: bool = False) -> bool:
        _renewer.remove(lease.token)
        bucket, name, _ = self._layout.lock(lease.name)
        mark = UNKEPT if unkept else ""
        [was_held] = await self._link.ask(bucket, script("release")((name,), lease.token, mark, _ms(UNKEPT_SECONDS)))
        return bool(was_held)

    def _extend(self, lease: Lease) -> bool:
        bucket, name, _ = self._layout.lock(lease.name)
        extend = script("extend")((name,), lease.token, _ms(LEASE_SECONDS))
        try:
            [is_held] = drive(self._blocking_link.ask(bucket, extend))
        except Exception:
            return True  # there may be time for another attempt
        return bool(is_held)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)

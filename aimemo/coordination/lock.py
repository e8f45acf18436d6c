"""The lock between processes: a lease in Redis that ends by itself unless it is renewed.

As in Redlock's single-instance part: SET if nobody holds it, with an expiry, and release by a script that
compares a token. The fencing number is for whoever must refuse the work of a holder whose lease ran out (M.
Kleppmann, "How to do distributed locking", 2016): mutual exclusion is not promised over a Redis failover.
"""

from __future__ import annotations

import functools
import secrets
import threading
from collections.abc import Callable
from typing import Final

from aimemo.core.guard import BUDGET, Budget
from aimemo.core.ports import Lease
from aimemo.core.runtime import drive, forget_after_fork, fork_safe_lock
from aimemo.link.layout import Layout, generations_of
from aimemo.link.link import Link, script

LEASE_SECONDS: Final = 3.0
UNKEPT_SECONDS: Final = 1.0
EXTEND_SECONDS: Final = 0.3
UNKEPT: Final = "-"


class Renewer:
    """Renews the leases of one cache, from a thread that ends when there are none.

    Args:
        link: of the world of threads; it renews the leases of both.
    """

    def __init__(self, link: Link, layout: Layout) -> None:
        self._link = link
        self._layout = layout
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """The leases are the parent process's."""
        self._changed = threading.Condition(fork_safe_lock())
        self._leases: dict[Lease, Callable[[], bool]] = {}
        self._is_running = False

    def add(self, lease: Lease, is_wanted: Callable[[], bool]) -> None:
        """Renew a lease three times in its life, until it is lost or no longer wanted; oftener where that fails."""
        with self._changed:
            if not self._is_running:
                threading.Thread(target=self._run, name="aimemo-leases", daemon=True).start()
                self._is_running = True
            self._leases[lease] = is_wanted

    def remove(self, lease: Lease) -> None:
        with self._changed:
            if self._leases.pop(lease, None) is not None and not self._leases:
                self._changed.notify()

    def _run(self) -> None:
        pause = LEASE_SECONDS / 3
        while True:
            with self._changed:
                if self._leases:
                    self._changed.wait(pause)
                leases = list(self._leases.items())
                self._is_running = bool(leases)
            if not leases:
                return
            pause = LEASE_SECONDS / 3
            for lease, is_wanted in leases:
                is_held = is_wanted() and self._extend(lease)
                if is_held is None:
                    pause = LEASE_SECONDS / 10
                elif not is_held:
                    self.remove(lease)

    def _extend(self, lease: Lease) -> bool | None:
        """Whether it is still held; None if nobody said so: there may be time for another attempt."""
        bucket, name, _ = self._layout.lock(lease.name)
        extend = script("extend")((name,), lease.token, _ms(LEASE_SECONDS))
        BUDGET.set(Budget.ending_in(EXTEND_SECONDS))
        try:
            [is_held] = drive(self._link.ask(bucket, extend))
        except Exception:
            return None
        return bool(is_held)


class LeaseLock:
    """Locks by name, in one world of one process.

    Args:
        owner: names this process; a lease that it holds itself, in its other world, is not waited for.
    """

    def __init__(self, link: Link, layout: Layout, renewer: Renewer, *, owner: Callable[[], str]) -> None:
        self._link = link
        self._layout = layout
        self._renewer = renewer
        self._owner = owner

    async def acquire(self, name: str, tags: tuple[str, ...] = ()) -> Lease:
        bucket, lease_name, fence_name = self._layout.lock(name)
        owner = f"{self._owner()}:"
        keys = (lease_name, fence_name, self._layout.generations(bucket))
        command = script("acquire")(keys, owner + secrets.token_hex(8), _ms(LEASE_SECONDS), *generations_of(name, tags))
        [[fence, says]] = await self._link.ask(bucket, command)
        token = says.decode()
        if not fence:
            return Lease(name, "free" if token == UNKEPT or token.startswith(owner) else "theirs")
        lease = Lease(name, "ours", token, fence)
        runtime = self._link.runtime
        self._renewer.add(lease, functools.partial(runtime.is_running, runtime.home()))
        return lease

    def abandon(self, lease: Lease) -> None:
        self._renewer.remove(lease)

    async def release(self, lease: Lease, *, unkept: bool = False) -> bool:
        self.abandon(lease)
        bucket, name, _ = self._layout.lock(lease.name)
        mark = UNKEPT if unkept else ""
        [was_held] = await self._link.ask(bucket, script("release")((name,), lease.token, mark, _ms(UNKEPT_SECONDS)))
        return bool(was_held)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)

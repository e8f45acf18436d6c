"""All faults at random, for a while: nothing grows, and the verdicts hold (F52)."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import random
import resource
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.faults.conftest import BUDGET, LOADED_MACHINE, Case
from tests.faults.stands import Stand
from tests.faults.test_servers_in_trouble import (
    Happens,
    configured,
    cut,
    demoted,
    frozen,
    killed,
    network,
    other_password,
    paused,
)
from tests.kit.crowd import CALLERS, Crowd

FAULTS: list[Happens] = [
    frozen, killed, cut, paused, demoted, other_password,
    functools.partial(configured, name="maxmemory", value="1"),
    functools.partial(network, pause=(0, 0.05), piece=(1, 500)),
    functools.partial(network, swallow=True),
]  # fmt: skip
SECONDS = float(os.environ.get("AIMEMO_SOAK_SECONDS", "600"))
CONNECTIONS = 10
PAGE = resource.getpagesize()


class Held(NamedTuple):
    """What this process holds when all is quiet."""

    megabytes: float
    files: int
    tasks: int
    threads: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[1])
        return cls(
            pages * PAGE / 1e6, len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), threading.active_count()
        )

    def is_flat_since(self, before: Held) -> bool:
        """Pools of connections and of threads may have filled since; memory may have settled."""
        return (
            self.megabytes < before.megabytes + 32
            and self.files <= before.files + 2 * CONNECTIONS * 3 + 10  # in both worlds, and two of the proxy for each
            and self.tasks <= before.tasks + 2
            and self.threads <= before.threads + CALLERS + 16
        )


@pytest.mark.row("F52")
@pytest.mark.parametrize(
    ("stand", "seconds"),
    [
        ("valkey", 4),
        *(pytest.param(kind, SECONDS / 2, marks=pytest.mark.slow) for kind in ("valkey", "valkey behind L1")),
    ],
    indirect=["stand"],
)
async def test_all_faults_at_random(stand: Stand, case: Case, seconds: float) -> None:
    seed = random.randrange(2**32)
    logging.getLogger("soak").warning("seed %s", seed)  # shown with a failure
    chance = random.Random(seed)
    worst, before = 0.0, None
    async with Crowd(stand.cache(max_connections=CONNECTIONS)) as crowd:
        usual = await crowd.warm_up()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            worst = max(worst, await go_through_one(stand, crowd, case, chance))
            before = before or Held.now()
        case.bounded(worst, BUDGET + LOADED_MACHINE + 2 * usual)
        after = Held.now()
        assert before is not None
        case.recovers(after.is_flat_since(before), f"{before} became {after}")


async def go_through_one(stand: Stand, crowd: Crowd, case: Case, chance: random.Random) -> float:
    """One fault, or several at once, under load that is in part cancelled; the most that was added to a call."""
    happens = chance.choice(FAULTS)
    async with happens(stand):
        load = asyncio.create_task(crowd.load(chance.uniform(0.2, 1)))
        while not load.done():
            callers = [asyncio.create_task(crowd.in_tasks(question)) for question in range(10)]
            await asyncio.sleep(chance.uniform(0, 0.1))
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
        await load
    worst = max(crowd.added)
    case.recovers(await crowd.recovers(10), f"not after {happens}")
    case.right(not crowd.wrong, crowd.wrong[:3])
    case.nothing_lost(not crowd.lost, crowd.lost[:3])
    sweeps: list[Callable[[], object]] = [
        crowd.cache.clear, lambda: crowd.cache.invalidate_tag("t"), lambda: crowd.cache.invalidate_operation("tasks")
    ]  # fmt: skip
    await chance.choice(sweeps)()  # type: ignore[misc]
    stand.ask_all("FLUSHALL")
    crowd.added.clear()
    crowd.computed.clear()
    return worst

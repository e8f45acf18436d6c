"""How the fuzz targets run: few examples, always the same, or for `AIMEMO_FUZZ_SECONDS` with new seeds all the time."""

from __future__ import annotations

import collections
import os
import random
import time
from collections.abc import Callable
from typing import Any, Final

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy, tuples

SECONDS: Final = float(os.environ.get("AIMEMO_FUZZ_SECONDS", "0"))
"""For the whole folder; every target gets an equal part."""

BATCH: Final = 100
EXAMPLES: collections.Counter[str] = collections.Counter()
"""How many examples each target has run."""


def fuzz(*strategies: SearchStrategy[Any], examples: int = 60) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Make a test of a check that takes what the strategies give."""

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        name = check.__name__
        EXAMPLES[name] += 0

        def counted(drawn: tuple[Any, ...]) -> None:
            EXAMPLES[name] += 1
            check(*drawn)

        def run(number: int | None) -> None:
            batch = settings(
                max_examples=examples if number is None else BATCH, derandomize=number is None, database=None,
                deadline=None, suppress_health_check=list(HealthCheck), print_blob=True,
            )(given(tuples(*strategies))(counted))  # fmt: skip
            (batch if number is None else seed(number)(batch))()

        def test() -> None:
            run(None)
            end = time.monotonic() + SECONDS / len(EXAMPLES)
            while time.monotonic() < end:
                run(random.SystemRandom().getrandbits(64))

        test.__name__, test.__qualname__, test.__doc__ = name, name, check.__doc__
        test.__module__ = check.__module__
        return test

    return decorate

"""One call, and what is known of its answer before it is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aimemo.core.entry import Entry
from aimemo.core.events import Tier
from aimemo.core.policy import Policy
from aimemo.core.ports import LocalStore


class Call:
    """One call, as far as its answer depends on it."""

    __slots__ = ("_compute", "key", "policy", "tags")

    is_decorated = False
    """Contexts such as `bypass()` and `record_calls()` are about decorated calls only."""

    def __init__(self, policy: Policy, key: str, compute: Callable[[], Any] = lambda: None) -> None:
        self.policy = policy
        self.key = key
        self.tags: tuple[str, ...] = ()
        self._compute = compute

    def thunk(self) -> Any:
        """Call the function; gives a value, or an awaitable of one."""
        return self._compute()

    def has_same_arguments(self) -> bool:
        """Whether the arguments still are what the key was made from."""
        return True

    def aim(self, local: LocalStore, entry: Entry) -> None:
        """Let the front index find the answer next time."""


@dataclass(slots=True)
class Pending:
    """A call that could not be answered at once.

    Attributes:
        stale: what was found, no longer fresh.
        landings: how many flights had landed when the tiers that can be read at once were looked into, or
            None if they were not.
        has_faulted: the store failed then, so its part in the call is over.
    """

    started: float
    stale: Found | None = None
    landings: int | None = None
    has_faulted: bool = False


@dataclass(slots=True)
class Found:
    """A stored answer that is still usable, with its value."""

    entry: Entry
    tier: Tier
    value: Any = field(repr=False)

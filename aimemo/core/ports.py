"""What the core asks of the parts that others fulfil."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from aimemo.core.entry import Address, Entry
from aimemo.core.envelope import DamagedEntry
from aimemo.core.runtime import Runtime

Clock = Callable[[], float]
"""Seconds, never going back within one process."""


@dataclass(frozen=True, slots=True)
class Selector:
    """Which entries a sweep means; `kind` `key` stands for one deleted key."""

    kind: Literal["key", "operation", "tag", "glob", "all"]
    name: str = ""

    def matches(self, key: str, operation: str, tags: Iterable[str]) -> bool:
        match self.kind:
            case "key":
                return key == self.name
            case "operation":
                return operation == self.name
            case "tag":
                return self.name in tags
            case "glob":
                return compile_glob(self.name).match(key) is not None
        return True


@functools.lru_cache(maxsize=64)
def compile_glob(pattern: str) -> re.Pattern[str]:
    r"""The one meaning of a glob on every tier, that of Redis: `*`, `?`, `[abc]`, `[a-z]`, `[^a]`, `\` escapes."""
    segments: list[list[str]] = [[]]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            segments.append([])
        elif char == "?":
            segments[-1].append(".")
        elif char == "[":
            text, at = _character_class(pattern, at)
            segments[-1].append(text)
        else:
            if char == "\\" and at < len(pattern):
                char, at = pattern[at], at + 1
            segments[-1].append(re.escape(char))
    first, *rest = ("".join(segment) for segment in segments)
    # Atomic groups: each part between stars matches at its first place or nowhere, so nothing is tried twice.
    middle = "".join(f"(?>.*?{segment})" for segment in rest[:-1] if segment)
    last = f".*{rest[-1]}" if rest else ""
    return re.compile(first + middle + last + r"\Z", re.DOTALL)


def _character_class(pattern: str, at: int) -> tuple[str, int]:
    negated = pattern[at : at + 1] == "^"
    at += negated
    ranges = []
    while at < len(pattern) and pattern[at] != "]":
        is_escaped = pattern[at] == "\\" and at + 1 < len(pattern)
        at += is_escaped
        low = high = pattern[at]
        if not is_escaped and pattern[at + 1 : at + 2] == "-" and at + 2 < len(pattern):
            at += 2
            low, high = sorted((low, pattern[at]))
        ranges.append(f"{re.escape(low)}-{re.escape(high)}")
        at += 1
    inside = "".join(ranges)
    if not inside:
        return ("." if negated else "(?!)"), at + 1
    return f"[{'^' if negated else ''}{inside}]", at + 1


class Stored(NamedTuple):
    """What a store tells of an entry without opening it. Times are of the process's own clock."""

    key: str
    size_raw: int
    size_stored: int
    created: float
    fresh_until: float
    usable_until: float
    seconds: float
    hits: int | None
    """How often it was read in this process; None where that is not known."""


class Store(Protocol):
    """Where entries live. Times of an `Entry` are always of the process's own clock.

    A store raises what its medium raises; the guard in front of it decides what that means.
    """

    reads_inline: bool
    """Reads never wait for anything: `find` may be called, and no timer is set over the other reads."""

    keeps_time: bool
    """Every operation ends by itself when `guard.BUDGET` is over: no timer is set over any of them."""

    def find(self, key: str) -> Entry | None:
        """As `get`, as a plain call; only of a store whose reads are inline."""

    async def connect(self) -> None:
        """Make sure that the store can be used; raises if it cannot."""

    async def get(self, key: str) -> Entry | None:
        """The entry of exactly this key if it is still usable (fresh or stale), else None.

        Raises:
            DamagedEntry: what is stored there is not an entry of this key.
        """

    async def get_many(self, keys: Iterable[str]) -> Mapping[str, Entry | DamagedEntry]:
        """The usable entries among `keys`, and for each damaged one the error that `get` would raise."""

    async def ticket(self, key: str, operation: str, tags: tuple[str, ...]) -> Any:
        """Taken before a computation, given back to `set` with its result."""

    async def set(self, key: str, entry: Entry, ticket: Any = None, *, replaces: bool = False) -> bool | None:
        """Keep an entry. False: an invalidation or a replacement came after the ticket, nothing was kept.

        `replaces`: an older answer, wherever it is, must not be served any more, nor kept with a ticket from before.

        None: nothing was kept because it is too large for the store, or (a guard's answer; a store
        raises) because the store is in trouble.
        """

    async def page(self, cursor: str, count: int) -> tuple[list[Stored], str]:
        """Some of the entries, about `count`, and the cursor for the next ones: `""` at the beginning and at the end.

        What is there from the first page to the last comes at least once.

        Raises:
            ValueError: the cursor is none that this store gave.
        """

    async def set_many(self, entries: Mapping[str, Entry]) -> int | None:
        """Keep entries without tickets, as replacements; how many were kept."""

    async def delete_many(self, keys: Iterable[str]) -> frozenset[str]:
        """Remove keys and void every ticket for them. Those that had a usable entry."""

    async def sweep(self, selector: Selector) -> int:
        """Remove all that match and void every matching ticket. How many usable entries were removed."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Lease:
    """What came of asking for a lock.

    Attributes:
        state: `ours`; `theirs`, who hold it now; or `free`, which nobody needs to wait for: its last holder
            had nothing to keep, or this process holds it itself.
        fence: grows with every lease of a lock, for whoever has to refuse the work of a holder of old.
    """

    name: str
    state: Literal["ours", "theirs", "free"]
    token: str = ""
    fence: int = 0


class Lock(Protocol):
    """A lock between processes: a lease that ends by itself unless it is renewed."""

    async def acquire(self, name: str, tags: tuple[str, ...] = ()) -> Lease:
        """Ask, without waiting. A lease that is ours is renewed until it is released.

        One that was taken before an invalidation of this key, or of one of its tags, is nobody's any more.
        """

    def abandon(self, lease: Lease) -> None:
        """Renew a lease no longer: it ends by itself."""

    async def release(self, lease: Lease, *, unkept: bool = False) -> bool:
        """Give back a lease that is ours; False if it was lost meanwhile.

        `unkept` says to those who wait that there will be no answer to wait for.
        """


class Listener(Protocol):
    """Hears what other processes invalidate, once it is awake."""

    is_awake: bool

    async def awake(self, runtime: Runtime) -> None:
        """Begin to listen; returns when that is so, or could not be done, or the budget of the call is over."""

    def sleep(self) -> None:
        """Stop listening."""


class LocalStore(Store, Protocol):
    """A store in this process's own memory: its entries are live objects and its reads are plain calls."""

    epoch: int
    """Grows with every invalidation: what was read before one may not be filled in after it."""

    max_size: int
    """How many entries it keeps at most."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the packed values held."""

    def __len__(self) -> int: ...

    def fill(self, entry: Entry, epoch: int) -> bool:
        """Keep what was read from a slower store, unless an invalidation came since `epoch` was read.

        What L1 holds fresh by then arrived meanwhile, and stays.
        """

    def aim(self, entry: Entry, front: dict[Address, Entry], address: Address) -> None:
        """Let a front index find this entry, for as long as this store holds it."""

    def invalidate(self, selector: Selector) -> None:
        """As `delete_many` and `sweep`, as a plain call."""

    def entries(self) -> list[Entry]: ...

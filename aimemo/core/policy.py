"""How long an answer lives, what may be kept of it, and the limits of every setting."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aimemo.core.codec import unpacker
from aimemo.core.entry import Entry
from aimemo.core.events import Hook
from aimemo.core.types import TypeResolver
from aimemo.errors import ValidationError

MAX_TTL: Final = 365 * 24 * 3600
NEVER: Final = float("inf")
REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://", "redis+cluster://", "redis+sentinel://")


@dataclass(frozen=True, slots=True)
class Policy:
    """What one operation asks for: freshness as in RFC 9111, its two extensions as in RFC 5861.

    Attributes:
        ttl: seconds an answer stays fresh; 0 is for ever.
        stale_while_revalidate: seconds after that in which it goes out at once while one caller renews it.
        stale_if_error: seconds after that in which it goes out if the function raises.
        jitter: fraction of the TTL by which it varies, to either side.
        store_if: decides which answers may be kept.
        facts: gives model, tokens and cost of an answer.
        hooks: the function's own, by kind of event.
    """

    operation: str = ""
    ttl: float = 3600.0
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    jitter: float = 0.0
    store_if: Callable[[Any], Any] | None = None
    facts: Callable[[Any], Mapping[str, Any]] | None = None
    hooks: Mapping[str, tuple[Hook, ...]] = field(default_factory=dict)
    types: TypeResolver = field(default_factory=TypeResolver)
    unpack: Callable[[bytes], Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unpack", unpacker(self.types))

    def lifetimes(self, now: float) -> tuple[float, float]:
        """Until when an answer of now is fresh, and until when it is usable."""
        if self.ttl == 0:
            return NEVER, NEVER
        ttl = self.ttl * (1 + self.jitter * random.uniform(-1, 1)) if self.jitter else self.ttl
        fresh_until = now + ttl
        return fresh_until, fresh_until + max(self.stale_while_revalidate, self.stale_if_error)

    def serves_stale(self, entry: Entry, now: float) -> bool:
        return now < min(entry.fresh_until + self.stale_while_revalidate, entry.usable_until)

    def covers_error(self, entry: Entry, now: float) -> bool:
        return now < min(entry.fresh_until + self.stale_if_error, entry.usable_until)


def read_facts(answer: Any) -> dict[str, Any]:
    """Model and tokens of an SDK's response object (`.model` and `.usage`), as far as it has them."""
    usage, model = getattr(answer, "usage", None), getattr(answer, "model", None)
    facts: dict[str, Any] = {"model": model} if isinstance(model, str) else {}
    tokens = getattr(usage, "total_tokens", None)
    if tokens is None:
        parts = [getattr(usage, name, None) for name in ("input_tokens", "output_tokens")]
        tokens = sum(part for part in parts if isinstance(part, int)) or None
    if isinstance(tokens, int):
        facts["tokens"] = tokens
    return facts if usage is not None else {}


def seconds_of(name: str, value: Any) -> float:
    """A duration given as seconds or `timedelta`, as seconds.

    Raises:
        ValidationError: if it is neither, negative, or over 365 days; the text names the parameter.
    """
    seconds = value.total_seconds() if isinstance(value, datetime.timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValidationError(f"{name} must be seconds or a timedelta", {name: "type"})
    if not seconds >= 0:
        meaning = "no expiration" if name == "ttl" else "no such time"
        raise ValidationError(f"{name} must be non-negative (0 means {meaning})", {name: value})
    if seconds > MAX_TTL:
        raise ValidationError(f"{name} must not exceed 365 days (31,536,000 seconds)", {name: value})
    return float(seconds)


def check_operation(operation: Any) -> None:
    """Refuse what cannot name an operation.

    Raises:
        ValidationError: it is no string, or an empty one.
    """
    if not isinstance(operation, str) or not operation.strip():
        raise ValidationError("operation must be a non-empty string", {"operation": "type"})


def milliseconds_of(name: str, value: Any) -> int:
    """A duration that is not 0 as the milliseconds of Redis. Raises as `seconds_of`, and for 0."""
    seconds = seconds_of(name, value)
    if seconds == 0:
        raise ValidationError(f"{name} must be more than 0 seconds", {name: value})
    return max(1, int(seconds * 1000))


Check = Callable[[str, Any], str | None]


def _is_integer(value: Any, low: int, high: float = NEVER) -> bool:
    return type(value) is int and low <= value <= high


def _integer(low: int, text: str, high: float = NEVER) -> Check:
    return lambda name, value: None if _is_integer(value, low, high) else f"{name} must be {text}"


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _of_type(kind: type, text: str) -> Check:
    return lambda name, value: None if isinstance(value, kind) else f"{name} must be {text}"


def _ttl(name: str, value: Any) -> str | None:
    if type(value) is not int:
        return f"{name} must be an integer"
    if value < 0:
        return f"{name} must be non-negative (0 means no expiration)"
    return f"{name} must not exceed 365 days (31,536,000 seconds)" if value > MAX_TTL else None


def _operation_ttls(name: str, value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return f"{name} must be a dictionary"
    for operation, ttl in value.items():
        if not isinstance(operation, str) or not operation.strip():
            return f"{name} keys must be non-empty strings"
        if not _is_integer(ttl, 0):
            return f"{name}[{operation!r}] must be a non-negative integer"
        if ttl > MAX_TTL:
            return f"{name}[{operation!r}] must not exceed 365 days (31,536,000 seconds)"
    return None


def _namespace(name: str, value: Any) -> str | None:
    if isinstance(value, str) and re.fullmatch(r"[\w.-]+", value):
        return None
    return f"{name} must be letters, digits, '_', '.' and '-'"


def _positive_seconds(name: str, value: Any) -> str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if is_number and 0 < value < NEVER else f"{name} must be a positive number of seconds"


def _fraction(name: str, value: Any) -> str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if is_number and 0 <= value < 1 else f"{name} must be a fraction from 0 to below 1"


def _redis_url(name: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return f"{name} must be a string"
    if not value.strip():
        return f"{name} cannot be empty"
    if not value.startswith(REDIS_SCHEMES):
        *first, last = (repr(scheme) for scheme in REDIS_SCHEMES)
        return f"{name} must start with {', '.join(first)} or {last}"
    scheme, _, rest = value.partition("://")
    host = rest.partition("?")[0].partition("/")[0].rpartition("@")[2]
    return None if host.partition(":")[0].strip(",") or scheme == "unix" else f"{name} must include host information"


_NON_NEGATIVE = _integer(0, "a non-negative integer")
_POSITIVE = _integer(1, "a positive integer")
_BOOLEAN = _of_type(bool, "a boolean")

LIMITS: Final[dict[str, Check]] = {
    "default_ttl": _ttl,
    "operation_ttls": _optional(_operation_ttls),
    "text_hash_threshold": _optional(_NON_NEGATIVE),
    "compression_threshold": _NON_NEGATIVE,
    "compression_level": _integer(1, "an integer between 1 and 9", 9),
    "max_size": _POSITIVE,
    "max_bytes": _optional(_POSITIVE),
    "memory_cache_size": _optional(_POSITIVE),
    "l1_cache_size": _POSITIVE,
    "enable_l1_cache": _BOOLEAN,
    "fail_on_connection_error": _BOOLEAN,
    "use_memory_cache": _BOOLEAN,
    "leases": _BOOLEAN,
    "redis_url": _redis_url,
    "max_connections": _POSITIVE,
    "connect_timeout": _positive_seconds,
    "strict": _BOOLEAN,
    "enabled": _BOOLEAN,
    "namespace": _namespace,
    "deadline": _positive_seconds,
    "l1_max_ttl": _positive_seconds,
    "jitter": _fraction,
}
"""Every door (classes, URL, environment, decorator, factory) checks its input against this one table."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check what `LIMITS` knows of.

    Raises:
        ValidationError: naming every faulty setting at once; `context` has one text for each.
    """
    faults = {name: LIMITS[name](name, value) for name, value in settings.items() if name in LIMITS}
    found = {name: text for name, text in faults.items() if text}
    if found:
        raise ValidationError("; ".join(found.values()), found)

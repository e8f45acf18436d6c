"""Every exception and warning that aimemo raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class AimemoError(Exception):
    """The root of all errors that aimemo raises."""


class ValidationError(AimemoError, ValueError):
    """A setting or an argument is not acceptable; `message` says which one and what would be.

    `context` maps the name of each faulty parameter to what is wrong with it.
    """

    def __init__(self, message: str, context: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.context: dict[str, Any] = dict(context or {})


class ConfigurationError(ValidationError):
    """The configuration as a whole (URL, environment, preset) cannot be used."""


class InfrastructureError(AimemoError):
    """A store could not do what was asked; `__cause__` is the store's own error."""


class UnkeyableArgumentError(AimemoError, TypeError):
    """An argument has no canonical form, so no key can tell it from another."""


class CodecError(AimemoError, TypeError):
    """A value cannot be packed, or packed bytes cannot be restored."""


class LockLostError(AimemoError):
    """A lock was no longer held when its holder acted on it."""


class IdempotencyConflictError(AimemoError):
    """One request id was used with two different payloads, or is still being carried out."""


class RateLimitedError(AimemoError):
    """A rate limit leaves no room for the request; in `retry_after` seconds there may be."""

    retry_after: float = 0.0


class AimemoWarning(UserWarning):
    """Something in how aimemo is used costs answers or money; the text says the remedy."""

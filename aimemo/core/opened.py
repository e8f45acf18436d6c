"""What was opened lately: as long as a store gives the same bytes for a key, they need not be opened again."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from aimemo.core.envelope import Envelope, unseal

MAX_REMEMBERED: Final = 1024
MAX_BYTES: Final = 24 * 1024
"""Of what is remembered of one key, as it is stored and as it was before it was compressed."""


class Opened(NamedTuple):
    """Where a store has a key, what it gave for it, and what that says."""

    place: Any
    data: bytes
    envelope: Envelope


class LatelyOpened(dict[str, Opened]):
    """The small envelopes that were opened lately, by key."""

    def open(self, key: str, place: Any, data: bytes, fingerprint: bytes) -> Envelope:
        """The envelope in `data`.

        Raises:
            DamagedEntry: as `unseal`.
        """
        known = self.get(key)
        if known is not None and known.data == data:
            return known.envelope
        envelope = unseal(data, fingerprint)
        if len(data) + len(envelope.payload) <= MAX_BYTES:
            if len(self) >= MAX_REMEMBERED:
                self.clear()
            self[key] = Opened(place, data, envelope)
        return envelope

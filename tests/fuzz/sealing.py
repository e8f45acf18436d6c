"""Envelopes for the fuzz targets: real ones, and forged ones whose checksum is right all the same."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgpack
import xxhash
import zstandard

from aimemo.core.codec import pack
from aimemo.core.envelope import Envelope, seal
from aimemo.core.types import TypeResolver
from tests.fuzz import kinds

HEAD = struct.Struct(">2sBB16sdddfBIII")
"""Magic, version, flags, fingerprint, created, fresh until, usable until, seconds, codec, dictionary, raw length,
facts length."""
MARK = bytes(range(16))
TIMES = range(4, 8)
TYPES = TypeResolver(kinds.CLASSES)
CORPUS = Path(__file__).parent / "corpus"
VALUES: tuple[Any, ...] = (
    None, "text", ["text " * 300], {"a": [1, (2.5, {3})]}, kinds.Point(kinds.Colour.RED, kinds.Pair(b"x", [])),
    kinds.Person(name="A", extra=1),
    kinds.evaluate("dt.datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo('Europe/Berlin'))"),
)  # fmt: skip


def sealed(value: Any, facts: dict[str, Any] | None = None, tags: tuple[str, ...] = ()) -> bytes:
    return seal(Envelope(1.0, 2.0, float("inf"), 0.5, facts or {}, tags, pack(value, TYPES)), MARK, 1000, 3)


REAL = (*map(sealed, VALUES), sealed("text", {"model": "m", "tokens": 3}, ("a", "é")))


def mended(body: bytes) -> bytes:
    """What would be an envelope but for its checksum, with one that is right."""
    return body + xxhash.xxh3_64_digest(body)


def with_fields(blob: bytes, fields: dict[int, Any]) -> bytes:
    head = list(HEAD.unpack_from(blob))
    for at, value in fields.items():
        head[at] = value
    return mended(HEAD.pack(*head) + blob[HEAD.size : -8])


def forged(payload: bytes, *, flags: int = 0, raw_length: int | None = None, facts: bytes = b"") -> bytes:
    length = len(payload) if raw_length is None else raw_length
    return mended(HEAD.pack(b"\xa1\x4d", 1, flags, MARK, 1, 2, 3, 0.5, 1, 0, length, len(facts)) + facts + payload)


def zstd_frame(raw: bytes, claimed: int) -> bytes:
    """A zstd frame of `raw` that says that it holds `claimed` bytes: `raw` is 128 KiB or more."""
    frame = zstandard.ZstdCompressor(level=1, write_content_size=True).compress(raw)
    return frame.replace(struct.pack("<I", len(raw)), struct.pack("<I", claimed), 1)


def ext(code: int, data: Any) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, msgpack.packb(data)))
    return packed

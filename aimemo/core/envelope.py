"""The envelope: how an entry looks as bytes in a store that others can write to.

    magic 2 · version 1 · flags 1 · fingerprint 16 · created 8 · fresh until 8 · usable until 8 ·
    seconds 4 · codec 1 · dictionary 4 · raw length 4 · facts length 4 · facts · payload · checksum 8

Numbers are big-endian, times are seconds of the store's own clock as IEEE 754 doubles (infinity: never).
The checksum is xxh3-64 over everything before it. A reader checks, in this order: length, magic and
version, fingerprint, checksum, raw length; only then does it decompress.
"""

from __future__ import annotations

import decimal
import struct
import threading
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgpack
import xxhash
import zstandard

from aimemo.core.codec import MAX_RAW
from aimemo.errors import CodecError

MAGIC: Final = b"\xa1\x4d"
VERSION: Final = 1
CODEC_MSGPACK: Final = 1
FLAG_ZSTD: Final = 1
FREE_EXPANSION: Final = 256 * 1024
MAX_EXPANSION: Final = 200

_HEAD = struct.Struct(">2sBB16sdddfBIII")
_CHECKSUM: Final = 8
_local = threading.local()


class DamagedEntry(CodecError):
    """Stored bytes are not an entry of this key; `reason` is a short name for what is wrong."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"a stored entry was not usable: {reason}")
        self.reason = reason


class Envelope(NamedTuple):
    """What an envelope says; `payload` is msgpack, times are seconds of the store's clock."""

    created: float
    fresh_until: float
    usable_until: float
    seconds: float
    facts: Mapping[str, Any]
    tags: tuple[str, ...]
    payload: bytes


def seal(envelope: Envelope, fingerprint: bytes, threshold: int, level: int) -> bytes:
    """An envelope as bytes, its payload compressed if it is over `threshold` bytes and that pays."""
    raw = envelope.payload
    payload = _compress(raw, level) if len(raw) > threshold else raw
    flags = FLAG_ZSTD if payload is not raw else 0
    facts = msgpack.packb([dict(envelope.facts), envelope.tags]) if envelope.facts or envelope.tags else b""
    head = _HEAD.pack(
        MAGIC, VERSION, flags, fingerprint, *envelope[:4], CODEC_MSGPACK, 0, len(raw), len(facts)
    )  # fmt: skip
    body = b"".join((head, facts, payload))
    return body + xxhash.xxh3_64_digest(body)


HEAD_SIZE: Final = _HEAD.size
_FOR_EVER: Final = float("inf")


class Head(NamedTuple):
    """What the beginning of an envelope says."""

    created: float
    fresh_until: float
    usable_until: float
    seconds: float
    raw_length: int


def read_head(data: bytes, fingerprint: bytes) -> Head | None:
    """The first `HEAD_SIZE` bytes of an envelope, unproven; None if they are no beginning of this one."""
    if len(data) < HEAD_SIZE:
        return None
    magic, version, _, owner, created, fresh, usable, seconds, _, _, raw_length, _ = _HEAD.unpack_from(data)
    if magic != MAGIC or version != VERSION or owner != fingerprint or not 0 <= seconds < _FOR_EVER:
        return None
    return Head(created, fresh, usable, seconds, raw_length)


def unseal(data: bytes, fingerprint: bytes) -> Envelope:
    """The envelope in `data`.

    Raises:
        DamagedEntry: if `data` is not a whole envelope of exactly this fingerprint.
    """
    if not isinstance(data, bytes) or len(data) < _HEAD.size + _CHECKSUM:
        raise DamagedEntry("truncated")
    magic, version, flags, owner, created, fresh, usable, seconds, codec, dictionary, raw_length, facts_length = (
        _HEAD.unpack_from(data)
    )
    if magic != MAGIC or version != VERSION:
        raise DamagedEntry("unknown_format")
    if owner != fingerprint:
        raise DamagedEntry("foreign_value")
    end = len(data) - _CHECKSUM
    if xxhash.xxh3_64_digest(memoryview(data)[:end]) != data[end:]:
        raise DamagedEntry("checksum")
    start = _HEAD.size + facts_length
    if codec != CODEC_MSGPACK or dictionary or flags > FLAG_ZSTD or start > end or not 0 <= seconds < _FOR_EVER:
        raise DamagedEntry("unknown_format")
    payload = data[start:end]
    if flags & FLAG_ZSTD:
        payload = _decompress(payload, raw_length)
    elif len(payload) != raw_length:
        raise DamagedEntry("raw_length")
    facts, tags = _facts(data[_HEAD.size : start]) if facts_length else ({}, ())
    return Envelope(created, fresh, usable, seconds, facts, tags, payload)


def _facts(data: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        facts, tags = msgpack.unpackb(data)
    except Exception as error:
        raise DamagedEntry("facts") from error
    if not isinstance(facts, dict) or not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DamagedEntry("facts")
    return clean_facts(facts), tuple(tags)


def clean_facts(facts: Mapping[Any, Any]) -> dict[str, Any]:
    """What of some facts is known and can be counted: model, tokens and cost."""
    clean: dict[str, Any] = {}
    model, tokens, cost = facts.get("model"), facts.get("tokens"), facts.get("cost")
    if isinstance(model, str) and model.isprintable():
        clean["model"] = model
    if isinstance(tokens, int) and 0 <= tokens < 2**53:
        clean["tokens"] = int(tokens)
    if isinstance(cost, int | float | decimal.Decimal) and 0 <= cost < 2**53:
        clean["cost"] = float(cost)
    return clean


def _compress(raw: bytes, level: int) -> bytes:
    """`raw` compressed, or `raw` itself where that saves less than 10 % or no reader would expand it."""
    compressors: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    compressor = compressors.get(level)
    if compressor is None:
        compressor = compressors[level] = zstandard.ZstdCompressor(
            level=level, write_content_size=True, write_checksum=True
        )
    packed = compressor.compress(raw)
    return packed if len(packed) <= 0.9 * len(raw) and _expands_to(len(raw), packed) else raw


def _expands_to(raw_length: int, packed: bytes) -> bool:
    """Whether a reader accepts so large a value from so few bytes."""
    return raw_length <= min(MAX_RAW, max(FREE_EXPANSION, len(packed) * MAX_EXPANSION))


def _decompress(packed: bytes, raw_length: int) -> bytes:
    if not _expands_to(raw_length, packed):
        raise DamagedEntry("expansion")
    try:
        # The decompressor allocates what the frame itself claims, whatever limit it is given.
        if zstandard.frame_content_size(packed) != raw_length:
            raise DamagedEntry("raw_length")
        decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
        if decompressor is None:
            decompressor = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_RAW)
        return decompressor.decompress(packed)
    except zstandard.ZstdError as error:
        raise DamagedEntry("compression") from error

"""Fuzzing what reads stored bytes: the value that was stored, or a miss, and never more memory than is right."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import strategies as st

from aimemo import CodecError, SQLiteCache, cached_ai_call
from aimemo.core.codec import pack, unpacker
from aimemo.core.envelope import HEAD_SIZE, DamagedEntry, Envelope, read_head, seal, unseal
from tests.fuzz.describing import describe
from tests.fuzz.running import fuzz
from tests.fuzz.sealing import (
    CORPUS,
    HEAD,
    MARK,
    REAL,
    TIMES,
    TYPES,
    VALUES,
    ext,
    forged,
    mended,
    sealed,
    with_fields,
    zstd_frame,
)  # fmt: skip
from tests.kit.clock import Clock

KIB = 1 << 10
UNPACK = unpacker(TYPES)
STORED = {blob: unseal(blob, MARK) for blob in REAL}
reals = st.sampled_from(REAL)


def opened(data: bytes) -> Any:
    """The value in stored bytes, read with an eye on the memory; None for a miss."""
    tracemalloc.start()
    begun = time.process_time()
    try:
        return UNPACK(unseal(data, MARK).payload)
    except CodecError:  # DamagedEntry is one
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1024 * KIB + 1000 * len(data), f"{peak:,} bytes of memory for {len(data):,} stored"
        assert time.process_time() - begun < 20


# Bytes that nobody has sealed


@fuzz(st.binary(max_size=300), st.tuples(reals, st.integers(0, 80)).map(lambda drawn: drawn[0][: drawn[1]]))
def test_bytes_that_nobody_has_sealed_are_damage(data: bytes, start: bytes) -> None:
    read_head(start + data, MARK)
    if start + data not in STORED:
        with pytest.raises(DamagedEntry):
            unseal(start + data, MARK)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Envelopes with some bits flipped, bytes cut out, put in or doubled, or the ends of others."""
    data = draw(reals)
    for _ in range(draw(st.integers(1, 3))):
        at, to = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        other = draw(reals)
        changes = {
            "flip": lambda d, at, to, o: d[:at] + bytes(b ^ 1 << to % 8 for b in d[at : at + 1]) + d[at + 1 :],
            "cut": lambda d, at, to, o: d[:at],
            "cut out": lambda d, at, to, o: d[:at] + d[to:],
            "double": lambda d, at, to, o: d[:to] + d[at:],
            "splice": lambda d, at, to, o: d[:at] + o[min(at, len(o)) :],
            "splice anywhere": lambda d, at, to, o: d[:at] + o[min(to, len(o)) :],
            "exchange a part": lambda d, at, to, o: d[:at] + o[at:to] + d[to:],
            "put in": lambda d, at, to, o: d[:at] + b"\0" + d[at:],
        }
        data = changes[draw(st.sampled_from(sorted(changes)))](data, at, to, other)
    return data


@fuzz(damaged(), examples=100)
def test_a_damaged_envelope_is_damage_or_the_one_that_was_sealed(data: bytes) -> None:
    try:
        found = unseal(data, MARK)
    except DamagedEntry:
        assert data not in STORED
    else:
        assert found == STORED[data]


@fuzz(reals, st.binary(min_size=16, max_size=16).filter(lambda mark: mark != MARK))
def test_no_envelope_is_that_of_another_key(data: bytes, mark: bytes) -> None:
    assert read_head(data[:HEAD_SIZE], mark) is None
    with pytest.raises(DamagedEntry) as caught:
        unseal(data, mark)
    assert caught.value.reason == "foreign_value"


# Bytes that somebody has forged: their checksum is right

small, long = st.integers(0, 255), st.integers(0, 2**32 - 1) | st.integers(0, 5000)
FIELDS: dict[int, st.SearchStrategy[Any]] = {
    0: st.binary(min_size=2, max_size=2), 1: small, 2: small, 3: st.binary(min_size=16, max_size=16),
    **{at: st.floats(width=32 if at == 7 else 64) for at in TIMES}, 8: small, 9: long, 10: long, 11: long,
}  # fmt: skip


@fuzz(reals, st.sampled_from(sorted(FIELDS)).flatmap(lambda at: st.tuples(st.just(at), FIELDS[at])), examples=100)
def test_a_field_of_the_head_that_was_exchanged_is_damage_or_a_time(blob: bytes, exchanged: tuple[int, Any]) -> None:
    data = with_fields(blob, dict([exchanged]))
    try:
        found = unseal(data, MARK)
    except DamagedEntry:
        at, value = exchanged
        assert at not in TIMES or (at == 7 and not 0 <= value < math.inf)
    else:
        assert exchanged[0] in TIMES or data == blob
        assert found[4:] == STORED[blob][4:]
        assert repr(found[:4]) == repr(HEAD.unpack_from(data)[4:8])  # NaN is not equal to itself


@fuzz(reals, st.fixed_dictionaries({}, optional={at: FIELDS[at] for at in (2, 8, 9, 10, 11)}), st.binary(max_size=9))
def test_whatever_the_head_says_an_envelope_is_read_as_it_says_or_is_damage(
    blob: bytes, fields: dict[int, Any], facts: bytes
) -> None:
    data = with_fields(blob[: HEAD.size] + facts + blob[HEAD.size :], fields)
    try:
        found = unseal(data, MARK)
    except DamagedEntry:
        return
    assert len(found.payload) == HEAD.unpack_from(data)[-2]
    assert found.facts.keys() <= {"model", "tokens", "cost"}
    assert all(type(tag) is str for tag in found.tags)


msgpack_leaves = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=20)
    | st.text(max_size=9) | st.sampled_from(["2024-01-01", "1E+999999", "Europe/Berlin", "../x", "<f8", "|S1", "M8[s]"])
    | st.sampled_from([f"{cls.__module__}:{cls.__qualname__}" for cls in TYPES._expected.values()])
)  # fmt: skip
codes = st.sampled_from([1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25, 0, 99])
structures = st.recursive(
    msgpack_leaves,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(msgpack_leaves, inner, max_size=3)
        | st.builds(lambda code, data: msgpack.ExtType(code, msgpack.packb(data)), codes, inner)
    ),
    max_leaves=10,
)  # fmt: skip
DISHONEST = [
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff", b"\xc6\x7f\xff\xff\xff", b"\xa3\xff\xfe",
    b"\xc9\x7f\xff\xff\xff\x01", b"\xc1", b"\xd6\xff\0\0\0\0", b"\x91" * 2000, b"\x81" * 2000, b"\xdc\xff\xff",
]  # fmt: skip


def nested(data: bytes, code: int, depth: int) -> bytes:
    for _ in range(depth):
        data = msgpack.packb(msgpack.ExtType(code, data))
    return data


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Things like packed values: any structure, packed values with bytes of others, lengths that lie, deep nesting."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return msgpack.packb(draw(structures))
    if kind == 1:
        return ext(draw(codes), draw(structures))
    if kind == 2:
        return nested(msgpack.packb(draw(structures)), draw(codes), draw(st.integers(0, 130)))
    data = draw(st.sampled_from(sorted(STORED))) if kind == 3 else draw(reals)
    payload = STORED[data].payload
    at, skipped = draw(st.integers(0, len(payload))), draw(st.integers(0, 9))
    return payload[:at] + draw(st.sampled_from(DISHONEST) | st.binary(max_size=6)) + payload[at + skipped :]


@fuzz(payloads(), examples=100)
def test_a_forged_payload_is_a_value_or_a_miss_and_costs_little_memory(payload: bytes) -> None:
    opened(forged(payload))


@fuzz(st.integers(2**17, 2**18), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1) | st.none())
def test_a_zstd_frame_that_lies_is_damage_and_costs_little_memory(size: int, claimed: int, raw: int | None) -> None:
    for said in (claimed, claimed % (1 << 18)):
        blob = forged(zstd_frame(bytes(size), said), flags=1, raw_length=said if raw is None else raw)
        tracemalloc.start()
        try:
            # Of a frame that claims to hold nothing nothing is read; an empty payload is no value.
            assert unseal(blob, MARK).payload == (bytes(size) if said else b"")
        except DamagedEntry:
            assert (said, said if raw is None else raw) != (size, size)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2048 * KIB


COMPRESSED = next(blob for blob in REAL if blob[3] == 1)


@fuzz(st.integers(HEAD.size, len(COMPRESSED) - 9), st.integers(1, 255))
def test_a_compressed_payload_with_a_changed_byte_is_damage_or_what_it_was(at: int, mask: int) -> None:
    changed = bytearray(COMPRESSED[:-8])
    changed[at] ^= mask
    try:
        found = unseal(mended(bytes(changed)), MARK)
    except DamagedEntry:
        return
    assert found == STORED[COMPRESSED]  # a bit of the frame's own head that says nothing of its content


texts = st.text(st.characters(exclude_categories=()), max_size=5)
storable = st.recursive(
    st.sampled_from(VALUES) | st.floats() | st.integers() | texts,
    lambda some: st.lists(some, max_size=4) | st.tuples(some, some) | st.dictionaries(texts, some, max_size=3),
    max_leaves=8,
)


@fuzz(storable, st.sampled_from([0, 10, 1 << 30]), st.integers(1, 9), st.lists(st.text(max_size=5)).map(tuple))
def test_what_is_stored_comes_back(value: Any, threshold: int, level: int, tags: tuple[str, ...]) -> None:
    envelope = Envelope(1.5, math.inf, -0.0, 0.25, {"model": "m"}, tags, pack(value, TYPES))
    found = unseal(seal(envelope, MARK, threshold, level), MARK)
    assert found == envelope
    assert describe(UNPACK(found.payload)) == describe(value)


# The same through a cache

seconds = st.floats(0, width=32, allow_infinity=False)
times = st.fixed_dictionaries({}, optional={**{at: st.floats() for at in TIMES}, 7: seconds})


@fuzz(times, st.integers(0, 400), examples=6)
def test_a_call_gets_its_answer_whatever_times_and_bytes_its_row_holds(times: dict[int, float], at: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = SQLiteCache(Path(folder) / "cache.db", clock=Clock(), deadline=5)
        ask = cached_ai_call(operation="op", cache=cache)(lambda text: [text])
        assert ask("q") == ["q"]
        blob = exchange_row(cache.path, None)
        for row in (with_fields(blob, times), bytes(b ^ (place == at) for place, b in enumerate(blob)), blob[:at]):
            exchange_row(cache.path, row)
            assert ask("q") == ["q"]
        assert math.isfinite(cache.stats().seconds_saved)
        cache.blocking.close()


def exchange_row(path: Path, row: bytes | None) -> bytes:
    """The only envelope in a file, and another in its place if one is given."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        ((blob,),) = connection.execute("SELECT envelope FROM aimemo_entries")
        if row is not None:
            connection.execute("UPDATE aimemo_entries SET envelope = ?", (row,))
    return blob


@pytest.mark.parametrize("seconds", [math.inf, math.nan])
def test_forged_seconds_do_not_spoil_the_stats(path: Path, clock: Clock, seconds: float) -> None:
    cache = SQLiteCache(path, clock=clock, deadline=5)
    ask = cached_ai_call(operation="op", cache=cache)(lambda text: [text])
    ask("q")
    exchange_row(path, with_fields(exchange_row(path, None), {7: seconds}))
    assert ask("q") == ["q"]
    saved = cache.stats().seconds_saved
    cache.blocking.close()
    assert math.isfinite(saved)


# What was found, and what is worth keeping


KNOWN: dict[str, str] = {
    "absent_field_in_a_list": "only a bare one is refused; who can forge an envelope can plant plain data",
    "timestamp_in_a_list": "only a bare one is refused; who can forge an envelope can plant plain data",
}
"""Faults that are known and not mended yet. Whoever mends one takes it off here."""


def corpus(folder: str) -> list[Any]:
    known = {name: pytest.mark.xfail(reason=reason, strict=True) for name, reason in KNOWN.items()}
    paths = sorted((CORPUS / folder).iterdir())
    return [pytest.param(path.read_bytes(), id=path.stem, marks=known.get(path.stem, ())) for path in paths]


@pytest.mark.parametrize("data", corpus("envelopes"))
def test_an_envelope_of_the_corpus_is_damage(data: bytes) -> None:
    assert opened(data) is None


@pytest.mark.parametrize("payload", corpus("payloads"))
def test_a_payload_of_the_corpus_is_a_miss(payload: bytes) -> None:
    assert opened(forged(payload)) is None


def test_the_corpus_is_no_damage_before_it_was_damaged() -> None:
    assert [opened(sealed(value)) is None for value in VALUES] == [value is None for value in VALUES]

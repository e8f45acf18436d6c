"""The envelope: whole and its own, or a `DamagedEntry`; whatever the bytes, never anything else."""

from __future__ import annotations

import decimal
import os
import pickle
import random
import resource
import sqlite3
import struct
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from aimemo import CodecError, SQLiteCache, cached_ai_call
from aimemo.core import opened
from aimemo.core.codec import pack, unpacker
from aimemo.core.envelope import HEAD_SIZE, DamagedEntry, Envelope, Head, clean_facts, read_head, seal, unseal
from aimemo.core.types import TypeResolver
from tests.kit.clock import Clock

HEAD = struct.Struct(">2sBB16sdddfBIII")
"""Magic, version, flags, fingerprint, created, fresh until, usable until, seconds, codec, dictionary,
raw length, facts length."""
MARK = bytes(range(16))
FACTS = {"model": "m", "tokens": 3}
TAGS = ("customer-7", "é")
MIB = 1 << 20
SMALL, LARGE, RANDOM = b"\x93\x01\x02\x03", msgpack.packb("text " * 500), os.urandom(5000)


def sealed(payload: bytes, threshold: int = 1000) -> bytes:
    return seal(Envelope(1.0, 2.0, float("inf"), 0.5, FACTS, TAGS, payload), MARK, threshold, 3)


def forged(blob: bytes, payload: bytes, *, flags: int = 0, raw_length: int | None = None, facts: bytes = b"") -> bytes:
    """An envelope with the head of another, a payload of its own, and a checksum that is right."""
    head = list(HEAD.unpack_from(blob))
    head[2], head[-2], head[-1] = flags, len(payload) if raw_length is None else raw_length, len(facts)
    body = HEAD.pack(*head) + facts + payload
    return body + xxhash.xxh3_64_digest(body)


@pytest.mark.parametrize("payload", [b"", SMALL, LARGE, RANDOM, bytes(9 * MIB)], ids=len)
@pytest.mark.parametrize("threshold", [0, 1000, 1 << 30])
def test_what_was_sealed_is_unsealed(payload: bytes, threshold: int) -> None:
    assert unseal(sealed(payload, threshold), MARK) == Envelope(1.0, 2.0, float("inf"), 0.5, FACTS, TAGS, payload)


def with_field(blob: bytes, at: int, value: Any) -> bytes:
    """An envelope with one field of its head exchanged, and a checksum that is right."""
    head = list(HEAD.unpack_from(blob))
    head[at] = value
    body = HEAD.pack(*head) + blob[HEAD.size : -8]
    return body + xxhash.xxh3_64_digest(body)


@pytest.mark.parametrize("seconds", [-0.5, float("inf"), float("nan")])
def test_a_head_with_seconds_that_no_call_can_take_is_damage(seconds: float) -> None:
    data = with_field(sealed(SMALL), 7, seconds)
    assert read_head(data, MARK) is None
    with pytest.raises(DamagedEntry, match="unknown_format"):
        unseal(data, MARK)


UNKNOWN = {"flags": (2, 2), "codec": (8, 2), "dictionary": (9, 1), "facts length": (11, 1 << 20)}


@pytest.mark.parametrize(("at", "value"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_only_a_later_version_could_have_written_is_an_unknown_format(at: int, value: int) -> None:
    with pytest.raises(DamagedEntry) as caught:
        unseal(with_field(sealed(SMALL), at, value), MARK)
    assert caught.value.reason == "unknown_format"


def zstd(payload: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=True).compress(payload)


FREE = 256 * 1024
WHOLE = sealed(SMALL)
DAMAGES: dict[str, tuple[Any, str]] = {
    "text": (WHOLE.decode("latin-1"), "truncated"), "head alone": (WHOLE[:HEAD_SIZE], "truncated"),
    "no checksum": (WHOLE[: HEAD_SIZE + 7], "truncated"), "cut": (WHOLE[: HEAD_SIZE + 8], "checksum"),
    "magic": (with_field(WHOLE, 0, b"xx"), "unknown_format"), "version": (with_field(WHOLE, 1, 2), "unknown_format"),
    "fingerprint": (with_field(WHOLE, 3, bytes(16)), "foreign_value"), "checksum": (WHOLE[:-1] + b"x", "checksum"),
    "facts that are a byte too long": (with_field(forged(WHOLE, b""), 11, 1), "unknown_format"),
    "raw length": (with_field(WHOLE, 10, len(SMALL) + 1), "raw_length"),
    "length of a frame": (forged(WHOLE, zstd(LARGE), flags=1, raw_length=len(LARGE) + 1), "raw_length"),
    "no frame": (forged(WHOLE, bytes(5000), flags=1, raw_length=1_000_000), "compression"),
    "more than 200 times as much": (forged(WHOLE, bytes(5000), flags=1, raw_length=1_000_001), "expansion"),
    "more than is free": (forged(WHOLE, zstd(bytes(FREE + 1)), flags=1, raw_length=FREE + 1), "expansion"),
    "facts": (forged(WHOLE, SMALL, facts=b"\xc1"), "facts"),
    "facts that are none": (forged(WHOLE, SMALL, facts=msgpack.packb([[], []])), "facts"),
    "tags that are none": (forged(WHOLE, SMALL, facts=msgpack.packb([{}, {}])), "facts"),
    "tags that are numbers": (forged(WHOLE, SMALL, facts=msgpack.packb([{}, ["a", 1]])), "facts"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damage_has_a_reason(data: Any, reason: str) -> None:
    with pytest.raises(DamagedEntry) as caught:
        unseal(data, MARK)
    assert caught.value.reason == reason
    assert str(caught.value) == f"a stored entry was not usable: {reason}"


def test_what_is_free_may_be_expanded_from_however_few_bytes() -> None:
    assert unseal(forged(WHOLE, zstd(bytes(FREE)), flags=1, raw_length=FREE), MARK).payload == bytes(FREE)


@pytest.mark.parametrize("facts", [{}, FACTS], ids=["no facts", "facts"])
@pytest.mark.parametrize("tags", [(), TAGS], ids=["no tags", "tags"])
@pytest.mark.parametrize("payload", [b"", SMALL], ids=len)
def test_what_is_not_there_takes_no_room(facts: dict[str, Any], tags: tuple[str, ...], payload: bytes) -> None:
    envelope = Envelope(1.0, 2.0, 3.0, 0.5, facts, tags, payload)
    blob = seal(envelope, MARK, 1000, 3)
    assert unseal(blob, MARK) == envelope
    assert (len(blob) == HEAD_SIZE + len(payload) + 8) is not bool(facts or tags)


CLEAN: list[tuple[dict[Any, Any], dict[str, Any]]] = [
    ({"model": "m", "tokens": 0, "cost": 0, "more": 1}, {"model": "m", "tokens": 0, "cost": 0.0}),
    ({"model": "a\nb", "tokens": -1, "cost": -0.01}, {}),
    ({"model": b"m", "tokens": 1.0, "cost": "1"}, {}),
    ({"tokens": 2**53 - 1, "cost": 2**53 - 1}, {"tokens": 2**53 - 1, "cost": 2.0**53 - 1}),
    ({"tokens": 2**53, "cost": 2**53}, {}),
    ({"tokens": True, "cost": decimal.Decimal("0.5")}, {"tokens": 1, "cost": 0.5}),
    ({"cost": float("nan")}, {}),
]


@pytest.mark.parametrize(("facts", "clean"), CLEAN)
def test_facts_that_cannot_be_counted_are_left_out(facts: dict[Any, Any], clean: dict[str, Any]) -> None:
    cleaned = clean_facts(facts)
    assert cleaned == clean
    assert {name: type(value) for name, value in cleaned.items()} == {name: type(clean[name]) for name in clean}


def test_a_thread_compresses_at_each_level_it_is_told_and_reads_what_another_wrote() -> None:
    payload = b" ".join(str(number * number).encode() for number in range(3000))
    envelope = Envelope(1.0, 2.0, 3.0, 0.5, {}, (), payload)
    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as reader:
        fast, small, again = (writer.submit(seal, envelope, MARK, 0, level).result() for level in (1, 19, 1))
        assert reader.submit(lambda: [unseal(blob, MARK) for blob in (fast, small)]).result() == [envelope] * 2
    assert len(fast) > len(small)
    assert fast == again
    frame = zstandard.get_frame_parameters(fast[HEAD_SIZE:])
    assert (frame.content_size, frame.has_checksum) == (len(payload), True)


def test_compression_that_saves_exactly_a_tenth_is_kept() -> None:
    noise = random.Random(1).randbytes(2000)
    compressor = zstandard.ZstdCompressor(level=3, write_content_size=True, write_checksum=True)
    payloads = (noise[:size] + bytes(total - size) for total in range(1000, 1500, 10) for size in range(850, total))
    payload = next(raw for raw in payloads if 10 * len(compressor.compress(raw)) == 9 * len(raw))
    assert sealed(payload, 0)[3] == 1


def test_the_head_alone_tells_times_and_size() -> None:
    for payload in (SMALL, LARGE):
        assert read_head(sealed(payload)[:HEAD_SIZE], MARK) == Head(1.0, 2.0, float("inf"), 0.5, len(payload))


NO_HEADS: dict[str, bytes] = {
    "nothing": b"", "cut": sealed(SMALL)[: HEAD_SIZE - 1], "magic": with_field(sealed(SMALL), 0, b"xx"),
    "version": with_field(sealed(SMALL), 1, 2), "fingerprint": with_field(sealed(SMALL), 3, bytes(16)),
}  # fmt: skip


@pytest.mark.parametrize("data", NO_HEADS.values(), ids=NO_HEADS)
def test_what_is_no_head_of_this_key_is_none(data: bytes) -> None:
    assert read_head(data, MARK) is None


def test_what_was_opened_lately_is_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "MAX_REMEMBERED", 3)
    lately, envelope = opened.LatelyOpened(), unseal(sealed(SMALL), MARK)
    for at in range(10):
        assert [lately.open(str(at), None, sealed(SMALL), MARK) for _ in range(2)] == [envelope] * 2
        assert str(at) in lately
        assert len(lately) <= 3


def test_what_is_large_once_it_is_opened_is_not_remembered() -> None:
    lately, data = opened.LatelyOpened(), sealed(b"a" * opened.MAX_BYTES)
    assert len(data) < opened.MAX_BYTES / 2
    assert lately.open("key", None, data, MARK).payload == b"a" * opened.MAX_BYTES
    assert not lately


@pytest.mark.parametrize("payload", [SMALL, LARGE], ids=["raw", "compressed"])
def test_every_changed_byte_is_damage(payload: bytes) -> None:
    blob = sealed(payload)
    for at in range(len(blob)):
        for mask in (0x01, 0x80, 0xFF):
            changed = bytearray(blob)
            changed[at] ^= mask
            with pytest.raises(DamagedEntry):
                unseal(bytes(changed), MARK)


@pytest.mark.parametrize("payload", [SMALL, LARGE], ids=["raw", "compressed"])
def test_every_length_but_its_own_is_damage(payload: bytes) -> None:
    blob = sealed(payload)
    for data in (*(blob[:length] for length in range(len(blob))), blob[1:], blob + b"\0", blob + blob):
        with pytest.raises(DamagedEntry):
            unseal(data, MARK)


def test_the_envelope_of_another_key_is_a_foreign_value() -> None:
    with pytest.raises(DamagedEntry) as caught:
        unseal(sealed(SMALL), MARK[::-1])
    assert caught.value.reason == "foreign_value"


@pytest.mark.parametrize(
    ("payload", "threshold", "is_compressed"),
    [
        pytest.param(bytes(1000), 1000, False, id="at the threshold"),
        pytest.param(bytes(1001), 1000, True, id="above the threshold"),
        pytest.param(RANDOM, 0, False, id="incompressible"),
        pytest.param(os.urandom(4700) + bytes(300), 0, False, id="saves 6 %"),
        pytest.param(os.urandom(4300) + bytes(700), 0, True, id="saves 14 %"),
    ],
)
def test_compression_is_kept_above_the_threshold_where_it_pays(
    payload: bytes, threshold: int, is_compressed: bool
) -> None:
    blob = sealed(payload, threshold)
    assert bool(blob[3] & 1) is is_compressed
    assert (len(blob) < len(payload)) is is_compressed


def test_a_value_no_reader_would_accept_is_not_packed() -> None:
    with pytest.raises(CodecError):
        pack(bytes(64 * MIB + 1), TypeResolver())


def test_a_blob_of_format_version_1_still_decodes() -> None:
    """The file was written once, by `seal(ENVELOPE, MARK, 100, 3)` with the value and facts below
    packed by `pack(value, TypeResolver())`. It must never be written again: a new version gets a new file."""
    blob = (Path(__file__).parent / "vectors" / "envelope_v1.bin").read_bytes()
    envelope = unseal(blob, MARK)
    assert envelope[:6] == (1000.0, 2000.0, 3000.0, 1.5, FACTS, TAGS)
    assert blob[3] == 1
    assert unpacker(TypeResolver())(envelope.payload) == golden_value()


def golden_value() -> Any:
    import datetime as dt
    import decimal
    import uuid

    when = dt.datetime(2024, 10, 27, 2, 30, tzinfo=dt.UTC)
    numbers = [0, -1, 2**63, 2**70, 1.5, True, None, 1 + 2j, decimal.Decimal("-0.10")]
    times = (when, when.date(), when.time(), dt.timedelta(seconds=1))
    texts = {"text": "answer " * 40, b"bytes": "\ud800 é", (1, "key"): {1, 2}, "frozen": frozenset({b"x"})}
    return {**texts, "numbers": numbers, "times": times, "id": uuid.UUID(int=7), "__aimemo__": "tuple"}


def zstd_bomb(claimed: int | None, size: int = 1 << 30) -> bytes:
    """A frame of `size` zero bytes that claims to hold `claimed`; None: that claims nothing."""
    honest = {} if claimed is None else {"size": size}
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=bool(honest)).compressobj(**honest)
    frame = b"".join(compressor.compress(bytes(MIB)) for _ in range(size // MIB)) + compressor.flush()
    return frame if claimed is None else frame.replace(struct.pack("<I", size), struct.pack("<I", claimed), 1)


@pytest.mark.parametrize("claimed", [1 << 30, 1000, 8 * MIB, None], ids=["honest", "lying", "lying well", "silent"])
@pytest.mark.parametrize("raw_length", [1 << 30, 1000, 8 * MIB, 0])
def test_a_zstd_bomb_is_damage_and_costs_no_memory(claimed: int | None, raw_length: int) -> None:
    bomb = forged(sealed(SMALL), zstd_bomb(claimed), flags=1, raw_length=raw_length)
    assert len(bomb) < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        with pytest.raises(DamagedEntry):
            unseal(bomb, MARK)
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 32 * MIB


class Boom:
    ran: list[str] = []

    def __reduce__(self) -> Any:
        return Boom.ran.append, ("pickle",)


def nested_ext(depth: int) -> bytes:
    data = b"\x90"
    for _ in range(depth):
        data = msgpack.packb(msgpack.ExtType(1, data))
    return data


def ext(code: int, data: Any) -> bytes:
    return msgpack.packb(msgpack.ExtType(code, msgpack.packb(data)))


PAYLOADS: dict[str, bytes] = {
    "empty": b"", "never used byte": b"\xc1", "trailing bytes": b"\x01\x02", "cut": b"\x93\x01",
    "pickle": pickle.dumps(Boom()), "bad UTF-8": b"\xa2\xff\xfe", "unhashable key": b"\x81\x90\x01",
    "arrays of arrays": b"\xdd\x00\x04\x00\x00" * 500 + bytes(1 << 18),
    "huge array": b"\xdd\xff\xff\xff\xff", "huge map": b"\xdf\xff\xff\xff\xff", "huge text": b"\xdb\xff\xff\xff\xff",
    "huge bytes": b"\xc6\xff\xff\xff\xff", "huge ext": b"\xc9\xff\xff\xff\xff\x01", "deep arrays": b"\x91" * 100_000,
    "deep maps": b"\x81" * 100_000, "deep ext": nested_ext(2000), "unhashable member": ext(2, [[1]]),
    "unknown ext": ext(99, 1), "negative ext": b"\xd4\xfe\x01", "timestamp": msgpack.packb(msgpack.Timestamp(1)),
    "absent field": ext(25, None), "array of objects": ext(24, ["O", [1], bytes(8), False]),
    "array of nothing": ext(24, ["|V0", [1], pickle.dumps(1), False]),
    "shape": ext(24, ["<f8", [2**40], bytes(8), False]),
    "unknown class": ext(21, ["os:_wrap_close", 1, []]), "class without name": ext(23, [None, 1]),
    "deep class name": ext(23, [[[[["a:b"]]]], 1]), "zone": ext(10, ["2024-01-01", 0, "../../etc/passwd"]),
    "date": ext(11, "x"), "decimal": ext(14, "x"), "uuid": ext(15, b"x"),
    **{f"ext {code} of rubbish": msgpack.packb(msgpack.ExtType(code, b"\xc1")) for code in range(1, 26)},
}  # fmt: skip


class Planted:
    """A function cached in a SQLite file, and the row of its answer to one question."""

    def __init__(self, path: Path, clock: Clock, **options: Any) -> None:
        self.calls: list[str] = []
        self.path = path
        self.cache = SQLiteCache(path, clock=clock, deadline=5)
        self.errors: list[Any] = []
        self.cache.on("error", self.errors.append)

        @cached_ai_call(operation="op", cache=self.cache, **options)
        def ask(text: str) -> list[str]:
            self.calls.append(text)
            return [text]

        self.ask = ask
        assert (ask("q"), ask("other"), self.calls) == (["q"], ["other"], ["q", "other"])

    def plant(self, change: Callable[[bytes], Any]) -> None:
        with sqlite3.connect(self.path) as connection:
            key = self.ask.key_for("q")
            ((blob,),) = connection.execute("SELECT envelope FROM aimemo_entries WHERE key = ?", (key,))
            connection.execute("UPDATE aimemo_entries SET envelope = ? WHERE key = ?", (change(blob), key))
        connection.close()


@pytest.fixture
def planted(tmp_path: Path, clock: Clock) -> Planted:
    return Planted(tmp_path / "cache.db", clock)


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_a_planted_payload_is_a_counted_miss(planted: Planted, payload: bytes) -> None:
    planted.plant(lambda blob: forged(blob, payload))
    assert planted.ask("q") == ["q"]
    assert planted.calls == ["q", "other", "q"]
    assert len(planted.errors) == 1
    assert planted.ask("q") == ["q"]  # what was computed has replaced it
    assert len(planted.calls) == 3
    assert Boom.ran == []


@pytest.mark.parametrize("row", [b"", b"x", 5, 1.5, "text", "t" * 100, bytes(100), pickle.dumps(Boom())], ids=repr)
def test_a_planted_row_is_a_miss_for_its_key_alone(planted: Planted, row: Any) -> None:
    for _ in range(6):  # as often as would make the breaker leave a store alone
        planted.plant(lambda _: row)
        assert planted.ask("q") == ["q"]
    assert len(planted.calls) == 8
    assert planted.ask("other") == ["other"]
    assert len(planted.calls) == 8
    assert Boom.ran == []


def test_the_bytes_of_another_key_are_a_miss(planted: Planted) -> None:
    with sqlite3.connect(planted.path) as connection:
        ((other,),) = connection.execute(
            "SELECT envelope FROM aimemo_entries WHERE key = ?", (planted.ask.key_for("other"),)
        )
    connection.close()
    planted.plant(lambda _: other)
    assert planted.ask("q") == ["q"]
    assert [event.reason for event in planted.errors] == ["foreign_value"]


@pytest.mark.parametrize("claimed", [1 << 30, 1000])
def test_a_planted_zstd_bomb_is_a_miss(planted: Planted, claimed: int) -> None:
    planted.plant(lambda blob: forged(blob, zstd_bomb(claimed), flags=1, raw_length=claimed))
    assert planted.ask("q") == ["q"]
    assert planted.calls == ["q", "other", "q"]


FACTS_PLANTED: list[Any] = [
    {"tags": 5}, {"tags": [[1]]}, {"tokens": "many"}, {"tokens": float("nan")}, {"cost": "1 $"}, {"cost": [1]},
    {"tokens": 2**63}, {"model": b"\xff"}, {1: 2}, [1], "x", None,
    [{"tokens": "many"}, []], [{"tokens": float("nan")}, []], [{"cost": "1 $"}, []], [{"model": b"\xff"}, []],
    [{}, 5], [{}, [[1]]], [{1: 2}, []], [[], []], [{}, [], []],
]  # fmt: skip


@pytest.mark.parametrize("facts", FACTS_PLANTED, ids=repr)
def test_planted_facts_fail_neither_a_call_nor_the_stats_nor_other_keys(planted: Planted, facts: Any) -> None:
    for _ in range(6):
        planted.plant(lambda blob: forged(blob, msgpack.packb(["q"]), facts=msgpack.packb(facts)))
        assert planted.ask("q") == ["q"]
        planted.cache.stats()
    computed = len(planted.calls)
    assert planted.ask("other") == ["other"]
    assert len(planted.calls) == computed


@settings(max_examples=200)
@given(st.binary(max_size=120), st.sampled_from([b"", sealed(SMALL)[:4], sealed(SMALL)[:20], sealed(SMALL)[:61]]))
def test_random_bytes_are_damage(data: bytes, start: bytes) -> None:
    with pytest.raises(DamagedEntry):
        unseal(start + data, MARK)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 1), st.none() | st.integers(0, 2**32 - 1), st.binary(max_size=9))
def test_whatever_an_envelope_holds_it_is_read_or_damage(
    data: bytes, flags: int, raw: int | None, facts: bytes
) -> None:
    try:
        unseal(forged(sealed(SMALL), data, flags=flags, raw_length=raw, facts=facts), MARK)
    except DamagedEntry:
        pass


PACKED = pack(golden_value(), TypeResolver())


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, len(PACKED)), st.integers(0, 9))
def test_whatever_is_unpacked_is_a_value_or_a_codec_error(data: bytes, at: int, skipped: int) -> None:
    for packed in (data, PACKED[:at] + data + PACKED[at + skipped :], ext(at % 27, [data, at])):
        try:
            unpacker(TypeResolver())(packed)
        except CodecError:
            pass

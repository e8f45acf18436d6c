"""Replies cut out of a stream, however it comes in pieces."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from aimemo.link.replies import Replies

LINES = st.binary(max_size=20).filter(lambda line: b"\r" not in line and b"\n" not in line)
REPLIES = st.recursive(
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=300)),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=12,
)


def encoded(reply: Any) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b"*%d\r\n" % len(reply) + b"".join(map(encoded, reply))


async def read(data: bytes, cuts: list[int], count: int = 1) -> list[Any]:
    """So many replies out of what comes in pieces; nothing is left after them."""
    stream = asyncio.StreamReader()

    async def feed() -> None:
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for start, end in itertools.pairwise(edges):
            stream.feed_data(data[start:end])
            await asyncio.sleep(0)
        stream.feed_eof()

    feeding = asyncio.create_task(feed())
    replies = Replies(stream)
    try:
        found = [await replies.next() for _ in range(count)]
        assert not replies.has_more
        return found
    finally:
        await feeding


@given(st.lists(REPLIES, min_size=1, max_size=4), st.lists(st.integers(0, 10_000), max_size=8))
def test_replies_are_what_was_sent_however_they_come(sent: list[Any], cuts: list[int]) -> None:
    assert asyncio.run(read(b"".join(map(encoded, sent)), cuts, len(sent))) == sent


@given(LINES)
def test_a_status_is_its_line(line: bytes) -> None:
    assert asyncio.run(read(b"+%b\r\n" % line, [])) == [line]


async def test_error_replies_are_given_and_those_before_a_hang_up_are_raised() -> None:
    [missing, unknown] = (await read(b"*2\r\n-NOSCRIPT No matching script.\r\n-ODD thing\r\n", [5]))[0]
    assert isinstance(missing, redis.exceptions.NoScriptError)
    assert isinstance(unknown, redis.ResponseError)
    assert str(unknown) == "ODD thing"
    with pytest.raises(redis.ConnectionError):
        await read(b"-ERR max number of clients reached\r\n", [])


@pytest.mark.parametrize("data", [b"", b"$", b"$5\r\nabc", b"*2\r\n:1\r\n", b"$5\r\nabcde"])
async def test_a_reply_that_ends_early_is_a_lost_connection(data: bytes) -> None:
    with pytest.raises(ConnectionError):
        await read(data, [])


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n", b"$x\r\n", b"*\r\n", b":1.5\r\n", b"\r\n"])
async def test_what_is_no_reply_is_refused(data: bytes) -> None:
    with pytest.raises(redis.InvalidResponse):
        await read(data, [])

"""Golden blobs and keys: what a release has written, later releases find and read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aimemo.core.canonical import canonical
from aimemo.core.codec import unpacker
from aimemo.core.envelope import HEAD_SIZE, VERSION, seal, unseal
from tests.fuzz.describing import describe
from tests.fuzz.golden import ARGUMENTS, CALLS, VALUES, VECTORS, key_of
from tests.fuzz.kinds import evaluate
from tests.fuzz.make_golden import envelope_of
from tests.fuzz.sealing import MARK, TYPES

MANIFESTS = {int(path.stem.removeprefix("envelopes_v")): path for path in VECTORS.glob("envelopes_v*.json")}
BLOBS = [
    pytest.param((version, name, entry), id=f"{name} of version {version}")
    for version, path in sorted(MANIFESTS.items())
    for name, entry in json.loads(path.read_text()).items()
]
KEYS: dict[str, dict[str, str]] = json.loads((VECTORS / "keys.json").read_text())
Golden = tuple[int, str, dict[str, Any]]


def blob_of(version: int, name: str) -> bytes:
    return (VECTORS / f"envelopes_v{version}" / f"{name}.bin").read_bytes()


@pytest.mark.parametrize("golden", BLOBS)
def test_a_golden_blob_decodes_to_what_was_stored(golden: Golden) -> None:
    version, name, entry = golden
    envelope = unseal(blob_of(version, name), MARK)
    assert envelope[:4] == (1000.0, 2000.0, float("inf"), 1.5)
    assert (envelope.facts, list(envelope.tags)) == (entry["facts"], entry["tags"])
    assert describe(unpacker(TYPES)(envelope.payload)) == entry["value"]


@pytest.mark.parametrize("name", VALUES)
def test_what_is_written_today_is_what_the_golden_blob_of_this_version_holds(name: str) -> None:
    """Who changes what is written gives it a new VERSION and makes new blobs beside the old ones."""
    blob, today = blob_of(VERSION, name), envelope_of(name)
    assert unseal(blob, MARK).payload == today.payload
    if name == "compressed":  # another release of zstd may compress otherwise
        assert blob[3] == 1
        assert seal(today, MARK, 500, 3)[:HEAD_SIZE] == blob[:HEAD_SIZE]
    else:
        assert seal(today, MARK, 500, 3) == blob


def test_there_is_a_golden_blob_of_every_kind_of_value_and_nothing_else() -> None:
    assert set(json.loads(MANIFESTS[VERSION].read_text())) == set(VALUES)
    assert {path.stem for path in (VECTORS / f"envelopes_v{VERSION}").iterdir()} == set(VALUES)


@pytest.mark.parametrize("argument", KEYS["forms"])
def test_the_form_of_an_argument_never_changes(argument: str) -> None:
    assert canonical(evaluate(argument)) == KEYS["forms"][argument]


@pytest.mark.parametrize("call", KEYS["keys"])
def test_the_key_of_a_call_never_changes(call: str) -> None:
    assert key_of(call) == KEYS["keys"][call]


def test_every_argument_and_call_has_a_golden_key() -> None:
    assert (set(KEYS["forms"]), set(KEYS["keys"])) == (set(ARGUMENTS), set(CALLS))

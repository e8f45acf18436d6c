"""Writes the golden blobs and keys that are not there yet: `python -m tests.fuzz.make_golden`.

What is there is never written again: a change of the format needs a new version number, and with it new files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aimemo.core.canonical import canonical
from aimemo.core.codec import pack
from aimemo.core.envelope import VERSION, Envelope, seal
from tests.fuzz.describing import describe
from tests.fuzz.golden import ARGUMENTS, CALLS, FACTS, TAGS, VALUES, VECTORS, key_of
from tests.fuzz.kinds import evaluate
from tests.fuzz.sealing import MARK, TYPES


def envelope_of(name: str) -> Envelope:
    facts, tags = (FACTS, TAGS) if name == "tags_and_facts" else ({}, ())
    return Envelope(1000.0, 2000.0, float("inf"), 1.5, facts, tags, pack(evaluate(VALUES[name]), TYPES))


def write_blobs(folder: Path, manifest: Path) -> None:
    folder.mkdir(exist_ok=True)
    known: dict[str, Any] = json.loads(manifest.read_text()) if manifest.exists() else {}
    for name, expression in VALUES.items():
        if name not in known:
            envelope = envelope_of(name)
            (folder / f"{name}.bin").write_bytes(seal(envelope, MARK, 500, 3))
            facts, tags = dict(envelope.facts), list(envelope.tags)
            known[name] = {"facts": facts, "tags": tags, "made_of": expression, "value": describe(evaluate(expression))}
    lines = (f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in known.items())
    manifest.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_keys(path: Path) -> None:
    known: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {"forms": {}, "keys": {}}
    for argument in ARGUMENTS:
        known["forms"].setdefault(argument, canonical(evaluate(argument)))
    for call in CALLS:
        known["keys"].setdefault(call, key_of(call))
    path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    write_blobs(VECTORS / f"envelopes_v{VERSION}", VECTORS / f"envelopes_v{VERSION}.json")
    write_keys(VECTORS / "keys.json")

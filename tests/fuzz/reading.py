"""A reader of canonical forms: what can be read back without doubt cannot be the form of anything else."""

from __future__ import annotations

import string
from typing import Any

CONSTANTS = "NTFE"
NUMBERS = "ifc"
COUNTED = "ltSZ"


def read_form(text: str, at: int = 0) -> tuple[Any, int]:
    """The value whose form begins at a place of a text, as a tree, and where it ends."""
    tag, at = text[at], at + 1
    if tag in CONSTANTS:
        return (tag,), at
    if tag in NUMBERS:
        end = text.index(";", at)
        return (tag, text[at:end]), end + 1
    if tag in COUNTED or tag == "d":
        count, at = _count(text, at, "[")
        items = []
        for _ in range(count * 2 if tag == "d" else count):
            item, at = read_form(text, at)
            items.append(item)
        return (tag, *items), at
    length, at = _count(text, at, ":")
    if tag == "s":
        return (tag, text[at : at + length]), at + length
    if tag == "b":
        return (tag, text[at : at + 2 * length]), at + 2 * length
    if tag == "h":
        return (tag, length, text[at : at + 64]), at + 64
    if tag in "ox":
        state, end = read_form(text, at + length)
        return (tag, text[at : at + length], state), end
    raise ValueError(f"no form begins with {tag!r}")


def read_arguments(text: str) -> list[tuple[str, Any]]:
    """The names and the values in the form of some arguments."""
    found, at = [], 0
    while at < len(text):
        if text[at] != "p":
            raise ValueError(f"no parameter at {at}")
        length, at = _count(text, at + 1, ":")
        name = text[at : at + length]
        value, at = read_form(text, at + length)
        found.append((name, value))
    return found


def _count(text: str, at: int, end: str) -> tuple[int, int]:
    stop = text.index(end, at)
    digits = text[at:stop]
    if not digits or any(digit not in string.digits for digit in digits):
        raise ValueError(f"no count at {at}")
    return int(digits), stop + 1

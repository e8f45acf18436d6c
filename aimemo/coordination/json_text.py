"""Values as JSON: text that a client which decodes replies can read, and that other languages can."""

from __future__ import annotations

import json
from typing import Any

from aimemo.errors import CodecError


def to_json(value: Any) -> str:
    """A value as JSON.

    Raises:
        CodecError: for what JSON cannot hold, or would give back as something else: tuples, NaN, keys that are no text.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode()  # half a surrogate pair is no text for other languages
        is_same = _is_plain(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"{type(value).__name__} cannot be written as JSON: {type(error).__name__}") from error
    if not is_same:
        raise CodecError("only None, booleans, numbers, text, lists and dictionaries with text as keys can be JSON")
    return text


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list) else not isinstance(value, tuple)


def from_json(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
        CodecError: it is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CodecError("this is not JSON") from error

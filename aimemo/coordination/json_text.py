"""Values as JSON: text that a client which decodes replies can read, and that other languages can."""

from __future__ import annotations

import contextlib
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
        if _is_plain(value):
            return text
        fault = "only None, booleans, numbers, text, lists and dictionaries with text as keys can be JSON"
    except (TypeError, ValueError, RecursionError) as error:  # not the cause, for it may hold the value
        fault = f"{type(value).__name__} cannot be written as JSON: {type(error).__name__}"
    raise CodecError(fault)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list) else not isinstance(value, tuple)


def from_json(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
        CodecError: it is not JSON.
    """
    with contextlib.suppress(ValueError, RecursionError):  # not the cause, for it would hold the text
        return json.loads(text)
    raise CodecError("this is not JSON")

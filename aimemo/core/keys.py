"""Keys: `op:<operation>|txt:<text or digest>|<32 hex digits>`.

The last part alone decides which entry a key names: it is the first 128 bits of SHA-256 over the whole
identity of a call. The first two parts are for people and for globs.
"""

from __future__ import annotations

import hashlib
import re

import xxhash

_UNSAFE = re.compile(r"[|%\x00-\x1f\x7f\ud800-\udfff]")
_FORM = re.compile(r"op:([^|]*)\|txt:[^|]*\|([0-9a-f]{32})\Z")


def key_prefix(operation: str) -> str:
    """The part of a key that names the operation."""
    return f"op:{escape(operation)}|txt:"


def make_key(prefix: str, text: str | None, threshold: int, identity: str) -> str:
    """The key of a call.

    Args:
        prefix: as `key_prefix` gives it.
        text: the call's text, or None where it has none. At most `threshold` characters of it stay
            readable; a longer text stands as `hash:` and its xxh3-128 digest, which is a label only.
        identity: the canonical form of everything that makes two calls the same call.
    """
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{prefix}{_label(text, threshold)}|{digest}"


def _label(text: str | None, threshold: int) -> str:
    if not text:
        return ""
    if len(text) <= threshold:
        return escape(text)
    return "hash:" + xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


def escape(part: str) -> str:
    """`part` with what could end it, or could not be printed or stored, percent-encoded."""
    return _UNSAFE.sub(_percent, part)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def unescape(part: str) -> str:
    decoded = re.sub(rb"%([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), part.encode())
    return decoded.decode("utf-8", "surrogatepass")


def operation_of(key: str) -> str:
    """The operation that a key carries, or `""` for a key of another form: written by hand, by other rules."""
    match = _FORM.match(key)
    if match is None:
        return ""
    try:
        operation = unescape(match[1])
    except UnicodeError:
        return ""
    return operation if escape(operation) == match[1] else ""


def digest_of(key: str) -> str:
    """32 hex digits that stand for a key wherever the key itself, which may hold text, must not appear."""
    match = _FORM.match(key)
    return match[2] if match else hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def fingerprint(namespace: str, key: str) -> bytes:
    """16 bytes that prove, inside an envelope, which key of which namespace it belongs to."""
    return hashlib.sha256(f"{len(namespace)}:{namespace}{key}".encode("utf-8", "surrogatepass")).digest()[:16]

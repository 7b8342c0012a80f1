"""Canonical JSON (RFC 8785) and the digests that everything signed or logged is named by.

Signed documents hold no floats: numbers with fractions are integers in a stated unit (micro-epsilon, pico-delta) or
decimal strings. RFC 8785 would accept floats, but two readers may round them differently.

Without floats, and with keys in ASCII, orjson writes exactly RFC 8785's bytes, and with the look for floats takes an
eighth of the pure-Python reference's time; any other document goes to the reference. The tests hold the two against
each other.
"""

import hashlib
from typing import Any

import orjson
import rfc8785

from ringfence_policy.errors import TrustRefused

MAX_SAFE_INTEGER = 2**53 - 1


def encode(value: Any) -> bytes:
    """Serialise `value` to its one canonical byte string.

    Raises:
        TypeError: `value` holds a float or something JSON has no form for.
        ValueError: An integer lies outside +-(2**53 - 1), which RFC 8785 cannot carry exactly.
    """
    has_ascii_keys = _has_ascii_keys(value)
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS) if has_ascii_keys else rfc8785.dumps(value)
    except (orjson.JSONEncodeError, rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise ValueError(f"cannot be written as canonical JSON: {error}") from error


def decode(data: bytes) -> Any:
    """Read canonical JSON, and nothing but canonical JSON.

    Raises:
        TrustRefused: The bytes are not UTF-8 JSON, repeat a key, hold a float, or are not in canonical form.
    """
    try:
        # A repeated key is gone when the value is written again, so the comparison below finds it.
        value = orjson.loads(data)
        canonical = encode(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise TrustRefused(
            "not canonical JSON", expected="RFC 8785 bytes, no repeated keys, no floats", got=type(error).__name__
        ) from error
    if canonical != data:
        raise TrustRefused("not canonical JSON", expected="RFC 8785 bytes", got="the same content written another way")
    return value


def digest(value: Any) -> str:
    """Name `value` by the SHA-256 of its canonical bytes, as `sha256:<hex>`."""
    return digest_bytes(encode(value))


def digest_bytes(data: bytes) -> str:
    """Name a byte string by its SHA-256, as `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _has_ascii_keys(value: Any) -> bool:
    """Whether all keys are ASCII, whose order Python and RFC 8785 agree on. Refuses whatever is not canonical JSON."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if isinstance(value, dict):
        return _are_ascii(value)
    if isinstance(value, list | tuple):
        return all([type(item) is str or _has_ascii_keys(item) for item in value])  # noqa: C419 -- every item
    if isinstance(value, int):
        if not -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:
            raise ValueError("an integer is too large for canonical JSON")
        return True
    if isinstance(value, str):
        return True
    raise TypeError(f"{kind.__name__} has no place in signed or logged documents")


def _are_ascii(members: dict[Any, Any]) -> bool:
    ascii_keys = True
    for key, item in members.items():
        if not isinstance(key, str):
            raise TypeError("a key of a signed or logged document is text")
        # Every item is looked at, whatever the keys are; text, which most of them are, without a call.
        if type(item) is not str and not _has_ascii_keys(item):
            ascii_keys = False
        if not key.isascii():
            ascii_keys = False
    return ascii_keys

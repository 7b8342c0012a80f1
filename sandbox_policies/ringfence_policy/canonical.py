"""Canonical JSON (RFC 8785) and the digests that everything signed or logged is named by.

Signed documents hold no floats: numbers with fractions are integers in a stated unit (micro-epsilon, pico-delta) or
decimal strings. RFC 8785 would accept floats, but two readers may round them differently.
"""

import hashlib
import json
from typing import Any

import rfc8785

from ringfence_policy.errors import TrustRefused

MAX_SAFE_INTEGER = 2**53 - 1


def encode(value: Any) -> bytes:
    """Serialise `value` to its one canonical byte string.

    Raises:
        TypeError: `value` holds a float or something JSON has no form for.
        ValueError: An integer lies outside +-(2**53 - 1), which RFC 8785 cannot carry exactly.
    """
    _refuse_floats(value)
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise ValueError(f"cannot be written as canonical JSON: {error}") from error


def decode(data: bytes) -> Any:
    """Read canonical JSON, and nothing but canonical JSON.

    Raises:
        TrustRefused: The bytes are not UTF-8 JSON, repeat a key, hold a float, or are not in canonical form.
    """
    try:
        value = json.loads(data, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
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


def _refuse_floats(value: Any) -> None:
    if isinstance(value, float):
        raise TypeError("floats are not allowed in signed or logged documents")
    if isinstance(value, dict):
        for item in value.values():
            _refuse_floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_floats(item)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("repeated key")
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")

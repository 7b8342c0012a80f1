"""Keys, and signed documents as the one byte string that their content, type and key allow.

A document is signed as a compact JWS (RFC 7515) with Ed25519 (RFC 9864) over RFC 8785 bytes. Its header is exactly
`alg`, `kid` and `typ`, itself canonical, and base64url has one spelling only: two tokens that differ in any byte differ
in what they say. Whether a key may sign what it signed is `trust_store`'s question, not this module's.

joserfc is imported at the first signature, so that importing this module stays cheap for every command.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ringfence_policy import canonical
from ringfence_policy.errors import TrustRefused

if TYPE_CHECKING:
    from joserfc.jwk import OKPKey
    from joserfc.jws import JWSRegistry

ALGORITHM = "Ed25519"
LARGEST_PAYLOAD_BYTES = 4 * 1024 * 1024
LARGEST_TOKEN_CHARACTERS = 2 * LARGEST_PAYLOAD_BYTES
_KEY_ID = re.compile(r"[a-z0-9][a-z0-9._/-]{0,127}")
_PUBLIC_MEMBERS = {"kty": "OKP", "crv": "Ed25519"}
_KEY_BYTES = 32
_FILE_MODE = 0o600
# Enough for the papers of a thousand holders and two rounds of their checkpoints, a few kilobytes each.
_REMEMBERED_TOKENS = 8192
# Of longer ones, such as a plan for a thousand holders, only so many: anybody can send tokens, and thousands of the
# longest would fill the memory.
_LONG_TOKEN = 64 * 1024
_REMEMBERED_LONG_TOKENS = 8

_PRIME = 2**255 - 19
_ORDER_8_Y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# y coordinates of the points of small order, with the encodings that are not reduced modulo the prime. Under such a key
# one signature fits every message, so it names nobody. RFC 8032 section 5.1; the list is computed again in the tests.
_SMALL_ORDER_Y = frozenset({0, 1, _PRIME - 1, _PRIME, _PRIME + 1, _ORDER_8_Y, _PRIME - _ORDER_8_Y})


class DocumentType(StrEnum):
    """What a signed document is; part of what is signed, so that a status can never be read as a policy."""

    KEYS = "ringfence-keys+jws"
    POLICY = "ringfence-policy+jws"
    PLAN = "ringfence-plan+jws"
    STATUS = "ringfence-status+jws"
    PARTICIPATION = "ringfence-participation+jws"
    CHECKPOINT = "ringfence-checkpoint+jws"
    REQUEST = "ringfence-request+jws"
    MANIFEST = "ringfence-manifest+jws"
    REGISTRATION = "ringfence-registration+jws"
    INVITATION = "ringfence-invitation+jws"


class TrustReason(StrEnum):
    """Why a signed document is refused. The text is stable: it stands in error messages, logs and tests."""

    MALFORMED = "not a signed document"
    OVERSIZE = "the signed document is too large"
    ALGORITHM = "the signature algorithm is not allowed"
    WRONG_TYPE = "the document is of another type"
    NOT_CANONICAL = "not canonical JSON"
    SIGNATURE = "the signature does not hold"
    UNKNOWN_KEY = "the signing key is unknown, withdrawn or not valid at this time"
    WRONG_ROLE = "the key may not sign this kind of document"
    NO_KEYS = "no key list has been accepted yet"
    WRONG_SHAPE = "the document does not have the members of its type"
    WRONG_OWNER = "the document belongs to somebody else"
    REPLAYED = "an older document was replayed"
    CHANGED = "two different documents carry the same number"
    STALE = "the status is no longer fresh"
    FUTURE = "the document is dated in the future"
    SPLIT_VIEW = "the log does not extend the log that was shown before"
    WEAK_KEY = "not a usable public key"
    KEY_FILE = "the key file cannot be used"


def refusal(
    reason: TrustReason,
    *,
    expected: str | None = None,
    got: str | None = None,
    where: str | None = None,
    next_step: str | None = None,
) -> TrustRefused:
    """A `TrustRefused` whose summary is the stable `reason`."""
    return TrustRefused(reason.value, expected=expected, got=got, where=where, next_step=next_step)


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key and the name it signs under. Public.

    Attributes:
        kid: Key id, as it stands in the header of what the key signs.
        raw: The 32 bytes of RFC 8032.
    """

    kid: str
    raw: bytes

    def __post_init__(self) -> None:
        """Refuse a name that is not a plain identifier, and a key under which a signature would prove nothing."""
        if not _KEY_ID.fullmatch(self.kid):
            raise refusal(TrustReason.WEAK_KEY, expected="a key id like 'cleveland/root-1'", got="another key id")
        y_coordinate = int.from_bytes(self.raw, "little") & (2**255 - 1)
        if len(self.raw) != _KEY_BYTES or y_coordinate in _SMALL_ORDER_Y:
            raise refusal(TrustReason.WEAK_KEY, expected="32 bytes of a full-order Ed25519 key", where=self.kid)

    @property
    def jwk(self) -> dict[str, str]:
        """The key as a JSON Web Key (RFC 8037) with `kty`, `crv`, `x` and `kid`."""
        return {**_PUBLIC_MEMBERS, "x": _to_base64url(self.raw), "kid": self.kid}

    @cached_property
    def thumbprint(self) -> str:
        """The key's name by its content: SHA-256 as in RFC 7638, base64url. The `kid` is not part of it."""
        members = {**_PUBLIC_MEMBERS, "x": _to_base64url(self.raw)}
        return _to_base64url(hashlib.sha256(canonical.encode(members)).digest())

    @staticmethod
    def from_jwk(jwk: Mapping[str, Any]) -> "PublicKey":
        """Read a public JSON Web Key.

        Raises:
            TrustRefused: Members other than kty, crv, x and kid (a private key among them), or not a usable key.
        """
        wanted = {*_PUBLIC_MEMBERS, "x", "kid"}
        if set(jwk) != wanted or any(not isinstance(value, str) for value in jwk.values()):
            raise refusal(TrustReason.WEAK_KEY, expected=f"a JWK with the members {', '.join(sorted(wanted))}")
        if any(jwk[member] != value for member, value in _PUBLIC_MEMBERS.items()):
            raise refusal(TrustReason.WEAK_KEY, expected="kty OKP and crv Ed25519")
        return _public_key(jwk["kid"], jwk["x"])

    @cached_property
    def _joserfc(self) -> "OKPKey":
        return _import_key({**_PUBLIC_MEMBERS, "x": _to_base64url(self.raw)})


@lru_cache(maxsize=65_536)
def _public_key(kid: str, x: str) -> PublicKey:
    # Shared by all holders of a process: a thousand that know each other would read and keep a million keys.
    return PublicKey(kid=kid, raw=_from_base64url(x))


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 private key. Secret: never logged, shown or sent; `repr` shows the name only.

    Attributes:
        kid: Key id, as it stands in the header of what the key signs.
        seed: The 32 secret bytes of RFC 8032.
    """

    kid: str
    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse a name that is not a plain identifier, or a seed of the wrong size."""
        if not _KEY_ID.fullmatch(self.kid) or len(self.seed) != _KEY_BYTES:
            raise refusal(TrustReason.WEAK_KEY, expected="a key id like 'cleveland/root-1' and 32 secret bytes")

    @classmethod
    def generate(cls, kid: str) -> Self:
        """Make a new key from the operating system's random source."""
        return cls(kid=kid, seed=os.urandom(_KEY_BYTES))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file that `save` wrote.

        Raises:
            TrustRefused: The file is missing, readable by others, or not a key.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if mode & 0o077:
                    raise refusal(
                        TrustReason.KEY_FILE,
                        expected="a file only its owner can read (mode 0600)",
                        got=f"mode {mode:04o}",
                        where=str(path),
                        next_step=f"if nobody else has read it: chmod 600 {path}; otherwise withdraw the key",
                    )
                document = canonical.decode(file.read(64 * 1024))
            return cls(kid=document["kid"], seed=_from_base64url(document["d"]))
        except (OSError, KeyError, TypeError) as error:
            raise refusal(
                TrustReason.KEY_FILE, expected="a Ringfence key file", got=type(error).__name__, where=str(path)
            ) from None

    def save(self, path: Path) -> None:
        """Write the key to a new file with mode 0600. An existing file is never overwritten.

        Raises:
            TrustRefused: The file exists or cannot be written.
        """
        document = {**_PUBLIC_MEMBERS, "kid": self.kid, "d": _to_base64url(self.seed)}
        document["x"] = _to_base64url(self.public().raw)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), _FILE_MODE)
                file.write(canonical.encode(document))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise refusal(
                TrustReason.KEY_FILE, expected="a new, writable file", got=type(error).__name__, where=str(path)
            ) from None

    def public(self) -> PublicKey:
        """The public half, under the same name."""
        return self._public

    @cached_property
    def _public(self) -> PublicKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 (see module)

        return PublicKey(
            kid=self.kid, raw=Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        )

    @cached_property
    def _joserfc(self) -> "OKPKey":
        x = _to_base64url(self.public().raw)
        return _import_key({**_PUBLIC_MEMBERS, "x": x, "d": _to_base64url(self.seed)})


@dataclass(frozen=True)
class UnverifiedToken:
    """A token that is well formed; nothing it says has been verified yet."""

    text: str = field(repr=False)
    kid: str
    type: DocumentType

    def claimed(self) -> dict[str, Any]:
        """What the payload says, unverified: for finding out what to verify it against, and for nothing else.

        Raises:
            TrustRefused: The payload is not a canonical JSON object.
        """
        return _as_document(canonical.decode(_from_base64url(self.text.split(".")[1])), self.type)


def sign(document: Mapping[str, Any], *, type: DocumentType, key: SigningKey) -> str:  # noqa: A002 (JOSE's own word)
    """Sign a document as a compact JWS. The same document, type and key always give the same token.

    Raises:
        TypeError: The document holds a float or something JSON has no form for.
        ValueError: An integer is too large for RFC 8785, or the document is too large to be opened again.
    """
    from joserfc import jws  # noqa: PLC0415 (see module)

    # joserfc writes the header in the order of this dict, and `parse` accepts the canonical order only.
    header = {"alg": ALGORITHM, "kid": key.kid, "typ": type.value}
    payload = canonical.encode(dict(document))
    if len(payload) > LARGEST_PAYLOAD_BYTES:
        raise ValueError(f"a signed document holds at most {LARGEST_PAYLOAD_BYTES} bytes, got {len(payload)}")
    return jws.serialize_compact(header, payload, key._joserfc, algorithms=[ALGORITHM], registry=_registry())  # noqa: SLF001


def parse(token: str) -> UnverifiedToken:
    """Read the form and the header of a token without verifying it: which key claims to have signed what.

    Raises:
        TrustRefused: Not text, too large, not three base64url parts in their one spelling, another algorithm, an
            unknown type, or a header with any other member.
    """
    if not isinstance(token, str) or not token:
        raise refusal(TrustReason.MALFORMED, expected="a compact JWS", got="empty" if token == "" else "not text")
    return _parse(token) if len(token) <= _LONG_TOKEN else _parse_long(token)


@lru_cache(maxsize=_REMEMBERED_TOKENS)
def _parse(token: str) -> UnverifiedToken:
    if len(token) > LARGEST_TOKEN_CHARACTERS:
        raise refusal(TrustReason.OVERSIZE, expected=f"at most {LARGEST_TOKEN_CHARACTERS} characters")
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004 (header, payload, signature)
        raise refusal(TrustReason.MALFORMED, expected="three parts", got=f"{len(parts)}")
    header = canonical.decode(_from_base64url(parts[0]))
    _from_base64url(parts[1])
    _from_base64url(parts[2])
    if not isinstance(header, dict) or header.get("alg") != ALGORITHM:
        raise refusal(TrustReason.ALGORITHM, expected=ALGORITHM)
    if set(header) != {"alg", "kid", "typ"} or not isinstance(header["kid"], str):
        raise refusal(TrustReason.MALFORMED, expected="a header with alg, kid and typ and nothing else")
    try:
        return UnverifiedToken(text=token, kid=header["kid"], type=DocumentType(header["typ"]))
    except ValueError:
        raise refusal(TrustReason.WRONG_TYPE, expected="a document type of Ringfence") from None


@lru_cache(maxsize=_REMEMBERED_LONG_TOKENS)
def _parse_long(token: str) -> UnverifiedToken:
    return _parse.__wrapped__(token)


def open_signed(token: str | UnverifiedToken, *, type: DocumentType, key: PublicKey) -> dict[str, Any]:  # noqa: A002
    """Verify a token with one key and return the document it signs.

    Raises:
        TrustRefused: Any part of the token, its type, its key id, its signature or its payload does not hold.
    """
    document: dict[str, Any] = json.loads(open_payload(token, type=type, key=key))
    return document


def open_payload(token: str | UnverifiedToken, *, type: DocumentType, key: PublicKey) -> bytes:  # noqa: A002
    """Verify a token with one key and return the bytes it signs: one JSON object in canonical form.

    Raises:
        TrustRefused: As `open_signed`.
    """
    parsed = parse(token) if isinstance(token, str) else token
    if parsed.type is not type:
        raise refusal(TrustReason.WRONG_TYPE, expected=type.value, got=parsed.type.value)
    if parsed.kid != key.kid:
        raise refusal(TrustReason.UNKNOWN_KEY, expected=key.kid, got="another key")
    return _verified_payload(parsed, key) if len(parsed.text) <= _LONG_TOKEN else _verified_long(parsed, key)


# Whether these bytes carry this key's signature does not change with time, so each token is verified once per process,
# whoever asks. When a key may sign, and what, is asked anew every time (`trust_store`). Refusals are not remembered.
@lru_cache(maxsize=_REMEMBERED_TOKENS)
def _verified_payload(parsed: UnverifiedToken, key: PublicKey) -> bytes:
    from joserfc import jws  # noqa: PLC0415 (see module)
    from joserfc.errors import JoseError  # noqa: PLC0415 (see module)

    try:
        payload: bytes = jws.deserialize_compact(
            parsed.text,
            key._joserfc,  # noqa: SLF001
            algorithms=[ALGORITHM],
            registry=_registry(),
        ).payload
    except (JoseError, ValueError, TypeError):
        raise refusal(TrustReason.SIGNATURE, expected=f"a signature by {key.kid}", where=parsed.type.value) from None
    _as_document(canonical.decode(payload), parsed.type)
    return payload


@lru_cache(maxsize=_REMEMBERED_LONG_TOKENS)
def _verified_long(parsed: UnverifiedToken, key: PublicKey) -> bytes:
    return _verified_payload.__wrapped__(parsed, key)


def _as_document(payload: Any, document_type: DocumentType) -> dict[str, Any]:
    if not isinstance(payload, dict):
        raise refusal(TrustReason.WRONG_SHAPE, expected="a JSON object", where=document_type.value)
    return payload


@cache
def _registry() -> "JWSRegistry":
    from joserfc.jws import JWSRegistry  # noqa: PLC0415 (see module)

    # joserfc's own limit (128 kB of payload) is below a key list or manifest of a few hundred holders.
    registry = JWSRegistry(algorithms=[ALGORITHM])
    registry.max_payload_length = LARGEST_TOKEN_CHARACTERS
    return registry


def _import_key(members: Mapping[str, str]) -> "OKPKey":
    from joserfc.jwk import OKPKey  # noqa: PLC0415 (see module)

    return OKPKey.import_key(dict(members))


def _to_base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _from_base64url(text: object) -> bytes:
    if not isinstance(text, str):
        raise refusal(TrustReason.MALFORMED, expected="base64url text", got=type(text).__name__)
    # Python ignores stray characters and unused trailing bits; only text that encodes back to itself is accepted.
    try:
        data = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError, UnicodeError):
        raise refusal(TrustReason.MALFORMED, expected="base64url") from None
    if _to_base64url(data) != text:
        raise refusal(TrustReason.MALFORMED, expected="base64url in its one spelling")
    return data

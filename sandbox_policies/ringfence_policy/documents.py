"""The shapes of signed documents: key list, status, participation, checkpoint and manifest.

All times are integer milliseconds since the Unix epoch. Policies and plans have modules of their own; what
stands here surrounds them. A model reads a verified payload strictly (`from_document`) and writes it (`to_document`).
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ringfence_policy import canonical
from ringfence_policy.identity import PublicKey, TrustReason, refusal

Milliseconds = Annotated[int, Field(ge=0, le=canonical.MAX_SAFE_INTEGER)]
Count = Annotated[int, Field(ge=0, le=canonical.MAX_SAFE_INTEGER)]
Name = Annotated[str, Field(min_length=1, max_length=128)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Role(StrEnum):
    """What a key may sign. The root key signs key lists and nothing else."""

    POLICY = "policy"
    """A holder's data officer: usage policies."""
    STATUS = "status"
    """A holder's data officer or the officer's service: short-lived status, which carries revocations."""
    NODE = "node"
    """A holder's node: checkpoints of its log and its participation in a run."""
    PLAN = "plan"
    """The coordinator: training plans, requests, checkpoints of its log and evidence manifests."""


class SignedDocument(BaseModel):
    """The base of every signed shape: closed, frozen, strictly typed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def to_document(self) -> dict[str, Any]:
        """The document as it is signed."""
        return self.model_dump(mode="json")

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read a verified document.

        Raises:
            TrustRefused: It does not have exactly this shape. The message names the members, never their values.
        """
        return cls.from_payload(canonical.encode(dict(document)))

    @classmethod
    @lru_cache(maxsize=8192)
    def from_payload(cls, payload: bytes) -> Self:
        """Read a verified document from its canonical bytes; the same bytes give the same object.

        Raises:
            TrustRefused: As `from_document`.
        """
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            places = sorted({".".join(str(part) for part in item["loc"]) or "the whole" for item in error.errors()})
            raise refusal(
                TrustReason.WRONG_SHAPE, expected=cls.__name__, got=f"something else at {', '.join(places[:5])}"
            ) from None


class ListedKey(SignedDocument):
    """One key of a key list: from when to when (exclusive) it may sign, and what."""

    jwk: dict[str, str]
    from_ms: Milliseconds
    to_ms: Milliseconds
    roles: tuple[Literal["policy", "status", "node", "plan"], ...] = Field(min_length=1)

    @cached_property
    def public_key(self) -> PublicKey:
        """The key itself.

        Raises:
            TrustRefused: It is not a usable public key.
        """
        return PublicKey.from_jwk(self.jwk)

    def may_sign(self, role: Role, *, at_ms: int) -> bool:
        """Whether the key is valid for `role` at that time."""
        return role.value in self.roles and self.from_ms <= at_ms < self.to_ms


class KeyList(SignedDocument):
    """Which keys speak for a holder or the coordinator. A key that is not in the newest list is withdrawn."""

    holder_id: Name
    seq: Count
    keys: tuple[ListedKey, ...] = Field(min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _each_name_once(self) -> Self:
        names = [key.jwk.get("kid") for key in self.keys]
        if len(set(names)) != len(names):
            raise ValueError("a key id stands twice")
        return self


class RevokedPolicy(SignedDocument):
    """A policy its data officer has withdrawn."""

    policy_id: Name
    at_ms: Milliseconds
    reason: str = Field(max_length=500)
    on_revoke: Literal["stop-now", "finish-round"]


class Suspension(SignedDocument):
    """A stop of every use of the holder's data, until its data officer lifts it."""

    at_ms: Milliseconds
    reason: str = Field(max_length=500)


class Status(SignedDocument):
    """A holder's short-lived word that its policies still stand, and which do not. No fresh status, no use.

    A revocation is for good: every later status carries it. A suspension is there as long as the officer leaves it.
    """

    holder_id: Name
    seq: Count
    issued_ms: Milliseconds
    good_until_ms: Milliseconds
    revoked: tuple[RevokedPolicy, ...] = Field(default=(), max_length=10_000)
    suspended: Suspension | None = None

    def is_fresh(self, *, now_ms: int) -> bool:
        """Whether the status may be relied on at that time."""
        return self.issued_ms <= now_ms < self.good_until_ms

    def revocation_of(self, policy_id: str) -> RevokedPolicy | None:
        """The revocation of a policy, if it is revoked."""
        return next((entry for entry in self.revoked if entry.policy_id == policy_id), None)


class Participation(SignedDocument):
    """A holder's signed terms for one run: the last round its budget reaches, its public weight, what was spent before.

    `history` is the dataset's mechanisms before the run, as [mechanism document, number of uses].
    """

    holder_id: Name
    run_id: Name
    plan_digest: Digest
    last_round: Count
    history: tuple[tuple[dict[str, Any], Count], ...]
    weight: Count
    issued_ms: Milliseconds
    good_until_ms: Milliseconds


class RequestBatch(SignedDocument):
    """The coordinator's signature under the messages of one phase, so that nobody else can ask for a use.

    `root` is the RFC 9162 Merkle root over one leaf for each message (`request_leaf`), `size` their number. Each holder
    gets the proof for its own message and learns nothing of the others. `issued_ms` keeps an old message from being
    sent again much later.
    """

    root: Digest
    size: Count
    issued_ms: Milliseconds


def request_leaf(holder_id: str, message_type: str, body: bytes) -> bytes:
    """What stands in a batch for one message to one holder: for whom it is, what kind it is, and its body's digest."""
    return canonical.encode(
        {"holder_id": holder_id, "message_type": message_type, "body_digest": canonical.digest_bytes(body)}
    )


class Checkpoint(SignedDocument):
    """A log's size and Merkle root at one moment, in the words of its owner."""

    origin: Name
    size: Count
    root: Digest
    at_ms: Milliseconds

    @property
    def root_bytes(self) -> bytes:
        """The root as the 32 bytes that proofs work on."""
        return bytes.fromhex(self.root.removeprefix("sha256:"))


class Manifest(SignedDocument):
    """What an evidence bundle holds: every other file by digest, for one run."""

    run_id: Name
    coordinator: Name
    made_at_ms: Milliseconds
    rehearsal: bool
    files: dict[str, Digest]


def key_list_document(
    holder_id: str, seq: int, keys: Sequence[tuple[PublicKey, int, int, Sequence[Role]]]
) -> dict[str, Any]:
    """A key list for the root key to sign.

    Args:
        holder_id: The holder, or the coordinator, whose keys these are.
        seq: Higher than that of every earlier list.
        keys: Each key with the first millisecond it may sign in, the first in which it may not, and its roles.
    """
    listed = tuple(
        ListedKey(jwk=key.jwk, from_ms=from_ms, to_ms=to_ms, roles=tuple(sorted({role.value for role in roles})))
        for key, from_ms, to_ms, roles in keys
    )
    return KeyList(holder_id=holder_id, seq=seq, keys=listed).to_document()


def status_document(
    holder_id: str,
    *,
    seq: int,
    issued_ms: int,
    good_until_ms: int,
    revoked: Sequence[RevokedPolicy] = (),
    suspended: Suspension | None = None,
) -> dict[str, Any]:
    """A status for the status key to sign."""
    return Status(
        holder_id=holder_id,
        seq=seq,
        issued_ms=issued_ms,
        good_until_ms=good_until_ms,
        revoked=tuple(revoked),
        suspended=suspended,
    ).to_document()


def participation_document(
    *,
    holder_id: str,
    run_id: str,
    plan_digest: str,
    last_round: int,
    history: Sequence[Sequence[Any]],
    weight: int,
    issued_ms: int,
    good_until_ms: int,
) -> dict[str, Any]:
    """A holder's participation in one run, for the node key to sign."""
    return Participation(
        holder_id=holder_id,
        run_id=run_id,
        plan_digest=plan_digest,
        last_round=last_round,
        history=tuple((dict(mechanism), count) for mechanism, count in history),
        weight=weight,
        issued_ms=issued_ms,
        good_until_ms=good_until_ms,
    ).to_document()


def manifest_document(
    *, run_id: str, coordinator: str, made_at_ms: int, rehearsal: bool, files: Mapping[str, bytes]
) -> dict[str, Any]:
    """A manifest over the other files of a bundle, for the coordinator's plan key to sign."""
    return Manifest(
        run_id=run_id,
        coordinator=coordinator,
        made_at_ms=made_at_ms,
        rehearsal=rehearsal,
        files={name: canonical.digest_bytes(data) for name, data in files.items()},
    ).to_document()

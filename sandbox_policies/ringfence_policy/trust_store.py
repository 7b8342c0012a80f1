"""What one verifier remembers about one signer, so that nothing old, stale, misused or contradictory is accepted.

A store is pinned to the signer's root public key. The root signs key lists; the keys on the newest list sign the rest,
each in its role and its time. High-water marks (`memory`) must be kept by the caller over restarts: without them an old
key list, policy or status could be played again.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ringfence_policy import canonical
from ringfence_policy.documents import Checkpoint, KeyList, ListedKey, Role, Status
from ringfence_policy.identity import DocumentType, PublicKey, TrustReason, open_payload, parse, refusal
from ringfence_policy.merkle import verify_consistency

# The one role whose keys may sign each type. Checkpoints are signed by a node or by the coordinator.
_ROLES: Mapping[DocumentType, frozenset[Role]] = {
    DocumentType.POLICY: frozenset({Role.POLICY}),
    DocumentType.STATUS: frozenset({Role.STATUS}),
    DocumentType.PARTICIPATION: frozenset({Role.NODE}),
    DocumentType.CHECKPOINT: frozenset({Role.NODE, Role.PLAN}),
    DocumentType.PLAN: frozenset({Role.PLAN}),
    DocumentType.REQUEST: frozenset({Role.PLAN}),
    DocumentType.MANIFEST: frozenset({Role.PLAN}),
}


class TrustStore:
    """Accepts signed documents of one signer, and only forwards in time.

    Every method raises `TrustRefused` with a summary out of `TrustReason`; a refused document leaves no trace in the
    memory. Not safe for several threads at once.

    Attributes:
        root: The signer's root public key.
        revision: Rises whenever the memory changes, so that a caller knows when it has to be kept again.
    """

    def __init__(self, root: PublicKey, memory: Mapping[str, Any] | None = None, *, owner: str | None = None) -> None:
        """Start from a pinned root key.

        Args:
            root: The signer's root public key, learnt out of band.
            memory: What `memory()` gave before, or nothing for a first meeting.
            owner: The holder or coordinator the root belongs to. Without it the first accepted key list says so.

        Raises:
            TrustRefused: The memory belongs to another root or owner.
        """
        self.root = root
        self.revision = 0
        self._keys: dict[str, ListedKey] | None = None
        self._memory: dict[str, Any] = {
            "root": root.thumbprint, "owner": owner, "keys": None,
            "status": None, "revoked": [], "policies": {}, "logs": {},
        }  # fmt: skip
        if memory is not None:
            if memory.get("root") != root.thumbprint or owner not in (None, memory.get("owner")):
                raise refusal(TrustReason.WRONG_OWNER, expected=f"the memory of root key {root.kid}")
            self._memory.update(copy.deepcopy(dict(memory)))

    def memory(self) -> dict[str, Any]:
        """The high-water marks as plain JSON, for the caller to keep on disk."""
        return copy.deepcopy(self._memory)

    def to_json(self) -> str:
        """The high-water marks as `memory` gives them, as one line of JSON."""
        return json.dumps(self._memory, sort_keys=True)

    def catch_up(self, memory: Mapping[str, Any]) -> None:
        """Take over what another process has learnt about the same signer: of two marks, always the later one.

        Raises:
            TrustRefused: The memory belongs to another root, or knows another document under the same number.
        """
        if memory.get("root") != self.root.thumbprint:
            raise refusal(TrustReason.WRONG_OWNER, expected=f"the memory of root key {self.root.kid}")
        mine = self._memory
        before, keys_before = copy.deepcopy(mine), mine["keys"]
        for name in ("keys", "status"):
            mine[name] = _later(mine[name], memory.get(name), by="number")
        for name, by in (("policies", "number"), ("logs", "size")):
            theirs = memory.get(name, {})
            mine[name] = {key: _later(mine[name].get(key), theirs.get(key), by=by) for key in {*mine[name], *theirs}}
        if mine["keys"] != keys_before:
            self._keys = None  # the list that was loaded is withdrawn: the newer one has to be shown first
        mine["revoked"] = sorted({*mine["revoked"], *memory.get("revoked", [])})
        mine["owner"] = mine["owner"] or memory.get("owner")
        self.revision += mine != before

    @property
    def owner(self) -> str | None:
        """The holder or coordinator this signer is, once known."""
        owner: str | None = self._memory["owner"]
        return owner

    def accept_keys(self, token: str) -> KeyList:
        """Accept a key list signed by the root. From now on only its keys count; all others are withdrawn.

        Raises:
            TrustRefused: It is not the root's, is older than the newest one seen, or contradicts it.
        """
        payload = open_payload(token, type=DocumentType.KEYS, key=self.root)
        keys = KeyList.from_payload(payload)
        self._check_owner(keys.holder_id)
        mark = _forward("key list", self._memory["keys"], number=keys.seq, content=canonical.digest_bytes(payload))
        listed = {key.public_key.kid: key for key in keys.keys}
        if any(key.public_key.raw == self.root.raw for key in keys.keys):
            raise refusal(TrustReason.WRONG_ROLE, expected="the root key signs key lists and nothing else")
        self._remember(owner=keys.holder_id, keys=mark)
        self._keys = listed
        return keys

    def accept(self, token: str, *, type: DocumentType, role: Role, now_ms: int) -> dict[str, Any]:  # noqa: A002
        """Verify a document by whichever listed key signed it, in its role and its time.

        Remembers nothing: for policies, statuses and checkpoints use the methods that also refuse replays.

        Args:
            token: The compact JWS.
            type: The type it must have.
            role: The role its key must have.
            now_ms: The time at which the key must be valid: now, or the time of signing when old evidence is read.

        Raises:
            TrustRefused: Signature, type, key, role or time does not hold.
        """
        document: dict[str, Any] = json.loads(self.accept_payload(token, type=type, role=role, now_ms=now_ms))
        return document

    def accept_payload(self, token: str, *, type: DocumentType, role: Role, now_ms: int) -> bytes:  # noqa: A002
        """As `accept`, but the document as the canonical bytes that were signed.

        Raises:
            TrustRefused: As `accept`.
        """
        parsed = parse(token)
        if parsed.type is not type:
            raise refusal(TrustReason.WRONG_TYPE, expected=type.value, got=parsed.type.value)
        if role not in _ROLES.get(type, frozenset()):
            raise refusal(TrustReason.WRONG_ROLE, expected=f"a role that signs {type.value}", got=role.value)
        if self._keys is None:
            raise refusal(TrustReason.NO_KEYS, next_step="accept the signer's key list first", where=self.owner)
        listed = self._keys.get(parsed.kid)
        if listed is None or not listed.from_ms <= now_ms < listed.to_ms:
            raise refusal(TrustReason.UNKNOWN_KEY, expected="a key of the newest key list", where=self.owner)
        payload = open_payload(parsed, type=type, key=listed.public_key)
        if not listed.may_sign(role, at_ms=now_ms):
            raise refusal(
                TrustReason.WRONG_ROLE, expected=f"a key with role {role.value}", got=parsed.kid, where=self.owner
            )
        return payload

    def may_sign(self, key_id: str, *, role: Role, at_ms: int) -> bool:
        """Whether a key of that name stands on the newest key list, for that role at that time."""
        listed = (self._keys or {}).get(key_id)
        return listed is not None and listed.may_sign(role, at_ms=at_ms)

    def accept_policy(self, token: str, now_ms: int) -> dict[str, Any]:
        """Accept a usage policy: signed by the data officer, for this holder, not older than the newest one seen.

        Who signed it and when is judged here; what it says is `UsagePolicy.from_document`'s to read.

        Raises:
            TrustRefused: As in `accept`; or an older version, or other content under the same version.
        """
        payload = self.accept_payload(token, type=DocumentType.POLICY, role=Role.POLICY, now_ms=now_ms)
        document: dict[str, Any] = json.loads(payload)
        head = document.get("policy")
        policy_id, version, holder = (head.get(key) if isinstance(head, dict) else None for key in _POLICY_HEAD)
        if not isinstance(policy_id, str) or type(version) is not int:
            raise refusal(TrustReason.WRONG_SHAPE, expected="a policy with id, version and holder")
        self._check_owner(holder)
        mark = _forward(
            f"policy {policy_id}",
            self._memory["policies"].get(policy_id),
            number=version,
            content=canonical.digest_bytes(payload),
        )
        self._remember(policies={**self._memory["policies"], policy_id: mark})
        return document

    def accept_status(self, token: str, now_ms: int) -> Status:
        """Accept a status: signed by the status key, fresh, and not older than the newest one seen.

        Raises:
            TrustRefused: As in `accept`; or stale, dated in the future, replayed, or contradicting one of its number.
        """
        payload = self.accept_payload(token, type=DocumentType.STATUS, role=Role.STATUS, now_ms=now_ms)
        status = Status.from_payload(payload)
        self._check_owner(status.holder_id)
        mark = _forward("status", self._memory["status"], number=status.seq, content=canonical.digest_bytes(payload))
        if status.issued_ms > now_ms:
            raise refusal(TrustReason.FUTURE, expected=f"issued by {now_ms}", got=f"{status.issued_ms}")
        if not status.is_fresh(now_ms=now_ms):
            raise refusal(
                TrustReason.STALE,
                expected=f"good until after {now_ms}",
                got=f"{status.good_until_ms}",
                where=self.owner,
                next_step="ask the data officer for a fresh status",
            )
        revoked = sorted(entry.policy_id for entry in status.revoked)
        if not set(self._memory["revoked"]) <= set(revoked):
            raise refusal(
                TrustReason.CHANGED,
                expected="a status that still revokes what was revoked before",
                got="one that leaves a revocation out",
                where=self.owner,
                next_step="to permit again, the data officer signs a policy under a new id",
            )
        self._remember(status=mark, revoked=revoked)
        return status

    def accept_checkpoint(self, token: str, *, role: Role, now_ms: int, proof: Sequence[bytes] = ()) -> Checkpoint:
        """Accept a checkpoint of the signer's log, and that the log only grew since the last one seen.

        Args:
            token: The signed checkpoint.
            role: `Role.NODE` for a holder's log, `Role.PLAN` for the coordinator's.
            now_ms: Now.
            proof: Consistency proof from the size seen before (`known_log_size`) to this one.

        Raises:
            TrustRefused: As in `accept`; or the log was shortened, rewritten, or shown differently to someone else.
        """
        checkpoint = Checkpoint.from_payload(
            self.accept_payload(token, type=DocumentType.CHECKPOINT, role=role, now_ms=now_ms)
        )
        seen = self._memory["logs"].get(checkpoint.origin, {"size": 0, "root": _EMPTY})
        extends = verify_consistency(
            old_size=seen["size"],
            new_size=checkpoint.size,
            old_root=bytes.fromhex(seen["root"].removeprefix("sha256:")),
            new_root=checkpoint.root_bytes,
            proof=proof,
        )
        if not extends:
            raise refusal(
                TrustReason.SPLIT_VIEW,
                expected=f"a log that extends the {seen['size']} records seen before",
                got=f"{checkpoint.size} records that do not",
                where=checkpoint.origin,
                next_step="keep both checkpoints: together they are signed proof",
            )
        shown = {"size": checkpoint.size, "root": checkpoint.root}
        self._remember(logs={**self._memory["logs"], checkpoint.origin: shown})
        return checkpoint

    def known_log_size(self, origin: str) -> int:
        """How many records of a log this verifier has seen a checkpoint for."""
        size: int = self._memory["logs"].get(origin, {"size": 0})["size"]
        return size

    @property
    def largest_log_size(self) -> int:
        """How many records of the signer's log this verifier has seen a checkpoint for, whatever the log is called."""
        return max((log["size"] for log in self._memory["logs"].values()), default=0)

    def _remember(self, **marks: Any) -> None:
        if any(self._memory[name] != mark for name, mark in marks.items()):
            self._memory.update(marks)
            self.revision += 1

    def _check_owner(self, claimed: object) -> None:
        if not isinstance(claimed, str) or self.owner not in (None, claimed):
            raise refusal(TrustReason.WRONG_OWNER, expected=self.owner, got="a document of somebody else")


_POLICY_HEAD = ("id", "version", "holder")  # of the signed document's `policy` table
_EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def _later(mine: dict[str, Any] | None, theirs: dict[str, Any] | None, *, by: str) -> dict[str, Any] | None:
    if mine is None or theirs is None:
        return copy.deepcopy(mine or theirs)
    if mine[by] == theirs[by] and mine != theirs:
        raise refusal(TrustReason.CHANGED, expected=f"{mine}", got=f"{theirs}")
    return copy.deepcopy(theirs) if theirs[by] > mine[by] else mine


def _forward(what: str, mark: Mapping[str, Any] | None, *, number: int, content: str) -> dict[str, Any]:
    if mark is not None and number < mark["number"]:
        raise refusal(TrustReason.REPLAYED, expected=f"{what} {mark['number']} or newer", got=f"{number}")
    if mark is not None and number == mark["number"] and content != mark["digest"]:
        raise refusal(
            TrustReason.CHANGED, expected=f"{what} {number} with digest {mark['digest']}", got=f"digest {content}"
        )
    return {"number": number, "digest": content}

"""Use cases of evidence: has a run's been verified, hand it out, and show any record of it with its proof."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ringfence_policy import bundle_layout as layout
from ringfence_policy import canonical, merkle
from ringfence_policy.bundle import read_bundle
from ringfence_policy.documents import Checkpoint
from ringfence_policy.errors import Conflict, NotKnown
from ringfence_policy.identity import parse
from ringfence_policy.ledger import now_ms
from ringfence_policy.verify import UNPROVEN, roots_document, verify_bundle
from ringfence_server.control.access import AccessCases
from ringfence_server.control.actor import Actor, Role
from ringfence_server.control.permissions import Act, allow
from ringfence_server.control.site import Site
from ringfence_server.control.store.engine import Store
from ringfence_server.control.store.tables import RunRow
from ringfence_server.control.views import CheckView, EntryView, EvidenceView, ProofView, Reason
from ringfence_server.evidence import roots_of_run
from ringfence_server.run_file import RunFile

_BUNDLE = "evidence.zip"
_COORDINATOR = "coordinator"


class EvidenceCases:
    """What is asked about evidence.

    Args:
        site: Where runs wrote it.
        store: Which runs there are.
        access: Notes what a regulator reads.
    """

    def __init__(self, site: Site, store: Store, access: AccessCases) -> None:
        self._site = site
        self._store = store
        self._access = access

    def status(self, actor: Actor, run_id: str) -> EvidenceView:
        """Verify a run's evidence, as anybody could offline. The same bundle is verified once.

        Raises:
            NotKnown: There is no such run.
        """
        allow(actor, Act.VERIFY)
        self._access.note_read(actor, f"evidence of run {run_id}")
        path = self._path(run_id)
        if not _lies_there(path):
            return EvidenceView(
                run_id=run_id, state="not there yet", digest="", rehearsal=False, checks=(), not_proved=UNPROVEN
            )
        return _verified(path, canonical.digest_bytes(path.read_bytes()), run_id)

    def bundle(self, actor: Actor, run_id: str) -> Path:
        """The bundle itself, to be handed out.

        Raises:
            NotKnown: There is no such run.
            Conflict: It has no evidence yet.
        """
        allow(actor, Act.EXPORT)
        self._access.note_read(actor, f"bundle of run {run_id}")
        return self._bundle(run_id)

    def roots(self, actor: Actor, run_id: str) -> dict[str, Any]:
        """The root keys as the coordinator learnt them. Whoever verifies should learn them from their owners.

        Raises:
            NotKnown: There is no such run.
            Conflict: It has no evidence yet.
        """
        allow(actor, Act.EXPORT)
        self._access.note_read(actor, f"bundle of run {run_id}")
        return roots_document(roots_of_run(RunFile.load(self._bundle(run_id).parent)))

    def entries(self, actor: Actor, run_id: str, owner: str) -> tuple[EntryView, ...]:
        """The records of one log that are about this run. A data officer sees its own log and the coordinator's.

        Args:
            actor: Who asks.
            run_id: The run.
            owner: "coordinator" or a holder's id.

        Raises:
            NotKnown: There is no such run or log.
            Conflict: The run has no evidence yet.
        """
        self._may_inspect(actor, owner)
        self._access.note_read(actor, f"{owner}'s log, run {run_id}")
        lines = _lines(self._bundle(run_id), owner)
        found = []
        for position, line in enumerate(lines):
            record = json.loads(line)
            if record["run"] == run_id:
                found.append(
                    EntryView(
                        owner=owner,
                        position=position,
                        kind=record["kind"],
                        at_ms=record["at_ms"],
                        round=record["round"],
                        summary=_summary(record),
                    )
                )
        return tuple(found)

    def proof(self, actor: Actor, run_id: str, owner: str, position: int) -> ProofView:
        """One record of a log, with the path of hashes to the root that its owner signed.

        Raises:
            NotKnown: There is no such run, log or record.
            Conflict: The run has no evidence yet.
        """
        self._may_inspect(actor, owner)
        self._access.note_read(actor, f"record {position} of {owner}'s log, run {run_id}")
        path = self._bundle(run_id)
        lines = _lines(path, owner)
        if not 0 <= position < len(lines):
            raise NotKnown("there is no such record")
        token = parse(read_bundle(path)[f"{_place(owner)}/{layout.CHECKPOINT}"].decode())
        signed = Checkpoint.from_document(token.claimed())
        leaves = [merkle.leaf_hash(line) for line in lines]
        leaf, root = leaves[position], merkle.root_of(leaves)
        way = merkle.inclusion_proof(position, len(leaves), merkle.leaf_hashes(leaves))
        record = json.loads(lines[position])
        return ProofView(
            owner=owner,
            position=position,
            size=len(lines),
            record=record,
            reasons=_reasons(record),
            leaf=leaf.hex(),
            path=tuple(node.hex() for node in way),
            root=root.hex(),
            signed_by=token.kid,
            holds=(signed.size, signed.root_bytes) == (len(lines), root)
            and merkle.verify_inclusion(index=position, size=len(lines), leaf=leaf, proof=way, root=root),
        )

    def _may_inspect(self, actor: Actor, owner: str) -> None:
        allow(actor, Act.INSPECT, holder=None if owner == _COORDINATOR else owner)
        if actor.role is not Role.HOLDER and owner != _COORDINATOR:
            self._site.holder(owner)

    def _bundle(self, run_id: str) -> Path:
        path = self._path(run_id)
        if not _lies_there(path):
            raise Conflict("this run has no evidence yet", next_step="it is gathered when the run ends")
        return path

    def _path(self, run_id: str) -> Path:
        with self._store.read() as db:
            if db.get(RunRow, run_id) is None:
                raise NotKnown("there is no such run")
        # What is in the store was named by us: it is no path out of here.
        return self._site.directory / "runs" / run_id / _BUNDLE


def _lies_there(path: Path) -> bool:
    """Whether a bundle is there: itself, and not a link by which another file of this machine would be handed out."""
    return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()


@lru_cache(maxsize=32)
def _verified(path: Path, digest: str, run_id: str) -> EvidenceView:
    found = verify_bundle(path, roots_of_run(RunFile.load(path.parent)), now_ms=now_ms())
    return EvidenceView(
        run_id=run_id,
        state="verified" if found.passed else "not verified",
        digest=digest,
        rehearsal=found.rehearsal,
        checks=tuple(CheckView(name=one.name, passed=one.passed, detail=one.detail) for one in found.checks),
        not_proved=tuple(UNPROVEN),
    )


def _place(owner: str) -> str:
    return _COORDINATOR if owner == _COORDINATOR else f"holders/{owner}"


def _lines(path: Path, owner: str) -> list[bytes]:
    data = read_bundle(path).get(f"{_place(owner)}/{layout.LOG}")
    if data is None:
        raise NotKnown("there is no such log in this evidence")
    return data.splitlines()


def _summary(record: Mapping[str, Any]) -> str:
    decision = record.get("decision")
    if decision is None:
        return str(record.get("reason") or record.get("code") or "")
    failed = ", ".join(one["clause"] for one in decision["failed"])
    return f"{decision['effect']} {record['action']}, {decision['point']}" + (f": {failed}" if failed else "")


def _reasons(record: Mapping[str, Any]) -> tuple[Reason, ...]:
    decision = record.get("decision") or {}
    return tuple(
        Reason(clause=one["clause"], sentence=one["meaning"], limit=one["limit"]) for one in decision.get("failed", ())
    )

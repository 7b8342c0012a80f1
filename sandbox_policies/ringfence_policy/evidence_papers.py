"""Opening a bundle's signed papers and logs: who signed what, under which root key, and whether each log is whole.

Everything here is checked by signature, digest or re-hashing alone. What the records mean is for the modules beside
this one: `evidence_exchange`, `evidence_rounds`, `evidence_decisions` and `evidence_budget`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from ringfence_policy import bundle_layout as layout
from ringfence_policy import canonical, merkle
from ringfence_policy.documents import Checkpoint, Manifest, Participation, Role, Status
from ringfence_policy.errors import EvidenceRefused
from ringfence_policy.evidence_records import (
    COORDINATOR_RECORDS,
    HOLDER_RECORDS,
    HolderDecision,
    Record,
    Spending,
    parse_line,
)
from ringfence_policy.identity import DocumentType, PublicKey, parse
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.trust_store import TrustStore
from ringfence_policy.verification import Findings, Report, attempt

T = TypeVar("T")


@dataclass(frozen=True)
class Roots:
    """The root public keys a verifier learnt out of band: the only thing it needs beside the bundle."""

    coordinator_id: str
    coordinator: PublicKey
    holders: Mapping[str, PublicKey]


@dataclass(frozen=True)
class Entry:
    """One record with its place: `owner` is "coordinator" or "holder <id>"."""

    owner: str
    position: int
    record: Record

    def __str__(self) -> str:
        kind = getattr(self.record, "kind", "record")
        where = f", round {self.record.round}" if self.record.round else ""
        return f"{self.owner}{where}, record {self.position} ({kind})"


@dataclass(frozen=True)
class LogEvidence:
    """One exported log.

    Attributes:
        owner: "coordinator" or "holder <id>".
        leaves: The leaf hash of every line.
        entries: Every record that could be read, with its place.
        checkpoint: The signed checkpoint it was exported with, or None where that does not hold.
    """

    owner: str
    leaves: tuple[bytes, ...]
    entries: tuple[Entry, ...]
    checkpoint: Checkpoint | None


@dataclass(frozen=True)
class SignedPolicy:
    """A policy whose signature held, and the key that made it."""

    policy: UsagePolicy
    key_id: str


@dataclass(frozen=True)
class HolderEvidence:
    """All that a bundle holds of one data holder, as far as it could be verified."""

    holder_id: str
    store: TrustStore
    log: LogEvidence
    policies: Mapping[str, SignedPolicy]
    status: Status | None
    participation: Participation | None


@dataclass(frozen=True)
class Evidence:
    """A bundle whose manifest and plan hold: what the other checks work on."""

    files: Mapping[str, bytes]
    manifest: Manifest
    plan: TrainingPlan
    plan_digest: str
    store: TrustStore
    log: LogEvidence
    holders: Mapping[str, HolderEvidence] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """The run the bundle is about."""
        return self.manifest.run_id

    @cached_property
    def of_run(self) -> tuple[Entry, ...]:
        """The coordinator's records of this run, in order."""
        return tuple(entry for entry in self.log.entries if entry.record.run == self.run_id)


def open_papers(files: Mapping[str, bytes], roots: Roots, findings: Findings, *, now_ms: int | None) -> Evidence | None:
    """Open everything signed. None where manifest or plan are not the coordinator's: then nothing else matters."""
    store = TrustStore(roots.coordinator, owner=roots.coordinator_id)
    manifest, document, plan, log = None, None, None, None
    with findings.checking("manifest", passed="signed by the coordinator; every file is the one it lists") as report:
        manifest = _manifest(files, store, now_ms)
        _check_files(files, manifest, report)
    if manifest is None:
        return None
    with findings.checking("plan", passed="signed by the coordinator; names exactly these holders and keys") as report:
        document = store.accept(
            _text(files, layout.PLAN), type=DocumentType.PLAN, role=Role.PLAN, now_ms=manifest.made_at_ms
        )
        plan = TrainingPlan.from_document(document)
        _check_plan(plan, files, roots, report)
    if document is None or plan is None:
        return None
    stores = _key_lists(files, roots, plan, findings)
    with findings.checking("logs", passed="every log hashes to the checkpoint its owner signed") as report:
        log = attempt(_log, files, "coordinator", store, report, report=report, where="coordinator")
        found = {
            holder: attempt(_log, files, f"holder {holder}", stores[holder], report, report=report, where=holder)
            for holder in stores
        }
        logs = {holder: one for holder, one in found.items() if one is not None}
        _check_origins([one for one in (log, *logs.values()) if one is not None], report)
    if log is None:
        return None
    evidence = Evidence(files, manifest, plan, canonical.digest(document), store, log)
    return replace(evidence, holders=_holders(evidence, {holder: stores[holder] for holder in logs}, logs, findings))


def _manifest(files: Mapping[str, bytes], store: TrustStore, now_ms: int | None) -> Manifest:
    store.accept_keys(_text(files, layout.coordinator_file(layout.KEYS)))
    token = _text(files, layout.MANIFEST)
    claimed = Manifest.from_document(parse(token).claimed())
    manifest = Manifest.from_document(
        store.accept(token, type=DocumentType.MANIFEST, role=Role.PLAN, now_ms=claimed.made_at_ms)
    )
    if manifest.coordinator != store.owner:
        raise EvidenceRefused("the manifest is another coordinator's", expected=store.owner, got=manifest.coordinator)
    if now_ms is not None and manifest.made_at_ms > now_ms:
        raise EvidenceRefused(
            "the manifest is dated in the future", expected=f"by {now_ms}", got=f"{manifest.made_at_ms}"
        )
    return manifest


def _check_files(files: Mapping[str, bytes], manifest: Manifest, report: Report) -> None:
    others = {name: canonical.digest_bytes(data) for name, data in files.items() if name != layout.MANIFEST}
    for name in sorted(others.keys() | manifest.files.keys()):
        if name not in others:
            report(f"{name}: listed in the manifest, but not in the bundle")
        elif name not in manifest.files:
            report(f"{name}: in the bundle, but not listed in the manifest")
        elif others[name] != manifest.files[name]:
            report(f"{name}: not the file the coordinator listed (expected {manifest.files[name]}, got {others[name]})")
    missing, unknown = layout.misplaced(files)
    for name in missing:
        report(f"{name}: missing")
    for name in unknown:
        report(f"{name}: does not belong in an evidence bundle, and nobody would check it")


def _check_plan(plan: TrainingPlan, files: Mapping[str, bytes], roots: Roots, report: Report) -> None:
    if plan.terms.coordinator != roots.coordinator_id:
        report(f"the plan is of coordinator {plan.terms.coordinator}, not {roots.coordinator_id}")
    present = layout.holders_in(files)
    for holder in sorted({*plan.holders, *present}):
        if holder not in plan.holders:
            report(f"holder {holder}: has files here, but is not in the plan")
        elif holder not in present:
            report(f"holder {holder}: is in the plan, but its log and papers are missing")
        elif holder not in roots.holders:
            report(f"holder {holder}: no root key was given for it, so nothing it signed can be judged")
        elif plan.holders[holder].root_thumbprint != roots.holders[holder].thumbprint:
            report(f"holder {holder}: the plan names another root key than the one given")


def _key_lists(
    files: Mapping[str, bytes], roots: Roots, plan: TrainingPlan, findings: Findings
) -> Mapping[str, TrustStore]:
    def open_store(holder: str) -> TrustStore:
        store = TrustStore(roots.holders[holder], owner=holder)
        store.accept_keys(_text(files, layout.holder_file(holder, layout.KEYS)))
        return store

    known = sorted(plan.holders.keys() & roots.holders.keys() & set(layout.holders_in(files)))
    with findings.checking("keys", passed="every key list is signed by the root key given for its owner") as report:
        opened = {holder: attempt(open_store, holder, report=report, where=f"holder {holder}") for holder in known}
    return {holder: store for holder, store in opened.items() if store is not None}


def _log(files: Mapping[str, bytes], owner: str, store: TrustStore, report: Report) -> LogEvidence:
    place = "coordinator" if owner == "coordinator" else f"holders/{owner.removeprefix('holder ')}"
    shapes = COORDINATOR_RECORDS if owner == "coordinator" else HOLDER_RECORDS
    data = files[f"{place}/{layout.LOG}"]
    lines = data.split(b"\n")
    if lines.pop() != b"":
        report(f"{owner}: the log does not end with a whole line")
    entries = []
    for position, line in enumerate(lines):
        record = attempt(_record, line, report=report, where=f"{owner}, record {position}")
        if record is not None and not isinstance(record, shapes):
            report(f"{owner}, record {position}: this kind of record does not belong in this log")
        elif record is not None:
            entries.append(Entry(owner, position, record))
    leaves = tuple(merkle.leaf_hash(line) for line in lines)
    role = Role.PLAN if owner == "coordinator" else Role.NODE
    token = _text(files, f"{place}/{layout.CHECKPOINT}")
    checkpoint = attempt(open_checkpoint, store, token, role, report=report, where=f"{owner}, final checkpoint")
    if checkpoint is not None and checkpoint.size != len(lines):
        report(f"{owner}: {len(lines)} records are here, {checkpoint.size} were signed: records were dropped or added")
    elif checkpoint is not None and checkpoint.root_bytes != merkle.root_of(leaves):
        report(f"{owner}: the records are not the ones that were signed: one was changed, replaced or moved")
    return LogEvidence(owner, leaves, tuple(entries), checkpoint)


def open_checkpoint(store: TrustStore, token: str, role: Role) -> Checkpoint:
    """Verify a checkpoint by a key that was valid when, by its own word, it was made.

    Raises:
        TrustRefused: It is not the signer's.
    """
    claimed = Checkpoint.from_document(parse(token).claimed())
    document = store.accept(token, type=DocumentType.CHECKPOINT, role=role, now_ms=claimed.at_ms)
    return Checkpoint.from_document(document)


def _check_origins(logs: Sequence[LogEvidence], report: Report) -> None:
    owners: dict[str, str] = {}
    for log in logs:
        if log.checkpoint is not None:
            other = owners.setdefault(log.checkpoint.origin, log.owner)
            if other != log.owner:
                report(f"{log.owner} and {other} sign for one and the same log, {log.checkpoint.origin}")


def _holders(
    evidence: Evidence, stores: Mapping[str, TrustStore], logs: Mapping[str, LogEvidence], findings: Findings
) -> Mapping[str, HolderEvidence]:
    policies: dict[str, dict[str, SignedPolicy]] = {}
    status: dict[str, Status | None] = {}
    participation: dict[str, Participation | None] = {}
    with findings.checking("policies", passed="every policy is signed by its data officer's key") as report:
        for holder in stores:
            policies[holder] = _policies(evidence, stores[holder], logs[holder], report)
            _check_present(evidence, logs[holder], policies[holder], "policy", report)
    with findings.checking("status", passed="every holder's status is signed by its status key") as report:
        for holder in stores:
            status[holder] = _read(_status, evidence, stores[holder], holder, report=report)
            _check_present(evidence, logs[holder], status[holder], "status", report)
    with findings.checking("participation", passed="every holder signed its terms for this run and plan") as report:
        for holder in stores:
            participation[holder] = _read(_participation, evidence, stores[holder], holder, report=report)
            _check_present(evidence, logs[holder], participation[holder], "participation", report)
    return {
        holder: HolderEvidence(
            holder, stores[holder], logs[holder], policies[holder], status[holder], participation[holder]
        )
        for holder in stores
    }


def _read(
    read: Callable[[Evidence, TrustStore, str], T | None],
    evidence: Evidence,
    store: TrustStore,
    holder: str,
    *,
    report: Report,
) -> T | None:
    return attempt(read, evidence, store, holder, report=report, where=f"holder {holder}")


def _check_present(evidence: Evidence, log: LogEvidence, found: object, what: str, report: Report) -> None:
    # A holder that refused at once may have no valid terms; one whose data was used must have them here.
    used = any(one.record.run == evidence.run_id and isinstance(one.record, Spending) for one in log.entries)
    if used and not found:
        report(f"{log.owner}: its data was used, and no valid {what} of it is here")


def _policies(evidence: Evidence, store: TrustStore, log: LogEvidence, report: Report) -> dict[str, SignedPolicy]:
    holder = log.owner.removeprefix("holder ")
    used_at: dict[str, int] = {}
    for entry in log.entries:
        if isinstance(entry.record, HolderDecision):
            used_at.setdefault(str(entry.record.decision.get("policy")), entry.record.at_ms)

    def open_policy(name: str) -> SignedPolicy:
        token = _text(evidence.files, name)
        claimed = UsagePolicy.from_document(parse(token).claimed())
        at_ms = used_at.get(claimed.reference, evidence.manifest.made_at_ms)
        if not store.may_sign(parse(token).kid, role=Role.POLICY, at_ms=at_ms):
            at_ms = evidence.manifest.made_at_ms  # signed again when its key was replaced, after it had been used
        policy = UsagePolicy.from_document(store.accept_policy(token, at_ms))
        if layout.policy_file(holder, policy.policy_id, policy.version) != name:
            raise EvidenceRefused("a policy lies under another's name", got=policy.reference)
        return SignedPolicy(policy, parse(token).kid)

    opened: dict[str, SignedPolicy] = {}
    # In the order of versions: the store refuses to go back.
    for name in sorted(layout.policies_in(evidence.files, holder), key=_version_in):
        found = attempt(open_policy, name, report=report, where=name)
        if found is not None:
            opened[found.policy.reference] = found
    return opened


def _version_in(name: str) -> tuple[int, str]:
    number = name.removesuffix(".jws").rsplit("-", 1)[-1]
    return (int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else 0, name)  # noqa: PLR2004


def _status(evidence: Evidence, store: TrustStore, holder: str) -> Status | None:
    name = layout.holder_file(holder, layout.STATUS)
    if name not in evidence.files:
        return None
    token = _text(evidence.files, name)
    claimed = Status.from_document(parse(token).claimed())
    # Fresh or stale is the log's question, at each decision; here only who signed it, when it was issued.
    return store.accept_status(token, claimed.issued_ms)


def _participation(evidence: Evidence, store: TrustStore, holder: str) -> Participation | None:
    name = layout.holder_file(holder, layout.PARTICIPATION)
    if name not in evidence.files:
        return None
    token = _text(evidence.files, name)
    claimed = Participation.from_document(parse(token).claimed())
    found = Participation.from_document(
        store.accept(token, type=DocumentType.PARTICIPATION, role=Role.NODE, now_ms=claimed.issued_ms)
    )
    expected = (holder, evidence.run_id, evidence.plan_digest, evidence.plan.holders[holder].weight)
    got = (found.holder_id, found.run_id, found.plan_digest, found.weight)
    if got != expected:
        raise EvidenceRefused(
            "the terms are for another holder, run, plan or weight", expected=f"{expected}", got=f"{got}"
        )
    return found


def _text(files: Mapping[str, bytes], name: str) -> str:
    try:
        return files[name].decode("ascii")
    except (KeyError, UnicodeDecodeError):
        raise EvidenceRefused("a signed paper is missing or is not text", where=name) from None


def _record(line: bytes) -> Record:
    value = canonical.decode(line)
    if not isinstance(value, dict):
        raise EvidenceRefused("a log line is not a record")
    return parse_line(value, line)

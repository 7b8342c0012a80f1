"""Whether the logs in a bundle are the logs that were shown during the run: the checkpoints that peers wrote down.

A holder cannot re-write its own log once the coordinator has recorded a checkpoint of it, nor the coordinator its log
once a holder has. Each such checkpoint must be the root of a true prefix of the exported log; where it is not, the
witness's own signed log says between which records the difference lies.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ringfence_policy import merkle
from ringfence_policy.documents import Checkpoint, Role
from ringfence_policy.errors import RingfenceError
from ringfence_policy.evidence_papers import Entry, Evidence, LogEvidence, open_checkpoint
from ringfence_policy.evidence_records import (
    ModelReleased,
    PeerCheckpointAtCoordinator,
    PeerCheckpointAtHolder,
    RoundCommitted,
    Sent,
)
from ringfence_policy.verification import Findings, Report, attempt


@dataclass(frozen=True)
class _Sighting:
    """A checkpoint of one log as a record of another log."""

    witness: Entry
    checkpoint: Checkpoint


def check_exchange(evidence: Evidence, findings: Findings) -> None:
    """Compare every checkpoint that a peer recorded with the log it is of, and find what no peer ever saw."""
    of_holders: dict[str, list[_Sighting]] = {holder: [] for holder in evidence.holders}
    of_coordinator: list[_Sighting] = []
    with findings.checking("exchanged checkpoints", passed="the logs here are the ones shown during the run") as report:
        for entry in evidence.of_run:
            if isinstance(entry.record, PeerCheckpointAtCoordinator):
                _take_holders(entry, entry.record, evidence, of_holders, report)
        for holder in evidence.holders.values():
            for entry in holder.log.entries:
                if isinstance(entry.record, PeerCheckpointAtHolder):
                    _take_coordinators(entry, entry.record, evidence, of_coordinator, report)
        for holder_id, sightings in of_holders.items():
            _compare(evidence.holders[holder_id].log, sightings, report)
        _compare(evidence.log, of_coordinator, report)
    with findings.checking("witnesses", passed="every committed round was shown to the other side") as report:
        _check_witnessed(evidence, of_holders, of_coordinator, report)


def _take_holders(
    entry: Entry,
    record: PeerCheckpointAtCoordinator,
    evidence: Evidence,
    sightings: Mapping[str, list[_Sighting]],
    report: Report,
) -> None:
    holder = evidence.holders.get(record.holder)
    if holder is None:
        report(f"{entry}: is of {record.holder}, whose log is not here")
        return
    checkpoint = attempt(open_checkpoint, holder.store, record.checkpoint, Role.NODE, report=report, where=str(entry))
    if checkpoint is not None:
        sightings[record.holder].append(_Sighting(entry, checkpoint))


def _take_coordinators(
    entry: Entry, record: PeerCheckpointAtHolder, evidence: Evidence, sightings: list[_Sighting], report: Report
) -> None:
    try:
        checkpoint = open_checkpoint(evidence.store, record.checkpoint, Role.PLAN)
    except RingfenceError as error:
        # A holder's log spans runs; those of other coordinators, or under keys since withdrawn, are not judged here.
        if entry.record.run == evidence.run_id:
            report(f"{entry}: not a checkpoint of this coordinator ({' '.join(str(error).split())})")
        return
    sightings.append(_Sighting(entry, checkpoint))


def _compare(log: LogEvidence, sightings: Iterable[_Sighting], report: Report) -> None:
    roots = merkle.prefix_roots(log.leaves, [seen.checkpoint.size for seen in sightings])
    agreed = 0
    for seen in sorted(sightings, key=lambda seen: seen.checkpoint.size):
        size = seen.checkpoint.size
        if log.checkpoint is not None and seen.checkpoint.origin != log.checkpoint.origin:
            report(f"{seen.witness}: {log.owner} showed the log {seen.checkpoint.origin} there, which is not this one")
        elif size not in roots:
            report(f"{seen.witness}: {log.owner} showed {size} records there, but only {len(log.leaves)} are here")
        elif roots[size] != seen.checkpoint.root_bytes:
            report(
                f"{seen.witness}: {log.owner} showed another log there. One of its records {agreed} to {size - 1} was "
                "changed, dropped, inserted or moved, or two histories were kept"
            )
        else:
            agreed = max(agreed, size)


def _check_witnessed(
    evidence: Evidence,
    of_holders: Mapping[str, list[_Sighting]],
    of_coordinator: Iterable[_Sighting],
    report: Report,
) -> None:
    shown = {
        holder: max((seen.checkpoint.size for seen in seen_of), default=0) for holder, seen_of in of_holders.items()
    }
    for holder in evidence.holders.values():
        for entry in holder.log.entries:
            is_ours = isinstance(entry.record, Sent) and entry.record.run == evidence.run_id
            if is_ours and entry.position >= shown[holder.holder_id] and _was_used(entry, holder.holder_id, evidence):
                report(f"{entry}: the coordinator committed it without ever recording this part of the holder's log")
    seen_by_holders = max((seen.checkpoint.size for seen in of_coordinator), default=0)
    last = [entry for entry in evidence.of_run if isinstance(entry.record, RoundCommitted | ModelReleased)]
    if last and last[-1].position >= seen_by_holders:
        report(f"{last[-1]}: no holder ever recorded this part of the coordinator's log")


def _was_used(sent: Entry, holder_id: str, evidence: Evidence) -> bool:
    return any(
        isinstance(entry.record, RoundCommitted)
        and entry.record.round == sent.record.round
        and holder_id in entry.record.cohort
        for entry in evidence.of_run
    )

"""Whether a data officer's stops were kept: nothing is permitted after a revocation, nor during a suspension."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ringfence_policy.decision import Point
from ringfence_policy.documents import RevokedPolicy, Status
from ringfence_policy.evidence_papers import Entry, HolderEvidence
from ringfence_policy.evidence_records import HolderDecision, Revoked, Suspended, SuspensionLifted
from ringfence_policy.evidence_rounds import select
from ringfence_policy.verification import Report
from ringfence_policy.vocabulary import OnRevoke

_Suspension = tuple[Entry, int, Entry | None, int | None]

if TYPE_CHECKING:
    from ringfence_policy.evidence_decisions import Judged


def check_revocations(holder: HolderEvidence, own: Sequence["Judged"], report: Report) -> None:
    """Report every use that was permitted after the holder knew, or must have known, that its policy was revoked."""
    status = holder.status
    if status is None:  # none was needed, or the check of statuses has already failed
        return
    learnt = {record.policy_id: entry for entry, record in reversed(select(holder.log.entries, Revoked))}
    for policy_id, entry in learnt.items():
        if status.revocation_of(policy_id) is None:
            report(f"{entry}: the status here no longer revokes {policy_id}, and a revocation is final")
    for one, record in _permitted_uses(own):
        if (record.status_seq or 0) > status.seq:
            report(f"{one.entry}: names status {record.status_seq}, newer than the newest one here ({status.seq})")
        problem = _after_revocation(one, record, status, learnt)
        if problem is not None:
            report(f"{one.entry}: permitted {problem}")


def check_suspensions(holder: HolderEvidence, own: Sequence["Judged"], report: Report) -> None:
    """Report every use that was permitted while the holder knew, or must have known, that use was suspended."""
    suspensions = _suspensions(holder.log.entries)
    for one, record in _permitted_uses(own):
        problem = _while_suspended(holder.status, suspensions, one.entry.position, record)
        if problem is not None:
            report(f"{one.entry}: permitted {problem}")


def _permitted_uses(own: Sequence["Judged"]) -> list[tuple["Judged", HolderDecision]]:
    return [
        (one, one.entry.record)
        for one in own
        if isinstance(one.entry.record, HolderDecision) and one.permitted and one.action != "release"
    ]


def _after_revocation(one: "Judged", record: HolderDecision, status: Status, learnt: Mapping[str, Entry]) -> str | None:
    policy_id = str(one.policy).rpartition("@")[0]
    withdrawn = status.revocation_of(policy_id)
    if withdrawn is None or _may_finish(one, withdrawn):
        return None
    known_at = learnt.get(policy_id)
    if known_at is not None and known_at.position < one.entry.position:
        return f"after the node knew that {policy_id} was revoked ({known_at})"
    if record.status_seq == status.seq:
        return f"under status {status.seq}, which revokes {policy_id}"
    if record.at_ms >= withdrawn.at_ms + _lifetime_ms(status):
        return f"more than a status's lifetime after {policy_id} was revoked"
    return None


def _may_finish(one: "Judged", withdrawn: RevokedPolicy) -> bool:
    return withdrawn.on_revoke == OnRevoke.FINISH_ROUND.value and one.point is Point.BEFORE_UPLOAD


def _while_suspended(
    status: Status | None, suspensions: Sequence[_Suspension], position: int, record: HolderDecision
) -> str | None:
    for began, first, ended, last in suspensions:
        if began.position < position and (ended is None or position < ended.position):
            return f"after the node knew that use was suspended ({began})"
        if record.status_seq is not None and first <= record.status_seq and (last is None or record.status_seq < last):
            return f"under status {record.status_seq}, while use was suspended ({began})"
    if status is None or status.suspended is None:
        return None
    if record.status_seq == status.seq:
        return f"under status {status.seq}, which suspends every use"
    if record.at_ms >= status.suspended.at_ms + _lifetime_ms(status):
        return "more than a status's lifetime after use was suspended"
    return None


def _suspensions(entries: Sequence[Entry]) -> list[_Suspension]:
    """Each suspension that the log tells of: where it began and ended, each with the number of the status that said so.

    The end is None where the log tells of none.
    """
    found: list[_Suspension] = []
    for entry in entries:
        is_open = bool(found) and found[-1][2] is None
        if isinstance(entry.record, Suspended) and not is_open:
            found.append((entry, entry.record.status_seq, None, None))
        elif isinstance(entry.record, SuspensionLifted) and is_open:
            began, first, _, _ = found[-1]
            found[-1] = (began, first, entry, entry.record.status_seq)
    return found


def _lifetime_ms(status: Status) -> int:
    return status.good_until_ms - status.issued_ms

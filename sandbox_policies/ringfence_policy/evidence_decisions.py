"""Whether every use in a run was permitted, by decisions that come out the same when they are made again.

A recorded decision carries its public facts and names the signed policy it was made under. Both are taken here, the
facts are held against the signed plan, and the gate decides once more. What only the holder saw (the count of records)
is not judged: a holder's word stands for it, under a salted digest it can later be held to.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from ringfence_policy import canonical
from ringfence_policy.clauses import CLAUSES
from ringfence_policy.decision import Decision, Point
from ringfence_policy.documents import Role
from ringfence_policy.evidence_papers import Entry, Evidence, HolderEvidence, SignedPolicy
from ringfence_policy.evidence_records import (
    CoordinatorDecision,
    Evaluated,
    HolderDecision,
    ModelReleased,
    RoundCommitted,
    Sent,
    Spending,
)
from ringfence_policy.evidence_rounds import select
from ringfence_policy.evidence_stops import check_revocations, check_suspensions
from ringfence_policy.facts import Cost, use_request
from ringfence_policy.gate import PolicyGate
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.request import RoundRequest
from ringfence_policy.verification import Findings, Report, attempt
from ringfence_policy.vocabulary import Evaluation

_AT_HOLDER = frozenset({Point.BEFORE_TRAINING, Point.BEFORE_UPLOAD, Point.RELEASE})
_AT_COORDINATOR = frozenset({Point.COORDINATOR, Point.RELEASE})
_UNSIGNED = frozenset({"no-policy", "signature", "plan"})
_HOUR_MS = 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Judged:
    """What the other checks need of a recorded decision that could be read. A large run has a hundred thousand.

    Attributes:
        entry: The record.
        holder_id: The holder that it is about.
        action: What was decided on.
        hold_id: The hold it was decided for; empty at the coordinator.
        point: Where it was decided.
        permitted: Whether it is a permit.
        policy: The policy it names.
        evaluation: The evaluation it was decided for, and
        cohort_size: for how many holders; both None where it was decided on no facts.
    """

    entry: Entry
    holder_id: str
    action: str
    hold_id: str
    point: Point
    permitted: bool
    policy: str | None
    evaluation: Evaluation | None = None
    cohort_size: int | None = None


@dataclass
class _Judge:
    """Decides again. Gates are compiled once per policy."""

    evidence: Evidence
    report: Report
    gates: dict[str, PolicyGate] = field(default_factory=dict)

    def judge(self, entry: Entry, record: HolderDecision | CoordinatorDecision, holder_id: str) -> Judged:
        """Read one recorded decision and decide it again; what differs is reported."""
        decision = Decision.from_document(record.decision)
        points = _AT_HOLDER if isinstance(record, HolderDecision) else _AT_COORDINATOR
        if decision.point not in points:
            self.report(f"{entry}: decided at {decision.point.value}, which is not this side's to decide")
        hold_id = record.hold_id if isinstance(record, HolderDecision) else ""
        judged = Judged(entry, holder_id, record.action, hold_id, decision.point, decision.permitted, decision.policy)
        if record.inputs is None:
            if decision.permitted:
                self.report(f"{entry}: a permit without the facts it was given on")
            return judged
        request = RoundRequest.from_public_facts(record.inputs)
        if canonical.digest(record.inputs) != decision.inputs_digest:
            self.report(f"{entry}: the facts are not the ones that were decided on")
        if request.action.value != record.action:
            self.report(f"{entry}: recorded as {record.action}, decided as {request.action.value}")
        if abs(_milliseconds(request) - record.at_ms) > _HOUR_MS:
            self.report(f"{entry}: decided for {request.now.isoformat()}, more than an hour off its record")
        self._decide_again(entry, record, holder_id, decision, request)
        return replace(judged, evaluation=request.evaluation, cohort_size=request.holders)

    def _decide_again(
        self,
        entry: Entry,
        record: HolderDecision | CoordinatorDecision,
        holder_id: str,
        decision: Decision,
        request: RoundRequest,
    ) -> None:
        if not decision.permitted and (decision.policy is None or _UNSIGNED & set(decision.clauses)):
            return  # refused before its policy or plan was trusted, so there are no signed terms to decide it by
        signed = self.evidence.holders[holder_id].policies.get(str(decision.policy))
        if signed is None:
            self.report(f"{entry}: decided under policy {decision.policy}, which holder {holder_id} did not sign here")
            return
        if decision.policy_digest != signed.policy.digest:
            self.report(f"{entry}: decided under another text of policy {decision.policy} than the signed one")
            return
        if isinstance(record, HolderDecision) and not self._signed_then(record, signed, holder_id):
            self.report(
                f"{entry}: names key {record.policy_key_id}; policy {decision.policy} is signed by {signed.key_id}"
            )
        for name in _differences(request, _as_planned(self.evidence.plan, signed.policy, request)):
            self.report(f"{entry}: {name} is not what the signed plan and policy say")
        again = self._gate(signed.policy).redecide(request, point=decision.point)
        missing = sorted(set(again.clauses) - set(decision.clauses))
        if missing and decision.permitted:
            self.report(f"{entry}: a permit, but the policy refuses these facts: {', '.join(missing)}")
        elif missing:
            self.report(f"{entry}: the denial leaves out {', '.join(missing)}")
        judgeable = CLAUSES.keys() - set(again.not_judged)
        made_up = sorted((set(decision.clauses) & judgeable) - set(again.clauses))
        if made_up:
            self.report(f"{entry}: a denial for {', '.join(made_up)}, which the policy does not refuse on these facts")

    def _gate(self, policy: UsagePolicy) -> PolicyGate:
        gate = self.gates.get(policy.digest)
        if gate is None:
            gate = self.gates[policy.digest] = PolicyGate(policy)
        return gate

    def _signed_then(self, record: HolderDecision, signed: SignedPolicy, holder_id: str) -> bool:
        # The same text is signed again when its key is replaced. Then the record names the key of its own time, which
        # has to be one of the data officer's that could sign policies when the use was decided.
        if record.policy_key_id == signed.key_id:
            return True
        return self.evidence.holders[holder_id].store.may_sign(
            str(record.policy_key_id), role=Role.POLICY, at_ms=record.at_ms
        )


def check_decisions(evidence: Evidence, findings: Findings) -> None:
    """Decide everything again, then hold every use against the decisions that came before it."""
    judged: list[Judged] = []
    with findings.checking("decisions", passed="every decision comes out the same when it is made again") as report:
        judged = _judge_all(evidence, report)
    own = _by_holder(judged)
    with findings.checking("permits", passed="every use has its permit at every point it must pass") as report:
        for holder in evidence.holders.values():
            _check_uses(evidence, holder, own[holder.holder_id], report)
        _check_asked(evidence, judged, report)
        _check_cohort_size(evidence, judged, report)
        _check_release(evidence, own, report)
    with findings.checking(
        "revocation", passed="nothing was used after its holder knew the policy was revoked"
    ) as report:
        for holder in evidence.holders.values():
            check_revocations(holder, own[holder.holder_id], report)
    with findings.checking("suspension", passed="nothing was used while its holder knew use was suspended") as report:
        for holder in evidence.holders.values():
            check_suspensions(holder, own[holder.holder_id], report)
    with findings.checking("rehearsal", passed=_privacy_words(evidence)) as report:
        _check_rehearsal(evidence, report)


def _judge_all(evidence: Evidence, report: Report) -> list[Judged]:
    judge = _Judge(evidence, report)
    recorded: list[tuple[Entry, HolderDecision | CoordinatorDecision, str]] = []
    for holder_id, holder in evidence.holders.items():
        newest: dict[str, int] = {}
        for entry, record in select(holder.log.entries, HolderDecision):
            if record.run == evidence.run_id:
                recorded.append((entry, record, holder_id))
            _check_forward(entry, record, newest, report)
    for entry, asked in select(evidence.of_run, CoordinatorDecision):
        if asked.holder in evidence.holders:
            recorded.append((entry, asked, asked.holder))
        else:
            report(f"{entry}: is about holder {asked.holder}, whose papers are not here")
    judged = [attempt(judge.judge, *one, report=report, where=str(one[0])) for one in recorded]
    return [one for one in judged if one is not None]


def _by_holder(judged: Iterable[Judged]) -> Mapping[str, list[Judged]]:
    """What each holder's own gate decided, in the order of its log."""
    found: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        if isinstance(one.entry.record, HolderDecision):
            found[one.holder_id].append(one)
    return found


def _check_forward(entry: Entry, record: HolderDecision, newest: dict[str, int], report: Report) -> None:
    name, _, version = str(record.decision.get("policy")).rpartition("@")
    if record.decision.get("effect") != "permit":
        return
    if not version.isdecimal() or int(version) < newest.get(name, 0):
        report(f"{entry}: permits under {name}@{version}, though version {newest.get(name)} had been in force")
        return
    newest[name] = int(version)
    if record.status_seq is None or record.status_seq < newest.get("", 0):
        report(f"{entry}: permits under status {record.status_seq}, though status {newest.get('')} had been seen")
        return
    newest[""] = record.status_seq


def _permits(entries: Iterable[Entry]) -> dict[tuple[str, int, str, str, str], int]:
    """Where the holder's own permits stand: (run, round, action, hold id, point) -> position of the first."""
    found: dict[tuple[str, int, str, str, str], int] = {}
    for entry, record in select(entries, HolderDecision):
        if record.decision.get("effect") == "permit":
            key = (record.run, record.round, record.action, record.hold_id, str(record.decision.get("point")))
            found.setdefault(key, entry.position)
    return found


def _check_uses(evidence: Evidence, holder: HolderEvidence, own: Sequence[Judged], report: Report) -> None:
    permits = _permits(holder.log.entries)
    for entry, use in select(holder.log.entries, Spending):
        at = permits.get((use.run, use.round, use.used_for.value, use.hold_id, Point.BEFORE_TRAINING.value))
        if at is None or at > entry.position:
            report(f"{entry}: without a permit at {Point.BEFORE_TRAINING.value} for hold {use.hold_id}")
    for entry, sent in select(holder.log.entries, Sent):
        at = permits.get((sent.run, sent.round, "train", sent.hold_id, Point.BEFORE_UPLOAD.value))
        if at is None or at > entry.position:
            report(f"{entry}: sent without a permit at {Point.BEFORE_UPLOAD.value} for hold {sent.hold_id}")
        if sent.run == evidence.run_id and sent.weight != evidence.plan.holders[holder.holder_id].weight:
            report(f"{entry}: weighs {sent.weight}, the plan says {evidence.plan.holders[holder.holder_id].weight}")
    _check_measured(evidence, holder, own, report)


def _check_measured(evidence: Evidence, holder: HolderEvidence, own: Sequence[Judged], report: Report) -> None:
    asked = [one for one in own if one.action == "evaluate"]
    for entry, use in select(holder.log.entries, Evaluated):
        wanted = Evaluation.EXACT if use.mechanism is None else Evaluation.PRIVATE
        for one in asked:
            same = (one.entry.record.round, one.hold_id) == (use.round, use.hold_id) and use.run == evidence.run_id
            if same and one.permitted and one.evaluation is not None and one.evaluation is not wanted:
                report(f"{entry}: measured as {wanted.value}, permitted as {one.evaluation.value} ({one.entry})")


def _asked(judged: Iterable[Judged], action: str) -> dict[int, set[str]]:
    """Whom the coordinator's gate let through, by round."""
    found: dict[int, set[str]] = {}
    for one in judged:
        if one.action == action and one.permitted and one.point is Point.COORDINATOR:
            found.setdefault(one.entry.record.round, set()).add(one.holder_id)
    return found


def _check_asked(evidence: Evidence, judged: Sequence[Judged], report: Report) -> None:
    asked = _asked(judged, "train")
    for entry, commit in select(evidence.of_run, RoundCommitted):
        for holder in sorted(set(commit.cohort) - asked.get(commit.round, set())):
            report(f"{entry}: holder {holder} is in the cohort without a permit at {Point.COORDINATOR.value}")
    for holder_id, own in evidence.holders.items():
        for entry, sent in select(own.log.entries, Sent):
            if sent.run == evidence.run_id and holder_id not in asked.get(sent.round, set()):
                report(f"{entry}: sent, though the coordinator's log has no permit at {Point.COORDINATOR.value}")


def _check_cohort_size(evidence: Evidence, judged: Sequence[Judged], report: Report) -> None:
    for action in ("train", "evaluate"):
        asked = _asked(judged, action)
        for one in judged:
            if one.action != action or not one.permitted or one.cohort_size is None:
                continue
            known = len(asked.get(one.entry.record.round, evidence.plan.holders))
            if one.cohort_size > known:
                report(
                    f"{one.entry}: decided for a cohort of {one.cohort_size} holders, "
                    f"but only {known} were let through in this round"
                )


def _check_release(evidence: Evidence, own: Mapping[str, Sequence[Judged]], report: Report) -> None:
    contributors = {holder for _, commit in select(evidence.of_run, RoundCommitted) for holder in commit.cohort}
    for entry, _ in select(evidence.of_run, ModelReleased):
        for holder in sorted(contributors):
            asked = [one for one in own.get(holder, ()) if (one.action, one.point) == ("release", Point.RELEASE)]
            if not asked or not asked[-1].permitted:
                report(f"{entry}: holder {holder} contributed, and its log has no permit to release")


def _seeded(evidence: Evidence, *, of_run: bool) -> list[Entry]:
    return [
        entry
        for holder in evidence.holders.values()
        for entry in holder.log.entries
        if isinstance(entry.record, Sent | Evaluated)
        and entry.record.noise_source == "seeded"
        and (entry.record.run == evidence.run_id) is of_run
    ]


def is_rehearsal(evidence: Evidence) -> bool:
    """Whether anything in the bundle says that the run was not private."""
    return evidence.manifest.rehearsal or evidence.plan.rehearsal or bool(_seeded(evidence, of_run=True))


def _privacy_words(evidence: Evidence) -> str:
    words = "REHEARSAL: this run was NOT PRIVATE, and says so" if is_rehearsal(evidence) else "no rehearsal"
    earlier = _seeded(evidence, of_run=False)
    if earlier:
        words += f"; but {len(earlier)} uses in other runs were rehearsals and NOT PRIVATE ({earlier[0]} is the first)"
    return words


def _check_rehearsal(evidence: Evidence, report: Report) -> None:
    if evidence.manifest.rehearsal != evidence.plan.rehearsal:
        report("the manifest and the signed plan disagree on whether this run was a rehearsal")
    if not (evidence.manifest.rehearsal and evidence.plan.rehearsal):
        for entry in _seeded(evidence, of_run=True):
            report(f"{entry}: used predictable noise, so it was NOT PRIVATE; the bundle does not say so")


def _as_planned(plan: TrainingPlan, policy: UsagePolicy, request: RoundRequest) -> RoundRequest:
    """The request that plan and policy give, with the numbers of `request`: everything else must be equal."""
    return use_request(
        plan,
        policy,
        action=request.action,
        now_ms=_milliseconds(request),
        cohort_size=request.holders,
        cost=Cost(
            rounds_used=request.rounds_used,
            epsilon_after_micro=request.epsilon_after_micro,
            epsilon_cost_micro=request.epsilon_cost_micro,
        ),
        evaluation=request.evaluation,
        sandboxed=request.sandboxed,
        revoked=request.revoked,
        suspended=request.suspended,
        status_fresh=request.status_fresh,
    )


def _differences(found: RoundRequest, expected: RoundRequest) -> list[str]:
    ours, theirs = expected.public_facts(), found.public_facts()
    return [name for name in ours if ours[name] != theirs[name]]


def _milliseconds(request: RoundRequest) -> int:
    since = request.now - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(milliseconds=1)

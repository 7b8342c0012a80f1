"""Whether the coordinator's account of a run and the holders' accounts of it are the same account.

Round by round: what the coordinator committed is what those holders sent, what they sent is answered for, nobody was
left out without a reason, each update started from the model before it, and the file at the end is the released model.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ringfence_policy import bundle_layout as layout
from ringfence_policy import canonical
from ringfence_policy.evidence_papers import Entry, Evidence
from ringfence_policy.evidence_records import (
    Charged,
    CoordinatorDecision,
    Evaluated,
    HolderDecision,
    HoldReleased,
    ModelAveraged,
    ModelReleased,
    PlanShown,
    Record,
    Resumed,
    RoundCommitted,
    RunStarted,
    Sent,
    UpdateReceived,
    UpdateRefused,
)
from ringfence_policy.verification import Findings, Report

R = TypeVar("R", bound=Record)

_UNHEARD = "no-reply"
_HolderRound = tuple[str, int]
_MOST_NAMED = 8


class _Accounts:
    """What the logs say of the run about one holder in one round, gathered once.

    Attributes:
        sent: The updates that the holder recorded sending.
        received: The updates that the coordinator recorded receiving, each with its place.
        refused: Where it recorded that it took none.
        denials: The clauses of each denial, by either gate.
    """

    def __init__(self, evidence: Evidence, sent: Mapping[str, Sequence[tuple[Entry, Sent]]]) -> None:
        self.sent: dict[_HolderRound, list[Sent]] = defaultdict(list)
        for holder_id, of_holder in sent.items():
            for _, one in of_holder:
                self.sent[holder_id, one.round].append(one)
        self.received: dict[_HolderRound, list[tuple[Entry, UpdateReceived]]] = defaultdict(list)
        for entry, came in select(evidence.of_run, UpdateReceived):
            self.received[came.holder, came.round].append((entry, came))
        self.refused = {(one.holder, one.round) for _, one in select(evidence.of_run, UpdateRefused)}
        self.denials: dict[_HolderRound, list[list[str]]] = defaultdict(list)
        for holder_id, holder in evidence.holders.items():
            for _, own in select(holder.log.entries, HolderDecision):
                if own.run == evidence.run_id:
                    self._note(holder_id, own.round, own.decision)
        for _, asked in select(evidence.of_run, CoordinatorDecision):
            self._note(asked.holder, asked.round, asked.decision)

    def _note(self, holder_id: str, round_number: int, decision: Mapping[str, Any]) -> None:
        if decision.get("effect") == "deny":
            self.denials[holder_id, round_number].append([str(failed["clause"]) for failed in decision["failed"]])


def check_rounds(evidence: Evidence, findings: Findings) -> None:
    """Hold the coordinator's log of the run against the holders' logs."""
    commits = select(evidence.of_run, RoundCommitted)
    sent = {
        holder: select((entry for entry in one.log.entries if entry.record.run == evidence.run_id), Sent)
        for holder, one in evidence.holders.items()
    }
    with findings.checking(
        "course of the run", passed=f"{len(commits)} rounds, in order, under the signed plan"
    ) as report:
        _check_course(evidence, commits, sent, report)
    with findings.checking(
        "cohorts", passed="every committed update is one that its holder recorded sending"
    ) as report:
        accounts = _Accounts(evidence, sent)
        for entry, commit in commits:
            _check_cohort(evidence, accounts, entry, commit, report)
    answered = "every update sent is answered for by the coordinator" + _unheard_words(evidence, sent)
    with findings.checking("nothing hidden", passed=answered) as report:
        _check_answered(evidence, commits, sent, report)
    with findings.checking(
        "model", passed="each update started from the model before it; the file is the result"
    ) as report:
        _check_models(evidence, commits, report)


def select(entries: Iterable[Entry], kind: type[R]) -> list[tuple[Entry, R]]:
    """The records of one kind, each with its place."""
    return [(entry, entry.record) for entry in entries if isinstance(entry.record, kind)]


def _check_course(
    evidence: Evidence,
    commits: Sequence[tuple[Entry, RoundCommitted]],
    sent: Mapping[str, Sequence[tuple[Entry, Sent]]],
    report: Report,
) -> None:
    started = select(evidence.of_run, RunStarted)
    if len(started) != 1:
        report(f"coordinator: run {evidence.run_id} is recorded as started {len(started)} times, not once")
    for entry, start in started:
        if start.plan_digest != evidence.plan_digest:
            report(f"{entry}: started under another plan than the signed one here")
        if sorted(start.holders) != sorted(evidence.plan.holders):
            report(f"{entry}: started with other holders than the plan's")
        if commits and commits[0][0].position < entry.position:
            report(f"{entry}: a round was committed before the run started")
    _check_order(evidence, commits, report)
    for holder, of_holder in sent.items():
        shown = [
            at.position
            for at, one in select(evidence.holders[holder].log.entries, PlanShown)
            if (one.run, one.plan_digest) == (evidence.run_id, evidence.plan_digest)
        ]
        for entry, _ in of_holder:
            if not shown or entry.position < shown[0]:
                report(f"{entry}: sent for a plan that the holder never recorded being shown")


def _check_order(evidence: Evidence, commits: Sequence[tuple[Entry, RoundCommitted]], report: Report) -> None:
    done = 0
    last = evidence.plan.terms.training.rounds
    for entry, commit in commits:
        if not done < commit.round <= last:
            report(f"{entry}: rounds must rise, from 1 to {last}; the one before was {done}")
        done = max(done, commit.round)
    for entry, resumed in select(evidence.of_run, Resumed):
        before = [commit.round for at, commit in commits if at.position < entry.position]
        if before and resumed.from_round <= before[-1]:
            report(f"{entry}: resumed from round {resumed.from_round}, though round {before[-1]} was committed")


def _check_cohort(
    evidence: Evidence, accounts: _Accounts, entry: Entry, commit: RoundCommitted, report: Report
) -> None:
    cohort = set(commit.cohort)
    if sorted(commit.updates) != sorted(cohort) or len(cohort) != len(commit.cohort):
        report(f"{entry}: the cohort {', '.join(commit.cohort)} and the updates of {', '.join(commit.updates)} differ")
    for holder, digest in sorted(commit.updates.items()):
        in_round = accounts.sent[holder, commit.round]
        matching = [one for one in in_round if one.update_digest == digest]
        if not matching:
            others = [one.update_digest for one in in_round]
            said = f"its log says {', '.join(others)}" if others else "its log has no update in this round"
            report(f"{entry}: commits update {digest} of holder {holder}, but {said}")
            continue
        holds = {one.hold_id for one in matching}
        if not any(
            came.update_digest == digest and came.hold_id in holds
            for at, came in accounts.received[holder, commit.round]
            if at.position < entry.position
        ):
            report(f"{entry}: commits an update of holder {holder} that the coordinator did not record receiving")
    for holder in sorted(evidence.plan.holders):
        if holder not in cohort:
            _check_left_out(accounts, entry, commit, holder, report)
        elif holder in commit.refused:
            report(f"{entry}: holder {holder} stands both in the cohort and among the refusals")


def _check_left_out(accounts: _Accounts, entry: Entry, commit: RoundCommitted, holder: str, report: Report) -> None:
    denials = accounts.denials[holder, commit.round]
    was_refused = (holder, commit.round) in accounts.refused
    if not denials and not was_refused:
        report(f"{entry}: holder {holder} is not in the cohort, and no log has a denial or a refused update to say why")
    elif denials and not was_refused:
        known = {clause for clauses in denials for clause in clauses}
        made_up = sorted(set(commit.refused.get(holder, ())) - known)
        if made_up:
            report(f"{entry}: holder {holder} is said to fail {', '.join(made_up)}; its decisions do not say so")


def _check_answered(
    evidence: Evidence,
    commits: Sequence[tuple[Entry, RoundCommitted]],
    sent: Mapping[str, Sequence[tuple[Entry, Sent]]],
    report: Report,
) -> None:
    received = select(evidence.of_run, UpdateReceived)
    refused = {(one.holder, one.round) for _, one in select(evidence.of_run, UpdateRefused)}
    resumed = select(evidence.of_run, Resumed)
    of_hold = {(one.holder, one.hold_id): one for _, one in received}
    for holder, of_holder in sent.items():
        seen: set[str] = set()
        for entry, one in of_holder:
            answer = of_hold.get((holder, one.hold_id))
            excused = (holder, one.round) in refused or any(again.from_round <= one.round for _, again in resumed)
            if one.hold_id in seen:
                report(f"{entry}: a second update under hold {one.hold_id}")
            if answer is None and not excused:
                report(f"{entry}: the coordinator's log says nothing of this update: neither received nor refused")
            elif answer is not None and answer.update_digest != one.update_digest:
                report(f"{entry}: the coordinator recorded another update for hold {one.hold_id}")
            seen.add(one.hold_id)
        _check_unsent(evidence.holders[holder].log.entries, seen, report)
    cohorts = {commit.round: set(commit.cohort) for _, commit in commits}
    for entry, came in received:
        excused = (came.holder, came.round) in refused or any(
            at.position > entry.position and again.from_round <= came.round for at, again in resumed
        )
        if came.round in cohorts and came.holder not in cohorts[came.round] and not excused:
            report(f"{entry}: received from holder {came.holder}, then left out of the round without a reason")
    _check_unheard(evidence, received, resumed, report)


def _check_unsent(entries: Sequence[Entry], sent: set[str], report: Report) -> None:
    """Hold what is said of holds that nothing was sent of against `sent`, those that something was sent of."""
    charged: set[str] = set()
    for entry, one in select(entries, Charged):
        if one.hold_id in sent or one.hold_id in charged:
            report(f"{entry}: charges hold {one.hold_id} as unsent, which was sent or charged before")
        charged.add(one.hold_id)
    for entry, released in select(entries, HoldReleased):
        if released.hold_id in sent or released.hold_id in charged:
            report(f"{entry}: gives back hold {released.hold_id}, which was sent or charged")


def _check_unheard(
    evidence: Evidence,
    received: Sequence[tuple[Entry, UpdateReceived]],
    resumed: Sequence[tuple[Entry, Resumed]],
    report: Report,
) -> None:
    heard: dict[_HolderRound, list[int]] = defaultdict(list)
    for at, came in received:
        heard[came.holder, came.round].append(at.position)
    for entry, one in select(evidence.of_run, UpdateRefused):
        since = max((at.position for at, _ in resumed if at.position < entry.position), default=0)
        if one.code == _UNHEARD and any(since <= at < entry.position for at in heard[one.holder, one.round]):
            report(f"{entry}: says that holder {one.holder} was not heard, after its update was recorded as received")


def _unheard_words(evidence: Evidence, sent: Mapping[str, Sequence[tuple[Entry, Sent]]]) -> str:
    """Which updates left, says their holder, and never came, says the coordinator: neither log can prove it."""
    silent = {(one.holder, one.round) for _, one in select(evidence.of_run, UpdateRefused) if one.code == _UNHEARD}
    received = {(one.holder, one.hold_id) for _, one in select(evidence.of_run, UpdateReceived)}
    unheard = [
        f"{holder} in round {one.round}"
        for holder, of_holder in sent.items()
        for _, one in of_holder
        if (holder, one.round) in silent and (holder, one.hold_id) not in received
    ]
    if not unheard:
        return ""
    named = ", ".join(unheard[:_MOST_NAMED]) + (" and others" if len(unheard) > _MOST_NAMED else "")
    return f"; {len(unheard)} were sent and, by the coordinator's word alone, not heard in time: {named}"


def _check_models(evidence: Evidence, commits: Sequence[tuple[Entry, RoundCommitted]], report: Report) -> None:
    first = [start.model_digest for _, start in select(evidence.of_run, RunStarted)]
    models = {0: first[0] if first else "", **{commit.round: commit.model_digest for _, commit in commits}}
    released = select(evidence.of_run, ModelReleased)
    averaged = select(evidence.of_run, ModelAveraged)
    known = {*models.values(), *(one.model_digest for _, one in averaged), *(one.model_digest for _, one in released)}
    for holder in evidence.holders.values():
        ours = [entry for entry in holder.log.entries if entry.record.run == evidence.run_id]
        for entry, sent in select(ours, Sent):
            expected = models[max(number for number in models if number < max(sent.round, 1))]
            if sent.base_model_digest != expected:
                report(f"{entry}: started from model {sent.base_model_digest}, but the model before was {expected}")
        for entry, evaluated in select(ours, Evaluated):
            if evaluated.base_model_digest not in known:
                report(f"{entry}: measured model {evaluated.base_model_digest}, which is none of this run's")
    _check_released(evidence, commits, report)


def _check_released(evidence: Evidence, commits: Sequence[tuple[Entry, RoundCommitted]], report: Report) -> None:
    released = select(evidence.of_run, ModelReleased)
    data = evidence.files.get(layout.MODEL)
    file_digest = None if data is None else canonical.digest_bytes(data)
    result = _result(evidence, commits, report)
    if len(released) > 1:
        report(f"{released[1][0]}: a second model is released")
    if not released:
        if file_digest not in (None, result):
            report(f"{layout.MODEL}: nothing was released, and this is not the model that the rounds ended in")
        return
    entry, release = released[-1]
    if release.model_digest != file_digest:
        report(f"{layout.MODEL}: is {file_digest or 'missing'}, but {entry} says {release.model_digest}")
    if release.model_digest != result:
        report(f"{entry}: releases {release.model_digest}, but the rounds ended in {result}")
    committed = {commit.round for _, commit in commits}
    listed = set(release.rounds) if isinstance(release.rounds, tuple) else committed
    if not listed <= committed or (isinstance(release.rounds, int) and release.rounds > len(committed)):
        report(f"{entry}: is made of rounds that were never committed")
    if commits and commits[-1][0].position > entry.position:
        report(f"{commits[-1][0]}: committed after the model was released")


def _result(evidence: Evidence, commits: Sequence[tuple[Entry, RoundCommitted]], report: Report) -> str | None:
    """The model that the rounds ended in: the average where one was made, else that of the last round."""
    committed = [commit.round for _, commit in commits]
    result = commits[-1][1].model_digest if commits else None
    for entry, averaged in select(evidence.of_run, ModelAveraged):
        if list(averaged.rounds) != committed[-len(averaged.rounds) :]:
            report(f"{entry}: averages rounds {list(averaged.rounds)}, which are not the last ones committed")
        if not evidence.plan.terms.training.average_last:
            report(f"{entry}: the signed plan has no average")
        result = averaged.model_digest
    return result

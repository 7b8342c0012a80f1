"""Who would refuse a plan, why, and the smallest change of the plan that would pass, before anything runs.

A suggested change is never a guess: it is applied to the requests, the gate decides again, and only what then passes
is shown.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence_policy.cohort import largest_cohort
from ringfence_policy.decision import Decision, FailedClause, Point
from ringfence_policy.gate import PolicyGate
from ringfence_policy.policy import BUILT_IN, UsagePolicy
from ringfence_policy.request import RoundRequest
from ringfence_policy.vocabulary import Evaluation, ReleaseTier, ReleaseTo, Unit
from ringfence_policy.wording import UNIT_WORDS, counted, day_text, delta_text, epsilon_text, listed


@dataclass(frozen=True, kw_only=True)
class PreviewCase:
    """One data holder's view of a plan.

    Attributes:
        holder_id: The data holder.
        gate: Its policy.
        rounds: How many rounds the plan has, 1 or more.
        request_for: The training request of a round (from 1), for a cohort of a size; facts as they stand now, with
            the budget as that round would find it.
        also: Further uses the plan asks for: an evaluation, the release.
    """

    holder_id: str
    gate: PolicyGate
    rounds: int
    request_for: Callable[[int, int], RoundRequest]
    also: tuple[RoundRequest, ...] = ()


@dataclass(frozen=True)
class Change:
    """One change of the plan, and the clause it answers."""

    clause: str
    words: str


@dataclass(frozen=True, kw_only=True)
class HolderPreview:
    """What one data holder would say.

    Attributes:
        holder_id: The data holder.
        permitted: Whether every round and every further use would be permitted.
        rounds_permitted: How many rounds would be, from the first on.
        failed: Every clause that stands against the plan, sorted; without actual values.
        changes: The changes of the plan that together would pass; empty where none would, or none is needed.
        obstacles: Clauses no change of the plan can answer; the data officer would have to act.
    """

    holder_id: str
    permitted: bool
    rounds_permitted: int
    failed: tuple[FailedClause, ...] = ()
    changes: tuple[Change, ...] = ()
    obstacles: tuple[str, ...] = ()

    @property
    def change(self) -> str | None:
        """The changes in one sentence, or None where nothing is to change or nothing would help."""
        if not self.changes:
            return None
        text = listed(change.words for change in self.changes)
        return text[0].upper() + text[1:] + "."

    def to_document(self) -> dict[str, Any]:
        """The preview as JSON for `--json` and the report."""
        return {
            "holder": self.holder_id,
            "permitted": self.permitted,
            "rounds_permitted": self.rounds_permitted,
            "failed": [{"clause": one.clause, "meaning": one.meaning, "limit": one.limit} for one in self.failed],
            "change": self.change,
            "changes": [{"clause": one.clause, "words": one.words} for one in self.changes],
            "obstacles": list(self.obstacles),
        }


def preview(cases: Sequence[PreviewCase]) -> list[HolderPreview]:
    """Say for each data holder whether it would permit the plan, and what change of the plan would pass.

    The first round's cohort is found as in a run: one holder's refusal can break another's minimum.
    """
    by_id = {case.holder_id: case for case in cases}
    asked_with: dict[str, int] = {}

    def permits(holder_id: str, cohort: frozenset[str]) -> Decision:
        asked_with[holder_id] = len(cohort)
        case = by_id[holder_id]
        return _decide(case.gate, case.request_for(1, len(cohort)))

    largest_cohort([case.holder_id for case in cases], permits)
    return [_preview_one(case, cohort_size=asked_with[case.holder_id]) for case in cases]


@dataclass(frozen=True)
class _Fix:
    """A change of the plan in words, and the request's facts after it."""

    words: str
    facts: Mapping[str, Any]


@dataclass
class _Plan:
    """The plan's requests to one holder, after the changes made so far."""

    case: PreviewCase
    cohort_size: int
    facts: dict[str, Any] = field(default_factory=dict)

    def rounds_permitted(self) -> int:
        """How many rounds pass, by bisection: what a round uses up only grows."""
        low, high = 0, self.case.rounds
        while low < high:
            middle = (low + high + 1) // 2
            if self.decide_round(middle).permitted:
                low = middle
            else:
                high = middle - 1
        return low

    def decide_round(self, round_number: int) -> Decision:
        return _decide(self.case.gate, self._changed(self.case.request_for(round_number, self.cohort_size)))

    def decide_also(self) -> Iterable[Decision]:
        return (_decide(self.case.gate, self._changed(request)) for request in self.case.also)

    def _changed(self, request: RoundRequest) -> RoundRequest:
        if not self.facts:
            return request
        facts = dict(self.facts)
        if "columns" in facts:
            facts["columns"] = (request.columns & facts["columns"]) or facts["columns"]
        if "epsilon_after_micro" in facts:  # a cheaper use on top of the same history
            facts["epsilon_cost_micro"] = min(request.epsilon_cost_micro, facts["epsilon_cost_micro"])
            before = request.epsilon_after_micro - request.epsilon_cost_micro
            facts["epsilon_after_micro"] = max(before, 0) + facts["epsilon_cost_micro"]
        return RoundRequest.model_validate(dict(request) | facts)


def _decide(gate: PolicyGate, request: RoundRequest) -> Decision:
    # As the holder will decide it, but for the row count, which nobody else sees.
    return gate.redecide(request, point=Point.BEFORE_TRAINING).for_outsiders()


def _preview_one(case: PreviewCase, *, cohort_size: int) -> HolderPreview:
    plan = _Plan(case, cohort_size)
    rounds = plan.rounds_permitted()
    failed: dict[str, FailedClause] = {}
    for decision in (plan.decide_round(1), plan.decide_round(case.rounds), *plan.decide_also()):
        failed |= {one.clause: one for one in decision.failed}
    if not failed:
        return HolderPreview(holder_id=case.holder_id, permitted=True, rounds_permitted=rounds)
    changes, obstacles = _changes(plan, sorted(failed))
    return HolderPreview(
        holder_id=case.holder_id,
        permitted=False,
        rounds_permitted=rounds,
        failed=tuple(failed[name] for name in sorted(failed)),
        changes=() if obstacles else tuple(changes),
        obstacles=tuple(obstacles),
    )


def _changes(plan: _Plan, failed: Sequence[str]) -> tuple[list[Change], list[str]]:
    """The changes that answer every failed clause, or the clauses that nothing in the plan can answer."""
    case, policy = plan.case, plan.case.gate.policy
    first = case.request_for(1, plan.cohort_size)
    changes: list[Change] = []
    obstacles: list[str] = []
    for clause in failed:
        if clause in _USED_UP_BY_ROUNDS:
            continue
        fix = _FIXES[clause](policy, first) if clause in _FIXES else None
        if fix is None:
            obstacles.append(clause)
        else:
            plan.facts |= fix.facts
            if fix.words not in {change.words for change in changes}:  # one change can answer two clauses
                changes.append(Change(clause, fix.words))
    used_up = [clause for clause in failed if clause in _USED_UP_BY_ROUNDS]
    if obstacles:
        return changes, obstacles + used_up
    rounds = plan.rounds_permitted()
    if used_up and rounds == 0:
        fix = _cheaper(policy, first)
        if fix is None or "max_rounds" in plan.decide_round(1).clauses:
            return changes, used_up
        plan.facts |= fix.facts
        changes.append(Change("epsilon", fix.words))
        # How many rounds the cheaper use then leaves room for, its noise decides: only the count of rounds is known.
        rounds = min(case.rounds, policy.max_rounds - first.rounds_used) if plan.decide_round(1).permitted else 0
    if 0 < rounds < case.rounds:
        changes.append(Change(used_up[0] if used_up else "max_rounds", f"use at most {counted(rounds, 'round')}"))
    passes = rounds > 0 and all(decision.permitted for decision in plan.decide_also())
    return (changes, []) if passes else (changes, list(failed))


_USED_UP_BY_ROUNDS: Final = ("epsilon", "max_rounds")


def _cheaper(policy: UsagePolicy, request: RoundRequest) -> _Fix | None:
    """Room is left, but not for a whole use at this price."""
    left = policy.epsilon_micro - (request.epsilon_after_micro - request.epsilon_cost_micro)
    if left <= 0 or left >= request.epsilon_cost_micro:
        return None
    words = f"spend at most epsilon {epsilon_text(left)} in all rounds together (raise the noise multiplier)"
    return _Fix(words, {"epsilon_after_micro": policy.epsilon_micro, "epsilon_cost_micro": left})


def _who(policy: UsagePolicy, _: RoundRequest) -> _Fix:
    names = policy.permitted_coordinators
    return _Fix(f"let {listed(names, joined_by='or')} coordinate", {"coordinator": names[0]})


def _purpose(policy: UsagePolicy, _: RoundRequest) -> _Fix:
    return _Fix(f"state the purpose {listed(policy.purposes, joined_by='or')}", {"purpose": policy.purposes[0]})


def _task(policy: UsagePolicy, _: RoundRequest) -> _Fix:
    return _Fix(f"learn {listed(policy.tasks, joined_by='or')}", {"task": policy.tasks[0]})


def _code(policy: UsagePolicy, _: RoundRequest) -> _Fix:
    if BUILT_IN in policy.code:
        return _Fix("use a model built into Ringfence", {"code_digest": ""})
    return _Fix(f"use the model code {listed(policy.code, joined_by='or')}", {"code_digest": policy.code[0]})


def _start(policy: UsagePolicy, _: RoundRequest) -> _Fix:
    return _Fix(f"start on {day_text(policy.not_before)}", {"now": policy.not_before})


def _region(policy: UsagePolicy, _: RoundRequest) -> _Fix:
    return _Fix(f"compute in {listed(policy.regions, joined_by='or')}", {"region": policy.regions[0]})


def _holders(policy: UsagePolicy, _: RoundRequest) -> _Fix:
    words = f"bring at least {counted(policy.min_holders, 'data holder')} together"
    return _Fix(words, {"holders": policy.min_holders})


def _sum(_policy: UsagePolicy, _: RoundRequest) -> _Fix:
    return _Fix("use secure aggregation", {"secure_aggregation": True})


def _columns(policy: UsagePolicy, request: RoundRequest) -> _Fix:
    allowed = request.columns & set(policy.columns)
    words = f"leave out {listed(sorted(request.columns - allowed))}" if allowed else f"read {listed(policy.columns)}"
    return _Fix(words, {"columns": frozenset(allowed or policy.columns)})


def _no_rehearsal(_policy: UsagePolicy, _: RoundRequest) -> _Fix:
    return _Fix("run with private noise and without comparison lines, not as a rehearsal", {"rehearsal": False})


def _unit(policy: UsagePolicy, request: RoundRequest) -> _Fix | None:
    if policy.unit is Unit.HOLDER:
        return None  # no plan can protect a whole holder yet
    words = f"protect {UNIT_WORDS[policy.unit]}"
    if not request.names_subjects:
        words = f"say in the schema which records are about one person, and {words}"
    return _Fix(words, {"unit": policy.unit, "names_subjects": True})


def _whole_subjects(_policy: UsagePolicy, _: RoundRequest) -> _Fix:
    return _Fix(f"protect {UNIT_WORDS[Unit.SUBJECT]}", {"unit": Unit.SUBJECT})


def _delta(policy: UsagePolicy, _: RoundRequest) -> _Fix:
    return _Fix(f"account at delta {delta_text(policy.delta_pico)}", {"delta_pico": policy.delta_pico})


def _per_round(policy: UsagePolicy, request: RoundRequest) -> _Fix | None:
    cap = policy.per_round_epsilon_micro
    if not cap:
        return None
    words = f"spend at most epsilon {epsilon_text(cap)} in a use (raise the noise multiplier)"
    return _Fix(words, {"epsilon_after_micro": request.epsilon_after_micro, "epsilon_cost_micro": cap})


def _evaluation(policy: UsagePolicy, _: RoundRequest) -> _Fix | None:
    if policy.evaluation is Evaluation.NONE:
        return None
    return _Fix(f"make the evaluation {policy.evaluation.value}", {"evaluation": policy.evaluation})


def _retention(policy: UsagePolicy, _: RoundRequest) -> _Fix:
    words = (
        f"delete updates within {counted(policy.retention_days, 'day')}"
        if policy.retention_days
        else ("delete updates as soon as the round is over")
    )
    return _Fix(words, {"retention_days": policy.retention_days})


_RELEASE_WORDS: Final[Mapping[ReleaseTo, str]] = {
    ReleaseTo.NONE: "release nothing",
    ReleaseTo.METRICS_ONLY: "release metrics only",
    ReleaseTo.PARTICIPANTS: "release the model to the participants only",
    ReleaseTo.PUBLIC: "release the model",
}


def _release_to(policy: UsagePolicy, _: RoundRequest) -> _Fix:
    return _Fix(_RELEASE_WORDS[policy.release_to], {"release_to": policy.release_to})


def _release_tier(policy: UsagePolicy, _: RoundRequest) -> _Fix:
    tier: ReleaseTier = policy.release_tier
    return _Fix(f"let the model pass the gates of the {tier.value} tier", {"release_tier": tier})


# Clauses that only the data officer can answer have no entry: policy, dataset, never with nobody else permitted, plans,
# not_after, min_records, sandbox, revoked, suspended, status, engine.
_FIXES: Final[Mapping[str, Callable[[UsagePolicy, RoundRequest], _Fix | None]]] = {
    "who": _who,
    "never": _who,
    "purposes": _purpose,
    "not_purposes": _purpose,
    "tasks": _task,
    "code": _code,
    "not_before": _start,
    "regions": _region,
    "min_holders": _holders,
    "secure_aggregation": _sum,
    "columns": _columns,
    "rehearsal": _no_rehearsal,
    "unit": _unit,
    "subject_records": _whole_subjects,
    "delta": _delta,
    "per_round_epsilon": _per_round,
    "evaluation": _evaluation,
    "retention_days": _retention,
    "release_to": _release_to,
    "release_tier": _release_tier,
}

"""Requests that stand exactly on and exactly beyond every limit of a policy, to prove its compiled form.

`examine` puts each of them to the gate: the one on all limits must be permitted, each one beyond a limit must be denied
for that clause and no other. `ringfence policy check` runs it before an officer signs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from ringfence_policy.decision import Point
from ringfence_policy.gate import PolicyGate
from ringfence_policy.policy import BUILT_IN, EVERYTHING, UsagePolicy
from ringfence_policy.request import RoundRequest
from ringfence_policy.strict_toml import EARLIEST, LARGEST, LATEST
from ringfence_policy.vocabulary import (
    ORDERED,
    PURPOSES,
    Action,
    Evaluation,
    OnRevoke,
    Rehearsal,
    ReleaseTo,
    Sandbox,
    SecureAggregation,
    SubjectRecords,
    Unit,
    ancestors,
    rank,
)

_MILLISECOND: Final = timedelta(milliseconds=1)
_NO_DIGEST: Final = "sha256:" + "0" * 64
_OTHER_DIGEST: Final = "sha256:" + "f" * 64
_NOBODY: Final = "nobody-named-here"
_NOWHERE: Final = "ZZ-ZZZ"


@dataclass(frozen=True)
class Probe:
    """One request, where it is put, and the clauses that must fail."""

    name: str
    request: RoundRequest
    point: Point
    expected: tuple[str, ...]


def probes(policy: UsagePolicy) -> Iterator[Probe]:
    """Every probe that this policy's limits allow to be formed."""
    yield from _probes_of(policy, Action.TRAIN)
    if policy.evaluation is Evaluation.NONE:
        facts = _on_every_limit(policy, Action.EVALUATE) | {"evaluation": Evaluation.PRIVATE}
        yield Probe("evaluate: never", RoundRequest(**facts), Point.BEFORE_TRAINING, ("evaluation",))
    else:
        yield from _probes_of(policy, Action.EVALUATE)
    yield from _probes_of(policy, Action.RELEASE)


def examine(gate: PolicyGate) -> tuple[str, ...]:
    """Put every probe to `gate`, and name those that were decided otherwise than they must be. Empty is good."""
    return tuple(
        f"{probe.name}: expected {list(probe.expected)}, got {list(decision.clauses)}"
        for probe in probes(gate.policy)
        if (decision := gate.decide(probe.request, point=probe.point)).clauses != probe.expected
    )


def _probes_of(policy: UsagePolicy, action: Action) -> Iterator[Probe]:
    point = Point.RELEASE if action is Action.RELEASE else Point.BEFORE_TRAINING
    facts = _on_every_limit(policy, action)
    yield Probe(f"{action}: on every limit", RoundRequest(**facts), point, ())
    for changed in _other_permitted(policy):
        yield Probe(f"{action}: also permitted", RoundRequest(**(facts | changed)), point, ())
    for clauses, changed in _beyond(policy):
        failed = tuple(sorted(clause for clause in clauses if clause in _ALWAYS or clause in _BINDS[action]))
        yield Probe(f"{action}: beyond {' and '.join(clauses)}", RoundRequest(**(facts | changed)), point, failed)
    unseen = RoundRequest(**(facts | {"records": None, "sandboxed": False}))
    yield Probe(f"{action}: as seen from outside", unseen, Point.COORDINATOR, ())
    revoked = RoundRequest(**(facts | {"revoked": True}))
    stops = () if action is Action.RELEASE else ("revoked",)
    finishes = () if policy.on_revoke is OnRevoke.FINISH_ROUND else stops
    yield Probe(f"{action}: revoked", revoked, point, stops)
    yield Probe(f"{action}: revoked during a round", revoked, Point.BEFORE_UPLOAD, finishes)


def _on_every_limit(policy: UsagePolicy, action: Action) -> dict[str, Any]:
    code = policy.code[0]
    return {
        "policy_id": policy.policy_id,
        "action": action,
        "coordinator": policy.permitted_coordinators[0],
        "dataset_id": policy.dataset_id,
        "purpose": policy.purposes[0],
        "task": "any-task" if policy.tasks == EVERYTHING else policy.tasks[0],
        "plan_digest": policy.plans[0] if policy.plans else _NO_DIGEST,
        "code_digest": "" if code == BUILT_IN else code,
        "region": policy.regions[0],
        "now": policy.not_before,
        "rounds_used": policy.max_rounds - 1,
        "epsilon_after_micro": policy.epsilon_micro,
        "epsilon_cost_micro": policy.per_round_epsilon_micro or 0,
        "delta_pico": policy.delta_pico,
        "unit": policy.unit,
        "names_subjects": policy.subject_records is SubjectRecords.APART,
        "records": policy.min_records,
        "holders": policy.min_holders,
        "secure_aggregation": policy.secure_aggregation is SecureAggregation.REQUIRED,
        "sandboxed": policy.sandbox is Sandbox.REQUIRED,
        "columns": frozenset({"any column"} if policy.columns == EVERYTHING else policy.columns),
        "retention_days": policy.retention_days,
        "release_to": policy.release_to,
        "release_tier": policy.release_tier,
        "evaluation": policy.evaluation,
        "rehearsal": policy.rehearsal is Rehearsal.ALLOWED,
        "revoked": False,
        "suspended": False,
        "status_fresh": True,
    }


_ALWAYS: Final = frozenset(
    {"policy", "dataset", "who", "never", "purposes", "not_purposes", "tasks", "plans", "code", "rehearsal"}
    | {"release_to", "release_tier", "status"}
)
_OF_USE: Final = frozenset(
    {"not_before", "not_after", "regions", "min_holders", "columns", "min_records", "unit", "epsilon", "delta"}
    | {"per_round_epsilon", "retention_days", "subject_records", "sandbox", "suspended"}
)
_BINDS: Final = {
    Action.TRAIN: _OF_USE | {"max_rounds", "secure_aggregation"},
    Action.EVALUATE: _OF_USE | {"evaluation"},
    Action.RELEASE: frozenset[str](),
}


def _other_permitted(policy: UsagePolicy) -> Iterator[dict[str, Any]]:
    """Every further name that the policy permits: each must be, or it was lost on the way to Cedar."""
    yield from ({"coordinator": name} for name in policy.permitted_coordinators[1:])
    yield from ({"task": name} for name in policy.tasks[1:])
    yield from ({"plan_digest": name} for name in (policy.plans or ())[1:])
    yield from ({"code_digest": name} for name in policy.code[1:] if name != BUILT_IN)
    yield from ({"region": name} for name in policy.regions[1:])
    yield from ({"columns": frozenset({name})} for name in policy.columns if name != "*")
    for name in ("unit", "release_tier"):
        word = getattr(policy, name)
        yield from ({name: stricter} for stricter in ORDERED[type(word)][rank(word) + 1 :])
    yield from ({"unit": unit, "names_subjects": True} for unit in ORDERED[Unit][max(1, rank(policy.unit)) :])
    yield from ({"evaluation": less} for less in ORDERED[Evaluation][1 : rank(policy.evaluation)])
    yield from ({"release_to": narrower} for narrower in ORDERED[ReleaseTo][: rank(policy.release_to)])


_Beyond = Iterator[tuple[tuple[str, ...], dict[str, Any]]]


def _beyond(policy: UsagePolicy) -> _Beyond:
    """For each limit, the clauses that must fail and the facts one step beyond it."""
    yield from _other_names(policy)
    yield from _other_purposes(policy)
    yield from _other_numbers(policy)
    yield from _other_words(policy)


def _other_names(policy: UsagePolicy) -> _Beyond:
    yield ("policy",), {"policy_id": "another." + policy.policy_id[:40]}
    yield ("dataset",), {"dataset_id": "another." + policy.dataset_id[:40]}
    yield ("who",), {"coordinator": _NOBODY}
    yield from ((("who", "never"), {"coordinator": name}) for name in policy.prohibited)
    if policy.tasks != EVERYTHING:
        yield ("tasks",), {"task": _NOBODY}
    if policy.plans:
        yield ("plans",), {"plan_digest": _OTHER_DIGEST}
    if policy.columns != EVERYTHING:
        yield ("columns",), {"columns": frozenset({*policy.columns, "a column nobody named"})}
    yield ("code",), {"code_digest": _OTHER_DIGEST}
    yield ("regions",), {"region": _NOWHERE}


def _other_purposes(policy: UsagePolicy) -> _Beyond:
    permitted, excluded = set(policy.purposes), set(policy.not_purposes)
    for purpose in PURPOSES:
        covering = set(ancestors(purpose))
        failed = (
            *(("purposes",) if not covering & permitted else ()),
            *(("not_purposes",) if covering & excluded else ()),
        )
        yield failed, {"purpose": purpose}
    yield ("purposes",), {"purpose": "no-purpose-of-the-vocabulary"}


def _other_numbers(policy: UsagePolicy) -> _Beyond:
    if policy.not_before > EARLIEST:
        yield ("not_before",), {"now": policy.not_before - _MILLISECOND}
    yield (), {"now": policy.not_after - _MILLISECOND}
    if policy.not_after < LATEST:
        yield ("not_after",), {"now": policy.not_after}
    yield ("max_rounds",), {"rounds_used": policy.max_rounds}
    yield ("min_holders",), {"holders": policy.min_holders - 1}
    yield ("min_records",), {"records": policy.min_records - 1}
    yield ("min_records",), {"records": None}
    yield ("delta",), {"delta_pico": policy.delta_pico + 1}
    yield ("retention_days",), {"retention_days": policy.retention_days + 1}
    if policy.epsilon_micro < LARGEST:
        yield ("epsilon",), {"epsilon_after_micro": policy.epsilon_micro + 1}
    if policy.per_round_epsilon_micro is not None and policy.per_round_epsilon_micro < LARGEST:
        yield ("per_round_epsilon",), {"epsilon_cost_micro": policy.per_round_epsilon_micro + 1}


def _other_words(policy: UsagePolicy) -> _Beyond:
    yield ("status",), {"status_fresh": False}
    yield ("suspended",), {"suspended": True}
    if policy.secure_aggregation is SecureAggregation.REQUIRED:
        yield ("secure_aggregation",), {"secure_aggregation": False}
    if policy.sandbox is Sandbox.REQUIRED:
        yield ("sandbox",), {"sandboxed": False}
    if policy.rehearsal is Rehearsal.FORBIDDEN:
        yield ("rehearsal",), {"rehearsal": True}
    for name in ("unit", "release_tier"):
        word = getattr(policy, name)
        if rank(word) > 0:
            yield (name,), {name: ORDERED[type(word)][rank(word) - 1], "names_subjects": False}
    if policy.subject_records is SubjectRecords.TOGETHER:
        is_weaker = policy.unit is not Unit.RECORD
        failed = ("subject_records", "unit") if is_weaker else ("subject_records",)
        yield failed, {"unit": Unit.RECORD, "names_subjects": True}
    if policy.release_to is not ReleaseTo.PUBLIC:
        yield ("release_to",), {"release_to": ORDERED[ReleaseTo][rank(policy.release_to) + 1]}
    if policy.evaluation is not Evaluation.EXACT:
        yield ("evaluation",), {"evaluation": ORDERED[Evaluation][rank(policy.evaluation) + 1]}

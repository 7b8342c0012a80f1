"""The second opinion: the same terms decided in plain Python, beside Cedar and independent of the clause table.

It is written from the meaning of each clause, not from its Cedar text, and shares with the compiler only the policy,
the request and the vocabulary's order. Where the two differ, the gate denies. What both get wrong together stays
unseen; that is why `docs/policy.md` states each meaning in words that a data officer can check.
"""

from ringfence_policy.decision import Point
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.request import RoundRequest
from ringfence_policy.vocabulary import (
    PURPOSES,
    Action,
    Evaluation,
    OnRevoke,
    Rehearsal,
    Sandbox,
    SecureAggregation,
    SubjectRecords,
    Unit,
    ancestors,
    rank,
)


def failed_clauses(
    policy: UsagePolicy, request: RoundRequest, *, point: Point, records_withheld: bool = False
) -> frozenset[str]:
    """Names of the clauses of `policy` that `request` does not keep at `point`.

    Args:
        policy: The holder's terms.
        request: The facts of the use.
        point: Where it is decided.
        records_withheld: The row count is the holder's secret and is not judged. Always so at the coordinator.
    """
    kept = _always(policy, request)
    if request.action is not Action.RELEASE:
        withheld = records_withheld or point is Point.COORDINATOR
        kept |= _when_data_is_used(policy, request, records_withheld=withheld)
        kept["sandbox"] = point is Point.COORDINATOR or request.sandboxed or policy.sandbox is Sandbox.NOT_REQUIRED
        may_finish = policy.on_revoke is OnRevoke.FINISH_ROUND and point is Point.BEFORE_UPLOAD
        kept["revoked"] = may_finish or not request.revoked
        kept["suspended"] = not request.suspended
    if request.action is Action.TRAIN:
        kept["max_rounds"] = request.rounds_used + 1 <= policy.max_rounds
        kept["secure_aggregation"] = (
            request.secure_aggregation or policy.secure_aggregation is SecureAggregation.NOT_REQUIRED
        )
    if request.action is Action.EVALUATE:
        kept["evaluation"] = Evaluation.NONE is not request.evaluation and not (
            rank(request.evaluation) > rank(policy.evaluation)
        )
    return frozenset(name for name, holds in kept.items() if not holds)


def _always(policy: UsagePolicy, request: RoundRequest) -> dict[str, bool]:
    covering = set(ancestors(request.purpose)) if request.purpose in PURPOSES else set[str]()
    return {
        "policy": request.policy_id == policy.policy_id,
        "dataset": request.dataset_id == policy.dataset_id,
        "who": request.coordinator in policy.permitted_coordinators,
        "never": request.coordinator not in policy.prohibited,
        "purposes": bool(covering & set(policy.purposes)),
        "not_purposes": not covering & set(policy.not_purposes),
        "tasks": "*" in policy.tasks or request.task in policy.tasks,
        "plans": policy.plans is None or request.plan_digest in policy.plans,
        "code": (request.code_digest or "built-in") in policy.code,
        "rehearsal": policy.rehearsal is Rehearsal.ALLOWED or not request.rehearsal,
        "release_to": rank(request.release_to) <= rank(policy.release_to),
        "release_tier": rank(request.release_tier) >= rank(policy.release_tier),
        "status": request.status_fresh,
    }


def _when_data_is_used(policy: UsagePolicy, request: RoundRequest, *, records_withheld: bool) -> dict[str, bool]:
    cap = policy.per_round_epsilon_micro
    return {
        "not_before": policy.not_before <= request.now,
        "not_after": request.now < policy.not_after,
        "regions": request.region in policy.regions,
        "min_holders": request.holders >= policy.min_holders,
        "columns": "*" in policy.columns or set(policy.columns) >= request.columns,
        "min_records": records_withheld or (request.records is not None and request.records >= policy.min_records),
        "unit": rank(request.unit) >= rank(policy.unit),
        "subject_records": (
            request.unit is not Unit.RECORD
            or not request.names_subjects
            or policy.subject_records is SubjectRecords.APART
        ),
        "epsilon": request.epsilon_after_micro <= policy.epsilon_micro,
        "delta": request.delta_pico <= policy.delta_pico,
        "per_round_epsilon": cap is None or request.epsilon_cost_micro <= cap,
        "retention_days": request.retention_days <= policy.retention_days,
    }

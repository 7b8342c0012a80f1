"""One use as a request to the gate, put together in the same way by coordinator, data holder and verifier."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ringfence_policy.policy import UsagePolicy
from ringfence_policy.request import RoundRequest
from ringfence_policy.vocabulary import Action, Evaluation

if TYPE_CHECKING:
    from ringfence_policy.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a use would add to a policy's history, at the policy's delta; epsilon in millionths.

    A holder reads it from its ledger, the coordinator from the holder's word, a verifier from the record.
    """

    rounds_used: int = 0
    epsilon_after_micro: int = 0
    epsilon_cost_micro: int = 0


def use_request(
    plan: "TrainingPlan",
    policy: UsagePolicy,
    *,
    action: Action,
    now_ms: int,
    cohort_size: int,
    cost: Cost,
    evaluation: Evaluation = Evaluation.NONE,
    records: int | None = None,
    sandboxed: bool,
    revoked: bool,
    suspended: bool,
    status_fresh: bool,
) -> RoundRequest:
    """Form the request for one use of one holder's data.

    Names come from the plan; every number comes from whoever calls, who must have established it itself.

    Args:
        plan: The plan as signed.
        policy: The holder's policy.
        action: What would be done.
        now_ms: When, in milliseconds since the Unix epoch.
        cohort_size: Holders in the cohort, this one included.
        cost: What the use would add to the policy's history.
        evaluation: How the model would be measured, for an evaluation.
        records: Rows at the holder; None wherever the holder's own machine is not deciding. Secret.
        sandboxed: Whether records are opened behind walls. The holder alone knows; others take it for granted.
        revoked: Whether the holder's status revokes the policy for this use.
        suspended: Whether the holder's status suspends every use of its data.
        status_fresh: Whether a fresh status is at hand.
    """
    return RoundRequest(
        **_planned(plan),
        policy_id=policy.policy_id,
        action=action,
        dataset_id=policy.dataset_id,
        now=datetime.fromtimestamp(now_ms / 1000, UTC),
        **vars(cost),
        delta_pico=policy.delta_pico,
        records=records,
        holders=cohort_size,
        sandboxed=sandboxed,
        evaluation=evaluation,
        revoked=revoked,
        suspended=suspended,
        status_fresh=status_fresh,
    )


def _planned(plan: "TrainingPlan") -> dict[str, Any]:
    """The facts that the signed plan alone says."""
    terms = plan.terms
    return {
        "coordinator": terms.coordinator,
        "purpose": terms.purpose,
        "task": terms.task,
        "plan_digest": plan.digest,
        "code_digest": terms.model.code_digest,
        "region": terms.cohort.region,
        "unit": plan.unit,
        "names_subjects": plan.dataset_schema.subject is not None,
        "secure_aggregation": terms.cohort.secure_aggregation,
        "columns": frozenset(plan.dataset_schema.column_names()),
        "retention_days": terms.release.retention_days,
        "release_to": terms.release.to,
        "release_tier": terms.release.tier,
        "rehearsal": plan.rehearsal,
    }

"""How long a holder works on one request: as long as the plan gives it, by its own clock, from when the request came.

The clock is the machine's monotonic one, so that neither a wrong date nor a corrected one makes a holder late. What is
late is not sent, and what was reserved for it is given back.
"""

from contextvars import ContextVar
from time import monotonic

from ringfence_policy.decision import Decision
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.request import RoundRequest

# Set by whoever lets requests wait before they are worked on: the time that they waited counts too.
arrived: ContextVar[float | None] = ContextVar("ringfence_request_arrived", default=None)


def received() -> float:
    """When the request in hand came, in seconds of the monotonic clock."""
    came = arrived.get()
    return monotonic() if came is None else came


def unless_late(decision: Decision, facts: RoundRequest, *, since: float, plan: TrainingPlan) -> Decision:
    """The decision, or the denial that a permit turns into once the coordinator waits no longer.

    Args:
        decision: What the gate decided.
        facts: What it was decided on.
        since: When the request came, as `received` said.
        plan: The plan, which says how long there is for an answer.
    """
    allowed = plan.terms.cohort.round_seconds
    if not decision.permitted or monotonic() - since < allowed:
        return decision
    return Decision.deny(
        "deadline",
        point=decision.point,
        limit=f"{allowed} seconds for an answer ([cohort] round_seconds of the plan)",
        policy=decision.policy,
        policy_digest=decision.policy_digest,
        inputs_digest=facts.digest(),
    )

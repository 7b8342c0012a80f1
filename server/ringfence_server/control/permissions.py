"""Which role may do what: one table, asked by every use case and by nothing else."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from ringfence_policy.errors import NotAllowed, NotKnown
from ringfence_server.control.actor import Actor, Role


class Act(StrEnum):
    """Everything that can be asked for."""

    SEE_PLANS = "plan.see"
    PROPOSE = "plan.propose"
    PREVIEW = "plan.preview"
    START = "run.start"
    WATCH = "run.watch"
    SUSPEND = "run.suspend"
    RESUME = "run.resume"
    COMPARE = "run.compare"
    SEE_HOLDERS = "holder.see"
    OWN_DATA = "holder.own"
    EDIT_POLICY = "holder.policy.edit"
    STOP_USE = "holder.stop"
    APPROVE = "approval.give"
    INSPECT = "decision.inspect"
    EXPORT = "evidence.export"
    VERIFY = "evidence.verify"
    ISSUE_TOKENS = "token.issue"
    SEE_READS = "reads.see"
    SEE_METRICS = "metrics.see"


_EVERYBODY = frozenset(Role)
_STEERING = frozenset({Role.COORDINATOR})
_HOLDER = frozenset({Role.HOLDER})

ALLOWED: Mapping[Act, frozenset[Role]] = MappingProxyType(
    {
        Act.SEE_PLANS: _EVERYBODY,
        Act.PROPOSE: frozenset({Role.COORDINATOR, Role.RESEARCHER}),
        Act.PREVIEW: frozenset({Role.COORDINATOR, Role.RESEARCHER, Role.REGULATOR, Role.HOLDER}),
        Act.START: _STEERING,
        Act.WATCH: _EVERYBODY,
        # A regulator may stop what goes on, and may not make anything go on.
        Act.SUSPEND: frozenset({Role.COORDINATOR, Role.REGULATOR}),
        Act.RESUME: _STEERING,
        Act.COMPARE: frozenset({Role.COORDINATOR, Role.RESEARCHER, Role.REGULATOR}),
        Act.SEE_HOLDERS: _EVERYBODY,
        Act.OWN_DATA: _HOLDER,
        Act.EDIT_POLICY: _HOLDER,
        Act.STOP_USE: _HOLDER,
        Act.APPROVE: _HOLDER,
        Act.INSPECT: frozenset({Role.HOLDER, Role.COORDINATOR, Role.REGULATOR}),
        Act.EXPORT: frozenset({Role.HOLDER, Role.COORDINATOR, Role.REGULATOR}),
        Act.VERIFY: _EVERYBODY,
        Act.ISSUE_TOKENS: frozenset({Role.ADMINISTRATOR}),
        Act.SEE_READS: frozenset({Role.REGULATOR, Role.ADMINISTRATOR}),
        Act.SEE_METRICS: frozenset({Role.ADMINISTRATOR}),
    }
)


def allow(actor: Actor, act: Act, *, holder: str | None = None) -> None:
    """Let an actor do something, or refuse it.

    Args:
        actor: Who asks.
        act: What for.
        holder: Whose data it is about, where it is about one data holder's.

    Raises:
        NotKnown: It is another data holder's, which a data officer may not even know of.
        NotAllowed: The role may not do it.
    """
    if actor.role not in ALLOWED[act]:
        raise NotAllowed(
            "this role may not do that",
            expected=f"one of {', '.join(sorted(role.value for role in ALLOWED[act]))}",
            got=actor.role.value,
            where=act.value,
            next_step="sign in with a role that may, or ask somebody who has it",
        )
    if holder is not None and actor.role is Role.HOLDER and actor.holder != holder:
        raise NotKnown("there is no such data holder here", where=act.value)


def may(actor: Actor, act: Act, *, holder: str | None = None) -> bool:
    """Whether `allow` lets it pass: for pages that show only what can be done."""
    own = holder is None or actor.role is not Role.HOLDER or actor.holder == holder
    return actor.role in ALLOWED[act] and own

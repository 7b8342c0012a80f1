"""Which data holders take part in a round together, when each one's terms may depend on who else does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ringfence_policy.decision import Decision
from ringfence_policy.errors import Fault


@dataclass(frozen=True)
class Cohort:
    """The greatest set of holders in which every one permits.

    Attributes:
        members: Holders that take part, sorted; empty where none permits.
        decisions: Each member's permit, given exactly this cohort.
        refusals: Each other candidate's denial, given the cohort it was asked about.
        passes: How often the remaining holders were asked.
    """

    members: tuple[str, ...]
    decisions: Mapping[str, Decision]
    refusals: Mapping[str, Decision]
    passes: int


def largest_cohort(candidates: Sequence[str], permits: Callable[[str, frozenset[str]], Decision]) -> Cohort:
    """Find the greatest cohort by asking, leaving out who refuses, and asking the rest again.

    One refusal can break another holder's `min_holders`, hence the iteration. It ends after at most one pass per
    candidate. The result is the greatest set because clauses are monotone in the cohort: a holder that refuses a
    larger cohort refuses a smaller one too, so nobody left out could have stayed.

    Args:
        candidates: Holder ids, each once, in any order.
        permits: Decides for one holder, given the whole cohort it would be part of (itself included). Pure.

    Raises:
        Fault: A candidate is named twice.
    """
    if len(set(candidates)) != len(candidates):
        raise Fault("a data holder is named twice", expected="each candidate once", got=", ".join(sorted(candidates)))
    members = frozenset(candidates)
    refusals: dict[str, Decision] = {}
    passes = 0
    while True:
        passes += 1
        decisions = {holder: permits(holder, members) for holder in sorted(members)}
        refused = {holder: decision for holder, decision in decisions.items() if not decision.permitted}
        if not refused:
            return Cohort(tuple(sorted(members)), decisions, dict(sorted(refusals.items())), passes)
        refusals |= refused
        members -= refused.keys()

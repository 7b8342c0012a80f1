"""The gate: one policy and one request in, one decision out, with no clock, file, network or logger.

Cedar and the reference evaluator both decide, every time. Only when both permit, with no error and with the same
clauses, is the use permitted; everything else is a denial that says why.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from ringfence_policy.cedar import CedarAnswer, CedarEngine, compile_policy, engine_for
from ringfence_policy.clauses import CLAUSES, not_judged_at
from ringfence_policy.decision import OUTSIDE_THE_POLICY, Decision, Effect, FailedClause, Point
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.reference import failed_clauses
from ringfence_policy.request import RoundRequest
from ringfence_policy.vocabulary import SecureAggregation

ENGINE: Final = "engine"
_NO_ENGINE: Final = {"name": "cedar", "version": "unavailable", "compiled": ""}

T = TypeVar("T")


class PolicyGate:
    """Decides the uses of one policy. Compiled once; thread-safe; decisions are values.

    Building a gate never fails for want of an engine: without one, every decision is a denial with clause `engine`.
    """

    def __init__(self, policy: UsagePolicy) -> None:
        self.policy: Final = policy
        self._errors: list[str] = []
        self._engine: CedarEngine | None = _guarded(lambda: engine_for(compile_policy(policy)), self._errors, "compile")
        self._obligations: Final = _obligations(policy)

    def decide(self, request: RoundRequest, *, point: Point) -> Decision:
        """Decide whether `request` may use the holder's data, as seen from `point`.

        At the coordinator the row count and the sandbox are not judged (the decision says so). At the holder they are,
        and a request without a row count is denied.
        """
        return self._decide(request, point=point, records_withheld=point is Point.COORDINATOR)

    def redecide(self, request: RoundRequest, *, point: Point) -> Decision:
        """Decide again from public facts, as an auditor does offline: what only the holder saw is not judged.

        Never call this to let a use happen.
        """
        return self._decide(request, point=point, records_withheld=True)

    def _decide(self, request: RoundRequest, *, point: Point, records_withheld: bool) -> Decision:
        errors = list(self._errors)
        reference = _guarded(
            lambda: failed_clauses(self.policy, request, point=point, records_withheld=records_withheld),
            errors,
            "reference",
        )
        cedar = self._ask(request, point=point, records_withheld=records_withheld, errors=errors)
        cedar_failed = cedar.failed if cedar else frozenset[str]()
        agrees = (
            cedar is not None
            and reference is not None
            and cedar_failed == reference
            and cedar.allowed is (not reference)
        )
        if cedar is not None and reference is not None and not agrees:
            said = "no decision" if cedar.allowed is None else "permit" if cedar.allowed else "deny"
            errors.append(f"disagreement: cedar says {said} {sorted(cedar_failed)}, reference {sorted(reference)}")
        failed = cedar_failed | (reference or frozenset())
        permitted = agrees and not failed and not errors
        reasons = [self._reason(name, request) for name in failed if name in CLAUSES]
        if not permitted and (errors or not agrees or not reasons):
            reasons.append(FailedClause(ENGINE, OUTSIDE_THE_POLICY[ENGINE], "no error, no disagreement"))
        return Decision(
            effect=Effect.PERMIT if permitted else Effect.DENY,
            point=point,
            failed=tuple(reasons),
            errors=tuple(sorted(errors)),
            policy=self.policy.reference,
            policy_digest=self.policy.digest,
            inputs_digest=request.digest(),
            engine=self._engine.description if self._engine else _NO_ENGINE,
            reference_agrees=agrees,
            not_judged=not_judged_at(point, request.action, records_withheld=records_withheld),
            obligations=self._obligations if permitted else (),
        )

    def _ask(
        self, request: RoundRequest, *, point: Point, records_withheld: bool, errors: list[str]
    ) -> CedarAnswer | None:
        engine = self._engine
        if engine is None:
            return None
        answer = _guarded(
            lambda: engine.ask(request, policy=self.policy, point=point, records_withheld=records_withheld),
            errors,
            "cedar",
        )
        if answer is not None:
            errors.extend(answer.errors)
        return answer

    def _reason(self, name: str, request: RoundRequest) -> FailedClause:
        clause = CLAUSES[name]
        return FailedClause(clause.id, clause.sentence(self.policy), clause.limit(self.policy), clause.actual(request))


def _obligations(policy: UsagePolicy) -> tuple[str, ...]:
    """What a permit obliges the one who acts on it to do."""
    duties = [
        f"delete-updates-within-days:{policy.retention_days}",
        f"on-revoke:{policy.on_revoke.value}",
        "record-use",
    ]
    if policy.secure_aggregation is SecureAggregation.REQUIRED:
        duties.append("open-updates-only-as-a-sum")
    return tuple(sorted(duties))


def _guarded(step: Callable[[], T], errors: list[str], name: str) -> T | None:
    """Run `step`; whatever it raises becomes an error of the decision, which denies."""
    try:
        return step()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - fail closed: a panic in Cedar's Rust derives from BaseException
        errors.append(f"{name}-raised: {type(error).__name__}: {error}")
        return None

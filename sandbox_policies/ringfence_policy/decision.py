"""What the gate answers: permit or deny, with every failed clause at once.

A decision is a value. The holder sees limits and actual values; outsiders see `for_outsiders()`, because an actual
value (a count of records) can itself be a leak.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Self

from ringfence_policy.errors import DocumentInvalid, Fault


class Effect(StrEnum):
    """The answer itself."""

    PERMIT = "permit"
    DENY = "deny"


class Point(StrEnum):
    """Where in a round the question is asked."""

    COORDINATOR = "coordinator-before-round"
    BEFORE_TRAINING = "node-before-training"
    BEFORE_UPLOAD = "node-before-upload"
    RELEASE = "release"


OUTSIDE_THE_POLICY: Final[Mapping[str, str]] = {
    "no-policy": "No usage policy covers this dataset.",
    "signature": "The policy's signature must hold under the data holder's keys.",
    "plan": "The plan must be the one the data holder was shown.",
    "attempt": "Each attempt at a use happens once: what it left is sent again, or nothing is.",
    "data": "The data must fit the schema that the data holder agreed to.",
    "deadline": "An answer must leave while the coordinator still waits for it.",
    "dataset-budget": "The dataset's own privacy budget must not be exceeded.",
    "unaccountable": "What is asked and what was done to the data before must be accountable together.",
    "engine": "The rules must be decided without any error or disagreement.",
}
"""Reasons to deny that stand in no clause of a policy, and what each means."""


@dataclass(frozen=True, order=True)
class FailedClause:
    """One reason for a denial.

    Attributes:
        clause: The clause's stable name.
        meaning: The clause as a plain sentence.
        limit: What the policy asks for.
        actual: What the request had. Holder's eyes only; None for outsiders.
    """

    clause: str
    meaning: str
    limit: str
    actual: str | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The gate's answer to one request at one point.

    Attributes:
        effect: Permit or deny.
        point: Where it was decided.
        failed: Every clause that failed, sorted by name; empty for a permit.
        errors: What went wrong in the engine, as `kind: detail`; any error means deny.
        policy: `id@version` of the policy, or None where there was none.
        policy_digest: The policy document's digest, or None.
        inputs_digest: Digest of the request's public facts; "" where no request could be formed.
        engine: Which engine decided: name, version and the compiled policy's digest.
        reference_agrees: Whether the reference evaluator found exactly the same failed clauses.
        not_judged: Clauses this point cannot judge because the fact is the holder's alone.
        obligations: What a permit obliges the one who acts on it to do; sorted.
    """

    effect: Effect
    point: Point
    failed: tuple[FailedClause, ...] = ()
    errors: tuple[str, ...] = ()
    policy: str | None = None
    policy_digest: str | None = None
    inputs_digest: str = ""
    engine: Mapping[str, str] = field(default_factory=dict)
    reference_agrees: bool = True
    not_judged: tuple[str, ...] = ()
    obligations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "failed", tuple(sorted(self.failed, key=lambda failed: failed.clause)))
        sound = not self.failed and not self.errors and self.reference_agrees
        if self.permitted != sound:
            raise Fault("a permit and a failed clause exclude each other", got=f"{self.effect} with {self.clauses}")

    @property
    def permitted(self) -> bool:
        """Whether the use may go ahead."""
        return self.effect is Effect.PERMIT

    @property
    def clauses(self) -> tuple[str, ...]:
        """The names of the failed clauses, sorted."""
        return tuple(failed.clause for failed in self.failed)

    def for_outsiders(self) -> "Decision":
        """The same decision without actual values and without error details."""
        return replace(
            self,
            failed=tuple(replace(failed, actual=None) for failed in self.failed),
            errors=tuple(error.split(":")[0] for error in self.errors),
        )

    @classmethod
    def deny(
        cls,
        clause: str,
        meaning: str | None = None,
        *,
        point: Point,
        limit: str = "",
        actual: str | None = None,
        policy: str | None = None,
        policy_digest: str | None = None,
        inputs_digest: str = "",
    ) -> Self:
        """Deny for a reason that stands in no clause: no policy, a signature, a stale status, an engine error.

        `meaning` may be left out for the reasons named in `OUTSIDE_THE_POLICY`.
        """
        words = meaning if meaning is not None else OUTSIDE_THE_POLICY.get(clause, clause)
        return cls(
            effect=Effect.DENY,
            point=point,
            failed=(FailedClause(clause, words, limit, actual),),
            policy=policy,
            policy_digest=policy_digest,
            inputs_digest=inputs_digest,
        )

    def to_document(self) -> dict[str, Any]:
        """The decision as a canonical document: strings, booleans, lists and null only."""
        return {
            "effect": self.effect.value,
            "point": self.point.value,
            "failed": [
                {"clause": one.clause, "meaning": one.meaning, "limit": one.limit, "actual": one.actual}
                for one in self.failed
            ],
            "errors": list(self.errors),
            "policy": self.policy,
            "policy_digest": self.policy_digest,
            "inputs_digest": self.inputs_digest,
            "engine": dict(self.engine),
            "reference_agrees": self.reference_agrees,
            "not_judged": list(self.not_judged),
            "obligations": list(self.obligations),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read a decision back from its document.

        Raises:
            DocumentInvalid: A member is missing, unknown or of the wrong type, or a permit carries a failed clause.
        """
        try:
            decision = cls(
                effect=Effect(document["effect"]),
                point=Point(document["point"]),
                failed=tuple(FailedClause(**one) for one in document["failed"]),
                errors=tuple(document["errors"]),
                policy=document["policy"],
                policy_digest=document["policy_digest"],
                inputs_digest=document["inputs_digest"],
                engine=dict(document["engine"]),
                reference_agrees=document["reference_agrees"],
                not_judged=tuple(document["not_judged"]),
                obligations=tuple(document["obligations"]),
            )
            is_same = decision.to_document() == dict(document) and decision._is_typed()
        except (KeyError, TypeError, ValueError, AttributeError, Fault) as error:
            raise DocumentInvalid("not a decision", expected="a decision document", got=type(error).__name__) from error
        if not is_same:
            raise DocumentInvalid("not a decision", expected="the one form of a decision", got="another form")
        return decision

    def _is_typed(self) -> bool:
        texts = [*self.errors, *self.engine.values(), *self.not_judged, *self.obligations, self.inputs_digest]
        texts += [text for one in self.failed for text in (one.clause, one.meaning, one.limit)]
        maybe = [self.policy, self.policy_digest, *(one.actual for one in self.failed)]
        return (
            all(isinstance(text, str) for text in texts)
            and all(text is None or isinstance(text, str) for text in maybe)
            and isinstance(self.reference_agrees, bool)
        )

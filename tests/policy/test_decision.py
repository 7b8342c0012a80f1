import copy

import pytest

from ringfence_policy import canonical
from ringfence_policy.decision import OUTSIDE_THE_POLICY, Decision, Effect, FailedClause, Point
from ringfence_policy.errors import DocumentInvalid, Fault
from ringfence_policy.gate import PolicyGate


def test_failed_clauses_are_sorted_by_name():
    decision = Decision(
        effect=Effect.DENY,
        point=Point.RELEASE,
        failed=(FailedClause("who", "m", "l"), FailedClause("epsilon", "m", "l", None)),
    )
    assert decision.clauses == ("epsilon", "who")
    assert not decision.permitted


@pytest.mark.parametrize(
    "parts",
    [
        {"effect": Effect.PERMIT, "failed": (FailedClause("who", "m", "l"),)},
        {"effect": Effect.PERMIT, "errors": ("cedar-error: x",)},
        {"effect": Effect.PERMIT, "reference_agrees": False},
        {"effect": Effect.DENY},
    ],
)
def test_permit_with_a_failure_and_denial_without_a_reason_cannot_exist(parts):
    with pytest.raises(Fault):
        Decision(point=Point.RELEASE, **parts)


def test_denial_outside_the_policy_has_its_meaning():
    for clause, meaning in OUTSIDE_THE_POLICY.items():
        decision = Decision.deny(clause, point=Point.BEFORE_TRAINING)
        assert decision.clauses == (clause,)
        assert decision.failed[0].meaning == meaning
        assert not decision.permitted


def test_decision_document_is_canonical_and_reads_back(random_uses):
    uses = random_uses(21)
    for number in range(60):
        policy = uses.policy()
        decision = PolicyGate(policy).decide(uses.request(policy), point=list(Point)[number % 4])
        for one in (decision, decision.for_outsiders()):
            document = one.to_document()
            assert canonical.decode(canonical.encode(document)) == document
            assert Decision.from_document(document) == one


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("effect",), "maybe"),
        (("effect",), "permit"),
        (("point",), "somewhere"),
        (("failed",), []),
        (("failed", 0, "clause"), 3),
        (("failed", 0, "extra"), "x"),
        (("failed", 0, "actual"), 7),
        (("errors",), "none"),
        (("errors",), [3]),
        (("policy",), 3),
        (("inputs_digest",), None),
        (("engine",), []),
        (("engine",), {"name": 1}),
        (("reference_agrees",), "yes"),
        (("extra",), 1),
        (("obligations",), None),
    ],
)
def test_decision_document_in_another_form_is_refused(path, value):
    document = Decision.deny("who", point=Point.RELEASE).to_document()
    changed = copy.deepcopy(document)
    here = changed
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = value
    with pytest.raises(DocumentInvalid):
        Decision.from_document(changed)
    with pytest.raises(DocumentInvalid):
        Decision.from_document(
            {key: part for key, part in document.items() if key != path[0]} if path[0] in document else {}
        )

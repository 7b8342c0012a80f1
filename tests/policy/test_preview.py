from datetime import timedelta

import pytest

from ringfence_policy.decision import Point
from ringfence_policy.gate import PolicyGate
from ringfence_policy.preview import PreviewCase, _Fix, preview
from ringfence_policy.vocabulary import Unit

COST = 100_000


@pytest.fixture
def make_case(make_policy, make_request):
    """One holder's view of a plan of ten rounds that each cost epsilon 0.1; `plan` and `policy` change either."""

    def make(holder_id="cleveland", *, plan=None, policy=None, rounds=10, spent=0, used=0, also=()):
        facts = {"epsilon_cost_micro": COST} | (plan or {})

        def request_for(round_number, cohort_size):
            own = {
                "rounds_used": used + round_number - 1,
                "epsilon_after_micro": spent + facts["epsilon_cost_micro"] * round_number,
                "holders": cohort_size,
            }
            return make_request(**(facts | own))

        gate = PolicyGate(make_policy(**({"min_holders": 1} | (policy or {}))))
        return PreviewCase(
            holder_id=holder_id,
            gate=gate,
            rounds=rounds,
            request_for=request_for,
            also=tuple(make_request(**(facts | one)) for one in also),
        )

    return make


def only(case):
    (result,) = preview([case])
    return result


def test_plan_that_every_clause_allows_needs_no_change(make_case):
    result = only(make_case())
    assert result.permitted
    assert result.rounds_permitted == 10
    assert (result.failed, result.changes, result.obstacles, result.change) == ((), (), (), None)


CHANGES = {
    "purposes": ({"purpose": "marketing"}, {}, "State the purpose health-research."),
    "not_purposes": ({"purpose": "breast-cancer-research"}, {}, "State the purpose health-research."),
    "who": ({"coordinator": "somebody"}, {}, "Let heart-consortium or second-consortium coordinate."),
    "never": ({"coordinator": "insurer-one"}, {}, "Let heart-consortium or second-consortium coordinate."),
    "tasks": ({"task": "other-task"}, {}, "Learn heart-disease-risk."),
    "code": ({"code_digest": "sha256:" + "9" * 64}, {}, "Use a model built into Ringfence."),
    "regions": ({"region": "US"}, {}, "Compute in CH or EU."),
    "min_holders": ({}, {"min_holders": 4}, "Bring at least 4 data holders together."),
    "secure_aggregation": ({"secure_aggregation": False}, {}, "Use secure aggregation."),
    "columns": ({"columns": frozenset({"age", "name"})}, {}, "Leave out name."),
    "rehearsal": ({"rehearsal": True}, {}, "Run with private noise"),
    "unit": ({"unit": "record"}, {}, "Protect every person with all of their records."),
    "subject_records": ({"unit": "record"}, {"unit": Unit.RECORD}, "Protect every person with all of their records."),
    "delta": ({"delta_pico": 10**8}, {}, "Account at delta 0.00001."),
    "per_round_epsilon": ({}, {"per_round_epsilon_micro": 50_000}, "Spend at most epsilon 0.05 in a use"),
    "retention_days": ({"retention_days": 31}, {}, "Delete updates within 30 days."),
    "release_to": ({"release_to": "public"}, {}, "Release the model to the participants only."),
    "release_tier": ({"release_tier": "low"}, {}, "Let the model pass the gates of the medium tier."),
    "max_rounds": ({}, {"max_rounds": 8}, "Use at most 8 rounds."),
    "epsilon": ({}, {"epsilon_micro": 799_999}, "Use at most 7 rounds."),
}


@pytest.mark.parametrize("clause", CHANGES)
def test_each_clause_has_its_smallest_change_in_words(make_case, clause):
    plan, policy, words = CHANGES[clause]
    result = only(make_case(plan=plan, policy=policy))
    assert not result.permitted
    assert clause in [one.clause for one in result.failed]
    assert all(one.actual is None for one in result.failed)
    assert result.change is not None
    assert result.change.startswith(words) or result.change == words
    assert result.obstacles == ()


def test_persons_whom_the_data_does_not_name_have_to_be_named_before_they_are_protected(make_case):
    result = only(make_case(plan={"unit": "record", "names_subjects": False}))
    assert [one.clause for one in result.failed] == ["unit"]
    words = "Say in the schema which records are about one person, and protect every person with all of their records."
    assert result.change == words


def test_a_whole_holder_cannot_be_protected_by_any_change_of_a_plan(make_case):
    result = only(make_case(policy={"unit": Unit.HOLDER}))
    assert (result.change, result.obstacles) == (None, ("unit",))


def test_holder_that_opens_later_says_when_to_start(make_case, make_policy):
    early = make_policy().not_before - timedelta(days=1)
    result = only(make_case(plan={"now": early}))
    assert result.change == "Start on 1 January 2026, 00:00 UTC."


def test_several_clauses_give_one_sentence_and_every_part_of_it_is_needed(make_case):
    result = only(make_case(plan={"region": "US", "retention_days": 99}, policy={"max_rounds": 3}))
    assert result.change == "Compute in CH or EU, delete updates within 30 days and use at most 3 rounds."
    assert [change.clause for change in result.changes] == ["regions", "retention_days", "max_rounds"]
    for fixed in ({"region": "CH"}, {"retention_days": 30}):
        plan = {"region": "US", "retention_days": 99} | fixed
        assert not only(make_case(plan=plan, policy={"max_rounds": 3})).permitted
    assert only(make_case(plan={"region": "CH", "retention_days": 30}, policy={"max_rounds": 3}, rounds=3)).permitted


def test_suggested_round_count_passes_and_one_more_does_not(make_case):
    result = only(make_case(policy={"epsilon_micro": 450_000}))
    assert result.rounds_permitted == 4
    assert result.change == "Use at most 4 rounds."
    assert only(make_case(policy={"epsilon_micro": 450_000}, rounds=4)).permitted
    assert not only(make_case(policy={"epsilon_micro": 450_000}, rounds=5)).permitted


def test_budget_too_small_for_one_use_asks_for_cheaper_uses(make_case):
    result = only(make_case(policy={"epsilon_micro": 450_000}, spent=400_000))
    assert result.rounds_permitted == 0
    assert result.change.startswith("Spend at most epsilon 0.05 in all rounds together (raise the noise multiplier)")


@pytest.mark.parametrize(
    ("plan", "policy", "settings", "obstacle"),
    [
        ({"revoked": True}, {}, {}, "revoked"),
        ({"status_fresh": False}, {}, {}, "status"),
        ({"sandboxed": False}, {}, {}, "sandbox"),
        ({"plan_digest": "sha256:" + "9" * 64}, {}, {}, "plans"),
        ({"dataset_id": "another-dataset"}, {}, {}, "dataset"),
        ({}, {"max_rounds": 5}, {"used": 5}, "max_rounds"),
        ({}, {}, {"spent": 1_500_000}, "epsilon"),
        ({}, {"per_round_epsilon_micro": 0}, {}, "per_round_epsilon"),
    ],
)
def test_what_no_plan_can_change_is_named_and_nothing_is_suggested(make_case, plan, policy, settings, obstacle):
    result = only(make_case(plan=plan | {"region": "US"}, policy=policy, **settings))
    assert obstacle in result.obstacles
    assert result.change is None
    assert "regions" in [one.clause for one in result.failed]


def test_window_that_has_closed_is_an_obstacle(make_case, make_policy):
    result = only(make_case(plan={"now": make_policy().not_after}))
    assert result.obstacles == ("not_after",)


def test_further_uses_of_the_plan_are_judged_too(make_case):
    evaluation = {"action": "evaluate", "evaluation": "exact"}
    result = only(make_case(also=(evaluation,)))
    assert [one.clause for one in result.failed] == ["evaluation"]
    assert result.rounds_permitted == 10
    assert result.change == "Make the evaluation private."
    never = only(make_case(also=(evaluation,), policy={"evaluation": "none"}))
    assert never.obstacles == ("evaluation",)


def test_one_holders_refusal_shows_in_anothers_preview(make_case):
    results = preview(
        [
            make_case("small", policy={"min_holders": 1}),
            make_case("wants-two", policy={"min_holders": 2}),
            make_case("wants-three", policy={"min_holders": 3}),
            make_case("refuses", policy={"regions": ("US",)}),
        ]
    )
    assert [(one.holder_id, one.permitted) for one in results] == [
        ("small", True),
        ("wants-two", True),
        ("wants-three", True),
        ("refuses", False),
    ]
    fewer = preview(
        [make_case("wants-two", policy={"min_holders": 2}), make_case("refuses", policy={"regions": ("US",)})]
    )
    assert [one.permitted for one in fewer] == [False, False]
    assert fewer[0].change == "Bring at least 2 data holders together."
    assert fewer[0].to_document()["failed"][0]["clause"] == "min_holders"


def test_no_change_is_suggested_that_the_gate_would_still_refuse(make_case, monkeypatch):
    wrong = {"regions": lambda *_: _Fix("compute in US-CA", {"region": "US-CA"})}
    monkeypatch.setattr("ringfence_policy.preview._FIXES", wrong)
    result = only(make_case(plan={"region": "US"}))
    assert result.changes == ()
    assert result.obstacles == ("regions",)


def test_preview_says_what_the_gate_says_whatever_policy_and_plan(random_uses):
    uses = random_uses(41)
    suggested = 0
    for _ in range(200):
        policy = uses.policy()
        gate, request = PolicyGate(policy), uses.request(policy)
        case = PreviewCase(holder_id="h", gate=gate, rounds=1, request_for=lambda *_, request=request: request)
        result, decision = only(case), gate.redecide(request, point=Point.BEFORE_TRAINING)
        assert result.permitted is decision.permitted
        assert tuple(one.clause for one in result.failed) == decision.clauses
        assert bool(result.changes) + bool(result.obstacles) == (not result.permitted)
        suggested += bool(result.changes)
    assert suggested > 15

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence_server import progress, report_words
from ringfence_server.report import budget_bar, grid_rows
from ringfence_server.report_facts import read_summary


def _said(summary):
    return " ".join(sentence for sentence, _ in report_words.verdict(read_summary(summary)))


# ----------------------------------------------------------------------------- budgets and numbers


def test_a_budget_bar_shows_what_was_spent_before_by_this_run_and_what_is_left(example_summary):
    run = read_summary(example_summary())
    bar = budget_bar(next(holder for holder in run.holders if holder.id == "budapest"))
    assert (bar.before, bar.cap, bar.over) == ("0.250", "1.000", False)
    assert bar.before_width == 25
    assert 25 + bar.run_width < 100
    assert float(bar.before) + float(bar.run) + float(bar.left) == pytest.approx(1, abs=0.003)


def test_a_cap_that_was_lowered_below_the_spend_is_shown_as_exceeded(example_summary):
    summary = example_summary()
    summary["holders"]["budapest"] |= {"epsilon_cap": 0.5, "epsilon": 0.8, "epsilon_at_start": 0.8}
    run = read_summary(summary)
    bar = budget_bar(next(holder for holder in run.holders if holder.id == "budapest"))
    assert bar.over
    assert (bar.before_width, bar.run_width, bar.left) == (100, 0, "0")


@given(st.floats(0, 50), st.floats(0, 50))
def test_no_budget_is_ever_flattered_by_rounding(spent, cap):
    shown = float(report_words.epsilon(spent))
    left = float(report_words.epsilon_left(cap=cap, spent=spent))
    assert shown >= spent - 2e-9  # the tolerance that keeps decimal inputs from being shown a step too high
    assert left <= max(0.0, cap - spent) + 2e-9


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1e-5, "10⁻⁵"),
        (2.5e-6, "2.5 \N{MULTIPLICATION SIGN} 10⁻⁶"),
        (1e-4, "10⁻⁴"),
        (0.0, "0"),
        (None, "\N{EN DASH}"),
        (1e-12, "10⁻¹²"),
    ],
)
def test_delta_is_shown_as_a_power_of_ten(value, shown):
    assert report_words.delta(value) == shown


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([4], "round 4"),
        ([1, 2], "rounds 1 and 2"),
        ([12, 9, 10, 11], "rounds 9 to 12"),
        ([1, 5, 6, 7, 9], "rounds 1, 5 to 7, and 9"),
        ([], "no round"),
    ],
)
def test_round_numbers_are_told_as_ranges(numbers, said):
    assert report_words.number_ranges(numbers) == said


def test_a_run_that_stopped_says_why_and_what_it_still_did(example_summary):
    summary = example_summary()
    summary |= {"status": "stopped", "reason": "every data holder refused", "rounds": summary["rounds"][:5]}
    words = _said(summary)
    assert "was trained in 5 of 12 planned rounds" in words
    assert "The run stopped early: every data holder refused." in words


def test_a_holder_that_permitted_no_evaluation_at_the_end_is_named_beside_the_score(example_summary):
    summary = example_summary()
    del summary["metrics"]["federated_private"]["per_holder"]["budapest"]
    assert "right in 79.3% of cases (measured without Budapest), against" in _said(summary)
    assert "measured without" not in _said(example_summary())


def test_names_with_commas_are_told_apart_in_a_list():
    assert report_words.listed(["Oslo", "Long Beach, VA", "Basel"]) == "Oslo; Long Beach, VA; and Basel"


def test_no_committed_round_claims_no_model_and_no_privacy(example_summary):
    summary = example_summary() | {"rounds": []}
    words = _said(summary)
    assert words.startswith("No model was trained")
    assert "private" not in words


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def _paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


@settings(max_examples=150)
@given(data=st.data(), replacement=_JSON)
def test_whatever_stands_at_any_place_of_the_summary_reading_it_does_not_fail(data, replacement, example_summary):
    summary = example_summary()
    path = data.draw(st.sampled_from([path for path in _paths(summary) if path]))
    target = summary
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = replacement
    run = read_summary(summary)
    assert report_words.verdict(run)
    assert len(grid_rows(run)) == len(run.holders)
    assert len([budget_bar(holder) for holder in run.holders]) == len(run.holders)
    assert isinstance(report_words.refusal_stories(run), tuple)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("private", lambda summary: summary.pop("private")),
        ("rehearsal", lambda summary: summary.pop("rehearsal")),
        ("noise_source", lambda summary: summary["privacy"].update(noise_source="seeded")),
        ("private", lambda summary: summary.update(private="yes")),
    ],
)
def test_privacy_is_claimed_only_where_every_part_of_the_summary_claims_it(part, change, example_summary):
    summary = example_summary()
    change(summary)
    assert not read_summary(summary).private, part


@pytest.mark.parametrize(
    "evidence",
    [
        None,
        {},
        {"verified": True},
        {"verified": True, "checks": []},
        {"verified": True, "checks": [{"name": "logs", "passed": False, "detail": "holder budapest, round 3"}]},
        {"verified": "true", "checks": [{"name": "logs", "passed": True, "detail": ""}]},
    ],
)
def test_evidence_is_called_verified_only_if_checks_are_listed_and_none_failed(evidence, example_summary):
    run = read_summary(example_summary() | {"evidence": evidence})
    assert not run.verified
    sentence, is_warning = report_words.verdict(run)[-1]
    assert is_warning
    assert "NOT" in sentence


def test_a_round_that_was_tried_again_counts_once(example_summary):
    run = read_summary(example_summary())
    assert report_words.committed_rounds(run) == 12
    assert [entry.committed for entry in run.rounds if entry.number == 7] == [False, True]


def test_a_round_whose_only_update_was_rejected_is_not_committed(example_summary):
    summary = example_summary()
    summary["rounds"][12]["rejected_updates"] = [{"holder": "cleveland", "code": "nan", "reason": "not finite"}]
    assert not read_summary(summary).rounds[12].committed


def test_the_relation_names_what_the_same_noise_costs_when_a_record_is_replaced(example_summary):
    summary = example_summary()
    summary["privacy"]["holders"] = {"budapest": {"epsilon": 0.8, "epsilon_replace_one": 1.9, "delta": 1e-5}}
    words = report_words.relation(read_summary(summary))
    assert words.startswith("add or remove one")
    assert "replace one: epsilon budapest 1.900" in words


def test_a_holder_that_was_not_heard_is_not_said_to_have_refused(example_summary):
    summary = example_summary()
    reason = {"clause": "no-reply", "meaning": "The holder's node is offline.", "limit": ""}
    silent = {"holder": "budapest", "clauses": ["no-reply"], "point": "coordinator-before-round", "reasons": [reason]}
    summary["rounds"][0]["refused"] = [silent]
    (refusal,) = read_summary(summary).rounds[0].refusals
    assert report_words.refusal_words(refusal) == "not heard: The holder's node is offline."


def test_the_terminal_tells_who_was_not_heard_from_who_refused():
    outcome = {
        "round": 2,
        "cohort": ["cleveland"],
        "refused": [
            {"holder": "budapest", "clauses": ["no-reply"]},
            {"holder": "long-beach", "clauses": ["epsilon", "revoked"]},
        ],
        "rejected_updates": [],
        "metrics": None,
        "committed": True,
    }
    assert progress._sentence(outcome) == (
        "round 2: cleveland trained; budapest was not heard; long-beach refused (epsilon, revoked)"
    )


def test_who_was_asked_and_refused_at_home_did_not_train():
    outcome = {
        "round": 11,
        "cohort": ["cleveland"],
        "refused": [{"holder": "cleveland", "clauses": ["min_records"]}],
        "rejected_updates": [],
        "metrics": None,
        "committed": False,
        "reason": "no update may be used",
    }
    assert progress._sentence(outcome) == (
        "round 11: nobody trained; cleveland refused (min_records); not committed: no update may be used"
    )

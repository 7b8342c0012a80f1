import re
from pathlib import Path

import pytest

from ringfence_policy import reference
from ringfence_policy.clauses import CLAUSES, explain, not_judged_at
from ringfence_policy.decision import OUTSIDE_THE_POLICY, Point
from ringfence_policy.policy import toml_keys
from ringfence_policy.vocabulary import Action, Evaluation, OnRevoke, ReleaseTo, Sandbox, SubjectRecords, Unit
from ringfence_policy.wording import counted, delta_text, epsilon_text, listed

DOCS = Path(__file__).parents[2] / "docs" / "policy.md"


def test_every_toml_key_has_a_clause_and_every_clause_a_toml_key(policy_keys):
    clauses = {(clause.table, clause.toml_key) for clause in CLAUSES.values() if clause.table}
    assert clauses == {(table, key) for table, key in policy_keys if table != "policy"}


def test_reference_for_data_officers_lists_every_clause_and_reason():
    text = DOCS.read_text(encoding="utf-8")
    sections = {
        found.group(1): found.group(2)
        for found in re.finditer(r"^### `\[(\w+)\]`.*?\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL)
    }
    for clause in CLAUSES.values():
        row = f"| `{clause.id}` | `{clause.toml_key}` |" if clause.table else f"| `{clause.id}` |"
        place = sections[clause.table] if clause.table else text
        assert row in place, f"docs/policy.md lacks the row {row!r}"
        if clause.table:
            binds = (
                "all"
                if clause.actions == frozenset(Action)
                else ", ".join(
                    word
                    for action, word in ((Action.TRAIN, "training"), (Action.EVALUATE, "evaluation"))
                    if action in clause.actions
                )
            )
            line = next(line for line in place.splitlines() if line.startswith(row))
            assert line.endswith(f"| {binds} |"), f"docs/policy.md says otherwise whom {clause.id} binds: {line}"
    for reason in OUTSIDE_THE_POLICY:
        assert f"| `{reason}` |" in text


def test_every_policy_reads_as_one_sentence_per_clause(random_uses):
    uses = random_uses(3)
    for _ in range(60):
        policy = uses.policy()
        sentences = explain(policy)
        assert len(sentences) == len(CLAUSES)
        for sentence in sentences:
            assert re.fullmatch(r"\S.*\S\.|\S.*\.", sentence)
            assert "None" not in sentence
            assert "Fault" not in sentence
            assert "_micro" not in sentence


def test_sentences_say_amounts_as_a_reader_knows_them(make_policy):
    sentences = explain(make_policy())
    assert "At most 12 rounds may use this data." in sentences
    assert "All uses of this data together may spend at most epsilon 1.5 of privacy." in sentences
    assert "No single use may spend more than epsilon 0.3." in sentences
    assert "This data may be used until 31 December 2026, 23:00 UTC, and no longer." in sentences
    assert "At most 1 round may use this data." in explain(make_policy(max_rounds=1))


@pytest.mark.parametrize("kind", [Unit, Sandbox, SubjectRecords, Evaluation, ReleaseTo, OnRevoke])
def test_every_word_of_the_vocabulary_has_its_own_sentence(make_policy, kind):
    attribute = {
        Unit: "unit",
        Sandbox: "sandbox",
        SubjectRecords: "subject_records",
        Evaluation: "evaluation",
        ReleaseTo: "release_to",
        OnRevoke: "on_revoke",
    }[kind]
    sentences = {explain(make_policy(**{attribute: word})) for word in kind}
    assert len(sentences) == len(kind)


def test_only_the_row_count_and_the_walls_are_beyond_the_coordinators_sight():
    assert not_judged_at(Point.COORDINATOR, Action.TRAIN) == ("min_records", "sandbox")
    assert not_judged_at(Point.COORDINATOR, Action.EVALUATE) == ("min_records", "sandbox")
    assert not_judged_at(Point.COORDINATOR, Action.RELEASE) == ()
    assert not_judged_at(Point.BEFORE_TRAINING, Action.TRAIN) == ()


def test_only_the_row_count_is_beyond_an_auditors_sight():
    assert not_judged_at(Point.BEFORE_TRAINING, Action.TRAIN, records_withheld=True) == ("min_records",)
    assert not_judged_at(Point.BEFORE_UPLOAD, Action.EVALUATE, records_withheld=True) == ("min_records",)
    assert not_judged_at(Point.RELEASE, Action.RELEASE, records_withheld=True) == ()


def test_reference_evaluator_does_not_read_the_clause_table():
    """Its independence is what makes a fault in the table visible."""
    source = Path(reference.__file__).read_text(encoding="utf-8")
    assert "ringfence_policy.clauses" not in source
    assert "ringfence_policy.cedar" not in source


def test_clause_table_is_in_reading_order():
    assert [clause.table for clause in CLAUSES.values() if clause.table] == [
        table for table, keys in toml_keys().items() for _ in keys if table != "policy"
    ]


@pytest.mark.parametrize(
    ("micro", "text"), [(0, "0"), (1, "0.000001"), (1_500_000, "1.5"), (10**15, "1000000000"), (10**7, "10")]
)
def test_epsilon_is_shown_as_a_plain_decimal(micro, text):
    assert epsilon_text(micro) == text


def test_delta_names_and_counts_in_english():
    assert delta_text(10_000_000) == "0.00001"
    assert delta_text(1) == "0.000000000001"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"], joined_by="or") == "a, b or c"
    assert counted(1, "day") == "1 day"
    assert counted(36_500, "day") == "36,500 days"

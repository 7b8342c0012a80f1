"""plan.toml is refused where it would make a run useless or a holder compute without end, with line and expectation."""

import pytest

from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.plan import PlanFile, TrainingPlan
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.strict_toml import parse_toml
from ringfence_policy.vocabulary import Unit

PLAN = """
plan_id = "tree-study"
title = "A small study of trees"
coordinator = "tree-consortium"
purpose = "disease-research"
task = "leaf-disease-prediction"
[model]
kind = "logistic-regression"
[training]
strategy = "FedAvg"
rounds = 3
steps = 1
sampling_rate = "1"
learning_rate = "2"
clipping_norm = "0.5"
[privacy]
noise_multiplier_max = "8"
[cohort]
region = "CH"
[release]
to = "participants"
tier = "low"
retention_days = 30
"""


def read(*changes):
    text = PLAN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_toml(text, PlanFile, source="plan.toml")


def test_an_ordinary_plan_is_read():
    assert read().training.rounds == 3


def test_a_plan_that_says_nothing_of_time_waits_ten_minutes_for_all():
    assert (read().cohort.round_seconds, read().cohort.enough_holders) == (600, 0)
    enough = read(('region = "CH"', 'region = "CH"\nround_seconds = 30\nmin_holders = 2\nenough_holders = 2'))
    assert (enough.cohort.round_seconds, enough.cohort.enough_holders) == (30, 2)


@pytest.mark.parametrize(
    ("changes", "line", "expected"),
    [
        ([('purpose = "disease-research"', 'purpose = "curiosity"')], 5, "a purpose of the vocabulary"),
        ([('region = "CH"', 'region = "Mars"')], 19, "two capitals"),
        ([('clipping_norm = "0.5"', 'clipping_norm = "1e-9"')], 15, "at least 0.000001"),
        ([('sampling_rate = "1"', 'sampling_rate = "1e-9"')], 13, "at least 0.000001"),
        (
            [('kind = "logistic-regression"', 'kind = "module"\npath = "trees:model"\ncode_digest = "abc"')],
            10,
            "a digest",
        ),
        ([('region = "CH"', 'region = "CH"\nround_seconds = 0')], 20, "1 or more"),
        ([('region = "CH"', 'region = "CH"\nround_seconds = 86401')], 20, "86400"),
        ([('region = "CH"', 'region = "CH"\nmin_holders = 3\nenough_holders = 2')], 21, "min_holders, which is 3"),
        ([('sampling_rate = "1"', 'sampling_rate = "1.5"')], 13, "at most 1"),
        ([('sampling_rate = "1"', "sampling_rate = 0.5")], 13, "quotes"),
        ([('clipping_norm = "0.5"', 'clipping_norm = "0"')], 15, "at least 0.000001"),
        ([('sampling_rate = "1"', 'sampling_rate = "0.01"'), ("steps = 1", "steps = 90000")], 12, "sampled steps"),
        ([('kind = "logistic-regression"', 'kind = "mlp"')], 8, "hidden"),
        ([('kind = "logistic-regression"', 'kind = "mlp"\nhidden = [1000000000000]')], 9, "65536"),
        ([('kind = "logistic-regression"', 'kind = "module"\npath = "a:B"')], 8, "path and code_digest"),
        ([('"FedAvg"', '"FedProx"'), ('"0.5"', '"0.5"\nproximal_mu = "0.6"')], 16, "proximal_mu of at most 1"),
        ([("[privacy]\n", '[privacy]\nunit = "holder"\n')], 17, "'record' or 'subject'"),
        ([("[privacy]\n", '[privacy]\nunit = "patient"\n')], 17, "'record', 'subject' or 'holder'"),
        ([("[privacy]\n", '[privacy]\nrelation = "replace-one"\n')], 17, "add-or-remove"),
        ([('strategy = "FedAvg"', 'strategy = "FedBest"')], 10, "FedAvg"),
        ([('to = "participants"', 'to = "everyone"')], 21, "public"),
    ],
)
def test_a_plan_that_cannot_be_run_safely_is_refused_at_its_line(changes, line, expected):
    with pytest.raises(DocumentInvalid) as caught:
        read(*changes)
    assert caught.value.where == f"plan.toml:{line}"
    assert expected in (caught.value.expected or "")


def schema(*, names_subjects):
    document = {
        "title": "Leaves",
        "label": {"column": "ill", "positive_above": "0"},
        "columns": [{"name": "length", "kind": "number", "low": "0", "high": "10"}],
    }
    return DatasetSchema.from_document(
        document | ({"subject": {"column": "tree", "max_records": 3}} if names_subjects else {})
    )


def plan(unit=None, *, names_subjects):
    terms = read(*([("[privacy]\n", f'[privacy]\nunit = "{unit}"\n')] if unit else []))
    return TrainingPlan(terms=terms, dataset_schema=schema(names_subjects=names_subjects), holders={}, rehearsal=False)


@pytest.mark.parametrize(
    ("unit", "names_subjects", "protected"),
    [
        (None, False, Unit.RECORD),
        (None, True, Unit.SUBJECT),
        ("record", False, Unit.RECORD),
        ("record", True, Unit.RECORD),
        ("subject", True, Unit.SUBJECT),
    ],
)
def test_a_plan_protects_what_it_says_or_else_what_the_schema_names(unit, names_subjects, protected):
    whole = plan(unit, names_subjects=names_subjects)
    assert whole.unit is protected
    document = whole.to_document()
    assert document["terms"]["privacy"]["unit"] == protected.value  # a signed plan leaves nothing to be worked out
    again = TrainingPlan.from_document(document)
    assert (again, again.digest) == (whole, whole.digest)


def test_a_plan_for_subjects_whom_the_schema_does_not_name_is_refused():
    with pytest.raises(DocumentInvalid, match=r"a table \[subject\] in the schema"):
        plan("subject", names_subjects=False)
    signed = plan("subject", names_subjects=True).to_document()
    del signed["dataset_schema"]["subject"]
    with pytest.raises(DocumentInvalid, match="does not say which records"):
        TrainingPlan.from_document(signed)

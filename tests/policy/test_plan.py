"""plan.toml is refused where it would make a run useless or a holder compute without end, with line and expectation."""

import pytest

from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.plan import PlanFile
from ringfence_policy.strict_toml import parse_toml

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


@pytest.mark.parametrize(
    ("changes", "line", "expected"),
    [
        ([('purpose = "disease-research"', 'purpose = "curiosity"')], 5, "one of"),
        ([('sampling_rate = "1"', 'sampling_rate = "1.5"')], 13, "at most 1"),
        ([('sampling_rate = "1"', "sampling_rate = 0.5")], 13, "quotes"),
        ([('clipping_norm = "0.5"', 'clipping_norm = "0"')], 15, "above 0"),
        ([('sampling_rate = "1"', 'sampling_rate = "0.01"'), ("steps = 1", "steps = 90000")], 12, "sampled steps"),
        ([('kind = "logistic-regression"', 'kind = "mlp"')], 8, "hidden"),
        ([('kind = "logistic-regression"', 'kind = "mlp"\nhidden = [1000000000000]')], 9, "65536"),
        ([('kind = "logistic-regression"', 'kind = "module"\npath = "a:B"')], 8, "path and code_digest"),
        ([('"FedAvg"', '"FedProx"'), ('"0.5"', '"0.5"\nproximal_mu = "0.6"')], 16, "proximal_mu of at most 1"),
        ([("[privacy]\n", '[privacy]\nunit = "subject"\n')], 17, "record"),
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

"""Why a subject has to be the unit where a person has several records: what record-level privacy is for that person."""

import functools
import math
import re
from pathlib import Path

import pytest

from ringfence_policy.accounting import epsilon
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit

DELTA = 1e-5
RATE, NOISE, STEPS = 0.05, 1.0, 300


def training(unit):
    return DpMechanism(
        kind="dp-sgd",
        clipping_norm=1.0,
        noise_multiplier=NOISE,
        sampling_rate=RATE,
        steps=STEPS,
        unit=unit,
        relation=Relation.ADD_OR_REMOVE,
    )


@functools.lru_cache
def of_a_person_at_record_level(records):
    """Epsilon of all records of one person where each is drawn, clipped and accounted for by itself.

    The person moves a step's sum by as many clipping norms as records were drawn: a mixture of Gaussians with binomial
    weights, which dp_accounting composes.
    """
    events = pytest.importorskip("dp_accounting.dp_event")
    pld = pytest.importorskip("dp_accounting.pld")
    shares = [math.comb(records, k) * RATE**k * (1 - RATE) ** (records - k) for k in range(records + 1)]
    step = events.MixtureOfGaussiansDpEvent(NOISE, list(range(records + 1)), shares)
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3 if records == 1 else 1e-2)  # high by up to 0.01
    return accountant.compose(step, STEPS).get_epsilon(DELTA)


def test_a_subject_of_any_size_costs_what_a_record_costs():
    subject = epsilon([(training(Unit.SUBJECT), 1)], delta=DELTA)
    assert subject == epsilon([(training(Unit.RECORD), 1)], delta=DELTA)
    assert subject == pytest.approx(5.80, abs=0.01)


def test_the_privacy_pages_table_is_what_dp_accounting_gives():
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
    table = page.split("| records of one person |")[1].split("\n\n")[0]
    rows = re.findall(r"(?m)^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", table)
    assert [int(records) for records, _, _ in rows] == [1, 2, 5, 10]
    subject = epsilon([(training(Unit.SUBJECT), 1)], delta=DELTA)
    for records, apart, together in rows:
        assert float(together) == pytest.approx(subject, abs=0.01)
        assert float(apart) == pytest.approx(of_a_person_at_record_level(int(records)), abs=0.06)


def test_record_level_epsilon_of_five_point_eight_is_forty_three_for_a_person_with_five_records():
    assert of_a_person_at_record_level(1) == pytest.approx(5.80, abs=0.01)
    assert of_a_person_at_record_level(5) == pytest.approx(42.95, abs=0.02)

"""The scenario that benchmarks run: a real one, in which every holder permits every round at the wanted noise."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from ringfence_client.datasource import load_dataset
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.settlement import settle
from ringfence_server.forecast import forecast
from ringfence_server.scenario import load_scenario

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "synthetic.py"


@pytest.fixture(scope="module")
def synthetic():
    if not SCRIPT.is_file():
        pytest.skip("the benchmarks stand in a checkout only")
    spec = importlib.util.spec_from_file_location("benchmark_synthetic", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scenario(synthetic, tmp_path_factory):
    directory = tmp_path_factory.mktemp("synthetic") / "two"
    built = synthetic.build_scenario(
        directory, holders=2, rows=40, features=3, rounds=2, noise_multiplier="1.3", processes=1
    )
    assert built.holders == 2
    return load_scenario(directory)


def test_every_synthetic_holder_permits_every_round(scenario):
    previews = forecast(scenario, scenario.plan)
    assert [(one.permitted, one.rounds_permitted) for one in previews] == [(True, 2)] * 2


def test_every_synthetic_holder_calibrates_the_wanted_noise(scenario):
    plan = TrainingPlan(terms=scenario.plan, dataset_schema=scenario.schema, holders={}, rehearsal=False)
    for holder, policy in scenario.policies.items():
        settlement = settle(
            plan=plan,
            policy=policy,
            dataset=scenario.holders[holder].dataset,
            policy_history=(),
            dataset_history=(),
        )
        assert settlement.training.noise_multiplier == 1.3


def test_synthetic_records_reach_the_model_as_they_were_drawn(synthetic, scenario):
    for number, holder in enumerate(scenario.holders):
        values, labels = synthetic.draw_records(number, rows=40, features=3, seed=0)
        data = load_dataset(scenario.holder_directory(holder), scenario.schema)
        np.testing.assert_allclose(data.features, values, atol=1e-7)
        np.testing.assert_array_equal(data.labels, labels)


def test_synthetic_records_are_the_same_every_time_and_other_ones_at_each_holder(synthetic):
    def draw(holder, seed=0):
        return synthetic.draw_records(holder, rows=30, features=4, seed=seed)[0]

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    assert not np.array_equal(draw(1), draw(1, seed=1))


def test_a_directory_with_something_in_it_is_left_alone(synthetic, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        synthetic.build_scenario(tmp_path, holders=1)

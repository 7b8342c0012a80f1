"""What an update must be before any strategy sees it, and that honest ones always are."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit
from ringfence_server.update_checks import find_defect, norm_bound

BASE = {"weight": np.full((2, 3), 0.5, np.float32), "bias": np.zeros(2, np.float32)}
WEIGHT = 300


def mechanism(*, clip=0.5, noise=2.0, rate=1.0, steps=1):
    return DpMechanism.rounded(
        kind="dp-sgd",
        clipping_norm=clip,
        noise_multiplier=noise,
        sampling_rate=rate,
        steps=steps,
        unit=Unit.RECORD,
        relation=Relation.ADD_OR_REMOVE,
    )


def honest():
    return {name: array + np.float32(0.01) for name, array in BASE.items()}


def code_of(update=None, *, claimed=WEIGHT, bound=1.0):
    defect = find_defect(honest() if update is None else update, base=BASE, bound=bound, claimed_weight=claimed,
                         weight=WEIGHT)  # fmt: skip
    return None if defect is None else defect.code


def changed(**arrays):
    return {**honest(), **arrays}


def test_an_honest_update_has_no_defect():
    assert code_of() is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_one_number_that_is_not_finite_refuses_the_update(value, place):
    weight = honest()["weight"]
    weight[place] = value
    assert code_of(changed(weight=weight)) == "not-finite"


@pytest.mark.parametrize(
    "weight",
    [
        np.zeros((3, 2), np.float32),
        np.zeros(6, np.float32),
        np.zeros((2, 3, 1), np.float32),
        np.zeros((0, 3), np.float32),
        np.float32(0.0) * np.zeros((), np.float32),
    ],
    ids=["transposed", "flattened", "one dimension more", "empty", "a single number"],
)
def test_another_shape_refuses_the_update(weight):
    assert code_of(changed(weight=np.asarray(weight))) == "wrong-shape"


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, ">f4", np.complex64, bool])
def test_another_number_type_refuses_the_update(dtype):
    assert code_of(changed(weight=np.zeros((2, 3), dtype))) == "wrong-dtype"


def test_a_missing_parameter_refuses_the_update():
    assert code_of({"weight": honest()["weight"]}) == "wrong-shape"


def test_a_parameter_too_many_refuses_the_update():
    assert code_of(changed(more=np.zeros(1, np.float32))) == "wrong-shape"


def test_a_parameter_under_another_name_refuses_the_update():
    update = honest()
    update["wieght"] = update.pop("weight")
    assert code_of(update) == "wrong-shape"


@pytest.mark.parametrize("claimed", [10**9, -1, 0, -WEIGHT, 301, True, 300.0, float("nan"), None, "300", [300]])
def test_any_count_but_the_declared_weight_refuses_the_update(claimed):
    assert code_of(claimed=claimed) == "count"


def test_true_is_not_a_weight_of_one():
    assert find_defect(BASE, base=BASE, bound=1.0, claimed_weight=True, weight=1).code == "count"


def test_an_update_of_a_thousand_times_the_norm_is_refused():
    bound = norm_bound(mechanism(), learning_rate=1.0, weight=WEIGHT, parameters=8)
    step = np.float32(bound / math.sqrt(8) * 0.99)
    within = {name: array + step for name, array in BASE.items()}
    beyond = {name: array + 1000 * step for name, array in BASE.items()}
    assert code_of(within, bound=bound) is None
    assert code_of(beyond, bound=bound) == "norm"


def test_an_update_of_the_largest_numbers_there_are_is_refused_for_its_norm():
    huge = np.full((2, 3), np.finfo(np.float32).max, np.float32)
    assert code_of(changed(weight=huge)) == "norm"


def test_a_reason_never_holds_a_value_of_the_update():
    secret = np.full((2, 3), 12345.678, np.float32)
    defect = find_defect(changed(weight=secret), base=BASE, bound=1.0, claimed_weight=WEIGHT, weight=WEIGHT)
    assert "12345" not in defect.reason


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    records=st.integers(0, 4 * WEIGHT),
    clip=st.floats(0.01, 100),
    noise=st.floats(0.1, 1000),
    rate=st.floats(0.01, 1),
    steps=st.integers(1, 20),
    parameters=st.integers(1, 3000),
    learning_rate=st.floats(1e-3, 100),
    mu=st.floats(0, 1),
)
def test_no_honest_update_is_refused_for_its_norm_whatever_its_records_and_noise(  # noqa: PLR0917 -- hypothesis names them
    seed, records, clip, noise, rate, steps, parameters, learning_rate, mu
):
    """DP-SGD at its worst: every gradient at the clip and in one direction, and records up to four times the weight."""
    used = mechanism(clip=clip, noise=noise, rate=rate, steps=steps)
    generator = np.random.default_rng(seed)
    direction = generator.standard_normal(parameters)
    direction /= np.linalg.norm(direction)
    base = generator.standard_normal(parameters).astype(np.float32)
    pull = min(mu, 1 / learning_rate)  # a proximal term that does not overshoot
    place = base.astype(np.float64)
    for _ in range(used.steps):
        drawn = generator.binomial(records, used.sampling_rate)
        summed = drawn * used.clipping_norm * direction + generator.normal(0, used.noise_stddev, parameters)
        place -= learning_rate * (summed / (used.sampling_rate * WEIGHT) + pull * (place - base))
    bound = norm_bound(used, learning_rate=learning_rate, weight=WEIGHT, parameters=parameters)
    update = {"w": place.astype(np.float32)}
    assert find_defect(update, base={"w": base}, bound=bound, claimed_weight=WEIGHT, weight=WEIGHT) is None


@settings(max_examples=100)
@given(noise=st.floats(0.1, 1000), parameters=st.integers(1, 10**6), weight=st.integers(1, 10**6))
def test_the_bound_lets_no_update_through_that_is_a_thousand_times_as_far_as_an_honest_one(noise, parameters, weight):
    used = mechanism(noise=noise)
    bound = norm_bound(used, learning_rate=1.0, weight=weight, parameters=parameters)
    typical = used.clipping_norm + used.noise_stddev * math.sqrt(parameters) / weight
    assert bound < 1000 * typical

"""The floating-point attack, mounted on what is released: which of two neighbouring sums can a noised value come from?

Mironov 2012, On Significance of the Least Significant Bits for Differential Privacy; Holohan & Braghin 2021, Secure
Random Sampling in Differential Privacy, arXiv:2107.10138, section 3.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ringfence_client.noise import RehearsalNoise, snapped

SEED = 20261121
DRAWS = 400_000
# Two sums that one record sets apart, with the noise of noise multiplier 1.
WITHOUT, WITH = 0.0, 1.0


def released(total: float, *, how: str, stream: str) -> np.ndarray:
    noise = RehearsalNoise(SEED, stream=stream).normal((DRAWS,), stddev=1.0)
    if how == "float32":
        return (np.float32(total) + noise.astype(np.float32)).astype(np.float64)
    return snapped(total + noise, stddev=1.0) if how == "snapped" else total + noise


def lowest_bit(values: np.ndarray) -> np.ndarray:
    """The exponent of each value's lowest set bit: how finely it lies; 0 where the value is 0."""
    mantissa, exponent = np.frexp(values)
    whole = (np.abs(mantissa) * 2.0**53).astype(np.int64)
    lowest = np.log2(np.maximum(whole & -whole, 1)).astype(np.int64)
    return np.where(values == 0, 0, exponent - 53 + lowest)


def guesses_right(how: str) -> float:
    """Share of small outputs that the attack gives to the right sum.

    A value near 0 that came from the sum 1 was cut to the spacing of floats near 1; one from the sum 0 was not. The
    attacker learns from trainings of its own how finely each sum's outputs lie, and judges fresh ones by that.
    """
    histograms, tests = [], []
    for total in (WITHOUT, WITH):
        for part, kept in (("learn", histograms), ("test", tests)):
            values = released(total, how=how, stream=f"{part} {total}")
            kept.append(lowest_bit(values[np.abs(values) < 1 / 16]))
    counts = [np.bincount(bits + 100, minlength=101) / len(bits) for bits in histograms]
    says_with = counts[1] > counts[0]
    return float(((~says_with[tests[0] + 100]).mean() + says_with[tests[1] + 100].mean()) / 2)


@pytest.mark.parametrize("how", ["float32", "float64"])
def test_low_bits_betray_the_sum_under_plain_addition(how):
    assert guesses_right(how) > 0.9


def test_low_bits_betray_nothing_after_snapping():
    small = 2 * DRAWS * stats.norm.pdf(0.5) / 8
    assert abs(guesses_right("snapped") - 0.5) < 5 / math.sqrt(small)


def test_outputs_of_both_sums_are_the_same_set():
    """Near the centre every grid point within reach comes from either sum: no output proves which it was."""
    narrow = 1 / 64
    points = []
    for total in (WITHOUT, WITH):
        values = np.concatenate([released(total, how="snapped", stream=f"{part}/{total}") for part in range(10)])
        points.append(set((values[np.abs(values - 0.5) < narrow] * 2**16).tolist()))
    everything = set(range(math.ceil((0.5 - narrow) * 2**16) + 1, math.floor((0.5 + narrow) * 2**16)))
    assert all(len(everything - found) < 1e-4 * len(everything) for found in points)
    assert all(point == round(point) for found in points for point in found)


def test_the_last_digits_of_a_snapped_value_are_uniform_whatever_the_sum():
    for total in (0.0, 1.0, 1 / 3, 1e-9, 12345.678901):
        steps = np.rint(released(total, how="snapped", stream=str(total)) * 2**16).astype(np.int64)
        assert stats.chisquare(np.bincount(steps % 256, minlength=256)).pvalue > 1e-3


@given(
    value=st.floats(-1e6, 1e6),
    stddev=st.floats(1e-3, 1e3),
)
def test_snapping_takes_the_nearest_multiple_of_a_public_power_of_two(value, stddev):
    grid = 2.0 ** (math.floor(math.log2(stddev)) - 16)
    (found,) = snapped(np.array([value]), stddev=stddev).tolist()
    assert math.fmod(found, grid) == 0
    assert abs(found - value) <= grid / 2


def test_snapping_leaves_its_argument_and_keeps_what_is_not_finite():
    values = np.array([0.1, math.inf, math.nan])
    kept = values.copy()
    found = snapped(values, stddev=1.0)
    assert np.array_equal(values[:2], kept[:2])
    assert found[1] == math.inf
    assert math.isnan(found[2])


@pytest.mark.parametrize("stddev", [0.0, -1.0, math.nan, math.inf])
def test_there_is_no_grid_without_noise(stddev):
    with pytest.raises(ValueError, match="above zero"):
        snapped(np.zeros(3), stddev=stddev)


def test_a_float32_sum_is_not_snapped_for_its_low_bits_are_gone_already():
    with pytest.raises(ValueError, match="float64"):
        snapped(np.zeros(3, dtype=np.float32), stddev=1.0)

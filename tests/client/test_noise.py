import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ringfence_client.noise import NoiseFault, RehearsalNoise, SecureNoise, check_noise, noise_defect
from ringfence_client.sampling import poisson_sample

SEED = 20261121
MANY = 1_000_000


@pytest.fixture(scope="module")
def normals() -> np.ndarray:
    return RehearsalNoise(SEED).normal((MANY,), stddev=1.0).numpy()


def test_normals_have_the_moments_of_a_normal(normals):
    # Standard errors of mean, variance, skewness and kurtosis over n draws: 1, sqrt 2, sqrt 6, sqrt 24, by sqrt n.
    for found, expected, error in (
        (normals.mean(), 0, 1),
        (normals.var(), 1, math.sqrt(2)),
        (stats.skew(normals), 0, math.sqrt(6)),
        (stats.kurtosis(normals), 0, math.sqrt(24)),
    ):
        assert abs(found - expected) < 5 * error / math.sqrt(MANY)


def test_normals_follow_the_normal_distribution_function(normals):
    assert stats.kstest(normals[:200_000], "norm").pvalue > 1e-3


@pytest.mark.parametrize("beyond", [1.0, 2.0, 3.0, 4.0])
def test_normals_have_the_tails_of_a_normal(normals, beyond):
    chance = 2 * stats.norm.sf(beyond)
    found = int((np.abs(normals) > beyond).sum())
    assert abs(found - MANY * chance) < 5 * math.sqrt(MANY * chance)


def test_normals_are_not_correlated_with_their_neighbours_or_pairs(normals):
    # Box-Muller makes two normals from one pair of uniforms: half the draws apart.
    for lag in (1, 2, MANY // 2):
        correlation = float(np.corrcoef(normals[:-lag], normals[lag:])[0, 1])
        assert abs(correlation) < 5 / math.sqrt(MANY - lag)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5), (0,)])
def test_noise_has_the_shape_asked_for_in_float64(shape):
    drawn = SecureNoise().normal(shape, stddev=0.5)
    assert drawn.shape == shape
    assert drawn.dtype == torch.float64


@pytest.mark.parametrize("stddev", [0.0, -1.0, math.nan, math.inf])
def test_no_noise_is_never_a_request(stddev):
    with pytest.raises(ValueError, match="above zero"):
        SecureNoise().normal((3,), stddev=stddev)


@given(stddev=st.floats(1e-6, 1e6))
def test_noise_scales_with_the_standard_deviation(stddev):
    one = RehearsalNoise(1).normal((64,), stddev=1.0)
    assert torch.allclose(RehearsalNoise(1).normal((64,), stddev=stddev), stddev * one, rtol=1e-12, atol=0)


def test_uniforms_are_uniform_and_never_an_end():
    drawn = RehearsalNoise(SEED).uniform(200_000)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3


def test_the_extreme_keystream_words_stay_inside_the_unit_interval(monkeypatch):
    source = RehearsalNoise(1)
    for word, end in ((0x00, 0.0), (0xFF, 1.0)):
        monkeypatch.setattr(source, "_fill_with_keystream", lambda words, _, word=word: words.view(np.uint8).fill(word))
        assert 0 < abs(source.uniform(1)[0] - end) < 1e-15
        assert np.isfinite(source.normal((4,), stddev=1.0).numpy()).all()


def test_two_secure_sources_share_nothing():
    assert not torch.equal(SecureNoise().normal((8,), stddev=1.0), SecureNoise().normal((8,), stddev=1.0))


def test_a_secure_source_does_not_repeat_itself():
    source = SecureNoise()
    drawn = source.normal((50_000,), stddev=1.0)
    assert len(torch.unique(drawn)) == len(drawn)


def test_a_forked_process_draws_other_noise_than_its_parent():
    """With one keystream in two processes, the difference of two updates would be free of noise."""
    script = """
import os
from ringfence_client.noise import SecureNoise
source = SecureNoise()
reader, writer = os.pipe()
child = os.fork()
drawn = source.uniform(4).tobytes().hex()
if child == 0:
    os.write(writer, drawn.encode())
    os._exit(0)
os.waitpid(child, 0)
print(os.read(reader, 1000).decode() == drawn)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_secure_source_cannot_be_copied(duplicate):
    with pytest.raises(TypeError, match="not copied"):
        duplicate(SecureNoise())


def test_a_rehearsal_repeats_itself_and_its_streams_differ():
    drawn = RehearsalNoise(7, stream="cleveland").uniform(3).tolist()
    assert drawn == RehearsalNoise(7, stream="cleveland").uniform(3).tolist()
    assert drawn != RehearsalNoise(7, stream="budapest").uniform(3).tolist()
    assert drawn != RehearsalNoise(8, stream="cleveland").uniform(3).tolist()


def test_the_sources_say_what_they_are():
    assert SecureNoise().kind == "csprng"
    assert RehearsalNoise(1).kind == "seeded"


@pytest.mark.parametrize("source", [SecureNoise(), RehearsalNoise(SEED)], ids=["secure", "rehearsal"])
def test_sound_noise_passes_the_check(source):
    check_noise(source)


class Faulty(RehearsalNoise):
    """Sound noise, spoilt."""

    def __init__(self, *, scale: float = 1.0, offset: float = 0.0) -> None:
        super().__init__(SEED)
        self._scale, self._offset = scale, offset

    def normal(self, shape, *, stddev):
        return super().normal(shape, stddev=stddev) * self._scale + self._offset


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (Faulty(scale=0.9), "smaller than claimed"),
        (Faulty(scale=1.1), "larger than claimed"),
        (Faulty(scale=0.0), "smaller than claimed"),
        (Faulty(offset=0.2), "not centred"),
        (Faulty(offset=math.nan), "not finite"),
    ],
)
def test_noise_a_tenth_too_small_is_caught(source, named):
    with pytest.raises(NoiseFault, match=named):
        check_noise(source)


def test_no_samples_prove_nothing():
    assert noise_defect(np.zeros(0), stddev=1.0) is not None


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_poisson_sampling_draws_each_unit_with_the_rate_independently(rate):
    units, draws = 400, 400
    noise = RehearsalNoise(SEED)
    joined = np.zeros((draws, units))
    for row in joined:
        row[poisson_sample(units, sampling_rate=rate, noise=noise)] = 1
    # Sizes are binomial; a fixed-size or shuffled batch would have no variance.
    assert abs(joined.mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / joined.size)
    variance = units * rate * (1 - rate)
    assert 0.6 * variance < joined.sum(axis=1).var() < 1.5 * variance
    assert stats.chisquare(joined.sum(axis=0) + 1).pvalue > 1e-6


def test_at_rate_one_every_unit_joins_and_nothing_is_drawn():
    noise = RehearsalNoise(1)
    assert poisson_sample(5, sampling_rate=1.0, noise=noise).tolist() == [0, 1, 2, 3, 4]
    assert noise.uniform(1)[0] == RehearsalNoise(1).uniform(1)[0]


def test_a_draw_may_be_empty():
    assert poisson_sample(3, sampling_rate=1e-6, noise=RehearsalNoise(1)).size == 0
    assert poisson_sample(0, sampling_rate=0.5, noise=RehearsalNoise(1)).size == 0


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match="sampling rate"):
        poisson_sample(3, sampling_rate=rate, noise=RehearsalNoise(1))

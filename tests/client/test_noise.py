import copy
import math
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ringfence_client.compiled import load_library
from ringfence_client.noise import RehearsalNoise, SecureNoise, check_noise, noise_defect
from ringfence_client.normals import CompiledBoxMuller
from ringfence_client.sampling import poisson_sample
from ringfence_client.torch_normals import TorchBoxMuller
from ringfence_client.workroom import NoiseFault

SEED = 20261121
MANY = 1_000_000


TRANSFORMS = [TorchBoxMuller(), *(CompiledBoxMuller(library) for library in [load_library()] if library is not None)]
by_each_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.name)


@pytest.fixture(scope="module", params=TRANSFORMS, ids=lambda transform: transform.name)
def normals(request) -> np.ndarray:
    return RehearsalNoise(SEED, transform=request.param).normal((MANY,), stddev=1.0)


def test_normals_have_the_moments_of_a_normal(normals):
    # Standard errors of mean, variance, skewness and kurtosis over n draws: 1, sqrt 2, sqrt 6, sqrt 24, by sqrt n.
    for found, expected, error in (
        (normals.mean(), 0, 1),
        (normals.var(), 1, math.sqrt(2)),
        (stats.skew(normals), 0, math.sqrt(6)),
        (stats.kurtosis(normals), 0, math.sqrt(24)),
    ):
        assert abs(found - expected) < 5 * error / math.sqrt(MANY)


@by_each_transform
def test_ten_million_normals_follow_the_normal_distribution_function(transform):
    """Kolmogorov and Smirnov, at 65,536 places: sound noise passes 2.2 by the root of n once in 8,000 times."""
    drawn, places = RehearsalNoise(SEED, transform=transform).normal((10_000_000,), stddev=1.0), 1 << 16
    cells = torch.special.ndtr(torch.from_numpy(drawn)).mul_(places).long()
    found = torch.bincount(cells, minlength=places).cumsum(0) / len(drawn)
    expected = torch.arange(1, places + 1, dtype=torch.float64) / places
    assert float((found - expected).abs().max()) * math.sqrt(len(drawn)) < 2.2
    for beyond in (3.0, 4.0, 4.75):
        chance = 2 * stats.norm.sf(beyond) * len(drawn)
        assert abs(int((np.abs(drawn) > beyond).sum()) - chance) < 5 * math.sqrt(chance)


@pytest.mark.parametrize("beyond", [1.0, 2.0, 3.0, 4.0])
def test_normals_have_the_tails_of_a_normal(normals, beyond):
    chance = 2 * stats.norm.sf(beyond)
    found = int((np.abs(normals) > beyond).sum())
    assert abs(found - MANY * chance) < 5 * math.sqrt(MANY * chance)


@by_each_transform
def test_the_least_uniform_reaches_beyond_nine_standard_deviations(transform, monkeypatch):
    """A tail cut at 6.7, as 32-bit uniforms cut it, would be seen once in 100,000 rounds of a million parameters."""
    source = RehearsalNoise(1, transform=transform)
    monkeypatch.setattr(source, "_fill_with_keystream", lambda words, _: words.fill(0))
    assert source.normal((1,), stddev=1.0)[0] == pytest.approx(math.sqrt(2 * 64 * math.log(2)))


def test_normals_are_not_correlated_with_their_neighbours(normals):
    for lag in (1, 2, 3, 1 << 16):
        correlation = float(np.corrcoef(normals[:-lag], normals[lag:])[0, 1])
        assert abs(correlation) < 5 / math.sqrt(MANY - lag)


def test_the_two_normals_of_a_pair_are_independent(normals):
    """Box-Muller makes both from one radius: neither their signs, their sizes nor their joint cells may show it."""
    first, second = normals[0::2], normals[1::2]
    sizes = float(np.corrcoef(first**2, second**2)[0, 1])
    assert abs(sizes) < 5 / math.sqrt(len(first))
    edges = stats.norm.ppf(np.arange(1, 10) / 10)
    cells = 10 * np.searchsorted(edges, first) + np.searchsorted(edges, second)
    assert stats.chisquare(np.bincount(cells, minlength=100)).pvalue > 1e-3


@by_each_transform
@given(
    rows=st.integers(0, 5), length=st.one_of(st.integers(0, 40), st.just(40_000)), stddev=st.sampled_from([0.3, 1.0, 7])
)
def test_rows_drawn_together_equal_rows_drawn_one_after_another(transform, rows, length, stddev):
    """Trainers rely on it: one draws a step's noise at a time, another all steps' at once."""
    apart, together = (RehearsalNoise(1, transform=transform) for _ in range(2))
    expected = [apart.normal((length,), stddev=stddev) for _ in range(rows)]
    drawn = together.normal((rows, length), stddev=stddev)
    assert drawn.shape == (rows, length)
    assert all(np.array_equal(one, other) for one, other in zip(drawn, expected, strict=True))
    assert np.array_equal(together.normal((3,), stddev=1.0), apart.normal((3,), stddev=1.0))


@given(first=st.integers(0, 50), second=st.one_of(st.integers(0, 50), st.just(100_000)))
def test_uniforms_drawn_together_equal_uniforms_drawn_one_after_another(first, second):
    apart, together = RehearsalNoise(1), RehearsalNoise(1)
    expected = np.concatenate([apart.uniform(first), apart.uniform(second)])
    assert (together.uniform(first + second) == expected).all()


def test_noise_and_sampling_do_not_move_one_another():
    alone, mixed = RehearsalNoise(1), RehearsalNoise(1)
    uniforms, normals = alone.uniform(5), alone.normal((5,), stddev=1.0)
    assert np.array_equal(mixed.normal((5,), stddev=1.0), normals)
    assert (mixed.uniform(5) == uniforms).all()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5), (0,)])
def test_noise_has_the_shape_asked_for_in_float64(shape):
    drawn = SecureNoise().normal(shape, stddev=0.5)
    assert drawn.shape == shape
    assert drawn.dtype == np.float64


@pytest.mark.parametrize("stddev", [0.0, -1.0, math.nan, math.inf])
def test_no_noise_is_never_a_request(stddev):
    with pytest.raises(ValueError, match="above zero"):
        SecureNoise().normal((3,), stddev=stddev)


@given(stddev=st.floats(1e-6, 1e6))
def test_noise_scales_with_the_standard_deviation(stddev):
    one = RehearsalNoise(1).normal((64,), stddev=1.0)
    assert np.allclose(RehearsalNoise(1).normal((64,), stddev=stddev), stddev * one, rtol=1e-12, atol=0)


def test_uniforms_are_uniform_and_never_an_end():
    drawn = RehearsalNoise(SEED).uniform(MANY)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    for part in (drawn, drawn * 2**20 % 1, drawn * 2**40 % 1):  # high, middle and low bits
        assert stats.chisquare(np.bincount((part * 4096).astype(int), minlength=4096)).pvalue > 1e-3


@by_each_transform
def test_the_extreme_keystream_words_stay_inside_the_unit_interval(transform, monkeypatch):
    source = RehearsalNoise(1, transform=transform)
    for word, end in ((0x00, 0.0), (0xFF, 1.0)):
        monkeypatch.setattr(source, "_fill_with_keystream", lambda words, _, word=word: words.view(np.uint8).fill(word))
        assert 0 < abs(source.uniform(1)[0] - end) < 1e-15
        assert np.isfinite(source.normal((4,), stddev=1.0)).all()


def test_two_secure_sources_share_nothing():
    one, other = SecureNoise(), SecureNoise()
    first, second = one.normal((MANY,), stddev=1.0), other.normal((MANY,), stddev=1.0)
    assert not (first == second).any()
    assert abs(float((first * second).mean())) < 5 / math.sqrt(MANY)
    assert not (one.uniform(8) == other.uniform(8)).any()


def test_a_draw_is_not_changed_by_what_is_drawn_later_or_elsewhere():
    """Sources share scratch memory, which must never show through what they gave."""
    source = SecureNoise()
    drawn = source.normal((1000,), stddev=1.0)
    kept = drawn.copy()
    source.normal((1000,), stddev=1.0)
    SecureNoise().normal((1000,), stddev=3.0)
    assert np.array_equal(drawn, kept)


@by_each_transform
def test_threads_draw_at_once_without_mixing_their_noise(transform):
    expected = [RehearsalNoise(seed, transform=transform).normal((50_000,), stddev=1.0) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        drawn = list(
            pool.map(lambda seed: RehearsalNoise(seed, transform=transform).normal((50_000,), stddev=1.0), range(16))
        )
    assert all(np.array_equal(one, other) for one, other in zip(drawn, expected, strict=True))


def test_a_secure_source_does_not_repeat_itself():
    source = SecureNoise()
    drawn = source.normal((50_000,), stddev=1.0)
    assert len(np.unique(drawn)) == len(drawn)


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

"""Both transforms make the same normals of the same words, and the compiled one is as exact as it says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence_client import normals
from ringfence_client.compiled import load_library
from ringfence_client.noise import RehearsalNoise
from ringfence_client.normals import PAIRS_AT_ONCE, CompiledBoxMuller
from ringfence_client.torch_normals import TorchBoxMuller

LIBRARY = load_library()
LANES = [4, 8, 16]
LEAST, MOST = -(2**63), 2**63 - 1
needs_library = pytest.mark.skipif(LIBRARY is None, reason="no library was compiled here")
has_long_double = np.finfo(np.longdouble).nmant >= 63


def filled(transform, words, *, stddev=1.0):
    pairs = np.array(words, dtype=np.int64).reshape(-1, 2).view(np.float64)
    transform.fill(pairs, stddev=stddev)
    return pairs


def random_words(pairs, *, seed=0):
    return np.random.default_rng(seed).integers(LEAST, MOST, (pairs, 2), endpoint=True)


# Every place where a polynomial, a quarter turn, an exponent or the rounding of a word begins or ends.
EDGES = sorted(
    {
        min(MOST, max(LEAST, sign * (place + off)))
        for sign in (1, -1)
        for off in (-1, 0, 1)
        for place in (0, *(2**power for power in range(64)), 3 * 2**61, math.isqrt(2**125))
    }
)


@needs_library
@pytest.mark.parametrize("lanes", LANES)
def test_the_compiled_transform_makes_the_normals_of_torch(lanes):
    """To 2**-49 of a pair's radius; at the edges of both words too."""
    edges = np.array([(first, second) for first in EDGES for second in EDGES])
    for words in (random_words(PAIRS_AT_ONCE), edges[:PAIRS_AT_ONCE], edges[-PAIRS_AT_ONCE:]):
        ours, reference = filled(CompiledBoxMuller(LIBRARY, most_lanes=lanes), words), filled(TorchBoxMuller(), words)
        assert np.isfinite(ours).all()
        off = np.abs(ours - reference).max(axis=1)
        assert (off <= 2.0**-49 * np.hypot(*reference.T)).all()


@needs_library
@pytest.mark.skipif(not has_long_double, reason="no wider float to compare with")
@pytest.mark.parametrize("lanes", LANES)
def test_the_compiled_transform_is_exact_to_four_units_of_the_last_place(lanes):
    """Against 80-bit arithmetic on the same uniform: the error of a normal is at most 4 x 2**-53 of its radius."""
    words = random_words(PAIRS_AT_ONCE, seed=1)
    uniforms = (np.abs(words[:, 0].astype(np.float64)) + 0.5) * 2.0**-63
    radii = np.sqrt(-2 * np.log(uniforms.astype(np.longdouble)))
    angles = words[:, 1].astype(np.longdouble) * (4 * np.arctan(np.longdouble(1)) * np.longdouble(2) ** -63)
    exact = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    off = np.abs(filled(CompiledBoxMuller(LIBRARY, most_lanes=lanes), words) - exact).max(axis=1)
    assert float((off / radii).max()) < 4 * 2.0**-53


@needs_library
@pytest.mark.parametrize("lanes", LANES)
@given(count=st.integers(0, 300), at=st.integers(0, 299), stddev=st.floats(1e-6, 1e6))
def test_a_pair_depends_on_its_own_words_and_nothing_else(lanes, count, at, stddev):
    """So rows drawn together equal rows drawn apart, to the last bit, wherever a call is cut."""
    transform, words = CompiledBoxMuller(LIBRARY, most_lanes=lanes), random_words(300)
    together = filled(transform, words[:count], stddev=stddev)
    if at < count:
        assert together[at].tobytes() == filled(transform, words[at], stddev=stddev).tobytes()
    assert together.tobytes() == filled(transform, words, stddev=stddev)[:count].tobytes()


@needs_library
@pytest.mark.parametrize("lanes", LANES)
def test_nothing_is_written_beyond_the_pairs_given(lanes):
    pairs = random_words(130).view(np.float64)
    kept = pairs.copy()
    CompiledBoxMuller(LIBRARY, most_lanes=lanes).fill(pairs[1:66], stddev=1.0)
    assert pairs[:1].tobytes() == kept[:1].tobytes()
    assert pairs[66:].tobytes() == kept[66:].tobytes()
    assert not (pairs[1:66] == kept[1:66]).any()


@needs_library
def test_a_rehearsal_draws_the_same_noise_by_both_transforms():
    ours = RehearsalNoise(1, transform=CompiledBoxMuller(LIBRARY)).normal((3, 50_001), stddev=0.7)
    reference = RehearsalNoise(1, transform=TorchBoxMuller()).normal((3, 50_001), stddev=0.7)
    assert np.allclose(ours, reference, rtol=0, atol=10 * 2.0**-49)


def test_without_a_library_torch_transforms(monkeypatch):
    monkeypatch.setattr(normals, "load_library", lambda: None)
    assert normals.best_transform.__wrapped__().name == "torch"


@needs_library
def test_with_a_library_that_fits_it_transforms():
    assert normals.best_transform.__wrapped__().name == "compiled"

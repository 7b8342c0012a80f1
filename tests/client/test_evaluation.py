import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays
from sklearn.metrics import accuracy_score, roc_auc_score

from ringfence_client.datasource import HolderData
from ringfence_client.evaluation import metrics_from_scores, noised_counts, score_counts, scores
from ringfence_client.noise import RehearsalNoise, SecureNoise, noise_defect
from ringfence_policy.errors import TrustRefused, Unaccountable
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.score_histogram import EXACT_BINS, PRIVATE_BINS, THOUSANDTHS, metrics_of
from ringfence_policy.vocabulary import Relation, Unit

torch.set_num_threads(1)

MODEL = {"kind": "logistic-regression"}
ARRAYS = {"layers.weight": np.float32([[2.0, -1.0]]), "layers.bias": np.float32([0.25])}


def exact_metrics(model, arrays, rows):
    return metrics_from_scores(scores(model, arrays, rows), rows.labels)


def histogram(noise_multiplier: float = 20.0, **changes) -> DpMechanism:
    members = {
        "kind": "score-histogram",
        "clipping_norm": 1.0,
        "noise_multiplier": noise_multiplier,
        "sampling_rate": 1.0,
        "steps": 1,
        "unit": Unit.RECORD,
        "relation": Relation.ADD_OR_REMOVE,
    }
    return DpMechanism(**{**members, **changes})


def data(rows: int = 300, seed: int = 1) -> HolderData:
    rng = np.random.default_rng(seed)
    features = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    labels = (features @ np.float32([2, -1]) + rng.normal(0, 1, rows) > 0).astype(np.float32)
    return HolderData.from_arrays(features, labels)


@given(
    probabilities=numpy_arrays(np.float64, 30, elements=st.sampled_from([0.0, 0.2, 0.49, 0.5, 0.51, 0.8, 1.0])),
    labels=numpy_arrays(np.float32, 30, elements=st.sampled_from([0.0, 1.0])),
)
def test_metrics_agree_with_scikit_learn_ties_included(probabilities, labels):
    found = metrics_from_scores(probabilities, labels)
    assert found.accuracy == pytest.approx(accuracy_score(labels, probabilities >= 0.5))
    if 0 < labels.sum() < 30:
        assert found.auc == pytest.approx(roc_auc_score(labels, probabilities))
    else:
        assert found.auc is None


def test_no_records_have_no_metrics():
    empty = metrics_from_scores(np.zeros(0), np.zeros(0, dtype=np.float32))
    assert (empty.accuracy, empty.auc, empty.records) == (None, None, 0)
    assert scores(MODEL, ARRAYS, data(0)).shape == (0,)


def test_scores_are_the_models_probabilities():
    rows = data()
    expected = 1 / (1 + np.exp(-(rows.features @ np.float32([2, -1]) + 0.25)))
    np.testing.assert_allclose(scores(MODEL, ARRAYS, rows), expected, rtol=1e-5)


def test_exact_counts_read_by_the_shared_histogram_give_the_exact_metrics():
    rows = data(2000)
    counts = score_counts(MODEL, ARRAYS, rows, bins=EXACT_BINS)
    assert counts.shape == (2, EXACT_BINS)
    assert counts.sum() == rows.records
    thousandths = tuple([int(count * THOUSANDTHS) for count in row] for row in counts)
    read, exact = metrics_of(thousandths), exact_metrics(MODEL, ARRAYS, rows)
    assert read.accuracy == pytest.approx(exact.accuracy)
    assert read.auc == pytest.approx(exact.auc, abs=2e-3)


def test_a_score_of_exactly_one_half_counts_as_positive_everywhere():
    zeros = {name: np.zeros_like(array) for name, array in ARRAYS.items()}
    counts = score_counts(MODEL, zeros, data(), bins=PRIVATE_BINS)
    assert counts[:, : PRIVATE_BINS // 2].sum() == 0
    assert exact_metrics(MODEL, zeros, data()).accuracy == pytest.approx(data().labels.mean())


def test_certain_scores_fall_into_the_outer_cells():
    sure = {"layers.weight": np.float32([[1e6, 0]]), "layers.bias": np.float32([0])}
    counts = score_counts(MODEL, sure, data(), bins=PRIVATE_BINS)
    assert counts[:, 1:-1].sum() < 3
    assert counts.sum() == 300


@given(left_out=st.integers(0, 39), bins=st.sampled_from([2, 20, 200]))
def test_one_record_more_moves_the_table_by_exactly_one(left_out, bins):
    """The L2 sensitivity that the accountant assumes."""
    everyone = data(40)
    kept = [position for position in range(40) if position != left_out]
    without = HolderData.from_arrays(everyone.features[kept], everyone.labels[kept])
    difference = score_counts(MODEL, ARRAYS, everyone, bins=bins) - score_counts(MODEL, ARRAYS, without, bins=bins)
    assert np.linalg.norm(difference) == 1


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20), left_out=st.integers(0, 19))
def test_one_subject_more_moves_the_table_by_no_more_than_one_however_many_records_it_has(sizes, left_out):
    """In exact arithmetic: every weight is a multiple of 2**-20 and rounded down, so no sum is ever rounded."""
    rows = data(sum(sizes))
    everyone = HolderData.from_arrays(rows.features, rows.labels, np.repeat(np.arange(len(sizes)), sizes))
    keeps = everyone.subjects != left_out
    without = everyone._where(keeps)
    counts = {"bins": PRIVATE_BINS, "unit": Unit.SUBJECT}
    difference = score_counts(MODEL, ARRAYS, everyone, **counts) - score_counts(MODEL, ARRAYS, without, **counts)
    assert (difference >= 0).all()
    assert sum(Fraction(count) for count in difference.ravel().tolist()) <= 1
    if not keeps.all():
        assert difference.sum() > 1 - 9 * 2**-20


def test_records_count_one_each_where_records_are_protected():
    rows = data(12)
    named = HolderData.from_arrays(rows.features, rows.labels, np.repeat(np.arange(3), 4))
    by_record = score_counts(MODEL, ARRAYS, named, bins=PRIVATE_BINS)
    np.testing.assert_array_equal(by_record, score_counts(MODEL, ARRAYS, rows, bins=PRIVATE_BINS))
    np.testing.assert_array_equal(
        by_record / 4, score_counts(MODEL, ARRAYS, named, bins=PRIVATE_BINS, unit=Unit.SUBJECT)
    )


@pytest.mark.parametrize("unit", [Unit.SUBJECT, Unit.HOLDER])
def test_what_the_data_does_not_name_cannot_be_counted(unit):
    with pytest.raises(Unaccountable):
        score_counts(MODEL, ARRAYS, data(), bins=PRIVATE_BINS, unit=unit)


@pytest.mark.parametrize("bins", [0, -2, 3])
def test_a_table_without_an_edge_at_one_half_is_refused(bins):
    with pytest.raises(ValueError, match="even number"):
        score_counts(MODEL, ARRAYS, data(), bins=bins)


@pytest.mark.parametrize("source", [SecureNoise(), RehearsalNoise(3)], ids=["secure", "rehearsal"])
def test_private_counts_carry_the_mechanisms_noise(source):
    counts = np.zeros((2, 5000))
    noised = noised_counts(counts, mechanism=histogram(7.5), noise=source)
    assert noise_defect(noised - counts, stddev=7.5) is None
    assert not counts.any()


@pytest.mark.parametrize("terms", [histogram(0.0), histogram(kind="dp-sgd", steps=2), histogram(kind="dp-sgd")])
def test_counts_are_never_noised_by_another_mechanism(terms):
    with pytest.raises(Unaccountable):
        noised_counts(np.zeros((2, 20)), mechanism=terms, noise=SecureNoise())


def test_a_private_measurement_of_many_records_is_near_the_exact_one():
    rows = data(5000)
    counts = score_counts(MODEL, ARRAYS, rows, bins=PRIVATE_BINS)
    noised = noised_counts(counts, mechanism=histogram(20.0), noise=RehearsalNoise(5))
    read = metrics_of(tuple([round(float(count) * THOUSANDTHS) for count in row] for row in noised))
    exact = exact_metrics(MODEL, ARRAYS, rows)
    assert math.isclose(read.accuracy, exact.accuracy, abs_tol=0.03)
    assert math.isclose(read.auc, exact.auc, abs_tol=0.03)


def test_another_models_arrays_are_refused():
    with pytest.raises(TrustRefused):
        exact_metrics(MODEL, {"layers.weight": ARRAYS["layers.weight"]}, data())

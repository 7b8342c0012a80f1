"""How good a model is on a holder's records: its scores counted by label, exactly or with noise.

Either is a use of the data. Exact counts say something about single records and are for holders whose policy allows
that; noisy ones are a mechanism of their own, charged to the ledger, and all that is read off them costs nothing more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ringfence_client.built_in import Float64Array, forward, layers_from, probabilities
from ringfence_client.datasource import HolderData
from ringfence_client.models import BUILT_IN
from ringfence_client.noise import NoiseSource, snapped
from ringfence_policy.errors import Unaccountable
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Unit

CLASSES: Final = 2
_ROWS_AT_ONCE: Final = 1 << 16
_WEIGHT_GRID: Final = 1 << 20


@dataclass(frozen=True)
class Metrics:
    """How a model did.

    Attributes:
        accuracy: Share of records on the right side of 0.5 (itself counted as positive), None where there are none.
        auc: Chance that a positive record scores above a negative one, ties counting half; None without both classes.
        records: How many records were measured.
    """

    accuracy: float | None
    auc: float | None
    records: int


def scores(
    model: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.float32]], data: HolderData
) -> npt.NDArray[np.float64]:
    """The model's probability that each record is positive: float64 of shape (rows,), within [0, 1]. Secret.

    Raises:
        DocumentInvalid: The model cannot be built.
        TrustRefused: The arrays are not the model's.
    """
    feature_count = data.features.shape[1]
    pieces = [data.features[start : start + _ROWS_AT_ONCE] for start in range(0, data.records, _ROWS_AT_ONCE)]
    if model.get("kind") in BUILT_IN:
        layers = layers_from(model, arrays, feature_count)
        logits = [forward(layers, piece)[-1][:, 0] for piece in pieces]
    else:
        from ringfence_client.modules import logits_of  # noqa: PLC0415 -- torch

        logits = logits_of(model, arrays, feature_count, pieces)
    # A model with huge weights can score a record inf - inf. Each record must have a score whatever the model is: a
    # fault for some records only would tell which.
    return np.nan_to_num(probabilities(np.concatenate([np.zeros(0), *logits])), nan=0.5)


def metrics_from_scores(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.float32]) -> Metrics:
    """Measure scores against labels.

    Args:
        probabilities: Scores of shape (rows,).
        labels: 0 or 1, shape (rows,).

    >>> metrics_from_scores(np.array([0.1, 0.4, 0.35, 0.8]), np.float32([0, 0, 1, 1]))
    Metrics(accuracy=0.75, auc=0.75, records=4)
    """
    positive = labels > 0
    if not positive.size:
        return Metrics(accuracy=None, auc=None, records=0)
    accuracy = float(((probabilities >= 0.5) == positive).mean())  # noqa: PLR2004 - the decision threshold
    # Mann & Whitney 1947: the AUC from the positives' ranks, equal scores sharing their middle rank.
    _, inverse, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives, negatives = int(positive.sum()), int((~positive).sum())
    auc = None
    if positives and negatives:
        auc = float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    return Metrics(accuracy=accuracy, auc=auc, records=int(positive.size))


def score_counts(
    model: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[np.float32]],
    data: HolderData,
    *,
    bins: int,
    unit: Unit = Unit.RECORD,
) -> Float64Array:
    """Count the records by label and score, exactly. Secret unless the holder's policy says `evaluation = "exact"`.

    A data subject as the unit counts 1 however many records it has: each of its n records counts 1/n, rounded down to a
    multiple of 2**-20, so that the sums in float64 are exact and a subject never counts more than 1.

    Args:
        model: The plan's [model] table.
        arrays: The model's parameters.
        data: The records to measure on.
        bins: Cells of equal width over scores from 0 to 1; even, so that the decision threshold lies between two.
        unit: What counts 1: a record, or a data subject.

    Returns:
        float64 of shape (2, bins): label by cell. Adding or removing a unit moves them by an L2 norm of at most 1.

    Raises:
        Unaccountable: Subjects are to be counted, and the data does not say which records are about one.
        ValueError: The number of cells is odd or not above zero.
        DocumentInvalid: The model cannot be built.
        TrustRefused: The arrays are not the model's.
    """
    if bins < 1 or bins % 2:
        raise ValueError("a score histogram has an even number of cells")
    cells = np.minimum((scores(model, arrays, data) * bins).astype(np.int64), bins - 1)
    counts = np.zeros((CLASSES, bins))
    np.add.at(counts, (data.labels.astype(np.int64), cells), _weights(data, unit))
    return counts


def _weights(data: HolderData, unit: Unit) -> Float64Array:
    if unit is Unit.RECORD:
        return np.ones(data.records)
    if unit is not Unit.SUBJECT or data.subjects is None:
        raise Unaccountable(
            "this unit of privacy cannot be counted here",
            expected="records, or subjects that the data names",
            got=f"'{unit}'",
        )
    sizes = np.bincount(data.subjects)
    weights: Float64Array = np.floor(_WEIGHT_GRID / sizes) / _WEIGHT_GRID
    return weights[data.subjects]


def noised_counts(counts: Float64Array, *, mechanism: DpMechanism, noise: NoiseSource) -> Float64Array:
    """Add the noise that makes counts private.

    Args:
        counts: What `score_counts` gave. Secret.
        mechanism: A `score-histogram`, as reserved in the ledger.
        noise: The holder's source of noise.

    Returns:
        float64 of the counts' shape, some perhaps negative, snapped to a public grid. Private as the mechanism says.

    Raises:
        Unaccountable: The mechanism is of another kind or adds no noise.
    """
    if mechanism.kind != "score-histogram" or not mechanism.noise_multiplier > 0:
        raise Unaccountable(
            "this mechanism cannot measure with",
            expected="a score-histogram with a noise multiplier above 0",
            got=f"{mechanism.kind}, noise multiplier {mechanism.noise_multiplier:g}",
        )
    stddev = mechanism.noise_stddev
    return snapped(counts + noise.normal(counts.shape, stddev=stddev), stddev=stddev)

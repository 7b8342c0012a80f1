"""Comparison lines without privacy: federated, each holder alone, and all records in one place.

NOT PRIVATE, and for published data only: the caller makes sure that every holder's policy allows a rehearsal. None of
it touches a ledger, or leaves as anything but accuracy and AUC. All three lines take the same number of full-batch
gradient steps at the same rate, so that they differ in nothing but which records a step sees.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ringfence_client.built_in import forward, layers_from, probabilities
from ringfence_client.datasource import HolderData
from ringfence_client.evaluation import Metrics, metrics_from_scores, scores
from ringfence_client.models import BUILT_IN, Arrays, initial_arrays

# Fixed for all models and data, and not tuned: on features within [-1, 1] they bring a logistic regression close to its
# optimum within a dozen rounds.
STEPS_PER_ROUND: Final = 10
LEARNING_RATE: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class ReferenceHolder:
    """One holder's published records, parted as in the private run.

    Attributes:
        train: What models are fitted on.
        test: What they are measured on; never trained on.
        weight: The holder's declared weight in the average.
    """

    train: HolderData
    test: HolderData
    weight: float


def compute_references(
    holders: Mapping[str, ReferenceHolder],
    *,
    model: Mapping[str, Any],
    rounds: int,
    measured_on: Collection[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Train and measure the three comparison lines.

    Args:
        holders: Every holder of the run, by id; at least one.
        model: The plan's [model] table.
        rounds: The plan's rounds.
        measured_on: Whose test records the overall figures count, so that they compare with a private model that was
            not measured everywhere; everyone's by default.

    Returns:
        `federated`, `local` and `pooled`, each with `accuracy` and `auc` over those test records together, `per_holder`
        with the same two per holder id, and for `federated` a `curve` of {round, accuracy, auc}. An entry is None where
        the test records do not allow it. `local` scores each holder's test records with that holder's own model, which
        has learned that holder's own share of positives; its `elsewhere` has, per holder id, how the same model does on
        the test records of all the others.

    Raises:
        DocumentInvalid: The model cannot be built.
    """
    start = initial_arrays(model, next(iter(holders.values())).train.features.shape[1])
    counted = [key for key in holders if measured_on is None or key in measured_on] or list(holders)
    federated, curve = _federated(holders, model, start, rounds, counted)
    steps = rounds * STEPS_PER_ROUND
    everything = HolderData.from_arrays(
        np.concatenate([holder.train.features for holder in holders.values()]),
        np.concatenate([holder.train.labels for holder in holders.values()]),
    )
    pooled = train_without_privacy(model, start, everything, steps=steps)
    alone = {key: train_without_privacy(model, start, holder.train, steps=steps) for key, holder in holders.items()}
    return {
        "federated": {**_measured(holders, model, dict.fromkeys(holders, federated), counted), "curve": curve},
        "local": {**_measured(holders, model, alone, counted), "elsewhere": _elsewhere(holders, model, alone)},
        "pooled": _measured(holders, model, dict.fromkeys(holders, pooled), counted),
    }


def train_without_privacy(
    model: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.float32]], data: HolderData, *, steps: int
) -> Arrays:
    """Take `steps` plain gradient steps on all records at once. NOT PRIVATE.

    Returns:
        The new parameters, float32 by name. They may give single records away.

    Raises:
        DocumentInvalid: The model cannot be built.
        TrustRefused: The arrays are not the model's.
    """
    steps = steps if data.records else 0
    if model.get("kind") in BUILT_IN:
        return _descend(model, arrays, data, steps=steps)
    from ringfence_client.modules import descend  # noqa: PLC0415 -- torch

    return descend(model, arrays, data, steps=steps, learning_rate=LEARNING_RATE)


def _descend(
    model: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.float32]], data: HolderData, *, steps: int
) -> Arrays:
    """The steps for a built-in model, on the mean of the logistic loss."""
    feature_count = data.features.shape[1]
    layers = layers_from(model, arrays, feature_count)
    labels = data.labels.astype(np.float64)[:, None]
    for _ in range(steps):
        *inputs, logits = forward(layers, data.features)
        gradient = (probabilities(logits) - labels) / data.records
        for layer, given in zip(reversed(layers), reversed(inputs), strict=True):
            slopes = gradient.T @ given, gradient.sum(axis=0)
            gradient = (gradient @ layer[0]) * (given > 0)
            for parameter, slope in zip(layer, slopes, strict=True):
                np.subtract(parameter, LEARNING_RATE * slope, out=parameter)
    parameters = [parameter.astype(np.float32) for layer in layers for parameter in layer]
    return dict(zip(initial_arrays(model, feature_count), parameters, strict=True))


def _federated(
    holders: Mapping[str, ReferenceHolder], model: Mapping[str, Any], start: Arrays, rounds: int, counted: Sequence[str]
) -> tuple[Arrays, list[dict[str, Any]]]:
    """Average by declared weights after every round (McMahan et al. 2017, arXiv:1602.05629), and measure each round."""
    arrays, curve = start, []
    total = sum(holder.weight for holder in holders.values())
    for round_number in range(1, rounds + 1):
        updates = [
            (holder.weight / total, train_without_privacy(model, arrays, holder.train, steps=STEPS_PER_ROUND))
            for holder in holders.values()
        ]
        arrays = {name: _weighted([(share, update[name]) for share, update in updates]) for name in start}
        measured = _measured(holders, model, dict.fromkeys(holders, arrays), counted)
        curve.append({"round": round_number, "accuracy": measured["accuracy"], "auc": measured["auc"]})
    return arrays, curve


def _weighted(parts: Sequence[tuple[float, npt.NDArray[np.float32]]]) -> npt.NDArray[np.float32]:
    total = np.zeros(parts[0][1].shape, dtype=np.float64)
    for share, array in parts:
        total += share * array
    return total.astype(np.float32)


def _measured(
    holders: Mapping[str, ReferenceHolder],
    model: Mapping[str, Any],
    arrays: Mapping[str, Arrays],
    counted: Sequence[str],
) -> dict[str, Any]:
    """Measure each holder's test records with the model given for it, and those of the `counted` ones together."""
    probabilities = {key: scores(model, arrays[key], holder.test) for key, holder in holders.items()}
    labels = np.concatenate([holders[key].test.labels for key in counted])
    together = metrics_from_scores(np.concatenate([probabilities[key] for key in counted]), labels)
    per_holder = {
        key: _two(metrics_from_scores(probabilities[key], holder.test.labels)) for key, holder in holders.items()
    }
    return {**_two(together), "per_holder": per_holder}


def _elsewhere(
    holders: Mapping[str, ReferenceHolder], model: Mapping[str, Any], alone: Mapping[str, Arrays]
) -> dict[str, dict[str, float | None]]:
    """Measure each holder's own model on what it never had: the test records of all other holders together."""
    found: dict[str, dict[str, float | None]] = {}
    for key, arrays in alone.items():
        others = [holder.test for other, holder in holders.items() if other != key]
        probabilities = [scores(model, arrays, test) for test in others] or [np.zeros(0)]
        labels = [test.labels for test in others] or [np.zeros(0, dtype=np.float32)]
        found[key] = _two(metrics_from_scores(np.concatenate(probabilities), np.concatenate(labels)))
    return found


def _two(metrics: Metrics) -> dict[str, float | None]:
    return {"accuracy": metrics.accuracy, "auc": metrics.auc}

"""The built-in models' arithmetic, in numpy and float64: linear layers with ReLU between them and one logit last."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ringfence_client.models import initial_arrays, layers_of
from ringfence_client.workroom import check_arrays

Float64Array = npt.NDArray[np.float64]
Layer = tuple[Float64Array, Float64Array]


def layers_from(
    model: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.float32]], feature_count: int
) -> list[Layer]:
    """Copies of each layer's weight, of shape (outputs, inputs), and bias, from features to logit.

    Args:
        model: The plan's [model] table, of a built-in kind.
        arrays: The model's parameters. From the coordinator: not trusted.
        feature_count: How many features a row has.

    Raises:
        TrustRefused: The arrays are not the model's; see `check_arrays`.
    """
    expected = initial_arrays(model, feature_count)
    check_arrays(arrays, {name: array.shape for name, array in expected.items()})
    exact = {name: arrays[name].astype(np.float64) for name in expected}
    return [(exact[weight], exact[bias]) for weight, bias in layers_of(expected)]


def forward(layers: Sequence[Layer], features: npt.NDArray[np.float32]) -> list[Float64Array]:
    """What each layer is given for these rows, and last the logits, of shape (rows, 1). Secret.

    In float64: how a product is blocked follows the rows beside a row, and so hardly moves what a row gets.
    """
    given = [features.astype(np.float64)]
    with np.errstate(over="ignore", invalid="ignore"):  # huge weights may give inf - inf, for some rows only
        for position, (weight, bias) in enumerate(layers):
            if position:
                np.maximum(given[-1], 0.0, out=given[-1])
            given.append(given[-1] @ weight.T + bias)
    return given


def probabilities(logits: Float64Array) -> Float64Array:
    """The logistic function of logits, of the same shape; NaN where a logit is."""
    with np.errstate(over="ignore"):
        found: Float64Array = 1.0 / (1.0 + np.exp(-logits))
    return found

"""The model that a run starts from, where no torch is needed to know it: both built-in kinds.

A coordinator of a deployment has no torch. What these arrays are is fixed by the holders' `build_module`, and
tests/conformance/test_initial_model.py holds the two to the same bits.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ringfence_server.run_file import INITIAL_MODEL, reach

Arrays = dict[str, npt.NDArray[np.float32]]


def initial_arrays(model: Mapping[str, Any], feature_count: int) -> Arrays:
    """The parameters a run starts from, by name. A module of the plan's own is built by the installed client code.

    Args:
        model: The plan's [model] table.
        feature_count: How many features a row has.

    Returns:
        One float32 array per parameter.
    """
    if model["kind"] == "logistic-regression":
        return {
            "layers.weight": np.zeros((1, feature_count), np.float32),
            "layers.bias": np.zeros(1, np.float32),
        }
    if model["kind"] == "mlp":
        return _mlp([feature_count, *model["hidden"], 1], seed=int(model["seed"]))
    arrays: Arrays = reach(INITIAL_MODEL)(model, feature_count)
    return arrays


def _mlp(sizes: list[int], *, seed: int) -> Arrays:
    """Layers uniform in +-1/sqrt(inputs); between two of them stands a ReLU, which takes a number of its own."""
    generator = np.random.Generator(np.random.PCG64(seed))
    arrays: Arrays = {}
    for position, (inputs, outputs) in enumerate(pairwise(sizes)):
        bound = 1.0 / math.sqrt(inputs)
        for name, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            drawn = generator.uniform(-bound, bound, size=shape)
            arrays[f"layers.{2 * position}.{name}"] = drawn.astype(np.float32)
    return arrays

"""What an update must be before any strategy sees it: whole, finite, of the model's shape, bounded, and signed for.

Flower's own aggregators take a NaN, a forged row count or a thousandfold update as it comes (measured: one such reply
destroys FedAvg's model), and a reply of another shape ends the whole run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ringfence_policy.mechanism import DpMechanism

Arrays = Mapping[str, npt.NDArray[np.float32]]

# A declared weight is a round figure: allow the true number of records to be up to this many times as large.
_WEIGHT_SLACK = 4.0
# The norm of d standard normals exceeds sqrt(d) + 6 with probability below exp(-18) (Laurent and Massart 2000).
_NORM_SLACK = 6.0


@dataclass(frozen=True)
class Defect:
    """Why an update is refused: a stable code and a sentence."""

    code: str
    reason: str


def norm_bound(mechanism: DpMechanism, *, learning_rate: float, weight: int, parameters: int) -> float:
    """The largest L2 distance an honest update can lie from the model it started from, up to chance below 1e-7.

    Each step moves by the learning rate times (clipped sum + noise) / expected batch. The clipped sum is at most the
    clipping norm per record; the noise has standard deviation `mechanism.noise_stddev` in each coordinate.
    """
    expected_batch = mechanism.sampling_rate * weight
    signal = mechanism.clipping_norm * _WEIGHT_SLACK / mechanism.sampling_rate
    noise = mechanism.noise_stddev * (math.sqrt(parameters) + _NORM_SLACK) / expected_batch
    return learning_rate * mechanism.steps * (signal + noise)


def find_defect(update: Arrays, *, base: Arrays, bound: float, claimed_weight: object, weight: int) -> Defect | None:
    """What is wrong with an update, or None.

    Args:
        update: New parameters by name, as the holder sent them.
        base: The global model they started from.
        bound: What `norm_bound` allows.
        claimed_weight: The count that came with the update.
        weight: The weight the holder declared, publicly, before the run.
    """
    if type(claimed_weight) is not int or claimed_weight != weight:
        return Defect("count", f"the weight must be the declared {weight}")
    if set(update) != set(base):
        return Defect("wrong-shape", "the update must have exactly the model's parameters")
    for name, expected in base.items():
        array = update[name]
        if array.dtype != expected.dtype:
            return Defect("wrong-dtype", f"parameter {name} must be {expected.dtype}")
        if array.shape != expected.shape:
            return Defect("wrong-shape", f"parameter {name} must have shape {expected.shape}")
        if not np.isfinite(array).all():
            return Defect("not-finite", f"parameter {name} must be finite")
    distance = math.sqrt(math.fsum(float(np.sum((update[name].astype(np.float64) - base[name]) ** 2)) for name in base))
    if distance > bound:
        return Defect("norm", f"the update must lie within {bound:.3g} of the model it started from")
    return None

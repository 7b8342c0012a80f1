"""Box and Muller's transform by torch and numpy: the reference, and what runs where nothing was compiled."""

import math
import threading
from typing import Final

import numpy as np
import torch

from ringfence_client.normals import PAIRS_AT_ONCE, Float64Array


class _Scratch(threading.local):
    """Room for one thread's work on normals. What is left in it is as secret as the noise, and never leaves."""

    def __init__(self) -> None:
        self.floats = np.empty((3, PAIRS_AT_ONCE))


class TorchBoxMuller:
    """See the module's words."""

    name = "torch"

    def fill(self, pairs: Float64Array, *, stddev: float) -> None:
        """Turn words into normals: see `Transform.fill`."""
        words = pairs.view(np.int64)
        radius, angle, cosine = _scratch.floats[:, : len(pairs)]
        np.copyto(radius, words[:, 0])
        np.abs(radius, out=radius)
        radius += 0.5
        radius *= 2.0**-63
        # Torch's log, cos and sin are several times as fast as numpy's; the rest is not.
        torch.from_numpy(radius).log_()
        radius *= -2.0
        np.sqrt(radius, out=radius)
        radius *= stddev
        np.multiply(words[:, 1], math.pi * 2.0**-63, out=angle)
        torch.cos(torch.from_numpy(angle), out=torch.from_numpy(cosine))
        torch.from_numpy(angle).sin_()
        np.multiply(radius, cosine, out=pairs[:, 0])
        np.multiply(radius, angle, out=pairs[:, 1])


_scratch: Final = _Scratch()

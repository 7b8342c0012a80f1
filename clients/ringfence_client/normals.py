"""From the words of a keystream to normals: Box and Muller's transform, compiled or by torch.

A pair of normals is made from two words: |first| + 1/2, by 2**63, is a uniform whose cells stay 2**-63 wide down to its
least, 2**-64, which is a radius of 9.4 standard deviations; the second is an angle between -pi and pi. Both transforms
read the same words for the same normals, and differ by the last bits of their logarithms, cosines and sines: by 2**-49
of a pair's radius at most. Box & Muller 1958, A Note on the Generation of Random Normal Deviates.
"""

import ctypes
import math
import threading
from functools import cache
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ringfence_client.compiled import load_library

Float64Array = npt.NDArray[np.float64]

# The most pairs in one call: few calls for each, and what they work on stays in a core's cache.
PAIRS_AT_ONCE: Final = 1 << 15


class Transform(Protocol):
    """Something that turns words into normals. A pair's normals depend on its own words and on nothing else."""

    @property
    def name(self) -> str:
        """The transform's name in benchmarks."""
        ...

    def fill(self, pairs: Float64Array, *, stddev: float) -> None:
        """Turn words into normals where they lie.

        Args:
            pairs: C order, of shape (pairs, 2), at most `PAIRS_AT_ONCE`: uniformly random bits, that is two 64-bit
                words for each pair; then their normals, secret.
            stddev: Standard deviation of the normals; finite and > 0.
        """
        ...


@cache
def best_transform() -> Transform:
    """The fastest transform here: the compiled one, else torch's."""
    library = load_library()
    return TorchBoxMuller() if library is None else CompiledBoxMuller(library)


class CompiledBoxMuller:
    """The transform of normals.c: a pair stays in the processor's registers from its words to its normals.

    Args:
        library: The built library.
        most_lanes: Floats in the widest vector register it may use: 4, 8 (AVX2) or 16 (AVX-512). It uses none that the
            processor lacks; tests ask for less.
    """

    name = "compiled"

    def __init__(self, library: ctypes.CDLL, *, most_lanes: int = 16) -> None:
        self._most_lanes = most_lanes
        self._function = library.ringfence_normals
        self._function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int64]
        self._function.restype = None

    def fill(self, pairs: Float64Array, *, stddev: float) -> None:
        """Turn words into normals: see `Transform.fill`."""
        self._function(pairs.ctypes.data, len(pairs), stddev, self._most_lanes)


class _Scratch(threading.local):
    """Room for one thread's work on normals. What is left in it is as secret as the noise, and never leaves."""

    def __init__(self) -> None:
        self.floats = np.empty((3, PAIRS_AT_ONCE))


class TorchBoxMuller:
    """The transform by torch and numpy: the reference, and what runs where nothing was compiled."""

    name = "torch"

    def fill(self, pairs: Float64Array, *, stddev: float) -> None:
        """Turn words into normals: see `Transform.fill`."""
        words = pairs.view(np.int64)
        radius, angle, cosine = _scratch.floats[:, : len(pairs)]
        np.copyto(radius, words[:, 0])
        np.abs(radius, out=radius)
        radius += 0.5
        radius *= 2.0**-63
        torch.from_numpy(
            radius
        ).log_()  # torch's log, cos and sin are several times as fast as numpy's; the rest is not
        radius *= -2.0
        np.sqrt(radius, out=radius)
        radius *= stddev
        np.multiply(words[:, 1], math.pi * 2.0**-63, out=angle)
        torch.cos(torch.from_numpy(angle), out=torch.from_numpy(cosine))
        torch.from_numpy(angle).sin_()
        np.multiply(radius, cosine, out=pairs[:, 0])
        np.multiply(radius, angle, out=pairs[:, 1])


_scratch: Final = _Scratch()

"""From the words of a keystream to normals: Box and Muller's transform, compiled or by torch.

A pair of normals is made from two words: |first| + 1/2, by 2**63, is a uniform whose cells stay 2**-63 wide down to its
least, 2**-64, which is a radius of 9.4 standard deviations; the second is an angle between -pi and pi. Both transforms
read the same words for the same normals, and differ by the last bits of their logarithms, cosines and sines: by 2**-49
of a pair's radius at most. Box & Muller 1958, A Note on the Generation of Random Normal Deviates.
"""

import ctypes
from functools import cache
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

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
    if library is not None:
        return CompiledBoxMuller(library)
    from ringfence_client.torch_normals import TorchBoxMuller  # noqa: PLC0415 -- torch

    return TorchBoxMuller()


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

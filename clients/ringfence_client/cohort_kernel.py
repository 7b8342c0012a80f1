"""The arithmetic of many holders' DP-SGD steps in closed form, for linear models and multilayer perceptrons.

Two kernels do the same. `CompiledKernel` is cohort_kernel.c, which takes one holder after another and keeps each in
the processor's cache; installing Ringfence builds it where there is a C compiler. `torch_kernel` stacks holders and
multiplies their matrices together; it runs wherever torch does, on a GPU where there is one. What is drawn and which
noise is added comes from outside: a kernel has no randomness. docs/decisions/0018 has the figures.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ringfence_client.compiled import load_library

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HolderSteps:
    """One holder's next steps: what was drawn, which noise is added, and the model they change. Secret.

    Attributes:
        features: float32 of shape (records, features), C order.
        labels: float32 of shape (records,), 0 or 1.
        weights: float32 of shape (parameters,), in the module's order: each layer's (outputs, inputs) weight, then its
            bias. Changed in place.
        anchor: float32 of the same shape: where the proximal term pulls to.
        rows: int64, the rows drawn, step after step.
        units: int64 of the same length: the data subject of each row, equal ones adjacent within a step. None where
            each row is clipped by itself.
        ends: int64 of shape (steps,): where in `rows` each step's rows end.
        noise: float64 of shape (steps, parameters), each step's numbers adjacent. A kernel may use it up.
        bound: The L2 norm that each unit's gradient is clipped to.
        grid: What noised sums are rounded to multiples of, a power of two; see `noise.snapped`.
        learning_rate: Step size.
        expected_batch: What a step's noised sum is divided by.
        proximal_mu: Strength of the pull.
    """

    features: Float32Array
    labels: Float32Array
    weights: Float32Array
    anchor: Float32Array
    rows: Int64Array
    units: Int64Array | None
    ends: Int64Array
    noise: Float64Array
    bound: float
    grid: float
    learning_rate: float
    expected_batch: float
    proximal_mu: float


class Kernel(Protocol):
    """Something that takes steps. A unit whose gradient has no finite norm contributes nothing."""

    @property
    def name(self) -> str:
        """The kernel's name in logs and benchmarks."""
        ...

    @property
    def together(self) -> int:
        """How many holders it wants in one call; more gain nothing and take memory."""
        ...

    @property
    def numbers_at_once(self) -> int:
        """How many random numbers, of 8 bytes, may be in flight for the holders of one call."""
        ...

    def take_steps(self, widths: Sequence[int], holders: Sequence[HolderSteps]) -> list[int]:
        """Take every holder's steps, each on its own weights.

        Args:
            widths: Features, then the outputs of each linear layer; the last is 1. ReLU between layers.
            holders: Any number of holders with models of these widths.

        Returns:
            How many noised sums each holder's weights took, in the holders' order.
        """
        ...


@cache
def best_kernel() -> Kernel:
    """The fastest kernel here: the compiled one, else torch, on a GPU where there is one.

    Sampling and cryptographic noise come from the processor in any case, and cost more than what a GPU saves.
    """
    library = load_library()
    if library is not None:
        return CompiledKernel(library)
    from ringfence_client.torch_kernel import on_best_device  # noqa: PLC0415 -- torch

    return on_best_device()


class _Steps(ctypes.Structure):
    """`struct steps` of cohort_kernel.c."""

    _fields_ = (
        ("layers", ctypes.c_int64),
        ("parameters", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("noise_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("widths", "ends", "rows", "units", "features", "labels", "anchor")),
        *((name, ctypes.c_void_p) for name in ("weights", "noise")),
        *((name, ctypes.c_double) for name in ("bound", "grid", "learning_rate", "expected_batch", "proximal_mu")),
    )


class CompiledKernel:
    """Takes one holder after another through cohort_kernel.c, without Python's lock.

    Args:
        library: The built library.
        most_lanes: Floats in the widest vector register it may use: 4, 8 (AVX2) or 16 (AVX-512). It uses none that the
            processor lacks; tests ask for less.
    """

    name = "compiled"
    together = 1
    numbers_at_once = 1 << 22

    def __init__(self, library: ctypes.CDLL, *, most_lanes: int = 16) -> None:
        self._most_lanes = most_lanes
        self._function = library.ringfence_take_steps
        self._function.argtypes = [ctypes.POINTER(_Steps), ctypes.c_int64]
        self._function.restype = ctypes.c_int64

    def take_steps(self, widths: Sequence[int], holders: Sequence[HolderSteps]) -> list[int]:
        """Take every holder's steps: see `Kernel.take_steps`."""
        shape = np.array(widths, dtype=np.int64)
        return [self._take(shape, holder) for holder in holders]

    def _take(self, widths: Int64Array, holder: HolderSteps) -> int:
        arrays: dict[str, npt.NDArray[Any]] = {
            "widths": widths,
            "ends": holder.ends,
            "rows": holder.rows,
            "features": holder.features,
            "labels": holder.labels,
            "anchor": holder.anchor,
            "weights": holder.weights,
            "noise": holder.noise,
        }
        if holder.units is not None:
            arrays["units"] = holder.units
        work = _Steps(
            layers=len(widths) - 1,
            parameters=len(holder.weights),
            steps=len(holder.ends),
            noise_stride=holder.noise.strides[0] // holder.noise.itemsize,
            bound=holder.bound,
            grid=holder.grid,
            learning_rate=holder.learning_rate,
            expected_batch=holder.expected_batch,
            proximal_mu=holder.proximal_mu,
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        taken: int = self._function(ctypes.byref(work), self._most_lanes)
        if taken != len(holder.ends):
            raise MemoryError
        return taken

"""Poisson sampling: which of a holder's units of privacy join one optimiser step.

Every unit joins with the same probability, independently of all others and of every other step, decided by the same
secret generator as the noise. Nothing weaker earns amplification by sampling: shuffled or fixed-size batches are other
mechanisms (Chua et al. 2024, How Private are DP-SGD Implementations?, arXiv:2403.17673). How many units came is secret.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ringfence_client.datasource import HolderData
from ringfence_client.noise import NoiseSource
from ringfence_policy.vocabulary import Unit


@dataclass(frozen=True, eq=False)
class Draw:
    """What joins one step. All of it is secret, and so are the numbers of rows and units.

    Attributes:
        rows: int64, positions of the rows that join, ascending.
        units: int64 of the same length: to which of the drawn units each row belongs, from 0, never falling. The
            contributions of one unit's rows are summed before they are clipped.
        count: How many units were drawn.
    """

    rows: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64]
    count: int

    def pieces(self, *, most_rows: int) -> Iterator[slice]:
        """Part the rows into pieces of at most `most_rows`, or of one unit: a unit's rows are clipped as one.

        Yields:
            Slices of `rows` and `units`, at least one; empty only where nothing was drawn.
        """
        rows, start = len(self.rows), 0
        while start == 0 or start < rows:
            end = min(start + max(1, most_rows), rows)
            if end < rows:
                end = int(np.searchsorted(self.units, self.units[end]))
                if end <= start:
                    end = int(np.searchsorted(self.units, self.units[start], side="right"))
            yield slice(start, end)
            start = max(end, 1)


@dataclass(frozen=True, eq=False)
class StepDraws:
    """What joins each of several steps, one after another. As secret as a `Draw`.

    Attributes:
        rows: int64, positions of the rows that join, ascending within a step.
        units: int64 of the same length: the drawn unit of each row, numbered from 0 in each step and never falling
            within it. None where each row is a unit of its own.
        ends: int64 of shape (steps,): where in `rows` each step's rows end.
    """

    rows: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64] | None
    ends: npt.NDArray[np.int64]


def draw(data: HolderData, *, unit: Unit, sampling_rate: float, noise: NoiseSource) -> Draw:
    """Draw one step's units of privacy, with all their rows.

    Args:
        data: The holder's training records.
        unit: Record, or subject where the data names subjects.
        sampling_rate: Probability of each unit.
        noise: The source of the choice.
    """
    if unit is not Unit.SUBJECT or data.subjects is None:
        rows = poisson_sample(data.records, sampling_rate=sampling_rate, noise=noise)
        return Draw(rows, np.arange(len(rows), dtype=np.int64), len(rows))
    ends = np.cumsum(np.bincount(data.subjects)) if data.records else np.zeros(0, dtype=np.int64)
    chosen = poisson_sample(len(ends), sampling_rate=sampling_rate, noise=noise)
    position = np.full(len(ends), -1, dtype=np.int64)
    position[chosen] = np.arange(len(chosen))
    units = position[data.subjects]
    rows = np.flatnonzero(units >= 0).astype(np.int64)
    return Draw(rows, units[rows], len(chosen))


def poisson_sample(units: int, *, sampling_rate: float, noise: NoiseSource) -> npt.NDArray[np.int64]:
    """Choose the units that join one step.

    Args:
        units: How many units of privacy the holder has. Secret.
        sampling_rate: Probability of each, 0 < rate <= 1; at 1 all join and nothing is drawn.
        noise: The source of the choice.

    Returns:
        Their positions, ascending int64, possibly none. Secret, and so is their number.

    Raises:
        ValueError: The sampling rate is not in (0, 1].
    """
    if not 0 < sampling_rate <= 1:
        raise ValueError("a sampling rate lies above 0 and at most at 1")
    if sampling_rate == 1:
        return np.arange(units, dtype=np.int64)
    return np.flatnonzero(noise.uniform(units) < sampling_rate).astype(np.int64)


def draw_steps(data: HolderData, *, unit: Unit, sampling_rate: float, noise: NoiseSource, steps: int) -> StepDraws:
    """Draw several steps' units at once: what `draw` gives when it is called once for each step.

    Args:
        data: The holder's training records.
        unit: Record, or subject where the data names subjects.
        sampling_rate: Probability of each unit.
        noise: The source of the choice.
        steps: How many steps, >= 1.
    """
    if unit is Unit.RECORD and sampling_rate < 1:
        drawn = poisson_sample(steps * data.records, sampling_rate=sampling_rate, noise=noise)
        ends = np.searchsorted(drawn, np.arange(1, steps + 1) * data.records)
        return StepDraws(drawn % max(1, data.records), None, ends)
    draws = [draw(data, unit=unit, sampling_rate=sampling_rate, noise=noise) for _ in range(steps)]
    return StepDraws(
        rows=np.concatenate([drawn.rows for drawn in draws]),
        units=np.concatenate([drawn.units for drawn in draws]) if unit is Unit.SUBJECT else None,
        ends=np.cumsum([len(drawn.rows) for drawn in draws], dtype=np.int64),
    )

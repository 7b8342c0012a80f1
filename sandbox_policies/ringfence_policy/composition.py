"""Composition of Poisson-sampled Gaussian mechanisms by cached Fourier spectra: losses in, a bound on delta out.

One step's privacy loss is discretised once per noise, rate and grid; its log spectrum is kept. A history is then a sum
of counts times log spectra and one inverse transform per direction. What is never done here: reading a ledger, knowing
a cap, or answering for anything but Gaussian noise. `accounting` is the only caller and decides when this applies.

Every simplification raises delta, none lowers it:

* Discretisation is the pessimistic connect-the-dots of Doroshenko et al. 2022, arXiv:2207.04380. Per grid cell the mass
  under both neighbours is kept and put on the cell's two ends. It is computed here from cell masses and not from second
  differences of delta, which lose half the digits; the rounding of the split goes to the larger loss.
* The transform is circular. Losses above the window would come back at its lower end: Chernoff's bound on that mass,
  from the discretised distributions themselves, is charged to delta. Losses below come back at the top and only add.
* Rounding of the transforms is charged by `_ROUNDING` per step and frequency, summed by Cauchy-Schwarz and Parseval.

Dominating pairs, with unit sensitivity and noise s (Zhu, Dong, Wang 2022, arXiv:2106.08567: pairs of steps compose):

* Add or remove: (1-q) N(0, s) + q N(1, s) against N(0, s), in both directions.
* Replace one: (1-q) N(0, s) + q N(1, s) against (1-q) N(0, s) + q N(-1, s), which is its own mirror image. Given the
  other drawn units, outputs are centred at 0, or at v before and w after the replacement, |v|, |w| <= 1. Take any event
  S and the half-space H in direction v with the same mass under N(v). By Neyman and Pearson no event of that mass has
  less mass than H under N(0), and none has less under N(w) than H has under N(-v/|v|), which is at least as far from v.
  So for no factor of 1 or more does S separate the mixtures better than H does with w = -v/|v|, and lengthening v to 1
  only separates them more. Factors below 1 follow from the mirror image.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SHARE = 6e-4  # of the variance of the composed loss: about what the grid may add to it, hence half of it to epsilon
_FINEST, _COARSEST = 2.0**-14, 2.0**-5  # grids are powers of sqrt(2), so that like histories share spectra
_MOST_POINTS = 2**18
_MOST_EPSILON = 1000.0  # beyond, callers fall back to the bound that ignores sampling
_MOST_LOSS = 700.0  # of one step, and of the window's width: exp still fits a float
_REACH = 9.0  # standard deviations of noise covered by one step's grid; the rest (1e-19) counts as an infinite loss
_TAIL_SHARE = 1e-6  # of delta, given to the mass above the window
_NOTHING = -60.0  # log of a frequency's size below which it is left out: 1e-26, far within what rounding is charged
_ROUNDING = 4e-15  # error of one step's spectrum at one frequency; an FFT's is about 1e-16 times log2 of its points
_ULP = 2.0**-52
_ORDERS = np.exp2(np.arange(-6.0, 11.0))  # Chernoff's orders: the best is at most a factor of 1.4 away, 6 % of a width


class Sampled(NamedTuple):
    """Steps of one noise and rate, each in millionths so that equal ones meet in the caches."""

    noise_micro: int
    rate_micro: int
    steps: int


class _Step(NamedTuple):
    noise: float
    rate: float
    replace_one: bool


@dataclass(frozen=True)
class _Losses:
    """One step's discretised privacy loss in one direction.

    Attributes:
        first: Grid index of the first point; the loss there is `first * grid`.
        mass: Probability per grid point, shape (points,).
        infinite: Probability counted as an infinite loss.
        rising: log E[exp(t L)] per order t in `_ORDERS`, shape (orders,).
        falling: log E[exp(-t L)], likewise.
    """

    first: int
    mass: Floats
    infinite: float
    rising: Floats
    falling: Floats


@dataclass(frozen=True)
class Composed:
    """The composed loss at and above zero, per direction, and what is charged besides."""

    grid: float
    directions: tuple[tuple[int, Floats, float], ...]  # index of the first loss >= 0, masses from there, charge

    def delta(self, epsilon: float) -> float:
        """An upper bound on delta at `epsilon` >= 0."""
        return max(self._delta(direction, epsilon) for direction in self.directions)

    def epsilon(self, delta: float) -> float:
        """The least epsilon >= 0 at which the bound is at most `delta`; infinity where it never is."""
        found = self._epsilon(self.directions[0], delta)
        for direction in self.directions[1:]:
            if self._delta(direction, found) > delta:
                found = self._epsilon(direction, delta)
        return found

    def _delta(self, direction: tuple[int, Floats, float], epsilon: float) -> float:
        first, mass, charge = direction
        above = max(0, math.floor(epsilon / self.grid) + 1 - first)
        losses = _times(self.grid, first + above, first + mass.size)
        return charge + float(mass[above:] @ -np.expm1(epsilon - losses))

    def _epsilon(self, direction: tuple[int, Floats, float], delta: float) -> float:
        first, mass, charge = direction
        losses = _times(self.grid, first, first + mass.size)
        # delta(e) = charge + sum over losses l >= e of mass * (1 - exp(e - l)) only falls: find the cell, then solve.
        under_one = np.cumsum(mass[::-1])[::-1]
        beyond = losses - losses[0]  # exp of the losses themselves may overflow
        under_other = np.cumsum((mass * np.exp(-beyond))[::-1])[::-1]
        falling = charge + under_one - np.exp(beyond) * under_other
        cell = int(np.argmax(falling <= delta))
        if falling[cell] > delta:
            return math.inf
        if under_other[cell] <= 0:
            return float(losses[cell])
        solved = (charge + under_one[cell] - delta) / under_other[cell]
        lowest = float(losses[cell - 1]) if cell else 0.0
        return min(float(losses[cell]), max(lowest, float(losses[0]) + math.log(solved) if solved > 0 else 0.0))


def compose(squared: float, sampled: Sequence[Sampled], *, replace_one: bool, delta: float) -> Composed | None:
    """Compose sampled steps and one unsampled Gaussian.

    Args:
        squared: Squared mu of everything unsampled together; 0 for nothing.
        sampled: The sampled steps, at least one.
        replace_one: Which relation the sampled steps are read under. `squared` was computed for it already.
        delta: The failure probability that will be asked about; sets how much of it the window's tail may take.

    Returns:
        None where the losses are too large for a grid.
    """
    steps = [_Step(one.noise_micro / 1e6, one.rate_micro / 1e6, replace_one) for one in sampled]
    counts = [one.steps for one in sampled]
    if squared:
        # One Gaussian of sensitivity 1 under either relation: `squared` has replacing in it already.
        steps.append(_Step(1 / (math.sqrt(squared) * (1 + 1e-12)), 1.0, replace_one=False))
        counts.append(1)
    grid = _grid(squared, sampled)
    while grid is not None and grid <= _COARSEST:
        found = _composed(steps, counts, grid=grid, tail=delta * _TAIL_SHARE, symmetric=replace_one)
        if found is not None:
            return found
        grid *= math.sqrt(2)
    return None


def _grid(squared: float, sampled: Sequence[Sampled]) -> float | None:
    """A grid that adds about `_SHARE` at most to the variance of the composed loss: a step adds its square over 6."""
    variance, count = squared, int(squared > 0)
    fine = squared
    for noise_micro, rate_micro, steps in sampled:
        inverse, rate = (1e6 / noise_micro) ** 2, rate_micro / 1e6
        variance += steps * min(rate * rate * math.expm1(min(inverse, 100.0)), inverse)  # central limit: Bu et al. 2020
        fine += steps * min(
            rate * rate * math.expm1(min(inverse, 3.0)), inverse
        )  # rare large losses need no finer grid
        count += steps
    if variance / 2 + 5 * math.sqrt(variance) > _MOST_EPSILON:
        return None
    wanted = math.sqrt(6 * _SHARE * fine / count)
    halves = math.floor(2 * math.log2(wanted))
    return min(_COARSEST, max(_FINEST, math.sqrt(2.0**halves)))


def _composed(
    steps: Sequence[_Step], counts: Sequence[int], *, grid: float, tail: float, symmetric: bool
) -> Composed | None:
    parts = [part for step in steps if (part := _losses(step, grid)) is not None]
    if len(parts) < len(steps):
        return None
    directions = []
    for direction in range(1 if symmetric else 2):
        ways = [part[direction] for part in parts]
        low, high = _window(ways, counts, tail)
        points = _size((high - low) / grid + 2)
        if points > _MOST_POINTS or points * grid > _MOST_LOSS:
            return None
        start = math.floor(low / grid)
        mass = np.fft.irfft(_product([_log_spectrum(step, grid, direction, points) for step in steps], counts), points)
        rounding = _ROUNDING * math.sqrt(points) * (1 + sum(counts) * math.sqrt(float(mass @ mass)))
        infinite = -math.expm1(sum(n * math.log1p(-way.infinite) for n, way in zip(counts, ways, strict=True)))
        # Place j holds the loss of every index that is j modulo the points: from 0 to the window's end they lie first.
        mass = mass[: points + start] if start < 0 else np.roll(mass, -start)
        directions.append((max(0, start), np.maximum(mass, 0.0), tail + rounding + infinite))
    return Composed(grid, tuple(directions))


def _product(spectra: Sequence[tuple[Floats, Floats]], counts: Sequence[int]) -> npt.NDArray[np.complex128]:
    """The spectrum of the composition, from log sizes and phases; without the high frequencies where it is nothing."""
    size = _together(counts, [log_size for log_size, _ in spectra])
    there = int(np.flatnonzero(size > _NOTHING)[-1]) + 1  # frequency 0 always is: it holds the whole mass
    phase = _together(counts, [angle[:there] for _, angle in spectra])
    return np.asarray(np.exp(size[:there] + 1j * phase))


def _together(counts: Sequence[int], parts: Sequence[Floats]) -> Floats:
    total: Floats = counts[0] * parts[0]
    for count, part in zip(counts[1:], parts[1:], strict=True):
        total += count * part
    return total


def _window(ways: Sequence[_Losses], counts: Sequence[int], tail: float) -> tuple[float, float]:
    """Between these the composed loss lies but for `tail` on each side: P(L > u) <= exp(K(t) - t u) for every t."""
    rising = _together(counts, [way.rising for way in ways])
    falling = _together(counts, [way.falling for way in ways])
    high = float(np.min((rising - math.log(tail)) / _ORDERS))
    low = -float(np.min((falling - math.log(tail)) / _ORDERS))
    return min(low, high), high


def _size(points: float) -> int:
    power = 1 << max(8, math.ceil(math.log2(points)))
    return power * 3 // 4 if points <= power * 0.75 else power


@functools.lru_cache(maxsize=128)
def _log_spectrum(step: _Step, grid: float, direction: int, points: int) -> tuple[Floats, Floats]:
    losses = _losses(step, grid)
    assert losses is not None  # noqa: S101 - the caller has just asked for it
    way = losses[direction]
    places = np.arange(way.first, way.first + way.mass.size) % points
    folded = np.bincount(places, weights=way.mass, minlength=points)
    spectrum = np.fft.rfft(folded)
    return np.log(np.abs(spectrum) + 1e-300), np.angle(spectrum)


@functools.lru_cache(maxsize=128)
def _losses(step: _Step, grid: float) -> tuple[_Losses, _Losses] | None:
    """Discretise one step's privacy loss: of the first neighbour against the second, and the other way round."""
    noise, rate, replace_one = step
    reach = _REACH * noise + 1
    highest, lowest = _loss(reach, step), _loss(-reach, step)
    if highest > _MOST_LOSS or (highest - lowest) / grid > 4 * _MOST_POINTS:
        return None
    first, last = math.floor(lowest / grid), math.ceil(highest / grid)
    losses = _times(grid, first, last + 1)
    edges = _outputs(losses, step)
    nothing, size_nothing = _cells(edges / noise)
    added, size_added = _cells((edges - 1) / noise)
    one = (1 - rate) * nothing + rate * added
    if replace_one:
        taken, size_taken = _cells((edges + 1) / noise)
        other = (1 - rate) * nothing + rate * taken
        size_other = (1 - rate) * size_nothing + rate * size_taken
    else:
        other, size_other = nothing, size_nothing
    size_one = (1 - rate) * size_nothing + rate * size_added
    # Cells 0 and -1 are the tails outside the grid: below it the loss is raised to the grid, above it to infinity.
    forward = _connect(one, other, size_one, losses[:-1], grid)
    backward = _connect(other[::-1], one[::-1], size_other[::-1], -losses[:0:-1], grid)
    return _way(first, *forward, grid), _way(-last, *backward, grid)


def _loss(output: float, step: _Step) -> float:
    noise, rate, replace_one = step
    up = _log_mixture((2 * output - 1) / (2 * noise * noise), rate)
    return up - _log_mixture((-2 * output - 1) / (2 * noise * noise), rate) if replace_one else up


def _log_mixture(exponent: float, rate: float) -> float:
    """log(1 - rate + rate * exp(exponent)) without overflow."""
    if exponent > 0:
        return exponent + math.log(rate + (1 - rate) * math.exp(-exponent))
    return math.log1p(rate * math.expm1(exponent))


def _outputs(losses: Floats, step: _Step) -> Floats:
    """Where the output has these losses: the inverse of `_loss`, minus infinity where no output has so low a loss."""
    noise, rate, replace_one = step
    variance = noise * noise
    if replace_one:
        half = np.abs(losses) / 2
        with np.errstate(divide="ignore"):
            log_argument = (
                math.log1p(-rate) - math.log(rate) + 1 / (2 * variance) + half + np.log(-np.expm1(-2 * half) / 2)
            )
        large = 20.0  # from here on arcsinh(x) is log(2 x) to the last digit
        shift = np.where(
            log_argument > large, log_argument + math.log(2), np.arcsinh(np.exp(np.minimum(log_argument, large)))
        )
        return np.asarray(variance * np.copysign(half + shift, losses))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(
            losses > 1,
            losses + np.log1p(-(1 - rate) * np.exp(-np.maximum(losses, 1))),
            np.log(np.maximum(np.expm1(np.minimum(losses, 1)) + rate, 0.0)),
        )
    return np.asarray(variance * (logs - math.log(rate)) + 0.5)


def _cells(edges: Floats) -> tuple[Floats, Floats]:
    """Standard normal mass below the first edge, between edges, and above the last; and the size of its rounding."""
    tails = np.array([math.erfc(edge) for edge in (np.abs(edges) / math.sqrt(2)).tolist()]) / 2
    below, above = np.where(edges < 0, tails, 1 - tails), np.where(edges < 0, 1 - tails, tails)
    same_side = np.where(edges[:-1] < 0, tails[1:] - tails[:-1], tails[:-1] - tails[1:])
    mass = np.where((edges[:-1] < 0) == (edges[1:] < 0), same_side, 1 - tails[:-1] - tails[1:])
    size = np.minimum(tails[:-1] + tails[1:], 1.0)
    return np.concatenate([below[:1], np.maximum(mass, 0), above[-1:]]), np.concatenate([[0.0], size, [0.0]])


def _connect(one: Floats, other: Floats, size: Floats, lower: Floats, grid: float) -> tuple[Floats, float]:
    """Put each cell's mass on its two ends so that both neighbours' masses are kept; rounding goes to the upper end."""
    mass = one[1:-1]
    upper = (mass - np.exp(lower) * other[1:-1]) / -math.expm1(-grid)
    upper = np.clip(upper + 4 * _ULP * size[1:-1] / grid, 0.0, mass)
    ends = np.zeros(mass.size + 1)
    ends[:-1] = mass - upper
    ends[1:] += upper
    ends[0] += one[0]
    return ends, float(one[-1])


def _way(first: int, mass: Floats, infinite: float, grid: float) -> _Losses:
    losses = _times(grid, first, first + mass.size)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        rising, falling = (_cumulants(mass, sign * losses) for sign in (1.0, -1.0))
    return _Losses(first, mass, infinite, rising, falling)


def _times(grid: float, first: int, end: int) -> Floats:
    return np.arange(first, end, dtype=np.float64) * grid


def _cumulants(mass: Floats, losses: Floats) -> Floats:
    held = mass > 0
    mass, top = mass[held], float(losses[held].max())
    power = np.exp(_ORDERS[0] * (losses[held] - top))  # at most 1, then squared from order to order: no overflow
    found = []
    for order in _ORDERS.tolist():
        found.append(math.log(float(mass @ power)) + order * top)
        power = power * power
    return np.array(found)

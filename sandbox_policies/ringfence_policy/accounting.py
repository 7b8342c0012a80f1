"""How much privacy a history of mechanisms has cost: the one door to the accountant, and the only importer of it.

Every number this module returns is an upper bound on the true epsilon at the given delta, under the stated relation:

* Histories without sampling (rate 1) are one Gaussian mechanism whose squared parameter mu is the sum of their squares.
  Its epsilon is exact (Balle and Wang 2018, arXiv:1805.06530, theorem 8), rounded up by less than 2e-6. By Smith and
  Thakurta 2022 (arXiv:2210.17520) this sum is also a valid filter: it holds when later mechanisms are chosen after
  seeing what earlier ones released.
* Histories with Poisson sampling are composed as privacy loss distributions (dp_accounting, pessimistic
  connect-the-dots, Doroshenko et al. 2022, arXiv:2207.04380). The grid is 1e-4 for small totals and coarser for larger
  ones; measured, the result is less than 0.1 % above the finest grid's for epsilon above 0.5. Their parameters have to
  be fixed before the run: that later choices may depend on earlier outputs is not proven for this composition.
* Where that grid would grow without bound (epsilon in the thousands) or delta is too small for floating point
  transforms (below 1e-11), sampling is ignored and the exact Gaussian answer stands: always valid, possibly far above.

A mechanism this module cannot analyse raises `Unaccountable`. It never counts as zero.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from ringfence_policy.errors import BudgetExhausted, Unaccountable
from ringfence_policy.mechanism import MICRO, DpMechanism, History, history_of
from ringfence_policy.vocabulary import Relation

PICO = 10**12
MOST_EPSILON_MICRO = 10**15  # beyond an epsilon of 1e9 a number says nothing, and requests carry no larger integer

_TRANSFORM_SLACK = 1e-11  # taken off delta: about 1e5 grid points, each wrong by at most about 1e-16 after an FFT
_GRIDS = ((2.0, 1e-4), (20.0, 5e-4), (200.0, 2e-3), (2000.0, 1e-2))  # (rough epsilon up to, grid of the distribution)
_NOISE_TOLERANCE = 1e-4  # calibration of sampled mechanisms stops this close above the smallest noise that fits
_MOST_NOISE_MICRO = 10**12
_CONTINUED_FROM = 25.0

_Sampled = tuple[int, int, int]  # noise multiplier in millionths, sampling rate in millionths, steps


def epsilon(history: History, *, delta: float) -> float:
    """Epsilon that `history` costs altogether at failure probability `delta`, rounded up; no unit.

    Args:
        history: Mechanisms and how often each was used. All of one unit and one relation.
        delta: In [0, 1). At 0 only an empty history has an answer.

    Raises:
        Unaccountable: A mechanism has no noise, the history mixes units or relations, replace-one is asked of a
            sampled mechanism (no proven dominating pair under composition), or epsilon exceeds 1e9.
    """
    if not 0 <= delta < 1:
        raise Unaccountable("delta is not a failure probability", expected="0 <= delta < 1", got=f"{delta!r}")
    squared, sampled = _profile(history)
    if squared == 0 and not sampled:
        return 0.0
    if delta == 0:
        raise Unaccountable("Gaussian noise gives no epsilon at delta 0", expected="delta above 0", got="delta 0")
    bound = _epsilon(squared, sampled, delta)
    if bound * MICRO > MOST_EPSILON_MICRO:
        raise Unaccountable(
            "so little noise is no privacy",
            expected=f"epsilon up to {MOST_EPSILON_MICRO // MICRO}",
            got=f"{bound:.3g}",
            next_step="raise the noise multiplier",
        )
    return bound


def epsilon_micro(history: History, *, delta_pico: int) -> int:
    """Epsilon of `history` in millionths, rounded up, at `delta_pico` trillionths.

    Raises:
        Unaccountable: As `epsilon`.
    """
    return math.ceil(epsilon(history, delta=delta_pico / PICO) * MICRO)


def accountant_of(history: History) -> str:
    """Name the analysis that `epsilon` applies to `history`, for privacy cards and evidence."""
    if _profile(history)[1]:
        from importlib.metadata import version  # noqa: PLC0415 - costs 50 ms at import, and few callers ask

        return f"privacy loss distributions, pessimistic (dp-accounting {version('dp-accounting')})"
    return "exact composition of Gaussian mechanisms (Balle and Wang 2018)"


@functools.lru_cache(maxsize=1024)
def rounds_that_fit(
    history: History,
    mechanism: DpMechanism,
    *,
    epsilon_micro: int,
    delta_pico: int,
    at_most: int,
    alongside: History = (),
) -> int:
    """How many more uses of `mechanism` stay within `epsilon_micro`, after `history`.

    Args:
        history: What is already spent or reserved.
        mechanism: The use whose number is asked for.
        epsilon_micro: The cap, in millionths.
        delta_pico: The failure probability at which the cap is stated, in trillionths.
        at_most: Stop here; the plan's rounds.
        alongside: What each round does besides (a private evaluation, say), with counts per round.

    Returns:
        From 0 to `at_most`. Remembered per argument list: a round afterwards is an integer comparison.

    Raises:
        Unaccountable: As `epsilon`.
    """

    def fits(uses: int) -> bool:
        return _micro(_more(history, mechanism, alongside, uses), delta_pico) <= epsilon_micro

    if at_most <= 0 or not fits(1):
        return 0
    if fits(at_most):
        return at_most
    low, high = 1, at_most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def calibrate_noise(
    *,
    history: History,
    mechanism: DpMechanism,
    uses: int,
    epsilon_micro: int,
    delta_pico: int,
    alongside: History = (),
) -> DpMechanism:
    """The mechanism with the least noise such that `history` and `uses` more of it stay within the cap.

    Args:
        history: What is already spent or reserved.
        mechanism: Clip, rate, steps, unit and relation. Its own noise is not read.
        uses: How many uses must fit, >= 1.
        epsilon_micro: The cap, in millionths.
        delta_pico: The failure probability at which the cap is stated, in trillionths.
        alongside: What each use comes with besides, with counts per use.

    Returns:
        `mechanism` with a noise multiplier that fits by this module's own `epsilon_micro`. Unsampled: one millionth
        less would not fit. Sampled: at most 0.01 % above the least that fits.

    Raises:
        BudgetExhausted: No noise makes it fit: the history and what comes alongside already need the whole cap.
        Unaccountable: As `epsilon`.
    """

    def cost(noise_micro: int) -> int:
        return _micro(_more(history, mechanism.with_noise(noise_micro), alongside, uses), delta_pico)

    if uses < 1:
        raise Unaccountable("nothing to calibrate", expected="at least one use", got=str(uses))
    if cost(_MOST_NOISE_MICRO) > epsilon_micro:
        spent = _micro(_more(history, mechanism, alongside, uses, without=True), delta_pico)
        raise BudgetExhausted(
            "no amount of noise makes this plan fit",
            expected=f"epsilon within {epsilon_micro / MICRO:.6f} at delta {delta_pico / PICO:g}",
            got=f"{spent / MICRO:.6f} already needed by what was spent or comes alongside",
            next_step="ask the data holder for a larger budget, or measure less",
        )
    unsampled = mechanism.sampling_rate == 1 and not _profile(history_of((*history, *alongside)))[1]
    high = _least(cost, epsilon_micro, unsampled=unsampled)
    return mechanism.with_noise(high)


def _least(cost: Callable[[int], int], cap: int, *, unsampled: bool) -> int:
    # Bracket by doubling, then narrow: halving is exact and cheap for the closed form; for distributions each question
    # takes tenths of a second, so interpolate log epsilon over log noise and halve only when that fails to narrow.
    high = MICRO
    while cost(high) > cap:
        high = min(high * 4, _MOST_NOISE_MICRO)
    low = high
    while low > 1 and cost(low) <= cap:
        low, high = max(low // 4, 1), low
    if cost(low) <= cap:
        return low
    turn = 0
    while high - low > (1 if unsampled else max(1.0, low * _NOISE_TOLERANCE)):
        turn += 1
        guess = (low + high) // 2
        if not unsampled and turn % 3:
            guess = _interpolated(low, high, cost(low), cost(high), cap)
        low, high = (low, guess) if cost(guess) <= cap else (guess, high)
    return high


def _interpolated(low: int, high: int, cost_low: int, cost_high: int, cap: int) -> int:
    if min(cost_low, cost_high, cap) <= 0 or cost_low == cost_high:
        return (low + high) // 2
    share = math.log(cost_low / cap) / math.log(cost_low / cost_high)
    guess: float = low * (high / low) ** share * (1 + _NOISE_TOLERANCE / 3)  # a little above: it has to fit
    return min(max(round(guess), low + 1), high - 1)


def _more(history: History, mechanism: DpMechanism, alongside: History, uses: int, *, without: bool = False) -> History:
    beside = [(other, count * uses) for other, count in alongside]
    return history_of([*history, *beside, (mechanism, 0 if without else uses)])


@functools.lru_cache(maxsize=4096)
def _micro(history: History, delta_pico: int) -> int:
    return epsilon_micro(history, delta_pico=delta_pico)


def _profile(history: History) -> tuple[float, tuple[_Sampled, ...]]:
    """Reduce a history to what accounting depends on: the unsampled part's squared mu, and the sampled parts.

    Clipping norms cancel (noise is relative to them) and equal parts of different mechanisms merge.
    """
    used = [(mechanism, count) for mechanism, count in history if count]
    kinds = {(mechanism.unit, mechanism.relation) for mechanism, _ in used}
    if len(kinds) > 1:
        raise Unaccountable(
            "a history mixes units of privacy or relations, and no single epsilon covers both",
            expected="one unit and one relation per dataset",
            got=", ".join(sorted(f"{unit}/{relation}" for unit, relation in kinds)),
            next_step="plan with the unit and relation that this dataset was used with before",
        )
    squares: list[float] = []
    sampled: dict[tuple[int, int], int] = {}
    for mechanism, count in used:
        noise = mechanism.noise_multiplier_micro
        if noise == 0:
            raise Unaccountable("a mechanism without noise has no epsilon", expected="noise above 0", got="noise 0")
        if mechanism.sampling_rate == 1:
            squares.append(count * mechanism.steps * (_sensitivity(mechanism) * MICRO / noise) ** 2)
            continue
        if mechanism.relation is not Relation.ADD_OR_REMOVE:
            raise Unaccountable(
                "no proven analysis of sampling under replace-one composition",
                expected="sampling rate 1, or the relation add-or-remove",
                got=f"sampling rate {mechanism.sampling_rate:g}, {mechanism.relation}",
            )
        key = (noise, round(mechanism.sampling_rate * MICRO))
        sampled[key] = sampled.get(key, 0) + count * mechanism.steps
    return math.fsum(squares), tuple(sorted((noise, rate, steps) for (noise, rate), steps in sampled.items()))


def _sensitivity(mechanism: DpMechanism) -> float:
    """How far one neighbouring dataset moves the sum, in clipping norms."""
    if mechanism.relation is Relation.ADD_OR_REMOVE:
        return 1.0
    # Replacing a unit removes one bounded contribution and adds another: 2 in the worst case (opposite directions).
    # In a histogram they are two different cells, at right angles.
    return math.sqrt(2.0) if mechanism.kind == "score-histogram" else 2.0


@functools.lru_cache(maxsize=4096)
def _epsilon(squared: float, sampled: tuple[_Sampled, ...], delta: float) -> float:
    everything = math.fsum([squared, *(steps * (MICRO / noise) ** 2 for noise, _, steps in sampled)])
    bound = _gaussian_epsilon(math.sqrt(everything), delta)
    if not sampled or delta <= _TRANSFORM_SLACK:
        return bound
    grid = _grid(squared, sampled)
    if grid is None:
        return bound
    total = _composed(squared, sampled, grid)
    # Both are valid; the smaller is the better bound. The addend covers rounding in the search for epsilon.
    return min(bound, float(total.get_epsilon_for_delta(delta - _TRANSFORM_SLACK)) + 1e-9)


def _grid(squared: float, sampled: Sequence[_Sampled]) -> float | None:
    """The grid of the distributions, from a rough size of the answer; none where it would need too many points."""
    for noise_micro, rate_micro, steps in sampled:
        inverse = (MICRO / noise_micro) ** 2
        spread = (rate_micro / MICRO) ** 2 * math.expm1(min(inverse, 100.0))  # central limit: Bu et al. 2020
        squared += steps * min(spread, inverse)
    rough = squared / 2 + 5 * math.sqrt(squared)
    return next((grid for limit, grid in _GRIDS if rough <= limit), None)


@functools.lru_cache(maxsize=4)
def _composed(squared: float, sampled: tuple[_Sampled, ...], grid: float) -> Any:
    parts = [_one_step(noise, rate, grid).self_compose(steps) for noise, rate, steps in sampled]
    if squared:
        parts.append(_unsampled(squared, grid))
    return functools.reduce(lambda left, right: left.compose(right), parts)


@functools.lru_cache(maxsize=16)
def _one_step(noise_micro: int, rate_micro: int, grid: float) -> Any:
    return _distributions().from_gaussian_mechanism(
        noise_micro / MICRO, value_discretization_interval=grid, sampling_prob=rate_micro / MICRO
    )


@functools.lru_cache(maxsize=4)
def _unsampled(squared: float, grid: float) -> Any:
    deviation = 1 / (math.sqrt(squared) * (1 + 1e-12))
    return _distributions().from_gaussian_mechanism(deviation, value_discretization_interval=grid)


def _distributions() -> Any:
    # Imported where it is used: it takes a second, and most histories never need it.
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415

    return privacy_loss_distribution


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon, to 1e-9 and rounded up, at which a Gaussian mechanism of parameter `mu` satisfies `delta`."""
    mu *= 1 + 1e-12  # covers the rounding of the sum of squares and its root
    if _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))  # by the Gaussian tail, P(Z > z) <= exp(-z*z/2)
    while _gaussian_delta(high, mu) > delta:  # at most once, by the margin that _gaussian_delta adds
        high *= 1.000001
    while high - low > max(1e-9, 1e-14 * high):
        middle = (low + high) / 2
        low, high = (low, middle) if _gaussian_delta(middle, mu) <= delta else (middle, high)
    return high


def _gaussian_delta(epsilon: float, mu: float) -> float:
    """Balle and Wang's theorem 8: Phi(mu/2 - epsilon/mu) - exp(epsilon) * Phi(-mu/2 - epsilon/mu), rounded up.

    Both terms share the factor exp(-a*a/2), which is taken out so that neither overflows. The margin is several times
    the rounding error of the terms and of `a` itself.
    """
    a, b = mu / 2 - epsilon / mu, mu / 2 + epsilon / mu
    scale = math.exp(-a * a / 2) / 2
    first = math.erfc(-a / math.sqrt(2)) / 2 if a >= 0 else scale * _erfcx(-a / math.sqrt(2))
    second = scale * _erfcx(b / math.sqrt(2))
    return first - second + (first + second) * (1e-12 + 1e-15 * abs(a) * b)


def _erfcx(x: float) -> float:
    """exp(x*x) * erfc(x) for x >= 0, to about 1e-13 relative (asymptotic series from 25 on, DLMF 7.12.1)."""
    if x < _CONTINUED_FROM:
        return math.exp(x * x) * math.erfc(x)
    term = total = 1.0
    for n in range(1, 7):
        term *= -(2 * n - 1) / (2 * x * x)
        total += term
    return total / (x * math.sqrt(math.pi))

"""How much privacy a history of mechanisms has cost: the one door to the accountant.

Every number this module returns is an upper bound on the true epsilon at the given delta, under the stated relation:

* Histories without sampling (rate 1) are one Gaussian mechanism whose squared parameter mu is the sum of their squares.
  Its epsilon is exact (Balle and Wang 2018, arXiv:1805.06530, theorem 8), rounded up by less than 2e-6. By Smith and
  Thakurta 2022 (arXiv:2210.17520) this sum is also a valid filter: it holds when later mechanisms are chosen after
  seeing what earlier ones released.
* Histories with Poisson sampling are composed as privacy loss distributions by `composition`, pessimistically; measured
  against dp_accounting's at its usual grid (1e-4), the result is less than 0.1 % above. Their parameters have to be
  fixed before the run: that later choices may depend on earlier outputs is not proven for this composition. A larger
  history may be put on a finer grid, and then cost up to 0.1 % less than a smaller one: both are upper bounds.
* Where a run's sampled mechanisms were chosen after another run's outputs, `gated_epsilon_micro` adds a Renyi filter of
  one fixed order (Feldman and Zrnic 2021, arXiv:2008.11193): dearer by 4 to 18 %, and proven for such choices.
* Where the losses outgrow every grid (epsilon in the thousands) or delta is too small for floating point transforms
  (below 1e-11), sampling is ignored and the exact Gaussian answer stands: always valid, possibly far above.

A mechanism this module cannot analyse raises `Unaccountable`. It never counts as zero.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ringfence_policy.errors import BudgetExhausted, Unaccountable
from ringfence_policy.mechanism import MICRO, DpMechanism, History, history_of
from ringfence_policy.vocabulary import Relation

if TYPE_CHECKING:
    from ringfence_policy.composition import Composed

PICO = 10**12
MOST_EPSILON_MICRO = 10**15  # beyond an epsilon of 1e9 a number says nothing, and requests carry no larger integer

_LEAST_DELTA = 1e-11  # below, what rounding of the transforms may add (charged by `composition`) is all of it
_MOST_ORDER = 1024
_SEARCH_ROUNDING = 1e-9  # added to the epsilon that solves for delta
_NOISE_TOLERANCE = 1e-4  # calibration of sampled mechanisms stops this close above the smallest noise that fits
_MOST_NOISE_MICRO = 10**12
_CONTINUED_FROM = 25.0

_Sampled = tuple[int, int, int]  # noise multiplier in millionths, sampling rate in millionths, steps


@dataclass(frozen=True)
class _Profile:
    """What accounting depends on: the unsampled part's squared mu, the sampled parts, and the relation."""

    squared: float
    sampled: tuple[_Sampled, ...]
    replace_one: bool


def epsilon(history: History, *, delta: float) -> float:
    """Epsilon that `history` costs altogether at failure probability `delta`, rounded up; no unit.

    Args:
        history: Mechanisms and how often each was used. All of one unit and one relation.
        delta: In [0, 1). At 0 only an empty history has an answer.

    Raises:
        Unaccountable: A mechanism has no noise, the history mixes units or relations, or epsilon exceeds 1e9.
    """
    if not 0 <= delta < 1:
        raise Unaccountable("delta is not a failure probability", expected="0 <= delta < 1", got=f"{delta!r}")
    profile = _profile(history)
    if profile.squared == 0 and not profile.sampled:
        return 0.0
    if delta == 0:
        raise Unaccountable("Gaussian noise gives no epsilon at delta 0", expected="delta above 0", got="delta 0")
    return _private(_epsilon(profile, delta))


def _private(bound: float) -> float:
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


def epsilon_under(history: History, *, relation: Relation, delta: float) -> float:
    """What the same noise costs when neighbours are read under `relation`, whatever the history was planned for.

    A number only means something with its relation and unit beside it. For display, never for a gate: a ledger keeps to
    the relation its mechanisms state.

    Raises:
        Unaccountable: As `epsilon`.
    """
    return epsilon(history_of((replace(used, relation=relation), count) for used, count in history), delta=delta)


def accountant_of(history: History) -> str:
    """Name the analysis that `epsilon` applies to `history`, for privacy cards and evidence."""
    if _profile(history).sampled:
        return "privacy loss distributions, pessimistic connect-the-dots (Doroshenko et al. 2022)"
    return "exact composition of Gaussian mechanisms (Balle and Wang 2018)"


def gated_epsilon_micro(history: History, *, epsilon_cap_micro: int, delta_pico: int, adaptive: bool) -> int:
    """The number that a cap is held against, in millionths, rounded up: within the cap exactly when the use may be.

    Args:
        history: Everything that counts against the cap, the use in question included.
        epsilon_cap_micro: The cap. It fixes the order of the filter.
        delta_pico: The failure probability at which the cap is stated, in trillionths.
        adaptive: Whether a mechanism's parameters or number may depend on what others of the history released. Where
            the history has several mechanisms, their numbers may in any case: how often each is used is decided on the
            way, even within one run that trains and measures.

    Returns:
        `epsilon_micro` for a history fixed beforehand, and for one without sampling, whose sum is a filter itself. For
        an adaptive history with sampling the larger of that and `filtered_epsilon`.

    Raises:
        Unaccountable: As `epsilon`.
    """
    plain = _micro(history, delta_pico)
    if not (adaptive or len(history) > 1) or plain == 0 or not _profile(history).sampled:
        return plain
    found = filtered_epsilon(history, epsilon_cap_micro=epsilon_cap_micro, delta_pico=delta_pico)
    return max(plain, math.ceil(found * MICRO))


def filtered_epsilon(history: History, *, epsilon_cap_micro: int, delta_pico: int) -> float:
    """Epsilon of `history` by Renyi divergences at the one order that the cap fixes; no unit.

    Stopping before the divergences of order alpha sum to more than B(alpha) is a valid filter for any way of choosing
    mechanisms, as long as alpha is fixed beforehand (Feldman and Zrnic 2021, arXiv:2008.11193). B(alpha) is what
    Canonne, Kamath and Steinke's conversion (arXiv:2004.00010, proposition 12) turns into the cap, so the filter passes
    exactly when the returned number is at most the cap.

    Raises:
        Unaccountable: As `epsilon`.
    """
    profile = _profile(history)
    if profile.squared == 0 and not profile.sampled:
        return 0.0
    if delta_pico <= 0:
        raise Unaccountable("Gaussian noise gives no epsilon at delta 0", expected="delta above 0", got="delta 0")
    order = _order(epsilon_cap_micro, delta_pico)
    divergence = order * profile.squared / 2
    for noise_micro, rate_micro, steps in profile.sampled:
        # Replacing is read without its sampling: no closed form is proven, and no plan asks for it.
        rate = 1.0 if profile.replace_one else rate_micro / MICRO
        shift = (2 if profile.replace_one else 1) * MICRO / noise_micro
        divergence += steps * _renyi(order, rate, shift)
    return _private(max(0.0, divergence * (1 + 1e-12) + _conversion(order, delta_pico / PICO)))


@functools.lru_cache(maxsize=256)
def _order(epsilon_cap_micro: int, delta_pico: int) -> int:
    """The whole order that leaves most room for unsampled Gaussian noise under the cap. From the cap alone."""
    cap, delta = epsilon_cap_micro / MICRO, delta_pico / PICO
    return max(range(2, _MOST_ORDER + 1), key=lambda order: (cap - _conversion(order, delta)) / order)


def _conversion(order: int, delta: float) -> float:
    """What is added to a divergence of this order to give epsilon at `delta` (arXiv:2004.00010, proposition 12)."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


@functools.lru_cache(maxsize=1024)
def _renyi(order: int, rate: float, shift: float) -> float:
    """Renyi divergence of one Poisson-sampled Gaussian step (Mironov, Talwar, Zhang 2019, arXiv:1908.10530, eq. 3.3).

    log of the sum over k of binomial(order, k) (1-rate)^(order-k) rate^k exp(k(k-1) shift^2 / 2), over order - 1. Of
    the two directions this is the larger one (their theorem 5).
    """
    if rate == 1:
        return order * shift * shift / 2
    logs = [
        math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
        + k * math.log(rate) + (order - k) * math.log1p(-rate) + k * (k - 1) * shift * shift / 2
        for k in range(order + 1)
    ]  # fmt: skip
    top = max(logs)
    total = top + math.log(math.fsum(math.exp(term - top) for term in logs))
    return max(0.0, total + 1e-12 * (1 + abs(top))) / (order - 1)


@functools.lru_cache(maxsize=1024)
def rounds_that_fit(
    history: History,
    mechanism: DpMechanism,
    *,
    epsilon_micro: int,
    delta_pico: int,
    at_most: int,
    alongside: History = (),
    adaptive: bool = False,
) -> int:
    """How many more uses of `mechanism` stay within `epsilon_micro`, after `history`.

    Args:
        history: What is already spent or reserved.
        mechanism: The use whose number is asked for.
        epsilon_micro: The cap, in millionths.
        delta_pico: The failure probability at which the cap is stated, in trillionths.
        at_most: Stop here; the plan's rounds.
        alongside: What each round does besides (a private evaluation, say), with counts per round.
        adaptive: As in `gated_epsilon_micro`.

    Returns:
        From 0 to `at_most`. Remembered per argument list: a round afterwards is an integer comparison.

    Raises:
        Unaccountable: As `epsilon`.
    """

    def fits(uses: int) -> bool:
        after = _more(history, mechanism, alongside, uses)
        return _fits(after, epsilon_micro, delta_pico, adaptive=adaptive)

    if at_most <= 0 or not fits(1):
        return 0
    if at_most == 1 or fits(at_most):
        return at_most
    low, high = 1, at_most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# Thousands of questions to the accountant, and in a simulation of many holders most ask for the same.
@functools.lru_cache(maxsize=256)
def calibrate_noise(
    *,
    history: History,
    mechanism: DpMechanism,
    uses: int,
    epsilon_micro: int,
    delta_pico: int,
    alongside: History = (),
    adaptive: bool = False,
) -> DpMechanism:
    """The mechanism with the least noise such that `history` and `uses` more of it stay within the cap.

    Args:
        history: What is already spent or reserved.
        mechanism: Clip, rate, steps, unit and relation. Its own noise is not read.
        uses: How many uses must fit, >= 1.
        epsilon_micro: The cap, in millionths.
        delta_pico: The failure probability at which the cap is stated, in trillionths.
        alongside: What each use comes with besides, with counts per use.
        adaptive: As in `gated_epsilon_micro`.

    Returns:
        `mechanism` with a noise multiplier that fits by this module's own `gated_epsilon_micro`. Unsampled: one
        millionth less would not fit. Sampled: at most 0.01 % above the least that fits.

    Raises:
        BudgetExhausted: No noise makes it fit: the history and what comes alongside already need the whole cap.
        Unaccountable: As `epsilon`.
    """

    def cost(noise_micro: int) -> int:
        after = _more(history, mechanism.with_noise(noise_micro), alongside, uses)
        return gated_epsilon_micro(after, epsilon_cap_micro=epsilon_micro, delta_pico=delta_pico, adaptive=adaptive)

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
    unsampled = mechanism.sampling_rate == 1 and not _profile((*history, *alongside)).sampled
    start = MICRO if unsampled else _rough_noise(mechanism, uses, epsilon_micro, delta_pico)
    return mechanism.with_noise(_least(cost, epsilon_micro, start=start, unsampled=unsampled))


def _rough_noise(mechanism: DpMechanism, uses: int, cap: int, delta_pico: int) -> int:
    """About the noise that fits without a history, by the central limit theorem (Bu et al. 2020, arXiv:1911.11607)."""
    low, high = 0.0, 100.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_epsilon(middle, delta_pico / PICO) * MICRO <= cap else (low, middle)
    per_step = max(low, 1e-6) ** 2 / (uses * mechanism.steps)
    noise = _sensitivity(mechanism) / math.sqrt(math.log1p(per_step / mechanism.sampling_rate**2))
    return min(max(round(noise * MICRO), 1), _MOST_NOISE_MICRO)


def _least(cost: Callable[[int], int], cap: int, *, start: int, unsampled: bool) -> int:
    # Bracket by growing factors, then narrow: halving is exact and cheap for the closed form; for distributions each
    # question needs a new one, so interpolate log epsilon over log noise and halve only when that fails to narrow.
    factor = 4.0 if unsampled else 1.1
    low = high = start
    if cost(start) > cap:
        while cost(high) > cap:
            low, high, factor = high, min(math.ceil(high * factor), _MOST_NOISE_MICRO), factor * factor
    else:
        while low > 1 and cost(low) <= cap:
            low, high, factor = max(math.floor(low / factor), 1), low, factor * factor
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


def _fits(history: History, cap: int, delta_pico: int, *, adaptive: bool) -> bool:
    """Whether `gated_epsilon_micro` is within the cap, without working epsilon out where sampling makes it dear."""
    profile = _profile(history)
    if not profile.sampled or delta_pico <= 0:
        return _micro(history, delta_pico) <= cap
    adaptive = adaptive or len(history) > 1
    if adaptive and filtered_epsilon(history, epsilon_cap_micro=cap, delta_pico=delta_pico) * MICRO > cap:
        return False
    delta = delta_pico / PICO
    composed = _composed(profile, delta)
    if composed is None:
        return _micro(history, delta_pico) <= cap
    # Asked a little below the cap, by more than the rounding that `_epsilon` adds: what fits here also fits there.
    asked = max(0.0, cap / MICRO - 2 * _SEARCH_ROUNDING)
    return composed.delta(asked) <= delta or _gaussian_delta(asked, _mu_without_sampling(profile)) <= delta


@functools.lru_cache(maxsize=4096)
def _micro(history: History, delta_pico: int) -> int:
    return epsilon_micro(history, delta_pico=delta_pico)


def _profile(history: History) -> _Profile:
    """Reduce a history to what accounting depends on.

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
        key = (noise, round(mechanism.sampling_rate * MICRO))
        sampled[key] = sampled.get(key, 0) + count * mechanism.steps
    parts = tuple(sorted((noise, rate, steps) for (noise, rate), steps in sampled.items()))
    return _Profile(math.fsum(squares), parts, any(relation is Relation.REPLACE_ONE for _, relation in kinds))


def _sensitivity(mechanism: DpMechanism) -> float:
    """How far one neighbouring dataset moves the sum, in clipping norms."""
    if mechanism.relation is Relation.ADD_OR_REMOVE:
        return 1.0
    # Replacing a unit removes one bounded contribution and adds another: 2 in the worst case (opposite directions).
    # In a histogram they are two different cells, at right angles.
    return math.sqrt(2.0) if mechanism.kind == "score-histogram" else 2.0


@functools.lru_cache(maxsize=4096)
def _epsilon(profile: _Profile, delta: float) -> float:
    mu = _mu_without_sampling(profile)
    composed = _composed(profile, delta) if profile.sampled else None
    found = math.inf if composed is None else composed.epsilon(delta) + _SEARCH_ROUNDING
    if math.isinf(found):
        return _gaussian_epsilon(mu, delta)
    # Both bounds are valid; the smaller is the better one.
    return min(found, _gaussian_epsilon(mu, delta)) if _gaussian_delta(found, mu) <= delta else found


def _mu_without_sampling(profile: _Profile) -> float:
    shift = 2 if profile.replace_one else 1
    squares = (steps * (shift * MICRO / noise) ** 2 for noise, _, steps in profile.sampled)
    return math.sqrt(math.fsum([profile.squared, *squares])) * (1 + 1e-12)


def _composed(profile: _Profile, delta: float) -> "Composed | None":
    if delta <= _LEAST_DELTA:
        return None
    from ringfence_policy import composition  # noqa: PLC0415 - numpy takes a while, and most histories never need it

    steps = [composition.Sampled(*part) for part in profile.sampled]
    return composition.compose(profile.squared, steps, replace_one=profile.replace_one, delta=delta)


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

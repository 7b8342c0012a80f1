"""What one use of data adds to the noise: clip, noise, rate and steps in one object, so that none changes alone.

A mechanism is the single source of the clipping norm, the noise and the sampling rate a trainer applies, of the event
the accountant composes, and of the bytes the ledger and the evidence keep. Every number is an exact multiple of 1e-6,
so that it survives canonical JSON (integers only) and two readers mean the same mechanism.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from ringfence_policy import canonical
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.vocabulary import Relation, Unit

MICRO = 1_000_000
Kind = Literal["dp-sgd", "score-histogram"]
_KINDS: tuple[str, ...] = get_args(Kind)
_LARGEST_MICRO = 10**12  # a noise multiplier or clipping norm of a million; nothing honest is larger
_MOST_STEPS = 10**6
_MEMBERS = (
    "kind",
    "clipping_norm_micro",
    "noise_multiplier_micro",
    "sampling_rate_micro",
    "steps",
    "unit",
    "relation",
)


@dataclass(frozen=True, kw_only=True)
class DpMechanism:
    """One use's Gaussian mechanism. All of it is public; it says nothing about the data.

    `dp-sgd`: `steps` times, draw each unit with probability `sampling_rate` independently (Poisson), clip each drawn
    unit's contribution to L2 norm `clipping_norm`, sum, and add Gaussian noise of standard deviation `noise_stddev` to
    each coordinate of the sum. Only the noisy sums leave (Abadi et al. 2016, arXiv:1607.00133, algorithm 1).

    `score-histogram`: count units in cells, each unit with a total weight of at most 1 (a record in one cell, a subject
    spread over its records'), and add Gaussian noise of standard deviation `noise_stddev` to each cell, once.

    Attributes:
        kind: Which of the two.
        clipping_norm: L2 bound on one unit's contribution, > 0. Exactly 1 for a histogram.
        noise_multiplier: Noise standard deviation divided by `clipping_norm`, no unit, >= 0. Zero is no privacy: it
            exists for comparison lines on published data, and the accountant refuses it.
        sampling_rate: Probability that a unit joins a step, in (0, 1]; 1 means every unit, every step.
        steps: Noisy sums per use, >= 1.
        unit: What one neighbouring dataset adds or removes.
        relation: Whether neighbours differ by adding or removing one unit, or by replacing one.
    """

    kind: Kind
    clipping_norm: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    unit: Unit
    relation: Relation

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            DocumentInvalid: A number is out of its range or not a multiple of 1e-6.
        """
        object.__setattr__(self, "unit", Unit(self.unit))
        object.__setattr__(self, "relation", Relation(self.relation))
        if self.kind not in _KINDS:
            raise _invalid("kind", " or ".join(_KINDS), self.kind)
        _check("clipping_norm", self.clipping_norm, smallest=1, largest=_LARGEST_MICRO)
        _check("noise_multiplier", self.noise_multiplier, smallest=0, largest=_LARGEST_MICRO)
        _check("sampling_rate", self.sampling_rate, smallest=1, largest=MICRO)
        if type(self.steps) is not int or not 1 <= self.steps <= _MOST_STEPS:
            raise _invalid("steps", f"an integer from 1 to {_MOST_STEPS}", self.steps)
        if self.kind == "score-histogram" and (self.clipping_norm, self.sampling_rate, self.steps) != (1, 1, 1):
            raise _invalid(
                "score-histogram",
                "clipping norm 1, sampling rate 1 and one step: each unit counts at most 1, once",
                (self.clipping_norm, self.sampling_rate, self.steps),
            )
        for name in ("clipping_norm", "noise_multiplier", "sampling_rate"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def rounded(
        cls,
        *,
        kind: Kind,
        clipping_norm: float,
        noise_multiplier: float,
        sampling_rate: float,
        steps: int,
        unit: Unit,
        relation: Relation,
    ) -> Self:
        """Build a mechanism from any finite numbers by rounding them to multiples of 1e-6, to the safe side.

        Noise and sampling rate are rounded up: more noise is more private, and a higher rate is accounted as less
        private than it is if a trainer were to use the unrounded one. The clipping norm is rounded to the nearest: it
        scales clip and noise alike and costs no privacy either way.

        Raises:
            DocumentInvalid: A number is out of range.
        """
        return cls(
            kind=kind,
            clipping_norm=_nearest(clipping_norm),
            noise_multiplier=_up(noise_multiplier),
            sampling_rate=_up(sampling_rate),
            steps=steps,
            unit=unit,
            relation=relation,
        )

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise added to each coordinate of a sum, in the sum's own unit."""
        return self.noise_multiplier * self.clipping_norm

    @property
    def noise_multiplier_micro(self) -> int:
        """The noise multiplier in millionths, exactly."""
        return round(self.noise_multiplier * MICRO)

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 name of the canonical document."""
        return canonical.digest(self.to_document())

    def with_noise(self, noise_multiplier_micro: int) -> Self:
        """The same mechanism with another noise multiplier, given in millionths."""
        return type(self)(
            kind=self.kind,
            clipping_norm=self.clipping_norm,
            noise_multiplier=noise_multiplier_micro / MICRO,
            sampling_rate=self.sampling_rate,
            steps=self.steps,
            unit=self.unit,
            relation=self.relation,
        )

    def to_document(self) -> dict[str, str | int]:
        """The mechanism as integers (millionths) and strings, for signing and logging."""
        return {
            "kind": self.kind,
            "clipping_norm_micro": round(self.clipping_norm * MICRO),
            "noise_multiplier_micro": self.noise_multiplier_micro,
            "sampling_rate_micro": round(self.sampling_rate * MICRO),
            "steps": self.steps,
            "unit": str(self.unit),
            "relation": str(self.relation),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read what `to_document` wrote, and nothing else.

        Raises:
            DocumentInvalid: A member is missing, unknown, of another type or out of range.
        """
        if not isinstance(document, Mapping) or sorted(document) != sorted(_MEMBERS):
            got = sorted(document) if isinstance(document, Mapping) else type(document).__name__
            raise _invalid("document", f"exactly the members {', '.join(_MEMBERS)}", got)
        numbers = {name: document[name] for name in _MEMBERS if name.endswith("_micro")}
        for name, number in numbers.items():
            if type(number) is not int or not 0 <= number <= _LARGEST_MICRO:
                raise _invalid(name, f"an integer from 0 to {_LARGEST_MICRO}", number)
        try:
            unit, relation = Unit(document["unit"]), Relation(document["relation"])
        except ValueError as error:
            raise _invalid("unit or relation", "a known word", str(error)) from error
        return cls(
            kind=document["kind"],
            clipping_norm=numbers["clipping_norm_micro"] / MICRO,
            noise_multiplier=numbers["noise_multiplier_micro"] / MICRO,
            sampling_rate=numbers["sampling_rate_micro"] / MICRO,
            steps=document["steps"],
            unit=unit,
            relation=relation,
        )


History = tuple[tuple[DpMechanism, int], ...]
"""What was done to one dataset: each distinct mechanism with how many uses it had, in canonical order."""


def history_of(uses: Iterable[tuple[DpMechanism, int]]) -> History:
    """Bring uses into the one canonical order, equal mechanisms merged, zero counts dropped.

    Two ledgers that did the same hold the same history, however the uses were interleaved: composition does not depend
    on order here, because every mechanism's parameters are fixed before it is reserved.

    Raises:
        DocumentInvalid: A count is negative or not an integer.
    """
    counts: dict[DpMechanism, int] = {}
    for mechanism, count in uses:
        if type(count) is not int or count < 0:
            raise _invalid("count of uses", "an integer, at least 0", count)
        counts[mechanism] = counts.get(mechanism, 0) + count
    ordered = sorted(((mechanism, count) for mechanism, count in counts.items() if count), key=_order)
    return tuple(ordered)


def history_to_document(history: History) -> list[list[Any]]:
    """A history as the list of [mechanism document, count] that evidence records carry."""
    return [[mechanism.to_document(), count] for mechanism, count in history_of(history)]


def history_from_document(document: Sequence[Any]) -> History:
    """Read what `history_to_document` wrote.

    Raises:
        DocumentInvalid: It is not such a list, or not in canonical order.
    """
    if not isinstance(document, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in document):  # noqa: PLR2004 - a pair
        raise _invalid("history", "a list of [mechanism, count] pairs", type(document).__name__)
    read = tuple((DpMechanism.from_document(mechanism), count) for mechanism, count in document)
    if read != history_of(read):
        raise _invalid(
            "history", "canonical order, each mechanism once, counts of at least 1", "another order or a repeat"
        )
    return read


def _order(entry: tuple[DpMechanism, int]) -> bytes:
    return _canonical(entry[0])


@functools.lru_cache(maxsize=4096)
def _canonical(mechanism: DpMechanism) -> bytes:
    return canonical.encode(mechanism.to_document())


def _check(name: str, value: float, *, smallest: int, largest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _invalid(name, "a finite number", value)
    micro = round(value * MICRO)
    if micro / MICRO != value:
        raise _invalid(name, "a multiple of 0.000001 (DpMechanism.rounded makes one)", value)
    if not smallest <= micro <= largest:
        raise _invalid(name, f"from {smallest / MICRO:g} to {largest / MICRO:g}", value)


def _nearest(value: float) -> float:
    return round(value * MICRO) / MICRO if math.isfinite(value) else value


def _up(value: float) -> float:
    if not math.isfinite(value):
        return value
    nearest = round(value * MICRO)
    micro = nearest if nearest / MICRO >= value else nearest + 1
    return micro / MICRO


def _invalid(what: str, expected: str, got: object) -> DocumentInvalid:
    return DocumentInvalid(f"not a mechanism: {what}", expected=expected, got=repr(got))

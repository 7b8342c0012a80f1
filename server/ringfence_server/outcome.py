"""What happened in each round, as values that are shown, kept in checkpoints and summed up at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ringfence_policy.decision import Decision
from ringfence_policy.score_histogram import Rows, metrics_of, pooled

# The one reason that no policy and no check gave: the holder was not heard.
NO_REPLY = "no-reply"


@dataclass(frozen=True)
class Refusal:
    """A holder that did not take part, where that was decided, and why."""

    holder: str
    point: str
    clauses: tuple[str, ...]
    reasons: tuple[Mapping[str, str], ...]

    @classmethod
    def of(cls, holder: str, decision: Decision) -> Self:
        """The refusal that a denial amounts to, for outsiders."""
        return cls(
            holder=holder,
            point=decision.point.value,
            clauses=decision.clauses,
            reasons=tuple(
                {"clause": one.clause, "meaning": one.meaning, "limit": one.limit} for one in decision.failed
            ),
        )


@dataclass(frozen=True)
class RejectedUpdate:
    """An update that came and was not let into the aggregate."""

    holder: str
    code: str
    reason: str


@dataclass(frozen=True)
class Scores:
    """Accuracy and AUC, pooled over hospitals and for each; None where nothing was measured."""

    accuracy: float | None
    auc: float | None
    per_holder: Mapping[str, Mapping[str, float | None]]

    @classmethod
    def of(cls, histograms: Mapping[str, Rows]) -> Self | None:
        """Scores from each holder's histogram, or None without any."""
        if not histograms:
            return None
        together = metrics_of(pooled(histograms.values()))
        each = {holder: metrics_of(rows) for holder, rows in sorted(histograms.items())}
        return cls(
            accuracy=together.accuracy,
            auc=together.auc,
            per_holder={holder: {"accuracy": one.accuracy, "auc": one.auc} for holder, one in each.items()},
        )


@dataclass
class RoundOutcome:
    """One attempt at one round, filled in as it goes."""

    round: int
    attempt: int
    cohort: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    rejected_updates: list[RejectedUpdate] = field(default_factory=list)
    epsilon: dict[str, float] = field(default_factory=dict)
    metrics: Scores | None = None
    committed: bool = False
    reason: str | None = None
    seconds: float = 0.0

    def to_document(self) -> dict[str, Any]:
        """The outcome as JSON."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read back what `to_document` wrote."""
        members = dict(document)
        members["refused"] = [Refusal(**_tuples(one)) for one in members["refused"]]
        members["rejected_updates"] = [RejectedUpdate(**one) for one in members["rejected_updates"]]
        if members["metrics"] is not None:
            members["metrics"] = Scores(**members["metrics"])
        return cls(**members)


def _tuples(document: Mapping[str, Any]) -> dict[str, Any]:
    return {**document, "clauses": tuple(document["clauses"]), "reasons": tuple(document["reasons"])}


def clauses_by_holder(absent: Mapping[str, Decision], outcomes: Sequence[RoundOutcome]) -> str:
    """Every holder that refused or was refused, with the clauses, in a few words.

    Args:
        absent: Denials of those who showed no papers that hold.
        outcomes: What happened in each round.
    """
    clauses = {holder: set(denial.clauses) for holder, denial in absent.items()}
    for outcome in outcomes:
        for refusal in outcome.refused:
            clauses.setdefault(refusal.holder, set()).update(refusal.clauses)
        for rejected in outcome.rejected_updates:
            clauses.setdefault(rejected.holder, set()).add(rejected.code)
    return "; ".join(f"{holder}: {', '.join(sorted(names))}" for holder, names in sorted(clauses.items())) or "nobody"

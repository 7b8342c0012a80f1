"""The facts of one run, read out of summary.json: tolerantly, and to the worse side where something is missing.

A report is also made of a run that stopped early, and perhaps of a summary written by an older release, so nothing in
here raises: a missing number is None, a missing promise (`private`, `verified`) is not kept. All of it is public;
the strings come from files that users wrote, and stay untrusted text until the template escapes them.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

# Joiners that scripts need; every other format character (direction overrides among them) can make text lie.
_JOINERS: Final = frozenset({"\u200c", "\u200d"})
_NOT_SHOWN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How well one model did on test rows: shares in [0, 1], None where not measured or not defined."""

    accuracy: float | None = None
    auc: float | None = None
    per_holder: Mapping[str, "Scores"] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One clause that failed, as an outsider may see it."""

    clause: str
    meaning: str
    limit: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A holder's no to one round, with every clause that failed."""

    holder: str
    clauses: tuple[str, ...]
    point: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """An update that arrived and was turned down before it could reach the strategy."""

    holder: str
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Round:
    """One attempt at one round. `reason` says why it was not committed, where the summary does."""

    number: int
    attempt: int
    committed: bool
    reason: str
    cohort: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    rejections: tuple[Rejection, ...]
    scores: Scores | None
    epsilon: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Holder:
    """One data holder and what the run cost it. `epsilon` is the whole spend after the run, not this run's share."""

    id: str
    name: str
    region: str
    weight: float | None
    epsilon: float | None
    delta: float | None
    epsilon_cap: float | None
    epsilon_at_start: float | None
    rounds: int | None
    noise_multiplier: float | None
    clipping_norm: float | None
    sampling_rate: float | None
    steps: int | None
    policy: str
    sentences: tuple[str, ...]
    evaluation: str


@dataclass(frozen=True, kw_only=True)
class PreviewedHolder:
    """What one holder would say to an alternative plan."""

    holder: str
    permitted: bool
    rounds_permitted: int
    reasons: tuple[Reason, ...]
    change: str


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One alternative plan, judged before anything ran."""

    title: str
    purpose: str
    holders: tuple[PreviewedHolder, ...]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of the evidence."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was to be run."""

    purpose: str
    task: str
    coordinator: str
    strategy: str
    model: str
    rounds: int | None
    average_last: float | None


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """What the privacy claim rests on. `replaced` is each holder's epsilon read under replace-one."""

    unit: str
    relation: str
    replaced: Mapping[str, float]
    noise_source: str
    accountant: str
    trusted: tuple[str, ...]
    not_covered: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything the report says."""

    run_id: str
    scenario: str
    title: str
    plan_digest: str
    started_at: str
    finished_at: str
    completed: bool
    reason: str
    rehearsal: bool
    private: bool
    plan: Plan
    holders: tuple[Holder, ...]
    rounds: tuple[Round, ...]
    final: Mapping[str, Scores]
    federated_curve: Sequence[tuple[int, Scores]]
    references_note: str
    privacy: Privacy
    previews: tuple[Preview, ...]
    verified: bool
    checks: tuple[Check, ...]
    bundle: str
    bundle_digest: str
    timings: Mapping[str, float]
    environment: Mapping[str, str]

    def name_of(self, holder_id: str) -> str:
        """The holder's display name, or its id where the summary lists no such holder."""
        return next((holder.name for holder in self.holders if holder.id == holder_id), holder_id)


def read_summary(summary: Mapping[str, Any]) -> Run:
    """Read summary.json's content.

    Args:
        summary: The decoded JSON object. Untrusted: any key may be missing, null or of another type.

    Returns:
        The facts. `private` is true only if the summary says so, it was no rehearsal and the noise was not seeded;
        `verified` only if the summary says so, lists its checks, and none of them failed.
    """
    source, privacy = _mapping(summary), _mapping(summary.get("privacy"))
    evidence, plan = _mapping(source.get("evidence")), _mapping(source.get("plan"))
    rehearsal = source.get("rehearsal") is not False
    noise_source = _text(privacy.get("noise_source"))
    checks = tuple(_check(item) for item in _mappings(evidence.get("checks")))
    metrics = _mapping(source.get("metrics"))
    scores = {_text(name): _scores(value) for name, value in metrics.items()}
    return Run(
        run_id=_text(source.get("run_id")),
        scenario=_text(source.get("scenario")),
        title=_text(source.get("title")) or _text(source.get("scenario")) or "A federated training run",
        plan_digest=_text(source.get("plan_digest")),
        started_at=_text(source.get("started_at")),
        finished_at=_text(source.get("finished_at")),
        completed=source.get("status") == "completed",
        reason=_text(source.get("reason")),
        rehearsal=rehearsal,
        private=source.get("private") is True and not rehearsal and "seeded" not in noise_source,
        plan=_plan(plan),
        holders=tuple(_holder(key, value) for key, value in _mapping(source.get("holders")).items()),
        rounds=_rounds(source.get("rounds")),
        final={name: value for name, value in scores.items() if value is not None},
        federated_curve=_curve(_mapping(source.get("curves")).get("federated")),
        references_note=_text(source.get("references_note")),
        privacy=Privacy(
            unit=_text(privacy.get("unit")),
            relation=_text(privacy.get("relation")),
            replaced={
                _text(holder): value
                for holder, facts in _mapping(privacy.get("holders")).items()
                if (value := _number(_mapping(facts).get("epsilon_replace_one"))) is not None
            },
            noise_source=noise_source,
            accountant=_text(privacy.get("accountant")),
            trusted=_texts(privacy.get("trusted")),
            not_covered=_texts(privacy.get("not_covered")),
        ),
        previews=tuple(_preview(item) for item in _mappings(source.get("preview"))),
        verified=evidence.get("verified") is True and bool(checks) and all(check.passed for check in checks),
        checks=checks,
        bundle=_text(evidence.get("bundle")) or "evidence.zip",
        bundle_digest=_text(evidence.get("digest")),
        timings={
            _text(key): seconds
            for key, value in _mapping(source.get("timings")).items()
            if (seconds := _number(value)) is not None
        },
        environment={_text(key): _text(value) for key, value in _mapping(source.get("environment")).items()},
    )


def _plan(plan: Mapping[str, Any]) -> Plan:
    purpose, model = plan.get("purpose"), plan.get("model")
    if isinstance(purpose, Mapping):
        purpose = purpose.get("label") or purpose.get("id")
    if isinstance(model, Mapping):
        model = model.get("kind") or model.get("name")
    return Plan(
        purpose=_text(purpose),
        task=_text(plan.get("task")),
        coordinator=_text(plan.get("coordinator")),
        strategy=_text(plan.get("strategy")),
        model=_text(model),
        rounds=_whole(plan.get("rounds")),
        average_last=_number(plan.get("average_last")),
    )


def _holder(holder_id: object, value: object) -> Holder:
    facts, known_as = _mapping(value), _text(holder_id)
    return Holder(
        id=known_as,
        name=_text(facts.get("name")) or known_as,
        region=_text(facts.get("region")),
        weight=_number(facts.get("weight")),
        epsilon=_number(facts.get("epsilon")),
        delta=_number(facts.get("delta")),
        epsilon_cap=_number(facts.get("epsilon_cap")),
        epsilon_at_start=_number(facts.get("epsilon_at_start")),
        rounds=_whole(facts.get("rounds")),
        noise_multiplier=_number(facts.get("noise_multiplier")),
        clipping_norm=_number(facts.get("clipping_norm")),
        sampling_rate=_number(facts.get("sampling_rate")),
        steps=_whole(facts.get("steps")),
        policy=_text(facts.get("policy")),
        sentences=_texts(facts.get("sentences")),
        evaluation=_text(facts.get("evaluation")),
    )


def _rounds(value: object) -> tuple[Round, ...]:
    """Every attempt, in order. An attempt that was followed by another at the same round was not committed."""
    entries = _mappings(value)
    numbers = [_whole(entry.get("round")) or position for position, entry in enumerate(entries, start=1)]
    last_attempt = {number: position for position, number in enumerate(numbers)}
    return tuple(
        _round(entry, number=number, is_last=last_attempt[number] == position)
        for position, (entry, number) in enumerate(zip(entries, numbers, strict=True))
    )


def _round(entry: Mapping[str, Any], *, number: int, is_last: bool) -> Round:
    rejections = tuple(
        Rejection(holder=_text(item.get("holder")), code=_text(item.get("code")), reason=_text(item.get("reason")))
        for item in _mappings(entry.get("rejected_updates"))
    )
    cohort = _texts(entry.get("cohort"))
    contributed = set(cohort) - {rejection.holder for rejection in rejections}
    epsilon = {_text(holder): _number(value) for holder, value in _mapping(entry.get("epsilon")).items()}
    return Round(
        number=number,
        attempt=_whole(entry.get("attempt")) or 1,
        committed=is_last and bool(contributed) and entry.get("committed") is not False,
        reason=_text(entry.get("reason")),
        cohort=cohort,
        refusals=tuple(_refusal(item) for item in _mappings(entry.get("refused"))),
        rejections=rejections,
        scores=_scores(entry.get("metrics")),
        epsilon={holder: value for holder, value in epsilon.items() if value is not None},
    )


def _refusal(item: Mapping[str, Any]) -> Refusal:
    reasons = _reasons(item.get("reasons"))
    clauses = _texts(item.get("clauses")) or tuple(reason.clause for reason in reasons)
    return Refusal(holder=_text(item.get("holder")), clauses=clauses, point=_text(item.get("point")), reasons=reasons)


def _reasons(value: object) -> tuple[Reason, ...]:
    return tuple(
        Reason(clause=_text(item.get("clause")), meaning=_text(item.get("meaning")), limit=_text(item.get("limit")))
        for item in _mappings(value)
    )


def _preview(item: Mapping[str, Any]) -> Preview:
    purpose = item.get("purpose")
    if isinstance(purpose, Mapping):
        purpose = purpose.get("label") or purpose.get("id")
    return Preview(
        title=_text(item.get("title")),
        purpose=_text(purpose),
        holders=tuple(
            PreviewedHolder(
                holder=_text(entry.get("holder")),
                permitted=entry.get("permitted") is True,
                rounds_permitted=_whole(entry.get("rounds_permitted")) or 0,
                reasons=_reasons(entry.get("failed")),
                change=_text(entry.get("change")),
            )
            for entry in _mappings(item.get("holders"))
        ),
    )


def _check(item: Mapping[str, Any]) -> Check:
    return Check(name=_text(item.get("name")), passed=item.get("passed") is True, detail=_text(item.get("detail")))


def _scores(value: object) -> Scores | None:
    if not isinstance(value, Mapping):
        return None
    per_holder = {_text(key): _scores(entry) for key, entry in _mapping(value.get("per_holder")).items()}
    return Scores(
        accuracy=_number(value.get("accuracy")),
        auc=_number(value.get("auc")),
        per_holder={key: scores for key, scores in per_holder.items() if scores is not None},
    )


def _curve(value: object) -> tuple[tuple[int, Scores], ...]:
    points = ((_whole(item.get("round")), _scores(item)) for item in _mappings(value))
    return tuple((number, scores) for number, scores in points if number is not None and scores is not None)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()


def _mappings(value: object) -> tuple[Mapping[str, Any], ...]:
    return tuple(item for item in _sequence(value) if isinstance(item, Mapping))


def _texts(value: object) -> tuple[str, ...]:
    return tuple(text for item in _sequence(value) if (text := _text(item)))


def _text(value: object) -> str:
    """Visible text on one line, or empty: no control character, no direction override, no lone surrogate."""
    if value is None or isinstance(value, Mapping | list | tuple):
        return ""
    kept = (
        " " if character.isspace() else character
        for character in str(value)
        if character.isspace() or character in _JOINERS or unicodedata.category(character) not in _NOT_SHOWN
    )
    return " ".join("".join(kept).split())


def _number(value: object) -> float | None:
    """A finite number; also one written as a string, as signed documents write decimals."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None

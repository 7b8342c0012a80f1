"""A run's facts as plain-language sentences and as numbers a person reads from the back row.

Numbers are rounded to the worse side: an epsilon up, what is left of a cap down.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

from ringfence_server.outcome import NO_REPLY
from ringfence_server.report_facts import Reason, Refusal, Round, Run, Scores

NOT_KNOWN: Final = "\N{EN DASH}"
_SUPERSCRIPT: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NAMES_IN_A_SENTENCE: Final = 6
_EPSILON_STEPS: Final = 1000  # epsilon is shown in thousandths
# Not strftime's: those follow the machine's locale, and a report is the same everywhere.
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

POINTS: Final = {
    "coordinator-before-round": "by the coordinator, before the round",
    "node-before-training": "by the holder itself, before training",
    "node-before-upload": "by the holder itself, before sending",
    "release": "at the release of the model",
}
_NOISE_SOURCES: Final = {
    "csprng": "a cryptographically secure generator, at each holder",
    "seeded": "a seeded generator: repeatable, therefore NOT PRIVATE",
}
_RELATIONS: Final = {
    "add-or-remove": "add or remove one: two datasets are neighbours if one has one {unit} more",
    "replace-one": "replace one: two datasets are neighbours if they differ in one {unit}",
}


@dataclass(frozen=True, kw_only=True)
class RefusalStory:
    """One holder's refusals for the same clauses, with the rounds in which they came."""

    holder: str
    clauses: str
    rounds: str
    count: int
    point: str
    reasons: tuple[Reason, ...]


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal."""
    return NOT_KNOWN if share is None else f"{share * 100:.1f}%"


def decimal(value: float | None, *, digits: int = 3) -> str:
    """A number with at most `digits` decimals and no trailing zeros."""
    if value is None:
        return NOT_KNOWN
    shown = f"{value:.{digits}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def three_decimals(value: float | None) -> str:
    """A number with exactly three decimals, so that a column of them lines up."""
    return NOT_KNOWN if value is None else f"{value:.3f}"


def epsilon(value: float | None) -> str:
    """An epsilon with three decimals, never shown smaller than it is."""
    if not value:
        return NOT_KNOWN if value is None else "0"
    # The subtracted 1e-9 keeps 0.3 (in binary a little more than 0.3) from being shown as 0.301.
    return three_decimals(math.ceil(value * _EPSILON_STEPS - 1e-9) / _EPSILON_STEPS)


def epsilon_left(*, cap: float, spent: float) -> str:
    """What is left of a cap, with three decimals, never shown larger than it is."""
    steps = math.floor((cap - spent) * _EPSILON_STEPS + 1e-9)
    return three_decimals(steps / _EPSILON_STEPS) if steps > 0 else "0"


def delta(value: float | None) -> str:
    """A delta as a power of ten, for example 10⁻⁵."""
    if value is None:
        return NOT_KNOWN
    if value <= 0:
        return "0"
    exponent = math.floor(math.log10(value) + 1e-12)
    factor, power = decimal(value / 10**exponent), "10" + str(exponent).translate(_SUPERSCRIPT)
    return power if factor == "1" else f"{factor} \N{MULTIPLICATION SIGN} {power}"


def moment(value: str) -> str:
    """An RFC 3339 time as `21 November 2026, 09:14 UTC`; any other text as it is."""
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return value
    if time.tzinfo is None:
        return value
    time = time.astimezone(UTC)
    return f"{time.day} {_MONTHS[time.month - 1]} {time.year}, {time:%H:%M} UTC"


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """A count with its noun: `1 round`, `12 rounds`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def listed(items: Sequence[str], *, at_most: int | None = None) -> str:
    """Names as English says them: `a`, `a and b`, `a, b, and c`, `a, b, and 7 others`; `a; b, c; and d`."""
    shown = list(items)
    if at_most is not None and len(shown) > at_most:
        shown = [*shown[: at_most - 1], counted(len(shown) - at_most + 1, "other")]
    if len(shown) <= 2:  # noqa: PLR2004  # two items need no comma
        return " and ".join(shown)
    separator = "; " if any("," in item for item in shown) else ", "
    return f"{separator.join(shown[:-1])}{separator}and {shown[-1]}"


def number_ranges(numbers: Iterable[int]) -> str:
    """Round numbers as ranges: `round 4`, `rounds 1, 2, and 9 to 12`."""
    ordered = sorted(set(numbers))
    runs = [[number for _, number in group] for _, group in groupby(enumerate(ordered), lambda pair: pair[1] - pair[0])]
    parts = [
        part
        for run in runs
        for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))  # noqa: PLR2004
    ]
    return f"{'round' if len(ordered) == 1 else 'rounds'} {listed(parts)}" if parts else "no round"


def clauses(names: Iterable[str]) -> str:
    """Clause names as words: `min_holders` reads `min holders`."""
    return ", ".join(name.replace("_", " ") for name in names) or "no clause named"


def noise_source(run: Run) -> str:
    """Where the noise came from, in words."""
    return _NOISE_SOURCES.get(run.privacy.noise_source, run.privacy.noise_source or "not stated")


def relation(run: Run) -> str:
    """What makes two datasets neighbours, in words."""
    sentence = _RELATIONS.get(run.privacy.relation)
    if not sentence:
        return run.privacy.relation or "not stated"
    words = sentence.format(unit=run.privacy.unit or "record")
    if run.privacy.relation != "add-or-remove" or not run.privacy.replaced:
        return words
    numbers = ", ".join(f"{holder} {epsilon(value)}" for holder, value in run.privacy.replaced.items())
    return f"{words}. The same noise read under replace one: epsilon {numbers}"


def refusal_words(refusal: Refusal) -> str:
    """One refusal as a sentence for a cell of the grid."""
    because = "; ".join(reason_words(reason) for reason in refusal.reasons) or f"clause {clauses(refusal.clauses)}"
    if refusal.clauses == (NO_REPLY,):
        return f"not heard: {because}."
    return f"refused {POINTS.get(refusal.point, refusal.point)}: {because}."


def reason_words(reason: Reason) -> str:
    """One failed clause: the clause as a sentence where the summary has it, else its name and limit."""
    if reason.meaning:
        return reason.meaning.rstrip(".")
    return f"clause {clauses([reason.clause])}{f' (limit: {reason.limit})' if reason.limit else ''}"


def averaged(run: Run) -> str:
    """Which rounds' models the final model averages, or empty where it is the last round's model."""
    share = run.plan.average_last
    if not share or not 0 < share <= 1:
        return ""
    return f"the last {'half' if share == 0.5 else percent(share)} of the rounds"  # noqa: PLR2004  # a half, exactly


def refusal_stories(run: Run) -> tuple[RefusalStory, ...]:
    """Every refusal of the run, one story per holder and set of clauses, in order of first appearance."""
    found: dict[tuple[str, tuple[str, ...]], list[tuple[int, Refusal]]] = {}
    for entry in run.rounds:
        for refusal in entry.refusals:
            found.setdefault((refusal.holder, refusal.clauses), []).append((entry.number, refusal))
    return tuple(
        RefusalStory(
            holder=run.name_of(holder),
            clauses=clauses(names),
            rounds=number_ranges(number for number, _ in cases),
            count=len(cases),
            point=POINTS.get(cases[0][1].point, cases[0][1].point),
            reasons=cases[0][1].reasons,
        )
        for (holder, names), cases in found.items()
    )


def not_committed(entry: Round) -> str:
    """That an attempt changed nothing, and why where that is known."""
    because = f" ({entry.reason.rstrip('.')})" if entry.reason else ""
    return f"the round was not committed: the model did not change{because}."


def committed_rounds(run: Run) -> int:
    """How many rounds changed the model."""
    return len({entry.number for entry in run.rounds if entry.committed})


def highest_epsilon(run: Run) -> float | None:
    """The largest epsilon that any holder has spent after the run."""
    return max((holder.epsilon for holder in run.holders if holder.epsilon is not None), default=None)


def federated_scores(run: Run) -> Scores | None:
    """The scores of the model this run is about: the private one, in a rehearsal its unprotected rehearsal."""
    if "federated_private" in run.final:
        return run.final["federated_private"]
    return next((entry.scores for entry in reversed(run.rounds) if entry.committed and entry.scores is not None), None)


def unmeasured(run: Run) -> tuple[str, ...]:
    """Names of the holders on whose rows the comparison models were measured and the final model was not."""
    ours = federated_scores(run)
    if ours is None or not ours.per_holder:
        return ()
    compared = {holder for scores in run.final.values() for holder in scores.per_holder}
    return tuple(holder.name for holder in run.holders if holder.id in compared and holder.id not in ours.per_holder)


def verdict(run: Run) -> tuple[tuple[str, bool], ...]:
    """The whole report in two to five sentences, each with whether it is a warning."""
    sentences = ((_trained(run), False), _stopped(run), _protected(run), (_scored(run), False), _proved(run))
    return tuple((sentence, is_warning) for sentence, is_warning in sentences if sentence)


def sentence(text: str) -> str:
    """A text from elsewhere with a capital and a full stop."""
    ended = text if not text or text.endswith((".", "!", "?")) else f"{text}."
    return ended[:1].upper() + ended[1:]


def _trained(run: Run) -> str:
    names = listed([holder.name for holder in run.holders], at_most=_NAMES_IN_A_SENTENCE)
    done, planned = committed_rounds(run), run.plan.rounds
    whose = (
        f"the records of {counted(len(run.holders), 'data holder')} ({names})" if names else "no data holder's records"
    )
    why = f" Stated purpose: {run.plan.purpose}." if run.plan.purpose else " No purpose is stated."
    if not done:
        return f"No model was trained: no round was committed. It was to learn from {whose}.{why}"
    model = run.plan.model.replace("-", " ") or "model"
    article = "An" if model[:1].lower() in set("aeiou") or model == "mlp" else "A"
    rounds = f"{done} of {planned} planned rounds" if planned and planned != done else counted(done, "round")
    return f"{article} {model} was trained in {rounds} on {whose}; the records stayed with them.{why}"


def _stopped(run: Run) -> tuple[str, bool]:
    if run.completed:
        return "", False
    return sentence(f"The run stopped early{': ' + run.reason if run.reason else ''}"), True


def _protected(run: Run) -> tuple[str, bool]:
    if not committed_rounds(run):
        return "", False
    if not run.private:
        return "The model is NOT PRIVATE: release neither the model nor the updates.", True
    unit, spent = run.privacy.unit or "record", epsilon(highest_epsilon(run))
    deltas = [holder.delta for holder in run.holders if holder.delta is not None]
    at = f" at delta {delta(max(deltas))}" if deltas else ""
    return (
        f"The model is private per {unit}: each holder bounds every {unit}'s influence and adds noise before anything "
        f"leaves it; no holder has spent more than epsilon {spent}{at}."
    ), False


def _scored(run: Run) -> str:
    scores, pooled, local = federated_scores(run), run.final.get("pooled"), run.final.get("local")
    if scores is None or scores.accuracy is None:
        return ""
    beside = [
        f"{percent(other.accuracy)} {words}"
        for other, words in ((local, "when each holder trains alone"), (pooled, "if all records were pooled"))
        if other is not None and other.accuracy is not None
    ]
    against = f", against {listed(beside)}" if beside else ""
    without = f" (measured without {listed(unmeasured(run))})" if unmeasured(run) else ""
    return f"On test rows the model is right in {percent(scores.accuracy)} of cases{without}{against}."


def _proved(run: Run) -> tuple[str, bool]:
    number, failed = counted(len(run.checks), "check"), sum(not check.passed for check in run.checks)
    if run.verified:
        return f"The evidence is verified: all {number} hold, and anyone can repeat them offline.", False
    if failed:
        return f"The evidence does NOT verify: {failed} of {number} fail. Do not rely on this page.", True
    return "The evidence has NOT been verified: do not rely on this page before it is.", True

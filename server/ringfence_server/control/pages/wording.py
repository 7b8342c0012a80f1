"""Says in plain words what use cases answer with."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ringfence_policy.decision import Point
from ringfence_server.control.actor import Role
from ringfence_server.control.pages.drawing import Line
from ringfence_server.control.views import (
    Answered,
    Cell,
    DecisionView,
    EventView,
    HolderForecast,
    Reason,
    RunState,
    RunView,
)

STATES = {
    RunState.QUEUED: "waiting",
    RunState.STARTING: "starting",
    RunState.RUNNING: "running",
    RunState.SUSPENDED: "suspended",
    RunState.INTERRUPTED: "interrupted",
    RunState.FINISHED: "finished",
    RunState.FAILED: "failed",
    RunState.REFUSED: "refused",
}
# A sign, a word and a class for each thing a holder can do in a round: never told apart by colour alone.
ANSWERS = {
    Answered.TRAINS: ("✓", "trains", "permitted"),
    Answered.REFUSED: ("✕", "refused", "refused"),
    Answered.NO_REPLY: ("…", "silent", "absent"),
    Answered.REJECTED: ("!", "rejected", "rejected"),
}
ROLES = {
    Role.HOLDER: "data officer",
    Role.COORDINATOR: "coordinator",
    Role.RESEARCHER: "researcher",
    Role.REGULATOR: "regulator",
    Role.ADMINISTRATOR: "administrator",
}
# Of these nobody has to think.
IN_ORDER = frozenset({"stands", "connected"})
STANDINGS = {
    "stands": "in force",
    "revoked": "revoked",
    "suspended": "suspended",
    "edited": "edited and not signed",
    "unsigned": "not signed",
    "unknown": "not known",
    # Of a deployment, where only the holder's own machine knows how its policy stands.
    "connected": "connected",
    "not connected": "not connected",
    "never connected": "never connected",
}
# What was asked of a holder's gate: by action and point of decision.
_ASKED = {
    ("train", Point.BEFORE_TRAINING): "to train",
    ("train", Point.BEFORE_UPLOAD): "to send the update",
    ("evaluate", Point.BEFORE_TRAINING): "to measure the model",
    ("evaluate", Point.BEFORE_UPLOAD): "to send what was measured",
    ("release", Point.RELEASE): "to release the model",
}
_KINDS = {"dataset": "of the data set, over all its uses", "policy": "under the present policy"}


def sentence_of(reason: Reason) -> str:
    """A clause that failed, in words."""
    said = reason.sentence or _CLAUSES.get(reason.clause, f"the clause {reason.clause} does not allow it")
    return f"{said} ({reason.limit})" if reason.limit else said


_CLAUSES = {"no-reply": "it was not heard before the round closed"}


def why(cell: Cell) -> str:
    """Why a holder did not train."""
    return "; ".join(sentence_of(one) for one in cell.reasons) or "no reason was given"


def stories(run: RunView) -> Iterator[tuple[str, str, str, str]]:
    """Who did not train and why, rounds with the same reason together: rounds, holder, sign class, why."""
    names = {one.holder: one.name for one in run.holders}
    for cell in run.refused_plan:
        yield "The whole plan", names.get(cell.holder, cell.holder), ANSWERS[cell.answer][2], why(cell)
    absent = sorted(
        (cell.holder, why(cell), ANSWERS[cell.answer][2], number.round)
        for number in run.rounds
        for cell in number.cells
        if cell.answer is not Answered.TRAINS
    )
    for (holder, said, kind), group in groupby(absent, key=lambda one: one[:3]):
        yield _rounds([one[3] for one in group]), names.get(holder, holder), kind, said


def _rounds(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f"Round {first}"
    if last - first + 1 == len(numbers):
        return f"Rounds {first} to {last}"
    return "Rounds " + ", ".join(map(str, numbers))


def grid(run: RunView) -> list[tuple[str, str, list[tuple[str, str, str, str]]]]:
    """Rows of the grid: holder, name, and for each planned round sign, word, class and why."""
    names = {one.holder: one.name for one in run.holders}
    absent = {cell.holder: cell for cell in run.refused_plan}
    everybody = sorted({*names, *absent, *(cell.holder for one in run.rounds for cell in one.cells)})
    closed = {one.round: {cell.holder: cell for cell in one.cells} for one in run.rounds}
    open_round = max(closed, default=0) + 1
    rows = []
    for holder in everybody:
        squares = []
        for number in range(1, max(run.rounds_planned, *closed, 1) + 1 if closed else run.rounds_planned + 1):
            cell = closed.get(number, {}).get(holder) or (absent.get(holder) if number in closed else None)
            if cell is not None:
                sign, word, kind = ANSWERS[cell.answer]
                squares.append((sign, word, kind, "" if cell.answer is Answered.TRAINS else why(cell)))
            elif number in closed:
                squares.append(("·", "not asked", "absent", "it was not chosen for this round"))
            elif number == open_round and holder in run.in_round:
                squares.append(("●", "training", "working", ""))
            else:
                squares.append(("", "still to come", "void", ""))
        rows.append((holder, names.get(holder, holder), squares))
    return rows


def quality(run: RunView) -> list[Line]:
    """Accuracy and AUC over rounds."""
    return [
        Line(name, tuple((one.round, value) for one in run.rounds if (value := getattr(one, key)) is not None))
        for name, key in (("Accuracy", "accuracy"), ("AUC", "auc"))
    ]


def budgets(run: RunView) -> list[Line]:
    """Share of each dataset's epsilon that is spent, over rounds."""
    return [
        Line(
            one.name,
            tuple(
                (number.round, number.epsilon[one.holder] / one.epsilon_cap)
                for number in run.rounds
                if one.holder in number.epsilon and one.epsilon_cap > 0
            ),
        )
        for one in run.holders
    ]


def event(one: EventView) -> str:
    """Something that happened, in a sentence."""
    body: dict[str, Any] = one.body
    if one.name == "run-started":
        return f"The run begins: {body.get('rounds', '?')} rounds are planned."
    if one.name == "round-opened":
        return f"Round {body['round']} opens with {', '.join(body['cohort']) or 'nobody'}."
    if one.name == "round-closed":
        return _closed(body["outcome"])
    if one.name == "evaluating":
        return "All rounds are done. The model is measured and put to every data holder for release."
    if one.name == "run-finished":
        return "The run is finished and its evidence is gathered."
    if one.name == "run-failed":
        return f"The run stopped: {body.get('error', {}).get('summary', 'no reason was given')}."
    return f"{one.name.replace('-', ' ').capitalize()}."


def _closed(outcome: dict[str, Any]) -> str:
    refused = [one["holder"] for one in outcome["refused"]]
    said = f"Round {outcome['round']} closes: {len(outcome['cohort'])} trained"
    if refused:
        said += f", {', '.join(refused)} refused"
    accuracy = (outcome["metrics"] or {}).get("accuracy")
    return f"{said}; accuracy {accuracy:.1%}." if accuracy is not None else f"{said}."


def decided(one: DecisionView) -> str:
    """What a holder's gate was asked, and in which round."""
    asked = _ASKED.get((one.action, Point(one.point)), f"{one.action}, {one.point}")
    return f"{asked}, round {one.round}" if one.round else asked


def meter(quantity: str, owner: str) -> str:
    """What a budget is about."""
    return {"epsilon": "Privacy budget", "delta": "Chance of a worse leak", "rounds": "Rounds"}.get(
        quantity, quantity
    ) + f" {_KINDS.get(owner, '')}"


def left(used: float) -> str:
    """How much of a budget is left, for the back row."""
    if used >= 1:
        return "Nothing is left: no further use is possible."
    return f"{used:.0%} is used, {1 - used:.0%} is left."


def forecast(one: HolderForecast, rounds: int) -> str:
    """What a policy would say to a plan."""
    if one.permitted is None:
        return one.note
    if one.permitted:
        return "takes part in every round"
    if one.rounds_permitted:
        return f"takes part in {one.rounds_permitted} of {rounds} rounds, and refuses from then on"
    return "refuses every round"


def verdict(one: HolderForecast, rounds: int) -> tuple[str, str]:
    """The same as a class and a few words, for the back row."""
    if one.permitted is None:
        return "unforeseen", "? decides itself"
    if one.permitted:
        return "permits", "✓ permits"
    return (
        "refuses",
        f"✕ refuses after {one.rounds_permitted} of {rounds} rounds" if one.rounds_permitted else "✕ refuses",
    )


def most_epsilon(run: RunView) -> float | None:
    """What had been spent of the data set that gave most, after the run; None where none gave anything to it."""
    given: dict[str, float] = {}
    for one in run.rounds:
        given |= one.epsilon
    return max(given.values(), default=None)


def trade_off(runs: Mapping[str, RunView]) -> dict[str, tuple[float, float]]:
    """Of each run that was measured: the epsilon of the holder that gave most, and the accuracy."""
    points = {}
    for name, run in runs.items():
        measured = [one.accuracy for one in run.rounds if one.accuracy is not None]
        accuracy = run.final_accuracy if run.final_accuracy is not None else (measured[-1] if measured else None)
        epsilon = most_epsilon(run)
        if accuracy is not None and epsilon is not None:
            points[name] = epsilon, accuracy
    return points

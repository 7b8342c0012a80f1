"""Reads a run's events as the picture that is shown of it: rounds, holders, budgets, and what it does now."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ringfence_server.control.store.tables import RunRow
from ringfence_server.control.views import (
    Answered,
    Cell,
    ErrorView,
    Reason,
    RoundView,
    RunHolder,
    RunState,
    RunView,
)
from ringfence_server.outcome import NO_REPLY

_DOING = {
    RunState.QUEUED: "waits for its turn",
    RunState.STARTING: "loads libraries and reads policies",
    RunState.SUSPENDED: "is suspended",
    RunState.INTERRUPTED: "was interrupted",
    RunState.FINISHED: "is done",
    RunState.FAILED: "failed",
    RunState.REFUSED: "was refused by every data holder",
}


def run_view(
    row: RunRow, events: Sequence[tuple[str, Mapping[str, Any]]], *, names: Mapping[str, str], directory: Path
) -> RunView:
    """The picture of a run.

    Args:
        row: What the store says of it.
        events: What happened, in order: name and members.
        names: The data holders' names by id.
        directory: The run's own, for what its end wrote there.
    """
    started: Mapping[str, Any] = next((body for name, body in reversed(events) if name == "run-started"), {})
    rounds: dict[int, RoundView] = {}
    spent: dict[str, float] = {}
    in_round: tuple[str, ...] = ()
    doing = "trains"
    for name, body in events:
        if name == "run-started":
            rounds |= {one["round"]: _round(one) for one in body.get("earlier", ())}
            spent |= body.get("spent", {})  # by earlier runs as well; runs of before say it of their own rounds alone
        elif name == "round-opened":
            in_round, doing = tuple(body["cohort"]), f"trains round {body['round']}"
        elif name == "round-closed":
            in_round = ()
            one = _round(body["outcome"])
            rounds[one.round] = one
            spent |= one.epsilon
        elif name == "evaluating":
            doing = "measures the model and gathers the evidence"
    state = RunState(row.state)
    caps: Mapping[str, float] = started.get("caps", {})
    summary = _summary(directory) if state is RunState.FINISHED else {}
    scores = (summary.get("metrics") or {}).get("federated_private") or {}
    return RunView(
        run_id=row.id,
        proposal=row.proposal,
        title=row.title,
        state=state,
        doing=_DOING.get(state, doing),
        rehearsal=row.seed is not None,
        rounds_planned=row.rounds,
        rounds=tuple(rounds[number] for number in sorted(rounds)),
        in_round=in_round if state is RunState.RUNNING else (),
        holders=tuple(
            RunHolder(holder=one, name=names.get(one, one), epsilon=spent.get(one, 0.0), epsilon_cap=cap)
            for one, cap in sorted(caps.items())
        ),
        refused_plan=tuple(_absent(holder, clauses) for holder, clauses in sorted(started.get("refused", {}).items())),
        by=row.by,
        begun_ms=row.begun,
        changed_ms=row.changed,
        reason=row.reason,
        error=None if row.error is None else _error(json.loads(row.error)),
        verified=(summary.get("evidence") or {}).get("verified"),
        final_accuracy=scores.get("accuracy"),
        final_auc=scores.get("auc"),
    )


def _round(outcome: Mapping[str, Any]) -> RoundView:
    metrics = outcome["metrics"] or {}
    return RoundView(
        round=outcome["round"],
        committed=outcome["committed"],
        reason=outcome["reason"] or "",
        seconds=outcome["seconds"],
        cells=_cells(outcome),
        accuracy=metrics.get("accuracy"),
        auc=metrics.get("auc"),
        epsilon=outcome["epsilon"],
    )


def _cells(outcome: Mapping[str, Any]) -> tuple[Cell, ...]:
    found: dict[str, Cell] = {holder: Cell(holder=holder, answer=Answered.TRAINS) for holder in outcome["cohort"]}
    for refusal in outcome["refused"]:
        silent = list(refusal["clauses"]) == [NO_REPLY]
        found[refusal["holder"]] = Cell(
            holder=refusal["holder"],
            answer=Answered.NO_REPLY if silent else Answered.REFUSED,
            reasons=tuple(
                Reason(clause=one["clause"], sentence=one["meaning"], limit=one["limit"]) for one in refusal["reasons"]
            ),
            point=refusal["point"],
        )
    for rejected in outcome["rejected_updates"]:
        reason = Reason(clause=rejected["code"], sentence=rejected["reason"])
        found[rejected["holder"]] = Cell(holder=rejected["holder"], answer=Answered.REJECTED, reasons=(reason,))
    return tuple(found[holder] for holder in sorted(found))


def _absent(holder: str, clauses: Sequence[str]) -> Cell:
    silent = list(clauses) == [NO_REPLY]
    return Cell(
        holder=holder,
        answer=Answered.NO_REPLY if silent else Answered.REFUSED,
        reasons=tuple(Reason(clause=clause, sentence="") for clause in clauses),
    )


def _error(document: Mapping[str, Any]) -> ErrorView:
    return ErrorView(
        code=document.get("code") or "error",
        summary=document.get("summary") or "",
        next_step=document.get("next_step") or "",
    )


def _summary(directory: Path) -> Mapping[str, Any]:
    path = directory / "summary.json"
    found: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found

"""What `ringfence` shows of scenarios, previews, ledgers and decisions: tables for people, JSON for programs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from ringfence_policy.clauses import explain
from ringfence_policy.database import Database
from ringfence_policy.errors import ScenarioInvalid, UsageError
from ringfence_policy.ledger import Meter, PrivacyLedger
from ringfence_policy.shell_words import typed
from ringfence_policy.terminal import terminal
from ringfence_policy.vocabulary import PURPOSES
from ringfence_server.deployment import is_deployment
from ringfence_server.forecast import forecast, forecast_document
from ringfence_server.scenario import Scenario, bundled_scenarios, load_scenario

_POINTS = {
    "coordinator-before-round": "coordinator",
    "node-before-training": "holder before use",
    "node-before-upload": "holder on sending",
    "release": "holder on release",
}
_MICRO_QUANTITIES = {"epsilon": 10**6, "delta": 10**12, "rounds": 1}


def show_preview(directory: Path, *, plan: Path | None, as_json: bool) -> int:
    """Preview a plan. Exit code 3 where no data holder at all would permit its first round."""
    _refuse_deployment(directory, "policies")
    scenario = load_scenario(directory, plan=plan)
    document = forecast_document(scenario.plan, forecast(scenario, scenario.plan))
    if as_json:
        typer.echo(json.dumps(document))
    else:
        console = terminal()
        table = Table(title=f"{document['title']} ({document['purpose']})", title_justify="left")
        for column in ("data holder", "answer", "why", "what would make it pass"):
            table.add_column(column, overflow="fold")
        for one in document["holders"]:
            rounds = f"✗ permits {one['rounds_permitted']} of {scenario.plan.training.rounds} rounds"
            answer = "✓ permits" if one["permitted"] else rounds if one["rounds_permitted"] else "✗ refuses"
            why = " ".join(failed["meaning"] for failed in one["failed"])
            obstacles = f"only the data officer can change: {', '.join(one['obstacles'])}" if one["obstacles"] else ""
            table.add_row(scenario.holders[one["holder"]].name, answer, why, one["change"] or obstacles)
        console.print(table)
    return 0 if any(one["rounds_permitted"] for one in document["holders"]) else 3


def show_scenarios(*, as_json: bool) -> None:
    """List the bundled scenarios."""
    found = {name: load_scenario(path) for name, path in bundled_scenarios().items()}
    if as_json:
        document = {name: {"title": one.plan.title, "holders": list(one.holders)} for name, one in found.items()}
        typer.echo(json.dumps(document))
        return
    table = Table()
    for column in ("scenario", "plan", "data holders"):
        table.add_column(column)
    for name, one in found.items():
        table.add_row(name, one.plan.title, ", ".join(profile.name for profile in one.holders.values()))
    terminal().print(table)


def show_one_scenario(name: str, *, as_json: bool) -> None:
    """Show one scenario: plan, holders, terms in plain sentences."""
    bundled = bundled_scenarios()
    scenario = load_scenario(bundled.get(name, Path(name)))
    if as_json:
        typer.echo(json.dumps(_scenario_document(scenario)))
        return
    console = terminal()
    terms = scenario.plan
    console.print(f"{terms.title}", style="bold")
    console.print(
        f"{terms.coordinator} asks, for {PURPOSES[terms.purpose].label}: {terms.model.kind}, "
        f"{terms.training.strategy}, {terms.training.rounds} rounds"
    )
    for holder_id, profile in scenario.holders.items():
        console.print(f"\n{profile.name} ({holder_id})", style="bold")
        for sentence in explain(scenario.policies[holder_id]):
            console.print(f"  {sentence}", highlight=False)


def show_meters(directory: Path, *, as_json: bool) -> None:
    """Show every budget of a holder, or of all holders of a scenario."""
    _refuse_deployment(directory, "ledgers")
    found = {path.parent.parent.name: _meters(path) for path in _ledgers(directory)}
    if as_json:
        document = {
            holder: [vars(meter) | {"left": meter.left} for meter in meters] for holder, meters in found.items()
        }
        typer.echo(json.dumps(document))
        return
    table = Table(title="Privacy budgets, as each holder's ledger keeps them", title_justify="left")
    for column in ("data holder", "budget", "spent", "reserved", "cap", "left"):
        table.add_column(column, justify="left" if column in ("data holder", "budget") else "right")
    for holder, meters in found.items():
        deltas = {
            meter.owner_id: meter.cap / _MICRO_QUANTITIES["delta"] for meter in meters if meter.quantity == "delta"
        }
        for meter in meters:
            if meter.quantity == "delta":
                continue  # it stands beside the epsilon that is stated at it
            at = f" (delta {deltas[meter.owner_id]:g})" if meter.quantity == "epsilon" else ""
            scale = _MICRO_QUANTITIES[meter.quantity]
            figures = [f"{value / scale:.4g}" for value in (meter.committed, meter.reserved, meter.cap, meter.left)]
            table.add_row(holder, f"{meter.owner_kind} {meter.quantity}{at}", *figures)
    terminal().print(table)


def show_decisions(directory: Path, *, run_id: str | None, holder: str | None, denied: bool, as_json: bool) -> None:
    """Show decisions of all logs in a scenario, oldest first."""
    found = sorted(_decisions(directory), key=lambda one: int(one["at_ms"]))
    shown = [
        one
        for one in found
        if (run_id is None or one["run"] == run_id)
        and (holder is None or one["holder"] == holder)
        and (not denied or one["effect"] == "deny")
    ]
    if as_json:
        typer.echo(json.dumps(shown))
        return
    for name in dict.fromkeys(one["run"] for one in shown):
        table = Table(title=f"Decisions of run {name}", title_justify="left", expand=True)
        for column in ("round", "data holder", "decided by", "action", "answer"):
            table.add_column(column, no_wrap=True)
        table.add_column("clauses that failed", overflow="fold", ratio=1)
        for one in shown:
            if one["run"] == name:
                answer = "✓" if one["effect"] == "permit" else "✗"
                clauses = "; ".join(f"{failed['clause']}: {failed['meaning']}" for failed in one["failed"])
                where = _POINTS.get(one["point"], one["point"])
                table.add_row(str(one["round"] or ""), one["holder"], where, one["action"], answer, clauses)
        terminal().print(table)


def _decisions(directory: Path) -> Iterator[dict[str, Any]]:
    logs: dict[str | None, Path] = {None: directory / "coordinator" / "log.db"}
    if not is_deployment(directory):  # there each holder keeps its own
        logs |= {path.parent.parent.name: path for path in _ledgers(directory)}
    for owner, path in logs.items():
        if owner is None and not path.exists():
            continue  # nothing was coordinated from here yet
        with Database.open(path, must_exist=True) as database:
            is_begun = database.rows("SELECT 1 FROM sqlite_schema WHERE name = 'evidence_leaf'")
            rows = database.rows("SELECT record FROM evidence_leaf ORDER BY position") if is_begun else []
        for (line,) in rows:
            record = json.loads(line)
            if record["kind"] == "decision":
                decision = record["decision"]
                yield {
                    "at_ms": record["at_ms"],
                    "run": record["run"],
                    "round": record["round"],
                    "holder": owner or record["holder"],
                    "action": record["action"],
                    **{key: decision[key] for key in ("point", "effect", "failed", "policy")},
                }


def _refuse_deployment(directory: Path, what: str) -> None:
    if is_deployment(directory):
        raise UsageError(
            f"a deployment's {what} lie with its data holders, and only they read them",
            expected="a scenario, whose data holders are on this machine",
            where=str(directory),
            next_step="`ringfence run DIR --superlink HOST:PORT` shows each data holder the plan before anything is "
            "trained, and names who refuses it and by which clause; its summary has what each says it spent",
        )


def _ledgers(directory: Path) -> list[Path]:
    # Where a ledger is gone from a state that is whole otherwise, opening it says so.
    papers = [directory / "state" / "papers", *sorted((directory / "holders").glob("*/state/papers"))]
    found = [path.with_name("ledger.db") for path in papers if path.exists()]
    if not found:
        raise ScenarioInvalid(
            "no ledger here yet",
            expected="a holder's directory, or a scenario that has run",
            got="a directory without one" if directory.is_dir() else "no such directory",
            where=str(directory),
            next_step=f"run it first: ringfence run {typed(directory)}" if directory.is_dir() else "look at the name",
        )
    return found


def _meters(path: Path) -> list[Meter]:
    with Database.open(path, must_exist=True) as database:
        return PrivacyLedger(database).meters()


def _scenario_document(scenario: Scenario) -> dict[str, Any]:
    return {
        "directory": str(scenario.directory),
        "plan": json.loads(scenario.plan.model_dump_json()),
        "holders": {
            holder_id: {"name": profile.name, "terms": list(explain(scenario.policies[holder_id]))}
            for holder_id, profile in scenario.holders.items()
        },
    }

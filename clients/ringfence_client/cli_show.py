"""What `ringfence-node` shows a data officer in tables: standing, budgets, decisions, the report on the data."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from ringfence_client.holder_view import decision_documents, meter_documents, run_documents, standing_document
from ringfence_client.home import HolderHome
from ringfence_policy.documents import Status
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.terminal import terminal
from ringfence_policy.wording import epsilon_text

if TYPE_CHECKING:
    from ringfence_client.data_check import DataReport

OWN_EYES = "For the data officer alone: counts of records are facts about them. Do not send this on."

_STANDINGS = {
    "stands": "stands",
    "revoked": "is revoked, for good: a new policy needs a new id",
    "suspended": "is suspended: nothing is used until ringfence-node resume",
    "edited": "does not count: policy.toml was changed after it was signed. Raise its version: ringfence-node sign",
    "unsigned": "is not signed: ringfence-node sign",
}
_POINTS = {
    "node-before-training": "before use",
    "node-before-upload": "before sending",
    "release": "before release",
}
_SCALES = {"epsilon": 10**6, "delta": 10**12, "rounds": 1}


def show_standing(home: HolderHome, status: Status, policy: UsagePolicy | None, *, as_json: bool) -> None:
    """Show where the holder stands, in sentences and its budgets as a table."""
    document = standing_document(home, status, policy)
    if as_json:
        typer.echo(json.dumps(document))
        return
    name = document["policy"] or "The policy"
    typer.echo(f"{document['name']}: {name} {_STANDINGS[document['standing']]}")
    _say_stops(status)
    for sentence in document["terms"]:
        typer.echo(f"  - {sentence}")
    typer.echo(f"Status {status.seq} is good until {_moment(status.good_until_ms)}; an open node renews it by itself.")
    _show_meters(document["budgets"])
    decisions = document["decisions"]
    last = "" if decisions["last_at_ms"] is None else f", the last one at {_moment(decisions['last_at_ms'])}"
    typer.echo(f"Decisions here: {decisions['permitted']} permitted, {decisions['denied']} denied{last}.")
    joined = document["coordinator"]
    typer.echo(f"Coordinator: {joined} at {document['coordinator_address']}" if joined else "Coordinator: none joined.")
    known = document["known_holders"]
    typer.echo(f"Other data holders known here: {', '.join(known) if known else 'none'}.")
    typer.echo("A node of this holder is open." if document["node_is_open"] else "No node of this holder is open.")


def _say_stops(status: Status) -> None:
    for entry in status.revoked:
        typer.echo(f"  {entry.policy_id} was revoked at {_moment(entry.at_ms)}: {entry.reason}")
    if status.suspended is not None:
        typer.echo(f"  Suspended since {_moment(status.suspended.at_ms)}: {status.suspended.reason}")


def show_ledger(home: HolderHome, *, as_json: bool) -> None:
    """Show every budget, and what each run took."""
    meters, runs = meter_documents(home), run_documents(home)
    if as_json:
        typer.echo(json.dumps({"budgets": meters, "runs": runs}))
        return
    _show_meters(meters)
    if not runs:
        typer.echo("Nothing was used yet.")
        return
    table = _table("What each run took", "run", "rounds", "evaluations", "in use", "given back", "epsilon alone")
    for one in runs:
        figures = (one["rounds"], one["evaluations"], one["reserved"], one["given_back"])
        _row(table, one["run"], *figures, epsilon_text(one["epsilon_micro"]))
    terminal().print(table)
    typer.echo("What runs cost together is in the budgets above; it is not the sum of what each costs alone.")


def _show_meters(meters: Iterable[dict[str, Any]]) -> None:
    table = _table("Privacy budgets", "budget", "of", "spent", "reserved", "cap", "left")
    for meter in meters:
        scale = _SCALES[meter["quantity"]]
        figures = [f"{meter[name] / scale:.4g}" for name in ("committed", "reserved", "cap", "left")]
        _row(table, f"{meter['owner_kind']} {meter['quantity']}", meter["owner_id"], *figures)
    terminal().print(table)


def show_decisions(home: HolderHome, *, run_id: str | None, denied: bool, as_json: bool) -> None:
    """Show the decisions of the holder's own log, with its own figures."""
    found = decision_documents(home, run_id=run_id, denied=denied)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(OWN_EYES)
    table = _table("Decisions", "at", "run", "round", "where", "action", "answer", "why: asked for, found")
    for one in found:
        why = "\n".join(
            f"{failed['clause']}: {failed['meaning']} ({failed['limit'] or '-'}; {failed['actual'] or '-'})"
            for failed in one["failed"]
        )
        answer = "permitted" if one["effect"] == "permit" else "denied"
        where = _POINTS.get(one["point"], one["point"])
        _row(table, _moment(one["at_ms"]), one["run"], one["round"] or "", where, one["action"], answer, why)
    terminal().print(table)


def show_data_report(report: "DataReport", schema: DatasetSchema, *, as_json: bool) -> None:
    """Show what was counted in the data."""
    if as_json:
        columns = [vars(column) for column in report.columns]
        typer.echo(json.dumps({"schema": schema.digest, **vars(report), "columns": columns}))
        return
    typer.echo(OWN_EYES)
    table = _table(
        f"{report.rows} rows, by column",
        "column", "kind", "missing", "wrong type", "out of bounds", "unknown words", "so it is",
    )  # fmt: skip
    for one in report.columns:
        counts = (one.missing, one.wrong_type, one.out_of_bounds, one.unknown_words)
        so = "; ".join(f"{what.replace('_', ' ')}: {then}" for what, then in one.consequences.items())
        _row(table, one.name, one.kind, *counts, so if one.is_there else "not in the file: refuses the data")
    terminal().print(table)
    if report.undeclared_columns:
        typer.echo(f"Columns that the schema does not declare: {report.undeclared_columns}. They refuse the data.")
    typer.echo(f"Labels: {report.positive} positive, {report.negative} negative.")
    typer.echo(f"Rows that equal another one: {report.repeated_rows}. They are used as they are.")
    if report.subjects is not None:
        typer.echo(
            f"Data subjects: {report.subjects}; over the bound of records: {report.subjects_over_bound}; "
            f"records left out of training for that: {report.surplus_records}."
        )
    if not report.rows:
        typer.echo("There is no record in it: every use of it will be refused.")
    typer.echo("The data fits the schema." if report.fits else f"The data does not fit the schema: {report.refusal}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _row(table: Table, *cells: object) -> None:
    # As text: a name with brackets in it is no markup.
    table.add_row(*(Text(str(cell)) for cell in cells))


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")

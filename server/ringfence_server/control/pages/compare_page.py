"""Compare: runs side by side, what privacy costs in quality, and the figures as a file."""

import csv
import io

from fastapi import Request
from nicegui import ui

from ringfence_server.control.pages.controls import Field, button
from ringfence_server.control.pages.frame import Live, attempt, frame
from ringfence_server.control.pages.seat import Seat
from ringfence_server.control.views import RunView

_MOST_RUNS = 8


async def build(seat: Seat, _request: Request) -> None:
    """The page `/compare`."""
    runs = (await seat.ask(seat.plane.runs.runs, seat.actor, limit=_MOST_RUNS)).items
    first = await seat.ask(seat.plane.runs.compare, seat.actor, [one.run_id for one in runs]) if runs else None
    lead = "Each mark is a run: to the right it cost more privacy, upwards its model is better."
    with frame(seat, "/compare", "What does privacy cost?", lead) as told:
        chosen: dict[str, Field] = {}

        async def show() -> None:
            async def act() -> None:
                ids = [run_id for run_id, field in chosen.items() if field.value == "yes"]
                found = (await seat.ask(seat.plane.runs.compare, seat.actor, ids)).runs
                compared.show(runs=_named(found))

            await attempt(told, act)

        async def download() -> None:
            async def act() -> None:
                ids = [run_id for run_id, field in chosen.items() if field.value == "yes"]
                found = (await seat.ask(seat.plane.runs.compare, seat.actor, ids)).runs
                ui.download.content(_table(found).encode(), "ringfence-runs.csv", "text/csv")

            await attempt(told, act)

        with ui.element("section").classes("card").props('aria-label="Which runs"'):
            with ui.element("div").classes("choices"):
                for number, one in enumerate(reversed(runs), 1):
                    chosen[one.run_id] = Field(f"Run {number}: {one.title}", "yes", kind="check", changed=show)
            if runs:
                with ui.element("div").classes("row"):
                    button("Download the figures (CSV)", download, kind="main")
        compared = Live("compared", runs=_named(tuple(reversed(first.runs))) if first else {})


def _named(runs: tuple[RunView, ...]) -> dict[str, RunView]:
    return {f"Run {number}": run for number, run in enumerate(runs, 1)}


def _table(runs: tuple[RunView, ...]) -> str:
    """One line per run and round. Names that a spreadsheet would take for a formula are made harmless."""
    text = io.StringIO()
    lines = csv.writer(text)
    holders = sorted({one.holder for run in runs for one in run.holders})
    lines.writerow(["run", "title", "round", "accuracy", "auc", *(f"epsilon {holder}" for holder in holders)])
    for run in runs:
        for one in run.rounds:
            lines.writerow(
                [run.run_id, _harmless(run.title), one.round, one.accuracy, one.auc]
                + [one.epsilon.get(holder) for holder in holders]
            )
    return text.getvalue()


def _harmless(text: str) -> str:
    return f"'{text}" if text[:1] in "=+-@\t\r" else text

"""Oversight: whether every run's evidence holds, what is open, where the holders stand, and what was looked at."""

from fastapi import Request
from nicegui import ui

from ringfence_server.control.pages.controls import button
from ringfence_server.control.pages.frame import block, frame
from ringfence_server.control.pages.handing_out import hand_out_evidence
from ringfence_server.control.pages.seat import Seat
from ringfence_server.control.pages.wording import IN_ORDER
from ringfence_server.control.permissions import Act
from ringfence_server.control.views import RunState

_MOST_RUNS = 10
_MOST_READS = 50
_OPEN = frozenset({RunState.FAILED, RunState.REFUSED, RunState.SUSPENDED, RunState.INTERRUPTED})


async def build(seat: Seat, _request: Request) -> None:
    """The page `/oversight`."""
    runs = (await seat.ask(seat.plane.runs.runs, seat.actor, limit=_MOST_RUNS)).items
    holders = await seat.ask(seat.plane.holders.holders, seat.actor)
    lead = "You see everything but records, updates and exact counts. What a regulator looks at is written down below."
    with frame(seat, "/oversight", "Oversight", lead) as told:
        cases = [run for run in runs if run.state in _OPEN]
        block("open_cases", cases=cases, holders=[one for one in holders if one.standing not in IN_ORDER])
        with ui.element("section").classes("card").props('aria-label="Evidence"'):
            block("title", text="Evidence of every run")
            if not runs:
                block("text", text="No run was begun yet.")
            for run in runs:
                evidence = await seat.ask(seat.plane.evidence.status, seat.actor, run.run_id)
                block("evidence", run=run, evidence=evidence)
                if evidence.digest and seat.may(Act.EXPORT):
                    with ui.element("div").classes("row"):
                        button(
                            "Download the evidence",
                            hand_out_evidence(seat, run.run_id, told),
                            label=f"Download the evidence of run {run.run_id}",
                        )
        reads = await seat.ask(seat.plane.access.reads, seat.actor, limit=_MOST_READS)
        block("reads", reads=reads.items)

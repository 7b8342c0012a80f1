"""The page of all runs: what was proposed and who answered, what was begun, and for a coordinator the way to begin."""

import secrets

from fastapi import Request
from nicegui import ui

from ringfence_server.control.pages.controls import Field, Question, Told
from ringfence_server.control.pages.frame import Live, attempt, block, frame, keep_looking
from ringfence_server.control.pages.seat import Seat
from ringfence_server.control.permissions import Act
from ringfence_server.control.views import ProposalView

_LOOK_SECONDS = 2.0
_MOST = 20
# Any number: everybody may know it, which is why a rehearsal is not private.
_REHEARSAL_SEED = 7


async def build(seat: Seat, _request: Request) -> None:
    """The page `/runs`."""
    runs = await seat.ask(seat.plane.runs.runs, seat.actor, limit=_MOST)
    proposals = await seat.ask(seat.plane.runs.proposals, seat.actor, limit=_MOST)
    with frame(
        seat, "/runs", "Runs", "Proposals wait for the data officers that want to be asked; runs go on by themselves."
    ) as told:
        with ui.element("section").classes("card").props('aria-label="Runs"'):
            block("title", text="Runs")
            shown_runs = Live("run_list", runs=runs.items)
        with ui.element("section").classes("card").props('aria-label="Proposals"'):
            block("title", text="Proposals")
            shown = {}
            for one in proposals.items:
                with ui.element("div").classes("proposal"):
                    shown[one.id] = _proposal(seat, told, one)
            if not shown:
                block("text", text="No plan was proposed yet. Propose one on the page Preview.")

        async def look() -> None:
            shown_runs.show(runs=(await seat.ask(seat.plane.runs.runs, seat.actor, limit=_MOST)).items)
            for one in (await seat.ask(seat.plane.runs.proposals, seat.actor, limit=_MOST)).items:
                if one.id in shown:
                    shown[one.id].show(proposal=one)

        keep_looking(look, told, every=_LOOK_SECONDS)


def _proposal(seat: Seat, told: Told, proposal: ProposalView) -> Live:
    shown = Live("proposal", proposal=proposal)
    if seat.may(Act.START):
        # One key for each opened page: pressing twice begins one run.
        key = secrets.token_hex(16)

        async def start(_reason: str) -> None:
            async def act() -> None:
                seed = _REHEARSAL_SEED if rehearsal.value == "yes" else None
                run = await seat.ask(seat.plane.runs.start, seat.actor, proposal.id, seed=seed, once=f"{key}-{seed}")
                ui.navigate.to(f"/runs/{run.run_id}")

            await attempt(told, act)

        with ui.element("div").classes("row"):
            Question(
                "Start a run of this proposal?",
                f"{proposal.title}: {proposal.rounds} rounds. Each data holder's own policy decides every use.",
                yes="Start the run",
                act=start,
                kind="main",
            ).opener("Start a run", kind="main").props(f'aria-label="Start a run of proposal {proposal.id[:8]}"')
            rehearsal = Field("Rehearsal: seeded noise, NOT PRIVATE", kind="check")
    return shown

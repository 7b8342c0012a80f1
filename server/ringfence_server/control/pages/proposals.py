"""What waits for a data officer's answer, on every page of theirs, and whether they want to be asked first."""

from collections.abc import Awaitable, Callable

from nicegui import ui

from ringfence_server.control.pages.controls import Field, Told, button
from ringfence_server.control.pages.frame import attempt, block
from ringfence_server.control.pages.seat import Seat
from ringfence_server.control.views import HolderView


class Proposals:
    """The card with proposals.

    Args:
        seat: The data officer.
        view: Whose data.
        told: Where what comes of an answer is said.
        answered: Called after an answer.
    """

    def __init__(self, seat: Seat, view: HolderView, told: Told, *, answered: Callable[[], Awaitable[None]]) -> None:
        self._seat = seat
        self._told = told
        self._answered = answered
        self._pending: tuple[str, ...] | None = None
        with ui.element("section").classes("card").props('id=proposals aria-label="Proposals that wait for you"'):
            block("title", text="Proposals that wait for you")
            self._place = ui.element("div")
            self._asks = Field(
                "Ask me first: no run begins before I have answered its proposal, and I answer for one run",
                "yes" if view.asks_first else "",
                kind="check",
                changed=self._ask_first,
            )

    async def look(self) -> None:
        """Read anew what waits, and show it where it changed."""
        seat = self._seat
        pending = await seat.ask(seat.plane.holders.pending, seat.actor, seat.holder)
        if pending == self._pending:
            return
        self._pending = pending
        self._place.clear()
        with self._place:
            if not pending:
                block("text", text="None. Your policy decides every use besides.")
            for proposal_id in pending:
                proposal = await seat.ask(seat.plane.runs.proposal, seat.actor, proposal_id)
                forecast = await seat.ask(seat.plane.runs.preview, seat.actor, proposal.text)
                mine = next((one for one in forecast if one.holder == seat.holder), None)
                block("pending", proposal=proposal, mine=mine)
                note = Field("A note to the coordinator (may stay empty)")
                with ui.element("div").classes("row"):
                    self._answer("Approve", proposal_id, note, approves=True)
                    self._answer("Decline", proposal_id, note, approves=False)

    def _answer(self, text: str, proposal_id: str, note: Field, *, approves: bool) -> None:
        seat = self._seat

        async def press() -> None:
            async def act() -> None:
                await seat.ask(
                    seat.plane.holders.answer, seat.actor, seat.holder, proposal_id, approves=approves, note=note.value
                )
                await self._answered()
                self._told.say("You approved it." if approves else "You declined: your data takes no part in its runs.")

            await attempt(self._told, act)

        button(text, press, kind="main" if approves else "")

    async def _ask_first(self) -> None:
        async def act() -> None:
            wanted = self._asks.value == "yes"
            await self._seat.ask(self._seat.plane.holders.ask_first, self._seat.actor, self._seat.holder, wanted=wanted)
            self._told.say("You are asked before a run begins." if wanted else "Your policy alone decides.")

        await attempt(self._told, act)

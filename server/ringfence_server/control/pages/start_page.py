"""The start page: who you are here, what you may do, and what goes on."""

from fastapi import Request

from ringfence_server.control.pages.frame import ROOMS, block, frame
from ringfence_server.control.pages.seat import Seat
from ringfence_server.control.pages.wording import ROLES
from ringfence_server.control.permissions import Act

_MOST_RUNS = 5


async def build(seat: Seat, _request: Request) -> None:
    """The page `/`."""
    heading = f"You are here as {ROLES[seat.actor.role]}"
    runs = await seat.ask(seat.plane.runs.runs, seat.actor, limit=_MOST_RUNS)
    waiting: tuple[str, ...] = ()
    if seat.may(Act.OWN_DATA):
        view = await seat.ask(seat.plane.holders.view, seat.actor, seat.holder)
        heading = f"You speak for {view.name}"
        waiting = await seat.ask(seat.plane.holders.pending, seat.actor, seat.holder)
    with frame(seat, "/", heading, "Every page and every button that you see here is one that your role may use."):
        block("start", rooms=[room for room in ROOMS if seat.may(room[2])], runs=runs.items, waiting=len(waiting))

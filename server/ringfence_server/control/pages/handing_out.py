"""Hands a run's evidence to a browser as a file."""

import asyncio
from collections.abc import Awaitable, Callable

from nicegui import ui

from ringfence_server.control.pages.controls import Told
from ringfence_server.control.pages.frame import attempt
from ringfence_server.control.pages.seat import Seat


def hand_out_evidence(seat: Seat, run_id: str, told: Told) -> Callable[[], Awaitable[None]]:
    """What a button does that downloads the bundle of a run."""

    async def press() -> None:
        async def act() -> None:
            path = await seat.ask(seat.plane.evidence.bundle, seat.actor, run_id)
            ui.download.content(await asyncio.to_thread(path.read_bytes), f"evidence-{run_id}.zip")
            told.say("The evidence is on its way. Anybody can check it: ringfence evidence verify evidence.zip")

        await attempt(told, act)

    return press

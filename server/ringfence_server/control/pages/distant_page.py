"""A data officer's page in a deployment: what can be answered here, and which commands of their own do the rest."""

from ringfence_server.control.pages.controls import Told
from ringfence_server.control.pages.frame import Live, block, keep_looking
from ringfence_server.control.pages.proposals import Proposals
from ringfence_server.control.pages.seat import Seat
from ringfence_server.control.views import HolderView

_LOOK_SECONDS = 5.0


async def build_distant(seat: Seat, view: HolderView, told: Told) -> None:
    """The page's own part, where the holder's files are on another machine."""
    state = Live("holder_state", view=view)

    async def look() -> None:
        state.show(view=await seat.ask(seat.plane.holders.view, seat.actor, seat.holder))
        await proposals.look()

    proposals = Proposals(seat, view, told, answered=look)
    block("at_the_holder")
    await look()
    keep_looking(look, told, every=_LOOK_SECONDS)

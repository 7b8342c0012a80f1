"""What all pages share: head, navigation by role, the line of news, and what is shown instead of a page."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from nicegui import ui

from ringfence_policy.errors import RingfenceError
from ringfence_server.control.pages.controls import Told
from ringfence_server.control.pages.fragments import fill
from ringfence_server.control.pages.seat import Seat
from ringfence_server.control.permissions import Act

# Address, name, act that opens it, and what it is for.
ROOMS = (
    ("/my-data", "My data", Act.OWN_DATA, "Your rules, your budget, who used your data, and the way to stop it."),
    ("/runs", "Runs", Act.WATCH, "Plans that were proposed, and every run, live, round by round."),
    ("/preview", "Preview", Act.PREVIEW, "Try a plan: who would refuse it, why, and what change would make it pass."),
    (
        "/oversight",
        "Oversight",
        Act.SEE_READS,
        "Evidence of every run, open cases, and a record of what was looked at.",
    ),
    ("/compare", "Compare", Act.COMPARE, "Runs side by side: what privacy costs in quality. Download the figures."),
    ("/audit", "Audit", Act.INSPECT, "Any decision of any run, what it was made from, and its proof."),
)


@contextmanager
def frame(seat: Seat, here: str, heading: str, lead: str = "") -> Iterator[Told]:
    """Everything around a page's own part; gives the line in which it says what happened."""
    rooms = [room for room in ROOMS if seat.may(room[2])]
    ui.html(fill("head", actor=seat.actor, rooms=rooms, here=here), sanitize=False).classes("head")
    with ui.element("div").classes("page").props("id=content"):
        ui.html(fill("heading", heading=heading, lead=lead), sanitize=False)
        told = Told()
        yield told


async def attempt(told: Told, act: Callable[[], Awaitable[None]]) -> None:
    """Do something, and say why where it is refused."""
    try:
        await act()
    except RingfenceError as error:
        told.refuse(error)


def keep_looking(look: Callable[[], Awaitable[None]], told: Told, *, every: float) -> None:
    """Look every so many seconds for as long as the page is open, or until it may not any more.

    Args:
        look: Reads anew and shows what changed.
        told: Says why there is no more looking.
        every: Seconds between two looks.
    """

    async def tick() -> None:
        try:
            await look()
        except RingfenceError as error:
            timer.deactivate()
            told.refuse(error)

    timer = ui.timer(every, tick, immediate=False)


def block(name: str, **values: object) -> ui.html:
    """A filled fragment on the page."""
    return ui.html(fill(name, **values), sanitize=False)


class Live:
    """A fragment that changes as what it shows changes, and keeps its scrolling where it is."""

    def __init__(self, name: str, **values: object) -> None:
        self._name = name
        self._element = block(name, **values)

    def show(self, **values: object) -> None:
        """Fill it anew; nothing is sent where nothing changed."""
        content = fill(self._name, **values)
        if content != self._element.content:
            self._element.set_content(content)

"""One run, live: who trains in which round and who refuses and why, what the model scores, what it cost."""

from fastapi import Request
from nicegui import ui

from ringfence_server.control.pages.controls import Question, Told, button
from ringfence_server.control.pages.frame import Live, attempt, frame, keep_looking
from ringfence_server.control.pages.seat import Seat
from ringfence_server.control.permissions import Act
from ringfence_server.control.views import EventView, RunState, RunView

# Short enough that a page shows a round within a second of its end.
_LOOK_SECONDS = 0.5
# States change without an event when a run is stopped, so the whole is read anew every so many looks.
_WHOLE_EVERY = 4
_MOST_EVENTS = 200
_MOST_SHOWN = 14
_GOES_ON = frozenset({RunState.QUEUED, RunState.STARTING, RunState.RUNNING})
_TAKEN_UP = frozenset({RunState.SUSPENDED, RunState.INTERRUPTED, RunState.FAILED})


async def build(seat: Seat, request: Request) -> None:
    """The page `/runs/{run_id}`."""
    run = await seat.ask(seat.plane.runs.run, seat.actor, request.path_params["run_id"])
    with frame(seat, "/runs", run.title) as told:
        page = _RunPage(seat, run, told)
        await page.look()
        keep_looking(page.look, told, every=_LOOK_SECONDS)


class _RunPage:
    def __init__(self, seat: Seat, run: RunView, told: Told) -> None:
        self._seat = seat
        self._run_id = run.run_id
        self._told = told
        self._events: list[EventView] = []
        self._looks = 0
        self._head = Live("run_head", run=run)
        self._buttons = ui.element("div").classes("row top")
        self._shown_state: RunState | None = None
        with self._card("Who takes part"):
            self._key = Live("run_grid_key")
            with (
                ui.element("div")
                .classes("scroll")
                .props('tabindex=0 role=region aria-label="Permits and refusals, table"')
            ):
                self._grid = Live("run_grid", run=run)
            self._stories = Live("run_stories", run=run)
        with ui.element("div").classes("pair"):
            with self._card("How good the model is"):
                self._quality = Live("run_quality", run=run)
            with self._card("What it costs in privacy"):
                self._budgets = Live("run_budgets", run=run)
        with self._card("What is left of each budget"):
            self._meters = Live("run_meters", run=run)
        with self._card("What happened"):
            self._feed = Live("run_feed", events=())

    @staticmethod
    def _card(title: str) -> ui.element:
        card = ui.element("section").classes("card")
        card.props["aria-label"] = title
        return card

    async def look(self) -> None:
        """Read what is new, and show the run where something is."""
        after = self._events[-1].seq if self._events else 0
        new = await self._seat.ask(
            self._seat.plane.runs.events, self._seat.actor, self._run_id, after=after, limit=_MOST_EVENTS
        )
        self._events.extend(new)
        if new or self._looks % _WHOLE_EVERY == 0:
            self._show(await self._seat.ask(self._seat.plane.runs.run, self._seat.actor, self._run_id))
        self._looks += 1

    def _show(self, run: RunView) -> None:
        for part in (self._head, self._grid, self._stories, self._quality, self._budgets, self._meters):
            part.show(run=run)
        self._feed.show(events=tuple(reversed(self._events[-_MOST_SHOWN:])))
        if run.state is not self._shown_state:
            self._shown_state = run.state
            self._offer(run)

    def _offer(self, run: RunView) -> None:
        """The buttons that fit the run's state and the role."""
        self._buttons.clear()
        with self._buttons:
            if run.state in _GOES_ON and self._seat.may(Act.SUSPEND):
                Question(
                    "Suspend this run?",
                    "Its process ends. What was committed is kept, and a coordinator can resume it from there.",
                    yes="Suspend the run",
                    act=self._suspend,
                    kind="red",
                    reason="Why? Everybody can read this.",
                ).opener("Suspend the run")
            if run.state in _TAKEN_UP and self._seat.may(Act.RESUME):
                button("Resume from the last committed round", self._resume, kind="main")
            if run.state is RunState.FINISHED and self._seat.may(Act.INSPECT):
                _link("See its decisions and proofs", f"/audit?run={run.run_id}")

    async def _suspend(self, reason: str) -> None:
        async def act() -> None:
            await self._seat.ask(self._seat.plane.runs.suspend, self._seat.actor, self._run_id, reason)
            self._looks = 0
            self._told.say("The run is being suspended.")

        await attempt(self._told, act)

    async def _resume(self) -> None:
        async def act() -> None:
            await self._seat.ask(self._seat.plane.runs.resume, self._seat.actor, self._run_id)
            self._looks = 0
            self._told.say("The run goes on from its last committed round.")

        await attempt(self._told, act)


def _link(text: str, address: str) -> None:
    Live("link", text=text, address=address)

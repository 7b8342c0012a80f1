"""My data, my rules: a data officer's policy, budget, proposals, who used the data, and the way to stop it."""

from fastapi import Request
from nicegui import ui

from ringfence_server.control.pages.controls import Question, Told, button
from ringfence_server.control.pages.distant_page import build_distant
from ringfence_server.control.pages.frame import Live, attempt, frame, keep_looking
from ringfence_server.control.pages.policy_editor import PolicyEditor
from ringfence_server.control.pages.proposals import Proposals
from ringfence_server.control.pages.seat import Seat
from ringfence_server.control.views import HolderView

_LOOK_SECONDS = 2.0
_MOST_DECISIONS = 25


async def build(seat: Seat, _request: Request) -> None:
    """The page `/my-data`."""
    view = await seat.ask(seat.plane.holders.view, seat.actor, seat.holder)
    with frame(seat, "/my-data", f"{view.name}: my data, my rules") as told:
        if not view.local:
            await build_distant(seat, view, told)
            return
        policy = await seat.ask(seat.plane.holders.policy_text, seat.actor, seat.holder)
        page = _HolderPage(seat, view, told)
        PolicyEditor(seat, policy, told, signed=page.look)
        page.used()
        await page.look()
        keep_looking(page.look, told, every=_LOOK_SECONDS)


class _HolderPage:
    def __init__(self, seat: Seat, view: HolderView, told: Told) -> None:
        self._seat = seat
        self._told = told
        self._standing = ""
        self._state = Live("holder_state", view=view)
        self._stop = ui.element("div").classes("row top")
        self._proposals = Proposals(seat, view, told, answered=self.look)
        with ui.element("section").classes("card").props('aria-label="My budget"'):
            self._meters = Live("holder_meters", view=view)
        with ui.element("section").classes("card").props('aria-label="My rules"'):
            self._rules = Live("holder_rules", view=view)

    def used(self) -> None:
        """The part that says who used the data."""
        with ui.element("section").classes("card").props('aria-label="Who used my data"'):
            self._uses = Live("holder_uses", uses=())
        with ui.element("section").classes("card").props('aria-label="What my gate decided"'):
            self._decisions = Live("holder_decisions", decisions=())

    async def look(self) -> None:
        """Read everything anew, and show what changed."""
        seat, cases = self._seat, self._seat.plane.holders
        view = await seat.ask(cases.view, seat.actor, seat.holder)
        for part in (self._state, self._rules, self._meters):
            part.show(view=view)
        self._uses.show(uses=await seat.ask(cases.uses, seat.actor, seat.holder))
        self._decisions.show(decisions=await seat.ask(cases.decisions, seat.actor, seat.holder, limit=_MOST_DECISIONS))
        await self._proposals.look()
        if view.standing != self._standing:
            self._standing = view.standing
            self._offer_stop(view)

    def _offer_stop(self, view: HolderView) -> None:
        self._stop.clear()
        with self._stop:
            if view.standing == "suspended":
                button("Let my data be used again", self._resume, kind="main")
            if view.standing not in ("revoked", "suspended"):
                Question(
                    "Stop every use of this data now?",
                    "It holds from the next decision on, also in the middle of a round. You can lift it again.",
                    yes="Stop every use now",
                    act=self._suspend,
                    kind="red",
                    reason="Why? Everybody can read this.",
                ).opener("Stop every use of my data", kind="red")
            if view.standing != "revoked":
                Question(
                    "Revoke the policy for good?",
                    "It can never be lifted. Only a new policy, with a new name, lets the data be used again.",
                    yes="Revoke it for good",
                    act=self._revoke,
                    kind="red",
                    reason="Why? Everybody can read this.",
                ).opener("Revoke the policy for good …")

    async def _suspend(self, reason: str) -> None:
        await self._do("suspend", reason, "Every use of your data is stopped.")

    async def _resume(self) -> None:
        await self._do("resume", "", "Your data may be used again, as your policy says.")

    async def _revoke(self, reason: str) -> None:
        await self._do("revoke", reason, "The policy is revoked for good.")

    async def _do(self, how: str, reason: str, said: str) -> None:
        async def act() -> None:
            await self._seat.ask(
                self._seat.plane.holders.stop, self._seat.actor, self._seat.holder, how=how, reason=reason
            )
            await self.look()
            self._told.say(said)

        await attempt(self._told, act)

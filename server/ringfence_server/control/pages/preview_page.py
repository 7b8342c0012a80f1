"""The preview: what every data holder's policy would say to a plan, why, and what change would make it pass."""

from fastapi import Request
from nicegui import ui

from ringfence_server.control.pages.controls import Field, button
from ringfence_server.control.pages.frame import Live, attempt, block, frame
from ringfence_server.control.pages.seat import Seat
from ringfence_server.control.permissions import Act


async def build(seat: Seat, _request: Request) -> None:
    """The page `/preview`."""
    plans = {plan.name: plan for plan in await seat.ask(seat.plane.runs.plans, seat.actor)}
    local = seat.plane.site.local
    lead = (
        "Nothing is used and nothing is recorded: the policies alone are asked."
        if local
        else "Nothing is used and nothing is recorded: no data holder is asked before a run begins."
    )
    with frame(seat, "/preview", "Who would refuse this plan?", lead) as told:
        with ui.element("section").classes("card").props('aria-label="Plan"'):
            chooser, place, controls = ui.element("div"), ui.element("div"), ui.element("div").classes("row")
        with ui.element("section").classes("card").props('aria-label="Answers"'):
            answers = Live("forecast", forecast=None, rounds=0)
        block("preview_note", local=local)
        text: list[Field] = []

        async def choose() -> None:
            place.clear()
            text.clear()
            with place:
                text.append(Field(f"The plan {which.value}, as TOML", plans[which.value].text, kind="area", rows=16))
            await ask()

        async def ask() -> None:
            async def act() -> None:
                found = await seat.ask(seat.plane.runs.preview, seat.actor, text[0].value)
                answers.show(forecast=found, rounds=plans[which.value].rounds)

            await attempt(told, act)

        async def propose() -> None:
            async def act() -> None:
                made = await seat.ask(seat.plane.runs.propose, seat.actor, text[0].value)
                told.say(
                    f"“{made.title}” was proposed. Data officers can answer it now; it is started on the page Runs."
                )

            await attempt(told, act)

        with chooser:
            titles = {name: plan.title for name, plan in plans.items()}
            which = Field("Begin with the plan", next(iter(plans)), kind="select", options=titles, changed=choose)
        with controls:
            button("Ask every policy" if local else "Check this plan", ask, kind="main")
            if seat.may(Act.PROPOSE):
                button("Propose this plan", propose)
        await choose()

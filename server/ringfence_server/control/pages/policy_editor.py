"""The form in which a data officer changes the policy: a few answers, the TOML that they write, and the signature."""

from collections.abc import Awaitable, Callable

from nicegui import ui

from ringfence_policy.vocabulary import PURPOSES
from ringfence_server.control.pages import policy_form
from ringfence_server.control.pages.controls import Field, Text, Told, button
from ringfence_server.control.pages.frame import attempt, block
from ringfence_server.control.pages.seat import Seat
from ringfence_server.control.views import PolicyText


class PolicyEditor:
    """The form on a page.

    Args:
        seat: Who edits.
        policy: What is edited.
        told: Where what comes of it is said.
        signed: Called after a new version was signed.
    """

    def __init__(self, seat: Seat, policy: PolicyText, told: Told, *, signed: Callable[[], Awaitable[None]]) -> None:
        self._seat = seat
        self._told = told
        self._signed = signed
        with ui.element("section").classes("card").props('aria-label="Change my rules"'):
            block("title", text="Change my rules")
            block("editor_lead")
            self._place = ui.element("div")
        self._draw(policy, policy.text)

    def _draw(self, policy: PolicyText, text: str, *, is_open: bool = False) -> None:
        self._policy = policy
        self._place.clear()
        with self._place, ui.element("details").props("open" if is_open else ""):
            Text("summary", "Open the form")
            self._fields = {
                line: Field(line.label, policy_form.value_of(text, line.table, line.key), hint=line.hint)
                for line in policy_form.LINES
            }
            self._may = self._purposes("For these purposes", text, "purposes")
            self._never = self._purposes("Never for these, whatever else is allowed", text, "not_purposes")
            with ui.element("div").classes("row"):
                button("Write these answers into the text below", self._write)
            self._text = Field("The policy as TOML: this is what is signed", text, kind="area", rows=18)
            with ui.element("div").classes("row"):
                button("Sign it as the next version", self._sign, kind="main")

    @staticmethod
    def _purposes(title: str, text: str, key: str) -> dict[str, Field]:
        chosen = policy_form.list_of(text, "projects", key)
        fieldset = ui.element("fieldset")
        with fieldset:
            Text("legend", title)
        with fieldset, ui.element("div").classes("choices"):
            return {
                name: Field(purpose.label, "yes" if name in chosen else "", kind="check")
                for name, purpose in PURPOSES.items()
            }

    async def _write(self) -> None:
        changes: dict[tuple[str, str], str] = {}
        before = self._text.value
        for line, field in self._fields.items():
            if field.value.strip() != policy_form.value_of(before, line.table, line.key):
                value = field.value.strip()
                changes[line.table, line.key] = policy_form.toml_text(value) if line.quoted else value
        for key, fields in (("purposes", self._may), ("not_purposes", self._never)):
            chosen = tuple(name for name, field in fields.items() if field.value == "yes")
            if set(chosen) != set(policy_form.list_of(before, "projects", key)):
                changes["projects", key] = policy_form.toml_list(chosen)
        self._draw(self._policy, policy_form.written(before, changes), is_open=True)
        self._told.say("The answers stand in the text. Nothing holds before you sign it.")

    async def _sign(self) -> None:
        async def act() -> None:
            seat = self._seat
            text = self._text.value
            if policy_form.value_of(text, "policy", "version") == policy_form.value_of(
                self._policy.text, "policy", "version"
            ):
                text = policy_form.next_version(text)
            fresh = await seat.ask(
                seat.plane.holders.edit_policy, seat.actor, seat.holder, text, etags=(self._policy.etag,)
            )
            self._draw(fresh, fresh.text)
            await self._signed()
            version = policy_form.value_of(fresh.text, "policy", "version")
            self._told.say(f"Version {version} is signed. It holds from the next decision on.")

        await attempt(self._told, act)

"""The few things that can be pressed or filled in: the browser's own buttons and fields, each with a label."""

from collections.abc import Awaitable, Callable, Mapping

from nicegui import events, ui
from nicegui.elements.mixins.text_element import TextElement

from ringfence_policy.errors import RingfenceError

_numbers = iter(range(1, 1 << 60))


class Text(TextElement):
    """An element with escaped text in it."""

    def __init__(self, tag: str, text: str, classes: str = "") -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)


def button(text: str, press: Callable[[], Awaitable[None]], *, kind: str = "", label: str = "") -> Text:
    """A button. It cannot be pressed again while what it began goes on."""
    made = Text("button", text, f"button {kind}")
    made.props["type"] = "button"
    if label:
        made.props["aria-label"] = label

    async def pressed() -> None:
        made.props["disabled"] = True
        try:
            await press()
        finally:
            if not made.is_deleted:
                made.props.pop("disabled", None)

    made.on("click", pressed, args=[])
    return made


class Field:
    """A labelled field. What is typed is in `value`.

    Args:
        label: What belongs into it.
        value: What is in it at first.
        kind: "text", "number", "area", "select" or "check".
        options: For "select": what can be chosen, value to words.
        hint: A sentence below it.
        changed: Called after every change.
    """

    def __init__(
        self,
        label: str,
        value: str = "",
        *,
        kind: str = "text",
        options: Mapping[str, str] | None = None,
        hint: str = "",
        rows: int = 6,
        changed: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.value = value
        self._changed = changed
        name = f"field-{next(_numbers)}"
        with ui.element("div").classes(f"field field-{kind}"):
            if kind != "check":
                self._label(label, name)
            tag = {"area": "textarea", "select": "select"}.get(kind, "input")
            self.element = ui.element(tag)
            self.element.props["id"] = name
            # The browser keeps what was typed: a value that is set from here would undo it at the next update.
            if kind == "check":
                self.element.props["type"], self.element.props["checked"] = "checkbox", value == "yes"
                self._label(label, name)
            elif kind == "select":
                self._choices(options or {}, value)
            else:
                self.element.props["defaultValue"] = value
                if kind == "area":
                    self.element.props["rows"], self.element.props["spellcheck"] = rows, "false"
                else:
                    self.element.props["type"] = kind
            if hint:
                note = Text("p", hint, "hint")
                note.props["id"] = f"{name}-hint"
                self.element.props["aria-describedby"] = f"{name}-hint"
        taken = "e.target.checked ? 'yes' : ''" if kind == "check" else "e.target.value"
        self.element.on(
            "change" if kind in ("check", "select") else "input", self._typed, js_handler=f"(e) => emit({taken})"
        )

    def _label(self, label: str, name: str) -> None:
        Text("label", label).props["for"] = name

    def _choices(self, options: Mapping[str, str], value: str) -> None:
        with self.element:
            for key, words in options.items():
                choice = Text("option", words)
                choice.props["value"] = key
                if key == value:
                    choice.props["selected"] = True

    async def _typed(self, event: events.GenericEventArguments) -> None:
        self.value = str(event.args)
        if self._changed is not None:
            await self._changed()


class Told:
    """The line in which a page says what came of a press. Screen readers read it out."""

    def __init__(self) -> None:
        self._line = ui.html("", sanitize=False).classes("told").props('role="status" aria-live="polite"')

    def say(self, text: str) -> None:
        """Say that something was done."""
        self._show("done", text)

    def refuse(self, error: RingfenceError) -> None:
        """Say why something was not done, and what to do."""
        self._show("bad", ". ".join(one for one in (_sentence(error), error.next_step) if one))

    def _show(self, kind: str, text: str) -> None:
        from ringfence_server.control.pages.fragments import fill  # noqa: PLC0415 -- Jinja, when first needed

        self._line.set_content(fill("told", kind=kind, text=text))


def _sentence(error: RingfenceError) -> str:
    said = error.summary[:1].upper() + error.summary[1:]
    if error.expected:
        said += f": expected {error.expected}" + (f", got {error.got}" if error.got else "")
    return said


class Question:
    """A dialog of the browser's own that asks before something is done.

    Args:
        title: What is asked.
        text: What will come of it.
        yes: Words of the button that does it.
        act: Does it, given the reason that was typed.
        kind: Class of the button.
        reason: Label of the field for a reason; "" where none is asked.
    """

    def __init__(
        self,
        title: str,
        text: str,
        *,
        yes: str,
        act: Callable[[str], Awaitable[None]],
        kind: str = "",
        reason: str = "",
    ) -> None:
        self._dialog = ui.element("dialog")
        name = f"question-{next(_numbers)}"
        self._dialog.props["aria-labelledby"] = name
        with self._dialog:
            Text("h2", title).props["id"] = name
            Text("p", text)
            field = Field(reason) if reason else None
            with ui.element("div").classes("row"):

                async def done() -> None:
                    ui.run_javascript(f"getHtmlElement({self._dialog.id}).close()")  # what is done waits for no browser
                    await act(field.value if field else "")

                button(yes, done, kind=kind)
                Text("button", "No, leave it as it is", "button").props("type=button").on(
                    "click", js_handler=f"() => getHtmlElement({self._dialog.id}).close()"
                )

    def opener(self, text: str, *, kind: str = "") -> Text:
        """A button that asks the question."""
        made = Text("button", text, f"button {kind}")
        made.props("type=button aria-haspopup=dialog")
        made.on("click", js_handler=f"() => getHtmlElement({self._dialog.id}).showModal()")
        return made

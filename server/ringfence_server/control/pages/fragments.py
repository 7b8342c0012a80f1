"""Fills the pages' templates. Everything that comes from a file, a person or a run is escaped here, by Jinja."""

from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ringfence_server.control.pages import drawing, wording

_ENVIRONMENT = Environment(
    loader=PackageLoader("ringfence_server.control", "pages/fragments"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%H:%M:%S")


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%d %b %Y, %H:%M UTC")


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.1%}"


def _begin(text: str) -> str:
    return text[:1].upper() + text[1:]


_ENVIRONMENT.filters |= {"begin": _begin, "clock": _clock, "moment": _moment, "percent": _percent}
_ENVIRONMENT.globals |= {"words": wording, "draw": drawing}


def fill(name: str, **values: Any) -> str:
    """HTML of a fragment; values are escaped."""
    return _ENVIRONMENT.get_template(f"{name}.html.j2").render(**values)

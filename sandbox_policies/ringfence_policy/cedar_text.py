"""How the names, sets and times of a policy are written in Cedar."""

import json
from collections.abc import Iterable
from datetime import datetime

from ringfence_policy.policy import rfc3339


def quoted(text: str) -> str:
    """`text` as a Cedar string. Every string of a policy is printable, so JSON's escapes and Cedar's are the same."""
    return json.dumps(text, ensure_ascii=False)


def entity(kind: str, name: str) -> str:
    """A Cedar entity of Ringfence's schema."""
    return f"Ringfence::{kind}::{quoted(name)}"


def entities(kind: str, names: Iterable[str]) -> str:
    """A Cedar set of entities of one kind."""
    return "[" + ", ".join(entity(kind, name) for name in names) + "]"


def strings(names: Iterable[str]) -> str:
    """A Cedar set of strings."""
    return "[" + ", ".join(quoted(name) for name in names) + "]"


def instant(moment: datetime) -> str:
    """A time as Cedar writes it."""
    return f"datetime({quoted(rfc3339(moment))})"

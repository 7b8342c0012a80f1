"""Some of many: cuts a list where a page ends, and reads the cursor that asks for the next one."""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from ringfence_policy.errors import UsageError
from ringfence_server.control.views import Page

R = TypeVar("R")
V = TypeVar("V")

MOST = 200


def page_of(rows: Sequence[R], limit: int, *, place: Callable[[R], object], view: Callable[[R], V]) -> Page[V]:
    """A page of at most `limit` out of rows of which one more was read, to know whether more follow."""
    shown = rows[:limit]
    more = len(rows) > limit
    return Page(items=tuple(view(row) for row in shown), next=str(place(shown[-1])) if more and shown else None)


def checked(limit: int) -> int:
    """How many are shown at most.

    Raises:
        UsageError: None, or too many.
    """
    if not 1 <= limit <= MOST:
        raise UsageError("a page cannot be that long", expected=f"1 to {MOST}", got=str(limit))
    return limit


def number_in(cursor: str) -> int:
    """The number that a cursor is.

    Raises:
        UsageError: It is none that a page gave.
    """
    return int(_checked(cursor, r"[0-9]{1,18}"))


def name_in(cursor: str) -> str:
    """The name that a cursor is.

    Raises:
        UsageError: It is none that a page gave.
    """
    return _checked(cursor, r"[0-9A-Za-z-]{1,64}")


def _checked(cursor: str, form: str) -> str:
    if re.fullmatch(form, cursor, flags=re.ASCII) is None:
        raise UsageError("that is no cursor", expected="`next` of the page before", next_step="begin without a cursor")
    return cursor

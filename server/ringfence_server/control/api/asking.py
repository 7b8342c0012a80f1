"""What every route takes from a request: who asks, of which control plane, and which part of a list."""

from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request
from pydantic import BeforeValidator, Field, StringConstraints

from ringfence_server.control.actor import Actor
from ringfence_server.control.plane import ControlPlane
from ringfence_server.control.signon import signed_in
from ringfence_server.control.words import CONTROLS

# Ids are short and plain. Anything else is no id, and gets as far as a pattern.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def plane_of(request: Request) -> ControlPlane:
    """The control plane that this application serves."""
    found = request.app.state.plane
    assert isinstance(found, ControlPlane)  # noqa: S101 -- create_app put it there
    return found


Caller = Annotated[Actor, Depends(signed_in)]
Plane = Annotated[ControlPlane, Depends(plane_of)]
RunId = Annotated[str, Path(description="A run's id.", pattern=ID_PATTERN)]
HolderId = Annotated[str, Path(description="A data holder's id.", pattern=ID_PATTERN)]
ProposalId = Annotated[str, Path(description="A proposal's id.", pattern=ID_PATTERN)]
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Words = Annotated[str, StringConstraints(max_length=500, pattern=rf"^[^{CONTROLS}]*$")]
ONE_LINE = rf"^[^{CONTROLS}\t\r\n]*[^{CONTROLS}\s][^{CONTROLS}\t\r\n]*$"
NotBlank = Annotated[str, StringConstraints(max_length=500, pattern=rf"^[^{CONTROLS}]*[^{CONTROLS}\s][^{CONTROLS}]*$")]


def _whole(found: object) -> object:
    return int(found) if isinstance(found, float) and found.is_integer() else found


# JSON has one kind of number: 4.0 is as whole as 4. A text of digits and `true` are none. Stands after the limits.
WHOLE = (Field(strict=True), BeforeValidator(_whole))
Limit = Annotated[int, Query(ge=1, le=200, description="How many, at most.")]
Cursor = Annotated[
    str | None,
    Query(pattern=r"^[0-9A-Za-z-]{1,64}$", description="`next` of the page before; left out for the first page."),
]
NumberCursor = Annotated[
    str | None,
    Query(pattern=r"^[0-9]{1,18}$", description="`next` of the page before; left out for the first page."),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="A request that is sent again with the same key is carried out once, and answered alike.",
    ),
]

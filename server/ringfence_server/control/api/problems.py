"""Problem documents (RFC 9457): the one form in which the API says that something did not work.

A problem is made of a Ringfence error, of what the framework found wrong with a request, or of a fault nobody foresaw.
It never repeats what a request carried: a mistyped field may hold a secret. It never shows where files lie on the
server.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.responses import Response

from ringfence_policy.errors import RingfenceError

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:ringfence:problem:"

# A request's own header, answered on every reply and written into the log: what a person quotes when asking for help.
REQUEST_ID = "request-id"

_LONGEST_NAME = 80
_MOST_FINDINGS = 20


@dataclass(frozen=True)
class Kind:
    """A problem that is about HTTP rather than about Ringfence."""

    status: int
    code: str
    title: str


BAD_REQUEST = Kind(400, "bad-request", "The request cannot be read")
NO_SUCH_ROUTE = Kind(404, "no-such-route", "There is no such route")
METHOD_NOT_ALLOWED = Kind(405, "method-not-allowed", "This route does not know the method")
TOO_SLOW = Kind(408, "too-slow", "The body of the request did not arrive in time")
TOO_LARGE = Kind(413, "too-large", "The body of the request is too large")
WRONG_MEDIA_TYPE = Kind(415, "wrong-media-type", "The body has another media type than this route reads")
WRONG_HOST = Kind(421, "wrong-host", "The request names a host that this control plane does not serve")
INVALID = Kind(422, "invalid-request", "The request does not say what it must")
PRECONDITION_REQUIRED = Kind(428, "precondition-required", "Say which version you are changing, by If-Match")
INTERNAL = Kind(500, "internal", "The control plane failed; the log has the details under this request's id")

KINDS = (
    BAD_REQUEST,
    NO_SUCH_ROUTE,
    METHOD_NOT_ALLOWED,
    TOO_SLOW,
    TOO_LARGE,
    WRONG_MEDIA_TYPE,
    WRONG_HOST,
    INVALID,
    PRECONDITION_REQUIRED,
    INTERNAL,
)


class Finding(BaseModel):
    """One thing that is wrong with a request: where, and what was expected there. Never what came."""

    where: str = Field(description="Path of the field, e.g. `body.rounds` or `query.limit`.")
    message: str


class Problem(BaseModel):
    """Why a request was not carried out (RFC 9457)."""

    type: str = Field(description="A URN that ends in the code.")
    title: str
    status: int
    code: str = Field(description="Stable; docs/api.md explains each.")
    detail: str
    instance: str | None = Field(default=None, description="The request's id, as in the header `Request-Id`.")
    expected: str | None = None
    got: str | None = None
    where: str | None = None
    next_step: str | None = Field(default=None, description="What to do about it.")
    errors: list[Finding] | None = Field(default=None, description="For `invalid-request`: everything that is wrong.")


def of_error(error: RingfenceError, *, hidden: Iterable[str] = ()) -> Problem:
    """The problem that a Ringfence error is.

    Args:
        error: What a use case raised.
        hidden: Directories of the server that no reply may name.
    """
    words = {name: _without(text, hidden) for name, text in error.to_document().items()}
    first = (type(error).__doc__ or "").split("\n")[0].rstrip(".")
    return Problem(
        type=f"{TYPE_PREFIX}{error.code}",
        title=first or error.code,
        status=error.http_status,
        code=error.code,
        detail=words["summary"] or error.code,
        expected=words["expected"],
        got=words["got"],
        where=words["where"],
        next_step=words["next_step"],
    )


def of_kind(kind: Kind, detail: str | None = None, *, next_step: str | None = None) -> Problem:
    """A problem about HTTP."""
    return Problem(
        type=f"{TYPE_PREFIX}{kind.code}",
        title=kind.title,
        status=kind.status,
        code=kind.code,
        detail=detail or f"{kind.title}.",
        next_step=next_step,
    )


def of_status(status: int) -> Problem:
    """The problem that a status of the framework is."""
    for kind in KINDS:
        if kind.status == status:
            return of_kind(kind)
    return of_kind(BAD_REQUEST if status < INTERNAL.status else INTERNAL)


def of_invalid(error: RequestValidationError) -> Problem:
    """What is wrong with a request, field by field, without a word of what it carried."""
    found = error.errors()
    problem = of_kind(INVALID)
    problem.errors = [_finding(one) for one in found[:_MOST_FINDINGS]]
    problem.detail = f"{len(found)} {'thing is' if len(found) == 1 else 'things are'} wrong with this request."
    problem.next_step = "docs/api.md and /api/v1/openapi.json say what this route takes"
    return problem


def answer(problem: Problem, *, request_id: str | None, headers: Mapping[str, str] | None = None) -> Response:
    """The reply that carries a problem."""
    document = problem.model_copy(update={"instance": f"urn:ringfence:request:{request_id}" if request_id else None})
    return Response(
        document.model_dump_json(exclude_none=True),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=dict(headers or {}),
    )


def documented(*errors: type[RingfenceError] | Kind) -> dict[int | str, dict[str, Any]]:
    """What a route may answer besides its result, for its entry in the OpenAPI document."""
    by_status: dict[int | str, list[str]] = {}
    for error in errors:
        status = error.status if isinstance(error, Kind) else error.http_status
        by_status.setdefault(status, []).append(f"`{error.code}`")
    return {status: documented_as(codes) for status, codes in by_status.items()}


def documented_as(codes: Iterable[str]) -> dict[str, Any]:
    """A response of the OpenAPI document that is a problem."""
    return {
        "description": f"A problem: {', '.join(codes)}",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _finding(one: Mapping[str, Any]) -> Finding:
    where = ".".join(str(part)[:_LONGEST_NAME] for part in one.get("loc", ()))
    return Finding(where=where, message=str(one.get("msg", "is not what was expected"))[:200])


def _without(text: str | None, hidden: Iterable[str]) -> str | None:
    for directory in hidden:
        text = text.replace(directory, "(site)") if text else text
    return text

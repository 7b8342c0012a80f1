"""Routes of data holders: what everybody may see of one, and what its own data officer does."""

import re
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from ringfence_policy.errors import AtTheHolder, Conflict, DocumentInvalid, NotAllowed, NotKnown, Stale, UsageError
from ringfence_server.control.api import problems
from ringfence_server.control.api.asking import Caller, HolderId, Limit, Plane, Words
from ringfence_server.control.api.openapi import act_of
from ringfence_server.control.api.problems import documented
from ringfence_server.control.permissions import Act, allow
from ringfence_server.control.views import DecisionView, HolderSummary, HolderView, PolicyText, UseView

router = APIRouter(tags=["holders"])
_STRONG_TAG = re.compile(r'"[0-9a-f]+"')


class NewPolicy(BaseModel):
    """A policy as TOML (docs/policy.md); its version is higher than the signed one's."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=1, max_length=65536)]


class Stop(BaseModel):
    """What to do about every use of the data, and why, for everybody to read."""

    model_config = ConfigDict(extra="forbid")

    reason: Words = ""


class AskFirst(BaseModel):
    """Whether the officer is asked before a run begins; otherwise the policy alone decides."""

    model_config = ConfigDict(extra="forbid")

    wanted: bool


class StopUse(StrEnum):
    """Suspend every use until it is resumed, or revoke the policy for good."""

    SUSPEND = "suspend"
    RESUME = "resume"
    REVOKE = "revoke"


@router.get("/api/v1/holders", responses=documented(NotAllowed), openapi_extra=act_of(Act.SEE_HOLDERS))
def list_holders(caller: Caller, plane: Plane) -> list[HolderSummary]:
    """List the data holders; for a data officer, its own alone."""
    return list(plane.holders.holders(caller))


@router.get(
    "/api/v1/holders/{holder_id}", responses=documented(NotAllowed, NotKnown), openapi_extra=act_of(Act.SEE_HOLDERS)
)
def show_holder(holder_id: HolderId, caller: Caller, plane: Plane) -> HolderView:
    """Show a data holder: its rules in sentences, and its budgets as the role may see them."""
    return plane.holders.view(caller, holder_id)


@router.get(
    "/api/v1/holders/{holder_id}/policy",
    responses=documented(NotAllowed, NotKnown, AtTheHolder),
    openapi_extra=act_of(Act.EDIT_POLICY),
)
def show_policy(holder_id: HolderId, caller: Caller, plane: Plane, response: Response) -> PolicyText:
    """Show the policy as its officer wrote it. The header `ETag` names this very text."""
    found = plane.holders.policy_text(caller, holder_id)
    response.headers["ETag"] = f'"{found.etag}"'
    return found


@router.put(
    "/api/v1/holders/{holder_id}/policy",
    responses=documented(
        NotAllowed, NotKnown, AtTheHolder, Stale, DocumentInvalid, UsageError, problems.PRECONDITION_REQUIRED
    ),
    openapi_extra=act_of(Act.EDIT_POLICY),
)
def edit_policy(
    *,
    holder_id: HolderId,
    new: NewPolicy,
    caller: Caller,
    plane: Plane,
    response: Response,
    if_match: Annotated[
        str | None, Header(alias="If-Match", max_length=200, description="The `ETag` of the text that you edited.")
    ] = None,
) -> PolicyText:
    """Write the policy anew and sign it. It holds from the next gate on; where it cannot be signed nothing changes."""
    allow(caller, Act.EDIT_POLICY, holder=holder_id)
    if if_match is None or if_match.strip() == "*":  # `*` is any version: whoever sends it has read none
        raise HTTPException(problems.PRECONDITION_REQUIRED.status)
    # RFC 9110, 13.1.1: a list, compared strongly, so that a weak tag (W/"...") names nothing.
    named = {one.strip()[1:-1] for one in if_match.split(",") if _STRONG_TAG.fullmatch(one.strip())}
    found = plane.holders.edit_policy(caller, holder_id, new.text, etags=named)
    response.headers["ETag"] = f'"{found.etag}"'
    return found


@router.post(
    "/api/v1/holders/{holder_id}/stops/{how}",
    responses=documented(NotAllowed, NotKnown, AtTheHolder, Conflict, UsageError),
    openapi_extra=act_of(Act.STOP_USE),
)
def stop_use(holder_id: HolderId, how: StopUse, stop: Stop, caller: Caller, plane: Plane) -> HolderView:
    """Suspend every use of the data, lift that, or revoke the policy for good. Holds from the next gate on."""
    return plane.holders.stop(caller, holder_id, how=how.value, reason=stop.reason)


@router.get(
    "/api/v1/holders/{holder_id}/uses",
    responses=documented(NotAllowed, NotKnown, AtTheHolder),
    openapi_extra=act_of(Act.OWN_DATA),
)
def list_uses(holder_id: HolderId, caller: Caller, plane: Plane) -> list[UseView]:
    """List what each run took from the data, newest first."""
    return list(plane.holders.uses(caller, holder_id))


@router.get(
    "/api/v1/holders/{holder_id}/decisions",
    responses=documented(NotAllowed, NotKnown, AtTheHolder, UsageError),
    openapi_extra=act_of(Act.OWN_DATA),
)
def list_decisions(holder_id: HolderId, caller: Caller, plane: Plane, limit: Limit = 50) -> list[DecisionView]:
    """List the holder's own decisions, newest first, with the figures that nobody else is shown."""
    return list(plane.holders.decisions(caller, holder_id, limit=limit))


@router.get(
    "/api/v1/holders/{holder_id}/pending", responses=documented(NotAllowed, NotKnown), openapi_extra=act_of(Act.APPROVE)
)
def list_pending(holder_id: HolderId, caller: Caller, plane: Plane) -> list[str]:
    """List the ids of proposals that wait for the officer, newest first."""
    return list(plane.holders.pending(caller, holder_id))


@router.put(
    "/api/v1/holders/{holder_id}/ask-first",
    responses=documented(NotAllowed, NotKnown),
    openapi_extra=act_of(Act.APPROVE),
)
def ask_first(holder_id: HolderId, asked: AskFirst, caller: Caller, plane: Plane) -> HolderView:
    """Want to be asked before a run begins, or let the policy alone decide."""
    plane.holders.ask_first(caller, holder_id, wanted=asked.wanted)
    return plane.holders.view(caller, holder_id)

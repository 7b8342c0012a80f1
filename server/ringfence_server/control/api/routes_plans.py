"""Routes of plans: those that lie in the site, a preview of any, proposals and what data officers say to them."""

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from ringfence_policy.errors import Conflict, DocumentInvalid, NotAllowed, NotKnown, UsageError
from ringfence_server.control.api.asking import (
    Caller,
    Cursor,
    HolderId,
    IdempotencyKey,
    Limit,
    Plane,
    ProposalId,
    Words,
)
from ringfence_server.control.api.openapi import act_of
from ringfence_server.control.api.problems import documented
from ringfence_server.control.permissions import Act
from ringfence_server.control.views import HolderForecast, Page, PlanView, ProposalView

router = APIRouter(tags=["plans"])


class PlanText(BaseModel):
    """A plan as TOML (docs/files.md)."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=1, max_length=65536)]


class Answer(BaseModel):
    """What a data officer says to a proposal."""

    model_config = ConfigDict(extra="forbid")

    approves: bool
    note: Words = ""


@router.get("/api/v1/plans", responses=documented(NotAllowed), openapi_extra=act_of(Act.SEE_PLANS))
def list_plans(caller: Caller, plane: Plane) -> list[PlanView]:
    """List the plans that lie in the site, ready to be proposed."""
    return list(plane.runs.plans(caller))


@router.post("/api/v1/previews", responses=documented(NotAllowed, DocumentInvalid), openapi_extra=act_of(Act.PREVIEW))
def preview(plan: PlanText, caller: Caller, plane: Plane) -> list[HolderForecast]:
    """Say who would refuse a plan, why, and what change would make it pass. Uses no data and records nothing."""
    return list(plane.runs.preview(caller, plan.text))


@router.post(
    "/api/v1/proposals",
    status_code=201,
    responses=documented(NotAllowed, Conflict, DocumentInvalid),
    openapi_extra=act_of(Act.PROPOSE),
)
def propose(
    plan: PlanText, caller: Caller, plane: Plane, response: Response, idempotency_key: IdempotencyKey = None
) -> ProposalView:
    """Put a plan before the data officers."""
    found = plane.runs.propose(caller, plan.text, once=idempotency_key)
    response.headers["Location"] = f"/api/v1/proposals/{found.id}"
    return found


@router.get("/api/v1/proposals", responses=documented(NotAllowed, UsageError), openapi_extra=act_of(Act.SEE_PLANS))
def list_proposals(caller: Caller, plane: Plane, cursor: Cursor = None, limit: Limit = 50) -> Page[ProposalView]:
    """List proposals, newest first."""
    return plane.runs.proposals(caller, cursor=cursor, limit=limit)


@router.get(
    "/api/v1/proposals/{proposal_id}", responses=documented(NotAllowed, NotKnown), openapi_extra=act_of(Act.SEE_PLANS)
)
def show_proposal(proposal_id: ProposalId, caller: Caller, plane: Plane) -> ProposalView:
    """Show a proposal and what the data officers say to it."""
    return plane.runs.proposal(caller, proposal_id)


@router.put(
    "/api/v1/proposals/{proposal_id}/answers/{holder_id}",
    responses=documented(NotAllowed, NotKnown, Conflict, UsageError),
    openapi_extra=act_of(Act.APPROVE),
)
def answer(
    proposal_id: ProposalId, holder_id: HolderId, answered: Answer, caller: Caller, plane: Plane
) -> ProposalView:
    """Approve a proposal as a data holder's officer, or decline to take part in its runs."""
    plane.holders.answer(caller, holder_id, proposal_id, approves=answered.approves, note=answered.note)
    return plane.runs.proposal(caller, proposal_id)

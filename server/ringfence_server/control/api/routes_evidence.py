"""Routes of evidence: whether it verifies, the bundle to take away, and any decision with what proves it."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from ringfence_policy.errors import Conflict, NotAllowed, NotKnown
from ringfence_server.control.api.asking import Caller, HolderId, Plane, RunId
from ringfence_server.control.api.openapi import act_of
from ringfence_server.control.api.problems import documented
from ringfence_server.control.permissions import Act
from ringfence_server.control.views import EntryView, EvidenceView, ProofView

router = APIRouter(tags=["evidence"])
_ZIP = "application/zip"
Position = Annotated[int, Path(ge=0, le=2**31 - 1, description="Place of the record in its log.")]


@router.get(
    "/api/v1/runs/{run_id}/evidence", responses=documented(NotAllowed, NotKnown), openapi_extra=act_of(Act.VERIFY)
)
def verify(run_id: RunId, caller: Caller, plane: Plane) -> EvidenceView:
    """Verify a run's evidence, as anybody could offline with `ringfence evidence verify`."""
    return plane.evidence.status(caller, run_id)


@router.get(
    "/api/v1/runs/{run_id}/evidence/bundle",
    response_class=Response,
    responses={
        200: {"content": {_ZIP: {"schema": {"type": "string", "format": "binary"}}}},
        **documented(NotAllowed, NotKnown, Conflict),
    },
    openapi_extra=act_of(Act.EXPORT),
)
def export(run_id: RunId, caller: Caller, plane: Plane) -> Response:
    """Take the bundle away."""
    bundle = plane.evidence.bundle(caller, run_id).read_bytes()
    # The id was found in the store, where we named it: it can end no header.
    return Response(bundle, media_type=_ZIP, headers={"Content-Disposition": f'attachment; filename="{run_id}.zip"'})


@router.get(
    "/api/v1/runs/{run_id}/evidence/roots",
    responses=documented(NotAllowed, NotKnown, Conflict),
    openapi_extra=act_of(Act.EXPORT),
)
def roots(run_id: RunId, caller: Caller, plane: Plane) -> dict[str, Any]:
    """Show the root keys as the coordinator learnt them. Whoever verifies should learn them from their owners."""
    return plane.evidence.roots(caller, run_id)


@router.get(
    "/api/v1/runs/{run_id}/logs/{owner}",
    responses=documented(NotAllowed, NotKnown, Conflict),
    openapi_extra=act_of(Act.INSPECT),
)
def list_entries(run_id: RunId, owner: HolderId, caller: Caller, plane: Plane) -> list[EntryView]:
    """List the records of one log that are about a run; `owner` is `coordinator` or a data holder's id."""
    return list(plane.evidence.entries(caller, run_id, owner))


@router.get(
    "/api/v1/runs/{run_id}/logs/{owner}/{position}",
    responses=documented(NotAllowed, NotKnown, Conflict),
    openapi_extra=act_of(Act.INSPECT),
)
def prove(run_id: RunId, owner: HolderId, position: Position, caller: Caller, plane: Plane) -> ProofView:
    """Show one record, such as a decision with its inputs, and the hashes that lead to the root its owner signed."""
    return plane.evidence.proof(caller, run_id, owner, position)

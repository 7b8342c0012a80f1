"""What the API says about itself: who asks, its description, its health, its metrics."""

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from ringfence_policy.errors import NotAllowed
from ringfence_server.control.api import problems
from ringfence_server.control.api.asking import Caller, Plane
from ringfence_server.control.api.openapi import act_of, describe
from ringfence_server.control.metrics import CONTENT_TYPE
from ringfence_server.control.permissions import ALLOWED, Act, allow
from ringfence_server.control.store.engine import StoreFault

router = APIRouter(tags=["service"])


class Me(BaseModel):
    """Who asks, and what they may do."""

    role: str
    name: str
    holder: str | None
    via: str
    acts: list[str]


class Health(BaseModel):
    """Whether the control plane serves."""

    status: str


@router.get("/api/v1/me")
def who_am_i(caller: Caller) -> Me:
    """Say who asks, by what they showed, and what their role may do."""
    acts = sorted(act.value for act, roles in ALLOWED.items() if caller.role in roles)
    return Me(role=caller.role.value, name=caller.name, holder=caller.holder, via=caller.via, acts=acts)


@router.get("/api/v1/openapi.json")
def description(request: Request, _caller: Caller) -> dict[str, object]:
    """Describe this API (OpenAPI 3.1)."""
    return describe(request.app)


@router.get("/health/live")
def live() -> Health:
    """Answer as long as this process serves. Needs no role."""
    return Health(status="live")


@router.get("/health/ready", responses=problems.documented(StoreFault))
def ready(plane: Plane) -> Health:
    """Answer as long as the store does. Needs no role, and tells nothing but that."""
    with plane.store.read() as db:
        db.connection()
    return Health(status="ready")


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems.documented(NotAllowed, StoreFault),
    },
    openapi_extra=act_of(Act.SEE_METRICS),
)
def metrics(request: Request, caller: Caller) -> Response:
    """Give Prometheus what it asks for."""
    allow(caller, Act.SEE_METRICS)
    return Response(request.app.state.metrics.exposition(), media_type=CONTENT_TYPE)

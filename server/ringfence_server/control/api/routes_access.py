"""Routes of access: tokens for scripts, and the record of what regulators looked at."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from ringfence_policy.errors import NotAllowed, NotKnown, UsageError
from ringfence_server.control.actor import Role
from ringfence_server.control.api.asking import ID_PATTERN, ONE_LINE, WHOLE, Caller, Limit, NumberCursor, Plane
from ringfence_server.control.api.openapi import act_of
from ringfence_server.control.api.problems import documented
from ringfence_server.control.permissions import Act, allow
from ringfence_server.control.views import Page, ReadView, TokenView

router = APIRouter(tags=["access"])


Name = Annotated[str, Field(min_length=1, max_length=200, pattern=ONE_LINE)]


class NewToken(BaseModel):
    """A token to be made. A role holder's is bound to one data holder."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    role: Role
    holder: Annotated[str | None, Field(pattern=ID_PATTERN)] = None
    days: Annotated[int, Field(ge=1, le=366), *WHOLE] = 30


@router.post(
    "/api/v1/tokens",
    status_code=201,
    responses=documented(NotAllowed, NotKnown, UsageError),
    openapi_extra=act_of(Act.ISSUE_TOKENS),
)
def issue_token(new: NewToken, caller: Caller, plane: Plane) -> TokenView:
    """Make a token for a script. Its secret is in this answer and nowhere else."""
    allow(caller, Act.ISSUE_TOKENS)  # first: an officer may not learn here which other holders there are
    if new.holder is not None and new.role is Role.HOLDER:
        plane.site.holder(new.holder)
    return plane.access.issue_token(caller, name=new.name, role=new.role, holder=new.holder, days=new.days)


@router.get("/api/v1/tokens", responses=documented(NotAllowed), openapi_extra=act_of(Act.ISSUE_TOKENS))
def list_tokens(caller: Caller, plane: Plane) -> list[TokenView]:
    """List tokens, newest first, without their secrets."""
    return list(plane.access.tokens(caller))


@router.delete(
    "/api/v1/tokens/{token_id}", responses=documented(NotAllowed, NotKnown), openapi_extra=act_of(Act.ISSUE_TOKENS)
)
def revoke_token(
    token_id: Annotated[str, Path(description="A token's id.", pattern=ID_PATTERN)],
    request: Request,
    caller: Caller,
    plane: Plane,
) -> TokenView:
    """End a token at once, and every stream that it opened."""
    found = plane.access.revoke_token(caller, token_id)
    request.app.state.standing.look_now()
    return found


@router.get("/api/v1/reads", responses=documented(NotAllowed, UsageError), openapi_extra=act_of(Act.SEE_READS))
def list_reads(caller: Caller, plane: Plane, cursor: NumberCursor = None, limit: Limit = 50) -> Page[ReadView]:
    """List what regulators looked at, newest first."""
    return plane.access.reads(caller, cursor=cursor, limit=limit)

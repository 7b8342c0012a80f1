"""Routes of runs: start, list, watch, suspend, resume, compare, and the stream of what happens."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel, ConfigDict, Field

from ringfence_policy.errors import Conflict, DeploymentFault, NotAllowed, NotKnown, UsageError
from ringfence_server.control.api.asking import WHOLE, Caller, Cursor, Id, IdempotencyKey, Limit, NotBlank, Plane, RunId
from ringfence_server.control.api.openapi import act_of
from ringfence_server.control.api.problems import documented
from ringfence_server.control.permissions import Act
from ringfence_server.control.signon import caller_of, nobody
from ringfence_server.control.views import Comparison, EventView, Page, RunSummary, RunView

router = APIRouter(tags=["runs"])
# The largest whole number that every JSON reader and both databases take.
_LARGEST = 2**53 - 1
# Clients that lost a stream come back after so long; what they missed is sent then.
_RETRY_MILLISECONDS = 1000


class Start(BaseModel):
    """Which proposal to begin a run of."""

    model_config = ConfigDict(extra="forbid")

    proposal: Id
    seed: Annotated[
        Annotated[int, Field(ge=0, le=_LARGEST), *WHOLE] | None,
        Field(description="Rehearse with seeded, repeatable noise: NOT PRIVATE."),
    ] = None


class EventStream(StreamingResponse):
    """Server-sent events that were encoded before.

    FastAPI's own form of them encodes every event anew for every client, which hundreds of clients make expensive.
    """

    media_type = "text/event-stream"


class Reasoned(BaseModel):
    """Why, for everybody to read."""

    model_config = ConfigDict(extra="forbid")

    reason: NotBlank


@router.post(
    "/api/v1/runs",
    status_code=202,
    responses=documented(NotAllowed, NotKnown, Conflict, DeploymentFault),
    openapi_extra=act_of(Act.START),
)
def start_run(
    start: Start, caller: Caller, plane: Plane, response: Response, idempotency_key: IdempotencyKey = None
) -> RunView:
    """Begin a run of a proposal. Once this is answered it is begun, whatever happens to the control plane."""
    found = plane.runs.start(caller, start.proposal, seed=start.seed, once=idempotency_key)
    response.headers["Location"] = f"/api/v1/runs/{found.run_id}"
    return found


@router.get("/api/v1/runs", responses=documented(NotAllowed, UsageError), openapi_extra=act_of(Act.WATCH))
def list_runs(caller: Caller, plane: Plane, cursor: Cursor = None, limit: Limit = 50) -> Page[RunSummary]:
    """List runs, newest first."""
    return plane.runs.runs(caller, cursor=cursor, limit=limit)


@router.get("/api/v1/runs/{run_id}", responses=documented(NotAllowed, NotKnown), openapi_extra=act_of(Act.WATCH))
def show_run(run_id: RunId, caller: Caller, plane: Plane) -> RunView:
    """Show a run, round by round and holder by holder."""
    return plane.runs.run(caller, run_id)


@router.get(
    "/api/v1/comparison", responses=documented(NotAllowed, NotKnown, UsageError), openapi_extra=act_of(Act.COMPARE)
)
def compare_runs(
    run: Annotated[list[Id], Query(min_length=1, max_length=8, description="A run's id, once for each run.")],
    caller: Caller,
    plane: Plane,
) -> Comparison:
    """Put up to eight runs side by side."""
    return plane.runs.compare(caller, run)


@router.post(
    "/api/v1/runs/{run_id}/suspend",
    responses=documented(NotAllowed, NotKnown, Conflict, UsageError),
    openapi_extra=act_of(Act.SUSPEND),
)
def suspend_run(run_id: RunId, why: Reasoned, caller: Caller, plane: Plane) -> RunView:
    """End a run's process; what was committed is kept, and it can be resumed from there."""
    return plane.runs.suspend(caller, run_id, why.reason)


@router.post(
    "/api/v1/runs/{run_id}/resume",
    responses=documented(NotAllowed, NotKnown, Conflict, DeploymentFault),
    openapi_extra=act_of(Act.RESUME),
)
def resume_run(run_id: RunId, caller: Caller, plane: Plane) -> RunView:
    """Take a run up again from its last committed round."""
    return plane.runs.resume(caller, run_id)


@router.get(
    "/api/v1/runs/{run_id}/events",
    responses=documented(NotAllowed, NotKnown, UsageError),
    openapi_extra=act_of(Act.WATCH),
)
def list_events(
    run_id: RunId,
    caller: Caller,
    plane: Plane,
    after: Annotated[int, Query(ge=0, le=_LARGEST, description="`seq` of the last event that you have.")] = 0,
    limit: Limit = 200,
) -> list[EventView]:
    """List what happened in a run after an event, in order."""
    return list(plane.runs.events(caller, run_id, after=after, limit=limit))


def _allowed_after(
    run_id: RunId,
    caller: Caller,
    plane: Plane,
    last_event_id: Annotated[
        int,
        Header(ge=0, le=_LARGEST, description="`id` of the last event that you have; a browser sends it by itself."),
    ] = 0,
) -> int:
    """The place after which a stream goes on. Whether it may is asked before it begins: later is too late."""
    plane.runs.events(caller, run_id, after=last_event_id, limit=1)
    return last_event_id


@router.get(
    "/api/v1/runs/{run_id}/stream",
    response_class=EventStream,
    responses={
        200: {"content": {EventStream.media_type: {"schema": {"type": "string"}}}},
        **documented(NotAllowed, NotKnown, UsageError),
    },
    openapi_extra=act_of(Act.WATCH),
)
async def stream_run(request: Request, run_id: RunId, after: Annotated[int, Depends(_allowed_after)]) -> EventStream:
    """Stream what happens in a run as it happens (server-sent events), until the run has ended.

    Each event's `id` is its `seq`, so that a client that comes back gets what it missed. The last one is named `end`:
    close the stream then. It breaks off when the session or token that opened it ends. Comments keep it alive.
    """
    caller = caller_of(request)
    if caller is None:
        raise nobody()
    sent = _sent(request, run_id, after, caller.credential)
    return EventStream(sent, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def _sent(request: Request, run_id: str, after: int, credential: str) -> AsyncIterator[bytes]:
    state = request.app.state
    state.metrics.streams.inc()
    try:
        yield format_sse_event(retry=_RETRY_MILLISECONDS, comment="ringfence")
        with state.standing.held(credential) as held:
            async with aclosing(state.feeds.listen(run_id, after=after, woken=held.woken)) as events:
                async for event in events:
                    if not held.good:
                        return
                    yield KEEPALIVE_COMMENT if event is None else event.sent
        yield format_sse_event(data_str="{}", event="end")
    finally:
        state.metrics.streams.dec()

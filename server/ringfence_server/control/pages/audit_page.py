"""The audit viewer: any record of any log in a run's evidence, what it was made from, and the proof that it stands."""

import json

from fastapi import Request

from ringfence_policy.errors import NotKnown
from ringfence_server.control.pages.frame import block, frame
from ringfence_server.control.pages.seat import Seat

_MOST_RUNS = 50
_COORDINATOR = "coordinator"


async def choose(seat: Seat, request: Request) -> None:
    """The page `/audit`: which run, and whose log."""
    runs = (await seat.ask(seat.plane.runs.runs, seat.actor, limit=_MOST_RUNS)).items
    wanted = request.query_params.get("run")
    shown = [run for run in runs if wanted is None or run.run_id == wanted]
    holders = await seat.ask(seat.plane.holders.holders, seat.actor)
    owners = [(_COORDINATOR, "the coordinator"), *((one.holder, one.name) for one in holders)]
    lead = "Every decision is a record in a signed log. Choose a run and a log, then a record, and check its proof."
    with frame(seat, "/audit", "Audit", lead):
        block("audit_choice", runs=[run for run in shown if run.state == "finished"], owners=owners)


async def build_log(seat: Seat, request: Request) -> None:
    """The page `/audit/{run_id}/{owner}`: one log."""
    run_id, owner = request.path_params["run_id"], request.path_params["owner"]
    entries = await seat.ask(seat.plane.evidence.entries, seat.actor, run_id, owner)
    run = await seat.ask(seat.plane.runs.run, seat.actor, run_id)
    with frame(seat, "/audit", f"The log of {owner}", run.title):
        block("audit_log", entries=entries, run_id=run_id, owner=owner)


async def build_record(seat: Seat, request: Request) -> None:
    """The page `/audit/{run_id}/{owner}/{position}`: one record and its proof."""
    run_id, owner = request.path_params["run_id"], request.path_params["owner"]
    position = request.path_params["position"]
    if not (position.isascii() and position.isdecimal() and len(position) < 10):  # noqa: PLR2004 -- no log is longer
        raise NotKnown("there is no such record")
    proof = await seat.ask(seat.plane.evidence.proof, seat.actor, run_id, owner, int(position))
    with frame(seat, "/audit", f"Record {position} of the log of {owner}"):
        block("audit_record", proof=proof, run_id=run_id, inputs=json.dumps(proof.record, indent=2, ensure_ascii=False))

"""Counts a site for Prometheus, from the store's mirror and the public view of each holder."""

import json

from sqlalchemy import func, select

from ringfence_server.control.actor import Actor, Role
from ringfence_server.control.metrics import SiteFigures
from ringfence_server.control.plane import ControlPlane
from ringfence_server.control.store.tables import EventRow, RunRow

# What anybody may see of a holder is what is counted: the role with the fewest figures of all.
_ASKS = Actor(role=Role.ADMINISTRATOR, name="metrics", holder=None, via="cli", account="metrics")


def site_figures(plane: ControlPlane) -> SiteFigures:
    """A site in numbers, at this moment."""
    refusals: dict[str, int] = {}
    with plane.store.read() as db:
        runs = dict(db.execute(select(RunRow.state, func.count()).group_by(RunRow.state)).all())
        bodies = db.scalars(select(EventRow.body).where(EventRow.name == "round-closed")).all()
    for body in bodies:
        for refusal in json.loads(body)["outcome"]["refused"]:
            for clause in refusal["clauses"]:
                refusals[clause] = refusals.get(clause, 0) + 1
    return SiteFigures(runs=runs, rounds=len(bodies), refusals=refusals, epsilon_left=_left(plane))


def _left(plane: ControlPlane) -> dict[str, float]:
    """The smallest share that is left of any of a holder's epsilon budgets: what will run out first."""
    found = {}
    for one in plane.holders.holders(_ASKS):
        meters = plane.holders.view(_ASKS, one.holder).meters
        shares = [1.0 - meter.used for meter in meters if meter.quantity == "epsilon"]
        if shares:
            found[one.holder] = min(shares)
    return found

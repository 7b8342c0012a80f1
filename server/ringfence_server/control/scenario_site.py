"""A scenario as a site: the data holders' files lie on this machine, and so do the desks of their officers.

Holder code is reached by reference, as Flower's apps are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ringfence_policy.clauses import explain
from ringfence_policy.holder import HolderProfile
from ringfence_policy.plan import PlanFile
from ringfence_server.control.site import Site, Standing
from ringfence_server.control.views import HolderForecast, Reason
from ringfence_server.forecast import forecast
from ringfence_server.run_file import DESK, reach
from ringfence_server.scenario import Scenario, load_holders, load_scenario


class ScenarioSite(Site):
    """A scenario directory.

    Args:
        directory: The scenario.

    Raises:
        ScenarioInvalid: It is none.
    """

    local = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._read: tuple[object, Scenario] | None = None
        self._known: tuple[object, Mapping[str, HolderProfile]] | None = None
        self.scenario()

    def scenario(self) -> Scenario:
        """The scenario as its files say now.

        Raises:
            RingfenceError: A file does not say what it must.
        """
        now = self._state("plan.toml", "schema.toml", "holders/*/holder.toml", "holders/*/policy.toml")
        known = self._read
        if known is None or known[0] != now:
            self._read = known = (now, load_scenario(self.directory))
        return known[1]

    @property
    def holders(self) -> Mapping[str, HolderProfile]:
        """The data holders by id. A policy that somebody is just writing keeps nobody else from stopping a use."""
        now = self._state("holders/*/holder.toml")
        known = self._known
        if known is None or known[0] != now:
            self._known = known = (now, load_holders(self.directory))
        return known[1]

    def _state(self, *names: str) -> object:
        """How files stand: hundreds of them, asked for by every page, are read again when one was changed."""
        paths = [path for name in names for path in sorted(self.directory.glob(name))]
        return tuple((path, at.st_ino, at.st_mtime_ns, at.st_size) for path in paths for at in (path.stat(),))

    def look(self, holder_id: str) -> Standing:
        """Where a data holder stands; of one that signed no policy, with what its unsigned one says."""
        found = self.desk(holder_id).look()
        return Standing(
            standing=found["standing"],
            reason=found["reason"],
            policy=found["policy"],
            sentences=tuple(found["sentences"] or explain(self.scenario().policies[holder_id])),
            meters=tuple(found["meters"]),
        )

    def desk(self, holder_id: str) -> Any:
        """The desk of a data officer: `ringfence_client.desk.Desk`."""
        self.holder(holder_id)
        return reach(DESK)(str(self.directory / "holders" / holder_id))

    def forecast(self, plan: PlanFile) -> tuple[HolderForecast, ...]:
        """Who would refuse a plan, why, and what change would make it pass."""
        return tuple(
            HolderForecast(
                holder=one.holder_id,
                permitted=one.permitted,
                rounds_permitted=one.rounds_permitted,
                reasons=tuple(
                    Reason(clause=failed.clause, sentence=failed.meaning, limit=failed.limit) for failed in one.failed
                ),
                change=one.change or "",
            )
            for one in forecast(self.scenario(), plan)
        )

    def refuse_unready(self) -> None:
        """A scenario is always ready: its runs need nothing but this machine."""

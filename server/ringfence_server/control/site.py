"""The one directory that a control plane serves: its plans, its data holders, and the officers' desks on this machine.

Holder code is reached by reference, as Flower's apps are, and only where the holders' files lie in the site. In a
deployment they lie elsewhere: then a holder's policy, budget and decisions are its own machine's to show and to change.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ringfence_policy.errors import DocumentInvalid, NotAllowed, NotKnown, ScenarioInvalid
from ringfence_policy.holder import HolderProfile
from ringfence_policy.plan import PlanFile
from ringfence_policy.strict_toml import parse_toml
from ringfence_server.control.views import HolderForecast, Reason
from ringfence_server.deployment import is_deployment
from ringfence_server.forecast import forecast
from ringfence_server.run_file import DESK, reach
from ringfence_server.scenario import Scenario, load_scenario

_MOST_PLAN: Final = 64 * 1024


class Site:
    """A scenario directory.

    Args:
        directory: The scenario.

    Raises:
        ScenarioInvalid: It is none, or it is a deployment.
    """

    def __init__(self, directory: Path) -> None:
        if is_deployment(directory):
            raise ScenarioInvalid(
                "a control plane cannot serve a deployment yet",
                expected="a scenario, whose data holders are in this directory",
                where=str(directory),
                next_step="`ringfence run DIR --superlink ...` runs a deployment; follow it there",
            )
        self.directory = directory.resolve()
        self._read: tuple[object, Scenario] | None = None
        self.scenario()

    def scenario(self) -> Scenario:
        """The scenario as its files say now.

        Raises:
            RingfenceError: A file does not say what it must.
        """
        # Hundreds of files at hundreds of holders, asked for by every page: they are read again when one was changed.
        names = ("plan.toml", "schema.toml", "holders/*/holder.toml", "holders/*/policy.toml")
        paths = [path for name in names for path in sorted(self.directory.glob(name))]
        now = tuple((path, at.st_ino, at.st_mtime_ns, at.st_size) for path in paths for at in (path.stat(),))
        known = self._read
        if known is None or known[0] != now:
            self._read = known = (now, load_scenario(self.directory))
        return known[1]

    @property
    def holders(self) -> Mapping[str, HolderProfile]:
        """The data holders by id."""
        return self.scenario().holders

    def holder(self, holder_id: str) -> HolderProfile:
        """One data holder.

        Raises:
            NotKnown: There is none of that id.
        """
        found = self.holders.get(holder_id)
        if found is None:
            raise NotKnown("there is no such data holder here")
        return found

    def plans(self) -> dict[str, Path]:
        """Plans that lie in the site, by file name."""
        return {path.name: path for path in (self.directory / "plan.toml", *sorted(self.directory.glob("plan-*.toml")))}

    def plan_text(self, name: str) -> str:
        """One of them.

        Raises:
            NotKnown: There is none of that name.
        """
        path = self.plans().get(name)
        if path is None:
            raise NotKnown("there is no such plan here", expected=", ".join(self.plans()))
        return path.read_text()

    def read_plan(self, text: str) -> PlanFile:
        """A plan from its text.

        Raises:
            DocumentInvalid: It is no plan.
        """
        if len(text.encode("utf-8", "surrogatepass")) > _MOST_PLAN:
            raise DocumentInvalid("a plan is not that long", expected=f"at most {_MOST_PLAN} bytes")
        return parse_toml(text, PlanFile, source="plan.toml")

    def forecast(self, plan: PlanFile) -> tuple[HolderForecast, ...]:
        """Who would refuse a plan, why, and what change would make it pass. Uses no data and records nothing."""
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

    def desk(self, holder_id: str) -> Any:
        """The desk of a data officer: `ringfence_client.desk.Desk`.

        Raises:
            NotKnown: There is no such holder.
            RingfenceError: It cannot be opened.
        """
        self.holder(holder_id)
        return reach(DESK)(str(self.directory / "holders" / holder_id))


def without(scenario: Scenario, holders: frozenset[str]) -> Scenario:
    """A scenario without some of its holders, who declined.

    Raises:
        NotAllowed: None is left.
    """
    kept = {holder: profile for holder, profile in scenario.holders.items() if holder not in holders}
    if not kept:
        raise NotAllowed("every data holder declined", expected="at least one that takes part")
    return replace(scenario, holders=kept, policies={holder: scenario.policies[holder] for holder in kept})

"""What a control plane serves: a directory's plans, and its data holders as far as this machine knows them.

Two kinds of directory are served. In a scenario the holders' files lie here, with their officers' desks
(scenario_site.py); in a deployment they lie on the holders' own machines, which alone show and change them
(deployment_site.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ringfence_policy.errors import DocumentInvalid, NotKnown
from ringfence_policy.plan import PlanFile
from ringfence_policy.strict_toml import parse_toml
from ringfence_server.control.views import HolderForecast

_MOST_PLAN: Final = 64 * 1024


class Card(Protocol):
    """What everybody may know of a data holder."""

    @property
    def name(self) -> str:
        """As people say it."""

    @property
    def region(self) -> str:
        """Where it computes."""


@dataclass(frozen=True)
class Standing:
    """Where a data holder stands, as far as this machine knows.

    Attributes:
        standing: One word; see `views.HolderView`.
        reason: Why, where somebody gave a reason.
        policy: The signed policy's id and version.
        sentences: What it says.
        meters: Its budgets, as its ledger says them.
    """

    standing: str
    reason: str = ""
    policy: str = ""
    sentences: tuple[str, ...] = ()
    meters: tuple[dict[str, Any], ...] = ()


class Site(ABC):
    """A directory with plans and data holders.

    Args:
        directory: The directory.

    Attributes:
        local: Whether the data holders' own files lie here.
    """

    local: bool

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()

    @property
    @abstractmethod
    def holders(self) -> Mapping[str, Card]:
        """The data holders by id."""

    @abstractmethod
    def look(self, holder_id: str) -> Standing:
        """Where a data holder stands.

        Raises:
            NotKnown: There is no such holder.
            RingfenceError: It cannot be found out.
        """

    @abstractmethod
    def desk(self, holder_id: str) -> Any:
        """The desk of a data officer, with the methods of `ringfence_client.desk.Desk`.

        Raises:
            NotKnown: There is no such holder.
            RingfenceError: It cannot be opened.
        """

    @abstractmethod
    def forecast(self, plan: PlanFile) -> tuple[HolderForecast, ...]:
        """Who would refuse a plan and why, as far as this machine knows. Uses no data and records nothing.

        Raises:
            DocumentInvalid: The plan and the schema do not fit each other.
        """

    @abstractmethod
    def refuse_unready(self) -> None:
        """Make sure that a run could begin now.

        Raises:
            RingfenceError: It could not; says what to do first.
        """

    def holder(self, holder_id: str) -> Card:
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
        """One of them, as far as it is text: empty where it cannot be read.

        Raises:
            NotKnown: There is none of that name.
        """
        path = self.plans().get(name)
        if path is None:
            raise NotKnown("there is no such plan here", expected=", ".join(self.plans()))
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def read_plan(self, text: str) -> PlanFile:
        """A plan from its text.

        Raises:
            DocumentInvalid: It is no plan.
        """
        if len(text.encode("utf-8", "surrogatepass")) > _MOST_PLAN:
            raise DocumentInvalid("a plan is not that long", expected=f"at most {_MOST_PLAN} bytes")
        return parse_toml(text, PlanFile, source="plan.toml")

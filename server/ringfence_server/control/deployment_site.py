"""A deployment as a site: the data holders are on their own machines, which alone show and change what is theirs."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

from ringfence_policy.errors import AtTheHolder, DeploymentFault, DocumentInvalid
from ringfence_policy.letters import Registration
from ringfence_policy.plan import PlanFile, PlanHolder, TrainingPlan
from ringfence_policy.protocol import HolderCard
from ringfence_server.connections import connections
from ringfence_server.control.site import Site, Standing
from ringfence_server.control.views import HolderForecast
from ringfence_server.coordinator_service import is_serving
from ringfence_server.deployment import load_deployment
from ringfence_server.registry import Registry

DECIDES: Final = "decides on its own machine"
AWAY: Final = "not connected"
_KNOWN_SECONDS = 2.0


class DeploymentSite(Site):
    """A deployment directory.

    Args:
        directory: The deployment.

    Raises:
        ScenarioInvalid: It has no plan or no schema yet.
        DocumentInvalid: One of its files does not say what it must.
    """

    local = False

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._deployment = load_deployment(self.directory)
        self._deployment.read_plan()
        self._deployment.read_schema()
        self._registry = Registry(self._deployment.holders)
        self._registered: tuple[object, dict[str, Registration]] | None = None
        self._connected: tuple[float, dict[str, str]] | None = None

    @property
    def holders(self) -> Mapping[str, HolderCard]:
        """The registered data holders by id."""
        return {holder: letter.card for holder, letter in self._letters().items()}

    def look(self, holder_id: str) -> Standing:
        """Whether a data holder is connected: nothing else is known here."""
        self.holder(holder_id)
        key = self._letters()[holder_id].flower_key
        return Standing(standing=self._connections().get(key, AWAY))

    def desk(self, holder_id: str) -> "DistantDesk":
        """A desk that says where the officer's own one is."""
        self.holder(holder_id)
        return DistantDesk()

    def read_plan(self, text: str) -> PlanFile:
        """A plan of this deployment's coordinator, from its text.

        Raises:
            DocumentInvalid: It is no plan, or another coordinator's, which no data holder here would hear.
        """
        plan = super().read_plan(text)
        mine = self._deployment.settings.coordinator
        if plan.coordinator != mine:
            raise DocumentInvalid(
                "the plan is for another coordinator",
                expected=f'coordinator = "{mine}"',
                got=f'coordinator = "{plan.coordinator}"',
                where="plan.toml",
            )
        return plan

    def forecast(self, plan: PlanFile) -> tuple[HolderForecast, ...]:
        """That each data holder decides for itself, and who is not there to do so."""
        holders = self._letters()
        TrainingPlan(
            terms=plan,
            dataset_schema=self._deployment.read_schema(),
            holders={
                holder: PlanHolder(
                    weight=letter.card.weight, root=letter.card.root, root_thumbprint=letter.root.thumbprint
                )
                for holder, letter in holders.items()
            },
            rehearsal=False,
        )
        return tuple(
            HolderForecast(
                holder=holder,
                permitted=None,
                rounds_permitted=None,
                reasons=(),
                note=DECIDES if (state := self.look(holder).standing) == "connected" else f"{DECIDES} ({state})",
            )
            for holder in sorted(holders)
        )

    def refuse_unready(self) -> None:
        """Make sure that the SuperLink runs.

        Raises:
            DeploymentFault: It does not.
        """
        if not is_serving(self._deployment):
            raise DeploymentFault(
                "the SuperLink of this deployment does not run, so no data holder can be reached",
                expected="`ringfence coordinator start DIR`, running on the coordinator's machine",
                next_step="start it there, and try again",
            )

    def _letters(self) -> dict[str, Registration]:
        """The registrations, verified anew when one came or went."""
        now = self._registry.state()
        known = self._registered
        if known is None or known[0] != now:
            self._registered = known = (now, self._registry.registrations())
        return known[1]

    def _connections(self) -> dict[str, str]:
        """Each SuperNode's state by its key, as the SuperLink said a moment ago."""
        known, now = self._connected, time.monotonic()
        if known is None or now - known[0] > _KNOWN_SECONDS:
            self._connected = known = (now, connections(self._deployment) or {})
        return known[1]


class DistantDesk:
    """A data officer's desk that stands elsewhere: whatever is asked of it, it says which command does it there."""

    def policy_text(self) -> NoReturn:
        """The policy lies at the holder."""
        raise _policy()

    def sign_text(self, _text: str) -> NoReturn:
        """The key that signs it lies at the holder."""
        raise _policy()

    def stop(self, how: str, _reason: str) -> NoReturn:
        """The key that signs a stop lies at the holder."""
        why = "" if how == "resume" else ' --reason "..."'
        raise _there("use is stopped and resumed", f"`ringfence-node {how} DIR{why}` there holds from the next gate on")

    def uses(self) -> NoReturn:
        """The ledger lies at the holder."""
        raise _there("the privacy ledger is kept", "`ringfence-node ledger DIR` there shows it")

    def decisions(self) -> NoReturn:
        """The log of decisions lies at the holder."""
        raise _there("decisions are logged", "`ringfence-node decisions DIR` there shows them")


def _policy() -> AtTheHolder:
    return _there(
        "the policy is kept and changed",
        "edit DIR/policy.toml there, then `ringfence-node sign DIR`; `ringfence-node status DIR` shows what is signed",
    )


def _there(what: str, command: str) -> AtTheHolder:
    return AtTheHolder(
        f"{what} on the data holder's own machine",
        expected="the data officer's own commands; DIR is the holder's directory",
        next_step=command,
    )

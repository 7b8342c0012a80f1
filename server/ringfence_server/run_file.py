"""run.json: what a run is, written before it starts, so that another process can take it up again."""

import json
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Self, TypeVar

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import NotAllowed, ScenarioInvalid
from ringfence_policy.identity import PublicKey
from ringfence_policy.plan import PlanFile, PlanHolder, TrainingPlan
from ringfence_policy.protocol import HolderCard
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.shell_words import typed
from ringfence_server.coordinator import Coordinator
from ringfence_server.scenario import Scenario

T = TypeVar("T")

# The holders' side, reached as Flower reaches it: by reference, never by import.
ENROL = "ringfence_client.enrolment:enrol"
INTRODUCE = "ringfence_client.enrolment:introduce"
STOPS = "ringfence_client.officer:stops_in_force"
COHORT_APP = "ringfence_client.clientapp:cohort"
CLOSE_NODES = "ringfence_client.clientapp:close_nodes"
WORKROOM = "ringfence_client.open_workroom:OpenWorkroom"
INITIAL_MODEL = "ringfence_client.models:initial_arrays"
# What it needs besides where the model is a module of the plan's own.
OWN_MODULE = "ringfence_client.modules:build_module"
COMPARISON = "ringfence_client.comparison:compare"
# A data officer's own commands, where the holder's files lie on this machine.
DESK = "ringfence_client.desk:Desk"
# What a SuperLink and its SuperNodes load, each from what is installed on its own machine.
SERVER_APP = "ringfence_server.serverapp:app"
RELAY_APP = "ringfence_client.relay:app"

# What the run configuration tells the ServerApp.
RUN_DIRECTORY = "run-directory"
ATTEMPT = "attempt"

_FIRST_NODE_ID = 1001


@dataclass(frozen=True, kw_only=True)
class SuperNode:
    """The SuperNode that speaks for one data holder: Flower's number for it, and its registered public key in PEM."""

    node_id: int
    key: str


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """One run, as it was started.

    Attributes:
        run_id: Its name in every record.
        flower_run_id: Flower's number for it; 0 where a SuperLink gives each attempt its own.
        scenario: The scenario's name, for people.
        directory: runs/<run id>/ of the scenario.
        out: Where results go.
        plan_token: The signed plan.
        cards: The registered holders.
        holder_directories: Their directories on this machine; none in a deployment.
        seed: The rehearsal's seed, or None.
        attempt: How many processes have taken this run up.
        started_at: When, RFC 3339.
        is_finished: Whether results were written.
        superlink: Where the SuperLink of a deployment answers; None where the holders are in the run's own process.
        supernodes: In a deployment, each holder's SuperNode.
    """

    run_id: str
    flower_run_id: int
    scenario: str
    directory: str
    out: str
    plan_token: str
    cards: dict[str, dict[str, Any]]
    holder_directories: dict[str, str]
    seed: int | None
    attempt: int
    started_at: str
    is_finished: bool = False
    superlink: str | None = None
    supernodes: dict[str, SuperNode] = field(default_factory=dict)

    def save(self) -> None:
        """Write the file, whole."""
        write_durably(Path(self.directory) / "run.json", json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read a run's file.

        Raises:
            ScenarioInvalid: There is none.
        """
        path = directory / "run.json"
        if not path.exists():
            raise ScenarioInvalid(
                "there is no run here",
                expected="a run.json",
                where=str(directory),
                next_step="name a run's directory, DIR/runs/<its id>; a run's last lines say where it lies",
            )
        members = json.loads(path.read_text())
        nodes = {holder: SuperNode(**node) for holder, node in members.pop("supernodes", {}).items()}
        return cls(**members, supernodes=nodes)

    def next_attempt(self) -> Self:
        """The same run, taken up by one more process."""
        return replace(self, attempt=self.attempt + 1)

    def nodes(self) -> dict[int, HolderCard]:
        """Each holder's card by its Flower node number."""
        if self.supernodes:
            return {node.node_id: HolderCard(**self.cards[holder]) for holder, node in sorted(self.supernodes.items())}
        return {
            _FIRST_NODE_ID + position: HolderCard(**card)
            for position, (_, card) in enumerate(sorted(self.cards.items()))
        }

    @property
    def root(self) -> Path:
        """The scenario's own directory."""
        return Path(self.directory).parent.parent


def reach(reference: str) -> Callable[..., Any]:
    """Load what a reference "module:name" names."""
    found: Callable[..., Any] = resolve_name(reference)
    return found


def new_run_id() -> str:
    """A name for a run: when it was named, and a little chance."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def start_run(scenario: Scenario, *, out: Path | None, seed: int | None, run_id: str | None = None) -> RunFile:
    """Register the holders, sign the plan for them and write run.json. Uses no data.

    Args:
        scenario: The scenario.
        out: Where results go; the run's own directory by default.
        seed: Makes the run a rehearsal with seeded noise: NOT PRIVATE.
        run_id: Its name, where it was given one before; otherwise it gets one.

    Raises:
        RingfenceError: A holder could not be set up, or keys cannot be read.
    """
    directories = {holder_id: str(scenario.holder_directory(holder_id).resolve()) for holder_id in scenario.holders}
    enrol = reach(ENROL)
    cards: dict[str, HolderCard] = {holder_id: enrol(path) for holder_id, path in sorted(directories.items())}
    reach(INTRODUCE)(list(directories.values()), list(cards.values()))
    run = draft_run(
        scenario.directory,
        plan=scenario.plan,
        schema=scenario.schema,
        cards=cards,
        out=out,
        seed=seed,
        run_id=run_id,
    )
    run = replace(run, flower_run_id=secrets.randbits(62) | 1, holder_directories=directories)
    run.save()
    return run


def without_declined(cards: Mapping[str, T], declined: Collection[str]) -> dict[str, T]:
    """What is known of each data holder, for those who take part.

    Raises:
        NotAllowed: Everybody declined.
    """
    kept = {holder_id: of_it for holder_id, of_it in cards.items() if holder_id not in declined}
    if not kept:
        raise NotAllowed("every data holder declined", expected="at least one that takes part")
    return kept


def draft_run(
    root: Path, *, plan: PlanFile, schema: DatasetSchema, cards: Mapping[str, HolderCard], out: Path | None,
    seed: int | None, run_id: str | None = None,
) -> RunFile:  # fmt: skip
    """Sign a plan for registered holders, and describe the run that it begins. The description is not saved yet.

    Args:
        root: The scenario's or deployment's own directory.
        plan: What is to be run.
        schema: What every holder's data looks like.
        cards: The holders.
        out: Where results go; the run's own directory by default.
        seed: Makes the run a rehearsal with seeded noise: NOT PRIVATE.
        run_id: Its name, where it was given one before; otherwise it gets one.
    """
    now = datetime.now(UTC)
    run_id = run_id or new_run_id()
    frozen = TrainingPlan(
        terms=plan,
        dataset_schema=schema,
        holders={
            holder_id: PlanHolder(
                weight=card.weight, root=card.root, root_thumbprint=PublicKey.from_jwk(card.root).thumbprint
            )
            for holder_id, card in cards.items()
        },
        rehearsal=seed is not None,
    )
    coordinator = Coordinator(root / "coordinator", coordinator_id=plan.coordinator)
    try:
        plan_token = coordinator.sign_plan(frozen)
    finally:
        coordinator.close()
    directory = (root / "runs" / run_id).resolve()
    return RunFile(
        run_id=run_id,
        flower_run_id=0,
        scenario=root.resolve().name,
        directory=str(directory),
        out=str((out if out is not None else directory).resolve()),
        plan_token=plan_token,
        cards={holder_id: card.model_dump(mode="json") for holder_id, card in cards.items()},
        holder_directories={},
        seed=seed,
        attempt=1,
        started_at=now.isoformat(timespec="seconds"),
    )


def unfinished_run(directory: Path) -> RunFile:
    """The newest run of a scenario that was not finished.

    Raises:
        ScenarioInvalid: Every run was finished, or there is none.
    """
    runs = [RunFile.load(path.parent) for path in sorted((directory / "runs").glob("*/run.json"), reverse=True)]
    for run in runs:
        if not run.is_finished:
            return run
    raise ScenarioInvalid(
        "there is no unfinished run to resume",
        got=f"the last one was finished: {runs[0].out}" if runs else "no run at all",
        where=str(directory / "runs"),
        next_step=f"start a new one: ringfence run {typed(directory)}",
    )

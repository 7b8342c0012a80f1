"""A deployment on this machine with every process real: coordinator, SuperLink, ServerApp, SuperNodes, holders' agents.

The holders are those of a tiny scenario, so that the same run can be made in one process and compared. Everything
listens on 127.0.0.1, on free ports, and is ended by process id. For fault tests: each part has `kill` (SIGKILL) and
`start`, and `wait_for` waits for an event of the run.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tiny_scenario import TinyScenario

from ringfence_client.enrolment import enrol, introduce
from ringfence_policy.protocol import HolderCard

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
PATIENCE_SECONDS = 300.0


def free_port() -> int:
    """A port that nothing listens on right now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(
    what: str, found: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS, pause_seconds: float = 0.1
) -> Any:
    """Wait until `found` gives something true, and give that."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        value = found()
        if value:
            return value
        time.sleep(pause_seconds)
    raise AssertionError(f"waited {seconds:.0f} s in vain until {what}")


def environment(**more: str) -> dict[str, str]:
    """The environment of every process here."""
    path = os.pathsep.join(str(ROOT / name) for name in ("server", "clients", "sandbox_policies"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    return kept | {
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        **more,
    }


class Part:
    """One process of the deployment, with its output in a file."""

    def __init__(self, command: list[str], *, log: Path, env: Mapping[str, str]) -> None:
        self.command, self.log, self.env = command, log, dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again; a test may have changed `command` and `env` since."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, start_new_session=True
            )

    @property
    def process_id(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it with SIGKILL, which no handler sees; what it started goes on, or ends by itself."""
        if self.is_alive:
            os.kill(self.process_id, signal.SIGKILL)
            self.wait()

    def end(self, kind: int = signal.SIGTERM) -> int:
        """Ask it to end, and wait for that."""
        if self.is_alive:
            os.kill(self.process_id, kind)
        return self.wait()

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait until it ends, and give its exit code."""
        assert self._process is not None
        return self._process.wait(seconds)


@dataclass
class HolderSide:
    """What runs at one data holder: `ringfence-node start`, and by it the agent, its trainer and the SuperNode."""

    holder_id: str
    directory: Path
    letter: Path
    thumbprint: str
    node: Part
    _ready_before: int = 0

    def start(self) -> None:
        """Start it, and wait until its agent serves and its SuperNode was started."""
        self.begin()
        self.wait_until_ready()

    def begin(self) -> None:
        """Start it."""
        self._ready_before = self.count("ready")
        self.node.start()

    def wait_until_ready(self) -> None:
        """Wait until its agent serves and its SuperNode was started."""
        before = self._ready_before
        wait_until(f"{self.holder_id} is ready", lambda: self.count("ready") > before or not self.node.is_alive)
        assert self.node.is_alive, self.node.log.read_text()

    def stop(self) -> None:
        """End it."""
        if self.node.is_alive:
            self.node.end()

    def events(self) -> list[dict[str, Any]]:
        """What it said, over all its starts."""
        lines = self.node.log.read_text().splitlines() if self.node.log.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    def count(self, event: str) -> int:
        """How often it said this."""
        return sum(one["event"] == event for one in self.events())

    def process_of(self, part: str) -> int:
        """The process of its "trainer" or "supernode", as it last said."""
        return int([one["pid"] for one in self.events() if one["event"] == f"{part}-started"][-1])

    def kill(self, part: str) -> None:
        """End one of its processes with SIGKILL: "agent", "trainer" or "supernode"."""
        if part == "agent":
            self.node.kill()
        else:
            os.kill(self.process_of(part), signal.SIGKILL)


@dataclass
class LiveDeployment:
    """A deployment over the holders of a scenario.

    Attributes:
        scenario: Plan, schema and holders.
        directory: The deployment, made at the first use.
        address: Where the front listens, and where holders reach it.
        name: Where holders are told to find it, if that is elsewhere.
        before: What stands before each command of the coordinator's side, such as the network it runs in.
        env: More environment of the coordinator's side.
    """

    scenario: TinyScenario
    directory: Path
    address: str = "127.0.0.1"
    name: str = ""
    before: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    superlink_port: int = field(default_factory=free_port)
    holders: dict[str, HolderSide] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the deployment and the holders' keys, and register them. Nothing runs yet."""
        self.directory.mkdir(parents=True)
        for name in ("plan.toml", "schema.toml"):
            shutil.copyfile(self.scenario.directory / name, self.directory / name)
        ports = ("--port", str(self.port), "--superlink-port", str(self.superlink_port))
        made = self.command(
            *("coordinator", "init", str(self.directory), "--name", self.name or self.address),
            *("--listen", self.address),
            *ports,
        )
        self.thumbprint = str(made["thumbprint"])
        cards = [enrol(str(self.scenario.holder(one))) for one in self.scenario.holders]
        for card in cards:
            home = self.scenario.holder(card.holder_id)
            introduce([str(home)], cards)
            self.holders[card.holder_id] = self._holder(card, home)
        self.coordinator = Part(
            [*self.before, *_ringfence(), "coordinator", "start", str(self.directory), "--json"],
            log=self.directory / "start.log",
            env=environment(**self.env),
        )
        self.run: Part | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the coordinator ---------------------------------------------------------------------------------------------

    def command(self, *arguments: str) -> Any:
        """Run one command of `ringfence` to its end, and give its JSON."""
        code, answer = self.try_command(*arguments)
        assert code == 0, answer
        return answer

    def try_command(self, *arguments: str) -> tuple[int, Any]:
        """Run one command of `ringfence` with --json, and give its exit code and what it said."""
        return run_command(*arguments, before=self.before, env=self.env)

    def node_command(self, *arguments: str) -> Any:
        """Run one command of `ringfence-node` to its end, and give its JSON."""
        result = subprocess.run(
            [*_ringfence_node(), *arguments, "--json"],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return json.loads(result.stdout)

    def register(self, holder_id: str) -> Any:
        """Take in a holder's registration."""
        side = self.holders[holder_id]
        return self.command(
            "coordinator", "register", str(self.directory), str(side.letter), "--thumbprint", side.thumbprint
        )

    def start_coordinator(self) -> None:
        """Start it, and wait until it is ready."""
        before = self.coordinator.log.read_text().count('"ready"') if self.coordinator.log.exists() else 0
        self.coordinator.start()
        wait_until("the coordinator is ready", lambda: self.times_ready > before or not self.coordinator.is_alive)
        assert self.coordinator.is_alive, self.coordinator.log.read_text()

    @property
    def times_ready(self) -> int:
        """How often it said that it is ready."""
        return self.coordinator.log.read_text().count('"ready"')

    @property
    def superlink_process(self) -> int:
        """The SuperLink's process, as the coordinator last said."""
        lines = map(json.loads, self.coordinator.log.read_text().splitlines())
        return int([one["superlink_process"] for one in lines if one["event"] == "ready"][-1])

    @property
    def serverapp_process(self) -> int | None:
        """The process of the ServerApp that conducts a run right now."""
        from ringfence_server.conductor_lock import conductor_of  # noqa: PLC0415 -- Flower is slow to load

        found = conductor_of(self.directory)
        return None if found is None else found.process_id

    @property
    def superlink(self) -> str:
        """The SuperLink's address."""
        return f"127.0.0.1:{self.superlink_port}"

    @property
    def _superlink_option(self) -> tuple[str, str]:
        return "--superlink", self.superlink

    # --- the holders -------------------------------------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        """Each registered holder's state."""
        return {one["holder"]: one["state"] for one in self.command("coordinator", "holders", str(self.directory))}

    def start_holders(self, *holder_ids: str) -> None:
        """Start holders, all by default, and wait until they are connected."""
        wanted = holder_ids or tuple(self.holders)
        for one in wanted:
            self.holders[one].begin()
        for one in wanted:
            self.holders[one].wait_until_ready()
        wait_until(
            "the holders are connected",
            lambda: all(self.states()[one] == "connected" for one in wanted),
            pause_seconds=1.0,  # each look is a process of its own
        )

    # --- runs --------------------------------------------------------------------------------------------------------

    def start_run(self, *options: str) -> Part:
        """Start `ringfence run` in the background."""
        self.run = Part(
            [*self.before, *_ringfence(), "run", str(self.directory), *self._superlink_option, "--json", *options],
            log=self.directory / f"run-{time.monotonic_ns()}.log",
            env=environment(**self.env),
        )
        self.run.start()
        return self.run

    @property
    def newest_run(self) -> Path | None:
        """The directory of the newest run."""
        return max((path.parent for path in self.directory.glob("runs/*/run.json")), default=None)

    def events(self) -> Iterator[dict[str, Any]]:
        """The events of the newest run so far."""
        run = self.newest_run
        if run is not None and (run / "events.jsonl").exists():
            for line in (run / "events.jsonl").read_text().splitlines():
                with suppress(json.JSONDecodeError):
                    yield json.loads(line)

    def wait_for(
        self, event: str, *, times: int = 1, seconds: float = PATIENCE_SECONDS, **members: Any
    ) -> dict[str, Any]:
        """Wait for the newest run's event of that name and members."""

        def found() -> list[dict[str, Any]]:
            every = [one for one in self.events() if one["event"] == event]
            wanted = [one for one in every if all(one.get(name) == value for name, value in members.items())]
            return wanted if len(wanted) >= times else []

        return wait_until(f"{event} {members} happens", found, seconds=seconds)[-1]

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End every process."""
        parts = [self.run] if self.run is not None else []
        parts += [side.node for side in self.holders.values()]
        running = [part for part in [*parts, self.coordinator] if part.is_alive]
        for part in running:
            os.kill(part.process_id, signal.SIGTERM)
        for part in running:
            with suppress(subprocess.TimeoutExpired):
                part.wait(60)
            part.kill()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _holder(self, card: HolderCard, home: Path) -> HolderSide:
        letter = self.directory.parent / f"{card.holder_id}.registration.jws"
        said = self.node_command("register", str(home), "--out", str(letter))
        invited = self.node_command(
            "join", str(home), str(self.directory / "invitation.jws"), "--thumbprint", self.thumbprint
        )
        assert invited["thumbprint"] == self.thumbprint
        node = Part(
            [*_ringfence_node(), "start", str(home), "--json", "--memory", "2048"],
            log=self.directory.parent / f"{card.holder_id}.node.log",
            env=environment(),
        )
        return HolderSide(card.holder_id, home, letter, said["thumbprint"], node)


def run_command(*arguments: str, before: tuple[str, ...] = (), env: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """Run one command of `ringfence` with --json to its end, and give its exit code and what it said."""
    result = subprocess.run(
        [*before, *_ringfence(), *arguments, "--json"],
        capture_output=True,
        text=True,
        env=environment(**(env or {})),
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, json.loads(result.stdout)


def _ringfence() -> list[str]:
    return [sys.executable, "-m", "ringfence_server.cli"]


def _ringfence_node() -> list[str]:
    return [sys.executable, "-m", "ringfence_client.cli"]

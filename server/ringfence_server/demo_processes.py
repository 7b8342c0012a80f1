"""`ringfence demo --processes`: the demonstration as a deployment, with a process for each thing that is apart in one.

Everything is done by the commands that coordinator and data holders type, each in a process of its own: keys, letters,
registration, coordinator, SuperLink, agents, trainers, SuperNodes and the run. All of it listens on 127.0.0.1 and ends
with this process. One machine shows how the parts are kept apart, and keeps nobody from that machine's owner.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer

from ringfence_policy.errors import DeploymentFault
from ringfence_server.cli_run import fresh_copy, run_directory

_COMMAND_SECONDS: Final = 180.0
_START_SECONDS: Final = 180.0
_CONNECT_SECONDS: Final = 180.0
_GRACE_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.5


def demonstrate_in_processes(name: str, *, out: Path, seed: int | None, as_json: bool) -> int:
    """Run a bundled scenario over a SuperLink, every data holder with processes of its own. Gives the exit code."""
    scenario = fresh_copy(name, out=out, as_json=as_json)
    say = (lambda _: None) if as_json else typer.echo
    with contextlib.ExitStack() as opened:
        deployment = _Deployment(scenario, out.resolve() / "deployment")
        say(f"A coordinator on 127.0.0.1:{deployment.port}, its SuperLink on 127.0.0.1:{deployment.superlink_port}")
        deployment.make()
        for holder in deployment.holders:
            deployment.introduce(holder)
            say(f"{holder}: keys made, letters exchanged, thumbprints compared")
        opened.enter_context(_running("ringfence", "coordinator", "start", str(deployment.directory)))
        for holder in deployment.holders:
            said = opened.enter_context(_running("ringfence-node", "start", str(scenario / "holders" / holder)))
            walls = next(event["walls"] for event in said if event["event"] == "trainer-started")
            say(f"{holder}: agent, trainer and SuperNode run; {walls}")
        deployment.wait_until_connected()
        superlink = f"127.0.0.1:{deployment.superlink_port}"
        return run_directory(
            deployment.directory,
            plan=None,
            out=out,
            seed=seed,
            resume=False,
            superlink=superlink,
            as_json=as_json,
        )


@dataclass
class _Deployment:
    """The deployment of a demonstration, and the commands that make it."""

    scenario: Path
    directory: Path

    def __post_init__(self) -> None:
        self.port, self.superlink_port = _free_ports(2)
        self.holders = sorted(path.name for path in (self.scenario / "holders").iterdir() if path.is_dir())
        self._thumbprint = ""
        self._thumbprints: dict[str, str] = {}

    def make(self) -> None:
        """Make the coordinator's directory, and every holder's keys: each holder has to know the others' roots."""
        self.directory.mkdir()
        for path in (*self.scenario.glob("plan*.toml"), self.scenario / "schema.toml"):
            (self.directory / path.name).write_bytes(path.read_bytes())
        said = _answer(
            *("ringfence", "coordinator", "init", str(self.directory)),
            *("--name", "127.0.0.1", "--listen", "127.0.0.1"),
            *("--port", str(self.port), "--superlink-port", str(self.superlink_port)),
        )
        self._thumbprint = said["thumbprint"]
        for holder in self.holders:
            self._thumbprints[holder] = _answer("ringfence-node", "init", str(self._home(holder)))["thumbprint"]

    def introduce(self, holder: str) -> None:
        """Let a holder know the others and the coordinator, and the coordinator it."""
        home, letter = str(self._home(holder)), self.directory.parent / f"{holder}.registration.jws"
        for other in self.holders:
            if other != holder:
                root = str(self._home(other) / "state" / "papers" / "root.jwk")
                _answer("ringfence-node", "peer", home, other, root, "--thumbprint", self._thumbprints[other])
        _answer("ringfence-node", "register", home, "--out", str(letter))
        invitation = str(self.directory / "invitation.jws")
        _answer("ringfence-node", "join", home, invitation, "--thumbprint", self._thumbprint)
        _answer(
            *("ringfence", "coordinator", "register", str(self.directory), str(letter)),
            *("--thumbprint", self._thumbprints[holder]),
        )

    def wait_until_connected(self) -> None:
        """Wait for every SuperNode.

        Raises:
            DeploymentFault: One did not come.
        """
        until = time.monotonic() + _CONNECT_SECONDS
        while True:
            listed = _answer("ringfence", "coordinator", "holders", str(self.directory))
            away = [one["holder"] for one in listed if one["state"] != "connected"]
            if not away:
                return
            if time.monotonic() >= until:
                raise DeploymentFault(
                    "not every data holder connected",
                    got=f"not connected: {', '.join(away)}",
                    where=str(self.directory),
                    next_step="their state/relay/supernode.log says why",
                )
            time.sleep(_PAUSE_SECONDS)

    def _home(self, holder: str) -> Path:
        return self.scenario / "holders" / holder


def _answer(*command: str) -> Any:
    """Run a command of the installation to its end, and give its JSON.

    Raises:
        DeploymentFault: It failed.
    """
    done = subprocess.run(  # noqa: S603 -- our own commands, with paths we made
        [*_program(command), "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise DeploymentFault(
            f"`{' '.join(command[:3])}` failed",
            got=(done.stdout or done.stderr).strip()[-500:],
            next_step="run it by hand for all it says",
        )
    return json.loads(done.stdout)


@contextlib.contextmanager
def _running(*command: str) -> Iterator[Sequence[dict[str, Any]]]:
    """A command that serves until it is told to stop, ready when the block begins.

    Yields:
        What it has said so far.

    Raises:
        DeploymentFault: It ended before it was ready.
    """
    said: list[dict[str, Any]] = []
    ready = threading.Event()
    process = subprocess.Popen(  # noqa: S603 -- as above
        [*_program(command), "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in its own way
    )
    reader = threading.Thread(target=_read, args=(process, said, ready), daemon=True)
    reader.start()
    try:
        if not ready.wait(_START_SECONDS) or process.poll() is not None:
            raise DeploymentFault(f"`{' '.join(command[:3])}` did not start", got=json.dumps(said[-1:])[:500])
        yield said
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(_GRACE_SECONDS)


def _read(process: "subprocess.Popen[str]", said: list[dict[str, Any]], ready: threading.Event) -> None:
    if process.stdout is None:
        return
    with process.stdout:
        for line in process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                said.append(json.loads(line))
                if said[-1].get("event") == "ready":
                    ready.set()
    ready.set()  # it ended: nobody has to wait for more


def _program(command: Sequence[str]) -> list[str]:
    return [str(Path(sysconfig.get_path("scripts")) / command[0]), *command[1:]]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        probes = [opened.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]

"""The container engine, as its own command line: build, compose, run, and ask what runs."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).resolve().parents[1]
ROOT: Final = FOLDER.parent
MINUTES: Final = 60.0


class EngineFault(Exception):
    """The engine is not there, or refused; its words say which."""


def call(
    command: Sequence[str],
    *,
    given: bytes | None = None,
    env: Mapping[str, str] | None = None,
    seconds: float = 5 * MINUTES,
    accept: Sequence[int] = (0,),
) -> str:
    """Run one command to its end and give what it wrote.

    Raises:
        EngineFault: It is not installed, took too long, or ended with another code than those accepted.
    """
    try:
        done = subprocess.run(
            list(command), input=given, capture_output=True, env=env, timeout=seconds, check=False, cwd=FOLDER
        )
    except FileNotFoundError:
        raise EngineFault(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise EngineFault(f"{_short(command)} took longer than {seconds:.0f} s") from None
    if done.returncode not in accept:
        words = (done.stderr + done.stdout).decode(errors="replace").strip()[-3000:]
        raise EngineFault(f"{_short(command)} ended with {done.returncode}:\n{words}")
    return done.stdout.decode(errors="replace")


def _short(command: Sequence[str]) -> str:
    words = " ".join(command)
    return words if len(words) < 200 else f"{words[:200]} ..."


def versions() -> dict[str, str]:
    """The engine's and compose's versions.

    Raises:
        EngineFault: There is no engine to talk to, or no compose.
    """
    return {
        "engine": call(["docker", "version", "--format", "{{.Server.Version}}"], seconds=30).strip(),
        "compose": call(["docker", "compose", "version", "--short"], seconds=30).strip(),
        "security": call(["docker", "info", "--format", "{{.SecurityOptions}}"]).strip(),
        "storage": call(["docker", "info", "--format", "{{.Driver}}"]).strip(),
    }


def image_bytes(image: str) -> int:
    """How much an image takes, unpacked."""
    return int(call(["docker", "image", "inspect", "--format", "{{.Size}}", image]))


def import_wheels(folder: Path, image: str) -> None:
    """Make an image of a folder of wheels, from which builds install."""
    names = sorted(path.name for path in folder.glob("*.whl"))
    if not names:
        raise EngineFault(f"no wheel lies in {folder}")
    packed = subprocess.Popen(["tar", "-C", str(folder), "-c", *names], stdout=subprocess.PIPE)
    try:
        done = subprocess.run(["docker", "import", "-", image], stdin=packed.stdout, capture_output=True, check=False)
    finally:
        packed.wait()
    if done.returncode or packed.returncode:
        raise EngineFault(f"the wheels of {folder} cannot be imported: {done.stderr.decode(errors='replace')}")


def build(role: str, image: str, arguments: Mapping[str, str], *, pip_conf: Path | None) -> None:
    """Build one role's image from this repository."""
    command = ["docker", "build", "--file", str(FOLDER / f"{role}.Dockerfile"), "--tag", image]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    if pip_conf is not None:
        command += ["--secret", f"id=pip,src={pip_conf}"]
    call([*command, str(ROOT)], env={**os.environ, "DOCKER_BUILDKIT": "1"}, seconds=40 * MINUTES)


@dataclass
class Stack:
    """compose.yaml as one project, with settings of its own.

    Attributes:
        project: The project's name, in front of every container, network and volume.
        settings: What stands in for the variables of the file.
    """

    project: str
    settings: Mapping[str, str]
    _env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Settle the environment once: nothing of the caller's shell may move it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RINGFENCE_", "COMPOSE_"))}
        self._env = kept | dict(self.settings)

    def compose(
        self,
        *arguments: str,
        given: bytes | None = None,
        seconds: float = 5 * MINUTES,
        accept: Sequence[int] = (0,),
    ) -> str:
        """Run one command of compose."""
        return call(self._command(*arguments), given=given, env=self._env, seconds=seconds, accept=accept)

    def start(self, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
        """Start one command of compose in the background, with what it writes in a file."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self._command(*arguments), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._env
            )

    def inside(
        self,
        service: str,
        *command: str,
        given: bytes | None = None,
        accept: Sequence[int] = (0,),
        seconds: float = 120,
    ) -> str:
        """Run a command in a service's running container."""
        return self.compose("exec", "-T", service, *command, given=given, accept=accept, seconds=seconds)

    def once(self, service: str, *command: str, given: bytes | None = None, entrypoint: str | None = None) -> str:
        """Run a command in a new container of a service, which is gone afterwards."""
        instead = [] if entrypoint is None else ["--entrypoint", entrypoint]
        return self.compose("run", "--rm", "-T", "--no-deps", *instead, service, *command, given=given)

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def state(self, service: str) -> dict[str, Any]:
        """What the engine says of a service's container: its state, with `Restarts` beside it."""
        found = json.loads(call(["docker", "inspect", self.container(service)]))[0]
        return {**found["State"], "Restarts": found["RestartCount"]}

    def is_healthy(self, service: str) -> bool:
        """Whether a service runs and its health check says so."""
        state = self.state(service)
        return bool(state["Running"]) and state.get("Health", {}).get("Status") == "healthy"

    def network(self, name: str) -> str:
        """The engine's name of a network of the project."""
        return f"{self.project}_{name}"

    def remove(self) -> None:
        """Take everything of the project down: containers, networks, volumes."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "10")

    def _command(self, *arguments: str) -> list[str]:
        file = str(FOLDER / "compose.yaml")
        return ["docker", "compose", "--project-name", self.project, "--file", file, *arguments]

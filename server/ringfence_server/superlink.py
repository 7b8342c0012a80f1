"""One SuperLink as a child process: bound to the loopback address, behind TLS, with its log in the deployment."""

import logging.handlers
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ringfence_policy.errors import DeploymentFault
from ringfence_server.deployment import LOOPBACK, Deployment
from ringfence_server.flower_control import FlowerControl

_GRACE_SECONDS = 12.0
_ORPHANS_SECONDS = 4.0
_START_SECONDS = 90.0
_LOG_BYTES, _LOG_FILES = 10 << 20, 4
# Each SuperNode asks every three seconds, and whoever follows a run every second: none of that is worth a line.
_ROUTINE = re.compile(rb'"POST /v1/[a-z]+/[a-z-]+ HTTP/1\.1" 200|ControlServicer\.List(Runs|Nodes)$')
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


class SuperLink:
    """A running SuperLink.

    Args:
        deployment: Whose it is.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        transport = deployment.transport
        deployment.database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._process = subprocess.Popen(  # noqa: S603 -- our own module, with paths that we made
            [
                sys.executable,
                "-m",
                "ringfence_server.superlink_child",
                str(os.getpid()),
                *("--host", LOOPBACK, "--port", str(deployment.settings.superlink_port)),
                *("--ssl-ca-certfile", str(deployment.authority_file)),
                *("--ssl-certfile", str(transport / "superlink.crt")),
                *("--ssl-keyfile", str(transport / "superlink.key")),
                "--enable-supernode-auth",
                *("--database", str(deployment.database)),
                "--disable-runtime-dependency-installation",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(deployment.flower_home),
            umask=0o077,
            start_new_session=True,  # Ctrl-C reaches the coordinator alone, which then ends this in its own way
        )
        output = self._process.stdout
        if output is None:
            raise DeploymentFault("the SuperLink has no output to follow")
        threading.Thread(target=_keep_log, args=(output, deployment.state / "superlink.log"), daemon=True).start()

    @property
    def process_id(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    @property
    def how_it_ended(self) -> str:
        """Its end in words."""
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def control(self) -> FlowerControl:
        """Speak to it."""
        return FlowerControl(self._deployment.control_address, authority=self._deployment.authority_file.read_bytes())

    def wait_until_it_answers(self, give_up: Callable[[], bool]) -> bool:
        """Wait until it answers.

        Args:
            give_up: Asked again and again; True ends the waiting.

        Returns:
            Whether it answers. False where it ended, took too long, or waiting was given up.
        """
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until and not self.has_ended and not give_up():
            try:
                with self.control() as control:
                    control.nodes()
            except DeploymentFault:
                time.sleep(0.2)
            else:
                # Another process may have the port: what answered must be this one.
                return not self.has_ended
        return False

    def end(self) -> None:
        """End it and everything that it started."""
        below = _descendants(self._process.pid)
        if not self.has_ended:
            self._process.terminate()
            try:
                self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        until = time.monotonic() + _ORPHANS_SECONDS
        while time.monotonic() < until and any(_is_alive(one) for one in below):
            time.sleep(0.1)
        for process_id, began in below:
            if _is_alive((process_id, began)):
                os.kill(process_id, signal.SIGKILL)


def _environment(flower_home: Path) -> dict[str, str]:
    """What the SuperLink and the processes below it are told: nobody is called, and no other interface opens."""
    scripts = sysconfig.get_path("scripts")
    # Flower's own variables open further ports, name other databases, or send data elsewhere; a proxy would be asked
    # for the loopback address. None of them is inherited.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FLWR_") and name.lower() not in _PROXIES
    }
    return kept | {
        "PATH": f"{scripts}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _keep_log(output: IO[bytes], path: Path) -> None:
    """Write what the SuperLink says to its log until it is gone."""
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, delay=True)
    try:
        for coloured in output:
            line = _COLOUR.sub(b"", coloured).rstrip()
            if not _ROUTINE.search(line):
                text = line.decode(errors="replace")
                handler.emit(logging.makeLogRecord({"msg": "%s", "args": (text,)}))
    finally:
        handler.close()


def _descendants(process_id: int) -> list[tuple[int, str]]:
    """Every process below one, each with when it began; none where the system does not say (no /proc)."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        found = _stat(int(entry.name))
        if found is not None:
            parents[int(entry.name)] = found
    below: list[tuple[int, str]] = []
    wanted = {process_id}
    while wanted:
        children = [(one, began) for one, (parent, began) in parents.items() if parent in wanted]
        below += children
        wanted = {one for one, _ in children}
    return below


def _is_alive(process: tuple[int, str]) -> bool:
    found = _stat(process[0])
    return found is not None and found[1] == process[1]


def _stat(process_id: int) -> tuple[int, str] | None:
    """A process's parent and when it began, unless it is gone or only waits to be buried."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), fields[19])

"""The holder's SuperNode: Flower's own, kept running, with the network and without any of the holder's files.

What it starts for a message is code that came over the wire. It may read this installation, write into a directory of
its own, reach the SuperLink and speak to the agent's socket; data, ledger, policy and keys lie elsewhere.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import IO, Final

from ringfence_client.relay import SOCKET_KEY
from ringfence_client.trainer_link import importable

_SHORTEST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_STEADY_SECONDS: Final = 120.0
_GRACE_SECONDS: Final = 10.0

_log = getLogger(__name__)
Report = Callable[[str, Mapping[str, object]], None]


@dataclass(frozen=True, kw_only=True)
class SuperNodeSettings:
    """What a SuperNode is started with.

    Attributes:
        superlink: Where the coordinator's front listens, host:port.
        authority: The certificate that the front's leads to, PEM.
        key: The SuperNode's private key.
        place: Where this process keeps its log and the authority. It may read that one file of it, and write nothing:
            what it could exchange for a link, this process would follow past the walls.
        home: The one directory it may write to. This process opens nothing in it.
        agent: The agent's socket.
        confined: Whether it runs behind walls. Without them, code that came over the wire can read what its user can.
    """

    superlink: str
    authority: str
    key: Path
    place: Path
    home: Path
    agent: Path
    confined: bool = True


class SuperNode:
    """A SuperNode that is started again whenever it ends, with growing pauses, until it is closed.

    It ends with this process, however that ends (`supernode_child`).

    Args:
        settings: What it is started with.
        report: Told of each start and end.
    """

    def __init__(self, settings: SuperNodeSettings, report: Report) -> None:
        self._settings = settings
        self._report = report
        self._closed = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, name="supernode", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it and everything that it started. Safe to call twice."""
        self._closed.set()
        process = self._process
        if process is not None:
            _end(process)
        self._thread.join(_GRACE_SECONDS)

    def _keep_running(self) -> None:
        pause = _SHORTEST_PAUSE
        while not self._closed.is_set():
            began = time.monotonic()
            with _log_file(self._settings) as log:
                self._process = process = _start(self._settings, log)
                self._report("supernode-started", {"pid": process.pid})
                code = process.wait()
            _end(process)
            if self._closed.is_set():
                return
            pause = _SHORTEST_PAUSE if time.monotonic() - began > _STEADY_SECONDS else min(2 * pause, _LONGEST_PAUSE)
            self._report("supernode-ended", {"exit_code": code, "again_in_seconds": pause})
            self._closed.wait(pause)


def _start(settings: SuperNodeSettings, log: IO[bytes]) -> "subprocess.Popen[bytes]":
    authority = settings.place / "authority.pem"
    authority.write_text(settings.authority)
    return subprocess.Popen(  # noqa: S603 -- Flower's program from this installation, with values we checked
        _command(settings, authority),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=_environment(settings.home),
        cwd=settings.home,
        start_new_session=True,
    )


def _command(settings: SuperNodeSettings, authority: Path) -> list[str]:
    walls: list[str] = []
    if settings.confined:
        walls = [
            # Without -s Python would run, before the walls stand, what an earlier message left in this home.
            *(sys.executable, "-P", "-s", "-m", "ringfence_client.confined"),
            # Not where the agent's socket lies: connecting needs no right, and beside it may lie what is the holder's.
            *("--read", str(settings.key), str(authority), "--write", str(settings.home), "--"),
        ]
    return [
        *walls,
        *(sys.executable, "-P", "-m", "ringfence_client.supernode_child", str(os.getpid())),
        *("--superlink", settings.superlink, "--root-certificates", str(authority)),
        *("--auth-supernode-private-key", str(settings.key)),
        *("--node-config", f'{SOCKET_KEY}="{settings.agent}"'),
        *("--host", "127.0.0.1", "--port", str(_free_port())),
    ]


def _environment(home: Path) -> dict[str, str]:
    """What Flower needs, and nothing of this process's own environment."""
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
        "PYTHONPATH": os.pathsep.join(importable(but_not=home)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "HOME": str(home),
        "TMPDIR": str(home),
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "LC_ALL": "C.UTF-8",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _log_file(settings: SuperNodeSettings) -> Iterator[IO[bytes]]:
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (settings.place / "supernode.log").open("ab") as log:
        yield log


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and its whole session: Flower starts others, which outlive it otherwise."""
    for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)

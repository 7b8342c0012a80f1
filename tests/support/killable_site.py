"""A control plane in processes that can be killed at any moment: its own, those of its runs, those of its database."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
from control_plane import ADMINISTRATOR, wait_until
from postgres import Postgres
from tiny_scenario import HOLDERS, write_scenario

from deployment import free_port
from ringfence_server.control.actor import Role
from ringfence_server.control.plane import open_plane

RICH = {"projects.max_rounds": 100_000, "privacy.epsilon": "12"}


class KillableSite:
    """A site of three small data holders, served by `ringfence control start` in a process of its own.

    Args:
        place: An empty directory.
        database: The store's URL; None is a SQLite file in the site.
        postgres: The server behind that URL, if it is one.
    """

    def __init__(self, place: Path, *, database: str | None, postgres: Postgres | None) -> None:
        self.directory = write_scenario(
            place / "site",
            policies=dict.fromkeys(HOLDERS, RICH),
            profiles={holder: {"dataset.epsilon": "900"} for holder in HOLDERS},
            plan={"privacy.noise_multiplier_max": "50"},
        ).directory
        self._database = database
        self._postgres = postgres
        self._log = place / "control.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def token(self, role: Role, holder: str | None = None) -> str:
        """A token by the command that an administrator has at the machine itself."""
        plane = open_plane(self.directory, database=self._database)
        try:
            made = plane.access.issue_token(ADMINISTRATOR, name=f"first {role.value}", role=role, holder=holder, days=1)
        finally:
            plane.close()
        assert made.secret is not None
        return made.secret

    def client(self, token: str = "") -> httpx.Client:
        """Who speaks to it with a token."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        base = f"http://127.0.0.1:{self.port}"
        return httpx.Client(base_url=base, headers=headers, trust_env=False, timeout=120)

    def start(self) -> None:
        """Start the control plane. It serves a little later."""
        command = [sys.executable, "-m", "ringfence_server.cli", "control", "start", str(self.directory)]
        database = ["--database", self._database] if self._database else []
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port), *database], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_until_ready(self) -> None:
        """Wait until it serves, and its database answers."""

        def ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            with suppress(httpx.TransportError), self.client() as client:
                return client.get("/health/ready").status_code == 200
            return False

        wait_until(ready)

    def kill_control_plane(self) -> None:
        """End the control plane; its runs go on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def workers(self) -> list[int]:
        """The processes of its runs, from their first moment on."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(FileNotFoundError, ProcessLookupError):
                words = path.read_bytes().decode().split("\0")
                if "ringfence_server.control.run_process" in words and str(self.directory.resolve()) in words:
                    found.append(int(path.parent.name))
        return found

    def kill_worker(self) -> bool:
        """End a run's process, if there is one at this moment."""
        workers = self.workers()
        for process in workers:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return bool(workers)

    def kill_database(self) -> None:
        """End every process of PostgreSQL."""
        assert self._postgres is not None
        self._postgres.kill()

    def restart_database(self) -> None:
        """Let PostgreSQL recover, and serve again."""
        assert self._postgres is not None
        self._postgres.start()

    def faults(self) -> list[str]:
        """What the control plane logged of faults that nobody foresaw."""
        return [line for line in self._log.read_text().splitlines() if '"runner_fault"' in line or '"internal"' in line]

    def close(self) -> None:
        """End everything."""
        if self._process is not None:
            self.kill_control_plane()
        while self.kill_worker():
            pass

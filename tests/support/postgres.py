"""A PostgreSQL server of a test's own, from the system's package; skipped where there is none."""

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

_VERSIONS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


@dataclass
class Postgres:
    """A running server. Any account of this machine may come in: it listens on 127.0.0.1 and holds nothing."""

    port: int
    user: str
    directory: Path
    run_as: list[str]
    numbers: Iterator[int] = field(default_factory=itertools.count)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """Where its files lie."""
        return self.directory / "data"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.directory / "server.log").open("ab") as log:
            settings = ("listen_addresses=127.0.0.1", f"port={self.port}", f"unix_socket_directories={self.directory}")
            command = [*self.run_as, _VERSIONS[-1] / "postgres", "-D", self.data, *(f"--{one}" for one in settings)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)
        while not self._answers():
            assert self.process.poll() is None, (self.directory / "server.log").read_text()[-2000:]
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once and in order."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()

    def kill(self) -> None:
        """End it as a crash does: every process of it by SIGKILL, at once. `start` recovers what was committed."""
        assert self.process is not None
        first = self.process.pid
        others = [path.parent for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == first]
        for process in (first, *(int(path.name) for path in others)):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()
        while any(_parent(path / "stat") is not None for path in others):
            time.sleep(0.01)

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self._url("postgres")):
            return True
        return False

    def _url(self, database: str) -> str:
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{database}"

    def run(self, command: str, *arguments: object) -> None:
        """Run one of its commands, as the user that it may run as."""
        with (self.directory / "commands.log").open("ab") as out:
            subprocess.run(
                [*self.run_as, str(_VERSIONS[-1] / command), *map(str, arguments)],
                check=True,
                stdout=out,
                stderr=out,
                cwd=self.directory,
            )

    def fresh_database(self, *, encoding: str = "UTF8") -> str:
        """The URL of a database that was just made."""
        name = f"test{next(self.numbers)}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
        return f"postgresql+psycopg://{self.user}@127.0.0.1:{self.port}/{name}"


def _parent(stat: Path) -> int | None:
    """The parent of a process; None once it has ended."""
    try:
        state, parent = stat.read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(parent)


@contextmanager
def cluster() -> Iterator[Postgres]:
    """Make a cluster, start its server, stop it afterwards and leave nothing."""
    if not _VERSIONS:
        pytest.skip("no PostgreSQL server is installed (Debian: postgresql)")
    # Not beneath pytest's own directories: those are their user's alone, and this server may need another user.
    with tempfile.TemporaryDirectory(prefix="ringfence-postgres-") as place:
        directory = Path(place)
        user, run_as = pwd.getpwuid(os.getuid()).pw_name, []
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            user, run_as = "postgres", ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(directory, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        running = Postgres(port=port, user=user, directory=directory, run_as=run_as)
        running.run("initdb", "-D", running.data, "-U", user, "--auth=trust", "--no-sync", "-E", "UTF8")
        running.start()
        try:
            yield running
        finally:
            running.stop()

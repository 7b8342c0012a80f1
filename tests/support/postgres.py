"""A PostgreSQL server of a test's own, from the system's package; skipped where there is none."""

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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

    @property
    def data(self) -> Path:
        """Where its files lie."""
        return self.directory / "data"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self.directory}"
        self.run("pg_ctl", "-D", self.data, "-w", "-l", self.directory / "server.log", "-o", settings, "start")

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

    def fresh_database(self) -> str:
        """The URL of a database that was just made."""
        name = f"test{next(self.numbers)}"
        with psycopg.connect(f"postgresql://{self.user}@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{self.user}@127.0.0.1:{self.port}/{name}"


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
            running.run("pg_ctl", "-D", running.data, "-w", "-m", "immediate", "stop")

"""Puts a control plane together: a site, its store, and the use cases over them."""

import fcntl
import os
import secrets
from pathlib import Path

from sqlalchemy import select

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import ScenarioBusy, UsageError
from ringfence_server.control.access import AccessCases
from ringfence_server.control.evidence_cases import EvidenceCases
from ringfence_server.control.holders import HolderCases
from ringfence_server.control.mirror import Mirror
from ringfence_server.control.runner import Runner
from ringfence_server.control.runs import RunCases
from ringfence_server.control.scenario_site import ScenarioSite
from ringfence_server.control.site import Site
from ringfence_server.control.store.engine import Store, open_store
from ringfence_server.control.store.tables import SiteRow
from ringfence_server.deployment import is_deployment

_DATABASE = "control.db"
_LOCK = ".control.lock"
_NAME = ".control.name"


class ControlPlane:
    """Everything a role may ask for, over one site.

    Attributes:
        site, store, mirror: What the use cases stand on.
        runs, holders, evidence, access: The use cases.
    """

    def __init__(self, site: Site, store: Store, *, pause_seconds: float = 0.0) -> None:
        self.site = site
        self.store = store
        self.mirror = Mirror(store, site.directory)
        self._runner = Runner(store, self.mirror, site.directory, pause_seconds=pause_seconds)
        self.access = AccessCases(store)
        self.holders = HolderCases(site, store, self.access)
        self.runs = RunCases(site, store, self.mirror, self._runner, self.access)
        self.evidence = EvidenceCases(site, store, self.access)
        self._lock = -1

    def start(self) -> None:
        """Look after the site's runs from now on.

        Raises:
            ScenarioBusy: Another control plane does.
            UsageError: The store keeps the runs of another directory.
        """
        self._take_the_lock()
        self._claim_the_store()
        self._runner.start()

    def _take_the_lock(self) -> None:
        self._lock = os.open(self.site.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = -1
            raise ScenarioBusy(
                "another control plane serves this directory",
                expected="one at a time: two would start the same runs",
                where=str(self.site.directory),
                next_step="use that one, or stop it",
            ) from None

    def _claim_the_store(self) -> None:
        path = self.site.directory / _NAME
        if not path.exists():
            write_durably(path, secrets.token_hex(16).encode())
        name = path.read_text()
        with self.store.write() as db:
            owner = db.scalars(select(SiteRow.name)).first()
            if owner is None:
                db.add(SiteRow(name=name))
            elif owner != name:
                raise UsageError(
                    "this database keeps the runs of another directory",
                    expected="a database of its own for each directory: two would start and end each other's runs",
                    where=str(self.site.directory),
                    next_step=f"give --database another one; a copy of that directory needs its {_NAME} as well",
                )

    def close(self, *, end_runs: bool = False) -> None:
        """Stop. Runs go on without it, unless `end_runs` says that they end too."""
        self._runner.close(end_runs=end_runs)
        self.store.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def open_plane(directory: Path, *, database: str | None = None, pause_seconds: float = 0.0) -> ControlPlane:
    """Open a control plane over a site. It looks after no run before `start`.

    Args:
        directory: The site.
        database: URL of the store; None keeps a SQLite file in the site.
        pause_seconds: How long each round of its runs waits before it trains, so that people can follow it.

    Raises:
        ScenarioInvalid: The directory is no site.
        UsageError: The URL is of no database that is known.
        StoreFault: The database cannot be used.
    """
    site = open_site(directory)
    return ControlPlane(
        site, open_store(database or f"sqlite:///{site.directory / _DATABASE}"), pause_seconds=pause_seconds
    )


def open_site(directory: Path) -> Site:
    """A scenario or a deployment, as a site.

    Raises:
        ScenarioInvalid: It is neither, or a part of it is missing.
        DocumentInvalid: A file of it does not say what it must.
    """
    if not is_deployment(directory):
        return ScenarioSite(directory)
    from ringfence_server.control.deployment_site import DeploymentSite  # noqa: PLC0415 -- Flower, needed only here

    return DeploymentSite(directory)

import io
import logging
from contextlib import contextmanager

import pytest
import structlog
from oidc_issuer import Issuer
from postgres import cluster

from ringfence_server.control.logs import set_up_logs
from ringfence_server.control.plane import open_plane


@contextmanager
def _logging_to_text():
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    written = io.StringIO()
    set_up_logs(written)
    yield written
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def logged():
    """What this process logs during a test."""
    with _logging_to_text() as written:
        yield written


@pytest.fixture(scope="module")
def logged_by_module():
    """What this process logs during all tests of a module."""
    with _logging_to_text() as written:
        yield written


@pytest.fixture(scope="session")
def server():
    """A PostgreSQL server."""
    with cluster() as running:
        yield running


@pytest.fixture
def issuer():
    """An identity provider on this machine."""
    found = Issuer()
    yield found
    found.close()


@pytest.fixture
def site(tiny_scenario):
    """A site of three small data holders, by its directory."""
    return tiny_scenario("site").directory


@pytest.fixture
def plane(site):
    opened = open_plane(site)
    opened.start()
    yield opened
    opened.close(end_runs=True)

import pytest

from ringfence_server.control.plane import open_plane


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

"""What the tests of faults share, and the matrix that is printed after them."""

import pytest
from faults import HOLDERS, LINES, PLAN, SEED, Held, Undisturbed, table
from tiny_scenario import write_scenario

from deployment import LiveDeployment, run_command


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The run that nobody disturbs, in one process."""
    directory = tmp_path_factory.mktemp("undisturbed") / "scenario"
    write_scenario(directory, holders=HOLDERS, plan=PLAN)
    code, summary = run_command("run", str(directory), *SEED)
    assert code == 0, summary
    return Undisturbed.of(directory / "runs" / summary["run_id"])


@pytest.fixture
def deploy(tmp_path):
    """A factory of deployments whose holders are registered, and connected unless a test does that itself."""
    opened = []

    def start(*, connected=True, changes=None, before_start=lambda _: None, **options):
        scenario = write_scenario(tmp_path / "scenario", holders=HOLDERS, plan=PLAN | (changes or {}))
        live = LiveDeployment(scenario, tmp_path / "deployment", **options)
        opened.append(live)
        for holder in HOLDERS:
            live.register(holder)
        before_start(live)
        live.start_coordinator()
        if connected:
            live.start_holders()
        return live

    yield start
    for live in opened:
        live.close()


@pytest.fixture
def held():
    """Processes that are held at a step; the last of them goes on with the end of the test."""
    held = Held()
    yield held
    held.let_go()


def pytest_terminal_summary(terminalreporter):
    """Print the matrix of faults as it was measured."""
    if LINES:
        terminalreporter.section("faults, as measured")
        terminalreporter.write_line(table(LINES))

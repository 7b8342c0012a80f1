"""A Flower run is followed by its SuperLink's word and by its process, whichever ends first."""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field, replace

import pytest
from bare_run import bare_run

from ringfence_policy.errors import DeploymentFault, RunFailed, ScenarioBusy
from ringfence_server import deployed_run
from ringfence_server.conductor_lock import conducting, conductor_of
from ringfence_server.deployed_run import FlowerRun, going_on, launched, refuse_second
from ringfence_server.flower_control import FlowerRunState
from ringfence_server.interruption import termination_interrupts
from ringfence_server.run_file import RunFile, SuperNode

RUNNING = FlowerRunState("running", "", "")
COMPLETED = FlowerRunState("finished", "completed", "")
FAILED = FlowerRunState("finished", "failed", "ServerApp failed")


@pytest.fixture
def run(tmp_path):
    """A run of a deployment, at its first attempt."""
    directory = tmp_path / "runs" / "one"
    directory.mkdir(parents=True)
    supernodes = {"oak": SuperNode(node_id=2**63 + 5, key="pem")}
    found = bare_run(directory, superlink="127.0.0.1:1", supernodes=supernodes)
    found.save()
    return found


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    for name in ("_LOOK_SECONDS", "_GONE_SECONDS", "_PATIENCE_SECONDS"):
        monkeypatch.setattr(deployed_run, name, 0.05)


@dataclass
class Control:
    """A SuperLink's Control interface."""

    states: list[FlowerRunState | DeploymentFault] = field(default_factory=lambda: [RUNNING])
    stopped: list[int] = field(default_factory=list)
    log: str = "its log"

    def run_state(self, _):
        state = self.states[0] if len(self.states) == 1 else self.states.pop(0)
        if isinstance(state, Exception):
            raise state
        return state

    def stop_run(self, flower_run_id):
        self.stopped.append(flower_run_id)

    def log_of(self, _):
        return self.log


def conduct(run, flower_run_id, parent):
    with conducting(run, attempt=run.attempt, flower_run_id=flower_run_id):
        parent.send("conducting")
        parent.recv()


class Process:
    """A ServerApp's process that holds the lock and does nothing else."""

    def __init__(self, run, flower_run_id=7):
        context = multiprocessing.get_context("fork")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=conduct, args=(run, flower_run_id, far))
        self.process.start()
        far.close()
        assert self.pipe.poll(30)
        assert self.pipe.recv() == "conducting"

    def end(self):
        with contextlib.suppress(OSError):  # it was killed
            self.pipe.send("end")
        self.process.join(30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
        self.pipe.close()


def followed(run, control):
    found = FlowerRun(control, run, 7)
    until = time.monotonic() + 20
    while not found.is_over():
        assert time.monotonic() < until
        time.sleep(0.01)
    return found.trouble()


def test_a_run_file_keeps_the_supernodes_of_its_holders(run):
    assert RunFile.load(run.root / "runs" / "one") == run


def test_a_run_that_the_superlink_calls_completed_ended_well(run):
    assert followed(run, Control([RUNNING, RUNNING, COMPLETED])) is None


def test_a_run_that_the_superlink_calls_failed_leaves_flowers_own_log(run):
    assert followed(run, Control([RUNNING, FAILED])) == "failed: ServerApp failed"
    assert (run.root / "runs" / "one" / "flower.log").read_text() == "its log"


def test_a_run_is_not_over_while_its_process_still_writes(run):
    with Process(run) as process:
        found = FlowerRun(Control([COMPLETED]), run, 7)
        for _ in range(10):
            assert not found.is_over()
            time.sleep(0.02)
        process.end()
        time.sleep(0.06)
        assert found.is_over()


def test_a_serverapp_that_was_killed_is_noticed_without_the_superlink_and_its_run_stopped(run):
    control = Control([RUNNING])
    with Process(run) as process:
        found = FlowerRun(control, run, 7)
        assert not found.is_over()
        process.process.kill()
        process.process.join(30)
        until = time.monotonic() + 20
        while not found.is_over():
            assert time.monotonic() < until
            time.sleep(0.01)
    assert "process" in found.trouble()
    assert control.stopped == [7]


def test_a_superlink_that_comes_back_in_time_is_waited_for(run, monkeypatch):
    monkeypatch.setattr(deployed_run, "_PATIENCE_SECONDS", 20)
    down = DeploymentFault("down", got="ConnectError")
    assert followed(run, Control([RUNNING, down, down, COMPLETED])) is None


def test_a_superlink_that_stays_away_ends_the_following(run):
    assert "does not answer" in followed(run, Control([RUNNING, DeploymentFault("down", got="ConnectError")]))


def test_stopping_ends_the_process_also_where_the_superlink_is_gone(run):
    class Gone(Control):
        def stop_run(self, flower_run_id):
            raise DeploymentFault("down", got=str(flower_run_id))

    with Process(run) as process:
        FlowerRun(Gone(), run, 7).stop()
        assert conductor_of(run.root) is None
        process.process.join(30)
        assert process.process.exitcode is not None


def test_a_process_that_starts_after_the_stop_finds_that_it_comes_too_late(run):
    FlowerRun(Control(), run, 7).stop()
    with pytest.raises(RunFailed, match="given up"), conducting(run, attempt=run.attempt, flower_run_id=7):
        raise AssertionError("a stopped run went on")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_the_superlink_starts_a_run_still_stops_it(run, kind):
    class Interrupted(Control):
        def start_run(self, _):
            signal.raise_signal(kind)
            return 7

    control = Interrupted()
    with pytest.raises(KeyboardInterrupt), termination_interrupts(), launched(control, run):
        raise AssertionError("nobody follows it")
    assert control.stopped == [7]


def test_another_attempts_process_is_left_alone(run):
    with Process(run, flower_run_id=8) as process:
        FlowerRun(Control(), run, 7).stop()
        assert process.process.is_alive()


# --- the lock --------------------------------------------------------------------------------------------------------


def test_who_conducts_is_known_while_it_lasts_and_not_after(run):
    assert conductor_of(run.root) is None
    with Process(run) as process:
        found = conductor_of(run.root)
        assert (found.process_id, found.run_id, found.flower_run_id) == (process.process.pid, "one", 7)
        os.kill(process.process.pid, 9)
        process.process.join(30)
        assert conductor_of(run.root) is None


def test_a_second_process_conducts_nothing(run, monkeypatch):
    monkeypatch.setattr("ringfence_server.conductor_lock._PATIENCE_SECONDS", 0.2)
    with Process(run), pytest.raises(ScenarioBusy), conducting(run, attempt=1, flower_run_id=9):
        raise AssertionError("two at once")


def test_an_attempt_that_was_followed_by_another_is_not_carried_out(run):
    """A SuperLink that was down may start it when it is back, beside the attempt that took the run up."""
    run.next_attempt().save()
    with pytest.raises(RunFailed, match="given up"), conducting(run, attempt=1, flower_run_id=7):
        raise AssertionError("an old attempt went on")


class Place:
    """As much of a deployment as these ask for."""

    def __init__(self, root):
        self.directory = root


def test_a_run_that_goes_on_is_found_again_and_no_second_one_begins(run):
    assert going_on(Place(run.root)) is None
    refuse_second(Place(run.root))
    with Process(run):
        assert going_on(Place(run.root)) == (run, 7)
        with pytest.raises(ScenarioBusy, match="one"):
            refuse_second(Place(run.root))


def test_nodes_of_a_deployment_go_by_flowers_numbers(run):
    card = {"holder_id": "oak", "name": "Oak", "region": "CH", "weight": 1, "root": {}}
    nodes = replace(run, cards={"oak": card, "gone": card}).nodes()
    assert {node_id: one.holder_id for node_id, one in nodes.items()} == {2**63 + 5: "oak"}
    assert json.loads((run.root / "runs" / "one" / "run.json").read_text())["supernodes"]["oak"]["key"] == "pem"

"""The process of a run in a deployment begins it, stops it, takes it up and joins it, as the command line does."""

import json
import os
import signal
import threading

import pytest
from control_plane import wait_until
from made_up_deployment import SuperLink, make_deployment

from ringfence_server.conductor_lock import conductor_of
from ringfence_server.control import deployed_process, run_process
from ringfence_server.control.run_claim import give_order, held, process_of
from ringfence_server.control.run_process import BUSY, INTERRUPTED, PLAN
from ringfence_server.occupation import occupied
from ringfence_server.run_file import RunFile

HOLDERS = ("alder", "birch")
RUN = "20261126T120000-aaaaaa"


@pytest.fixture
def deployment(tmp_path):
    return make_deployment(tmp_path, HOLDERS)


@pytest.fixture
def superlink(deployment, monkeypatch):
    found = SuperLink(deployment)
    monkeypatch.setattr(deployed_process, "open_control", lambda *_: found)
    yield found
    found.close()


@pytest.fixture
def directory(deployment):
    """A run's directory with its plan, as the runner writes it."""
    found = deployment.directory / "runs" / RUN
    found.mkdir(parents=True)
    (found / PLAN).write_text((deployment.directory / "plan.toml").read_text())
    return found


def carry_out(deployment):
    """Send a process for the run, and be it."""
    with held(deployment.directory / "runs" / RUN) as is_free:
        assert is_free
        sending = give_order(deployment.directory / "runs" / RUN, {"seed": None, "declined": ["birch"]})
    return run_process.main([str(deployment.directory), RUN, sending])


def told(directory):
    return [json.loads(line)["event"] for line in (directory / "events.jsonl").read_text().splitlines()]


def ended_once_it_is_conducted(deployment):
    """Tell this process to end, as the runner tells a run's, once the run's ServerApp is at work."""

    def end():
        wait_until(
            lambda: conductor_of(deployment.directory) and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        )
        os.kill(os.getpid(), signal.SIGTERM)

    teller = threading.Thread(target=end)
    teller.start()
    try:
        return carry_out(deployment)
    finally:
        teller.join()


def test_a_run_is_begun_over_the_superlink_for_those_who_did_not_decline(deployment, superlink, directory):
    assert carry_out(deployment) == 0
    assert superlink.started == [{"run-directory": str(directory), "attempt": 1}]
    run = RunFile.load(directory)
    assert (set(run.cards), set(run.supernodes), run.attempt) == ({"alder"}, {"alder"}, 1)
    assert told(directory) == ["run-started", "run-finished"]


def test_a_run_that_is_told_to_end_is_stopped_and_taken_up_by_another_attempt(deployment, superlink, directory):
    superlink.finishes = False
    assert ended_once_it_is_conducted(deployment) == INTERRUPTED
    assert conductor_of(deployment.directory) is None
    assert told(directory) == ["run-started"]  # a suspension is no failure
    superlink.finishes = True
    assert carry_out(deployment) == 0
    assert RunFile.load(directory).attempt == 2
    assert told(directory) == ["run-started", "run-started", "run-finished"]


def test_a_run_whose_follower_is_gone_is_its_serverapps_process_and_is_joined(deployment, superlink, directory):
    superlink.finishes = False
    with superlink as control:
        run = deployed_process.start_deployed_run(
            deployment, control, plan=directory / PLAN, out=None, seed=None, run_id=RUN
        )
        control.start_run({"run-directory": run.directory, "attempt": 1})
    conductor = conductor_of(deployment.directory)
    assert process_of(directory) == conductor.process_id
    assert process_of(directory.with_name("another")) is None
    assert ended_once_it_is_conducted(deployment) == INTERRUPTED
    assert len(superlink.started) == 1
    assert process_of(directory) is None


def test_another_run_that_goes_on_is_waited_for(deployment, superlink, directory):
    with occupied(deployment.directory):
        assert carry_out(deployment) == BUSY
    assert not superlink.started
    assert not (directory / "events.jsonl").exists()


def test_a_superlink_that_does_not_answer_fails_the_run_with_its_own_words(deployment, superlink, directory):
    superlink.answers = False
    assert carry_out(deployment) == 1
    (failed,) = (json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines())
    assert failed["error"]["code"] == "deployment-fault"
    superlink.answers = True
    assert carry_out(deployment) == 0
    assert RunFile.load(directory).attempt == 1

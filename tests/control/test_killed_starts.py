"""A control plane that is killed while it starts a run: the run is begun all the same, and never twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from control_plane import COORDINATOR, wait_until

from ringfence_server.control.plane import open_plane
from ringfence_server.control.views import RunState
from ringfence_server.run_file import RunFile

SUPPORT = Path(__file__).parents[1] / "support"
# Each moment by the code that makes a control plane kill itself there. `sent` says which process it started, if any.
MOMENTS = {
    "the order is given": "arm(Fault('ringfence_server.control.runner:give_order', 1, 'after'))",
    "the start is noted": "arm(Fault('ringfence_server.control.runner:_spawn', 1, 'before'))",
    "the process is sent": (
        "send = runner._spawn\n"
        "def send_and_die(arguments, log):\n"
        "    child = send(arguments, log)\n"
        "    os.kill(child.pid, signal.SIGSTOP)\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "runner._spawn = send_and_die\n"
    ),
}
STARTER = """
import os, signal, sys, threading
from pathlib import Path
from control_plane import COORDINATOR
from zygote import Fault, arm
from ringfence_server.control import runner
from ringfence_server.control.plane import open_plane
{moment}
plane = open_plane(Path(sys.argv[1]))
text = plane.runs.plans(COORDINATOR)[0].text
print(plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, text).id).run_id, flush=True)
plane.start()
threading.Event().wait()
"""


@pytest.fixture
def sent():
    """Processes that a test left behind."""
    found = []
    yield found
    for process in found:
        os.kill(process, signal.SIGKILL)


def killed_at(site, moment, sent):
    """Begin a run by a control plane that is killed at a moment; gives the run."""
    paths = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", STARTER.format(moment=MOMENTS[moment]), str(site)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    ) as process:
        run_id, *pids = process.stdout.read().split()
        assert process.wait() == -signal.SIGKILL
    sent += map(int, pids)
    return run_id


def begun(site, run_id):
    """How often a run was begun, as it says itself."""
    lines = (site / "runs" / run_id / "events.jsonl").read_text().splitlines()
    return sum(json.loads(line)["event"] == "run-started" for line in lines)


def until(plane, run_id, state):
    def reached():
        run = plane.runs.run(COORDINATOR, run_id)
        assert run.state not in {RunState.FAILED, RunState.REFUSED, RunState.INTERRUPTED}, run.error
        return run.state is state

    wait_until(reached)


def let_go_on(sent):
    """Let the process that the killed control plane sent go on, and wait for its end."""
    process = sent.pop()
    os.kill(process, signal.SIGCONT)
    wait_until(
        lambda: not Path(f"/proc/{process}/cmdline").exists() or not Path(f"/proc/{process}/cmdline").read_bytes()
    )


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_whose_start_was_cut_off_is_begun_once(site, moment, sent):
    run_id = killed_at(site, moment, sent)
    with_one_on_its_way = bool(sent)
    plane = open_plane(site)
    plane.start()
    try:
        until(plane, run_id, RunState.FINISHED)
        if with_one_on_its_way:
            let_go_on(sent)
        assert plane.runs.run(COORDINATOR, run_id).state is RunState.FINISHED
        assert (begun(site, run_id), RunFile.load(site / "runs" / run_id).attempt) == (1, 1)
        assert plane.evidence.status(COORDINATOR, run_id).state == "verified"
    finally:
        plane.close(end_runs=True)


def test_a_process_that_was_sent_by_a_killed_control_plane_carries_no_suspended_run_out(site, sent):
    run_id = killed_at(site, "the process is sent", sent)
    plane = open_plane(site)
    try:
        plane.runs.suspend(COORDINATOR, run_id, "not now")
        plane.start()
        until(plane, run_id, RunState.SUSPENDED)
        let_go_on(sent)
        assert not (site / "runs" / run_id / "events.jsonl").exists()
        plane.runs.resume(COORDINATOR, run_id)
        until(plane, run_id, RunState.FINISHED)
        assert begun(site, run_id) == 1
    finally:
        plane.close(end_runs=True)

"""What benchmarks say of other programs: whose CPU time is counted, what is ended with them, how ratios point."""

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUN_ONE = """
import os, sys
from pathlib import Path
from process_cost import run_measured
cost = run_measured(["sh", "-c", sys.argv[2]], environment=os.environ, log=Path(sys.argv[1]), timeout_seconds=60)
print(cost.exit_code)
"""

pytestmark = pytest.mark.skipif(
    not (sys.platform == "linux" and BENCHMARKS.is_dir()), reason="the benchmarks stand in a checkout and need Linux"
)


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def _run_one(log, shell):
    # In a process of its own: measuring makes a process the parent of whatever loses its own.
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    said = subprocess.run(
        [sys.executable, "-c", RUN_ONE, log, shell], env=environment, check=True, capture_output=True, text=True
    )
    return int(said.stdout)


def test_what_a_measured_command_leaves_behind_is_ended_with_it(tmp_path):
    log = tmp_path / "log"
    assert _run_one(log, "setsid sleep 600 & echo $!; exit 3") == 3
    assert not Path("/proc", log.read_text().strip()).exists()


def test_cpu_time_between_two_moments_follows_the_samples(load):
    cost = load("process_cost").ProcessCost(
        exit_code=0,
        started_at=10.0,
        wall_seconds=10.0,
        cpu_seconds=8.0,
        peak_resident_bytes=0,
        samples=((10.0, 0.0), (14.0, 2.0), (20.0, 8.0)),
    )
    assert cost.cpu_seconds_between(12.0, 17.0) == 4.0
    assert cost.cpu_seconds_between(0.0, 99.0) == cost.cpu_seconds


def test_a_ratio_above_one_says_that_ringfence_did_better(load):
    peers = load("peers")

    def measured(contestant, *, rate, first, cpu):
        return peers.Measurement(
            contestant=contestant,
            repetition=1,
            rounds=2,
            load_before=0.0,
            first_round=first,
            steady_rate=rate,
            cpu_per_client_round=cpu,
            whole_cpu_per_client_round=cpu,
            wall=1.0,
            peak_resident_bytes=0,
            accuracy=0.5,
            enrolling=None,
            parts=None,
            versions={},
        )

    ours = measured("ringfence", rate=100.0, first=4.0, cpu=0.25)
    assert peers.compare([measured("flower", rate=10.0, first=20.0, cpu=1.0), ours]) == {
        "flower": {"steady_rate": [10.0], "first_round": [5.0], "cpu": [4.0]}
    }


def test_a_deployments_rounds_are_compared_within_a_turn(load):
    rounds = load("deployment_rounds")

    def turn(contestant, repetition, *seconds):
        return rounds.Segment(
            contestant=contestant,
            repetition=repetition,
            load=0.0,
            to_first_round=0.0,
            rounds=list(seconds),
            up=0.0,
            down=0.0,
            waited=[],
            cpu={},
            memory={},
            peak={},
        )

    segments = [
        turn(rounds.RINGFENCE, 1, 6.0, 6.0, 9.0),
        turn(rounds.NOOP, 1, 4.0, 4.0, 4.0),
        turn(rounds.RINGFENCE, 2, 3.0),
        turn(rounds.NOOP, 2, 6.0),
        turn(rounds.RINGFENCE, 3, 1.0),
    ]
    assert rounds.ratios(segments, rounds.NOOP) == [1.5, 0.5]
    assert rounds.parameters_of((3, 2, 1)) == 3 * 2 + 2 + 2 * 1 + 1


def test_what_passes_through_is_counted_by_direction_and_moment(load, tmp_path):
    passing = load("pass_through")
    path = tmp_path / "door.sock"
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()
        with passing.PassThroughs() as counters:
            passed = counters.before_socket(path)
            began = time.time()
            with socket.socket(socket.AF_UNIX) as knock:  # as a relay does, to see whether somebody listens
                knock.connect(str(path))
            door.accept()[0].close()
            with socket.socket(socket.AF_UNIX) as asker:
                asker.connect(str(path))
                asker.sendall(b"12345")
                answerer, _ = door.accept()
                with answerer:
                    assert answerer.recv(5) == b"12345"
                    time.sleep(0.1)
                    answerer.sendall(b"12")
                assert asker.recv(2) == b"12"
                assert asker.recv(1) == b""
            ended = time.time()
    assert passing.bytes_between(passed, began, ended) == (5, 2)
    assert passing.bytes_between(passed, began - 1, began) == (0, 0)
    (seconds,) = passing.waited(passed, began, ended)
    assert 0.1 <= seconds <= ended - began


def test_cpu_time_of_a_process_that_ended_is_its_parents_to_tell(load):
    parts = load("process_parts")
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    with subprocess.Popen(
        ["sh", "-c", f"sleep 1; {sys.executable} -c '{burn}'; sleep 600"], start_new_session=True
    ) as parent:
        began = time.time()
        watch = parts.Watch(
            {parent.pid: "somebody"},
            part_of=lambda line: "shell" if line.startswith("sh ") else None,
            children_of={"shell": "short"},
        )
        try:
            time.sleep(0.5)
            until = time.time() + 60
            while time.time() < until and watch.seconds_between(began, time.time()).get(("somebody", "short"), 0) < 0.4:
                time.sleep(0.2)
        finally:
            watch.close()
            os.killpg(parent.pid, signal.SIGKILL)
    spent = watch.seconds_between(began, time.time())
    assert spent["somebody", "short"] >= 0.4
    assert spent["somebody", "shell"] < 0.2
    assert max(watch.memory["somebody", "shell"].resident) > 0.1

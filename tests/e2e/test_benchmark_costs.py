"""What benchmarks say of other programs: whose CPU time is counted, what is ended with them, how ratios point."""

import importlib
import os
import subprocess
import sys
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

"""The command and the run's own process: each may be killed or interrupted, and two runs never share a directory."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_command import PATIENCE_SECONDS, command, is_alive, wait_for, worker_of
from tiny_scenario import write_scenario

from ringfence_policy.errors import DocumentInvalid, ScenarioBusy
from ringfence_server.cli_run import run_directory
from ringfence_server.interruption import termination_interrupts
from ringfence_server.occupation import name_occupant, occupied
from ringfence_server.worker_process import worker_process

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

ROUNDS = 12


def run_of(directory: Path) -> Path | None:
    return next((path.parent for path in (directory / "runs").glob("*/run.json")), None)


def has_committed(directory: Path) -> bool:
    run = run_of(directory)
    return run is not None and (run / "checkpoint.json").exists()


def is_finished(directory: Path) -> bool:
    run = run_of(directory)
    return run is not None and bool(json.loads((run / "run.json").read_text())["is_finished"])


def summary_of(directory: Path) -> dict[str, Any]:
    run = run_of(directory)
    assert run is not None
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def test_a_run_outlives_its_killed_command_and_turns_a_second_run_away_until_it_ends(tmp_path: Path) -> None:
    directory = write_scenario(tmp_path / "trees", plan={"training.rounds": ROUNDS}).directory
    with command(directory) as first:
        wait_for(lambda: has_committed(directory))
        first.kill()
        first.communicate()
    worker = worker_of(directory)
    assert is_alive(worker)
    for resume in (False, True):
        with pytest.raises(ScenarioBusy, match=f"process {worker}"):
            run_directory(directory, plan=None, out=None, seed=None, resume=resume, as_json=True)
    wait_for(lambda: is_finished(directory) and not is_alive(worker))
    summary = summary_of(directory)
    assert summary["evidence"]["verified"] is True
    assert len(summary["rounds"]) == ROUNDS


def test_a_run_that_cannot_be_prepared_leaves_no_process_and_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_scenario(tmp_path / "trees").directory
    workers = []

    def refuse(*_: object, **__: object) -> None:
        workers.append(worker_of(directory))
        assert is_alive(workers[0])
        raise DocumentInvalid("the plan does not fit")

    monkeypatch.setattr("ringfence_server.cli_run.forecast", refuse)
    with pytest.raises(DocumentInvalid):
        run_directory(directory, plan=None, out=None, seed=None, resume=False, as_json=True)
    assert not is_alive(workers[0])
    assert [path.name for path in (directory / "runs").iterdir()] == [".lock"]


def test_a_command_that_is_ended_while_it_prepares_a_run_leaves_no_directory_without_one(tmp_path: Path) -> None:
    directory = write_scenario(tmp_path / "trees").directory
    with command(directory) as first:
        wait_for(lambda: any(directory.glob("runs/*/worker.log")))
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=PATIENCE_SECONDS)
    assert first.returncode != 0
    assert not is_alive(worker_of(directory))
    assert [log.parent for log in directory.glob("runs/*/worker.log") if not (log.parent / "run.json").exists()] == []


def test_an_interruption_in_the_instant_when_the_process_starts_leaves_neither_it_nor_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def interrupted(lock: int, process_id: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        name_occupant(lock, process_id)
        started.append(process_id)

    monkeypatch.setattr("ringfence_server.worker_process.name_occupant", interrupted)
    run = tmp_path / "runs" / "one"
    with (
        pytest.raises(KeyboardInterrupt),
        occupied(tmp_path) as lock,
        termination_interrupts(),
        worker_process(run, lock, processes=1),
    ):
        pytest.fail("it went on")
    assert started == [worker_of(tmp_path)]
    assert not is_alive(started[0])
    assert not run.exists()


def test_a_process_that_is_never_told_to_begin_does_nothing(tmp_path: Path) -> None:
    """Its command was killed while it prepared the run."""
    done = subprocess.run(
        [sys.executable, "-m", "ringfence_server.worker", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert {path.name for path in tmp_path.iterdir()} <= {"worker.log"}


@pytest.mark.parametrize("interruption", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_its_run_and_says_how_to_take_it_up_again(
    interruption: signal.Signals, tmp_path: Path
) -> None:
    directory = write_scenario(tmp_path / "trees", plan={"training.rounds": ROUNDS}).directory
    with command(directory) as first:
        wait_for(lambda: has_committed(directory))
        worker = worker_of(directory)
        first.send_signal(interruption)
        said, _ = first.communicate(timeout=PATIENCE_SECONDS)
    assert first.returncode == 1
    assert "--resume" in json.loads(said)["error"]["next_step"]
    assert not is_alive(worker)
    assert not is_finished(directory)
    if interruption is signal.SIGTERM:
        return
    with command(directory, "--resume") as second:
        said, _ = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 0
    summary = json.loads(said)
    assert summary == summary_of(directory)
    assert summary["status"] == "completed"
    assert summary["evidence"]["verified"] is True
    assert [one["round"] for one in summary["rounds"]] == list(range(1, ROUNDS + 1))
    assert {one["attempt"] for one in summary["rounds"]} == {1, 2}

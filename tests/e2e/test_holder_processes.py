"""Simulated data holders shared out over processes: the same run as in one, and an end of any of them loses nothing."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from run_command import PATIENCE_SECONDS, command, is_alive, wait_for, worker_of
from tiny_scenario import HOLDERS, TinyScenario, write_scenario

from ringfence_policy.database import Database
from ringfence_policy.errors import UsageError
from ringfence_policy.ledger import PrivacyLedger
from ringfence_server import worker_process
from ringfence_server.cli_run import run_directory

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def scenario_at(directory: Path, *, rounds: int = 3) -> TinyScenario:
    return write_scenario(
        directory,
        holders=HOLDERS,
        plan={"training.rounds": rounds, "cohort.round_seconds": 6},
        policies={name: {"data.rehearsal": "allowed"} for name in HOLDERS},
    )


def said_by(scenario: TinyScenario, *options: str) -> tuple[int, dict[str, Any]]:
    with command(scenario.directory, *options) as process:
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, json.loads(said)


def run_of(scenario: TinyScenario) -> Path:
    (path,) = (scenario.directory / "runs").glob("*/run.json")
    return path.parent


def has_committed(scenario: TinyScenario) -> bool:
    return any((scenario.directory / "runs").glob("*/checkpoint.json"))


def children_of(process_id: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]


def meters_of(scenario: TinyScenario) -> list[Any]:
    found = []
    for name in HOLDERS:
        with Database.open(scenario.holder(name) / "state" / "ledger.db") as database:
            found.append(PrivacyLedger(database).meters())
    return found


def test_a_run_over_three_processes_is_the_run_over_one(tmp_path: Path) -> None:
    one, three = scenario_at(tmp_path / "one" / "trees"), scenario_at(tmp_path / "three" / "trees")
    codes, summaries = zip(
        said_by(one, "--seed", "7", "--workers", "1"), said_by(three, "--seed", "7", "--workers", "3"), strict=True
    )
    assert codes == (0, 0)
    for summary in summaries:
        assert summary["evidence"]["verified"] is True
        assert [sorted(each["cohort"]) for each in summary["rounds"]] == [list(HOLDERS)] * 3
    models = [(run_of(scenario) / "model.safetensors").read_bytes() for scenario in (one, three)]
    assert models[0] == models[1]
    assert meters_of(one) == meters_of(three)


def test_where_a_process_of_holders_ends_the_run_can_be_taken_up_again(tmp_path: Path) -> None:
    scenario = scenario_at(tmp_path / "trees", rounds=12)
    with command(scenario.directory, "--workers", "2") as first:
        wait_for(lambda: has_committed(scenario))
        worker = worker_of(scenario.directory)
        (other,) = children_of(worker)
        os.kill(other, signal.SIGKILL)
        said, _ = first.communicate(timeout=PATIENCE_SECONDS)
    # The two that are left trained on alone. Whose updates are in the model has to say that it may be released.
    assert first.returncode == 1
    error = json.loads(said)["error"]
    assert "--resume" in error["next_step"]
    assert not is_alive(worker)
    code, summary = said_by(scenario, "--resume", "--workers", "2")
    assert code == 0
    assert summary["evidence"]["verified"] is True
    cohorts = [sorted(each["cohort"]) for each in summary["rounds"]]
    assert cohorts[0] == list(HOLDERS)
    assert cohorts[-1] == list(HOLDERS[::2])


def test_processes_of_holders_end_with_a_killed_run_and_leave_nothing_half_done(tmp_path: Path) -> None:
    scenario = scenario_at(tmp_path / "trees", rounds=12)
    with command(scenario.directory, "--workers", "3") as first:
        wait_for(lambda: has_committed(scenario))
        worker = worker_of(scenario.directory)
        others = children_of(worker)
        os.kill(worker, signal.SIGKILL)
        first.communicate(timeout=PATIENCE_SECONDS)
    assert first.returncode == 1
    assert len(others) == 2
    wait_for(lambda: not any(map(is_alive, others)))
    code, summary = said_by(scenario, "--resume", "--workers", "2")
    assert code == 0
    assert summary["evidence"]["verified"] is True
    assert [each["round"] for each in summary["rounds"]] == list(range(1, 13))


def test_how_many_processes_follows_cores_and_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    counts = {holders: worker_process.processes_for(holders) for holders in (0, 3, 49, 50, 99, 100, 1000)}
    assert counts == {0: 1, 3: 1, 49: 1, 50: 2, 99: 3, 100: 4, 1000: 4}


def test_a_deployment_is_told_that_its_holders_have_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringfence_server.cli_run.is_deployment", lambda _: True)
    with pytest.raises(UsageError, match="processes of their own"):
        run_directory(tmp_path, plan=None, out=None, seed=None, resume=False, as_json=True, processes=2)

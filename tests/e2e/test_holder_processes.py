"""Simulated data holders shared out over processes: the same run as in one, and an end of any of them loses nothing."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, MessageType
from run_command import PATIENCE_SECONDS, command, is_alive, wait_for, worker_of
from tiny_scenario import HOLDERS, TinyScenario, write_scenario

from ringfence_client import clientapp
from ringfence_policy.database import Database
from ringfence_policy.errors import RunFailed, UsageError
from ringfence_policy.ledger import PrivacyLedger
from ringfence_server import flower_adapter, holder_processes, worker_process
from ringfence_server.cli_run import run_directory
from ringfence_server.conduct import conduct
from ringfence_server.embedded_grid import EmbeddedGrid, EmbeddedNode
from ringfence_server.run_file import start_run
from ringfence_server.scenario import load_scenario

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def scenario_at(directory: Path, *, rounds: int = 3) -> TinyScenario:
    return write_scenario(
        directory,
        holders=HOLDERS,
        plan={"training.rounds": rounds},
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


def has_opened_a_round(scenario: TinyScenario) -> bool:
    return any("round-opened" in path.read_text() for path in (scenario.directory / "runs").glob("*/events.jsonl"))


def seconds_of(process_id: int) -> float:
    """Its CPU time so far."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
    assert first.returncode == 1
    error = json.loads(said)["error"]
    assert error["summary"] == "a process of data holders was lost"
    assert "--resume" in error["next_step"]
    assert not is_alive(worker)
    code, summary = said_by(scenario, "--resume", "--workers", "2")
    assert code == 0
    assert summary["evidence"]["verified"] is True
    assert [sorted(each["cohort"]) for each in summary["rounds"]] == [list(HOLDERS)] * 12


def test_where_an_answer_cannot_be_read_the_run_ends_and_can_be_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what was said was read: the rest would be taken for the next round's answers."""
    scenario = scenario_at(tmp_path / "trees")
    run = start_run(load_scenario(scenario.directory), out=None, seed=7)
    root = (run.root / "coordinator" / "root.jwk").read_text()
    nodes = [
        EmbeddedNode(
            node_id, card.holder_id, {"holder-dir": run.holder_directories[card.holder_id], "coordinator-root": root}
        )
        for node_id, card in run.nodes().items()
    ]
    unreadable: list[Message] = []

    def from_bytes(data: bytes) -> Message:
        message = flower_adapter.from_bytes(data)
        if not unreadable and message.metadata.message_type == MessageType.TRAIN:
            unreadable.append(message)
            raise MemoryError
        return message

    monkeypatch.setattr(holder_processes, "from_bytes", from_bytes)
    with holder_processes.holder_processes(3) as processes:
        processes.take_in(nodes, flower_run_id=run.flower_run_id)
        grid = EmbeddedGrid(nodes=nodes, cohort_app=processes, flower_run_id=run.flower_run_id)
        with pytest.raises(RunFailed, match="was lost"):
            conduct(grid, run)
    clientapp.close_nodes()
    code, summary = said_by(scenario, "--resume", "--workers", "2")
    assert code == 0
    assert summary["evidence"]["verified"] is True
    assert [sorted(each["cohort"]) for each in summary["rounds"]] == [list(HOLDERS)] * 3


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_nobody_trains_on_when_a_run_was_stopped(tmp_path: Path, kind: signal.Signals) -> None:
    """One training takes longer than the test waits, and the run is taken up again at once."""
    scenario = write_scenario(
        tmp_path / "trees",
        rows=400,
        plan={
            "training.rounds": 1,
            "model.kind": "mlp",
            "model.hidden": [512, 512],
            "training.steps": 30_000,
            "privacy.noise_multiplier_max": "500",
            "cohort.round_seconds": 600,
        },
        policies={name: {"privacy.epsilon": "4"} for name in HOLDERS[:3]},
    )
    with command(scenario.directory, "--workers", "2") as first:
        wait_for(lambda: has_opened_a_round(scenario))
        worker = worker_of(scenario.directory)
        (other,) = children_of(worker)
        began = seconds_of(other)
        wait_for(lambda: seconds_of(other) > began + 1)
        # Ctrl-C in a terminal reaches the command, which stops the run; the run's own process can also be killed.
        os.kill(first.pid if kind == signal.SIGINT else worker, kind)
        first.communicate(timeout=PATIENCE_SECONDS)
        wait_for(lambda: not is_alive(worker) and not is_alive(other))
    with command(scenario.directory, "--resume", "--workers", "2") as second:
        wait_for(lambda: second.poll() is not None or worker_of(scenario.directory) != worker)
        assert second.poll() is None, second.communicate()
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=PATIENCE_SECONDS)


def test_how_many_processes_follows_cores_and_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 4, 6}, raising=False)
    counts = {holders: worker_process.processes_for(holders) for holders in (0, 3, 49, 50, 99, 100, 1000)}
    assert counts == {0: 1, 3: 1, 49: 1, 50: 2, 99: 3, 100: 4, 1000: 4}


def test_a_deployment_is_told_that_its_holders_have_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringfence_server.cli_run.is_deployment", lambda _: True)
    with pytest.raises(UsageError, match="processes of their own"):
        run_directory(tmp_path, plan=None, out=None, seed=None, resume=False, as_json=True, processes=2)

"""A deployment with every process real: the same run as in one process, and what a kill in the middle of it costs."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tiny_scenario import write_scenario

from deployment import LiveDeployment, wait_until
from ringfence_policy.database import Database
from ringfence_policy.ledger import PrivacyLedger
from ringfence_policy.verify import read_roots, verify_bundle

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("deployment"), pytest.mark.timeout(600)]

HOLDERS = ("alder", "birch")
SEED = ("--seed", "7")


@pytest.fixture
def live(tmp_path):
    """A factory of deployments whose holders are registered, and all or some of them connected."""
    opened = []

    def start(*connected, **plan):
        scenario = write_scenario(tmp_path / "scenario", holders=HOLDERS, plan=plan)
        shutil.copytree(scenario.directory, tmp_path / "embedded")
        deployment = LiveDeployment(scenario, tmp_path / "deployment")
        opened.append(deployment)
        for holder in HOLDERS:
            deployment.register(holder)
        deployment.start_coordinator()
        deployment.start_holders(*connected)
        return deployment

    yield start
    for deployment in opened:
        deployment.close()


def spent(directory: Path) -> dict[str, int]:
    """What each holder's ledger says was spent of its dataset's epsilon, reservations included, in millionths."""
    found = {}
    for holder in HOLDERS:
        with Database.open(directory / "holders" / holder / "state" / "ledger.db", must_exist=True) as database:
            meters = PrivacyLedger(database).meters()
            found[holder] = max(one.committed + one.reserved for one in meters if one.quantity == "epsilon")
    return found


def embedded(live: LiveDeployment, tmp_path: Path) -> Path:
    """The same run in one process, over an untouched copy of the holders; gives where its results are."""
    code, summary = live.try_command("run", str(tmp_path / "embedded"), *SEED)
    assert code == 0, summary
    return tmp_path / "embedded" / "runs" / summary["run_id"]


def assert_same(ours: Path, theirs: Path) -> None:
    """Both runs released the same model."""
    one, other = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    assert set(one) == set(other)
    for name, array in one.items():
        assert array == pytest.approx(other[name], abs=1e-6)


def listening() -> set[tuple[str, int]]:
    """Every TCP address of this machine that something listens on (IPv4), as the kernel says it."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state = line.split()[:4]
        if state == "0A":
            address, port = local.split(":")
            found.add((".".join(str(byte) for byte in reversed(bytes.fromhex(address))), int(port, 16)))
    return found


def below(process_id: int) -> set[int]:
    """Every process below one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, wanted = set(), {process_id}
    while wanted:
        wanted = {one for one, parent in parents.items() if parent in wanted}
        found |= wanted
    return found


def alive(process_ids: set[int]) -> set[int]:
    """Those of the processes that still run."""
    found = set()
    for one in process_ids:
        try:
            state = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        found |= {one} if state not in "ZX" else set()
    return found


def test_a_run_over_a_superlink_gives_the_model_and_the_ledgers_of_the_same_run_in_one_process(live, tmp_path):
    deployment = live(**{"training.rounds": 2})
    assert {(address, port) for address, port in listening() if port == deployment.superlink_port} == {
        ("127.0.0.1", deployment.superlink_port)
    }
    code = deployment.start_run(*SEED).wait()
    summary = json.loads(deployment.run.log.read_text())
    assert code == 0, summary
    assert summary["evidence"]["verified"]
    assert summary["rehearsal"]
    assert "No comparison lines" in summary["references_note"]
    assert [one["cohort"] for one in summary["rounds"]] == [list(HOLDERS)] * 2
    result = deployment.newest_run
    assert verify_bundle(result / "evidence.zip", read_roots(result / "roots.json")).passed
    assert_same(result, embedded(deployment, tmp_path))
    assert spent(deployment.scenario.directory) == spent(tmp_path / "embedded")

    deployment.command("coordinator", "remove", str(deployment.directory), "birch")
    birch = deployment.holders["birch"]
    wait_until("the SuperNode of a holder that was removed ends", lambda: birch.count("supernode-ended"), seconds=60)
    assert deployment.states() == {"alder": "connected"}

    started = below(deployment.coordinator.process_id)
    assert deployment.superlink_process in started
    assert deployment.coordinator.end() == 0
    wait_until("everything below the coordinator ends", lambda: not alive(started), seconds=20)
    assert not [port for _, port in listening() if port in (deployment.port, deployment.superlink_port)]


@pytest.mark.faults
def test_a_run_whose_serverapp_and_then_whose_superlink_is_killed_is_finished_by_resuming(live, tmp_path):
    deployment = live(**{"training.rounds": 3, "privacy.noise_multiplier_max": "8"})

    first = deployment.start_run(*SEED)
    deployment.wait_for("round-closed")
    os.kill(deployment.serverapp_process, signal.SIGKILL)
    assert first.wait() == 1
    failure = json.loads(first.log.read_text())["error"]
    assert failure["code"] == "run-failed"
    assert "--superlink" in failure["next_step"]
    assert "--resume" in failure["next_step"]

    second = deployment.start_run("--resume")
    deployment.wait_for("round-closed", times=2)
    ready = deployment.coordinator.log.read_text().count('"ready"')
    os.kill(deployment.superlink_process, signal.SIGKILL)
    assert second.wait() == 1
    assert json.loads(second.log.read_text())["error"]["code"] == "run-failed"
    wait_until(
        "the SuperLink is back", lambda: deployment.coordinator.log.read_text().count('"ready"') > ready, seconds=90
    )
    wait_until("the holders are back", lambda: set(deployment.states().values()) == {"connected"}, seconds=90)

    third = deployment.start_run("--resume")
    code = third.wait()
    summary = json.loads(third.log.read_text())
    assert code == 0, summary
    assert summary["evidence"]["verified"]
    assert sorted({one["round"] for one in summary["rounds"] if one["committed"]}) == [1, 2, 3]
    assert_same(deployment.newest_run, embedded(deployment, tmp_path))
    assert spent(deployment.scenario.directory) == spent(tmp_path / "embedded")


@pytest.mark.faults
def test_a_holder_that_was_never_connected_breaks_nothing_and_takes_part_from_the_round_after_it_joins(live):
    deployment = live("alder", **{"training.rounds": 3})
    assert deployment.states() == {"alder": "connected", "birch": "never connected"}
    run = deployment.start_run(*SEED)
    deployment.wait_for("round-opened", round=1)
    deployment.start_holders("birch")
    code = run.wait()
    summary = json.loads(run.log.read_text())
    assert code == 0, summary
    rounds = summary["rounds"]
    assert rounds[0]["cohort"] == ["alder"]
    assert [(one["holder"], one["clauses"]) for one in rounds[0]["refused"]] == [("birch", ["no-reply"])]
    assert rounds[-1]["cohort"] == list(HOLDERS)
    assert summary["evidence"]["verified"]


@pytest.mark.faults
def test_a_coordinator_that_is_killed_takes_its_superlink_with_it_and_starts_again(live):
    deployment = live(**{"training.rounds": 1})
    started = below(deployment.coordinator.process_id)
    deployment.coordinator.kill()
    wait_until("everything below the coordinator ends", lambda: not alive(started), seconds=30)
    deployment.start_coordinator()
    wait_until("the holders are back", lambda: set(deployment.states().values()) == {"connected"}, seconds=90)


def test_an_interrupted_run_leaves_no_process_and_says_how_it_goes_on(live):
    deployment = live(**{"training.rounds": 3})
    run = deployment.start_run(*SEED)
    deployment.wait_for("round-opened")
    process = deployment.serverapp_process
    assert run.end(signal.SIGINT) == 1
    # It conducts nothing any more by then; Python itself may still be ending.
    wait_until("its process is gone", lambda: not alive({process}), seconds=30)
    assert "--resume" in json.loads(run.log.read_text())["error"]["next_step"]

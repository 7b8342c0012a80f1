"""Budgets outlive runs, versions and policies; exact scores and rehearsals happen only where a policy says so."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_scenario import TinyScenario, write_scenario
from zygote import Zygote

from ringfence_client.home import HolderHome
from ringfence_client.officer import sign_policy
from ringfence_policy.bundle import read_bundle
from ringfence_policy.database import Database
from ringfence_policy.ledger import PrivacyLedger
from ringfence_policy.vocabulary import Action
from ringfence_server.governor import Governor

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("budgets")]

NAMES = ("alder", "birch")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as one:
        yield one


def scenario_at(
    directory: Path, *, plan: dict[str, object] | None = None, policy: dict[str, object] | None = None
) -> TinyScenario:
    """Two holders whose policies allow epsilon 2 on datasets that may spend 5."""
    return write_scenario(
        directory,
        holders=NAMES,
        plan={
            "training.rounds": 2,
            "privacy.noise_multiplier_max": "4",
            "evaluation.noise_multiplier": "20",
            **(plan or {}),
        },
        policies={name: {"privacy.epsilon": "2", **(policy or {})} for name in NAMES},
    )


def carry_out(zygote: Zygote, scenario: TinyScenario, *, seed: int | None = None) -> dict[str, Any]:
    run = zygote.start(scenario.directory, seed=seed)
    code = zygote.work(run)
    last: dict[str, Any] = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    summary = run / "summary.json"
    document: dict[str, Any] = json.loads(summary.read_text()) if summary.exists() else {}
    return {"code": code, "error": last.get("error"), "run": run, **document}


def resign(scenario: TinyScenario, holder_id: str, changes: dict[str, object]) -> None:
    scenario.write_policy(holder_id, changes)
    sign_policy(HolderHome(scenario.holder(holder_id)))


def spent(scenario: TinyScenario, holder_id: str) -> int:
    with Database.open(scenario.holder(holder_id) / "state" / "ledger.db", must_exist=True) as database:
        meters = PrivacyLedger(database).meters()
    return sum(one.committed for one in meters if (one.owner_kind, one.quantity) == ("dataset", "epsilon"))


def test_a_second_run_starts_from_what_the_first_one_spent_and_is_refused_where_it_does_not_fit(
    zygote: Zygote, tmp_path: Path
) -> None:
    scenario = scenario_at(tmp_path / "trees")
    first = carry_out(zygote, scenario)
    assert first["code"] == 0
    assert first["evidence"]["verified"] is True
    before = spent(scenario, "alder")
    assert 1_900_000 < before <= 2_000_000
    second = carry_out(zygote, scenario)
    assert second["code"] == 3
    assert second["error"]["code"] == "run-refused"
    assert "epsilon" in second["error"]["got"]
    assert spent(scenario, "alder") == before

    # A higher cap, signed by the data officer under the next version, buys the difference and no more.
    for name in NAMES:
        resign(scenario, name, {"privacy.epsilon": "3", "policy.version": 2})
    third = carry_out(zygote, scenario)
    assert third["code"] == 0
    assert third["evidence"]["verified"] is True
    for name in NAMES:
        assert third["holders"][name]["epsilon_at_start"] == pytest.approx(before / 1e6, abs=0.1)
        assert third["holders"][name]["epsilon"] <= 3


def test_one_added_record_makes_a_new_version_that_inherits_what_was_spent(zygote: Zygote, tmp_path: Path) -> None:
    scenario = scenario_at(tmp_path / "trees", policy={"privacy.epsilon": "3"})
    assert carry_out(zygote, scenario)["code"] == 0
    before = spent(scenario, "alder")
    with (scenario.holder("alder") / "data.csv").open("a") as data:
        data.write("4.50,7,wet,1\n")
    again = carry_out(zygote, scenario)
    assert spent(scenario, "alder") == before > 0
    assert again["code"] == 3


def test_a_second_policy_on_the_same_dataset_shares_the_datasets_budget(zygote: Zygote, tmp_path: Path) -> None:
    scenario = scenario_at(tmp_path / "trees", policy={"privacy.epsilon": "3"})
    assert carry_out(zygote, scenario)["code"] == 0
    before = spent(scenario, "alder")
    resign(scenario, "alder", {"policy.id": "alder-second-terms", "privacy.epsilon": "4"})
    second = carry_out(zygote, scenario)
    assert second["code"] == 0
    assert second["evidence"]["verified"] is True
    assert second["holders"]["alder"]["epsilon_at_start"] == before / 1e6
    assert second["holders"]["alder"]["policy"] == "alder-second-terms@1"
    # The new policy's own meter began at zero and allowed 4; the dataset's cap of 5 held over both.
    assert before < spent(scenario, "alder") <= 5_000_000


def test_a_private_evaluation_is_charged_once_and_its_scores_are_never_exact(zygote: Zygote, tmp_path: Path) -> None:
    scenario = scenario_at(
        tmp_path / "trees", policy={"privacy.evaluation": "private"}, plan={"evaluation.every_round": True}
    )
    summary = carry_out(zygote, scenario)
    assert summary["code"] == 0
    assert summary["evidence"]["verified"] is True
    assert summary["holders"]["alder"]["evaluation"] == "private"
    with Database.open(scenario.holder("alder") / "state" / "ledger.db", must_exist=True) as database:
        holds = PrivacyLedger(database).holds(summary["run_id"])
    assert [hold.action for hold in holds] == [Action.TRAIN, Action.TRAIN, Action.EVALUATE]
    # In between, a measure would be charged every round, so nothing was measured there.
    assert [one["metrics"] for one in summary["rounds"]] == [None, None]
    assert summary["metrics"]["federated_private"]["accuracy"] is not None
    for record in holder_records(summary["run"] / "evidence.zip", "alder"):
        assert record["kind"] != "evaluated" or record["mechanism"] is not None


def test_a_policy_that_allows_no_evaluation_gives_no_scores_at_all(zygote: Zygote, tmp_path: Path) -> None:
    scenario = scenario_at(tmp_path / "trees", policy={"privacy.evaluation": "none"})
    summary = carry_out(zygote, scenario)
    assert summary["code"] == 0
    assert summary["evidence"]["verified"] is True
    assert summary["metrics"]["federated_private"] is None
    for name in NAMES:
        kinds = {record["kind"] for record in holder_records(summary["run"] / "evidence.zip", name)}
        assert "evaluated" not in kinds


def test_a_rehearsal_repeats_itself_and_says_everywhere_that_it_is_not_private(zygote: Zygote, tmp_path: Path) -> None:
    models = []
    for name in ("one", "two"):
        scenario = scenario_at(tmp_path / name)
        summary = carry_out(zygote, scenario, seed=11)
        assert summary["code"] == 0
        assert (summary["rehearsal"], summary["private"]) == (True, False)
        assert summary["privacy"]["noise_source"] == "seeded"
        checks = {check["name"]: check["detail"] for check in summary["evidence"]["checks"]}
        assert "NOT PRIVATE" in checks["rehearsal"]
        models.append((summary["run"] / "model.safetensors").read_bytes())
    assert models[0] == models[1]
    real = carry_out(zygote, scenario_at(tmp_path / "three"))
    assert (real["rehearsal"], real["private"], real["privacy"]["noise_source"]) == (False, True, "csprng")
    assert (real["run"] / "model.safetensors").read_bytes() != models[0]


def test_a_rehearsal_is_refused_by_a_policy_that_forbids_it(zygote: Zygote, tmp_path: Path) -> None:
    scenario = scenario_at(tmp_path / "trees", policy={"data.rehearsal": "forbidden"})
    refused = carry_out(zygote, scenario, seed=11)
    assert refused["code"] == 3
    assert "rehearsal" in refused["error"]["got"]
    assert spent(scenario, "alder") == 0


def test_the_claims_in_the_evidence_are_the_ledgers_own_figures(zygote: Zygote, tmp_path: Path) -> None:
    scenario = scenario_at(tmp_path / "trees")
    summary = carry_out(zygote, scenario)
    claims = json.loads(read_bundle(summary["run"] / "evidence.zip")["claims.json"])
    for name in NAMES:
        assert claims["holders"][name]["epsilon_micro"] == spent(scenario, name)
        assert claims["holders"][name]["rounds"] == summary["holders"][name]["rounds"] == 2
        assert summary["holders"][name]["epsilon"] == spent(scenario, name) / 1e6
        assert summary["holders"][name]["delta"] == 1e-5


def holder_records(bundle: Path, holder_id: str) -> list[dict[str, Any]]:
    lines = read_bundle(bundle)[f"holders/{holder_id}/log.jsonl"].splitlines()
    return [json.loads(line) for line in lines]


def test_a_holder_that_is_shown_the_plan_again_in_a_later_round_says_what_is_spent(tiny_run: Any) -> None:
    """As one that was away when a run was taken up again. What it sent in round 1 has left, and is no round to come."""
    run = tiny_run(seed=11)
    run.train(rounds=2)
    run.governor = Governor(
        coordinator=run.coordinator, cards=run.file.nodes(), plan=run.plan, plan_token=run.file.plan_token,
        run_id=run.file.run_id, attempt=2, seed=11, poll_seconds=0.02,
    )  # fmt: skip
    run.governor.propose(run.grid)
    shown = run.governor.views["alder"].standing
    assert (shown.rounds_used, shown.rounds_left) == (2, 1)
    run.governor.mechanisms.pop("alder")
    run.governor.offer(run.grid, 3)
    assert run.governor.views["alder"].standing == shown

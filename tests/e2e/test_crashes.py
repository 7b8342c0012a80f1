"""Kill -9 of a run's process at every step: nothing that left a holder is forgotten, and the run can be finished.

Each line of the matrix is one real worker process that kills itself at one place, and a second one that takes the run
up again. In between, the holders' ledgers and logs are opened and held against what the coordinator has. All lines run
as rehearsals (seeded noise), so that the model at the end can be held, bit for bit, against an uninterrupted run's.

With `-s` the matrix is printed as it is measured; docs/crashes.md holds it.
"""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tiny_scenario import TinyScenario, write_scenario
from zygote import Fault, Zygote

from ringfence_policy import merkle
from ringfence_policy.database import Database
from ringfence_policy.evidence_log import EvidenceLog
from ringfence_policy.ledger import Hold, HoldState, Meter, PrivacyLedger
from ringfence_policy.vocabulary import Action

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("crashes")]

ROUNDS = 3
NAMES = ("alder", "birch")
HOLDERS = len(NAMES)
KILLED = -signal.SIGKILL
LEFT = {HoldState.SENDING, HoldState.COMMITTED}

_NODE = "ringfence_client.node:HolderNode"
_ENFORCEMENT = "ringfence_client.enforcement"
_LEDGER = "ringfence_policy.ledger:PrivacyLedger"
_CHECKPOINTS = "ringfence_server.checkpoint:Checkpoints"
_OUTBOX = "ringfence_client.outbox:Outbox.keep"
_COHORT = "ringfence_client.cohort_trainer"
_CONDUCTOR = "ringfence_server.conduct:_Conductor"

# Before round 1 the trainer is checked once for each mechanism, and the two holders' differ: so many calls come first.
CHECK_TRAININGS = 3 * HOLDERS
CHECK_DRAWS = 4 * HOLDERS
# A call number counts over all holders: with two of them, calls 1 and 2 are the first round's, 3 and 4 the second's.
MATRIX = {
    "before a holder is shown the plan": Fault(f"{_NODE}.propose", 2),
    "plan recorded, terms not yet kept": Fault("ringfence_client.run_terms:RunTerms.save", 2),
    "terms kept, before the first record of the run": Fault(f"{_CHECKPOINTS}.save_model", 1),
    "first model kept, before the first record of the run": Fault(f"{_CHECKPOINTS}.save_model", 1, "after"),
    "in the check of the trainer, before round 1": Fault(f"{_COHORT}:_Training.next_steps", CHECK_TRAININGS),
    "before reserve, round 1": Fault(f"{_ENFORCEMENT}:_reserve", 2),
    "before reserve, round 2": Fault(f"{_ENFORCEMENT}:_reserve", 4),
    "in reserve, before its commit, round 1": Fault(f"{_LEDGER}.reserve", 2, "after"),
    "after reserve, round 1": Fault(f"{_ENFORCEMENT}:_reserve", 2, "after"),
    "after reserve, round 2": Fault(f"{_ENFORCEMENT}:_reserve", 4, "after"),
    "before training, round 1": Fault(f"{_COHORT}:CohortTrainer.train", HOLDERS + 1),
    "during training, round 1": Fault(f"{_COHORT}:_Training.next_steps", CHECK_TRAININGS + 2),
    "during training, round 2": Fault("ringfence_client.noise:RehearsalNoise.normal", CHECK_DRAWS + HOLDERS + 2),
    "after training, round 1": Fault(f"{_COHORT}:CohortTrainer.train", HOLDERS + 1, "after"),
    "before the outbox write, round 1": Fault(_OUTBOX, 2),
    "before the outbox write, round 2": Fault(_OUTBOX, 4),
    "after the outbox write, before sending, round 1": Fault(_OUTBOX, 2, "after"),
    "after the outbox write, before sending, round 2": Fault(_OUTBOX, 4, "after"),
    "sending marked, before its commit": Fault(f"{_LEDGER}.mark_sending", 4, "after"),
    "sending recorded, before its commit": Fault(f"{_ENFORCEMENT}:_mark_sent", 2, "after"),
    "after sending, before the reply, round 1": Fault("ringfence_client.clientapp:finish", 2, "after"),
    "after sending, before the reply, round 2": Fault("ringfence_client.clientapp:finish", 4, "after"),
    "after all replies, round 1": Fault("ringfence_server.governor:Governor.receive", 1),
    "after all replies, round 2": Fault("ringfence_server.governor:Governor.receive", 2),
    "replies recorded, before aggregation": Fault("ringfence_server.governor:Governor.receive", 2, "after"),
    "before the checkpoint, round 1": Fault(f"{_CHECKPOINTS}.save_round", 1),
    "before the checkpoint, round 2": Fault(f"{_CHECKPOINTS}.save_round", 2),
    "model written, before the checkpoint file": Fault(f"{_CHECKPOINTS}.save_model", 3, "after"),
    "strategy written, before the checkpoint file": Fault("ringfence_server.checkpoint:write_durably", 6, "after"),
    "after the checkpoint, before its record, round 1": Fault(f"{_CHECKPOINTS}.save_round", 1, "after"),
    "after the checkpoint, before its record, round 2": Fault(f"{_CHECKPOINTS}.save_round", 2, "after"),
    "after the record of round 2": Fault(f"{_CONDUCTOR}._log_committed", 2, "after"),
    "after the record of the last round": Fault(f"{_CONDUCTOR}._log_committed", ROUNDS, "after"),
    "after training ended, before the average": Fault(f"{_CHECKPOINTS}.save_trained", 1, "after"),
    "average recorded, before the final evaluation": Fault(f"{_CONDUCTOR}._evaluate", 1),
    "final evaluation reserved": Fault(f"{_ENFORCEMENT}:_reserve", ROUNDS * HOLDERS + 1, "after"),
    "final evaluation in the outbox": Fault(_OUTBOX, ROUNDS * HOLDERS + 1, "after"),
    "final evaluation answered": Fault(f"{_CHECKPOINTS}.save_measured", 1),
    "final evaluation kept": Fault(f"{_CHECKPOINTS}.save_measured", 1, "after"),
    "during release": Fault(f"{_NODE}.judge_release", 2),
    "after release": Fault(f"{_CONDUCTOR}._release", 1, "after"),
    "during evidence, outboxes partly emptied": Fault(f"{_NODE}.hand_over", 2, "after"),
    "evidence handed over, before the bundle": Fault("ringfence_server.conduct:gather_bundle", 1),
    "bundle written, before the results": Fault("ringfence_server.conduct:write_results", 1),
    "results written, before the end is noted": Fault("ringfence_server.conduct:write_results", 1, "after"),
}


@dataclass(frozen=True)
class HolderState:
    """What one holder's database holds."""

    holds: list[Hold]
    meters: dict[tuple[str, str], Meter]
    records: list[dict[str, Any]]

    def count(self, *states: HoldState) -> int:
        return sum(hold.state in states for hold in self.holds)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as one:
        yield one


@pytest.fixture(scope="module")
def baselines(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyScenario]:
    """Runs that nobody interrupted, by strategy."""
    finished = {}
    for strategy in ("FedAvg", "FedAdam"):
        scenario = scenario_at(tmp_path_factory.mktemp("baseline") / strategy, strategy=strategy)
        assert zygote.work(zygote.start(scenario.directory, seed=7)) == 0
        finished[strategy] = scenario
    return finished


def scenario_at(directory: Path, *, strategy: str = "FedAvg", rehearsal: str = "allowed") -> TinyScenario:
    """Two holders; one lets its records be measured only privately, which is charged."""
    private = {"privacy.evaluation": "private"}
    return write_scenario(
        directory,
        holders=NAMES,
        plan={
            "training.strategy": strategy,
            "training.rounds": ROUNDS,
            "training.average_last": "0.5",
            "evaluation.noise_multiplier": "20",
        },
        policies={name: {"data.rehearsal": rehearsal, **(private if name == "alder" else {})} for name in NAMES},
    )


def holder_state(scenario: TinyScenario, holder_id: str) -> HolderState:
    """Open a holder's database as an auditor would: it is whole, and log and ledger tell one story."""
    path = scenario.holder(holder_id) / "state" / "ledger.db"
    with Database.open(path, must_exist=True) as database:
        ledger = PrivacyLedger(database)  # counts every hold again and refuses any difference
        log = EvidenceLog(database, origin=f"ringfence/holder/{holder_id}")
        lines = log.lines()
        assert log.root() == plain_root(lines)
        state = HolderState(
            holds=ledger.holds(None),
            meters={(meter.owner_kind, meter.quantity): meter for meter in ledger.meters()},
            records=log.records(),
        )
    sent = {one["hold_id"] for one in state.records if one["kind"] in ("sent", "evaluated") and one["mechanism"]}
    assert sent == {hold.hold_id for hold in state.holds if hold.state in LEFT}
    for meter in state.meters.values():
        assert meter.committed + meter.reserved <= meter.cap
    return state


def plain_root(lines: list[bytes]) -> bytes:
    """The Merkle root by RFC 9162's own recursion, from the leaves alone."""
    if len(lines) < 2:
        return merkle.leaf_hash(lines[0]) if lines else sha256().digest()
    split = 1 << ((len(lines) - 1).bit_length() - 1)
    return merkle.node_hash(plain_root(lines[:split]), plain_root(lines[split:]))


def coordinator_records(scenario: TinyScenario) -> list[dict[str, Any]]:
    database_path = scenario.directory / "coordinator" / "log.db"
    with Database.open(database_path, must_exist=True) as database:
        origin = database.rows("SELECT origin FROM evidence_origin")[0][0]
        log = EvidenceLog(database, origin=origin)
        assert log.root() == plain_root(log.lines())
        return log.records()


def assert_nothing_is_forgotten(scenario: TinyScenario, run: Path) -> dict[str, HolderState]:
    """Whatever the coordinator has of a holder's, the holder's ledger has spent."""
    states = {holder_id: holder_state(scenario, holder_id) for holder_id in scenario.holders}
    records = coordinator_records(scenario)
    for record in records:
        if record["kind"] == "update-received":
            matching = [hold for hold in states[record["holder"]].holds if hold.hold_id == record["hold_id"]]
            assert [hold.state in LEFT for hold in matching] == [True]
            assert matching[0].update_digest == record["update_digest"]
    checkpoint = run / "checkpoint.json"
    if checkpoint.exists():
        committed = json.loads(checkpoint.read_text())
        for holder_id, digest in committed["record"]["updates"].items():
            of_round = [one for one in states[holder_id].holds if one.round_number == committed["round"]]
            assert digest in {one.update_digest for one in of_round if one.state in LEFT}
        for holder_id in scenario.holders:
            epsilon = committed["outcomes"][-1]["epsilon"][holder_id]
            assert states[holder_id].meters["dataset", "epsilon"].committed >= round(epsilon * 1e6)
    return states


def assert_finished_as_if_uninterrupted(scenario: TinyScenario, run: Path, baseline: TinyScenario) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["evidence"]["verified"] is True, [c for c in summary["evidence"]["checks"] if not c["passed"]]
    assert [one["round"] for one in summary["rounds"] if one["cohort"]] == list(range(1, ROUNDS + 1))
    for holder_id in scenario.holders:
        state, expected = holder_state(scenario, holder_id), holder_state(baseline, holder_id)
        assert state.count(HoldState.RESERVED, HoldState.SENDING) == 0
        paid = Counter((hold.action, hold.round_number) for hold in state.holds if hold.state in LEFT)
        assert paid == Counter((hold.action, hold.round_number) for hold in expected.holds if hold.state in LEFT)
        assert paid[Action.TRAIN, 2] == 1
        spent = state.meters["dataset", "epsilon"].committed
        assert spent == expected.meters["dataset", "epsilon"].committed
        assert summary["holders"][holder_id]["epsilon"] == spent / 1e6
    commits = [one for one in coordinator_records(scenario) if one["kind"] == "round-committed"]
    assert [one["round"] for one in commits] == list(range(1, ROUNDS + 1))
    digests = [digest for one in commits for digest in one["updates"].values()]
    assert len(set(digests)) == len(digests) == ROUNDS * HOLDERS
    model = max((baseline.directory / "runs").iterdir()) / "model.safetensors"
    assert (run / "model.safetensors").read_bytes() == model.read_bytes()
    return summary


@pytest.mark.parametrize("step", MATRIX)
def test_a_worker_killed_at_any_step_forgets_nothing_and_its_run_can_be_finished(
    step: str, zygote: Zygote, baselines: dict[str, TinyScenario], tmp_path: Path
) -> None:
    strategy = "FedAdam" if "round 2" in step or "checkpoint file" in step else "FedAvg"
    scenario = scenario_at(tmp_path / "trees", strategy=strategy)
    run = zygote.start(scenario.directory, seed=7)
    assert zygote.work(run, fault=MATRIX[step]) == KILLED
    states = assert_nothing_is_forgotten(scenario, run)
    committed = json.loads((run / "checkpoint.json").read_text())["round"] if (run / "checkpoint.json").exists() else 0
    assert zygote.resume(scenario.directory) == 0
    assert_finished_as_if_uninterrupted(scenario, run, baselines[strategy])
    held = [hold for state in states.values() for hold in state.holds]
    reserved, left = (sum(one.state in group for one in held) for group in ({HoldState.RESERVED}, LEFT))
    print(f"\n| {step} | {reserved} reserved, {left} spent | round {committed} | finished, same model, same budget |")  # noqa: T201


@pytest.mark.parametrize("step", ["after sending, before the reply, round 2", "replies recorded, before aggregation"])
def test_a_private_update_that_left_is_sent_again_and_never_made_again(
    step: str, zygote: Zygote, tmp_path: Path
) -> None:
    scenario = scenario_at(tmp_path / "trees", rehearsal="forbidden")
    run = zygote.start(scenario.directory)
    assert zygote.work(run, fault=MATRIX[step]) == KILLED
    left = {
        hold.hold_id: hold.update_digest
        for holder_id in scenario.holders
        for hold in holder_state(scenario, holder_id).holds
        if hold.state in LEFT and hold.round_number == 2
    }
    assert left
    assert zygote.resume(scenario.directory) == 0
    committed = next(
        one for one in coordinator_records(scenario) if (one["kind"], one["round"]) == ("round-committed", 2)
    )
    assert set(left.values()) <= set(committed["updates"].values())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["evidence"]["verified"] is True
    assert summary["private"] is True


@pytest.mark.parametrize(
    "fault",
    [
        Fault("ringfence_client.clientapp:finish", ROUNDS * HOLDERS - 1, "after"),
        Fault("ringfence_server.governor:Governor.receive", ROUNDS, "after"),
    ],
    ids=["one has sent", "all have sent"],
)
def test_an_update_that_left_is_sent_again_also_where_it_took_the_last_of_the_budget(
    fault: Fault, zygote: Zygote, tmp_path: Path
) -> None:
    tight = {"training.rounds": ROUNDS, "privacy.noise_multiplier_max": "8"}
    lost, whole = (
        write_scenario(
            tmp_path / name, holders=NAMES, plan=tight, policies={each: {"data.rehearsal": "allowed"} for each in NAMES}
        )
        for name in ("lost", "whole")
    )
    assert zygote.work(zygote.start(whole.directory, seed=7)) == 0
    run = zygote.start(lost.directory, seed=7)
    assert zygote.work(run, fault=fault) == KILLED
    # One more use of alder's data would not fit.
    meter = holder_state(lost, "alder").meters["policy", "epsilon"]
    assert meter.cap - meter.committed < meter.cap / ROUNDS / 10
    assert zygote.resume(lost.directory) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["evidence"]["verified"] is True, [c for c in summary["evidence"]["checks"] if not c["passed"]]
    assert [one["cohort"] for one in summary["rounds"] if one["committed"]] == [list(NAMES)] * ROUNDS
    models = [max((one.directory / "runs").iterdir()) / "model.safetensors" for one in (lost, whole)]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert holder_state(lost, "alder").meters == holder_state(whole, "alder").meters


def test_a_run_survives_being_killed_in_every_one_of_its_attempts(
    zygote: Zygote, baselines: dict[str, TinyScenario], tmp_path: Path
) -> None:
    scenario = scenario_at(tmp_path / "trees")
    run = zygote.start(scenario.directory, seed=7)
    assert zygote.work(run, fault=MATRIX["after all replies, round 1"]) == KILLED
    for step in ("after sending, before the reply, round 1", "before the checkpoint, round 1", "during release"):
        assert zygote.resume(scenario.directory, fault=MATRIX[step]) == KILLED
        assert_nothing_is_forgotten(scenario, run)
    assert zygote.resume(scenario.directory) == 0
    assert_finished_as_if_uninterrupted(scenario, run, baselines["FedAvg"])


def test_a_new_run_gives_back_what_an_abandoned_one_had_only_reserved(zygote: Zygote, tmp_path: Path) -> None:
    scenario = scenario_at(tmp_path / "trees")
    killed = zygote.start(scenario.directory, seed=7)
    assert zygote.work(killed, fault=MATRIX["before training, round 1"]) == KILLED
    assert holder_state(scenario, "alder").count(HoldState.RESERVED) == 1
    run = zygote.start(scenario.directory, seed=8)
    assert zygote.work(run) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["evidence"]["verified"] is True
    assert {one["epsilon_at_start"] for one in summary["holders"].values()} == {0.0}
    assert holder_state(scenario, "alder").count(HoldState.RELEASED) == 1
    assert holder_state(scenario, "alder").count(HoldState.RESERVED) == 0


def test_a_full_disk_stops_the_run_with_a_message_and_hides_no_spend(
    zygote: Zygote, baselines: dict[str, TinyScenario], tmp_path: Path
) -> None:
    scenario = scenario_at(tmp_path / "trees")
    run = zygote.start(scenario.directory, seed=7)
    database = scenario.holder("alder") / "state" / "ledger.db-wal"
    outcome = zygote.work(run, largest_file=160 * 1024)
    assert outcome in (1, 3)
    assert not database.exists() or database.stat().st_size <= 160 * 1024
    assert_nothing_is_forgotten(scenario, run)
    failed = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert failed["event"] == "run-failed"
    assert failed["error"]["next_step"]
    assert zygote.resume(scenario.directory) == 0
    assert_finished_as_if_uninterrupted(scenario, run, baselines["FedAvg"])

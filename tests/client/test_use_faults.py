"""What a use that fails after data was opened may tell: that it failed, once, at full price, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from refusal_facts import BEFORE_TRAINING, BEFORE_UPLOAD, refusals
from tiny_run import clauses_of

from ringfence_client import clientapp, deadline, open_workroom
from ringfence_client.cohort_trainer import CohortTrainer
from ringfence_client.datasource import HolderData
from ringfence_client.evaluation import score_counts
from ringfence_client.models import code_digest
from ringfence_client.officer import revoke
from ringfence_client.opacus_trainer import OpacusTrainer
from ringfence_client.outbox import Outbox
from ringfence_policy.database import Database
from ringfence_policy.errors import LedgerFault
from ringfence_policy.ledger import HoldState
from ringfence_policy.protocol import FAULT_CODE
from ringfence_server.conversation import read_refusal


class _Fails(OpacusTrainer):
    """Passes the check, on made-up records, and fails on the holder's own."""

    name = "fails"

    def __init__(self, reason):
        self.reason = reason

    def train(self, jobs):
        if not any(job.data.features.any() for job in jobs):
            return super().train(jobs)
        raise ValueError(f"record 17 of {len(jobs)}: {self.reason}")


def test_an_attempt_that_failed_is_charged_and_cannot_be_made_again(tiny_run, monkeypatch):
    run = tiny_run()
    run.propose()
    run.governor.offer(run.grid, 1)
    before = run.spent("elm")
    replies = []
    for reason in ("age 77", "nothing of the kind"):
        monkeypatch.setattr(open_workroom, "trainer_named", lambda _name, reason=reason: _Fails(reason))
        replies.append(run.request("elm", attempt=len(replies) + 1))
    assert all(reply.error.code == FAULT_CODE for reply in replies)
    assert replies[0].error.reason == replies[1].error.reason
    assert "age" not in replies[0].error.reason
    spent = run.spent("elm")
    assert spent > before
    assert run.log_of("elm", "sent") == []
    charged = [(record["action"], record["reason"]) for record in run.log_of("elm", "charged")]
    assert charged == [("train", "failed")] * 2
    again = run.request("elm", attempt=1)
    assert read_refusal(again).clauses == ("attempt",)
    assert run.spent("elm") == spent


def test_a_holder_whose_disk_fails_uses_no_data_and_costs_the_others_nothing(tiny_run, monkeypatch):
    """The decision was committed, but not on disk: as long as that is so, its data stays closed."""
    run = tiny_run()
    trained = []
    train = CohortTrainer.train
    monkeypatch.setattr(
        CohortTrainer, "train", lambda self, jobs: trained.extend(job.holder_id for job in jobs) or train(self, jobs)
    )
    sync, broken = Database.sync, []

    def fail(database):
        if database in broken:
            raise LedgerFault("the disk did not take what was recorded")
        sync(database)

    monkeypatch.setattr(Database, "sync", fail)
    run.before("train", 1, lambda: broken.append(run.node("elm").database))
    (outcome,) = run.train(rounds=1)
    assert {"alder", "birch"} <= set(trained)
    assert "elm" not in trained
    assert outcome.cohort == ["alder", "birch"]
    assert refusals(outcome) == {"elm": (BEFORE_TRAINING, ("ledger-fault",))}


def test_an_update_whose_spend_did_not_reach_the_disk_does_not_leave(tiny_run, monkeypatch):
    run = tiny_run()
    sync, spent = Database.sync, []

    def fail(database):
        if database in spent:
            raise LedgerFault("the disk did not take what was recorded")
        sync(database)

    keep = Outbox.keep

    def remember(outbox, request, reply):
        keep(outbox, request, reply)
        if outbox is run.node("elm").outbox:
            spent.append(run.node("elm").database)

    monkeypatch.setattr(Database, "sync", fail)
    monkeypatch.setattr(Outbox, "keep", remember)
    (outcome,) = run.train(rounds=1)
    assert outcome.cohort == ["alder", "birch"]
    assert refusals(outcome) == {"elm": (BEFORE_UPLOAD, ("ledger-fault",))}


def test_a_model_that_overflows_for_some_records_still_gives_every_record_one_cell():
    rng = np.random.default_rng(3)
    data = HolderData.from_arrays(
        rng.uniform(-1, 1, size=(40, 2)).astype(np.float32), (rng.random(40) > 0.5).astype(np.float32)
    )
    spec = {"kind": "mlp", "hidden": [2], "seed": 0, "path": "", "code_digest": ""}
    names = {"layers.0.weight": (2, 2), "layers.0.bias": (2,), "layers.2.weight": (1, 2), "layers.2.bias": (1,)}
    arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in names.items()}
    arrays["layers.0.weight"][:, 0] = [3e38, 3e38]
    arrays["layers.2.weight"][0] = [3e38, -3e38]
    assert score_counts(spec, arrays, data, bins=20).sum() == 40


# --- how a use ends where a plan brings its own code ------------------------------------------------------------------
# When approved code dawdles, misreports or brings its process down may depend on a record, so each end costs a use.


def own_code():
    digest = code_digest("own_models:Straight")
    model = {"model.kind": "module", "model.path": "own_models:Straight", "model.code_digest": digest}
    approved = {holder: {"projects.code": ["built-in", digest]} for holder in ("alder", "birch", "elm")}
    return {"plan": model | {"training.trainer": "book-keeping"}, "policies": approved}


@pytest.fixture(params=["built-in model", "own code"])
def either_run(request, tiny_run):
    """A run that was proposed, and whether a use of it costs budget however it ends."""
    costs = request.param == "own code"
    run = tiny_run(**(own_code() if costs else {}))
    run.propose()
    return run, costs


def while_training(monkeypatch, act):
    train = clientapp.use_together

    def first_act(uses):
        act()
        return train(uses)

    monkeypatch.setattr(clientapp, "use_together", first_act)


def assert_settled(run, reason, *, costs):
    (hold,) = run.node("elm").ledger.holds(run.file.run_id)
    assert hold.state is (HoldState.COMMITTED if costs else HoldState.RELEASED)
    assert (run.spent("elm") > 0) is costs
    (record,) = run.log_of("elm", "charged" if costs else "hold-released")
    assert reason in record["reason"]
    assert run.log_of("elm", "sent") == []


def test_a_use_that_is_late_after_data_was_opened_costs_what_its_plans_code_may_have_told(either_run, monkeypatch):
    run, costs = either_run
    passed = [1000.0]
    monkeypatch.setattr(deadline, "monotonic", lambda: passed[0])
    while_training(monkeypatch, lambda: passed.append(passed.pop() + 600))
    assert clauses_of(run.request("elm")) == ("deadline",)
    assert_settled(run, "deadline", costs=costs)


def test_a_use_that_its_officer_revokes_on_the_way_costs_what_its_plans_code_may_have_told(either_run, monkeypatch):
    run, costs = either_run
    while_training(monkeypatch, lambda: revoke(run.home("elm"), reason="withdrawn", now_ms=run.node("elm").clock()))
    assert clauses_of(run.request("elm")) == ("revoked",)
    assert_settled(run, "revoked", costs=costs)


def test_a_use_whose_process_dies_costs_what_its_plans_code_may_have_told(either_run, monkeypatch):
    run, costs = either_run

    class PowerCutError(BaseException):
        """Nothing in between sees it."""

    def die():
        raise PowerCutError

    while_training(monkeypatch, die)
    with pytest.raises(PowerCutError):
        run.request("elm")
    monkeypatch.undo()
    run.restart_nodes()
    assert_settled(run, "interrupted", costs=costs)


def test_a_use_of_which_nobody_knows_the_plan_any_more_is_charged(tiny_run, monkeypatch):
    run = tiny_run()
    run.propose()
    monkeypatch.setattr(clientapp, "use_together", _raise(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.request("elm")
    run.home("elm").run_file(run.file.run_id).write_text("{}")
    run.restart_nodes()
    assert_settled(run, "interrupted", costs=True)


def test_a_use_that_was_not_applied_as_it_was_charged_is_charged_all_the_same(tiny_run, monkeypatch):
    run = tiny_run()
    run.propose()
    train = clientapp.use_together

    def with_less_noise(uses):
        (trained,) = train(uses)
        applied = replace(trained.applied, noise_multiplier=trained.applied.noise_multiplier / 2)
        return [replace(trained, applied=applied)]

    monkeypatch.setattr(clientapp, "use_together", with_less_noise)
    assert clauses_of(run.request("elm")) == ("mechanism",)
    assert_settled(run, "mechanism", costs=True)


def _raise(kind):
    def act(_):
        raise kind

    return act

"""What a use that fails after data was opened may tell: that it failed, once, at full price, and nothing else."""

import numpy as np
from refusal_facts import BEFORE_TRAINING, BEFORE_UPLOAD, refusals

from ringfence_client import open_workroom
from ringfence_client.cohort_trainer import CohortTrainer
from ringfence_client.datasource import HolderData
from ringfence_client.enforcement import FAILED_DIGEST
from ringfence_client.evaluation import score_counts
from ringfence_client.opacus_trainer import OpacusTrainer
from ringfence_client.outbox import Outbox
from ringfence_policy.database import Database
from ringfence_policy.errors import LedgerFault
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
    assert "77" not in replies[0].error.reason
    spent = run.spent("elm")
    assert spent > before
    assert [record["update_digest"] for record in run.log_of("elm", "sent")] == [FAILED_DIGEST, FAILED_DIGEST]
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

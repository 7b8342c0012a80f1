"""One transaction, one file: the ledger and what joins it are written together, settled after a crash, or denied."""

import pytest

from ringfence_policy import accounting
from ringfence_policy.database import Database
from ringfence_policy.errors import LedgerFault
from ringfence_policy.ledger import HoldState, PrivacyLedger
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Action, Relation, Unit


def training(noise=20.0):
    return DpMechanism(
        kind="dp-sgd",
        clipping_norm=0.5,
        noise_multiplier=noise,
        sampling_rate=1.0,
        steps=1,
        unit=Unit.RECORD,
        relation=Relation.ADD_OR_REMOVE,
    )


@pytest.fixture
def database(tmp_path):
    with Database.open(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def ledger(database):
    opened = PrivacyLedger(database)
    opened.register_dataset("patients", fingerprint="sha256:one", epsilon_micro=10**6, delta_pico=10**7)
    opened.register_policy(
        "research", dataset_id="patients", version=1, epsilon_micro=10**6, delta_pico=10**7, max_rounds=10**6
    )
    return opened


def reserve(ledger, hold_id="run/1/1", *, run_id="run", noise=20.0):
    return ledger.reserve(
        hold_id,
        run_id=run_id,
        round_number=1,
        attempt=1,
        dataset_id="patients",
        policy_id="research",
        mechanism=training(noise),
        action=Action.TRAIN,
    )


def spend(ledger, hold_id="run/1/1"):
    reserve(ledger, hold_id)
    ledger.mark_sending(hold_id, update_digest="sha256:update")
    return ledger.commit(hold_id)


def committed_epsilon(ledger):
    return next(each.committed for each in ledger.meters() if each.quantity == "epsilon")


def test_the_evidence_record_and_the_reservation_are_written_together_or_not_at_all(ledger, database):
    def fail():
        with database.transaction():
            reserve(ledger)
            assert ledger.hold("run/1/1").state is HoldState.RESERVED
            raise OSError("the log could not be written")

    with pytest.raises(OSError, match="the log"):
        fail()
    assert ledger.hold("run/1/1") is None


def test_a_reservation_inside_a_callers_transaction_is_durable_only_with_it(ledger, database):
    def caller():
        with database.transaction():
            reserve(ledger)
            raise ValueError("the record could not be appended")

    with pytest.raises(ValueError, match="appended"):
        caller()
    assert ledger.hold("run/1/1") is None


def test_recovery_releases_what_was_not_sent_and_commits_what_may_have_been(ledger):
    reserve(ledger, "reserved")
    reserve(ledger, "sending")
    ledger.mark_sending("sending", update_digest="sha256:update")
    spend(ledger, "committed")
    reserve(ledger, "other run", run_id="other")
    changed = ledger.recover(run_id="run")
    assert {hold.hold_id: hold.state for hold in changed} == {
        "reserved": HoldState.RELEASED,
        "sending": HoldState.COMMITTED,
    }
    assert ledger.hold("other run").state is HoldState.RESERVED
    assert committed_epsilon(ledger) == accounting.epsilon_micro(((training(), 2),), delta_pico=10**7)
    assert [hold.hold_id for hold in ledger.recover()] == ["other run"]
    assert ledger.recover() == []


def test_a_locked_ledger_denies_the_use(ledger):
    with Database.open(ledger._database.path, busy_timeout_seconds=0.05) as other:
        second = PrivacyLedger(other)
        with ledger._database.transaction(), pytest.raises(LedgerFault, match="locked"):
            reserve(second)
    assert ledger.holds() == []


def test_a_full_disk_denies_the_use_and_keeps_what_was_spent(ledger, database):
    spend(ledger)
    before = committed_epsilon(ledger)
    (pages,) = database.rows("PRAGMA page_count")[0]
    database.connection.execute(f"PRAGMA max_page_count = {pages}")

    def go_on():
        for number in range(1000):
            reserve(ledger, f"run/{number}/1" + "x" * 500, noise=1000.0)

    with pytest.raises(LedgerFault, match="full"):
        go_on()
    database.connection.execute("PRAGMA max_page_count = 1000000")
    assert committed_epsilon(ledger) == before
    ledger.check()

"""One transaction, one file: the ledger and what joins it are written together, settled after a crash, or denied."""

import pytest

from ringfence_policy import accounting
from ringfence_policy.database import Database
from ringfence_policy.errors import LedgerFault
from ringfence_policy.ledger import NOTHING_LEFT, HoldState, PrivacyLedger
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


def test_a_charge_spends_what_was_reserved_once_and_is_never_given_back(ledger):
    reserve(ledger)
    hold = ledger.charge("run/1/1", "failed")
    assert (hold.state, hold.update_digest, hold.detail) == (HoldState.COMMITTED, NOTHING_LEFT, "failed")
    assert ledger.charge("run/1/1", "failed") == hold
    assert committed_epsilon(ledger) == accounting.epsilon_micro(((training(), 1),), delta_pico=10**7)
    with pytest.raises(LedgerFault, match="cannot become released"):
        ledger.release("run/1/1", "never mind")
    with pytest.raises(LedgerFault, match="cannot become sending"):
        ledger.mark_sending("run/1/1", update_digest="sha256:update")


def test_what_may_have_left_or_was_given_back_cannot_be_charged_as_unsent(ledger):
    reserve(ledger, "sending")
    ledger.mark_sending("sending", update_digest="sha256:update")
    reserve(ledger, "released")
    ledger.release("released", "revoked")
    for hold_id in ("sending", "released"):
        with pytest.raises(LedgerFault, match="cannot become sending"):
            ledger.charge(hold_id, "failed")


def test_recovery_charges_the_reservations_that_it_is_told_to_and_shows_each_as_it_then_stands(ledger):
    reserve(ledger, "given back", run_id="built-in")
    reserve(ledger, "first", run_id="own code")
    reserve(ledger, "second", run_id="own code")
    shown = []
    ledger.recover(
        charged=lambda run_id: run_id == "own code",
        record=lambda hold: shown.append((hold.hold_id, hold.state, committed_epsilon(ledger))),
    )
    one, two = (accounting.epsilon_micro(((training(), uses),), delta_pico=10**7) for uses in (1, 2))
    assert shown == [
        ("given back", HoldState.RELEASED, 0),
        ("first", HoldState.COMMITTED, one),
        ("second", HoldState.COMMITTED, two),
    ]


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

"""What happened stays as it happened, even for someone who reaches past the code into the file."""

import sqlite3

import pytest

from ringfence_policy import accounting
from ringfence_policy.database import Database
from ringfence_policy.errors import LedgerFault
from ringfence_policy.ledger import Meter, PrivacyLedger
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Action, Relation, Unit

TRAINING = DpMechanism(
    kind="dp-sgd",
    clipping_norm=0.5,
    noise_multiplier=20.0,
    sampling_rate=1.0,
    steps=1,
    unit=Unit.RECORD,
    relation=Relation.ADD_OR_REMOVE,
)
SENT_WITHOUT_A_RESERVATION = """
    INSERT INTO hold SELECT 'new', run_id, 1, 1, dataset_id, policy_id, mechanism, action, 'committed', 'd', '', 0
    FROM hold LIMIT 1"""
UNDER_NO_POLICY = """
    INSERT INTO hold SELECT 'new', run_id, 1, 1, dataset_id, 'nobody', mechanism, action, 'reserved', NULL, '', 0
    FROM hold LIMIT 1"""


@pytest.fixture
def database(tmp_path):
    with Database.open(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def ledger(database):
    opened = PrivacyLedger(database)
    opened.register_dataset("patients", fingerprint="sha256:one", epsilon_micro=10**6, delta_pico=10**7)
    opened.register_policy(
        "research", dataset_id="patients", version=1, epsilon_micro=10**6, delta_pico=10**7, max_rounds=9
    )
    return opened


def reserve(ledger, hold_id):
    return ledger.reserve(
        hold_id,
        run_id="run",
        round_number=1,
        attempt=1,
        dataset_id="patients",
        policy_id="research",
        mechanism=TRAINING,
        action=Action.TRAIN,
    )


def spend(ledger, hold_id="spent"):
    reserve(ledger, hold_id)
    ledger.mark_sending(hold_id, update_digest="sha256:update")
    return ledger.commit(hold_id)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE hold SET state = 'reserved' WHERE state = 'committed'",
        "UPDATE hold SET state = 'released' WHERE state = 'committed'",
        "UPDATE hold SET dataset_id = 'other' WHERE state = 'reserved'",
        "UPDATE hold SET mechanism = 'sha256:none' WHERE state = 'reserved'",
        "UPDATE hold SET state = 'committed' WHERE state = 'reserved'",
        "DELETE FROM hold",
        "UPDATE hold_transition SET to_state = 'released'",
        "DELETE FROM hold_transition",
        "DELETE FROM tally",
        "DELETE FROM meter",
        "UPDATE meter SET committed = ceiling + 1 WHERE quantity = 'epsilon'",
        "UPDATE meter SET reserved = -1",
        "DELETE FROM dataset",
        "UPDATE dataset SET epsilon_cap_micro = epsilon_cap_micro + 1",
        "UPDATE dataset_version SET fingerprint = 'sha256:other'",
        "UPDATE policy SET version = version",
        "DELETE FROM policy_version",
        "UPDATE mechanism SET document = '{}'",
        SENT_WITHOUT_A_RESERVATION,
        UNDER_NO_POLICY,
    ],
)
def test_the_database_itself_refuses_to_rewrite_what_happened(ledger, database, statement):
    spend(ledger, "spent")
    reserve(ledger, "reserved")
    before = list(database.connection.iterdump())
    with pytest.raises(LedgerFault), database.transaction() as connection:
        connection.execute(statement)
    assert list(database.connection.iterdump()) == before


@pytest.mark.parametrize(
    "statements",
    [
        [
            "DROP TRIGGER hold_moves_forward",
            "DROP TRIGGER hold_moved",
            "UPDATE hold SET state = 'released', update_digest = NULL",
        ],
        ["DROP TRIGGER hold_transition_no_delete", "DELETE FROM hold_transition WHERE to_state = 'committed'"],
        [
            "DROP TRIGGER hold_transition_no_delete",
            "DROP TRIGGER hold_no_delete",
            "DELETE FROM hold_transition",
            "DELETE FROM hold",
        ],
        ["UPDATE tally SET uses = 0"],
        ["UPDATE tally SET state = 'released' WHERE uses = 1"],
        ["INSERT INTO tally SELECT dataset_id, policy_id, mechanism, 'evaluate', state, 5 FROM tally WHERE uses = 1"],
    ],
)
def test_a_ledger_changed_from_outside_is_refused_on_opening(ledger, database, statements):
    spend(ledger)
    database.close()
    with sqlite3.connect(database.path) as outside:
        for statement in statements:
            outside.execute(statement)
    outside.close()
    with Database.open(database.path) as again, pytest.raises(LedgerFault, match="changed from outside"):
        PrivacyLedger(again)


def test_meters_are_recomputed_and_not_believed(ledger, database):
    spend(ledger)
    with database.transaction() as connection:
        connection.execute("UPDATE meter SET committed = 0, reserved = 0")
    expected = accounting.epsilon_micro(((TRAINING, 1),), delta_pico=10**7)
    assert {meter.committed for meter in ledger.meters() if meter.quantity == "epsilon"} == {expected}


def test_the_second_lock_holds_when_the_first_one_is_broken(ledger, monkeypatch):
    """The comparison in `reserve` is the first lock; the table's CHECK stands behind it."""
    monkeypatch.setattr(Meter, "exceeded", False)
    for number in range(9):
        spend(ledger, f"spent/{number}")
    with pytest.raises(LedgerFault, match="CHECK"):
        reserve(ledger, "one too many")
    assert len(ledger.holds()) == 9

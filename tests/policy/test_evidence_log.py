"""The evidence log: one transaction with the ledger, only growing, and never re-hashed."""

import sqlite3

import pytest

from ringfence_policy import canonical, merkle
from ringfence_policy.database import Database
from ringfence_policy.documents import Checkpoint
from ringfence_policy.errors import LedgerFault
from ringfence_policy.evidence_log import EvidenceLog, PrivateDetails
from ringfence_policy.identity import DocumentType, SigningKey, open_signed

ORIGIN = "ringfence/holder/cleveland"
KEY = SigningKey(kid="cleveland/node-1", seed=b"n" * 32)


@pytest.fixture
def database(tmp_path):
    with Database.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture
def log(database):
    return EvidenceLog(database, origin=ORIGIN)


def record(number):
    return {"v": 1, "kind": "hold-released", "at_ms": number, "run": "r", "round": 1, "hold_id": "h", "reason": "stop"}


def decision(number, **changes):
    document = {"effect": "deny", "failed": [{"clause": "min_records", "actual": None}]}
    members = {"decision": document, "action": "train", "hold_id": "", "inputs": None, "status_seq": None}
    more = {"policy_key_id": None, "private_digest": None, "kind": "decision", "v": 1, "run": "r", "round": 1}
    return members | more | {"at_ms": number} | changes


def test_an_empty_log_has_the_empty_root(log):
    assert log.size == 0
    assert log.records() == []
    assert log.root() == merkle.EMPTY_ROOT


def test_every_prefix_root_equals_the_root_over_the_records_themselves(database, log):
    with database.transaction():
        assert [log.append(record(number)) for number in range(70)] == list(range(70))
    leaves = [merkle.leaf_hash(canonical.encode(record(number))) for number in range(70)]
    assert log.records() == [record(number) for number in range(70)]
    for size in range(71):
        assert log.root(size) == merkle.root_of(leaves[:size])
    for old in range(0, 71, 7):
        proof = log.consistency_proof(old)
        assert merkle.verify_consistency(
            old_size=old, new_size=70, old_root=log.root(old), new_root=log.root(), proof=proof
        )
    assert merkle.verify_inclusion(index=33, size=70, leaf=leaves[33], proof=log.inclusion_proof(33), root=log.root())


def test_appending_writes_about_two_rows_and_reads_no_old_record(database, log):
    """The whole log is never hashed again: 1000 records cost as many node rows as a binary tree has nodes."""
    with database.transaction():
        for number in range(1000):
            log.append(record(number))
    nodes = database.rows("SELECT count(*) FROM evidence_node")[0][0]
    assert nodes == sum(1000 >> level for level in range(10))

    read = []
    database.connection.set_trace_callback(read.append)
    log.append(record(1000))
    database.connection.set_trace_callback(None)
    assert not [statement for statement in read if "SELECT" in statement and "record" in statement]


def test_a_record_is_undone_with_the_callers_transaction(database, log):
    log.append(record(0))

    def crash_after_appending():
        with database.transaction():
            log.append(record(1))
            assert log.size == 2
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash_after_appending()
    assert log.records() == [record(0)]
    assert log.append(record(2)) == 1
    assert log.root() == merkle.root_of([merkle.leaf_hash(canonical.encode(record(number))) for number in (0, 2)])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE evidence_leaf SET record = x'7b7d' WHERE position = 0",
        "DELETE FROM evidence_leaf WHERE position = 1",
        "DELETE FROM evidence_leaf",
        "INSERT OR REPLACE INTO evidence_leaf VALUES (0, x'7b7d')",
        "INSERT INTO evidence_leaf VALUES (7, x'7b7d')",
        "UPDATE evidence_node SET hash = zeroblob(32)",
        "DELETE FROM evidence_node",
        "INSERT OR REPLACE INTO evidence_node VALUES (0, 0, zeroblob(32))",
        "UPDATE evidence_origin SET origin = 'other'",
        "DELETE FROM evidence_origin",
    ],
)
def test_sql_cannot_change_drop_or_replace_a_record(database, log, statement):
    log.append(record(0))
    log.append(record(1))
    with pytest.raises(LedgerFault), database.transaction() as connection:
        connection.execute(statement)
    assert log.records() == [record(0), record(1)]


def test_a_record_changed_under_the_triggers_is_noticed_when_it_is_read(database, log):
    log.append(record(0))
    with sqlite3.connect(database.path) as raw:
        raw.execute("DROP TRIGGER evidence_leaf_no_update")
        raw.execute("UPDATE evidence_leaf SET record = ?", (canonical.encode(record(9)),))
    raw.close()
    with pytest.raises(LedgerFault, match="changed on disk"):
        log.records()


def test_a_missing_hash_is_a_fault_and_not_another_root(database, log):
    for number in range(4):
        log.append(record(number))
    with sqlite3.connect(database.path) as raw:
        raw.execute("DROP TRIGGER evidence_node_no_delete")
        raw.execute("DELETE FROM evidence_node WHERE level = 2")
    raw.close()
    with pytest.raises(LedgerFault, match="missing"):
        log.root()
    with pytest.raises(LedgerFault, match="missing"):
        log.checkpoint(key=KEY, now_ms=1)


def test_a_log_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Database.open(path) as first:
        log = EvidenceLog(first, origin=ORIGIN)
        log.append(record(0))
        root = log.root()
    with Database.open(path) as second:
        log = EvidenceLog(second, origin=ORIGIN)
        assert log.root() == root
        assert log.append(record(1)) == 1
        assert log.root(1) == root


def append_and_undo(database, log, same, position):
    with database.transaction():
        log.append(record(position))
        assert log.size == same.size == position
        raise ZeroDivisionError


def test_a_log_sees_at_once_what_another_hand_appended_or_undid(database, log):
    """It looks at the disk only where something changed: by another reader here, by another process, by an undoing."""
    same = EvidenceLog(database, origin=ORIGIN)
    with Database.open(database.path) as other_process:
        others = [log, same, EvidenceLog(other_process, origin=ORIGIN)]
        for size in range(1, 13):
            others[size % 3].append(record(size))
            assert [each.size for each in others] == [size] * 3
            assert len({each.root() for each in others}) == 1
            with pytest.raises(ZeroDivisionError):
                append_and_undo(database, log, same, size + 1)
            assert log.root() == same.root() == others[2].root()


def test_one_database_keeps_one_log(database, log):
    assert log.origin == ORIGIN
    with pytest.raises(LedgerFault, match="another log"):
        EvidenceLog(database, origin="ringfence/holder/zurich")


@pytest.mark.parametrize("value", [{"epsilon": 0.5}, {"at_ms": 2**60}, {"reason": b"bytes"}, {1: "one"}])
def test_a_record_that_is_not_canonical_json_is_a_fault(log, value):
    with pytest.raises(LedgerFault):
        log.append(record(0) | value)
    assert log.size == 0


@pytest.mark.parametrize(
    "value",
    [{"kind": "gossip"}, {"kind": 7}, {"records": 303}, {"reason": 303}, {"hold_id": ""}, {"v": 2}, {"round": -1}],
)
def test_a_record_outside_the_closed_vocabulary_is_a_fault_that_shows_no_value(log, value):
    with pytest.raises(LedgerFault) as caught:
        log.append(record(0) | value)
    assert "303" not in str(caught.value)
    assert log.size == 0


def test_a_record_with_what_only_the_holder_may_see_is_a_fault(log):
    shown = {"effect": "deny", "failed": [{"clause": "min_records", "actual": "303 records"}]}
    for leak in ({"decision": shown}, {"inputs": {"records": 303}}, {"inputs": {"records": None}}):
        with pytest.raises(LedgerFault) as caught:
            log.append(decision(0, **leak))
        assert "only the holder may see" in str(caught.value)
        assert "303" not in str(caught.value)
    assert log.size == 0


def test_asking_beyond_the_log_is_a_fault(log):
    log.append(record(0))
    for ask in (
        lambda: log.root(2),
        lambda: log.records(0, 2),
        lambda: log.consistency_proof(2),
        lambda: log.consistency_proof(-1),
        lambda: log.consistency_proof(0, 2),
        lambda: log.inclusion_proof(1),
    ):
        with pytest.raises(LedgerFault):
            ask()


def test_a_checkpoint_signs_origin_size_root_and_time(log):
    log.append(record(0))
    token = log.checkpoint(key=KEY, now_ms=1234)
    signed = Checkpoint.from_document(open_signed(token, type=DocumentType.CHECKPOINT, key=KEY.public()))
    assert (signed.origin, signed.size, signed.root_bytes, signed.at_ms) == (ORIGIN, 1, log.root(), 1234)


def test_private_details_stay_beside_the_record_and_are_salted(log):
    details = {"records": 9_876_543_210}  # So many digits that no digest holds them by chance.
    sealed, again = PrivateDetails.seal(details), PrivateDetails.seal(details)
    assert sealed.digest != again.digest
    assert sealed.digest != canonical.digest(details)
    position = log.append(decision(0, private_digest=sealed.digest), private=sealed)
    log.append(record(1))
    assert log.private_details(position) == details
    assert log.private_details(1) is None
    assert "9876543210" not in str(log.records())
    with pytest.raises(LedgerFault, match="private details"):
        log.append(record(2), private=sealed)
    with pytest.raises(LedgerFault, match="private details"):
        log.append(decision(2, private_digest=again.digest), private=sealed)
    assert log.size == 2

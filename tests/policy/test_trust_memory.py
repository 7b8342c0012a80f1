import json

import pytest

from ringfence_policy.database import Database
from ringfence_policy.documents import RevokedPolicy, Role, key_list_document, status_document
from ringfence_policy.errors import LedgerFault, TrustRefused
from ringfence_policy.identity import DocumentType, SigningKey, sign
from ringfence_policy.trust_memory import TrustMemory, remembered

ROOT, STATUS = SigningKey.generate("elm/root-1"), SigningKey.generate("elm/status-1")
KEYS = sign(key_list_document("elm", 1, [(STATUS.public(), 0, 9000, [Role.STATUS])]), type=DocumentType.KEYS, key=ROOT)
WITHDRAWN = RevokedPolicy(policy_id="elm-terms", at_ms=90, reason="enough", on_revoke="stop-now")


def status(seq, *revoked):
    document = status_document("elm", seq=seq, issued_ms=100, good_until_ms=900, revoked=revoked)
    return sign(document, type=DocumentType.STATUS, key=STATUS)


def opened(path):
    memory = TrustMemory(Database.open(path))
    store = memory.store("self", ROOT.public())
    store.accept_keys(KEYS)
    return memory, store


def test_two_processes_never_take_back_what_the_other_has_learnt(tmp_path):
    first, seen_first = opened(tmp_path / "ledger.db")
    second, seen_second = opened(tmp_path / "ledger.db")
    seen_first.accept_status(status(7, WITHDRAWN), 200)
    first.save()
    seen_second.accept_status(status(2), 200)
    second.save()
    _, restarted = opened(tmp_path / "ledger.db")
    with pytest.raises(TrustRefused):
        restarted.accept_status(status(2), 200)
    with pytest.raises(TrustRefused):
        seen_second.accept_status(status(3), 200)
    ((kept,),) = Database.open(tmp_path / "ledger.db").rows("SELECT memory FROM trust WHERE name = 'self'")
    assert json.loads(kept)["revoked"] == ["elm-terms"]


def test_what_another_process_knows_as_replaced_is_not_accepted_even_once(tmp_path):
    first, seen_first = opened(tmp_path / "ledger.db")
    second, _ = opened(tmp_path / "ledger.db")
    for memory in (first, second):
        memory.save()
    second.store("self", ROOT.public()).accept_status(status(5), 200)
    second.save()
    seen_first.accept_status(status(7, WITHDRAWN), 200)
    first.save()
    with pytest.raises(TrustRefused, match="older"):
        second.store("self", ROOT.public()).accept_status(status(5), 200)


def test_a_signer_is_never_met_under_another_root_key(tmp_path):
    memory, _ = opened(tmp_path / "ledger.db")
    memory.save()
    with pytest.raises(TrustRefused, match="another root key"):
        TrustMemory(Database.open(tmp_path / "ledger.db")).store("self", SigningKey.generate("elm/root-2").public())


def test_what_another_process_learnt_is_known_at_the_next_save_though_nothing_was_learnt_here(tmp_path):
    first, seen_first = opened(tmp_path / "ledger.db")
    second, seen_second = opened(tmp_path / "ledger.db")
    first.save()
    second.save()
    seen_first.accept_status(status(7), 200)
    first.save()
    second.save()
    with pytest.raises(TrustRefused):
        seen_second.accept_status(status(6), 200)


def fail_after(act):
    act()
    raise ZeroDivisionError


def test_a_save_is_undone_with_the_transaction_it_joined_and_written_by_the_next(tmp_path):
    database = Database.open(tmp_path / "ledger.db")
    memory = TrustMemory(database)
    memory.store("self", ROOT.public()).accept_keys(KEYS)
    with pytest.raises(ZeroDivisionError), database.transaction():
        fail_after(memory.save)
    memory.save()
    assert database.rows("SELECT name FROM trust") == [("self",)]


def test_a_holder_with_a_history_and_no_memory_is_refused(tmp_path):
    database = Database.open(tmp_path / "ledger.db")
    with pytest.raises(TrustRefused, match="missing"):
        remembered(database, is_new=False, root=ROOT.public())
    remembered(database, is_new=True, root=ROOT.public())
    remembered(database, is_new=False, root=ROOT.public())


def test_what_was_learnt_is_never_deleted(tmp_path):
    memory, _ = opened(tmp_path / "ledger.db")
    memory.save()
    database = Database.open(tmp_path / "ledger.db")
    with pytest.raises(LedgerFault), database.transaction() as connection:
        connection.execute("DELETE FROM trust")

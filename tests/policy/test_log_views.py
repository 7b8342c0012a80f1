"""A log is shown as it is."""

import pytest

from ringfence_policy.database import Database
from ringfence_policy.documents import Checkpoint
from ringfence_policy.evidence_log import EvidenceLog
from ringfence_policy.identity import DocumentType, SigningKey, open_payload
from ringfence_policy.log_views import LogViews

KEY = SigningKey.generate("elm/node-1")


def revoked(policy_id):
    return {"v": 1, "kind": "revoked", "at_ms": 5, "run": "", "round": 0, "policy_id": policy_id}


def test_what_was_shown_in_a_transaction_that_was_undone_is_not_shown_again(tmp_path):
    with Database.open(tmp_path / "ledger.db") as database:
        log = EvidenceLog(database, origin="ringfence/holder/elm")
        views = LogViews(log, key=KEY)

        def show_and_fail():
            with database.transaction():
                log.append(revoked("one"))
                views.since(0, now_ms=6)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            show_and_fail()
        log.append(revoked("other"))
        shown = open_payload(views.since(0, now_ms=7).checkpoint, type=DocumentType.CHECKPOINT, key=KEY.public())
        assert Checkpoint.from_payload(shown).root_bytes == log.root()

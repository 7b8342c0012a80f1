import json

import pytest

from ringfence_client.trust_memory import TrustMemory
from ringfence_policy.documents import RevokedPolicy, Role, key_list_document, status_document
from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import DocumentType, SigningKey, sign

ROOT, STATUS = SigningKey.generate("elm/root-1"), SigningKey.generate("elm/status-1")
KEYS = sign(key_list_document("elm", 1, [(STATUS.public(), 0, 9000, [Role.STATUS])]), type=DocumentType.KEYS, key=ROOT)
WITHDRAWN = RevokedPolicy(policy_id="elm-terms", at_ms=90, reason="enough", on_revoke="stop-now")


def status(seq, *revoked):
    document = status_document("elm", seq=seq, issued_ms=100, good_until_ms=900, revoked=revoked)
    return sign(document, type=DocumentType.STATUS, key=STATUS)


def opened(path):
    memory = TrustMemory(path)
    store = memory.store("self", ROOT.public())
    store.accept_keys(KEYS)
    return memory, store


def test_two_processes_never_take_back_what_the_other_has_learnt(tmp_path):
    first, seen_first = opened(tmp_path / "trust.json")
    second, seen_second = opened(tmp_path / "trust.json")
    seen_first.accept_status(status(7, WITHDRAWN), 200)
    first.save()
    seen_second.accept_status(status(2), 200)
    second.save()
    _, restarted = opened(tmp_path / "trust.json")
    with pytest.raises(TrustRefused):
        restarted.accept_status(status(2), 200)
    with pytest.raises(TrustRefused):
        seen_second.accept_status(status(3), 200)
    assert json.loads((tmp_path / "trust.json").read_text())["self"]["revoked"] == ["elm-terms"]


def test_a_signer_is_never_met_under_another_root_key(tmp_path):
    memory, _ = opened(tmp_path / "trust.json")
    memory.save()
    with pytest.raises(TrustRefused, match="another root key"):
        TrustMemory(tmp_path / "trust.json").store("self", SigningKey.generate("elm/root-2").public())

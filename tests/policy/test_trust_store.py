"""The trust store: nothing old, stale, misused or contradictory is accepted."""

import json

import pytest

from ringfence_policy.documents import (
    KeyList,
    Manifest,
    Participation,
    RevokedPolicy,
    Role,
    Status,
    key_list_document,
    manifest_document,
    participation_document,
    status_document,
)
from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import DocumentType, SigningKey, TrustReason, sign
from ringfence_policy.merkle import consistency_proof, leaf_hash, leaf_hashes, root_of
from ringfence_policy.trust_store import TrustStore

ROOT = SigningKey(kid="cleveland/root", seed=b"r" * 32)
OFFICER = SigningKey(kid="cleveland/policy-1", seed=b"1" * 32)
NEW_OFFICER = SigningKey(kid="cleveland/policy-2", seed=b"2" * 32)
STATUS = SigningKey(kid="cleveland/status-1", seed=b"s" * 32)
NODE = SigningKey(kid="cleveland/node-1", seed=b"n" * 32)
IMPOSTOR = SigningKey(kid="cleveland/policy-1", seed=b"x" * 32)
DIGEST = "sha256:" + "0" * 64


def keys(seq, *listed, key=ROOT, holder="cleveland"):
    return sign(key_list_document(holder, seq, listed), type=DocumentType.KEYS, key=key)


FIRST_KEYS = keys(
    1,
    (OFFICER.public(), 0, 1000, [Role.POLICY]),
    (STATUS.public(), 0, 9000, [Role.STATUS]),
    (NODE.public(), 0, 9000, [Role.NODE]),
)
SECOND_KEYS = keys(
    2,
    (NEW_OFFICER.public(), 500, 2000, [Role.POLICY]),
    (STATUS.public(), 0, 9000, [Role.STATUS]),
    (NODE.public(), 0, 9000, [Role.NODE]),
)


def policy(version, *, key=OFFICER, document_type=DocumentType.POLICY, **changes):
    document = {"v": 1, "policy": {"id": "cardiac", "version": version, "holder": "cleveland", **changes}}
    return sign(document, type=document_type, key=key)


def status(seq, issued, until, revoked=(), *, key=STATUS, holder="cleveland"):
    document = status_document(holder, seq=seq, issued_ms=issued, good_until_ms=until, revoked=revoked)
    return sign(document, type=DocumentType.STATUS, key=key)


@pytest.fixture
def store():
    fresh = TrustStore(ROOT.public())
    fresh.accept_keys(FIRST_KEYS)
    return fresh


def assert_refused(reason, call, *arguments, **named):
    with pytest.raises(TrustRefused) as caught:
        call(*arguments, **named)
    assert caught.value.summary == reason


def test_policies_and_status_of_listed_keys_are_accepted(store):
    assert store.owner == "cleveland"
    assert store.accept_policy(policy(1), 100)["policy"]["version"] == 1
    assert store.accept_policy(policy(2), 100)["policy"]["version"] == 2
    accepted = store.accept_status(status(1, 90, 150), 100)
    assert accepted.seq == 1
    assert accepted.revocation_of("cardiac") is None


def test_accepting_the_same_document_twice_changes_nothing(store):
    store.accept_policy(policy(1), 100)
    before = store.memory()
    store.accept_policy(policy(1), 100)
    store.accept_keys(FIRST_KEYS)
    assert store.memory() == before


def test_a_replayed_older_policy_is_refused(store):
    store.accept_policy(policy(2), 100)
    assert_refused(TrustReason.REPLAYED, store.accept_policy, policy(1), 100)


def test_other_content_under_the_same_version_is_refused(store):
    store.accept_policy(policy(1), 100)
    assert_refused(TrustReason.CHANGED, store.accept_policy, policy(1, epsilon_micro=9), 100)


def test_a_policy_edited_after_signing_is_refused(store):
    head, payload, signature = policy(1).split(".")
    other = policy(2).split(".")[1]
    assert_refused(TrustReason.SIGNATURE, store.accept_policy, f"{head}.{other}.{signature}", 100)
    assert payload != other


@pytest.mark.parametrize("now", [1000, 5000])
def test_an_expired_key_is_refused(store, now):
    assert_refused(TrustReason.UNKNOWN_KEY, store.accept_policy, policy(1), now)


def test_a_key_is_refused_before_its_time(store):
    store.accept_keys(SECOND_KEYS)
    assert_refused(TrustReason.UNKNOWN_KEY, store.accept_policy, policy(1, key=NEW_OFFICER), 499)
    assert store.accept_policy(policy(1, key=NEW_OFFICER), 500)


def test_a_withdrawn_key_is_refused_after_rotation(store):
    store.accept_policy(policy(1), 100)
    store.accept_keys(SECOND_KEYS)
    assert_refused(TrustReason.UNKNOWN_KEY, store.accept_policy, policy(2), 600)


def test_a_replayed_key_list_does_not_bring_a_withdrawn_key_back(store):
    store.accept_keys(SECOND_KEYS)
    assert_refused(TrustReason.REPLAYED, store.accept_keys, FIRST_KEYS)


def test_two_key_lists_of_one_number_are_refused(store):
    other = keys(1, (NEW_OFFICER.public(), 0, 1000, [Role.POLICY]))
    assert_refused(TrustReason.CHANGED, store.accept_keys, other)


def test_a_key_list_signed_by_anyone_but_the_root_is_refused(store):
    listed = (OFFICER.public(), 0, 1000, [Role.POLICY, Role.NODE])
    assert_refused(TrustReason.UNKNOWN_KEY, store.accept_keys, keys(3, listed, key=OFFICER))
    false_root = SigningKey(kid=ROOT.kid, seed=b"f" * 32)
    assert_refused(TrustReason.SIGNATURE, store.accept_keys, keys(3, listed, key=false_root))


def test_the_root_key_cannot_be_listed_for_daily_work(store):
    again = SigningKey(kid="cleveland/daily", seed=ROOT.seed)
    assert_refused(TrustReason.WRONG_ROLE, store.accept_keys, keys(3, (again.public(), 0, 1000, [Role.POLICY])))


def test_a_key_of_the_same_name_but_other_content_is_refused(store):
    assert_refused(TrustReason.SIGNATURE, store.accept_policy, policy(1, key=IMPOSTOR), 100)


def test_a_status_key_cannot_sign_a_policy(store):
    assert_refused(TrustReason.WRONG_ROLE, store.accept_policy, policy(3, key=STATUS), 100)


def test_a_status_cannot_be_read_as_a_policy(store):
    assert_refused(TrustReason.WRONG_TYPE, store.accept_policy, policy(3, document_type=DocumentType.STATUS), 100)
    assert_refused(
        TrustReason.WRONG_TYPE, store.accept_policy, policy(3, key=STATUS, document_type=DocumentType.STATUS), 100
    )


def test_a_caller_cannot_ask_for_a_role_that_never_signs_the_type(store):
    token = policy(1)
    assert_refused(TrustReason.WRONG_ROLE, store.accept, token, type=DocumentType.POLICY, role=Role.NODE, now_ms=100)
    assert_refused(TrustReason.WRONG_ROLE, store.accept, FIRST_KEYS, type=DocumentType.KEYS, role=Role.NODE, now_ms=100)


def test_a_stale_status_is_refused(store):
    assert_refused(TrustReason.STALE, store.accept_status, status(1, 0, 50), 100)
    assert_refused(TrustReason.STALE, store.accept_status, status(1, 0, 100), 100)


def test_a_status_from_the_future_is_refused(store):
    assert_refused(TrustReason.FUTURE, store.accept_status, status(1, 101, 200), 100)


def test_an_earlier_status_cannot_undo_a_revocation(store):
    withdrawn = RevokedPolicy(policy_id="cardiac", at_ms=95, reason="new committee", on_revoke="stop-now")
    accepted = store.accept_status(status(2, 95, 150, [withdrawn]), 100)
    assert accepted.revocation_of("cardiac") == withdrawn
    assert_refused(TrustReason.REPLAYED, store.accept_status, status(1, 90, 150), 100)
    assert_refused(TrustReason.CHANGED, store.accept_status, status(2, 95, 150), 100)


def test_a_refused_document_leaves_no_trace_in_the_memory(store):
    before = store.memory()
    for attempt in (
        lambda: store.accept_status(status(9, 0, 50), 100),
        lambda: store.accept_status(status(9, 500, 600), 100),
        lambda: store.accept_policy(policy(9, key=IMPOSTOR), 100),
        lambda: store.accept_policy(policy(9, holder="zurich"), 100),
        lambda: store.accept_keys(keys(9, (IMPOSTOR.public(), 0, 1, [Role.POLICY]), holder="zurich")),
    ):
        with pytest.raises(TrustRefused):
            attempt()
    assert store.memory() == before


def test_a_document_of_another_holder_is_refused_even_when_the_key_is_right(store):
    assert_refused(TrustReason.WRONG_OWNER, store.accept_policy, policy(1, holder="zurich"), 100)
    assert_refused(TrustReason.WRONG_OWNER, store.accept_status, status(1, 90, 150, holder="zurich"), 100)
    assert_refused(TrustReason.WRONG_OWNER, TrustStore(ROOT.public(), owner="zurich").accept_keys, FIRST_KEYS)


def test_high_water_marks_survive_a_restart(store):
    store.accept_keys(SECOND_KEYS)
    store.accept_policy(policy(3, key=NEW_OFFICER), 600)
    store.accept_status(status(7, 590, 700), 600)
    memory = json.loads(json.dumps(store.memory()))

    again = TrustStore(ROOT.public(), memory)
    assert again.owner == "cleveland"
    assert_refused(TrustReason.REPLAYED, again.accept_keys, FIRST_KEYS)
    assert_refused(TrustReason.NO_KEYS, again.accept_policy, policy(3, key=NEW_OFFICER), 600)
    again.accept_keys(SECOND_KEYS)
    assert_refused(TrustReason.REPLAYED, again.accept_policy, policy(2, key=NEW_OFFICER), 600)
    assert_refused(TrustReason.REPLAYED, again.accept_status, status(6, 590, 700), 600)


def test_memory_of_another_root_or_owner_is_refused(store):
    assert_refused(TrustReason.WRONG_OWNER, TrustStore, OFFICER.public(), store.memory())
    assert_refused(TrustReason.WRONG_OWNER, TrustStore, ROOT.public(), store.memory(), owner="zurich")


def test_nothing_is_accepted_before_a_key_list():
    assert_refused(TrustReason.NO_KEYS, TrustStore(ROOT.public()).accept_policy, policy(1), 100)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"policy": "cardiac@1"},
        {"policy": {"id": "cardiac", "holder": "cleveland"}},
        {"policy": {"id": "cardiac", "version": True, "holder": "cleveland"}},
        {"policy": {"id": "cardiac", "version": "1", "holder": "cleveland"}},
        {"policy": {"id": 1, "version": 1, "holder": "cleveland"}},
    ],
)
def test_a_policy_without_its_number_is_refused(store, document):
    token = sign(document, type=DocumentType.POLICY, key=OFFICER)
    assert_refused(TrustReason.WRONG_SHAPE, store.accept_policy, token, 100)


@pytest.mark.parametrize(
    "change",
    [
        {"seq": -1}, {"seq": True}, {"seq": "1"}, {"seq": None}, {"issued_ms": "0"}, {"revoked": {}}, {"revoked": [{}]},
        {"revoked": [{"policy_id": "a", "at_ms": 1, "reason": "", "on_revoke": "whenever"}]}, {"more": 1},
    ],
)  # fmt: skip
def test_a_status_of_another_shape_is_refused_without_its_values(store, change):
    document = status_document("cleveland", seq=1, issued_ms=90, good_until_ms=150) | change
    with pytest.raises(TrustRefused) as caught:
        store.accept_status(sign(document, type=DocumentType.STATUS, key=STATUS), 100)
    assert caught.value.summary == TrustReason.WRONG_SHAPE
    assert next(iter(change)) in str(caught.value)
    assert "whenever" not in str(caught.value)


def test_a_key_list_names_no_key_twice_and_at_least_one():
    document = key_list_document("cleveland", 1, [(OFFICER.public(), 0, 1, [Role.POLICY])])
    for broken in ({**document, "keys": document["keys"] * 2}, {**document, "keys": []}):
        token = sign(broken, type=DocumentType.KEYS, key=ROOT)
        assert_refused(TrustReason.WRONG_SHAPE, TrustStore(ROOT.public()).accept_keys, token)


def test_a_key_list_with_an_unusable_key_is_refused_whole():
    document = key_list_document("cleveland", 1, [(OFFICER.public(), 0, 1, [Role.POLICY])])
    document["keys"][0]["jwk"]["x"] = "AQ" + "A" * 41
    store = TrustStore(ROOT.public())
    assert_refused(TrustReason.WEAK_KEY, store.accept_keys, sign(document, type=DocumentType.KEYS, key=ROOT))
    assert_refused(TrustReason.NO_KEYS, store.accept_policy, policy(1), 0)


# --- checkpoints of a peer's log --------------------------------------------------------------------------------------

LEAVES = [leaf_hash(b"record %d" % number) for number in range(12)]


def checkpoint(size, leaves=LEAVES, *, origin="ringfence/holder/cleveland"):
    document = {"origin": origin, "size": size, "root": "sha256:" + root_of(leaves[:size]).hex(), "at_ms": 1}
    return sign(document, type=DocumentType.CHECKPOINT, key=NODE)


def test_a_growing_log_is_followed_from_checkpoint_to_checkpoint(store):
    origin = "ringfence/holder/cleveland"
    for size in (0, 3, 3, 8, 12):
        proof = consistency_proof(store.known_log_size(origin), size, leaf_hashes(LEAVES))
        store.accept_checkpoint(checkpoint(size), role=Role.NODE, now_ms=1, proof=proof)
        assert store.known_log_size(origin) == size


def test_a_log_that_was_rewritten_shortened_or_shown_differently_is_refused(store):
    store.accept_checkpoint(checkpoint(8), role=Role.NODE, now_ms=1)
    rewritten = [leaf_hash(b"rewritten"), *LEAVES[1:]]
    before = store.memory()
    for size, leaves in ((12, rewritten), (8, rewritten), (7, LEAVES), (12, LEAVES)):
        proof = consistency_proof(min(8, size), size, leaf_hashes(leaves)) if leaves is rewritten else ()
        assert_refused(
            TrustReason.SPLIT_VIEW, store.accept_checkpoint, checkpoint(size, leaves),
            role=Role.NODE, now_ms=1, proof=proof,
        )  # fmt: skip
    assert store.memory() == before


def test_a_coordinators_role_does_not_sign_a_holders_checkpoint(store):
    assert_refused(TrustReason.WRONG_ROLE, store.accept_checkpoint, checkpoint(3), role=Role.PLAN, now_ms=1)


# --- document builders ------------------------------------------------------------------------------------------------


def test_documents_read_back_as_what_was_written():
    listed = KeyList.from_document(key_list_document("h", 1, [(OFFICER.public(), 0, 1, [Role.STATUS, Role.POLICY])]))
    assert listed.keys[0].public_key == OFFICER.public()
    assert listed.keys[0].roles == ("policy", "status")

    taking_part = participation_document(
        holder_id="h", run_id="r", plan_digest=DIGEST, last_round=7, history=[({"kind": "dp-sgd"}, 3)], weight=300,
        issued_ms=1, good_until_ms=2,
    )  # fmt: skip
    assert Participation.from_document(taking_part).history == (({"kind": "dp-sgd"}, 3),)

    manifest = manifest_document(run_id="r", coordinator="c", made_at_ms=1, rehearsal=False, files={"a": b""})
    assert Manifest.from_document(manifest).files["a"].startswith("sha256:e3b0c442")
    assert Status.from_document(status_document("h", seq=1, issued_ms=5, good_until_ms=9)).is_fresh(now_ms=8)


def test_a_later_status_may_not_leave_a_revocation_out(store):
    withdrawn = RevokedPolicy(policy_id="cardiac", at_ms=95, reason="new committee", on_revoke="stop-now")
    store.accept_status(status(1, 96, 150, revoked=[withdrawn]), 100)
    assert_refused(TrustReason.CHANGED, store.accept_status, status(2, 97, 150), 100)
    assert store.accept_status(status(3, 98, 150, revoked=[withdrawn]), 100).revocation_of("cardiac")


def test_a_store_that_hears_of_a_newer_key_list_trusts_no_key_of_the_older_one(store):
    other = TrustStore(ROOT.public())
    other.accept_keys(FIRST_KEYS)
    other.accept_keys(SECOND_KEYS)
    store.catch_up(other.memory())
    assert_refused(TrustReason.NO_KEYS, store.accept_policy, policy(1), 100)
    assert_refused(TrustReason.REPLAYED, store.accept_keys, FIRST_KEYS)


def test_two_memories_that_contradict_each_other_are_refused(store):
    store.accept_policy(policy(1), 100)
    other = TrustStore(ROOT.public())
    other.accept_keys(FIRST_KEYS)
    other.accept_policy(policy(1, epsilon_micro=9), 100)
    assert_refused(TrustReason.CHANGED, store.catch_up, other.memory())

"""Nobody but the coordinator can ask a holder for anything; no message can be changed, sent on or kept for later."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from ringfence_client import signed_requests
from ringfence_policy.documents import RequestBatch, request_leaf
from ringfence_policy.identity import DocumentType, SigningKey, sign
from ringfence_policy.merkle import leaf_hash
from ringfence_policy.protocol import BODY_KEY, BODY_RECORD, OFFER, SIGNATURE_KEY, Offer, RequestSignature
from ringfence_server.conversation import read_refusal


@pytest.fixture
def run(tiny_run):
    started = tiny_run()
    started.propose()
    return started


def offer(run, **changes):
    members = {"run_id": run.file.run_id, "round_number": 1, "plan_digest": run.plan.digest, "known_size": 0}
    return Offer(**(members | changes)).to_bytes()


def signature(run, holder, data, kind=OFFER):
    node_id = run.node_ids[holder]
    return run.governor.sign(kind, {node_id: data})[node_id]


def send(run, holder, record):
    content = RecordDict({BODY_RECORD: ConfigRecord(record)})
    (reply,) = run.grid.send_and_receive([Message(content, run.node_ids[holder], OFFER)])
    return reply


def assert_refused(run, holder, record):
    reply = send(run, holder, record)
    assert reply.has_error()
    assert read_refusal(reply).clauses == ("trust-refused",)
    assert run.denials(holder)[-1][2] == ("trust-refused",)


def test_a_message_that_the_coordinator_signed_for_this_holder_is_answered(run):
    data = offer(run)
    reply = send(run, "elm", {BODY_KEY: data, SIGNATURE_KEY: signature(run, "elm", data)})
    assert not reply.has_error()


def test_a_message_without_a_signature_is_refused(run):
    assert_refused(run, "elm", {BODY_KEY: offer(run)})


def test_a_message_signed_for_another_holder_is_refused(run):
    data = offer(run)
    assert_refused(run, "elm", {BODY_KEY: data, SIGNATURE_KEY: signature(run, "birch", data)})


def test_a_message_changed_after_it_was_signed_is_refused(run):
    signed = signature(run, "elm", offer(run))
    assert_refused(run, "elm", {BODY_KEY: offer(run, round_number=2), SIGNATURE_KEY: signed})


def test_a_message_signed_as_one_of_another_type_is_refused(run):
    data = offer(run)
    assert_refused(run, "elm", {BODY_KEY: data, SIGNATURE_KEY: signature(run, "elm", data, "train")})


def test_a_message_signed_by_a_key_that_is_not_the_coordinators_is_refused(run):
    data = offer(run)
    honest = signature(run, "elm", data)
    root = "sha256:" + leaf_hash(request_leaf("elm", OFFER, data)).hex()
    document = RequestBatch(root=root, size=1, issued_ms=run.coordinator.clock()).to_document()
    forged = sign(document, type=DocumentType.REQUEST, key=SigningKey.generate(run.coordinator.key.kid))
    assert_refused(
        run, "elm", {BODY_KEY: data, SIGNATURE_KEY: RequestSignature(batch=forged, index=0).to_bytes().decode()}
    )
    broken = honest.replace('","index"', 'A","index"')
    assert_refused(run, "elm", {BODY_KEY: data, SIGNATURE_KEY: broken})


def test_each_holder_accepts_its_own_message_of_a_batch_and_no_other(run):
    bodies = {node_id: offer(run) for node_id in run.node_ids.values()}
    signed = run.governor.sign(OFFER, bodies)
    for holder, node_id in run.node_ids.items():
        assert not send(run, holder, {BODY_KEY: bodies[node_id], SIGNATURE_KEY: signed[node_id]}).has_error()
    others = {holder: next(signed[other] for other in bodies if other != run.node_ids[holder]) for holder in ("elm",)}
    assert_refused(run, "elm", {BODY_KEY: offer(run), SIGNATURE_KEY: others["elm"]})


@pytest.mark.parametrize("signature", ["", "{}", "[]", '{"batch":"x","index":-1,"proof":[]}', "\ud800", 7])
def test_a_signature_in_any_other_form_is_refused(run, signature):
    assert_refused(run, "elm", {BODY_KEY: offer(run), SIGNATURE_KEY: signature})


def test_a_message_that_was_kept_for_later_is_refused(run, monkeypatch):
    data = offer(run)
    signed = signature(run, "elm", data)
    monkeypatch.setattr(signed_requests, "REQUEST_LIFETIME_MS", -1)
    assert_refused(run, "elm", {BODY_KEY: data, SIGNATURE_KEY: signed})

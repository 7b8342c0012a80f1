"""Nobody but the coordinator can ask a holder for anything; no message can be changed, sent on or kept for later."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from ringfence_client import signed_requests
from ringfence_policy.documents import Request
from ringfence_policy.identity import DocumentType, SigningKey, sign
from ringfence_policy.protocol import BODY_KEY, BODY_RECORD, OFFER, SIGNATURE_KEY, Offer
from ringfence_server.conversation import read_refusal


@pytest.fixture
def run(tiny_run):
    started = tiny_run()
    started.propose()
    return started


def offer(run, **changes):
    members = {"run_id": run.file.run_id, "round_number": 1, "plan_digest": run.plan.digest, "known_size": 0}
    return Offer(**(members | changes)).to_bytes()


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
    reply = send(run, "elm", {BODY_KEY: data, SIGNATURE_KEY: run.governor.sign(run.node_ids["elm"], OFFER, data)})
    assert not reply.has_error()


def test_a_message_without_a_signature_is_refused(run):
    assert_refused(run, "elm", {BODY_KEY: offer(run)})


def test_a_message_signed_for_another_holder_is_refused(run):
    data = offer(run)
    assert_refused(run, "elm", {BODY_KEY: data, SIGNATURE_KEY: run.governor.sign(run.node_ids["birch"], OFFER, data)})


def test_a_message_changed_after_it_was_signed_is_refused(run):
    signature = run.governor.sign(run.node_ids["elm"], OFFER, offer(run))
    assert_refused(run, "elm", {BODY_KEY: offer(run, round_number=2), SIGNATURE_KEY: signature})


def test_a_message_signed_as_one_of_another_type_is_refused(run):
    data = offer(run)
    assert_refused(run, "elm", {BODY_KEY: data, SIGNATURE_KEY: run.governor.sign(run.node_ids["elm"], "train", data)})


def test_a_message_signed_by_a_key_that_is_not_the_coordinators_is_refused(run):
    data = offer(run)
    honest = run.governor.sign(run.node_ids["elm"], OFFER, data)
    document = Request(holder_id="elm", message_type=OFFER, body_digest="sha256:" + "0" * 64, issued_ms=1).to_document()
    forged = sign(document, type=DocumentType.REQUEST, key=SigningKey.generate(run.coordinator.key.kid))
    assert_refused(run, "elm", {BODY_KEY: data, SIGNATURE_KEY: forged})
    assert_refused(run, "elm", {BODY_KEY: data, SIGNATURE_KEY: honest[:-2] + ("AA" if honest[-2:] != "AA" else "BB")})


def test_a_message_that_was_kept_for_later_is_refused(run, monkeypatch):
    data = offer(run)
    signature = run.governor.sign(run.node_ids["elm"], OFFER, data)
    monkeypatch.setattr(signed_requests, "REQUEST_LIFETIME_MS", -1)
    assert_refused(run, "elm", {BODY_KEY: data, SIGNATURE_KEY: signature})

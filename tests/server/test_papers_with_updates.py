"""Papers for the next round come with the update of this one: a round then costs one question instead of two."""

import pytest
from flwr.app import Error, Message

from ringfence_client.node import HolderNode
from ringfence_client.officer import revoke
from ringfence_policy.ledger import now_ms
from ringfence_policy.protocol import FAULT_CODE, OFFER, PROPOSE
from ringfence_server import shown_papers


@pytest.fixture
def counted(tiny_run):
    """A run whose questions are counted by kind and holder."""
    run = tiny_run()
    names = {node_id: holder for holder, node_id in run.node_ids.items()}
    asked = []
    deliver = run.deliver

    def note(messages, contexts):
        asked.extend((message.metadata.message_type, names[message.metadata.dst_node_id]) for message in messages)
        return deliver(messages, contexts)

    run.deliver = note
    return run, asked


def test_only_the_first_round_asks_for_papers(counted):
    run, asked = counted
    outcomes = run.train()
    assert [outcome.cohort for outcome in outcomes] == [["alder", "birch", "elm"]] * 3
    kinds = [kind for kind, _ in asked]
    assert kinds.count(PROPOSE) == 3
    assert kinds.count(OFFER) == 3
    assert kinds.count("train") == 9


def test_who_sent_no_update_is_asked_for_papers_before_the_next_round(counted):
    run, asked = counted
    deliver, failed = run.deliver, []

    def fail_elms_first(messages, contexts):
        replies = deliver(messages, contexts)
        for place, message in enumerate(messages):
            kind, node_id = message.metadata.message_type, message.metadata.dst_node_id
            if kind == "train" and node_id == run.node_ids["elm"] and not failed:
                failed.append(message)
                replies[place] = Message(Error(code=FAULT_CODE, reason="lost on the way"), reply_to=message)
        return replies

    run.deliver = fail_elms_first
    outcomes = run.train(rounds=2)
    assert outcomes[0].cohort == ["alder", "birch"]
    assert outcomes[1].cohort == ["alder", "birch", "elm"]
    assert [holder for kind, holder in asked if kind == OFFER] == ["alder", "birch", "elm", "elm"]


def test_a_revocation_after_the_update_is_in_its_papers_and_known_before_data_is_asked_for(counted, monkeypatch):
    run, asked = counted
    shown_next = HolderNode.shown_next

    def revoked_by_then(node, terms, **options):
        if node.holder_id == "elm":
            revoke(node.home, reason="new consent forms", now_ms=now_ms())
        return shown_next(node, terms, **options)

    monkeypatch.setattr(HolderNode, "shown_next", revoked_by_then)
    outcomes = run.train(rounds=2)
    assert outcomes[0].cohort == ["alder", "birch", "elm"]
    assert outcomes[1].cohort == ["alder", "birch"]
    assert [(one.holder, one.clauses) for one in outcomes[1].refused] == [("elm", ("revoked",))]
    assert asked.count((OFFER, "elm")) == 1
    assert asked.count(("train", "elm")) == 1


def test_papers_that_do_not_hold_are_asked_for_and_then_refused_with_a_reason(counted, monkeypatch):
    run, asked = counted
    shown_next = HolderNode.shown_next

    def forged(node, terms, **options):
        shown = shown_next(node, terms, **options)
        return shown.model_copy(update={"status": shown.keys}) if node.holder_id == "elm" else shown

    monkeypatch.setattr(HolderNode, "shown_next", forged)
    outcomes = run.train(rounds=2)
    assert outcomes[1].cohort == ["alder", "birch", "elm"]
    assert asked.count((OFFER, "elm")) == 2
    assert asked.count((OFFER, "alder")) == 1


def test_papers_that_came_too_long_ago_are_asked_for_again(counted, monkeypatch):
    run, asked = counted
    monkeypatch.setattr(shown_papers, "FRESH_SECONDS", 0.0)
    run.train(rounds=2)
    assert [kind for kind, _ in asked].count(OFFER) == 6

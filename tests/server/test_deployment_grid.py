"""Messages of a deployment go to registered SuperNodes that are there, and a missing one breaks nothing."""

import time

import pytest
from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from letters import pem, supernode_key

from ringfence_server.conversation import replies_by_node
from ringfence_server.deployment_grid import NODE_UNAVAILABLE, DeploymentGrid
from ringfence_server.flower_adapter import become_serverapp, stamp

KEYS = {11: pem(supernode_key()), 12: pem(supernode_key()), 13: pem(supernode_key())}


@pytest.fixture(autouse=True)
def as_serverapp():
    become_serverapp(4_611_686_018_427_387_905)


class SuperLinkGrid:
    """Flower's Grid as a SuperLink stands behind it: numbers and keys of nodes, and replies that take some pulls."""

    def __init__(self, keys=None, *, refuses=(), after=0):
        self.keys = dict(KEYS if keys is None else keys)
        self.refuses = set(refuses)
        self.pushed = []
        self.after = after
        self.pulls = 0

    def get_nodes(self):
        return [NodeInfo(node_id=node_id, public_key=key.encode()) for node_id, key in self.keys.items()]

    def push_messages(self, messages):
        taken = []
        for message in messages:
            message_id = stamp(message)
            refused = message.metadata.dst_node_id in self.refuses
            self.pushed += [] if refused else [message]
            taken.append("" if refused else message_id)
        return taken

    def pull_messages(self, message_ids):
        assert all(message_ids)
        self.pulls += 1
        found = [one for one in self.pushed if one.metadata.message_id in set(message_ids)]
        if self.pulls <= self.after:
            found = found[:1]
        self.pushed = [one for one in self.pushed if one not in found]
        return [Message(RecordDict(), reply_to=one) for one in found]


def messages():
    return [Message(RecordDict(), node_id, "train") for node_id in KEYS]


def ask(inner, *, timeout=5.0):
    sent = messages()
    replies = DeploymentGrid(inner, keys=KEYS).send_and_receive(sent, timeout=timeout)
    return replies_by_node(sent, replies)


def test_everybody_who_is_there_is_asked_and_answers():
    replies = ask(SuperLinkGrid(after=2))
    assert set(replies) == set(KEYS)
    assert not any(reply.has_error() for reply in replies.values())


def test_who_is_not_connected_answers_at_once_and_the_others_are_asked():
    inner = SuperLinkGrid({node_id: KEYS[node_id] for node_id in (11, 13)})
    replies = ask(inner)
    assert {node_id for node_id, reply in replies.items() if reply.has_error()} == {12}
    assert replies[12].error.code == NODE_UNAVAILABLE


def test_a_node_that_shows_another_key_under_a_registered_number_is_never_asked():
    inner = SuperLinkGrid(KEYS | {12: pem(supernode_key())})
    replies = ask(inner)
    assert replies[12].error.code == NODE_UNAVAILABLE
    grid = DeploymentGrid(inner, keys=KEYS)
    assert grid.get_node_ids() == [11, 13]


def test_a_node_of_nobody_is_not_there():
    inner = SuperLinkGrid(KEYS | {14: pem(supernode_key())})
    assert DeploymentGrid(inner, keys=KEYS).get_node_ids() == [11, 12, 13]


def test_a_message_that_the_superlink_does_not_take_is_answered_as_from_somebody_who_is_away():
    """A SuperNode that was registered and never connected: the SuperLink gives no id for a message to it."""
    replies = ask(SuperLinkGrid(refuses=[12]))
    assert replies[12].error.code == NODE_UNAVAILABLE
    assert not replies[11].has_error()


def test_when_nobody_is_there_nothing_is_pushed():
    inner = SuperLinkGrid({})
    assert all(reply.has_error() for reply in ask(inner).values())
    assert inner.pulls == 0


def test_an_answer_that_does_not_come_is_waited_for_until_time_is_up_and_no_longer():
    class Silent(SuperLinkGrid):
        def pull_messages(self, message_ids):
            del message_ids
            return []

    began = time.monotonic()
    assert ask(Silent(), timeout=0.5) == {}
    assert 0.5 <= time.monotonic() - began < 3


def test_replies_are_pulled_once():
    grid = DeploymentGrid(SuperLinkGrid({11: KEYS[11]}), keys=KEYS)
    ids = grid.push_messages(messages())
    assert len(set(ids)) == 3
    assert len(grid.pull_messages(ids)) == 3
    assert grid.pull_messages(ids) == []

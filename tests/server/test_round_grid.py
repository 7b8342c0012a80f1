"""How long a question waits for its answers."""

import time

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from ringfence_server import round_grid
from ringfence_server.flower_adapter import become_serverapp, stamp
from ringfence_server.round_grid import RoundGrid

NOW = 1_800_000_000.0


class FakeTime:
    """A clock that moves only while somebody sleeps."""

    def __init__(self):
        self.passed = 0.0

    def monotonic(self):
        return self.passed

    def time(self):
        return NOW + self.passed

    def sleep(self, seconds):
        assert seconds > 0
        self.passed += seconds


class ScriptedGrid(Grid):
    """Answers each node's message after so many seconds; None is never, a negative number is an error after so many."""

    def __init__(self, clock, answers):
        self.clock = clock
        self.answers = answers
        self.pushed = []
        self.replies = []
        self.pulls = 0

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self.pushed.append(message)
            after = self.answers[message.metadata.dst_node_id]
            if after == "not taken":
                ids.append("")
                continue
            ids.append(stamp(message))
            if after is not None:
                content = RecordDict() if after >= 0 else Error(code=5, reason="gone")
                self.replies.append((self.clock.passed + abs(after), Message(content, reply_to=message)))
        return ids

    def pull_messages(self, message_ids):  # noqa: ARG002 -- brings whatever is there, as no Grid should
        self.pulls += 1
        ready = [reply for at, reply in self.replies if at <= self.clock.passed]
        self.replies = [(at, reply) for at, reply in self.replies if at > self.clock.passed]
        return ready

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *arguments):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.answers)

    def get_nodes(self):
        raise NotImplementedError

    def send_and_receive(self, *_, **__):
        raise AssertionError("Flower's own waiting is not used")


@pytest.fixture
def clock(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(round_grid, "time", fake)
    become_serverapp(7)
    return fake


def ask(clock, answers, *, timeout=None, **options):
    """Put one message to each node; the nodes whose replies came, and how long that took."""
    scripted = ScriptedGrid(clock, answers)
    grid = RoundGrid(scripted, **({"seconds": 60, "poll_seconds": 1.0} | options))
    began = clock.passed
    messages = [Message(RecordDict(), node_id, "train") for node_id in answers]
    replies = grid.send_and_receive(messages, timeout=timeout)
    return scripted, [reply.metadata.src_node_id for reply in replies], clock.passed - began


def two_without_error(replies):
    return sum(not reply.has_error() for reply in replies) >= 2


def test_it_waits_for_all_and_not_a_moment_longer(clock):
    _, heard, took = ask(clock, {1: 0, 2: 3, 3: 7})
    assert heard == [1, 2, 3]
    assert took == 7
    scripted, heard, took = ask(clock, {1: 0, 2: 0})
    assert (heard, took, scripted.pulls) == ([1, 2], 0, 1)


def test_it_waits_until_the_deadline_for_a_node_that_never_answers(clock):
    _, heard, took = ask(clock, {1: 0, 2: None, 3: 59.5})
    assert heard == [1, 3]
    assert took == 60


def test_a_shorter_time_of_flowers_holds_too(clock):
    assert ask(clock, {1: 0, 2: None}, timeout=5)[2] == 5
    assert ask(clock, {1: 0, 2: None}, timeout=3600)[2] == 60


def test_a_node_that_is_known_to_be_gone_is_not_waited_for(clock):
    _, heard, took = ask(clock, {1: 0, 2: -45})
    assert heard == [1, 2]
    assert took == 45


def test_it_stops_when_enough_have_answered_and_errors_are_never_enough(clock):
    _, heard, took = ask(clock, {1: 2, 2: -1, 3: -1, 4: 9, 5: 30}, is_enough=two_without_error)
    assert heard == [2, 3, 1, 4]
    assert took == 9


def test_the_deadline_holds_where_there_are_never_enough(clock):
    _, heard, took = ask(clock, {1: 2, 2: -1, 3: None}, is_enough=two_without_error)
    assert (heard, took) == ([2, 1], 60)


def test_a_message_that_the_superlink_did_not_take_is_not_waited_for(clock):
    assert ask(clock, {1: 4, 2: "not taken"})[1:] == ([1], 4)


def test_an_answer_to_an_earlier_question_counts_for_no_later_one(clock):
    scripted = ScriptedGrid(clock, {1: 0, 2: 90})
    grid = RoundGrid(scripted, seconds=60, poll_seconds=1.0)
    first = [Message(RecordDict(), node_id, "train") for node_id in (1, 2)]
    assert len(grid.send_and_receive(first)) == 1
    scripted.answers = {1: 40, 2: None}
    second = [Message(RecordDict(), node_id, "train") for node_id in (1, 2)]
    (reply,) = grid.send_and_receive(second)
    assert reply.metadata.reply_to_message_id == second[0].metadata.message_id
    assert scripted.replies == []  # the late answer was there, and was left alone


def test_messages_live_as_long_as_they_are_waited_for(clock):
    scripted = ScriptedGrid(clock, {1: 0})
    message = Message(RecordDict(), 1, "query.offer")
    message.metadata.__dict__["_created_at"] = NOW - 30  # made half a minute before it is sent
    RoundGrid(scripted, seconds=60).send_and_receive([message])
    expires = message.metadata.created_at + message.metadata.ttl
    assert NOW + 60 < expires <= NOW + 60 + 10


def test_nothing_is_sent_where_nobody_is_asked(clock):
    scripted = ScriptedGrid(clock, {})
    assert RoundGrid(scripted, seconds=60).send_and_receive([]) == []
    assert (scripted.pushed, scripted.pulls, clock.passed) == ([], 0, 0)


def test_it_sleeps_between_two_looks_and_is_over_in_time_by_the_real_clock():
    become_serverapp(7)
    clock = FakeTime()  # the node's: it never answers
    grid = RoundGrid(ScriptedGrid(clock, {1: None}), seconds=0.2, poll_seconds=0.05)
    began = time.monotonic()
    assert grid.send_and_receive([Message(RecordDict(), 1, "train")]) == []
    assert 0.2 <= time.monotonic() - began < 5

"""What Ringfence takes from Flower 1.41 beyond its published interface, pinned: an upgrade that moves it fails here."""

import random
import time
from collections.abc import Sequence
from importlib import metadata

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.task_identity import TaskIdentity

from ringfence_policy.errors import RunFailed
from ringfence_policy.protocol import FAULT_CODE, REFUSED_CODE
from ringfence_server.embedded_grid import EmbeddedGrid, EmbeddedNode
from ringfence_server.flower_adapter import COORDINATOR_NODE_ID, become_serverapp, from_bytes, stamp, to_bytes
from ringfence_server.governed_strategy import CohortView
from ringfence_server.round_grid import RoundGrid

FLOWER_RUN = 4_611_686_018_427_387_905
EVERYONE = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


def grid_of(cohort_app, *, nodes: Sequence[int] = (1001, 1002, 1003)):
    return EmbeddedGrid(
        nodes=[EmbeddedNode(node_id=node_id, name=f"node {node_id}") for node_id in nodes],
        cohort_app=cohort_app,
        flower_run_id=FLOWER_RUN,
    )


def record(**arrays):
    return ArrayRecord({name: Array(np.asarray(value, np.float32)) for name, value in arrays.items()})


def reply_to(message, *, weight=1, **arrays):
    return Message(
        RecordDict({"arrays": record(**arrays), "metrics": MetricRecord({"num-examples": weight})}), reply_to=message
    )


def echo(messages, _):
    return [reply_to(message, w=[1.0]) for message in messages]


@pytest.fixture(autouse=True)
def as_serverapp():
    become_serverapp(FLOWER_RUN)


def context(node_id=1001):
    return Context(run_id=FLOWER_RUN, node_id=node_id, node_config={}, state=RecordDict(), run_config={})


def test_this_is_the_flower_that_was_pinned():
    assert metadata.version("flwr").startswith("1.41.")


# --- the task identity and the message id ---------------------------------------------------------------------------


def test_a_message_can_only_be_built_where_the_task_identity_is_set(monkeypatch):
    monkeypatch.setattr(TaskIdentity, "_run_id", None)
    with pytest.raises(RuntimeError, match="run_id"):
        Message(RecordDict(), 1001, "train")


def test_the_adapter_sets_all_of_the_task_identity_and_flower_puts_it_into_messages():
    run = become_serverapp(FLOWER_RUN)
    message = Message(RecordDict(), 1001, "train")
    assert (TaskIdentity.run_id, TaskIdentity.node_id) == (FLOWER_RUN, COORDINATOR_NODE_ID)
    assert TaskIdentity.task_id is not None
    assert message.metadata.run_id == run.run_id == FLOWER_RUN
    assert message.metadata.src_node_id == COORDINATOR_NODE_ID


def test_a_message_has_no_id_until_it_is_stamped_and_its_reply_names_the_stamp():
    message = Message(RecordDict(), 1001, "train")
    assert message.metadata.message_id == ""
    first = stamp(message)
    assert message.metadata.message_id == first
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == first
    assert reply.metadata.src_node_id == 1001
    assert stamp(Message(RecordDict(), 1001, "train")) != first


def test_a_message_and_its_reply_pass_through_bytes_unchanged():
    message = Message(RecordDict({"body": ConfigRecord({"data": b"\x00\xff", "text": "t"})}), 5, "train", ttl=30.0)
    message.content["arrays"] = ArrayRecord({"file": Array(dtype="uint8", shape=(3,), stype="file", data=b"abc")})
    stamp(message)
    there = from_bytes(to_bytes(message))
    for name in ("message_id", "dst_node_id", "src_node_id", "message_type", "created_at", "ttl", "run_id", "group_id"):
        assert getattr(there.metadata, name) == getattr(message.metadata, name)
    assert there.content == message.content
    replies = [reply_to(there, w=[1.5]), Message(Error(code=REFUSED_CODE, reason="no"), reply_to=there)]
    back = [from_bytes(to_bytes(reply)) for reply in replies]
    assert [reply.metadata.reply_to_message_id for reply in back] == [message.metadata.message_id] * 2
    assert back[0].content == replies[0].content
    assert (back[1].error.code, back[1].error.reason) == (REFUSED_CODE, "no")


def test_how_long_a_message_lives_can_be_set_until_it_is_sent_and_bounds_its_reply():
    message = Message(RecordDict(), 1001, "train")
    message.metadata.ttl = 5.0
    stamp(message)
    assert message.metadata.ttl == 5.0
    assert message.metadata.created_at == pytest.approx(time.time(), abs=60)
    assert 0 < Message(RecordDict(), reply_to=message).metadata.ttl <= 5.0


def test_flowers_own_error_codes_mean_what_the_coordinator_says_they_mean():
    assert ErrorCode.LOAD_CLIENT_APP_EXCEPTION == 1
    assert ErrorCode.CLIENT_APP_RAISED_EXCEPTION == 2
    assert ErrorCode.MESSAGE_UNAVAILABLE == 3
    assert ErrorCode.REPLY_MESSAGE_UNAVAILABLE == 4
    assert ErrorCode.NODE_UNAVAILABLE == 5
    assert ErrorCode.CLIENT_APP_CRASHED == 8


def test_a_run_can_be_described_by_its_number_alone():
    run = become_serverapp(7)
    assert run.run_id == 7


# --- the grid -------------------------------------------------------------------------------------------------------


def test_the_embedded_grid_is_all_of_flowers_grid():
    assert not getattr(EmbeddedGrid, "__abstractmethods__", None)
    assert not getattr(CohortView, "__abstractmethods__", None)
    assert not getattr(RoundGrid, "__abstractmethods__", None)
    assert set(Grid.__abstractmethods__) <= set(vars(EmbeddedGrid))


def test_the_grid_answers_each_message_once_and_in_order():
    grid = grid_of(echo)
    messages = [Message(RecordDict(), node_id, "train") for node_id in (1002, 1001)]
    ids = list(grid.push_messages(messages))
    replies = list(grid.pull_messages(ids))
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert [reply.metadata.src_node_id for reply in replies] == [1002, 1001]
    assert list(grid.pull_messages(ids)) == []


def test_a_fault_of_the_whole_holders_side_reaches_the_coordinator_as_one_error_for_each_message():
    def broken(*_):
        raise ValueError("patient 17 has a value nobody foresaw")

    grid = grid_of(broken)
    replies = list(grid.send_and_receive([Message(RecordDict(), node_id, "train") for node_id in (1001, 1002)]))
    assert [reply.error.code for reply in replies] == [FAULT_CODE, FAULT_CODE]
    assert all("patient" not in reply.error.reason for reply in replies)


# --- ClientApp and mods ---------------------------------------------------------------------------------------------


def test_an_error_that_a_mod_answers_with_arrives_as_it_was_given():
    def mod(message, _context, _call_next):
        return Message(Error(code=REFUSED_CODE, reason='{"decision":{}}'), reply_to=message)

    app = ClientApp(mods=[mod])

    @app.train()
    def train(*_):
        raise AssertionError("a refused message reached the training function")

    message = Message(RecordDict(), 1001, "train")
    stamp(message)
    reply = app(message, context())
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (REFUSED_CODE, '{"decision":{}}')


def test_every_mod_of_an_app_stands_before_queries_trainings_and_evaluations():
    seen = []

    def mod(message, context_, call_next):
        seen.append(message.metadata.message_type)
        return call_next(message, context_)

    app = ClientApp(mods=[mod])
    for register in (app.train(), app.evaluate(), app.query("propose")):
        register(lambda message, _: Message(RecordDict(), reply_to=message))
    for kind in ("train", "evaluate", "query.propose"):
        app(Message(RecordDict(), 1001, kind), context())
    assert seen == ["train", "evaluate", "query.propose"]


def test_an_app_knows_no_other_action_than_the_registered_ones():
    app = ClientApp()
    app.train()(lambda message, _: Message(RecordDict(), reply_to=message))
    for kind in ("train.other", "query.propose", "evaluate"):
        with pytest.raises(ValueError, match="registered"):
            app(Message(RecordDict(), 1001, kind), context())


# --- strategies -----------------------------------------------------------------------------------------------------


class Steps(Strategy):
    """Writes down in which order Flower calls a strategy."""

    def __init__(self):
        self.steps = []

    def summary(self):
        self.steps.append("summary")

    def configure_train(self, server_round, arrays, config, grid):  # noqa: ARG002
        self.steps.append(f"configure_train {server_round}")
        return [Message(RecordDict(), 1001, "train")]

    def aggregate_train(self, server_round, replies):
        self.steps.append(f"aggregate_train {server_round} {len(list(replies))}")
        return (record(w=[server_round]) if server_round != 2 else None), None

    def configure_evaluate(self, server_round, arrays, config, grid):  # noqa: ARG002
        self.steps.append(f"configure_evaluate {server_round} {arrays['w'].numpy().tolist()}")
        return []

    def aggregate_evaluate(self, server_round, replies):
        self.steps.append(f"aggregate_evaluate {server_round} {len(list(replies))}")


def test_a_strategy_trains_then_evaluates_each_round_and_keeps_the_model_where_a_round_made_none():
    strategy = Steps()
    result = strategy.start(grid=grid_of(echo), initial_arrays=record(w=[0.0]), num_rounds=3)
    assert strategy.steps == [
        "summary",
        "configure_train 1", "aggregate_train 1 1", "configure_evaluate 1 [1.0]", "aggregate_evaluate 1 0",
        "configure_train 2", "aggregate_train 2 1", "configure_evaluate 2 [1.0]", "aggregate_evaluate 2 0",
        "configure_train 3", "aggregate_train 3 1", "configure_evaluate 3 [3.0]", "aggregate_evaluate 3 0",
    ]  # fmt: skip
    assert result.arrays["w"].numpy().tolist() == [3.0]


def test_fedavg_puts_one_and_the_same_record_into_every_message():
    """Why the governor builds each holder's message anew: what is written for one holder would reach all."""
    grid = grid_of(echo)
    messages = list(FedAvg(**EVERYONE).configure_train(1, record(w=[0.0]), ConfigRecord(), grid))
    assert len({id(message.content) for message in messages}) == 1
    messages[0].content["secret"] = ConfigRecord({"for": "one holder"})
    assert all("secret" in message.content for message in messages)


def test_fedavg_names_its_records_and_its_weight_as_the_protocol_does():
    strategy = FedAvg(**EVERYONE)
    messages = list(strategy.configure_train(3, record(w=[0.0]), ConfigRecord(), grid_of(echo)))
    assert set(messages[0].content.array_records) == {"arrays"}
    assert messages[0].content.config_records["config"]["server-round"] == 3
    assert strategy.weighted_by_key == "num-examples"


def test_one_reply_of_other_parameters_ends_a_bare_fedavg_for_everyone():
    """Why updates are checked before any strategy sees them."""
    messages = [Message(RecordDict(), node_id, "train") for node_id in (1001, 1002)]
    replies = [reply_to(messages[0], w=[1.0]), reply_to(messages[1], v=[1.0])]
    with pytest.raises(Exception, match="same keys"):
        FedAvg(**EVERYONE).aggregate_train(1, replies)


def test_one_nan_or_one_forged_count_destroys_a_bare_fedavgs_model():
    """Why updates are checked before any strategy sees them."""
    messages = [Message(RecordDict(), node_id, "train") for node_id in (1001, 1002)]
    poisoned, _ = FedAvg(**EVERYONE).aggregate_train(
        1, [reply_to(messages[0], w=[1.0]), reply_to(messages[1], w=[np.nan])]
    )
    assert np.isnan(poisoned["w"].numpy()).all()
    forged, _ = FedAvg(**EVERYONE).aggregate_train(
        1, [reply_to(messages[0], w=[1.0]), reply_to(messages[1], weight=10**9, w=[-5.0])]
    )
    assert forged["w"].numpy() == pytest.approx([-5.0], abs=1e-6)


def test_fedavg_leaves_error_replies_out_of_its_sum():
    messages = [Message(RecordDict(), node_id, "train") for node_id in (1001, 1002)]
    error = Message(Error(code=REFUSED_CODE, reason="no"), reply_to=messages[1])
    arrays, _ = FedAvg(**EVERYONE).aggregate_train(1, [reply_to(messages[0], w=[2.0]), error])
    assert arrays["w"].numpy().tolist() == [2.0]


def test_a_strategy_that_waits_for_more_nodes_than_permit_ends_instead_of_hanging(monkeypatch):
    """A bare FedAvg polls for ever. Behind the gate nobody else will come: the cohort is what permits."""
    naps = []
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", naps.append)
    view = CohortView(grid_of(echo), [1001])
    with pytest.raises(RunFailed, match="more data holders than permit"):
        FedAvg(min_available_nodes=3).configure_train(1, record(w=[0.0]), ConfigRecord(), view)
    assert 0 < len(naps) < 20


def test_a_strategy_sees_and_samples_only_nodes_that_permit():
    view = CohortView(grid_of(echo), [1001, 1003])
    assert view.get_node_ids() == [1001, 1003]
    assert [node.node_id for node in view.get_nodes()] == [1001, 1003]
    random.seed(0)
    messages = list(FedAvg(**EVERYONE).configure_train(1, record(w=[0.0]), ConfigRecord(), view))
    assert {message.metadata.dst_node_id for message in messages} == {1001, 1003}


@pytest.mark.parametrize(
    "reach_out",
    [
        lambda view: view.push_messages([]),
        lambda view: view.pull_messages([]),
        lambda view: view.send_and_receive([]),
        lambda view: view.set_run(view.run),
    ],
    ids=["push", "pull", "send", "set the run"],
)
def test_a_strategy_reaches_no_data_holder_by_itself(reach_out):
    with pytest.raises(RunFailed, match="may not reach"):
        reach_out(CohortView(grid_of(echo), [1001]))

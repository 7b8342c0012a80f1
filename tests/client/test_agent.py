"""The agent answers what a relay hands it, one message at a time and each within its time, and nobody else's."""

import contextlib
import os
import random
import socket as sockets
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from agents import agents_of, hand_over
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage

from ringfence_client import clientapp, flower_messages, relay
from ringfence_client.agent import MOST_WAITING, SERVICE
from ringfence_client.agent_client import ask_health
from ringfence_client.agent_door import AgentDoor, default_socket
from ringfence_client.holder_agent_pb2 import Envelope
from ringfence_client.holder_agent_pb2_grpc import HolderAgentStub
from ringfence_policy.errors import UsageError
from ringfence_policy.protocol import BODY_KEY, BODY_RECORD, FAULT_CODE, OFFER, SIGNATURE_KEY
from ringfence_server.conversation import read_refusal
from ringfence_server.coordinator import Coordinator
from ringfence_server.round_messages import to_record

SEED = 11


@pytest.fixture
def served(tiny_run):
    """A run whose holders have agents."""
    run = tiny_run(seed=SEED)
    with agents_of(run) as agents:
        yield run, agents


def call(socket, data, *, seconds=20.0):
    with grpc.insecure_channel(f"unix:{socket}", options=relay.CHANNEL_OPTIONS) as channel:
        return HolderAgentStub(channel).Answer(Envelope(message=data), timeout=seconds).message


def question(kind=OFFER, body=b"{}", **more):
    content = RecordDict({BODY_RECORD: ConfigRecord({BODY_KEY: body, **more})})
    return Message(content, 1001, kind)


def test_a_run_over_agents_gives_the_same_models_and_ledgers_as_one_process(tiny_run):
    together, apart = tiny_run("together", seed=SEED), tiny_run("apart", seed=SEED)
    together.train()
    with agents_of(apart) as agents:
        apart.train()
        spent = {holder: node.ledger.meters() for holder, node in agents.nodes.items()}
    assert len(together.models) == 3
    for number, model in together.models.items():
        for name, array in model.items():
            np.testing.assert_array_equal(array, apart.models[number][name])
    for holder, meters in spent.items():
        mine = {(one.quantity, one.committed, one.reserved) for one in meters}
        theirs = {(one.quantity, one.committed, one.reserved) for one in together.node(holder).ledger.meters()}
        assert mine == theirs


def test_an_agent_says_that_it_serves_and_a_closed_one_says_nothing(tiny_run):
    run = tiny_run()
    with agents_of(run) as agents:
        socket = agents.sockets["elm"]
        assert ask_health(socket) == "serving"
    assert ask_health(socket) is None


def test_a_message_that_nobody_signed_is_refused_by_the_holders_own_code(served):
    run, agents = served
    run.propose()
    reply = hand_over(question(body=b"{}"), agents.sockets["elm"])
    assert read_refusal(reply).clauses == ("trust-refused",)


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, ProtoMessage().SerializeToString(), b"\x0a\x00"])
def test_bytes_that_are_no_message_are_an_invalid_argument(served, data):
    _, agents = served
    with pytest.raises(grpc.RpcError) as caught:
        call(agents.sockets["elm"], data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_call_without_a_deadline_is_refused(served):
    _, agents = served
    with pytest.raises(grpc.RpcError) as caught:
        call(agents.sockets["elm"], flower_messages.to_bytes(question()), seconds=None)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "deadline" in caught.value.details()


def test_a_message_larger_than_the_limit_is_refused_before_it_is_read(served):
    _, agents = served
    unlimited = [("grpc.max_send_message_length", -1)]
    with (
        grpc.insecure_channel(f"unix:{agents.sockets['elm']}", options=unlimited) as way,
        pytest.raises(grpc.RpcError) as caught,
    ):
        HolderAgentStub(way).Answer(Envelope(message=bytes(relay.LARGEST_MESSAGE)), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ask_health(agents.sockets["elm"]) == "serving"


@pytest.fixture
def slow(monkeypatch):
    """Lets the next answers wait until the test says so."""
    go, began = threading.Event(), threading.Semaphore(0)
    answer = clientapp.cohort

    def wait(messages, contexts):
        began.release()
        assert go.wait(30)
        return answer(messages, contexts)

    monkeypatch.setattr(clientapp, "cohort", wait)
    yield go, began
    go.set()


def test_only_so_many_messages_wait_and_health_answers_meanwhile(served, slow):
    _, agents = served
    go, began = slow
    socket, data = agents.sockets["elm"], flower_messages.to_bytes(question())
    with ThreadPoolExecutor(MOST_WAITING + 20) as pool:
        waiting = [pool.submit(call, socket, data) for _ in range(MOST_WAITING)]
        assert began.acquire(timeout=10)
        codes = []
        # More each time: those that came before the last who wait have their places, and leave them free again.
        for count in range(2, 20):
            probes = [pool.submit(call, socket, data, seconds=0.5) for _ in range(count)]
            codes += [error.code() for one in probes if isinstance(error := one.exception(), grpc.RpcError)]
            if grpc.StatusCode.RESOURCE_EXHAUSTED in codes:
                break
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        assert ask_health(socket) == "serving"
        go.set()
        errors = [one.exception() for one in waiting]
    refused = [error for error in errors if error is not None]
    assert {error.code() for error in refused} <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(refused) < 20


def test_a_message_whose_time_ran_out_while_it_waited_is_not_begun(served, slow):
    _, agents = served
    go, began = slow
    socket, data = agents.sockets["elm"], flower_messages.to_bytes(question())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, socket, data)
        assert began.acquire(timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            call(socket, data, seconds=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        time.sleep(0.5)  # the agent's time for it ends a hair after the caller's
        go.set()
        first.result(20)
    call(socket, data)
    assert began.acquire(timeout=10)
    assert not began.acquire(blocking=False)


CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
way = socket.socket(socket.AF_UNIX)
way.settimeout(5)
way.connect(sys.argv[1])
way.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n")
print(len(way.recv(100)))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_is_not_let_in_where_it_was_not_named(served):
    _, agents = served
    shared = agents.sockets["elm"]
    shared.parent.chmod(0o755)
    shared.chmod(0o666)  # the kernel's word decides, not the file's mode
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", CONNECT, str(shared)],
        env=environment, cwd="/", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout.strip() in {"0", ""}, done.stderr
    assert ask_health(shared) == "serving"


def test_a_socket_path_that_is_too_long_says_so_and_the_usual_place_is_never_too_long(tmp_path):
    deep = tmp_path.joinpath(*["a-long-name"] * 12)
    assert len(os.fsencode(default_socket(deep))) < 100
    with pytest.raises(UsageError, match="too long"):
        AgentDoor(deep / "agent.sock", inner=tmp_path / "inner", users=frozenset({0}))


def test_a_closed_door_leaves_neither_end_of_a_connection_open(tmp_path):
    with sockets.socket(sockets.AF_UNIX) as inner, sockets.socket(sockets.AF_UNIX) as outer:
        inner.bind(str(tmp_path / "inner.sock"))
        inner.listen()
        door = AgentDoor(tmp_path / "agent.sock", inner=tmp_path / "inner.sock", users=frozenset({os.getuid()}))
        outer.connect(str(tmp_path / "agent.sock"))
        passed, _ = inner.accept()
        with passed:
            outer.sendall(b"hello")
            assert passed.recv(5) == b"hello"
            door.close()
            for end in (outer, passed):
                end.settimeout(5)
                assert end.recv(1) == b""


def test_the_usual_place_is_in_the_holders_own_state(tmp_path):
    short = tmp_path.parents[-2] / "x"
    assert default_socket(short) == short / "state" / "door" / "agent.sock"


def test_a_directory_that_everybody_can_write_to_is_no_place_for_a_socket(tmp_path):
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(Exception, match="cannot be opened"):
        AgentDoor(place / "a.sock", inner=tmp_path / "inner", users=frozenset({os.getuid()}))


# --- what a coordinator or somebody in its place may try over the wire ----------------------------------------------


@pytest.fixture
def asked(served):
    """A run that is about to train its first round, and the messages by which it would."""
    run, agents = served
    run.propose()
    deliver, held = run.deliver, []

    def hold_back(messages, contexts):
        if messages[0].metadata.message_type == "train":
            held.extend(messages)
            return [Message(Error(code=FAULT_CODE, reason="lost on the way"), reply_to=one) for one in messages]
        return deliver(messages, contexts)

    run.deliver = hold_back
    run.govern().start(grid=run.grid, initial_arrays=to_record(run.initial()), num_rounds=1)
    run.deliver = deliver
    names = {node_id: holder for holder, node_id in run.node_ids.items()}
    return run, agents, {names[message.metadata.dst_node_id]: message for message in held}


def charged(node):
    """What counts against each budget, whether its use was only sent or is known to have arrived."""
    return [meter.committed + meter.reserved for meter in node.ledger.meters()]


def test_a_request_that_is_replayed_is_refused_and_costs_nothing_more(asked):
    _, agents, requests = asked
    assert not hand_over(requests["elm"], agents.sockets["elm"]).has_error()
    spent = charged(agents.nodes["elm"])
    assert read_refusal(hand_over(requests["elm"], agents.sockets["elm"])).clauses == ("trust-refused",)
    assert charged(agents.nodes["elm"]) == spent
    assert max(spent) > 0


def test_a_request_for_another_holders_data_is_refused_and_opens_none(asked):
    _, agents, requests = asked
    before = agents.nodes["elm"].ledger.meters()
    assert read_refusal(hand_over(requests["alder"], agents.sockets["elm"])).clauses == ("trust-refused",)
    assert agents.nodes["elm"].ledger.meters() == before


def test_a_plan_that_was_changed_on_the_way_is_refused_whoever_signs_the_request(asked):
    run, agents, _ = asked
    before = agents.nodes["elm"].ledger.meters()
    reply = run.request("elm", plan_digest="sha256:" + "0" * 64)
    assert read_refusal(reply).clauses == ("plan",)
    assert agents.nodes["elm"].ledger.meters() == before


def test_another_coordinator_is_refused_although_its_messages_arrive(asked, tmp_path):
    run, agents, requests = asked
    rogue = Coordinator(tmp_path / "rogue", coordinator_id="tree-consortium")
    content = requests["elm"].content
    body = content[BODY_RECORD][BODY_KEY]
    card = run.governor.cards[run.node_ids["elm"]]
    content[BODY_RECORD][SIGNATURE_KEY] = rogue.sign_requests("train", [(card, body)])[0]
    rogue.close()
    before = agents.nodes["elm"].ledger.meters()
    assert read_refusal(hand_over(requests["elm"], agents.sockets["elm"])).clauses == ("trust-refused",)
    assert agents.nodes["elm"].ledger.meters() == before


def test_whoever_is_refused_learns_no_count_and_no_path(asked):
    run, agents, requests = asked
    said = [hand_over(requests["alder"], agents.sockets["elm"]), hand_over(question(), agents.sockets["elm"])]
    for reply in said:
        assert str(run.scenario.directory) not in reply.error.reason
        assert str(agents.nodes["elm"].workroom.facts(run.plan).records) not in reply.error.reason


# --- the relay -------------------------------------------------------------------------------------------------------


def test_a_relay_without_an_agent_says_that_there_is_none(monkeypatch, tiny_run):
    tiny_run()
    monkeypatch.setattr(relay, "_PATIENCE_SECONDS", 0.2)
    reply = hand_over(question(), "/nonexistent/agent.sock")
    assert (reply.error.code, reply.error.reason) == (FAULT_CODE, "the holder's agent is not there")
    assert "agent-socket" in hand_over(question(), None).error.reason


def test_a_relay_hands_on_the_very_message_and_the_very_answer(monkeypatch, tiny_run):
    tiny_run()
    said = []

    def answer(_, message):
        said.append(flower_messages.to_bytes(message))
        return flower_messages.to_bytes(Message(RecordDict({"x": ConfigRecord({"y": 1})}), reply_to=message))

    monkeypatch.setattr(relay, "_ask", answer)
    monkeypatch.setattr(relay, "_listens", lambda _, until: bool(until))
    message = question(body=b'{"a": 1}')
    reply = hand_over(message, "a.sock")
    assert said == [flower_messages.to_bytes(message)]
    assert dict(reply.content["x"]) == {"y": 1}


def test_the_relay_loads_neither_torch_nor_the_holders_own_code():
    code = """
import sys
import ringfence_client.relay
heavy = {"torch", "opacus", "polars", "cedarpy", "sqlite3"} & set(sys.modules)
own = sorted(name for name in sys.modules if name.startswith("ringfence"))
print(heavy, own)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("set()"), done.stdout
    assert "ringfence_client.clientapp" not in done.stdout
    assert "ringfence_client.home" not in done.stdout


def test_the_agent_itself_never_loads_torch():
    code = "import sys, ringfence_client.node_start; print({'torch', 'opacus'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


# --- what a stranger's bytes do --------------------------------------------------------------------------------------


def mutated(data, rng):
    """The bytes with a few of them changed, cut, doubled or replaced."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                del data[place : place + rng.randint(1, 40)]
            case 2:
                data[place:place] = rng.randbytes(rng.randint(1, 40))
            case _:
                data[place:place] = data[: rng.randint(0, 60)]
    return bytes(data)


def with_a_broken_body(message, rng):
    """A message of Flower's that is one, with something else inside than the coordinator wrote and signed."""
    content = RecordDict(dict(message.content))
    record = dict(content[BODY_RECORD])
    name = rng.choice(list(record))
    value = record[name]
    if isinstance(value, bytes):
        record[name] = mutated(value, rng)
    else:
        record[name] = mutated(value.encode(), rng).decode("latin-1")
    content[BODY_RECORD] = ConfigRecord(record)
    metadata = message.metadata
    return flower_messages.to_bytes(Message(content, metadata.dst_node_id, metadata.message_type))


@pytest.mark.slow
def test_ten_thousand_broken_messages_use_no_data_and_leave_the_agent_up(served, caplog):
    """What is fuzzed: bytes on the gRPC service, and Flower messages whose bodies and signatures were once true."""
    run, agents = served
    caplog.set_level("CRITICAL")
    seen = []
    run.deliver, deliver = (
        (lambda messages, contexts: seen.extend(messages) or deliver(messages, contexts)),
        run.deliver,
    )
    run.train(rounds=1)
    seen = [message for message in seen if message.metadata.dst_node_id == run.node_ids["elm"]]
    whole = [flower_messages.to_bytes(message) for message in seen]
    before = {holder: node.ledger.meters() for holder, node in agents.nodes.items()}
    rng = random.Random(5)  # noqa: S311 -- fuzzing
    counts = {"invalid": 0, "refused": 0, "other": 0, "failed": 0}
    with grpc.insecure_channel(f"unix:{agents.sockets['elm']}", options=relay.CHANNEL_OPTIONS) as channel:
        stub = HolderAgentStub(channel)
        for _ in range(10_000):
            is_whole = rng.random() < 0.5
            data = mutated(rng.choice(whole), rng) if is_whole else with_a_broken_body(rng.choice(seen), rng)
            try:
                reply = flower_messages.from_bytes(stub.Answer(Envelope(message=data), timeout=30).message)
                counts["refused" if reply.has_error() else "other"] += 1
            except grpc.RpcError as error:
                counts["invalid" if error.code() is grpc.StatusCode.INVALID_ARGUMENT else "failed"] += 1
    assert counts["failed"] == 0
    assert counts["invalid"] > 1000
    assert counts["refused"] > 1000
    assert {holder: node.ledger.meters() for holder, node in agents.nodes.items()} == before
    assert ask_health(agents.sockets["elm"]) == "serving"


def test_garbage_on_the_socket_itself_leaves_the_agent_up(served):
    _, agents = served
    rng = random.Random(3)  # noqa: S311 -- fuzzing
    for _ in range(200):
        with sockets.socket(sockets.AF_UNIX) as way:
            way.connect(str(agents.sockets["elm"]))
            start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if rng.random() < 0.5 else b""
            with contextlib.suppress(OSError):
                way.sendall(start + rng.randbytes(rng.randint(1, 4000)))
    until = time.monotonic() + 20  # the last of them are still being turned away
    while ask_health(agents.sockets["elm"]) != "serving":
        assert time.monotonic() < until
    assert SERVICE == "ringfence.holder.v1.HolderAgent"

"""`ringfence-node start` as a process of its own: what it owns, what it survives, and how it ends."""

import json
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agents import hand_over
from faults import Held, states_of
from flwr.app import ConfigRecord, Message, RecordDict
from run_command import is_alive, wait_for

from deployment import wait_until
from ringfence_client.agent_client import ask_health
from ringfence_client.agent_door import default_socket
from ringfence_policy.identity import SigningKey
from ringfence_policy.letters import Invitation
from ringfence_policy.protocol import BODY_KEY, BODY_RECORD, OFFER
from ringfence_policy.transport_keys import make_authority
from ringfence_server.conversation import read_refusal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="walls are made of Linux")
SEED = 11


class Process:
    """One `ringfence-node start`, whose events a test can wait for."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.socket = default_socket(directory)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ringfence_client.cli", "start", str(directory), "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events: list[dict[str, object]] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, name: str, *, seconds: float = 60) -> dict[str, object]:
        """The first event of that name."""
        with self._more:
            assert self._more.wait_for(lambda: self.find(name) is not None, seconds), self.events
        return self.find(name)

    def find(self, name: str) -> dict[str, object] | None:
        return next((event for event in self.events if event["event"] == name), None)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and give the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()
        return code

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._more:
                self.events.append(json.loads(line))
                self._more.notify_all()


@pytest.fixture
def joined(tiny_run):
    """A run whose holder elm has accepted its coordinator's invitation."""
    run = tiny_run(seed=SEED, policies={"elm": {"settings.sandbox": None}})
    coordinator = run.scenario.directory / "coordinator"
    root = SigningKey.load(coordinator / "root.key.jwk")
    letter = Invitation(
        coordinator="tree-consortium",
        root_jwk=root.public().jwk,
        address="127.0.0.1:9",
        authority=make_authority("trees", now=datetime.now(UTC)).certificate,
        issued_ms=1,
    )
    (run.home("elm").papers / "coordinator.jws").write_text(letter.sign(root))
    return run


@pytest.fixture
def started(joined):
    """A factory of processes for elm, ended with the test."""
    opened = []

    def start(*options):
        opened.append(Process(joined.scenario.holder("elm"), "--no-supernode", "--threads", "1", *options))
        return opened[-1]

    yield start
    for one in opened:
        one.end(signal.SIGKILL)


def through(process, run):
    """Let a run's messages to elm go through the process, and the others' through this one."""
    deliver, elm = run.deliver, run.node_ids["elm"]

    def split(messages, contexts):
        return [
            hand_over(message, process.socket)
            if message.metadata.dst_node_id == elm
            else deliver([message], [context])[0]
            for message, context in zip(messages, contexts, strict=True)
        ]

    run.deliver = split


def test_a_real_holders_agent_trains_behind_walls_and_its_policy_needs_them(joined, started):
    process = started()
    process.wait_for("ready")
    assert process.wait_for("trainer-started")["breaches"] == {}
    assert ask_health(process.socket) == "serving"
    through(process, joined)
    outcomes = joined.train()
    assert all(outcome.cohort == ["alder", "birch", "elm"] for outcome in outcomes)
    assert process.end() == 0
    assert [event["event"] for event in process.events][-2:] == ["stopping", "stopped"]
    assert ask_health(process.socket) is None


def test_an_agent_that_is_killed_and_started_again_goes_on_with_the_run(joined, started):
    first = started()
    first.wait_for("ready")
    through(first, joined)
    joined.propose()
    joined.governor.offer(joined.grid, 1)
    assert not joined.request("elm", known_size=0).has_error()
    first.end(signal.SIGKILL)
    second = started()
    second.wait_for("ready")
    joined.governor.offer(joined.grid, 2)
    joined.replies.clear()
    assert joined.governor.absent == {}
    assert second.end() == 0
    node = joined.node("elm")
    assert {hold.state.value for hold in node.ledger.holds(joined.file.run_id)} == {"committed"}
    assert len(joined.log_of("elm", "sent")) == 1


def test_an_agent_that_is_killed_while_it_trains_has_spent_nothing_and_takes_part_in_the_next_round(joined, started):
    """The one line of the matrix in docs/faults.md that is quick enough to be run each time."""
    first = started()
    first.wait_for("ready")
    through(first, joined)
    joined.propose()
    joined.governor.offer(joined.grid, 1)
    assert not joined.request("elm").has_error()
    trainer = first.wait_for("trainer-started")["pid"]
    ledger = joined.scenario.holder("elm")
    held = Held()
    held.hold(trainer)

    def kill_once_it_trains():
        wait_until("the round is reserved", lambda: states_of(ledger, 2) == {"reserved"}, seconds=60)
        first.process.kill()

    killer = threading.Thread(target=kill_once_it_trains)
    killer.start()
    reply = joined.request("elm", round_number=2)
    killer.join()
    held.let_go()
    assert (reply.has_error(), "did not answer" in reply.error.reason) == (True, True)

    joined.restart_nodes()  # this process had the holder open too, to see its log: now nobody has
    second = started()
    second.wait_for("ready")
    assert states_of(ledger, 2) == {"released"}
    through(second, joined)
    joined.governor.offer(joined.grid, 3)
    assert not joined.request("elm", round_number=3).has_error()
    assert second.end() == 0
    assert {number: states_of(ledger, number) for number in (1, 2, 3)} == {
        1: {"committed"},
        2: {"released"},
        3: {"sending"},
    }
    assert [one["round"] for one in joined.log_of("elm", "sent")] == [1, 3]


def test_trainer_and_agent_die_together_when_the_agent_is_killed(started):
    process = started()
    pid = process.wait_for("trainer-started")["pid"]
    process.wait_for("ready")
    process.end(signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))


def test_a_holder_that_joined_nobody_is_told_what_to_do(tiny_run):
    run = tiny_run()
    command = [sys.executable, "-m", "ringfence_client.cli", "start", str(run.scenario.holder("elm")), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "scenario-invalid"
    assert "ringfence-node join" in error["next_step"]
    assert "Traceback" not in done.stderr


def test_a_message_to_a_process_that_nobody_signed_is_refused(started):
    process = started()
    process.wait_for("ready")
    question = Message(RecordDict({BODY_RECORD: ConfigRecord({BODY_KEY: b"{}"})}), 1, OFFER)
    assert read_refusal(hand_over(question, process.socket)).clauses == ("trust-refused",)

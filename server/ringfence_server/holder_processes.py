"""Many simulated data holders shared out over several processes, so that every core decides, charges and trains.

Each holder's node lives in one of them for the whole run. What is sent is Flower's own messages, as Flower writes them;
everything above that is what happens in one process. A process that ends ends the run, which can be taken up again, and
none goes on when the run's own process has ended, however that came.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Final

from flwr.app import Context, Message

from ringfence_policy.errors import RunFailed
from ringfence_server.embedded_grid import EmbeddedNode, answered
from ringfence_server.flower_adapter import from_bytes, to_bytes
from ringfence_server.run_file import CLOSE_NODES, COHORT_APP, reach
from ringfence_server.worker_process import usable_cores

_GRACE_SECONDS: Final = 10
_THREADS: Final = "OMP_NUM_THREADS"


class _Part:
    """One other process, and the way to it."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)  # noqa: FBT003 -- its one way to be called
            self.process = subprocess.Popen(  # noqa: S603 -- our own module
                [sys.executable, "-m", "ringfence_server.holder_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                # What this process may hand on: the other end, and the scenario's lock, which is held while any lives.
                close_fds=False,
            )

    def tell(self, what: Mapping[str, object]) -> None:
        """Say once what it has to know."""
        with _lost_is_the_run():
            self.connection.send_bytes(json.dumps(what).encode())

    def ask(self, messages: Sequence[Message]) -> None:
        """Hand messages over, to be answered."""
        with _lost_is_the_run():
            send(self.connection, messages)

    def answers(self, count: int) -> list[Message]:
        """What it answers to what it was asked last, so many messages."""
        with _lost_is_the_run():
            replies = receive(self.connection)
            if len(replies) != count:
                raise EOFError
            return replies

    def end(self) -> None:
        """Let it close what it opened and end."""
        with suppress(OSError):  # it has ended
            send(self.connection, ())


@contextmanager
def _lost_is_the_run() -> Iterator[None]:
    """End the run where a process of holders fails.

    Whose updates are in a model has to say that it may be released, and the holders of that process say nothing any
    more. Nor can one be asked again with part of an answer still on its way.
    """
    try:
        yield
    except Exception as error:
        raise RunFailed(
            "a process of data holders was lost",
            got=type(error).__name__,
            next_step="what was committed is kept: `ringfence run --resume DIR` starts all processes anew",
        ) from error


class HolderProcesses:
    """The holders' side of an `EmbeddedGrid`, shared out over this process and others, which load once started."""

    def __init__(self, others: Sequence[_Part]) -> None:
        """Wrap started processes; callers use `holder_processes`."""
        self._others = others
        self._other_of: dict[int, _Part] = {}

    def take_in(self, nodes: Sequence[EmbeddedNode], *, flower_run_id: int) -> None:
        """Share the nodes out evenly, to this process first. Once, before the first message.

        Raises:
            RunFailed: A process ended.
        """
        for number, other in enumerate(self._others, start=1):
            own = nodes[number :: len(self._others) + 1]
            self._other_of |= dict.fromkeys((node.node_id for node in own), other)
            told = {"flower_run_id": flower_run_id, "nodes": {node.node_id: dict(node.config) for node in own}}
            other.tell(told)

    def close_nodes(self) -> None:
        """Close every node, here and elsewhere: nobody is asked anything any more. Safe to call twice."""
        for other in self._others:
            other.end()
        reach(CLOSE_NODES)()

    def __call__(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """Have each message answered where its node lives; the answers come in the messages' order.

        Raises:
            RunFailed: A process ended, or what it said cannot be read.
        """
        here: list[int] = []
        elsewhere: dict[_Part, list[int]] = {}
        for position, message in enumerate(messages):
            other = self._other_of.get(message.metadata.dst_node_id)
            (here if other is None else elsewhere.setdefault(other, [])).append(position)
        for other, positions in elsewhere.items():
            other.ask([messages[at] for at in positions])
        own = answered(reach(COHORT_APP), [messages[at] for at in here], [contexts[at] for at in here]) if here else []
        replies = dict(zip(here, own, strict=True))
        for other, positions in elsewhere.items():
            replies |= zip(positions, other.answers(len(positions)), strict=True)
        return [replies[position] for position in range(len(messages))]


@contextmanager
def holder_processes(count: int) -> Iterator[HolderProcesses]:
    """So many processes, this one included, for the length of the block. The others end with it, however it ends.

    The threads that this process may compute with they share, as OMP_NUM_THREADS then says in the others, and here to
    what asks it from then on.
    """
    said = os.environ.get(_THREADS, "")
    threads = int(said) if said.isdecimal() else usable_cores()
    others: list[_Part] = []
    try:
        os.environ[_THREADS] = str(max(1, threads // count))
        for _ in range(count - 1):
            others.append(_Part())  # noqa: PERF401 -- what was started is ended, come what may
        yield HolderProcesses(others)
    finally:
        os.environ.pop(_THREADS)
        if said:
            os.environ[_THREADS] = said
        for other in others:
            other.connection.close()
        until = time.monotonic() + _GRACE_SECONDS
        for other in others:
            _wait(other.process, seconds=until - time.monotonic())


def _wait(process: "subprocess.Popen[bytes]", *, seconds: float) -> None:
    """Wait for the end of a process that was left alone; where it does not come, bring it about."""
    try:
        process.wait(timeout=max(0.0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def send(connection: "Connection[bytes, bytes]", messages: Sequence[Message]) -> None:
    """Send messages: how many, then each as bytes."""
    connection.send_bytes(str(len(messages)).encode())
    for message in messages:
        connection.send_bytes(to_bytes(message))


def receive(connection: "Connection[bytes, bytes]") -> list[Message]:
    """Receive what `send` sent.

    Raises:
        EOFError: The other side ended.
    """
    return [from_bytes(connection.recv_bytes()) for _ in range(int(connection.recv_bytes()))]

"""Many simulated data holders shared out over several processes, so that every core decides, charges and trains.

Each holder's node lives in one of them for the whole run. What is sent is Flower's own messages, as Flower writes them;
everything above that is what happens in one process. A process that ends takes its own holders along and no others.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from logging import getLogger
from multiprocessing.connection import Connection, Pipe
from typing import Final

from flwr.app import Context, Message

from ringfence_server.embedded_grid import EmbeddedNode, answered, failed
from ringfence_server.flower_adapter import from_bytes, to_bytes
from ringfence_server.run_file import COHORT_APP, reach

_GRACE_SECONDS: Final = 10

_log = getLogger(__name__)


class _Part:
    """One other process, and the way to it."""

    def __init__(self, threads: int) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)  # noqa: FBT003 -- its one way to be called
            self.process = subprocess.Popen(  # noqa: S603 -- our own module
                [sys.executable, "-m", "ringfence_server.holder_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                # What this process may hand on: the other end, and the scenario's lock, which is held while any lives.
                close_fds=False,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )

    def wait(self) -> None:
        """Wait for its end, which comes when the connection was closed: nobody is there to ask."""
        try:
            self.process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class HolderProcesses:
    """The holders' side of an `EmbeddedGrid`, shared out over this process and others, which load once started."""

    def __init__(self, others: Sequence[_Part]) -> None:
        """Wrap started processes; callers use `holder_processes`."""
        self._others = others
        self._other_of: dict[int, _Part] = {}

    def take_in(self, nodes: Sequence[EmbeddedNode], *, flower_run_id: int) -> None:
        """Share the nodes out, the first ones to this process. Once, before the first message."""
        for number, other in enumerate(self._others, start=1):
            own = nodes[number :: len(self._others) + 1]
            self._other_of |= dict.fromkeys((node.node_id for node in own), other)
            told = {"flower_run_id": flower_run_id, "nodes": {node.node_id: dict(node.config) for node in own}}
            with suppress(OSError):  # one that ended already is found when it is asked
                other.connection.send_bytes(json.dumps(told).encode())

    def __call__(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """Have each message answered where its node lives; the answers come in the messages' order."""
        here: list[int] = []
        elsewhere: dict[_Part, list[int]] = {}
        for position, message in enumerate(messages):
            other = self._other_of.get(message.metadata.dst_node_id)
            (here if other is None else elsewhere.setdefault(other, [])).append(position)
        for other, positions in elsewhere.items():
            with suppress(OSError):  # as in `take_in`
                send(other.connection, [messages[position] for position in positions])
        own = answered(reach(COHORT_APP), [messages[at] for at in here], [contexts[at] for at in here]) if here else []
        replies = dict(zip(here, own, strict=True))
        for other, positions in elsewhere.items():
            try:
                replies |= zip(positions, receive(other.connection), strict=True)
            except (EOFError, OSError) as error:
                _log.error("a process of holders ended: %s", type(error).__name__)
                replies |= {position: failed(messages[position], error) for position in positions}
        return [replies[position] for position in range(len(messages))]


@contextmanager
def holder_processes(count: int) -> Iterator[HolderProcesses]:
    """So many processes, this one included, for the length of the block. The others end with it, however it ends."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(said) if said.isdecimal() else os.cpu_count() or 1
    others: list[_Part] = []
    try:
        for _ in range(count - 1):
            others.append(_Part(max(1, threads // count)))  # noqa: PERF401 -- what was started is ended, come what may
        yield HolderProcesses(others)
    finally:
        for other in others:
            other.connection.close()
        for other in others:
            other.wait()


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

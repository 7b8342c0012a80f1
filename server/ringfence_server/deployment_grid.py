"""The Grid of a run over a SuperLink: messages go to registered SuperNodes alone, and who is away answers at once.

Flower's own Grid takes any message. One to a SuperNode that never connected breaks its reckoning (the SuperLink gives
no id for it), and the SuperLink knows nodes by number, where this coordinator knows holders by key.
"""

import time
from collections.abc import Iterable, Mapping
from logging import getLogger

from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from ringfence_server.flower_adapter import stamp

# What Flower itself answers with for a node that went away.
NODE_UNAVAILABLE = 5
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0

_log = getLogger(__name__)


class DeploymentGrid(Grid):
    """Flower's Grid to a SuperLink, for the SuperNodes of one run.

    Args:
        inner: Flower's Grid, as the ServerApp is given it.
        keys: The public key, PEM, that each SuperNode was registered with, by Flower's number for it. A node that
            shows another key under that number is never asked.
    """

    def __init__(self, inner: Grid, *, keys: Mapping[int, str]) -> None:
        self._inner = inner
        self._keys = dict(keys)
        self._away: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Replace the run's description."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Build a message as Flower's deprecated call does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The numbers of the run's SuperNodes that are connected."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> list[NodeInfo]:
        """The run's SuperNodes that are connected, each under the key it was registered with."""
        found = []
        for node in self._inner.get_nodes():
            key = self._keys.get(node.node_id)
            if key is not None and node.public_key == key.encode():
                found.append(node)
            elif key is not None:
                _log.error("node %d shows another key than was registered: it is not asked", node.node_id)
        return found

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages to those who are connected; the others' answers are ready at once."""
        wanted = list(messages)
        connected = set(self.get_node_ids()) if wanted else set()
        sent = [message for message in wanted if message.metadata.dst_node_id in connected]
        taken = iter(list(self._inner.push_messages(sent))) if sent else iter(())
        ids = []
        for message in wanted:
            message_id = next(taken, None) if message.metadata.dst_node_id in connected else None
            ids.append(message_id or self._note_away(message))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages that are there, each once."""
        wanted = list(message_ids)
        found = [self._away.pop(one) for one in wanted if one in self._away]
        answered = {message.metadata.reply_to_message_id for message in found}
        left = [one for one in wanted if one not in answered]
        return [*found, *(self._inner.pull_messages(left) if left else ())]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for their replies, or until time is up."""
        until = None if timeout is None else time.monotonic() + timeout
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        pause = _SHORTEST_PAUSE
        while waiting:
            came = self.pull_messages(waiting)
            replies += came
            waiting -= {message.metadata.reply_to_message_id for message in came}
            if not waiting or (until is not None and time.monotonic() >= until):
                break
            pause = _SHORTEST_PAUSE if came else min(_LONGEST_PAUSE, pause * 1.5)
            time.sleep(pause if until is None else max(0.0, min(pause, until - time.monotonic())))
        return replies

    def _note_away(self, message: Message) -> str:
        message_id = stamp(message)
        error = Error(code=NODE_UNAVAILABLE, reason="its SuperNode is not connected")
        self._away[message_id] = Message(error, reply_to=message)
        return message_id

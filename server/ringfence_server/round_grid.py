"""A Flower Grid that waits as long as a plan says: until enough answers are there, all are, or time is up.

Flower's own `send_and_receive` waits for every node, and without a time-out for ever. A node that does not answer must
cost a round its time at most, and where the plan has asked more holders than it needs, not even that.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

POLL_SECONDS = 1.0
# How much longer than we wait the SuperLink keeps a message, so that an answer of the last moment can still be fetched.
_KEPT_SECONDS = 5.0


def _never(_replies: Sequence[Message]) -> bool:
    return False


class RoundGrid(Grid):
    """The Grid of one run, on which every question has the plan's deadline.

    Args:
        grid: The way to the nodes.
        seconds: How long the nodes have for one answer.
        is_enough: Told all replies so far, says whether to wait for no more.
        poll_seconds: How long to wait before asking the Grid for replies again.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        seconds: float,
        is_enough: Callable[[Sequence[Message]], bool] = _never,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._grid = grid
        self._seconds = seconds
        self._is_enough = is_enough
        self._poll_seconds = poll_seconds

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages, and give the replies that came before the deadline, or before there were enough.

        What comes later is never fetched, and so counts in no later round either.

        Args:
            messages: The messages.
            timeout: A shorter time, in seconds, than the plan's.
        """
        sent = list(messages)
        if not sent:
            return []
        seconds = self._seconds if timeout is None else min(self._seconds, timeout)
        ends = time.monotonic() + seconds
        for message in sent:
            # Flower counts a message's life from when it was made.
            message.metadata.ttl = time.time() - message.metadata.created_at + seconds + _KEPT_SECONDS
        # Flower gives no id for a message that the SuperLink did not take: that holder is not heard.
        waiting = [message_id for message_id in self._grid.push_messages(sent) if message_id]
        replies: list[Message] = []
        while waiting:
            came = [reply for reply in self._grid.pull_messages(waiting) if _answers(reply) in waiting]
            replies += came
            answered = {_answers(reply) for reply in came}
            waiting = [message_id for message_id in waiting if message_id not in answered]
            left = ends - time.monotonic()
            if left <= 0 or (came and self._is_enough(replies)):
                break
            if waiting:
                time.sleep(min(self._poll_seconds, left))
        return replies

    # --- the Grid as it is -------------------------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Replace the run's description."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Build a message as Flower's deprecated call does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes' numbers."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages without waiting."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch the replies that are there."""
        return self._grid.pull_messages(message_ids)


def _answers(reply: Message) -> str:
    return reply.metadata.reply_to_message_id

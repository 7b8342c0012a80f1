"""An embedded Grid on which a test may lose a message, keep an answer for later, or let a node be offline."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Error, Message

from ringfence_server.embedded_grid import EmbeddedGrid
from ringfence_server.flower_adapter import COORDINATOR_NODE_ID, stamp

NODE_UNAVAILABLE = 5
Chosen = Callable[[Message], bool]


def _none(_message: Message) -> bool:
    return False


class LateGrid(EmbeddedGrid):
    """Delivers like the embedded Grid, but for what a test chooses.

    Attributes:
        loses: Messages that never reach their holder, and are never answered.
        is_offline: Messages that never reach their holder, for which the SuperLink answers that its node is offline.
        keeps: Messages whose answers do not come before `let_go`.
        kept: Those answers, by what they answer.
        brings_everything: Whether each pull brings every answer that is there, whatever was asked for.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.loses: Chosen = _none
        self.is_offline: Chosen = _none
        self.keeps: Chosen = _none
        self.kept: dict[str, Message] = {}
        self.brings_everything = False

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver what is not lost, and keep what is late."""
        sent = list(messages)
        absent = [message for message in sent if self.loses(message) or self.is_offline(message)]
        super().push_messages([message for message in sent if message not in absent])
        for message in absent:
            message_id = stamp(message)
            if self.is_offline(message):
                self._replies[message_id] = _offline(message)
        for message in sent:
            if message not in absent and self.keeps(message):
                message_id = message.metadata.message_id
                self.kept[message_id] = self._replies.pop(message_id)
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand over the replies that are there."""
        return super().pull_messages([*self._replies] if self.brings_everything else message_ids)

    def let_go(self) -> None:
        """Let what was kept arrive."""
        self._replies |= self.kept
        self.kept.clear()


def _offline(message: Message) -> Message:
    """What a SuperLink answers in the place of a node that is gone, under its own number."""
    reply = Message(Error(code=NODE_UNAVAILABLE, reason="Node Unavailable"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = COORDINATOR_NODE_ID
    return reply

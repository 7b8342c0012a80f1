"""Flower's Grid on one machine: the messages are Flower's own, the transport is a function call.

Flower's simulation is wired to Ray, which costs a minute of start-up and a gigabyte (docs/decisions/0001). Everything
above the transport is unchanged: the same Strategy, Message and holder code run here and over a SuperLink.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from ringfence_policy.errors import RunFailed
from ringfence_policy.protocol import FAULT_CODE
from ringfence_server.flower_adapter import become_serverapp, stamp

CohortApp = Callable[[Sequence[Message], Sequence[Context]], list[Message]]

_log = getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedNode:
    """One data holder's node on this machine: Flower's number for it, its name and its node configuration."""

    node_id: int
    name: str
    config: Mapping[str, str] = field(default_factory=dict)


class EmbeddedGrid(Grid):
    """A Grid whose nodes live on this machine.

    Messages of one phase reach the holders' side together (`cohort_app`), so that many holders can be trained at once;
    each message is nevertheless gated, charged and answered for its own holder alone.

    Args:
        nodes: The holders' nodes.
        cohort_app: The holders' side, loaded by its Flower app reference; takes messages and contexts in one order.
        flower_run_id: Flower's number for the run.
        pause_seconds: How long a round waits before it trains, so that people can follow it.
        close_nodes: Ends what the holders' side keeps open.
    """

    def __init__(
        self,
        *,
        nodes: Sequence[EmbeddedNode],
        cohort_app: CohortApp,
        flower_run_id: int,
        pause_seconds: float = 0.0,
        close_nodes: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = become_serverapp(flower_run_id)
        self._cohort_app = cohort_app
        self._pause_seconds = pause_seconds
        self.close_nodes = close_nodes
        self._nodes = {node.node_id: node for node in nodes}
        self._contexts = {node.node_id: context_of(node, flower_run_id) for node in nodes}
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Replace the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Build a message as Flower's deprecated call does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Every node's number: embedded nodes are always online."""
        return list(self._nodes)

    def get_nodes(self) -> list[NodeInfo]:
        """Every node, with its holder's name."""
        return [NodeInfo(node_id=node.node_id, name=node.name, status="online") for node in self._nodes.values()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages at once and keep the replies to be pulled."""
        delivered = list(messages)
        ids = [stamp(message) for message in delivered]
        if any(message.metadata.message_type == MessageType.TRAIN for message in delivered):
            time.sleep(self._pause_seconds)
        if delivered:
            self._replies.update(zip(ids, self._deliver(delivered), strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand over the replies to these messages, once."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:  # noqa: ARG002 -- a function call returns or raises; Flower's signature has a timeout
        """Deliver messages and return their replies."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, messages: list[Message]) -> list[Message]:
        contexts = [self._contexts[message.metadata.dst_node_id] for message in messages]
        return answered(self._cohort_app, messages, contexts)


def context_of(node: EmbeddedNode, flower_run_id: int) -> Context:
    """What Flower tells an app about the node that it answers for."""
    return Context(
        run_id=flower_run_id, node_id=node.node_id, node_config=dict(node.config), state=RecordDict(), run_config={}
    )


def answered(cohort_app: CohortApp, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    """The holders' answers, or for each the failure that theirs amounts to.

    Raises:
        RunFailed: The holders' side is gone.
    """
    try:
        return cohort_app(messages, contexts)
    except RunFailed:
        raise
    except Exception as error:  # noqa: BLE001 -- whatever failed there, the coordinator gets a reply
        _log.error("the holders' side failed with %s", type(error).__name__)
        # The reason crosses to the coordinator: a text might hold a holder's data.
        reason = f"the holders' side failed: {type(error).__name__}"
        return [Message(Error(code=FAULT_CODE, reason=reason), reply_to=message) for message in messages]

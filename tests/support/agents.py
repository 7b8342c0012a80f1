"""Agents for the data holders of a tiny run, in the test's own process, reached by the relay over real sockets."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from tiny_run import TinyRun

from ringfence_client import relay
from ringfence_client.agent import HolderAgent, serving
from ringfence_client.holder_records import HolderRecords
from ringfence_client.home import HolderHome
from ringfence_client.node import HolderNode
from ringfence_client.open_workroom import OpenWorkroom
from ringfence_client.workroom import Workroom
from ringfence_policy.identity import PublicKey


@dataclass
class Agents:
    """What a test can reach of the agents of a run, by holder."""

    sockets: dict[str, Path] = field(default_factory=dict)
    nodes: dict[str, HolderNode] = field(default_factory=dict)


def open_workroom(home: HolderHome) -> Workroom:
    """The workroom that is the agent's own process: no walls, and quick."""
    return OpenWorkroom(HolderRecords(home.directory, salt=home.profile.dataset.dataset_id))


@contextmanager
def agents_of(run: TinyRun, workroom: Callable[[HolderHome], Workroom | None] = open_workroom) -> Iterator[Agents]:
    """Serve every holder of a run by an agent of its own, and send the run's messages through relays."""
    places, agents = Path(tempfile.mkdtemp(prefix="rf-", dir="/tmp")), Agents()
    names = {node_id: holder for holder, node_id in run.node_ids.items()}

    def deliver(messages: Sequence[Message], _: Sequence[Context]) -> list[Message]:
        return [hand_over(message, agents.sockets[names[message.metadata.dst_node_id]]) for message in messages]

    with ExitStack() as opened:
        opened.callback(shutil.rmtree, places)
        for holder in run.node_ids:
            home = run.home(holder)
            node = HolderNode(
                home,
                coordinator_root=PublicKey.from_jwk(json.loads(run.root)),
                workroom=workroom(home) or open_workroom(home),
            )
            opened.callback(node.close)
            socket = agents.sockets[holder] = places / f"{holder}.sock"
            agents.nodes[holder] = node
            agent = HolderAgent(node, coordinator_root=run.root)
            opened.enter_context(serving(agent, socket=socket, users=frozenset({os.getuid()})))
        before, run.deliver = run.deliver, deliver
        yield agents
        run.deliver = before


def hand_over(message: Message, socket: Path | str | None) -> Message:
    """What a SuperNode's process does with a message: one relay, one answer."""
    config = {} if socket is None else {relay.SOCKET_KEY: str(socket)}
    context = Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})
    return relay.app(message, context)

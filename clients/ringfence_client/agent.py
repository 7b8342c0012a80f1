"""A data holder's agent: it owns the holder's node and answers, over gRPC on a Unix socket, what a relay hands it.

One message at a time, each within its own time, and only so many may wait. A refusal is an answer, given by the same
code that answers where all holders are simulated in one process.
"""

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from logging import getLogger
from pathlib import Path
from typing import Final, NoReturn

import grpc
from flwr.app import Context, Message, RecordDict
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ringfence_client import clientapp, deadline, flower_messages
from ringfence_client.agent_client import SERVICE
from ringfence_client.agent_door import AgentDoor
from ringfence_client.holder_agent_pb2 import Envelope
from ringfence_client.holder_agent_pb2_grpc import HolderAgentServicer, add_HolderAgentServicer_to_server
from ringfence_client.node import HolderNode
from ringfence_client.relay import CHANNEL_OPTIONS, LONGEST_SECONDS

MOST_WAITING: Final = 8
_THREADS: Final = MOST_WAITING + 4
_GRACE_SECONDS: Final = 30.0

_log = getLogger(__name__)


class HolderAgent(HolderAgentServicer):
    """Answers for one holder.

    Args:
        node: The holder's node, opened. It answers to nobody else.
        coordinator_root: The coordinator's root key, as JSON.
    """

    def __init__(self, node: HolderNode, *, coordinator_root: str) -> None:
        self._config = {"holder-dir": str(node.home.directory), "coordinator-root": coordinator_root}
        clientapp.adopt(node, self._config)
        self._places = threading.BoundedSemaphore(MOST_WAITING)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="holder-agent")

    def Answer(self, request: Envelope, context: grpc.ServicerContext) -> Envelope:  # noqa: N802 -- gRPC's name
        """See holder_agent.proto."""
        came, seconds = time.monotonic(), context.time_remaining()
        if seconds is None or seconds > LONGEST_SECONDS:  # without a deadline gRPC says some hundred years
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "a call needs a deadline within a day")
        try:
            message = flower_messages.from_bytes(request.message)
        except flower_messages.NotAMessage:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "not a message of Flower's")
        if not self._places.acquire(blocking=False):
            _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many messages wait")
        waiting = self._worker.submit(self._answer, message, came=came, seconds=seconds)
        waiting.add_done_callback(lambda _: self._places.release())
        return Envelope(message=_outcome(waiting, seconds, context))

    def close(self) -> None:
        """Finish what is being answered, and take nothing more."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _answer(self, message: Message, *, came: float, seconds: float) -> bytes:
        if time.monotonic() - came >= seconds:
            raise TookTooLong  # nobody waits for it any more: nothing is decided, reserved or opened
        deadline.arrived.set(came)
        metadata = message.metadata
        context = Context(
            run_id=metadata.run_id,
            node_id=metadata.dst_node_id,
            node_config=dict(self._config),
            state=RecordDict(),
            run_config={},
        )
        (reply,) = clientapp.cohort([message], [context])
        return flower_messages.to_bytes(reply)


def _outcome(waiting: "Future[bytes]", seconds: float, context: grpc.ServicerContext) -> bytes:
    try:
        return waiting.result(seconds)
    except TookTooLong:
        waiting.cancel()
        _refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, "not answered in time")
    except Exception as error:  # noqa: BLE001 -- the type alone: the text might hold a holder's data
        _log.error("a message was not answered: %s", type(error).__name__)
        _refuse(context, grpc.StatusCode.INTERNAL, f"the agent failed: {type(error).__name__}")


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, words: str) -> NoReturn:
    context.abort(code, words)
    raise AssertionError("unreachable")  # pragma: no cover -- abort raises


@contextlib.contextmanager
def serving(agent: HolderAgent, *, socket: Path, users: AbstractSet[int]) -> Iterator[health.HealthServicer]:
    """Serve an agent on a socket while the block runs.

    Args:
        agent: The agent.
        socket: Where relays find it.
        users: The numbers of the users whose processes are let in.

    Yields:
        The health service, which says SERVING for `SERVICE`.
    """
    private = Path(tempfile.mkdtemp(prefix="ringfence-"))
    server = grpc.server(
        ThreadPoolExecutor(_THREADS), options=[*CHANNEL_OPTIONS], maximum_concurrent_rpcs=_THREADS + MOST_WAITING
    )
    add_HolderAgentServicer_to_server(agent, server)
    healthy = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    server.add_insecure_port(f"unix:{private / 'inner.sock'}")
    server.start()
    try:
        door = AgentDoor(socket, inner=private / "inner.sock", users=users)
        try:
            healthy.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
            yield healthy
        finally:
            healthy.enter_graceful_shutdown()
            server.stop(_GRACE_SECONDS).wait()
            door.close()
            agent.close()
    finally:
        server.stop(None)
        shutil.rmtree(private, ignore_errors=True)

"""The ClientApp that a SuperNode starts anew for every message: it hands Flower's message to the holder's agent.

It has the network's side of the holder and nothing else: no torch, no policy, no ledger, no way to the data. What it
hands on is Flower's message as it came, and what it hands back is the agent's answer as it is.
"""

import socket
import time
from contextlib import suppress
from typing import Final

import grpc
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from ringfence_client import flower_messages
from ringfence_client.holder_agent_pb2 import Envelope
from ringfence_client.holder_agent_pb2_grpc import HolderAgentStub
from ringfence_policy.protocol import FAULT_CODE

SOCKET_KEY: Final = "agent-socket"
LARGEST_MESSAGE: Final = 512 * 1024 * 1024
CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.enable_http_proxy", 0),
)
_SHORTEST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 24 * 3600.0
_PATIENCE_SECONDS: Final = 20.0
_PAUSE_SECONDS: Final = 0.2

app = ClientApp()


@app.train()
@app.evaluate()
@app.query("propose")
@app.query("offer")
@app.query("release")
@app.query("evidence")
def relay(message: Message, context: Context) -> Message:
    """Hand a message to the holder's agent, and its answer back."""
    path = context.node_config.get(SOCKET_KEY)
    if not isinstance(path, str):
        return _fault(message, f"the SuperNode was started without {SOCKET_KEY}")
    if not _listens(path, until=time.monotonic() + min(_PATIENCE_SECONDS, _seconds_left(message))):
        return _fault(message, "the holder's agent is not there")
    try:
        with grpc.insecure_channel(f"unix:{path}", options=CHANNEL_OPTIONS) as channel:
            return flower_messages.from_bytes(_ask(channel, message))
    except grpc.RpcError as error:
        # The status says what failed; its text is for the holder's own log.
        return _fault(message, f"the holder's agent did not answer ({error.code().name})")
    except flower_messages.NotAMessage:
        return _fault(message, "the holder's agent answered with something else than a message")


def _listens(path: str, *, until: float) -> bool:
    """Wait for an agent that is being restarted. Once it listens it is asked, once and never again."""
    # Not by gRPC's own waiting: closing a channel that was waited for takes a fifth of a second.
    while True:
        with socket.socket(socket.AF_UNIX) as knock, suppress(OSError):
            knock.connect(path)
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(_PAUSE_SECONDS)


def _ask(channel: grpc.Channel, message: Message) -> bytes:
    envelope = Envelope(message=flower_messages.to_bytes(message))
    answer: bytes = HolderAgentStub(channel).Answer(envelope, timeout=_seconds_left(message)).message
    return answer


def _seconds_left(message: Message) -> float:
    metadata = message.metadata
    left = metadata.created_at + metadata.ttl - time.time()
    return min(max(left, _SHORTEST_SECONDS), LONGEST_SECONDS - 1)


def _fault(message: Message, reason: str) -> Message:
    return Message(Error(code=FAULT_CODE, reason=reason), reply_to=message)

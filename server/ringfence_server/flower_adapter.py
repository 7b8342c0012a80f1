"""The only place that touches what Flower does not publish: the task identity of a process, a message's id, its bytes.

Flower 1.41 lets a `Message` be built only where `TaskIdentity` is set, and keeps it per process: hence one worker
process per run. tests/conformance/test_flower_contract.py pins everything used here: an upgrade that moves it fails
there.
"""

import uuid

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

COORDINATOR_NODE_ID = 1


def become_serverapp(flower_run_id: int) -> Run:
    """Let this process speak as the ServerApp of one Flower run, and describe that run.

    Args:
        flower_run_id: Flower's own 64-bit run number; Ringfence's run id is a string and lives in the message bodies.
    """
    TaskIdentity.run_id = flower_run_id
    TaskIdentity.node_id = COORDINATOR_NODE_ID
    TaskIdentity.task_id = 1
    return Run.create_empty(flower_run_id)


def to_bytes(message: Message) -> bytes:
    """A message as Flower itself writes it, for another process."""
    written: bytes = message_to_proto(message).SerializeToString()
    return written


def from_bytes(data: bytes) -> Message:
    """Read what `to_bytes` wrote. Only in a process that is a ServerApp."""
    return message_from_proto(ProtoMessage.FromString(data))


def stamp(message: Message) -> str:
    """Give an instruction message the id that a SuperLink would give it, and return that id."""
    message_id = uuid.uuid4().hex
    message.metadata.__dict__["_message_id"] = message_id
    return message_id

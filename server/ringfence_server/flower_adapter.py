"""The only place that touches what Flower does not publish: the process-wide task identity and a message's id.

Flower 1.41 lets a `Message` be built only where `TaskIdentity` is set, and keeps it per process: hence one worker
process per run. tests/conformance/test_flower_contract.py pins everything used here: an upgrade that moves it fails
there.
"""

import uuid

from flwr.app import Message
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


def stamp(message: Message) -> str:
    """Give an instruction message the id that a SuperLink would give it, and return that id."""
    message_id = uuid.uuid4().hex
    message.metadata.__dict__["_message_id"] = message_id
    return message_id

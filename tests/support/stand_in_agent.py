"""A holder's side that stays warm between messages: what the stand-in relay speaks to. In tests only.

Started as `python stand_in_agent.py HOLDER_DIRECTORY COORDINATOR_ROOT SOCKET`; writes one line once it listens.
"""

import sys
from multiprocessing.connection import Listener
from pathlib import Path

import torch
from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from ringfence_client import clientapp


def serve(holder: str, root: str, socket: str) -> None:
    """Answer one message after another, as the holder."""
    torch.set_num_threads(1)
    config = {"holder-dir": holder, "coordinator-root": Path(root).read_text()}
    with Listener(socket, family="AF_UNIX") as listener:
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while True:
            with listener.accept() as relay:
                message, node_id, run_id = relay.recv()
                TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, 1
                context = Context(run_id, node_id, config, RecordDict(), {})
                relay.send(clientapp.cohort([message], [context])[0])


if __name__ == "__main__":
    serve(*sys.argv[1:])

"""One of the processes that simulated data holders are shared out over: messages in, answers out, until it may end.

Started as `python -m ringfence_server.holder_process DESCRIPTOR` by `holder_processes`. It loads while it waits. Where
nobody is left at the other end it ends at once, in the middle of a training as well: what it works for is over, and
whoever takes the run up again must find ledgers and records free.
"""

import json
import logging
import os
import select
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Event, Thread

# Set before Flower is imported, as in `worker`.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from ringfence_server.embedded_grid import EmbeddedNode, answered, context_of
from ringfence_server.flower_adapter import become_serverapp
from ringfence_server.holder_processes import receive, send
from ringfence_server.run_file import CLOSE_NODES, COHORT_APP, WORKROOM, reach


def main(arguments: list[str]) -> int:
    """Answer what comes over the connection that the one argument names."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    connection: Connection[bytes, bytes] = Connection(int(arguments[0]))
    cohort_app = reach(COHORT_APP)
    reach(WORKROOM)
    answering = Event()
    Thread(target=_end_when_alone, args=(connection, answering), daemon=True).start()
    with suppress(EOFError, ConnectionError):
        told = json.loads(connection.recv_bytes())
        become_serverapp(told["flower_run_id"])
        contexts = {
            int(node_id): context_of(EmbeddedNode(int(node_id), "", config), told["flower_run_id"])
            for node_id, config in told["nodes"].items()
        }
        while messages := receive(connection):
            answering.set()
            replies = answered(cohort_app, messages, [contexts[one.metadata.dst_node_id] for one in messages])
            answering.clear()
            send(connection, replies)
        reach(CLOSE_NODES)()
        return 0
    return 1


def _end_when_alone(connection: "Connection[bytes, bytes]", answering: Event) -> None:
    hung_up = select.poll()
    hung_up.register(connection.fileno(), 0)  # of that alone the kernel tells unasked
    hung_up.poll()
    answering.wait()  # with nothing to answer, the main thread sees for itself what was said last
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One of the processes that simulated data holders are shared out over: messages in, answers out, until nobody asks.

Started as `python -m ringfence_server.holder_process DESCRIPTOR` by `holder_processes`. It loads while it waits.
"""

import json
import logging
import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

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
    with suppress(EOFError, ConnectionError):  # whoever asked is gone
        told = json.loads(connection.recv_bytes())
        become_serverapp(told["flower_run_id"])
        contexts = {
            int(node_id): context_of(EmbeddedNode(int(node_id), "", config), told["flower_run_id"])
            for node_id, config in told["nodes"].items()
        }
        while True:
            messages = receive(connection)
            send(
                connection,
                answered(cohort_app, messages, [contexts[message.metadata.dst_node_id] for message in messages]),
            )
    reach(CLOSE_NODES)()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The SuperNode's process: Flower's own command, which ends when the agent that started it is gone.

Started as `python -m ringfence_client.supernode_child AGENT_PROCESS OPTIONS`. An agent that is killed (SIGKILL, or the
kernel when memory runs out) ends nothing in order. A SuperNode that outlived it would go on taking messages that nobody
answers, and would keep the next one from connecting: a SuperLink takes one connection for each key. So it looks for
itself, and takes its leave of the SuperLink. Flower ends what a SuperNode has started in the same way.
"""

import os
import signal
import sys
import threading
import time
from importlib import metadata

_LOOK_SECONDS = 0.5
# Flower gives itself five, which on a busy machine are more.
_GRACE_SECONDS = 20.0
COMMAND = "flower-supernode"


def main() -> None:
    """Run Flower's command with all of this process's arguments but the first."""
    threading.Thread(target=_end_with, args=(int(sys.argv.pop(1)),), daemon=True).start()
    (command,) = metadata.entry_points(group="console_scripts", name=COMMAND)
    sys.argv[0] = COMMAND
    command.load()()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()

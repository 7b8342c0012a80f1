"""The SuperLink's process: Flower's own command, which ends when the coordinator that started it is gone.

Started as `python -m ringfence_server.superlink_child COORDINATOR_PROCESS OPTIONS`. Flower ends what it has started
itself in the same way.
"""

import os
import signal
import sys
import threading
import time
from importlib import metadata

_LOOK_SECONDS = 0.5
_GRACE_SECONDS = 5.0
COMMAND = "flower-superlink"


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

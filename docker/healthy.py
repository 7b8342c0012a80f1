"""Ends with 0 where the coordinator of a deployment says that it is ready and its front takes connections."""

import json
import socket
import sys
from pathlib import Path

try:
    status = json.loads((Path(sys.argv[1]) / "coordinator/transport/status.json").read_text())
    if status["state"] != "ready":
        sys.exit(f"the coordinator is {status['state']}")
    with socket.create_connection(("127.0.0.1", int(status["front"].rpartition(":")[2])), timeout=3):
        pass
except (OSError, ValueError, KeyError) as error:
    sys.exit(f"the coordinator does not serve: {type(error).__name__}")

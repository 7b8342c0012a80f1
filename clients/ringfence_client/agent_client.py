"""Asking a holder's agent how it is, from another process of the same machine.

`python -m ringfence_client.agent_client SOCKET` ends with 0 where the agent serves, and loads little: a container
engine asks every few seconds.
"""

import sys
from pathlib import Path
from typing import Any, Final, Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ringfence_client.holder_agent_pb2 import DESCRIPTOR

SERVICE: Final = DESCRIPTOR.services_by_name["HolderAgent"].full_name
Health = Literal["serving", "not serving"]

_SECONDS = 3.0


def ask_health(socket: Path) -> Health | None:
    """Whether the agent behind a socket serves; None where none listens, or lets this user in."""
    if not socket.exists():
        return None
    with grpc.insecure_channel(f"unix:{socket}", options=(("grpc.enable_http_proxy", 0),)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=_SECONDS)
        except grpc.RpcError:
            return None
    return "serving" if answer.status == health_pb2.HealthCheckResponse.SERVING else "not serving"


if __name__ == "__main__":
    raise SystemExit(0 if ask_health(Path(sys.argv[1])) == "serving" else 1)

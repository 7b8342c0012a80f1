"""Asking a holder's agent how it is, from another process of the same machine."""

from pathlib import Path
from typing import Any, Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ringfence_client.agent import SERVICE

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

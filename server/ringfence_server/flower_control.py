"""The SuperLink's Control API, which Flower types and does not publish: this is the one module that speaks it.

tests/conformance/test_flower_control.py pins everything used here: an upgrade that moves it fails there.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab

from ringfence_policy.errors import DeploymentFault
from ringfence_server.run_file import RELAY_APP, SERVER_APP

ONLINE = "online"
UNREGISTERED = "unregistered"
_FINISHED = "finished"
_COMPLETED = "completed"
_MOST_LOG_BYTES = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class FlowerNode:
    """A SuperNode as the SuperLink knows it. `public_key` is PEM, as it was registered."""

    node_id: int
    public_key: str
    status: str


@dataclass(frozen=True)
class FlowerRunState:
    """How far a Flower run is; `details` are Flower's words."""

    status: str
    sub_status: str
    details: str

    @property
    def is_over(self) -> bool:
        """Whether it ended, well or not."""
        return self.status == _FINISHED

    @property
    def is_completed(self) -> bool:
        """Whether its ServerApp came to its end."""
        return self.is_over and self.sub_status == _COMPLETED


class FlowerControl:
    """What this coordinator asks of its SuperLink.

    Args:
        address: The SuperLink, host:port, on the loopback address.
        authority: The certificate, PEM, that the SuperLink's own leads to.
    """

    def __init__(self, address: str, *, authority: bytes) -> None:
        self.address = address
        self._client = ControlHttpClient.from_server_address(
            server_address=address, insecure=False, root_certificates=authority, interceptors=[]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def nodes(self) -> list[FlowerNode]:
        """Every SuperNode that was ever registered, those that were unregistered among them.

        Raises:
            DeploymentFault: The SuperLink does not answer, here and in all other methods.
        """
        found = self._ask("list its nodes", lambda: self._client.ListNodes(ListNodesRequest()))
        return [
            FlowerNode(node.node_id, node.public_key.decode("ascii", "replace"), node.status)
            for node in found.nodes_info
        ]

    def register(self, public_key: str, *, name: str) -> int:
        """Let the SuperNode of this key connect, and give its number."""
        request = RegisterNodeRequest(public_key=public_key.encode(), name=name)
        return int(self._ask("register a node", lambda: self._client.RegisterNode(request)).node_id)

    def unregister(self, node_id: int) -> None:
        """Cut a SuperNode off. Its key can never be registered again in the same database."""
        request = UnregisterNodeRequest(node_id=node_id)
        self._ask("unregister a node", lambda: self._client.UnregisterNode(request))

    def start_run(self, config: Mapping[str, str | int], *, fab: bytes | None = None) -> int:
        """Start Ringfence's ServerApp, and give Flower's number for the run.

        Args:
            config: The run configuration: see `serverapp`.
            fab: Another app to start in its place, which is how benchmarks measure what Flower itself costs.
        """
        content = build_fab() if fab is None else fab
        bundle = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(fab=fab_to_proto(bundle), override_config=user_config_to_proto(dict(config)))
        found = self._ask("start a run", lambda: self._client.StartRun(request))
        if not found.HasField("run_id"):
            raise DeploymentFault("the SuperLink started no run", where=self.address)
        return int(found.run_id)

    def run_state(self, flower_run_id: int) -> FlowerRunState:
        """How far a run is."""
        request = ListRunsRequest(run_id=flower_run_id)
        found = self._ask("say how a run is", lambda: self._client.ListRuns(request))
        status = found.run_dict[flower_run_id].status
        return FlowerRunState(status.status, status.sub_status, status.details)

    def stop_run(self, flower_run_id: int) -> None:
        """Stop a run: its ServerApp is told at its next heartbeat, and its messages are dropped."""
        self._ask("stop a run", lambda: self._client.StopRun(StopRunRequest(run_id=flower_run_id)))

    def log_of(self, flower_run_id: int) -> str:
        """What the ServerApp of a run that is over wrote to its terminal, at most a mebibyte of it."""
        request = StreamLogsRequest(run_id=flower_run_id)

        def read() -> str:
            text = ""
            for part in self._client.StreamLogs(request):
                text = (text + part.log_output)[-_MOST_LOG_BYTES:]
            return text

        return self._ask("give a run's log", read)

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            raise DeploymentFault(
                f"the SuperLink refused to {what}",
                got=f"{error.response.status_code} {error.response.text[:300]}",
                where=self.address,
            ) from error
        except (httpx.HTTPError, ValueError) as error:
            raise DeploymentFault(
                f"the SuperLink did not {what}",
                expected="a SuperLink of this deployment on the loopback address",
                got=type(error).__name__,
                where=self.address,
                next_step="start it: `ringfence coordinator start DIR`",
            ) from error


def build_fab() -> bytes:
    """The app that a SuperLink and its SuperNodes are given: two names of installed code, and no code.

    Returns:
        A Flower App Bundle, the same bytes each time.
    """
    return build_fab_from_files({"pyproject.toml": _PYPROJECT.encode(), "README.md": _README.encode()})[0]


_README = "Ringfence: the coordinator and each data holder run what they have installed; nothing here is code.\n"
_PYPROJECT = f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "ringfence-run"
version = "1.0.0"
description = "One governed run"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "ringfence"

[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "{RELAY_APP}"

[tool.flwr.app.config]
run-directory = ""
attempt = 0
"""

"""The server that carries the front: one listening socket, TLS 1.3, and no patience with strangers."""

import asyncio
import ssl
import threading
from typing import cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ringfence_policy.errors import DeploymentFault
from ringfence_server.deployment import Deployment
from ringfence_server.front import Front, far_side
from ringfence_server.listening import listening_socket
from ringfence_server.registry import KeyTable, Registry

# SuperNodes ask every three seconds, over connections that they keep.
_KEPT_SECONDS = 60
_STRANGER_SECONDS = 20.0
_MOST_CONNECTIONS = 1000
# Connections on which nothing was asked yet. A SuperNode asks at once, so that the oldest of too many is none.
_MOST_STRANGERS = 300
_START_SECONDS = 20.0
_STOP_SECONDS = 10.0


class _Impatient(H11Protocol):
    """HTTP/1.1 in the strict reading of h11, for clients whose first request comes in time.

    Only a registered SuperNode keeps its connection after that: every refusal closes it.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn narrows it too
        super().connection_made(transport)
        self._came = self.loop.time()
        self.loop.call_later(_STRANGER_SECONDS, self._leave_stranger)
        strangers = [one for one in self.connections if isinstance(one, _Impatient) and one.cycle is None]
        if len(strangers) > _MOST_STRANGERS:
            min(strangers, key=lambda one: one._came)._leave_stranger()  # noqa: SLF001 -- of the same class

    def _leave_stranger(self) -> None:
        if self.cycle is None:
            self.transport.abort()


class FrontServer:
    """The front of a deployment, served from a thread of this process.

    Args:
        deployment: The deployment.

    Raises:
        UsageError: Its port is taken, or its address is not this machine's.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._socket = listening_socket(
            deployment.settings.listen,
            deployment.settings.port,
            who="the front for nodes",
            next_step="change port or listen in coordinator.toml, or end the process that has the port",
        )
        front = Front(
            superlink=deployment.control_address,
            client=far_side(str(deployment.authority_file)),
            registered=KeyTable(Registry(deployment.holders)),
        )
        config = uvicorn.Config(
            front,
            http=_Impatient,
            ws="none",
            lifespan="on",
            interface="asgi3",
            ssl_certfile=deployment.transport / "front.crt",
            ssl_keyfile=str(deployment.transport / "front.key"),
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_KEPT_SECONDS,
            timeout_graceful_shutdown=int(_STOP_SECONDS / 2),
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            log_config=None,
        )
        config.load()
        self._tls = cast("ssl.SSLContext", config.ssl)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="front", daemon=True
        )

    def start(self) -> None:
        """Begin to serve.

        Raises:
            DeploymentFault: The server does not come up.
        """
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(_START_SECONDS / 0.05)):
            if self._server.started or not self._thread.is_alive():
                break
            waited.wait(0.05)
        if not self._server.started:
            raise DeploymentFault(
                "the front for nodes does not come up", where=f"{self._deployment.settings.listen}:{self.port}"
            )

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._socket.getsockname()[1])

    @property
    def is_serving(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive() and self._server.started

    def reload_certificate(self) -> None:
        """Show the new certificate to everybody who connects from now on."""
        self._tls.load_cert_chain(self._deployment.transport / "front.crt", self._deployment.transport / "front.key")

    def stop(self) -> None:
        """End it; requests that are under way have a few seconds."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)
        self._socket.close()

"""The server that carries the control plane: one listening socket, and no patience with clients that never ask."""

import asyncio
import gc
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ringfence_server.listening import listening_socket

# From the connection to the end of the first request's headers.
HEADER_SECONDS = 10.0
_KEPT_SECONDS = 30
_MOST_CONNECTIONS = 2000
_STOP_SECONDS = 3


class _Impatient(H11Protocol):
    """HTTP/1.1 in the strict reading of h11, for clients whose requests begin and end their headers in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn narrows it too
        self._patience: asyncio.TimerHandle | None = None
        self._speaks_http = True
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif before is None or before.response_complete:
            self._expect_headers()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._speaks_http = False
        self._stop_waiting()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        if self._speaks_http and self._patience is None:
            self._patience = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


class ControlServer:
    """A server on an address of this machine, run by whoever calls `serve`.

    Args:
        app: The application.
        listen: The address.
        port: The port; 0 takes a free one.
        certificate: Certificate and key, to speak https itself.

    Raises:
        UsageError: The port is taken, or the address is not this machine's.
    """

    def __init__(
        self, *, listen: str = "127.0.0.1", port: int = 0, certificate: tuple[Path, Path] | None = None
    ) -> None:
        self._socket = listening_socket(
            listen,
            port,
            who="the control plane",
            next_step="choose another one with --port, or end the process that has it",
        )
        self._certificate = certificate
        self._server: uvicorn.Server | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._socket.getsockname()[1])

    def serve(self, app: Any, *, ready: Callable[[], None]) -> None:
        """Serve until interrupted or stopped.

        Args:
            app: The application.
            ready: Called once requests are answered.
        """
        tls: dict[str, Any] = {}
        if self._certificate is not None:
            tls = {"ssl_certfile": str(self._certificate[0]), "ssl_keyfile": str(self._certificate[1])}
        config = uvicorn.Config(
            app,
            http=_Impatient,
            ws="websockets-sansio",  # for the pages; comes with NiceGUI
            lifespan="on",
            interface="asgi3",
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_KEPT_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_config=None,
            **tls,
        )
        self._server = _Server(config, ready)
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """End it; requests that are under way have a few seconds."""
        if self._server is not None:
            self._server.should_exit = True

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What was loaded stays: looking through it for garbage, every few seconds, holds requests up for 150 ms.
            gc.collect()
            gc.freeze()
            self._ready()

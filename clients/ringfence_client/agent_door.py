"""The agent's socket: who may connect is asked of the kernel, which knows the user at the other end, and not of them.

gRPC tells a Python server nothing about the other end of a Unix socket. So the socket that others see is this one, and
the server's own lies in a directory that nobody else may enter. Bytes are passed between the two as they are.
"""

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Set as AbstractSet
from logging import getLogger
from pathlib import Path
from typing import Final

from ringfence_policy.errors import Fault, UsageError

LONGEST_PATH: Final = 100
_CREDENTIALS: Final = struct.Struct("3i")
_PIECE: Final = 1 << 18
_BACKLOG: Final = 64
_START_SECONDS: Final = 10.0

_log = getLogger(__name__)


def default_socket(holder_directory: Path) -> Path:
    """Where a holder's agent listens if nobody says otherwise: in its state, or where a path is too long, elsewhere."""
    inside = holder_directory.resolve() / "state" / "door" / "agent.sock"
    if len(os.fsencode(inside)) <= LONGEST_PATH:
        return inside
    name = hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ringfence-{os.getuid()}-{name}" / "agent.sock"


class AgentDoor:
    """Listens on a socket and lets in processes of certain users.

    Args:
        path: The socket that others connect to.
        inner: The server's own socket.
        users: The numbers of the users who may connect.
        most: Connections at once.

    Raises:
        UsageError: The path cannot be a socket's.
        Fault: The socket cannot be opened.
    """

    def __init__(self, path: Path, *, inner: Path, users: AbstractSet[int], most: int = 32) -> None:
        self.path = path
        self._inner = inner
        self._users = users
        self._most = most
        self._open = 0
        self._listener = _listener(path, shared=users != {os.getuid()})
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent-door", daemon=True)
        self._thread.start()
        self._started.wait(_START_SECONDS)

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_START_SECONDS)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_unix_server(self._admit, sock=self._listener))
        self._started.set()
        self._loop.run_forever()
        server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # what was aborted is closed in the loop's next turn
        self._loop.close()

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = _user_at(writer.get_extra_info("socket"))
        if user not in self._users or self._open >= self._most:
            _log.warning("a connection of user %s was refused", user)
            writer.close()
            return
        self._open += 1
        ends = [writer]
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(str(self._inner))
            ends.append(inner_writer)
            await asyncio.gather(_pass_on(reader, inner_writer), _pass_on(inner_reader, writer))
            for end in ends:
                await end.wait_closed()
        except (OSError, asyncio.CancelledError):
            for end in ends:
                end.transport.abort()
        finally:
            self._open -= 1


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


def _user_at(connection: socket.socket) -> int | None:
    """The user whose process is at the other end, as the kernel says; None where it does not say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return int(user)


def _listener(path: Path, *, shared: bool) -> socket.socket:
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise UsageError(
            "the socket's path is too long",
            expected=f"at most {LONGEST_PATH} bytes",
            got=f"{len(os.fsencode(path))}",
            where=str(path),
            next_step="choose a shorter one with --socket",
        )
    try:
        _make_private(path.parent)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # left by an agent that was killed: `start` lets no second one begin
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        # Others may reach it where they were named; whether they are let in, the kernel's word decides.
        path.chmod(0o666 if shared else 0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise Fault(
            "the agent's socket cannot be opened",
            got=error.strerror,
            where=str(path),
            next_step="choose another place with --socket",
        ) from None
    return listener


def _make_private(directory: Path) -> None:
    if not directory.exists():
        directory.mkdir(parents=True, mode=0o700)
    found = directory.stat()
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & 0o002:
        raise PermissionError(0, "the directory is somebody else's, or everybody can write to it")

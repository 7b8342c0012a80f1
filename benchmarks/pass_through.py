"""Hands connections on to somewhere else, unchanged, and notes how many bytes went which way, and when.

TCP before a coordinator's front says what a holder's network carries, TLS and HTTP included; a Unix socket before a
holder's agent says how long the relay waited for it.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PIECE = 1 << 16
_START_SECONDS = 10.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Passed:
    """One connection: what went to the far side and what came back, each as moments and bytes."""

    up: list[tuple[float, int]] = field(default_factory=list)
    down: list[tuple[float, int]] = field(default_factory=list)

    @property
    def began(self) -> float:
        """When the first byte went up."""
        return self.up[0][0]

    @property
    def seconds(self) -> float:
        """From the first byte that went up to the last that came back."""
        return self.down[-1][0] - self.up[0][0]


class PassThroughs:
    """Listeners that hand on what they get, in a thread of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="pass-through", daemon=True)
        self._servers: list[asyncio.Server] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_SECONDS)

    def tcp(self, *, listen: tuple[str, int], far: tuple[str, int]) -> list[Passed]:
        """Listen on an address and hand on to another. Gives the connections, as they come."""
        passed: list[Passed] = []

        self._serve(asyncio.start_server(_handler(passed, lambda: asyncio.open_connection(*far)), *listen))
        return passed

    def before_socket(self, path: Path) -> list[Passed]:
        """Take a Unix socket's place, and hand on to it under another name."""
        far = path.with_name(path.name + ".real")
        path.rename(far)
        passed: list[Passed] = []

        self._serve(asyncio.start_unix_server(_handler(passed, lambda: asyncio.open_unix_connection(far)), path))
        return passed

    def _serve(self, starting: Coroutine[Any, Any, asyncio.Server]) -> None:
        self._servers.append(asyncio.run_coroutine_threadsafe(starting, self._loop).result(_START_SECONDS))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        for server in self._servers:
            server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()


def _handler(passed: list[Passed], far: Callable[[], Awaitable[Streams]]) -> Callable[..., Awaitable[None]]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one = Passed()
        passed.append(one)
        far_writer = None
        try:
            far_reader, far_writer = await far()
            await asyncio.gather(_hand_on(reader, far_writer, one.up), _hand_on(far_reader, writer, one.down))
        except (OSError, asyncio.CancelledError):
            pass  # nobody there, or the end of it all
        finally:
            writer.close()
            if far_writer is not None:
                far_writer.close()

    return handle


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, notes: list[tuple[float, int]]) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            notes.append((time.time(), len(piece)))
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


def bytes_between(passed: Sequence[Passed], start: float, end: float) -> tuple[int, int]:
    """Bytes to the far side and bytes back, between two moments."""
    up = sum(size for one in list(passed) for at, size in list(one.up) if start <= at < end)
    down = sum(size for one in list(passed) for at, size in list(one.down) if start <= at < end)
    return up, down


def waited(passed: Sequence[Passed], start: float, end: float) -> list[float]:
    """How long each asker waited whose question went up between two moments; who asked nothing is left out."""
    return [one.seconds for one in list(passed) if one.up and one.down and start <= one.began < end]

"""Ends what is open, event streams and pages, when the sign-in that opened it ends.

One task asks once a second, in one question for all of them, which credentials are still good: a token may have been
withdrawn by a command in another process. What this process itself ends, it says at once.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from typing import TypeVar

import structlog
from starlette.concurrency import run_in_threadpool

ASKED_EVERY_SECONDS = 1.0

T = TypeVar("T")

_log = structlog.get_logger("ringfence.control")


class Withdrawn(Exception):
    """The sign-in that something was opened with is over."""


class Standing:
    """Which credentials hold something open.

    Args:
        good: Given names of credentials, answers with those that are still good.
    """

    def __init__(self, good: Callable[[Collection[str]], set[str]]) -> None:
        self._good = good
        self._open: Counter[str] = Counter()
        self._over: dict[str, asyncio.Event] = {}
        self._nudge = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def watch(self) -> None:
        """Look after open streams until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(ASKED_EVERY_SECONDS):
                    await self._nudge.wait()
            self._nudge.clear()
            names = frozenset(self._over)
            if not names:
                continue
            try:
                good = await run_in_threadpool(self._good, names)
            except Exception as fault:  # noqa: BLE001 -- whatever it is: what cannot be asked about is not good
                _log.error("credentials_unknown", fault=type(fault).__name__)
                good = set()
            for name in names - good:
                if name in self._over:
                    self._over[name].set()

    def look_now(self) -> None:
        """A credential was just ended: look at once. May be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._nudge.set)

    async def while_good(self, credential: str, source: AsyncIterator[T]) -> AsyncIterator[T]:
        """What `source` gives, for as long as the credential is good.

        Raises:
            Withdrawn: It is no longer.
        """
        over = self._over.setdefault(credential, asyncio.Event())
        self._open[credential] += 1
        ended = asyncio.ensure_future(over.wait())
        try:
            while True:
                coming = asyncio.ensure_future(anext(source))
                try:
                    await asyncio.wait({coming, ended}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not coming.done():
                        coming.cancel()
                        with suppress(asyncio.CancelledError, StopAsyncIteration):
                            await coming
                if over.is_set():
                    raise Withdrawn
                try:
                    item = coming.result()
                except StopAsyncIteration:
                    return
                yield item
        finally:
            ended.cancel()
            self._open[credential] -= 1
            if not self._open[credential]:
                del self._open[credential]
                del self._over[credential]

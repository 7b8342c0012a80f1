"""Ends what is open, event streams and pages, when the sign-in that opened it ends.

One task asks once a second, in one question for all of them, which credentials are still good: a token may have been
withdrawn by a command in another process. What this process itself ends, it says at once.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

import structlog
from starlette.concurrency import run_in_threadpool

ASKED_EVERY_SECONDS = 1.0

_log = structlog.get_logger("ringfence.control")


class Held:
    """Something that a credential opened, and that has to end with it.

    Attributes:
        good: Whether it may go on.
        woken: Set when it may not, or when there is something else for it to look at.
    """

    def __init__(self) -> None:
        self.good = True
        self.woken = asyncio.Event()

    def end(self) -> None:
        """Its credential is over."""
        self.good = False
        self.woken.set()


class Standing:
    """Which credentials hold something open.

    Args:
        good: Given names of credentials, answers with those that are still good.
    """

    def __init__(self, good: Callable[[Collection[str]], set[str]]) -> None:
        self._good = good
        self._held: dict[str, set[Held]] = {}
        self._nudge = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def watch(self) -> None:
        """Look after what is open until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(ASKED_EVERY_SECONDS):
                    await self._nudge.wait()
            self._nudge.clear()
            names = frozenset(self._held)
            if not names:
                continue
            try:
                good = await run_in_threadpool(self._good, names)
            except Exception as fault:  # noqa: BLE001 -- whatever it is: what cannot be asked about is not good
                _log.error("credentials_unknown", fault=type(fault).__name__)
                good = set()
            for name in names - good:
                for one in self._held.get(name, ()):
                    one.end()

    def look_now(self) -> None:
        """A credential was just ended: look at once. May be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._nudge.set)

    @contextmanager
    def held(self, credential: str) -> Iterator[Held]:
        """Something open for the length of the block, which has to look at `good` whenever it is woken."""
        held = Held()
        self._held.setdefault(credential, set()).add(held)
        try:
            yield held
        finally:
            self._held[credential].discard(held)
            if not self._held[credential]:
                del self._held[credential]

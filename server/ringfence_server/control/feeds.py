"""One reading of a run's events for everybody who watches it: each is fetched and written as JSON once.

A feed is there as long as somebody listens. It holds the run's events from the first one, so that whoever comes later,
or comes back, is served from the same list.
"""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from fastapi.sse import format_sse_event

from ringfence_server.control.views import EventView

# Hundreds who are told at the same moment would keep every other request waiting: they are told a few at a time.
_AT_ONCE = 8
_PAUSE_SECONDS = 0.004
# Proxies cut connections on which nothing is said for long.
_QUIET_SECONDS = 15.0


@dataclass(frozen=True)
class Told:
    """An event as it is sent: its place, and all of it in the form of a stream."""

    seq: int
    sent: bytes


class _Feed:
    """A run's events so far, and who waits for the next one."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.over = False
        self.fault: Exception | None = None
        self.waiting: set[asyncio.Event] = set()
        self.reading: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._news = False

    async def read(self, events: AsyncIterator[EventView]) -> None:
        """Take in a run's events until it has ended."""
        try:
            async for event in events:
                self.told.append(Told(event.seq, _sent(event)))
                self._tell()
        except Exception as fault:  # noqa: BLE001 -- kept for those who listen, who are told by it
            self.fault = fault
        finally:
            self.over = True
            self._tell()

    def _tell(self) -> None:
        self._news = True
        if self._waking is None or self._waking.done():
            self._waking = asyncio.create_task(self._wake())

    async def _wake(self) -> None:
        while self._news:
            self._news = False
            waiting = list(self.waiting)
            for first in range(0, len(waiting), _AT_ONCE):
                for one in waiting[first : first + _AT_ONCE]:
                    one.set()
                await asyncio.sleep(_PAUSE_SECONDS)


class Feeds:
    """The feeds of all runs that somebody watches, in one event loop.

    Args:
        follow: The events of a run after a place, as they come, until it has ended.
    """

    def __init__(self, follow: Callable[[str], AsyncIterator[EventView]]) -> None:
        self._follow = follow
        self._feeds: dict[str, _Feed] = {}

    async def listen(self, run_id: str, *, after: int, woken: asyncio.Event) -> AsyncGenerator[Told | None]:
        """The events of a run after `after`, as they come, until the run has ended and all were given.

        None is given now and then: when there was nothing for a while, or when somebody else set `woken`.

        Raises:
            StoreFault: They cannot be read any more.
        """
        feed = self._feeds.get(run_id)
        if feed is None or feed.over:
            feed = self._feeds[run_id] = _Feed()
            feed.reading = asyncio.create_task(feed.read(self._follow(run_id)))
        feed.waiting.add(woken)
        try:
            place = bisect_right(feed.told, after, key=lambda one: one.seq)
            while True:
                woken.clear()
                over = feed.over  # asked first: what came before the end is still given
                while place < len(feed.told):
                    if feed.told[place].seq > after:
                        yield feed.told[place]
                    place += 1
                if over:
                    break
                with suppress(TimeoutError):
                    async with asyncio.timeout(_QUIET_SECONDS):
                        await woken.wait()
                if place == len(feed.told):
                    yield None
            if feed.fault is not None:
                raise feed.fault
        finally:
            feed.waiting.discard(woken)
            if not feed.waiting:
                await self._end(run_id, feed)

    async def _end(self, run_id: str, feed: _Feed) -> None:
        """Nobody listens any more."""
        if self._feeds.get(run_id) is feed:
            del self._feeds[run_id]
        if feed.reading is not None:
            feed.reading.cancel()
            with suppress(asyncio.CancelledError):
                await feed.reading


def _sent(event: EventView) -> bytes:
    return format_sse_event(data_str=event.model_dump_json(), event=event.name, id=str(event.seq))

"""Copies what runs wrote into the store, event by event, and tells whoever follows them.

An event is named by the place of its end in the run's own file, so copying again adds nothing, and a follower that was
cut off goes on after the last one it had.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select

from ringfence_server.control.store.engine import Store
from ringfence_server.control.store.tables import EventRow, RunRow
from ringfence_server.control.times import now_ms
from ringfence_server.control.views import EventView, RunState

ENDED = frozenset({RunState.SUSPENDED, RunState.INTERRUPTED, RunState.FINISHED, RunState.FAILED, RunState.REFUSED})
_EVENTS = "events.jsonl"
_MOST = 500
# A follower looks by itself so often, also when nobody woke it: another process may have written.
_LOOK_SECONDS = 5.0


class Mirror:
    """The events of all runs of a site.

    Args:
        store: Where they are copied to.
        site: The site's directory.
    """

    def __init__(self, store: Store, site: Path) -> None:
        self._store = store
        self._here = json.dumps(str(site))[1:-1]
        self._runs = site / "runs"
        self._lock = threading.Lock()
        self._waiting: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}

    def catch_up(self, run_id: str) -> None:
        """Copy what a run wrote since the last time, and move its state with it."""
        with self._store.read() as db:
            row = db.get(RunRow, run_id)
            position = 0 if row is None else row.read_to
        fresh = _read(self._runs / run_id / _EVENTS, position)
        if row is None or not fresh:
            return
        with self._store.write() as db:
            row = db.get_one(RunRow, run_id, with_for_update=True)
            for seq, event in fresh:
                if seq > row.read_to:
                    name, at = event.pop("event"), event.pop("at")
                    # Where the site lies on this machine is nobody's business who watches.
                    whole = json.dumps({"at_ms": round(at * 1000), **event})
                    body = whole.replace(f"{self._here}/", "").replace(self._here, "DIR")
                    db.add(EventRow(run=run_id, seq=seq, name=name, body=body))
                    _move(row, name, json.loads(body))
                    row.read_to = seq
            row.changed = now_ms()
        self.wake(run_id)

    def events(self, run_id: str, *, after: int = 0, limit: int = _MOST) -> list[EventView]:
        """The events of a run after `after`, in order, at most `limit`."""
        with self._store.read() as db:
            rows = db.scalars(
                select(EventRow).where(EventRow.run == run_id, EventRow.seq > after).order_by(EventRow.seq).limit(limit)
            ).all()
        return [_view(row) for row in rows]

    async def follow(self, run_id: str, *, after: int = 0) -> AsyncIterator[EventView]:
        """The events of a run after `after`, as they come, until the run has ended and all were given."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._waiting.setdefault(run_id, set()).add((loop, woken))
        try:
            while True:
                woken.clear()
                found, over = await asyncio.to_thread(self._look, run_id, after)
                for event in found:
                    after = event.seq
                    yield event
                if over and not found:
                    return
                if not found:
                    # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS):
                            await woken.wait()
        finally:
            with self._lock:
                self._waiting[run_id].discard((loop, woken))
                if not self._waiting[run_id]:
                    del self._waiting[run_id]

    def wake(self, run_id: str) -> None:
        """Let whoever follows a run look at it. May be called from any thread."""
        with self._lock:
            waiting = list(self._waiting.get(run_id, ()))
        for loop, woken in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(woken.set)

    def _look(self, run_id: str, after: int) -> tuple[list[EventView], bool]:
        with self._store.read() as db:
            row = db.get(RunRow, run_id)
            over = row is None or RunState(row.state) in ENDED
        # Asked first whether it is over: what came before the end is still read.
        return self.events(run_id, after=after), over


def _move(row: RunRow, name: str, event: dict[str, Any]) -> None:
    """What an event says of the state of its run."""
    if name == "run-started":
        row.state, row.rounds, row.error = RunState.RUNNING.value, event["rounds"], None
    elif name == "run-finished":
        row.state = RunState.FINISHED.value
    elif name == "run-failed":
        refused = event["error"].get("code") == "run-refused"
        row.state = RunState.REFUSED.value if refused else RunState.FAILED.value
        row.error = json.dumps(event["error"])


def _read(path: Path, position: int) -> list[tuple[int, dict[str, Any]]]:
    """Whole lines after `position`, each with the place of its end."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(position)
        data = file.read()
    found = []
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        position += len(line)
        try:
            found.append((position, json.loads(line)))
        except ValueError:  # a writer was killed in the middle of it
            continue
    return found


def _view(row: EventRow) -> EventView:
    body = json.loads(row.body)
    return EventView(seq=row.seq, name=row.name, at_ms=body.pop("at_ms"), body=body)

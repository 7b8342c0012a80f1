"""What a command that runs until it is stopped says meanwhile: one event at a time, and how it is told to stop.

Each thing that happens is one event: a sentence for people, or a line of JSON for programs.
"""

import json
import signal
import threading
import time
from collections.abc import Mapping
from logging import getLogger

import typer

_log = getLogger(__name__)

_SENTENCES: Mapping[str, str] = {
    "holder-opened": "{holder}: ledger and keys are open; the coordinator is {coordinator}",
    "trainer-started": "The trainer runs ({pid}); {walls}",
    "serving": "The agent listens on {socket}",
    "supernode-started": "The SuperNode runs ({pid})",
    "supernode-ended": "The SuperNode ended ({exit_code}); it is started again in {again_in_seconds:g} s",
    "ready": "Ready. Stop with Ctrl-C; every use is decided by your policy, whatever is asked",
    "relaying": "Relaying between {superlink} and {socket}. Stop with Ctrl-C",
    "stopping": "Stopping: what is being answered is finished first",
    "stopped": "Stopped",
}


class Events:
    """Says what happens, in one line each.

    Args:
        as_json: Whether a line is JSON.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._lock = threading.Lock()

    def __call__(self, name: str, members: Mapping[str, object]) -> None:
        """Say one event."""
        _log.info("%s %s", name, json.dumps(members))
        with self._lock:
            if self._as_json:
                typer.echo(json.dumps({"event": name, "at_ms": int(time.time() * 1000), **members}))
            else:
                typer.echo(_SENTENCES[name].format(**members))


def stop_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    return stopped

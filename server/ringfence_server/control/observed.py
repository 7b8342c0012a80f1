"""Watches requests pass: binds what they are about into the log, and measures how long they take."""

import time
from collections.abc import MutableMapping
from typing import Any

import structlog

from ringfence_server.control.limits import App, Message, Receive, Scope, Send
from ringfence_server.control.metrics import Metrics

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BOUND = {"run_id": "run", "holder_id": "holder"}

_log = structlog.get_logger("ringfence.control.requests")


class Observed:
    """The layer that logs and measures, below the limits.

    Args:
        app: What is inside.
        metrics: Where latencies are counted.
    """

    def __init__(self, app: App, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and say afterwards what came of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status, seconds = 500, 0.0

        async def timed(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - begun
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=scope["state"]["request_id"]):
            try:
                await self._app(scope, receive, timed)
            finally:
                self._tell(scope, status, seconds or time.perf_counter() - begun)

    def _tell(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", None) or "none"
        self._metrics.answered(method=method, route=route, status=status, seconds=seconds)
        caller = scope["state"].get("caller")
        about = {_BOUND[key]: value for key, value in scope.get("path_params", {}).items() if key in _BOUND}
        _log.info(
            "request",
            method=method,
            route=route,
            status=status,
            seconds=round(seconds, 4),
            role=caller.actor.role if caller else None,
            by=caller.credential if caller else None,
            **about,
        )

"""What every request must keep to before anything looks at it: its host, the size and pace of its body, no surprises.

The outermost layer of the application. It also sets the headers that tell a browser what pages may do, and turns a
fault that nobody caught into a problem without a traceback.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from starlette.exceptions import HTTPException

from ringfence_server.control.api import problems
from ringfence_server.control.settings import ControlSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Policies and plans are the largest things anybody sends, and strict_toml.py reads no more than this.
LIMIT_BYTES = 1 << 20
# A whole body, however slowly it comes: nobody sends a policy for longer.
BODY_SECONDS = 20.0

# Pages are NiceGUI's: it writes its start into the page as a script and styles at elements, and compiles templates in
# the browser. Everything comes from this host; nothing may frame it, and a form sends nowhere else.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
API_POLICY = "default-src 'none'; frame-ancestors 'none'"
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
_STRICT_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")
# After these the rest of a body may still be on its way.
_BODY_UNREAD = (
    problems.BAD_REQUEST.status,
    problems.TOO_SLOW.status,
    problems.TOO_LARGE.status,
    problems.WRONG_HOST.status,
)
_HEALTH = "/health/"
_API = ("/api/", _HEALTH, "/metrics")
# What a response of the API has; pages set their own where they are static.
_NOT_KEPT = (b"cache-control", b"no-store")

_log = structlog.get_logger("ringfence.control")


def is_api(path: str) -> bool:
    """Whether a path belongs to the API and not to the pages."""
    return path.startswith(_API)


class Limits:
    """The outermost layer.

    Args:
        app: What is inside.
        settings: Names this control plane is reached by, and whether by https.
        limit_bytes: The largest body.
        body_seconds: How long a body may take to arrive.
    """

    def __init__(
        self, app: App, *, settings: ControlSettings, limit_bytes: int = LIMIT_BYTES, body_seconds: float = BODY_SECONDS
    ) -> None:
        self._app = app
        self._hosts = settings.hosts
        self._origins = settings.origins
        self._limit = limit_bytes
        self._seconds = body_seconds
        self._headers = (*_ALWAYS, _STRICT_TRANSPORT) if settings.secure else _ALWAYS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope["headers"] = [
            (name, _plain_cookies(value) if name == b"cookie" else value) for name, value in scope["headers"]
        ]
        headers = dict(scope["headers"])
        if scope["type"] == "websocket":
            # A browser lets any page open a WebSocket to anywhere, with the cookies: its Origin is all that tells.
            host, origin = self._host_of(headers), _text(headers, b"origin")
            if host not in self._hosts or origin not in self._origins or origin.partition("://")[2] != host:
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        await self._answer(scope, headers, receive, send)

    async def _answer(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        reply = _Reply(send, self._headers, request_id, scope["path"])
        refused = self._refused(scope["path"], headers)
        if refused is None:
            try:
                await self._app(scope, self._measured(receive), reply.send)
            except Exception as fault:  # whatever it is, no traceback leaves the process
                _log.error("request_failed", request_id=request_id, fault=type(fault).__name__, exc_info=True)
                if reply.started and not reply.complete:
                    raise  # half an answer is out: the line is cut, so that nobody takes it for a whole one
                refused = problems.INTERNAL
        if refused is not None and not reply.started:
            await problems.answer(problems.of_kind(refused), request_id=request_id)(scope, receive, reply.send)

    def _refused(self, path: str, headers: dict[bytes, bytes]) -> problems.Kind | None:
        # Whoever watches its health asks by address, and learns nothing else.
        if self._host_of(headers) not in self._hosts and not path.startswith(_HEALTH):
            return problems.WRONG_HOST
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # Two answers to where the body ends: whoever stands before us may have believed the other one (RFC 9112,
            # 6.1), and what follows would be taken for somebody else's request.
            return problems.BAD_REQUEST
        length = _text(headers, b"content-length")
        if length and (not length.isdecimal() or int(length[:12]) > self._limit):
            return problems.TOO_LARGE
        return None

    def _measured(self, receive: Receive) -> Receive:
        """`receive` that stops at the limit, in bytes or seconds. After the body it waits as long as it takes."""
        seen = 0
        complete = False
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def measured() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(problems.TOO_SLOW.status) from None
            seen += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if seen > self._limit:
                raise HTTPException(problems.TOO_LARGE.status)
            return message

        return measured

    @staticmethod
    def _host_of(headers: dict[bytes, bytes]) -> str:
        return _text(headers, b"host").lower()


class _Reply:
    """A response with the headers that all have."""

    def __init__(self, send: Send, headers: tuple[tuple[bytes, bytes], ...], request_id: str, path: str) -> None:
        self._send = send
        self._api = is_api(path)
        policy = API_POLICY if self._api else PAGE_POLICY
        self._headers = (
            *headers,
            (b"content-security-policy", policy.encode()),
            (problems.REQUEST_ID.encode(), request_id.encode()),
        )
        self.started = False
        self.complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            present = {name.lower() for name, _ in message["headers"]}
            more = [*self._headers, *([_NOT_KEPT] if self._api else [])]
            if message["status"] in _BODY_UNREAD:
                more.append((b"connection", b"close"))
            message["headers"] = [*message["headers"], *((name, value) for name, value in more if name not in present)]
        await self._send(message)
        if message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)


def _plain_cookies(header: bytes) -> bytes:
    """A header Cookie without those of its cookies that are quoted; ours never are.

    The standard library takes quotes off in time that grows with the square of the cookie's length (CVE-2024-7592): one
    header of 60 KB kept everybody else waiting for seconds.
    """
    return b";".join(pair for pair in header.split(b";") if b'"' not in pair)


def _text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")

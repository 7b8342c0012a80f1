"""The coordinator's one door for nodes: forwards what SuperNodes ask of the SuperLink, and answers nothing else.

The SuperLink serves its Fleet, Control and Runtime interfaces on one port, and Control has no users: whoever reaches it
starts runs. So the SuperLink listens on the loopback address, and this stands before it. A request is forwarded where
its path is one of `FLEET_PATHS` and a registered SuperNode signed it; everything else is refused before a byte of its
body is read. Bodies pass in pieces, so that a large one costs no memory here.
"""

import asyncio
import base64
import binascii
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from logging import getLogger
from typing import Any, Protocol

import httpx

from ringfence_policy.errors import RingfenceError
from ringfence_policy.transport_keys import signed_by_node

# Of Flower's Fleet interface, without the two by which a SuperNode would register itself: holders are registered here.
FLEET_PATHS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
# Flower splits arrays into objects of 5 MiB; what is not split, such as a holder's log as evidence, must fit here.
LIMIT_BYTES = 64 << 20
_MEDIA_TYPE = b"application/protobuf"
_PUBLIC_KEY, _SIGNATURE, _TIMESTAMP = b"flwr-public-key", b"flwr-signature", b"flwr-timestamp"
_FORWARDED = (
    b"content-type",
    b"accept",
    _PUBLIC_KEY,
    _SIGNATURE,
    _TIMESTAMP,
    b"flwr-package-name",
    b"flwr-package-version",
    b"flwr-component-name",
)
_RETURNED = frozenset({"content-type", "content-length", "flwr-version-incompatibility-message"})
_LONGEST_HEADER = 4096
_LONGEST_LENGTH = 12
_IDLE_SECONDS = 30.0
_WHOLE_SECONDS = 600.0
# The SuperLink closes what was idle for 5 seconds: a request must not meet a connection that is just being closed.
_KEPT_SECONDS = 2.5
_FAR_SIDE = httpx.Timeout(connect=5.0, read=60.0, write=60.0, pool=30.0)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = getLogger(__name__)


class Registered(Protocol):
    """Who may connect."""

    def holder_of(self, key: str) -> str | None:
        """The holder that a SuperNode's key speaks for; None for everybody else."""


class _Refusal(Exception):
    """What a request is answered with instead of being forwarded."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class _HungUp(Exception):
    """The node went away in the middle of its request: there is nobody to answer."""


class Front:
    """The door as an ASGI application.

    Args:
        superlink: The SuperLink's address, host:port, on the loopback address.
        client: Reaches it, and trusts its certificate alone.
        registered: Who may connect.
        limit_bytes: The largest body in either direction.
    """

    def __init__(
        self, *, superlink: str, client: httpx.AsyncClient, registered: Registered, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self._url = f"https://{superlink}"
        self._client = client
        self._registered = registered
        self._limit = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request, or refuse it."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            await self._client.aclose()
            return
        if scope["type"] != "http":
            return  # a WebSocket: closed without an answer
        answered = _Answered(send)
        try:
            async with asyncio.timeout(_WHOLE_SECONDS):
                headers = _checked(scope)
                length = _length_of(headers, limit=self._limit)
                self._identify(headers)
                await self._forward(scope["path"], headers, length, receive, answered)
        except _HungUp:
            return
        except _Refusal as refusal:
            await answered.refuse(refusal)
        except (httpx.TimeoutException, TimeoutError):
            await answered.refuse(_Refusal(504, "no answer in time"))
        except httpx.HTTPError as error:
            # 503 is what SuperNodes wait and try again on: the SuperLink may be starting anew.
            _log.warning("the SuperLink cannot be reached: %s", type(error).__name__)
            await answered.refuse(_Refusal(503, "try again"))

    def _identify(self, headers: dict[bytes, bytes]) -> None:
        """Make sure that a registered SuperNode signed the request; the SuperLink then judges time and number."""
        try:
            key = base64.b64decode(headers[_PUBLIC_KEY], validate=True).decode("ascii")
            signature = base64.b64decode(headers[_SIGNATURE], validate=True)
            timestamp = headers[_TIMESTAMP]
        except (KeyError, ValueError, binascii.Error):
            raise _Refusal(401, "a registered SuperNode signs its requests") from None
        try:
            holder = self._registered.holder_of(key)
        except (RingfenceError, OSError) as error:  # fail closed; a node that is registered tries again
            _log.error("registrations cannot be read: %s", error)
            raise _Refusal(503, "try again") from None
        if holder is None or not signed_by_node(key, timestamp, signature):
            raise _Refusal(401, "this SuperNode is not registered")

    async def _forward(
        self, path: str, headers: dict[bytes, bytes], length: int, receive: Receive, answered: "_Answered"
    ) -> None:
        request = self._client.build_request(
            "POST",
            self._url + path,  # a constant: `path` is one of FLEET_PATHS
            headers=[(name, headers[name]) for name in _FORWARDED if name in headers]
            + [(b"content-length", str(length).encode())],
            content=_body(receive, length),
        )
        response = await self._client.send(request, stream=True)
        try:
            await answered.pass_on(response, limit=self._limit)
        finally:
            await response.aclose()


class _Answered:
    """One answer on its way out: whole, refused, or cut off where it already began."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._began = False

    async def pass_on(self, response: httpx.Response, *, limit: int) -> None:
        """Give the SuperLink's answer to the node, piece by piece."""
        declared = response.headers.get("content-length", "")
        if not declared.isdigit() or int(declared) > limit or "content-encoding" in response.headers:
            raise _Refusal(502, "an answer of another shape")
        headers = [(name, value) for name, value in response.headers.items() if name in _RETURNED]
        self._began = True
        await self._send(_start(response.status_code, [(n.encode(), v.encode()) for n, v in headers]))
        async for piece in response.aiter_raw():
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, refusal: _Refusal) -> None:
        """Answer with a refusal; where an answer has begun, leave it unfinished, so that nobody takes it for whole."""
        if self._began:
            return  # an answer that ends before its length makes the server break the connection
        body = refusal.words.encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await self._send(_start(refusal.status, headers))
        await self._send({"type": "http.response.body", "body": body})


def _checked(scope: Scope) -> dict[bytes, bytes]:
    """The request's headers by name, if it is one that a SuperNode sends."""
    path, raw = scope["path"], scope.get("raw_path", b"")
    if scope["method"] != "POST" or path not in FLEET_PATHS or raw != path.encode() or scope["query_string"]:
        raise _Refusal(404, "not found")
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in headers and name in (*_FORWARDED, b"content-length", b"transfer-encoding", b"host"):
            raise _Refusal(400, "a header stands there twice")
        headers[name] = value
    if any(len(headers.get(name, b"")) > _LONGEST_HEADER for name in _FORWARDED):
        raise _Refusal(400, "a header is too long")
    if headers.get(b"content-type") != _MEDIA_TYPE:
        raise _Refusal(415, "application/protobuf is spoken here")
    return headers


def _length_of(headers: dict[bytes, bytes], *, limit: int) -> int:
    length = headers.get(b"content-length", b"")
    if b"transfer-encoding" in headers or not length.isdigit() or len(length) > _LONGEST_LENGTH:
        raise _Refusal(411, "a request says its length")
    if int(length) > limit:
        raise _Refusal(413, f"at most {limit} bytes")
    return int(length)


async def _body(receive: Receive, length: int) -> AsyncIterator[bytes]:
    """A request's body as it comes in, exactly as long as was said."""
    left = length
    more = True
    while more:
        async with asyncio.timeout(_IDLE_SECONDS):
            message = await receive()
        if message["type"] != "http.request":
            raise _HungUp
        piece = message.get("body", b"")
        more = message.get("more_body", False)
        left -= len(piece)
        if left < 0:
            raise _Refusal(400, "the body is longer than was said")
        if piece:
            yield piece
    if left:
        raise _Refusal(400, "the body is shorter than was said")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> MutableMapping[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def far_side(authority: str) -> httpx.AsyncClient:
    """The client by which the front reaches its SuperLink: no proxy, no redirect, one authority.

    Args:
        authority: Path of the certificate that the SuperLink's own leads to.
    """
    context = ssl.create_default_context(cafile=authority)
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=_KEPT_SECONDS)
    return httpx.AsyncClient(
        verify=context, timeout=_FAR_SIDE, limits=limits, trust_env=False, headers={"accept-encoding": "identity"}
    )

"""Who is asking: the layer that turns a cookie or an API token into a caller, before anything else sees the request.

Routes and pages ask `actor_of(request)`. A request of the API without a caller is refused here, before a byte of its
body is read. What a browser sends by itself, its cookie, counts on a request that changes something only if the browser
also says that the request comes from one of our own pages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Protocol

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from ringfence_policy.errors import Refused, RingfenceError
from ringfence_server.control.actor import Actor
from ringfence_server.control.api import problems
from ringfence_server.control.limits import App, Receive, Scope, Send, is_api
from ringfence_server.control.settings import ControlSettings

# Whether this process is alive is nobody's secret, and what asks holds no credential.
OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Scripts, styles and fonts of the pages: the same for everybody, so nobody is looked up for them.
_STATIC = "/_nicegui/"


class NotSignedIn(Refused):
    """Nobody is signed in, or the sign-in is over."""

    code = "not-signed-in"
    http_status = 401


class CrossSite(Refused):
    """A browser's request that would change something does not come from a page of this control plane."""

    code = "cross-site"


@dataclass(frozen=True)
class Caller:
    """An actor, and what it showed.

    Attributes:
        actor: Who.
        credential: Names the session or token, e.g. `session:3f..`; public, for logs and for the end of streams.
    """

    actor: Actor
    credential: str


class Credentials(Protocol):
    """Where callers are looked up."""

    def by_session(self, secret: str) -> Caller | None:
        """Whose session this is, if it is still good."""

    def by_token(self, token: str) -> Caller | None:
        """Whose API token this is, if it is still good."""


def actor_of(request: HTTPConnection) -> Actor | None:
    """Who asks, or None if nobody is signed in."""
    caller = caller_of(request)
    return caller.actor if caller else None


def caller_of(request: HTTPConnection) -> Caller | None:
    """Who asks, and by which credential."""
    found = getattr(request.state, "caller", None)
    return found if isinstance(found, Caller) else None


def signed_in(request: Request) -> Actor:
    """Who asks, as a dependency of routes.

    Raises:
        NotSignedIn: Nobody.
    """
    actor = actor_of(request)
    if actor is None:
        raise nobody()
    return actor


def nobody() -> NotSignedIn:
    """What a caller without a role is told."""
    return NotSignedIn(
        "nobody is signed in",
        expected="the header `Authorization: Bearer rf_...`, or a session of the pages",
        next_step="sign in at /signin, or ask an administrator for a token (docs/control.md)",
    )


def cookie_name(settings: ControlSettings) -> str:
    """The session's cookie. With the prefix a browser takes it only by https, from this host and for all of it."""
    return "__Host-ringfence" if settings.secure else "ringfence"


def is_static(scope: Scope) -> bool:
    """Whether it asks for what the pages are made of, the same for everybody."""
    return scope["type"] == "http" and scope["method"] in SAFE_METHODS and scope["path"].startswith(_STATIC)


class SignOn:
    """The layer that knows who asks.

    Args:
        app: What is inside.
        settings: Names of this control plane.
        credentials: Where callers are looked up.
    """

    def __init__(self, app: App, *, settings: ControlSettings, credentials: Credentials) -> None:
        self._app = app
        self._cookie = cookie_name(settings)
        self._origins = settings.origins
        self._credentials = credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out who asks, and pass the request on or refuse it."""
        if scope["type"] == "lifespan" or is_static(scope):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        caller: Caller | None = None
        refused: RingfenceError | None = None
        try:
            caller = await self._caller(connection)
        except RingfenceError as fault:  # the store is away: whoever it is, it cannot be known
            refused = fault
        scope.setdefault("state", {})["caller"] = caller
        if scope["type"] == "websocket":
            if caller is None:
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
        elif (refused := refused or self._refusal(connection, caller)) is not None:
            headers = {"WWW-Authenticate": "Bearer"} if refused.http_status == NotSignedIn.http_status else {}
            answer = problems.answer(
                problems.of_error(refused), request_id=scope["state"].get("request_id"), headers=headers
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _caller(self, connection: HTTPConnection) -> Caller | None:
        look_up: Callable[[str], Caller | None]
        shown = connection.headers.getlist("authorization")
        if shown:
            # Whoever shows a token means it: a cookie beside it must not let a revoked one pass. Of two, a proxy may
            # have looked at the other one.
            scheme, _, secret = shown[0].partition(" ")
            if len(shown) > 1 or scheme.lower() != "bearer":
                return None
            secret, look_up = secret.strip(), self._credentials.by_token
        else:
            secret, look_up = self._cookie_of(connection), self._credentials.by_session
        return await run_in_threadpool(look_up, secret) if secret else None

    def _cookie_of(self, connection: HTTPConnection) -> str:
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(connection.headers.get("cookie", ""))
        except CookieError:
            return ""
        return jar[self._cookie].value if self._cookie in jar else ""

    def _refusal(self, connection: HTTPConnection, caller: Caller | None) -> Refused | None:
        path, method = connection.scope["path"], connection.scope["method"]
        if caller is None:
            return nobody() if is_api(path) and path not in OPEN_PATHS else None
        if caller.actor.via == "session" and method not in SAFE_METHODS and not self._own(connection):
            return CrossSite(
                "this request does not come from a page of this control plane",
                expected="the header Origin with this control plane's own address",
                next_step="scripts use an API token instead of a browser's session",
            )
        return None

    def _own(self, connection: HTTPConnection) -> bool:
        """Whether a browser says that one of the pages of this very host sent it. Silence is no."""
        origin = connection.headers.get("origin")
        if origin is None:
            return connection.headers.get("sec-fetch-site") == "same-origin"
        host = connection.headers.get("host", "").lower()
        return origin in self._origins and origin.partition("://")[2] == host

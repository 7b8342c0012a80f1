"""The few addresses by which a browser signs in and out: a workshop's links, and the way to an identity provider.

Every sign-in makes a session with a fresh name and ends the one that the browser had, so that nobody can be given a
session that somebody else knows.
"""

import html
from typing import Annotated

from fastapi import APIRouter, Cookie, Query, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ringfence_policy.errors import RingfenceError
from ringfence_server.control.actor import Actor
from ringfence_server.control.oidc import Attempt, IdentityProvider, SignInRefused
from ringfence_server.control.settings import ControlSettings
from ringfence_server.control.sign_on_store import ATTEMPT_SECONDS, SignOnStore
from ringfence_server.control.signon import cookie_name

_ATTEMPT_COOKIE = "ringfence-signin"
_SEE_OTHER = 303


class _Sessions:
    """Gives browsers their sessions, and takes them back."""

    def __init__(self, store: SignOnStore, settings: ControlSettings) -> None:
        self._store = store
        self._cookie = cookie_name(settings)
        self._longest = int(settings.longest.total_seconds())
        self.secure = settings.secure

    def welcome(self, request: Request, actor: Actor) -> Response:
        """Sign a browser in: with a fresh session, instead of the one that it had."""
        secret = self._store.open_session(actor, instead_of=request.cookies.get(self._cookie))
        response = RedirectResponse("/", _SEE_OTHER)
        response.set_cookie(
            self._cookie, secret, max_age=self._longest, httponly=True, samesite="lax", secure=self.secure
        )
        return response

    def farewell(self, request: Request) -> Response:
        """Sign a browser out."""
        self._store.end_session(request.cookies.get(self._cookie))
        response = RedirectResponse("/", _SEE_OTHER)
        response.delete_cookie(self._cookie, secure=self.secure, httponly=True, samesite="lax")
        return response


def sign_on_pages(store: SignOnStore, settings: ControlSettings, provider: IdentityProvider | None) -> APIRouter:
    """The routes by which a browser signs in and out."""
    router = APIRouter(include_in_schema=False)
    sessions = _Sessions(store, settings)
    _add_provider(router, store, sessions, provider)

    @router.get("/enter/{secret}")
    def enter(request: Request, secret: str) -> Response:
        """Sign in by a workshop's link."""
        # A browser that loads ahead would use up the link before anybody clicked on it.
        if not settings.workshop or "prefetch" in request.headers.get("sec-purpose", ""):
            raise _unknown_link()
        actor = store.use_link(secret)
        if actor is None:
            raise _unknown_link()
        return sessions.welcome(request, actor)

    @router.post("/signout")
    def sign_out(request: Request) -> Response:
        """End the session of this browser."""
        return sessions.farewell(request)

    return router


def _add_provider(
    router: APIRouter, store: SignOnStore, sessions: _Sessions, provider: IdentityProvider | None
) -> None:
    @router.get("/signin")
    def sign_in() -> Response:
        """Begin a sign-in at the identity provider."""
        if provider is None:
            raise SignInRefused(
                "this control plane has no identity provider",
                next_step="open the link that `ringfence workshop` printed for your role",
            )
        attempt = Attempt.fresh()
        response = RedirectResponse(provider.begin(attempt), _SEE_OTHER)
        response.set_cookie(
            _ATTEMPT_COOKIE,
            store.keep_attempt(attempt),
            max_age=ATTEMPT_SECONDS,
            httponly=True,
            samesite="lax",
            secure=sessions.secure,
            path="/signin",
        )
        return response

    @router.get("/signin/return")
    def come_back(
        request: Request,
        state: Annotated[str, Query(max_length=2000)] = "",
        code: Annotated[str, Query(max_length=8000)] = "",
        iss: Annotated[str | None, Query(max_length=2000)] = None,
        begun: Annotated[str, Cookie(alias=_ATTEMPT_COOKIE, max_length=200)] = "",
    ) -> Response:
        """Take what the identity provider sent the browser back with."""
        attempt = store.take_attempt(begun) if begun else None
        if provider is None or attempt is None or not code:
            raise SignInRefused("this sign-in was not begun here, or took too long", next_step="sign in again")
        response = sessions.welcome(request, provider.finish(attempt, code=code, state=state, issuer=iss))
        response.delete_cookie(_ATTEMPT_COOKIE, path="/signin", secure=sessions.secure, httponly=True, samesite="lax")
        return response


def told(_request: Request, error: Exception) -> Response:
    """A small page that says why a sign-in did not work."""
    assert isinstance(error, RingfenceError)  # noqa: S101 -- how FastAPI types handlers
    more = f"<p>{html.escape(error.next_step)}</p>" if error.next_step else ""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Ringfence</title>'
        f"<style>body{{font:1.4rem/1.5 system-ui,sans-serif;margin:15vh auto;max-width:40rem;padding:0 1rem}}</style>"
        f"<main><h1>Not signed in</h1><p>{html.escape(error.summary)}</p>{more}</main></html>",
        error.http_status,
    )


def unreadable(request: Request, _error: Exception) -> Response:
    """The same page for what no provider sends. Nothing of it is repeated."""
    return told(request, SignInRefused("this answer of a provider cannot be read", next_step="sign in again"))


def _unknown_link() -> SignInRefused:
    return SignInRefused(
        "this link is not known, or was used already: each works once",
        next_step="go on in the browser where it was used, or start `ringfence workshop` again for new ones",
    )

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


def sign_on_pages(
    store: SignOnStore, settings: ControlSettings, provider: IdentityProvider | None
) -> APIRouter:  # fmt: skip
    """The routes by which a browser signs in and out."""
    router = APIRouter(include_in_schema=False)
    secure, session_cookie = settings.secure, cookie_name(settings)

    def welcome(request: Request, actor: Actor) -> Response:
        secret = store.open_session(actor, instead_of=request.cookies.get(session_cookie))
        response = RedirectResponse("/", _SEE_OTHER)
        response.set_cookie(
            session_cookie,
            secret,
            max_age=int(settings.longest.total_seconds()),
            httponly=True,
            samesite="lax",
            secure=secure,
        )
        return response

    @router.get("/enter/{secret}")
    def enter(request: Request, secret: str) -> Response:
        """Sign in by a workshop's link."""
        # A browser that loads ahead would use up the link before anybody clicked on it.
        if not settings.workshop or "prefetch" in request.headers.get("sec-purpose", ""):
            raise _unknown_link()
        actor = store.use_link(secret)
        if actor is None:
            raise _unknown_link()
        return welcome(request, actor)

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
            secure=secure,
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
        response = welcome(request, provider.finish(attempt, code=code, state=state, issuer=iss))
        response.delete_cookie(_ATTEMPT_COOKIE, path="/signin", secure=secure, httponly=True, samesite="lax")
        return response

    @router.post("/signout")
    def sign_out(request: Request) -> Response:
        """End the session of this browser."""
        store.end_session(request.cookies.get(session_cookie))
        response = RedirectResponse("/", _SEE_OTHER)
        response.delete_cookie(session_cookie, secure=secure, httponly=True, samesite="lax")
        return response

    return router


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


def _unknown_link() -> SignInRefused:
    return SignInRefused(
        "this link is not known, or was used already: each works once",
        next_step="go on in the browser where it was used, or start `ringfence workshop` again for new ones",
    )

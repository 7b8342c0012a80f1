"""Mounts the pages on an application, and sees to it that each is opened by somebody who is signed in."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request
from nicegui import app as nicegui
from nicegui import ui
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from ringfence_policy.errors import RingfenceError
from ringfence_server.control.limits import App, Receive, Scope, Send
from ringfence_server.control.pages import (
    audit_page,
    compare_page,
    holder_page,
    oversight_page,
    preview_page,
    run_page,
    runs_page,
    start_page,
)
from ringfence_server.control.pages.fragments import fill
from ringfence_server.control.pages.seat import Good, Seat, unforeseen_told_to_the_log_alone
from ringfence_server.control.permissions import Act, allow
from ringfence_server.control.plane import ControlPlane
from ringfence_server.control.signon import caller_of, is_static, nobody

Build = Callable[[Seat, Request], Awaitable[None]]

_LOOK = Path(__file__).parent / "look"
_PAGES: tuple[tuple[str, str, Act, Build], ...] = (
    ("/", "Start", Act.WATCH, start_page.build),
    ("/runs", "Runs", Act.WATCH, runs_page.build),
    ("/runs/{run_id}", "Run", Act.WATCH, run_page.build),
    ("/my-data", "My data, my rules", Act.OWN_DATA, holder_page.build),
    ("/preview", "Preview", Act.PREVIEW, preview_page.build),
    ("/oversight", "Oversight", Act.SEE_READS, oversight_page.build),
    ("/compare", "Compare", Act.COMPARE, compare_page.build),
    ("/audit", "Audit", Act.INSPECT, audit_page.choose),
    ("/audit/{run_id}/{owner}", "Audit", Act.INSPECT, audit_page.build_log),
    ("/audit/{run_id}/{owner}/{position}", "Audit", Act.INSPECT, audit_page.build_record),
)
# Nobody waits longer for a page; reading four officers' desks takes a while on a busy laptop.
_PAGE_SECONDS = 30.0


def mount_pages(app: FastAPI, plane: ControlPlane, *, good: Good, has_provider: bool) -> None:
    """Put the pages on an application whose sign-on says who asks (`signon.caller_of`).

    Args:
        app: The control plane's application.
        plane: The use cases, started.
        good: Which credentials are still good, so that an open page ends with its sign-in.
        has_provider: Whether an identity provider vouches for people. Otherwise a link signs them in.
    """
    app.mount("/look", StaticFiles(directory=_LOOK), name="look")
    nicegui.add_middleware(SignedInOnly, has_provider=has_provider)
    for path, title, act, build in _PAGES:
        _add(plane, good, path, title, act=act, build=build)
    ui.run_with(
        app,
        title="Ringfence",
        favicon=_LOOK / "ringfence.svg",
        dark=None,
        language="en-GB",
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=30.0,
    )


class SignedInOnly:
    """Lets nobody further who is not signed in: a page costs memory, and so does the line that keeps one fresh.

    Args:
        app: What is inside.
        has_provider: Whether an identity provider vouches for people.
    """

    def __init__(self, app: App, *, has_provider: bool) -> None:
        self._app = app
        self._has_provider = has_provider

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or say that nobody is signed in."""
        if scope["type"] != "http" or is_static(scope) or caller_of(HTTPConnection(scope)) is not None:
            await self._app(scope, receive, send)
            return
        way, link = "open the link that you were given for your role", None
        if self._has_provider:
            way, link = "your organisation says who you are", ("/signin", "Sign in")
        shown = fill("fault", error=nobody(), way=way, link=link)
        await HTMLResponse(shown, 401)(scope, receive, send)


def _add(plane: ControlPlane, good: Good, path: str, title: str, *, act: Act, build: Build) -> None:
    @ui.page(path, title=f"{title} · Ringfence", response_timeout=_PAGE_SECONDS)
    async def page(request: Request) -> Response | None:
        caller = caller_of(request)
        assert caller is not None  # noqa: S101 -- SignedInOnly let it in
        ui.add_head_html(fill("head_tags"))
        try:
            allow(caller.actor, act)
            with unforeseen_told_to_the_log_alone():
                await build(Seat(plane, caller.actor, caller.credential, good), request)
        except RingfenceError as refused:
            way = refused.next_step or ""
            shown = fill("fault", error=refused, way=way, link=("/", "To the start page"))
            return HTMLResponse(shown, refused.http_status)
        return None

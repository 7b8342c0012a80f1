"""Puts the application together: layers, API, sign-on and whatever pages are mounted on it.

    Limits -> Observed -> SignOn -> the API (/api/v1, /health, /metrics), or the sign-on's pages and what is mounted

The API is an application of its own, so that whatever is asked of it is answered as the API answers, with a problem
document, and never by a page.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ringfence_policy.errors import RingfenceError
from ringfence_server.control.api import (
    problems,
    routes_access,
    routes_evidence,
    routes_holders,
    routes_plans,
    routes_runs,
    routes_service,
)
from ringfence_server.control.api.bodies import plain_json
from ringfence_server.control.api.openapi import describe
from ringfence_server.control.credentials import StoredCredentials
from ringfence_server.control.feeds import Feeds
from ringfence_server.control.limits import App, Limits, Message, Receive, Scope, Send, is_api
from ringfence_server.control.metrics import Metrics
from ringfence_server.control.observed import Observed
from ringfence_server.control.oidc import IdentityProvider
from ringfence_server.control.plane import ControlPlane
from ringfence_server.control.settings import ControlSettings
from ringfence_server.control.sign_on_pages import sign_on_pages, told, unreadable
from ringfence_server.control.sign_on_store import SignOnStore
from ringfence_server.control.signon import SignOn
from ringfence_server.control.site_figures import site_figures
from ringfence_server.control.standing import Standing

VERSION = "1"
_DESCRIPTION = (
    "Runs of one federation: proposals, previews, approvals, rounds as they happen, budgets, evidence. Every error is "
    "a problem document (RFC 9457)."
)

# What a stream would send is not known before it ends.
_NO_HEAD = "/stream"


def create_app(
    plane: ControlPlane, settings: ControlSettings, *, sign_on: SignOnStore, provider: IdentityProvider | None = None
) -> FastAPI:
    """The whole application over a control plane; pages may be mounted on it.

    Args:
        plane: The use cases, started.
        settings: How it is reached.
        sign_on: Who is signed in.
        provider: Who vouches for people; None where links or tokens alone do.
    """
    credentials = StoredCredentials(plane.access, sign_on)
    standing = Standing(credentials.good)
    metrics = Metrics(lambda: site_figures(plane))
    feeds = Feeds(plane.mirror.follow)
    api = create_api()
    app = FastAPI(title="Ringfence", lifespan=_watching(standing), openapi_url=None, docs_url=None, redoc_url=None)
    for one in (api, app):
        one.state.plane, one.state.settings, one.state.sign_on = plane, settings, sign_on
        one.state.standing, one.state.metrics, one.state.feeds = standing, metrics, feeds
    app.include_router(sign_on_pages(sign_on, settings, provider))
    app.add_exception_handler(RingfenceError, told)
    app.add_exception_handler(RequestValidationError, unreadable)
    # The last one added is the outermost.
    app.add_middleware(_Doors, api=api)
    app.add_middleware(SignOn, settings=settings, credentials=credentials)
    app.add_middleware(Observed, metrics=metrics)
    app.add_middleware(Limits, settings=settings)
    return app


def create_api() -> FastAPI:
    """The API alone. It answers nothing before `create_app` gave it a control plane, but it can be described."""
    api = FastAPI(
        title="Ringfence control plane",
        version=VERSION,
        description=_DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(plain_json)],
        generate_unique_id_function=lambda route: route.name,  # links name routes by it
    )
    for routes in (routes_service, routes_plans, routes_runs, routes_holders, routes_evidence, routes_access):
        api.include_router(routes.router)
    api.openapi = lambda: describe(api)  # type: ignore[method-assign] # as FastAPI's documentation says
    api.add_exception_handler(RingfenceError, _refused)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _by_framework)
    api.add_exception_handler(Exception, _fault)
    return api


class _Doors:
    """Leads a request to the API or to the pages."""

    def __init__(self, app: App, *, api: App) -> None:
        self._pages = app
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_api(scope["path"]):
            await self._pages(scope, receive, send)
        elif scope["method"] == "HEAD" and not scope["path"].endswith(_NO_HEAD):
            await self._head(scope, receive, send)
        else:
            await self._api(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """HEAD is GET without the body (RFC 9110, 9.3.2); monitors ask like this whether a service is alive."""

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        scope["method"] = "GET"
        try:
            await self._api(scope, receive, without_body)
        finally:
            scope["method"] = "HEAD"


def _watching(standing: Standing) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(standing.watch())
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    return lifespan


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RingfenceError)  # noqa: S101 -- how FastAPI types handlers
    hidden: Collection[str] = [str(request.app.state.plane.site.directory)]
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else {}  # noqa: PLR2004
    return problems.answer(problems.of_error(error, hidden=hidden), request_id=_id(request), headers=headers)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 -- how FastAPI types handlers
    return problems.answer(problems.of_invalid(error), request_id=_id(request))


def _by_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 -- how FastAPI types handlers
    headers = dict(error.headers or {})
    if error.status_code == problems.METHOD_NOT_ALLOWED.status:
        headers["Allow"] = ", ".join(_methods(request.app, request.url.path))
    return problems.answer(problems.of_status(error.status_code), request_id=_id(request), headers=headers)


def _methods(api: FastAPI, path: str) -> list[str]:
    """What may be done with a path; the framework names the first of its routes alone."""
    found = {
        method
        for template, item in describe(api)["paths"].items()
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)
        for method in item
    }
    if "get" in found and not path.endswith(_NO_HEAD):
        found.add("head")
    return sorted(method.upper() for method in found)


def _fault(request: Request, _error: Exception) -> Response:
    return problems.answer(problems.of_kind(problems.INTERNAL), request_id=_id(request))


def _id(request: Request) -> str | None:
    return getattr(request.state, "request_id", None)

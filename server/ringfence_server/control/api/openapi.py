"""The API's own description (OpenAPI 3.1): what every route needs, who may call it, and every problem it may answer."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ringfence_server.control.api import problems
from ringfence_server.control.api.links import links_of
from ringfence_server.control.permissions import Act
from ringfence_server.control.signon import OPEN_PATHS
from ringfence_server.control.store.engine import StoreFault

# What any request may be answered with before its route sees it, beyond what the route itself documents.
_EVERYWHERE = (problems.BAD_REQUEST, problems.WRONG_HOST, problems.INTERNAL)
_WITH_BODY = (problems.TOO_SLOW, problems.TOO_LARGE)
_OF_A_BODY = (problems.WRONG_MEDIA_TYPE,)
_SIGNED_IN = {401: ("not-signed-in",)}
_FROM_A_PAGE = {403: ("cross-site",)}
_METHODS = ("get", "put", "post", "delete", "patch")
# On a route: the act of permissions.py that it carries out. docs/api.md says from it which role may call it.
ACT = "x-ringfence-act"


def act_of(act: Act) -> dict[str, str]:
    """What a route's entry says of the act that it carries out."""
    return {ACT: act.value}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
            separate_input_output_schemas=False,
        )
        _complete(document)
        app.openapi_schema = document
    return app.openapi_schema


def _complete(document: dict[str, Any]) -> None:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    problem = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"))
    schemas["Problem"] = problem
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "An API token: `rf_...`"},
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": "__Host-ringfence",
            "description": "A browser's session; called `ringfence` where the control plane is not reached by https.",
        },
    }
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                _complete_operation(path, method, item[method])


def _complete_operation(path: str, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    known: dict[int, set[str]] = {}
    bodies = _OF_A_BODY if "requestBody" in operation else ()
    for kind in (*_EVERYWHERE, *(_WITH_BODY if method != "get" else ()), *bodies):
        known.setdefault(kind.status, set()).add(kind.code)
    if path != "/health/live":
        known[StoreFault.http_status] = {StoreFault.code}  # who asks is looked up in the store, for every route
    if path not in OPEN_PATHS:
        operation["security"] = [{"token": []}, {"session": []}]
        for status, codes in (*_SIGNED_IN.items(), *(_FROM_A_PAGE.items() if method != "get" else ())):
            known.setdefault(status, set()).update(codes)
    if operation.get("parameters") or "requestBody" in operation:
        known.setdefault(problems.INVALID.status, set()).add(problems.INVALID.code)
    if problems.MEDIA_TYPE not in responses.get("422", {}).get("content", {}):
        responses.pop("422", None)  # the framework's own form of it, which is never answered
    for status, codes in sorted(known.items()):
        there = responses.get(str(status))
        named = set(there["description"].removeprefix("A problem: ").split(", ")) if there else set()
        responses[str(status)] = problems.documented_as(sorted(named | {f"`{code}`" for code in codes}))
    for status, response in responses.items():
        if status.startswith("2") and (links := links_of(operation["operationId"])):
            response["links"] = links
    operation["responses"] = dict(sorted(responses.items()))

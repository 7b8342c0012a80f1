"""What a request's body may be: JSON, and each member of an object once."""

import json
from email.message import Message
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ringfence_server.control.api import problems


async def plain_json(request: Request) -> None:
    """Refuse a body that is no JSON, or that two readers may take differently (RFC 8259, section 4).

    Raises:
        HTTPException: It says that it is something else.
        RequestValidationError: An object gives a member twice: of those we would take the last, others the first.
    """
    body = await request.body()
    if not body:
        return
    said = Message()
    said["content-type"] = request.headers.get("content-type", "")
    if said.get_content_type() != "application/json":
        raise HTTPException(problems.WRONG_MEDIA_TYPE.status)
    json.loads(body, object_pairs_hook=_once)  # it was read before: that it is JSON is known


def _once(members: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in members}) < len(members):
        error = {"type": "doubled_member", "loc": ("body",), "msg": "An object gives a member more than once"}
        raise RequestValidationError([error])

"""Writes docs/api.md from the OpenAPI document: `python tests/support/api_page.py`, in a checkout that is installed."""

from pathlib import Path

from ringfence_policy.errors import RingfenceError
from ringfence_server.control.actor import Role
from ringfence_server.control.api.app import create_api
from ringfence_server.control.api.openapi import ACT, describe
from ringfence_server.control.api.problems import KINDS
from ringfence_server.control.permissions import ALLOWED, Act
from ringfence_server.control.signon import OPEN_PATHS

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
HEAD = """# The API of the control plane

Written from the OpenAPI document by `python tests/support/api_page.py`; a test holds the two to each other. The
document itself is printed by `ringfence control openapi`, and served to every role at `/api/v1/openapi.json`. Roles,
tokens and single sign-on stand in [control.md](control.md).

    curl -H "Authorization: Bearer rf_..." https://control.example.org/api/v1/runs

* **Lists** come in pages: `limit` says how many, `next` of a page is the `cursor` of the next.
* **Sent again.** `POST` of proposals and runs takes an `Idempotency-Key`: the same key with the same request is carried
  out once and answered alike; with another request it is a `conflict`. Keys are an account's own.
* **Edited.** A policy is read with an `ETag` and written with it in `If-Match`; if it changed in between, nothing is
  written and the answer is `stale`. Without it, or with `*`, which names no text, it is `precondition-required`.
* **Links** in the document say which requests follow an answer: from a plan to a proposal, its run and its evidence.
* **HEAD** answers as `GET` does, without the body; a stream has none. There is no CORS: other sites read nothing.
* **As it happens.** `/api/v1/runs/{run_id}/stream` sends server-sent events. The `id` of each is its `seq`; a client
  that comes back with `Last-Event-ID` gets what it missed. An event named `end` is the last: close the stream then.
  Comments keep it alive every 15 seconds.
* **Errors** are problem documents (RFC 9457, `application/problem+json`) with a stable `code`, `detail`, `next_step`,
  and `instance`, the request's id, which is in the log as well. None repeats what was sent.
"""


def page():
    """docs/api.md as it should be."""
    document = describe(create_api())
    lines = [HEAD, "## Routes\n", "| route | does | roles | answers |", "| --- | --- | --- | --- |"]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            says = operation["description"].split("\n\n")[0].replace("\n", " ")
            answers = ", ".join(sorted(operation["responses"]))
            lines.append(f"| `{method.upper()} {path}` | {says} | {_roles(path, operation)} | {answers} |")
    lines += ["\n## Problems\n", "| code | status | is |", "| --- | --- | --- |"]
    known = {kind.code: (kind.status, kind.title) for kind in KINDS}
    for error in _all_errors(RingfenceError):
        if any(f"`{error.code}`" in one for one in _told(document)):
            known[error.code] = (error.http_status, error.__doc__.split("\n")[0].rstrip("."))
    lines += [f"| `{code}` | {status} | {title} |" for code, (status, title) in sorted(known.items())]
    return "\n".join(lines) + "\n"


def _roles(path, operation):
    if path in OPEN_PATHS:
        return "nobody needs one"
    roles = ALLOWED[Act(operation[ACT])] if ACT in operation else frozenset(Role)
    return "all" if roles == frozenset(Role) else ", ".join(role.value for role in Role if role in roles)


def _told(document):
    return [
        response["description"]
        for item in document["paths"].values()
        for operation in item.values()
        for response in operation["responses"].values()
    ]


def _all_errors(cls):
    return [cls, *(one for child in cls.__subclasses__() for one in _all_errors(child))]


if __name__ == "__main__":
    PAGE.write_text(page())

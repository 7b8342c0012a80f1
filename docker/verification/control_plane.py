"""The control plane over the running deployment, with PostgreSQL: what it acknowledged outlives both of them."""

import json
import os
import secrets as chance
from pathlib import Path
from typing import Any, Final

from verification.engine import Stack
from verification.findings import Findings, wait_until

SERVICES: Final = ("postgres", "control")
POSTGRES_USER, CONTROL_USER = 999, 10001
_DATABASE: Final = "postgresql+psycopg://ringfence@postgres/ringfence"
_PATIENCE: Final = 300.0
_ASK: Final = """
import json, sys, urllib.error, urllib.request
method, path, token, body = sys.argv[1:]
headers = {"authorization": "Bearer " + token, "content-type": "application/json"}
request = urllib.request.Request("http://127.0.0.1:8080" + path, body.encode() or None, headers, method=method)
try:
    with urllib.request.urlopen(request, timeout=60) as answer:
        print(json.dumps([answer.status, json.load(answer)]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, json.load(error)]))
"""


def write_password(folder: Path) -> None:
    """Make the database's password, in the form that either side reads, for its user alone where that can be said."""
    password = chance.token_urlsafe(24)
    for name, text, user in (
        ("postgres.password", password, POSTGRES_USER),
        ("pgpass", f"*:*:*:*:{password}\n", CONTROL_USER),
    ):
        path = folder / name
        path.write_text(text)
        path.chmod(0o600)
        os.chown(path, user, user)


def check_control_plane(stack: Stack, findings: Findings) -> None:
    """Propose a plan, kill PostgreSQL and then the control plane, and find the proposal again each time."""
    stack.compose("up", "--detach", "--no-build", *SERVICES)
    taken = _wait(stack, "control")
    said = stack.inside(
        *("control", "ringfence", "control", "token", "issue", "/deployment", "--database", _DATABASE),
        *("--name", "verify", "--role", "researcher", "--json"),
    )
    token = json.loads(said)["secret"]
    plan = stack.inside("control", "cat", "/deployment/plan.toml")
    status, proposal = _ask(stack, token, "POST", "/api/v1/proposals", {"text": plan})
    forecast = _ask(stack, token, "POST", "/api/v1/previews", {"text": plan})[1]
    findings.note(
        "control plane: takes a plan over PostgreSQL, and guesses no hospital's answer",
        f"healthy after {taken:.0f} s; status {status}",
        held=status == 201 and all(one["permitted"] is None for one in forecast),
    )
    stack.compose("kill", "--signal", "SIGKILL", "postgres")
    away, problem = _ask(stack, token, "GET", "/api/v1/proposals")
    stack.compose("start", "postgres")
    _wait(stack, "postgres")
    kept = _keeps(stack, token, proposal)
    findings.note(
        "PostgreSQL killed and started again",
        f"meanwhile {away} {problem.get('code')}; the proposal is {'there' if kept else 'LOST'}",
        held=away == 503 and kept,
    )
    stack.compose("kill", "--signal", "SIGKILL", "control")
    stack.compose("start", "control")
    taken = _wait(stack, "control")
    kept = _keeps(stack, token, proposal)
    findings.note(
        "control plane killed and started again",
        f"healthy after {taken:.0f} s; the proposal is {'there' if kept else 'LOST'}",
        held=kept,
    )


def _keeps(stack: Stack, token: str, proposal: dict[str, Any]) -> bool:
    status, found = _ask(stack, token, "GET", f"/api/v1/proposals/{proposal['id']}")
    return status == 200 and found["text"] == proposal["text"]


def _ask(stack: Stack, token: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    text = "" if body is None else json.dumps(body)
    status, answer = json.loads(stack.inside("control", "python", "-c", _ASK, method, path, token, text))
    return status, answer


def _wait(stack: Stack, service: str) -> float:
    return wait_until(f"{service} is healthy", lambda: stack.is_healthy(service), seconds=_PATIENCE)

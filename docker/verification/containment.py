"""What each container has and has not, asked from inside it: rights, files, networks, and the trainer's walls."""

import json
from collections.abc import Sequence
from typing import Any, Final

from verification.engine import Stack
from verification.findings import Findings

_LOOK: Final = """
import json, os, pathlib, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
def writes(path):
    try:
        pathlib.Path(path, "verify-writes").write_text("x")
    except OSError:
        return False
    pathlib.Path(path, "verify-writes").unlink()
    return True
def lists(path):
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        return type(error).__name__
def reaches(name, port):
    try:
        socket.create_connection((name, port), timeout=3).close()
    except OSError as error:
        return type(error).__name__
    return True
print(json.dumps({
    "user": os.getuid(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": int(status["NoNewPrivs"]),
    "seccomp": int(status["Seccomp"]),
    "interfaces": sorted(os.listdir("/sys/class/net")),
    "writes": [path for path in ("/", "/etc", "/opt/ringfence", "/holder", "/deployment", "/var/tmp") if writes(path)],
    "holder": lists("/holder"),
    "coordinator": reaches("coordinator", 9092),
    "superlink": reaches("coordinator", 9093),
    "other hospitals": [name for name in NAMES if reaches(name, 9092) != "gaierror"],
    "outside": reaches("192.0.2.1", 443),
}))
"""


def check_rights(stack: Stack, findings: Findings, services: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Look at running services from inside: what they may do. Returns all that was seen."""
    seen = {service: _look(stack, service) for service in services}
    for service, found in seen.items():
        findings.note(
            f"{service}: no root, no rights, nothing to write to",
            f"user {found['user']}, capabilities {found['capabilities']:x}, writes to {found['writes'] or 'nothing'}",
            held=found["user"] in (10001, 10002)
            and found["capabilities"] == 0
            and found["no_new_privileges"] == 1
            and found["seccomp"] == 2
            and set(found["writes"]) <= {"/deployment"},
        )
    return seen


def check_containment(stack: Stack, findings: Findings) -> None:
    """Look at one of each kind of service: what it may do, what it has, and whom it reaches."""
    seen = check_rights(stack, findings, ("coordinator", "agent-1", "supernode-1"))
    agent, supernode = seen["agent-1"], seen["supernode-1"]
    findings.note(
        "agent: has the records and no network",
        f"interfaces {agent['interfaces']}, {len(agent['holder'])} files of the holder's",
        held=agent["interfaces"] == ["lo"] and agent["coordinator"] is not True and "data.csv" in agent["holder"],
    )
    findings.note(
        "SuperNode: has a network and no file of the holder's",
        f"/holder: {supernode['holder']}",
        held=supernode["holder"] in ("PermissionError", []) and supernode["coordinator"] is True,
    )
    findings.note(
        "SuperNode: reaches the front and nothing else",
        f"SuperLink: {supernode['superlink']}; other hospitals by name: {supernode['other hospitals'] or 'none'}; "
        f"outside: {supernode['outside']}",
        held=supernode["superlink"] is not True
        and not supernode["other hospitals"]
        and supernode["outside"] is not True,
    )


def check_walls(stack: Stack, findings: Findings) -> None:
    """Let the trainer's walls be attacked under the engine's own rules."""
    answer = stack.compose(
        *("run", "--rm", "-T", "--no-deps", "desk-1", "doctor", "--json"), accept=(0, 1, 2, 3), seconds=180
    )
    checks = json.loads(answer)
    failed = [one["check"] for one in checks if not one["passed"]]
    tried = sum(len(one["attempts"]) for one in checks)
    findings.note(
        "walls stand in the container",
        f"{len(checks)} checks with {tried} ways out, failed: {failed or 'none'}",
        held=bool(checks) and not failed,
    )


def _look(stack: Stack, service: str) -> dict[str, Any]:
    names = [f"{kind}-{number}" for kind in ("agent", "supernode") for number in (2, 3)]
    return json.loads(stack.inside(service, "python", "-c", f"NAMES = {names!r}\n{_LOOK}"))

"""Sets a throw-away deployment up: keys, letters and policies, as people would, each in a container of its own."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from verification.engine import EngineFault, Stack

# Three of the bundled scenario's hospitals, by the number that compose.yaml gives them.
HOSPITALS: Final = {1: "cleveland", 2: "budapest", 3: "zurich-basel"}
RELAY_USER: Final = 10002

# What a hospital brings: the scenario's own files. A line that lets simulated holders do without walls is taken out.
_BRING: Final = """
import shutil, sys
from importlib import resources
from pathlib import Path
scenario, home = Path(str(resources.files("ringfence_client.scenarios.heart"))), Path("/holder")
for source in [*sorted((scenario / "holders" / sys.argv[1]).glob("*.*")), scenario / "schema.toml"]:
    shutil.copyfile(source, home / source.name)
policy = home / "policy.toml"
lines = policy.read_text().splitlines(keepends=True)
policy.write_text("".join(line for line in lines if not line.startswith("sandbox =")))
"""
_TAKE: Final = "import sys; from pathlib import Path; Path(sys.argv[1]).write_bytes(sys.stdin.buffer.read())"
# Nobody needs all twelve rounds to see faults; the rest of the plan stays as it is.
_SHORTEN: Final = """
import re, sys
from pathlib import Path
plan = Path("/deployment/plan.toml")
text = re.sub(r"(?m)^rounds = \\d+$", f"rounds = {int(sys.argv[1])}", plan.read_text())
plan.write_text(re.sub(r"(?m)^\\[cohort\\]$", f"[cohort]\\nround_seconds = {int(sys.argv[2])}", text))
"""


@dataclass(frozen=True)
class Letters:
    """What a hospital hands to others."""

    holder_id: str
    root: bytes
    thumbprint: str
    registration: bytes


def set_up(stack: Stack, secrets: Path, *, rounds: int, round_seconds: int) -> list[Letters]:
    """Make coordinator and hospitals, and let them know each other. Nothing serves yet.

    Args:
        stack: The project.
        secrets: Where the files lie that compose hands in: each SuperNode's key and the coordinator's letter.
        rounds: Rounds of the plan.
        round_seconds: How long a round may take.

    Returns:
        Each hospital's letters.
    """
    made = json.loads(
        stack.once(
            "coordinator", "coordinator", "init", "/deployment", "--name", "coordinator", "--from", "heart", "--json"
        )
    )
    stack.once("coordinator", "-c", _SHORTEN, str(rounds), str(round_seconds), entrypoint="python")
    invitation = stack.once("coordinator", "/deployment/invitation.jws", entrypoint="cat").encode()
    hospitals = [_hospital(stack, number, holder_id) for number, holder_id in HOSPITALS.items()]
    for number in HOSPITALS:
        desk = f"desk-{number}"
        _put(stack, desk, "/holder/invitation.jws", invitation)
        stack.once(desk, "join", "/holder", "/holder/invitation.jws", "--thumbprint", made["thumbprint"], "--json")
        for other in hospitals:
            if other.holder_id != HOSPITALS[number]:
                _put(stack, desk, f"/holder/{other.holder_id}.jwk", other.root)
                stack.once(
                    desk,
                    *("peer", "/holder", other.holder_id, f"/holder/{other.holder_id}.jwk"),
                    *("--thumbprint", other.thumbprint, "--json"),
                )
        _hand_in(stack, number, secrets, invitation)
    for one in hospitals:
        _put(stack, "coordinator", "/deployment/registration.jws", one.registration)
        stack.once(
            "coordinator",
            *("coordinator", "register", "/deployment", "/deployment/registration.jws"),
            *("--thumbprint", one.thumbprint, "--json"),
        )
    return hospitals


def _hospital(stack: Stack, number: int, holder_id: str) -> Letters:
    desk = f"desk-{number}"
    stack.once(desk, "-c", _BRING, holder_id, entrypoint="python")
    stack.once(desk, "init", "/holder", "--json")
    letter = json.loads(stack.once(desk, "register", "/holder", "--out", "/holder/registration.jws", "--json"))
    return Letters(
        holder_id=holder_id,
        root=stack.once(desk, "/holder/state/papers/root.jwk", entrypoint="cat").encode(),
        thumbprint=letter["thumbprint"],
        registration=stack.once(desk, "/holder/registration.jws", entrypoint="cat").encode(),
    )


def _hand_in(stack: Stack, number: int, secrets: Path, invitation: bytes) -> None:
    """Give the SuperNode's container its key, readable by its user alone where this user may say so."""
    key = stack.once(f"desk-{number}", "-c", "cat /holder/state/relay/*.key", entrypoint="sh")
    if "PRIVATE KEY" not in key:
        raise EngineFault(f"hospital {number} made no key for its SuperNode")
    path = secrets / f"hospital-{number}.supernode.key"
    path.write_text(key)
    try:
        os.chown(path, RELAY_USER, RELAY_USER)
        path.chmod(0o400)
    except PermissionError:  # an ordinary user: the folder above, which is this user's alone, keeps others out
        path.chmod(0o444)
    letter = secrets / f"hospital-{number}.invitation.jws"
    letter.write_bytes(invitation)
    letter.chmod(0o444)


def _put(stack: Stack, service: str, path: str, content: bytes) -> None:
    stack.once(service, "-c", _TAKE, path, given=content, entrypoint="python")

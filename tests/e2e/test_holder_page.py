"""Every command of docs/holder.md is run in its order, as a data officer would type it who has only that page."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from officer_desk import invitation
from typer.main import get_command

from ringfence_client.cli import app
from ringfence_policy.clauses import CLAUSES
from ringfence_policy.identity import SigningKey

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "holder.md").read_text(encoding="utf-8")

# Commands of the page that this test does not run, and why.
NOT_RUN = {
    "python3 -m venv ringfence": "installs from a package index",
    "ringfence/bin/pip install './ringfence-source[client]'": "installs what this very test runs",
    "ringfence-node doctor": "has tests of its own",
    "ringfence-node start hospital": "runs until it is stopped, and has tests of its own",
    "ringfence-node supernode coordinator.jws --key supernode.key --home relay --socket /run/ringfence/agent.sock": (
        "runs until it is stopped, and has tests of its own"
    ),
}

COORDINATOR_ROOT = SigningKey(kid="heart-consortium/root-1", seed=bytes(range(32)))
SCHEMA = """
title = "Heart patients"

[label]
column = "disease"
positive_above = "0"

[[columns]]
name = "age"
kind = "number"
low = "20"
high = "90"
"""


def commands():
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def call(directory, command):
    program, *arguments = shlex.split(command)
    assert program == "ringfence-node", command
    return subprocess.run(
        [sys.executable, "-m", "ringfence_client.cli", *arguments],
        cwd=directory,
        env=os.environ | {"COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_from_nothing_to_a_joined_node_and_all_that_follows_by_the_page_alone(tmp_path):
    # What comes from elsewhere: the coordinator's letter and schema, another holder's key, a memory stick, the records.
    (tmp_path / "stick").mkdir()
    (tmp_path / "invitation.jws").write_text(invitation(COORDINATOR_ROOT, coordinator="heart-consortium"))
    elm = SigningKey.generate("elm/root-1").public()
    (tmp_path / "elm-root.jwk").write_text(json.dumps(elm.jwk))
    done = []
    for command in commands():
        if command in NOT_RUN:
            continue
        if command == "ringfence-node data check hospital":
            (tmp_path / "hospital" / "schema.toml").write_text(SCHEMA)
            rows = "".join(f"{30 + number % 50},{number % 2}\n" for number in range(200))
            (tmp_path / "hospital" / "data.csv").write_text(f"age,disease\n{rows}")
        read_out = elm if command.startswith("ringfence-node peer") else COORDINATOR_ROOT.public()
        result = call(tmp_path, command.replace("THUMBPRINT", read_out.thumbprint))
        assert result.returncode == 0, f"{command}\n{result.stdout[-1500:]}\n{result.stderr[-1500:]}"
        assert "Traceback" not in result.stderr, command
        done.append(command)
        if command.startswith("ringfence-node join"):
            standing = json.loads(call(tmp_path, "ringfence-node status hospital --json").stdout)
            assert (standing["standing"], standing["coordinator"]) == ("stands", "heart-consortium")
    assert len(done) > 25
    standing = json.loads(call(tmp_path, "ringfence-node status hospital --json").stdout)
    assert standing["standing"] == "revoked"
    assert standing["known_holders"] == ["elm"]
    assert not (tmp_path / "hospital" / "state" / "keys" / "root.jwk").exists()


def test_what_is_not_run_is_on_the_page():
    assert set(NOT_RUN) <= set(commands())


def test_the_page_shows_every_command_of_the_tool():
    """Or a data officer would not find it."""
    shown = {tuple(word for word in command.split()[1:3] if not word.startswith("hospital")) for command in commands()}
    root = get_command(app)
    for name, command in root.commands.items():
        if name == "policy":  # docs/policy.md has these
            continue
        names = [(name, inner) for inner in command.commands] if hasattr(command, "commands") else [(name,)]
        for one in names:
            assert any(words[: len(one)] == one for words in shown), f"docs/holder.md does not show {' '.join(one)}"


def test_every_clause_that_the_page_explains_exists():
    table = PAGE.split("| Clause |")[1].split("\n\n")[0]
    outside = {"dataset-budget", "data", "plan", "signature", "engine", "unaccountable"}
    for row in table.splitlines()[2:]:
        for clause in re.findall(r"`(\w[\w-]*)`", row.split("|")[1]):
            assert clause in CLAUSES or clause in outside, clause

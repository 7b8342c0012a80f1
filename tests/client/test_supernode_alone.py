"""A SuperNode runs by itself from a letter, a key, a directory and a socket; asking for the agent's health is cheap."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agents import agents_of
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from ringfence_client.cli import app
from ringfence_policy.identity import SigningKey
from ringfence_policy.letters import Invitation
from ringfence_policy.transport_keys import make_authority

PATIENCE_SECONDS = 60


@pytest.fixture
def relay_side(tmp_path):
    """What a SuperNode's container is given, for a coordinator that is not there."""
    root = SigningKey.generate("forest/root-1")
    letter = Invitation(
        coordinator="forest",
        root_jwk=root.public().jwk,
        address="127.0.0.1:9",
        authority=make_authority("forest", now=datetime.now(UTC)).certificate,
        issued_ms=1,
    )
    (tmp_path / "invitation.jws").write_text(letter.sign(root))
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (tmp_path / "supernode.key").write_bytes(private)
    (tmp_path / "door").mkdir(mode=0o700)
    return tmp_path


def words(side: Path) -> list[str]:
    return [
        *("supernode", str(side / "invitation.jws"), "--key", str(side / "supernode.key")),
        *("--home", str(side / "home"), "--socket", str(side / "door/agent.sock")),
    ]


def test_it_starts_flowers_supernode_with_the_socket_and_ends_it_when_it_is_told_to(relay_side):
    command = [sys.executable, "-m", "ringfence_client.cli", *words(relay_side), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            events = [json.loads(process.stdout.readline()) for _ in range(2)]
            named = {one["event"]: one for one in events}
            assert named["relaying"]["superlink"] == "127.0.0.1:9"
            supernode = named["supernode-started"]["pid"]
            asked_for = wait_for_flower(supernode)
            assert f'agent-socket="{relay_side / "door/agent.sock"}"' in asked_for
            assert str(relay_side / "supernode.key") in asked_for
            process.send_signal(signal.SIGTERM)
            rest = [json.loads(line)["event"] for line in process.stdout]
        finally:
            process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert rest[-1] == "stopped"
    assert not Path(f"/proc/{supernode}").exists(), "the SuperNode went with it"


def wait_for_flower(process_id):
    """The words of Flower's command, once the walls are built and it has begun."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        found = Path(f"/proc/{process_id}/cmdline").read_bytes().decode().split("\0")
        if "ringfence_client.supernode_child" in found and "ringfence_client.confined" not in found:
            return found
        time.sleep(0.1)
    raise AssertionError("Flower's SuperNode was not started")


@pytest.mark.parametrize("missing", ["invitation.jws", "supernode.key"])
def test_a_file_that_is_not_there_is_said_before_anything_is_started(relay_side, missing):
    (relay_side / missing).unlink()
    found = CliRunner().invoke(app, words(relay_side))
    assert found.exit_code == 2
    assert missing in found.output.replace("\n", "")
    assert not (relay_side / "home").exists()


def test_a_letter_that_was_changed_on_the_way_is_refused(relay_side):
    letter = relay_side / "invitation.jws"
    head, body, signature = letter.read_text().split(".")
    letter.write_text(".".join([head, body, signature[:-4] + ("AAAA" if signature[-4:] != "AAAA" else "BBBB")]))
    assert CliRunner().invoke(app, words(relay_side)).exit_code == 3


def test_a_socket_without_a_place_says_that_the_agent_comes_first(relay_side):
    (relay_side / "door").rmdir()
    found = CliRunner().invoke(app, words(relay_side))
    assert found.exit_code == 2
    assert "--no-supernode" in found.output


def ask(socket):
    command = [sys.executable, "-m", "ringfence_client.agent_client", str(socket)]
    return subprocess.run(command, capture_output=True, timeout=PATIENCE_SECONDS, check=False).returncode


def test_the_health_command_ends_with_0_while_the_agent_serves_and_with_1_otherwise(tiny_run):
    with agents_of(tiny_run()) as agents:
        socket = next(iter(agents.sockets.values()))
        assert ask(socket) == 0
    assert ask(socket) == 1


def test_asking_for_health_loads_neither_flower_nor_torch_nor_the_holders_code():
    code = (
        "import sys, ringfence_client.agent_client; "
        "print({'flwr', 'torch', 'polars', 'ringfence_client.agent', 'ringfence_client.node'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "set()"

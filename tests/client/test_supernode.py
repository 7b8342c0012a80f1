"""The SuperNode that an agent keeps running: what a message leaves in its home harms nobody."""

import subprocess
import sys
import time

import pytest

from ringfence_client import kernel, landlock, supernode
from ringfence_client.supernode import SuperNode, SuperNodeSettings

pytestmark = pytest.mark.skipif(
    not kernel.IS_LINUX or landlock.abi_version() == 0, reason="this kernel has no Landlock, or it is switched off"
)


@pytest.fixture
def settings(tmp_path):
    """What a SuperNode is started with, for a SuperLink that is not there."""
    (tmp_path / "home").mkdir()
    (tmp_path / "door").mkdir()
    (tmp_path / "supernode.key").write_text("a key")
    return SuperNodeSettings(
        superlink="127.0.0.1:1",
        authority="an authority",
        key=tmp_path / "supernode.key",
        place=tmp_path,
        home=tmp_path / "home",
        agent=tmp_path / "door" / "agent.sock",
    )


def wait_until(found, *, seconds=60):
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_link_that_a_message_left_in_its_home_leads_the_agent_to_no_file_of_the_holders(settings, tmp_path):
    ledger = tmp_path / "ledger.db"
    ledger.write_text("what was spent")
    for name in ("supernode.log", "authority.pem", "flwr"):
        (settings.home / name).symlink_to(ledger)
    started = []
    running = SuperNode(settings, lambda name, _: started.append(name))
    wait_until(lambda: "supernode-ended" in started)  # its key is none
    running.close()
    assert ledger.read_text() == "what was spent"
    assert (tmp_path / "authority.pem").read_text() == "an authority"
    assert (tmp_path / "supernode.log").read_text()


def test_code_that_a_message_left_in_its_home_does_not_run_before_the_walls_stand(settings, tmp_path):
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = settings.home / ".local/lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (packages / "planted.pth").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'got-out')!r}).touch()\n")
    authority = tmp_path / "authority.pem"
    authority.write_text(settings.authority)
    command = supernode._command(settings, authority)
    # Not the interpreter of a virtual environment, which leaves a home's packages alone by itself.
    walls = [sys._base_executable, *command[1 : command.index("--") + 1]]
    ended = subprocess.run(
        [*walls, "/bin/true"], env=supernode._environment(settings.home), cwd=settings.home, check=False
    )
    assert ended.returncode == 0
    assert not (tmp_path / "got-out").exists()

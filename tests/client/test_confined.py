"""Files-only walls around a program with a network: what code that came over the wire reaches, and what it does not."""

import os
import socket
import sys
import threading

import pytest
from behind_walls import NO_LANDLOCK, holder_in, python

from ringfence_client import kernel, landlock

pytestmark = pytest.mark.skipif(
    not kernel.IS_LINUX or landlock.abi_version() == 0, reason="this kernel has no Landlock, or it is switched off"
)

CONFINED = ("-P", "-m", "ringfence_client.confined")
PRELUDE = """
import os, socket, subprocess, sys
from pathlib import Path
def outcome(attempt):
    try:
        attempt()
    except (OSError, subprocess.SubprocessError) as error:
        return type(error).__name__
    return "done"
"""


@pytest.fixture
def holder(tmp_path):
    (tmp_path / "holder").mkdir()
    return holder_in(tmp_path / "holder")


@pytest.fixture
def own(tmp_path):
    """The one directory that the program may write to."""
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


def confined(code, own, *arguments, **options):
    """What code prints behind the wall."""
    command = [sys.executable, "-P", "-c", PRELUDE + code, *map(str, arguments)]
    ended = python(*CONFINED, "--write", str(own), "--", *command, place=own, **options)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_the_holders_directory_and_the_agents_memory_are_out_of_reach(holder, own):
    found = confined(
        """
holder, agent = Path(sys.argv[1]), sys.argv[2]
print(*sorted({outcome(attempt) for attempt in (
    (holder / "key").read_bytes, (holder / "data.csv").read_bytes, lambda: os.listdir(holder),
    lambda: (holder / "new").write_text("x"), (holder / "key").unlink, lambda: (holder / "key").rename("mine"),
    Path(f"/proc/{agent}/environ").read_bytes, Path(f"/proc/{agent}/mem").read_bytes,
    lambda: os.listdir(f"/proc/{agent}/fd"), lambda: os.link(holder / "key", "mine"), Path("/etc/shadow").read_bytes,
)}))
""",
        own,
        holder,
        os.getpid(),
    )
    assert found == "OSError PermissionError"  # to move a file out is refused as if it were to another disk
    assert sorted(path.name for path in holder.iterdir()) == ["data.csv", "grows", "key"]


@pytest.mark.skipif(landlock.abi_version() < 6, reason="this kernel's Landlock leaves signals")
def test_the_agent_cannot_be_signalled(own):
    assert confined("print(outcome(lambda: os.kill(int(sys.argv[1]), 0)))", own, os.getpid()) == "PermissionError"


@pytest.mark.skipif(landlock.abi_version() < 6, reason="this kernel's Landlock leaves abstract sockets")
def test_a_socket_without_a_file_leads_nowhere(own):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0ringfence-test-{os.getpid()}")
        listening.listen()
        code = "print(outcome(lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1].replace('@', chr(0)))))"
        assert confined(code, own, f"@ringfence-test-{os.getpid()}") == "PermissionError"


def _greet(listening):
    connection, _ = listening.accept()
    with connection:
        connection.sendall(b"hello")


def test_the_agents_socket_and_the_network_are_in_reach(own, tmp_path):
    with socket.socket(socket.AF_UNIX) as agent, socket.create_server(("127.0.0.1", 0)) as coordinator:
        agent.bind(str(tmp_path / "agent.sock"))
        agent.listen()
        answering = [threading.Thread(target=_greet, args=(one,)) for one in (agent, coordinator)]
        for thread in answering:
            thread.start()
        found = confined(
            """
for family, address in ((socket.AF_UNIX, sys.argv[1]), (socket.AF_INET, ("localhost", int(sys.argv[2])))):
    with socket.socket(family) as one:
        one.settimeout(20)
        one.connect(address)
        print(one.recv(5).decode())
""",
            own,
            tmp_path / "agent.sock",
            coordinator.getsockname()[1],
        )
        for thread in answering:
            thread.join()
    assert found.split() == ["hello", "hello"]


def test_what_a_program_starts_is_behind_the_same_wall(holder, own):
    found = confined(
        """
code = "import sys; open(sys.argv[1])"
print(subprocess.run([sys.executable, "-c", code, sys.argv[1]], capture_output=True, text=True).stderr)
Path("note").write_text("own")
print(Path("note").read_text(), outcome(lambda: subprocess.run(["./note"])))
""",
        own,
        holder / "key",
    )
    assert "PermissionError: [Errno 13]" in found
    assert "own PermissionError" in found


def test_nothing_that_was_open_before_stays_open(holder, own):
    with (holder / "key").open() as key:
        found = confined(
            "print(outcome(lambda: os.read(int(sys.argv[1]), 6)))", own, key.fileno(), pass_fds=(key.fileno(),)
        )
    assert found == "OSError"


def test_what_may_be_read_may_not_be_changed(own, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/root.pem").write_text("x")
    attempts = "outcome((place / 'root.pem').read_bytes), outcome(lambda: (place / 'new').touch())"
    command = [sys.executable, "-c", f"{PRELUDE}\nplace = Path(sys.argv[1])\nprint({attempts})"]
    ended = python(*CONFINED, "--read", str(tmp_path / "shared"), "--", *command, str(tmp_path / "shared"), place=own)
    assert ended.stdout.split() == ["done", "PermissionError"]


def test_without_landlock_nothing_is_started(own):
    ended = python(*CONFINED, "--", sys.executable, "-c", "print('started')", place=own, hidden=NO_LANDLOCK)
    assert ended.returncode == 1
    assert "started" not in ended.stdout
    assert "not started" in ended.stderr
    assert "Linux 5.13" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--read", "/usr"), 2, "a command"),
        (("--write", "/nowhere", "--", "true"), 2, "no such file or directory: /nowhere"),
        (("--", "/nowhere/program"), 1, "could not be started"),
    ],
)
def test_a_wrong_command_line_is_refused_in_words(arguments, status, words, own):
    ended = python(*CONFINED, *arguments, place=own)
    assert ended.returncode == status
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_programs_own_exit_code_and_core_limit_are_kept(own):
    code = "import resource, sys; sys.exit(resource.getrlimit(resource.RLIMIT_CORE)[1] + 7)"
    assert python(*CONFINED, "--", sys.executable, "-c", code, place=own).returncode == 7

"""The walls around a trainer: each promise tried by a process behind them, and each wall missed where it is left out.

What the attack itself tries stands in attempts.py. Here are the ordinary ways by which code would get out, what the
process may still do, and proof that the attack notices what is wrong.
"""

import os
import platform
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from behind_walls import NO_LANDLOCK, NO_SECCOMP, holder_in, is_root, python, told

from ringfence_client import attacks, kernel, landlock
from ringfence_client.walls import ALL_WALLS, Limits, Wall, code_paths

pytestmark = [
    pytest.mark.skipif(not kernel.IS_LINUX, reason="no walls are built but on Linux"),
    pytest.mark.skipif(
        kernel.IS_LINUX and landlock.abi_version() == 0, reason="this kernel has no Landlock, or it is switched off"
    ),
]

RAISED = """
from pathlib import Path
from ringfence_client import attacks, landlock, syscall_filter, walls
from ringfence_client.walls import Limits, raise_walls
HOLDER = Path(sys.argv[1])
LIMITS = Limits(memory_bytes=512 << 20, cpu_seconds=60)
READABLE = [HOLDER / "data.csv"]
def attacked():
    made = attacks.attack_walls(forbidden_file=HOLDER / "key", limits=LIMITS, readable=READABLE)
    return dict(attacks.breaches(made))
def outcome(attempt):
    try:
        attempt()
    except MemoryError:
        return "MemoryError"
    except (OSError, RuntimeError, ValueError) as error:
        return type(error).__name__
    return "done"
"""
UP = f"{RAISED}\nraise_walls(readable=READABLE, limits=LIMITS)\n"


@pytest.fixture
def holder(tmp_path):
    (tmp_path / "holder").mkdir()
    return holder_in(tmp_path / "holder")


@pytest.fixture
def place(tmp_path):
    """An empty directory to stand in."""
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


def behind(code, holder, place, **options):
    """What code tells behind the walls."""
    return told(UP + textwrap.dedent(code), holder, place=place, **options)


def fallen(before, holder, place, **options):
    """The walls that the attack finds fallen, where this was done before they were raised."""
    code = f"{RAISED}\n{textwrap.dedent(before)}\nraise_walls(readable=READABLE, limits=LIMITS)\ntell(attacked())"
    return told(code, holder, place=place, **options)


def test_every_wall_withstands_every_attempt_on_this_machine(holder, place):
    assert fallen("", holder, place) == {}


@pytest.mark.skipif(not is_root(), reason="only root can become another user; the other tests run as one then")
def test_every_wall_withstands_where_an_ordinary_user_raises_it(place):
    become = "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)"
    # Where that user may look: what its own rights refuse would prove nothing.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        reached = holder_in(Path(directory))
        assert Wall.FILES in fallen(f"{become}\nwalls._confine_files = lambda paths: None", reached, place)
        assert fallen(become, reached, place) == {}


@pytest.mark.parametrize(
    ("step", "gone"),
    [
        ("_prepared_filter = lambda: lambda: None", ALL_WALLS),
        ("_confine_files = lambda paths: None", {Wall.FILES}),
        ("_set_limits = lambda limits: None", {Wall.FILES, Wall.MEMORY, Wall.CPU}),
        ("drop_privileges = lambda: None", {Wall.PRIVILEGES}),
    ],
)
def test_a_step_of_building_that_is_left_out_is_found_by_the_attack(step, gone, holder, place):
    # Without no_new_privs an ordinary user has no Landlock either.
    also = {Wall.FILES, Wall.PROCESSES} if not is_root() else set()
    found = set(fallen(f"walls.{step}", holder, place))
    assert gone <= found <= gone | also


@pytest.mark.parametrize(
    ("calls", "wall", "words"),
    [
        ("socket", Wall.NETWORK, "open a socket"),
        ("socketpair", Wall.NETWORK, "a pair of sockets"),
        ("io_uring_setup", Wall.NETWORK, "io_uring"),
        ("chmod fchmodat", Wall.FILES, "change who may read"),
        ("clone", Wall.PROCESSES, "fork"),
        ("wait4 clone", Wall.PROCESSES, "clone a process"),
        ("execve", Wall.PROCESSES, "become another program"),
        ("pidfd_open", Wall.PROCESSES, "hold the parent"),
        ("unshare", Wall.PRIVILEGES, "namespace"),
        ("prctl", Wall.PRIVILEGES, "let others read"),
        ("mmap", Wall.MEMORY, "does not count"),
        ("mremap", Wall.MEMORY, "stretch memory"),
        ("memfd_create", Wall.MEMORY, "file of memory"),
        ("shmget", Wall.MEMORY, "System V"),
        ("setrlimit prlimit64", Wall.CPU, "raise the limit"),
        ("rt_sigaction", Wall.CPU, "ignore the signal"),
    ],
)
def test_one_call_too_many_in_the_filter_is_found_by_the_attack_on_its_wall(calls, wall, words, holder, place):
    found = fallen(f"syscall_filter._ALWAYS += ' {calls}'", holder, place)
    assert set(found) == {wall.value}
    assert words in found[wall]


def test_a_kernel_without_landlock_leaves_the_wall_of_files_and_says_so(holder, place):
    found = fallen("", holder, place, hidden=NO_LANDLOCK)
    assert Wall.FILES in found
    assert "/etc/passwd: read" in found[Wall.FILES]
    assert Wall.NETWORK not in found


def test_a_kernel_without_seccomp_leaves_every_wall(holder, place):
    assert set(fallen("", holder, place, hidden=NO_SECCOMP)) == ALL_WALLS


def test_a_system_without_libseccomp_leaves_every_wall(holder, place):
    assert set(fallen("sys.modules['ringfence_client.syscall_filter'] = None", holder, place)) == ALL_WALLS


def test_a_forbidden_file_that_is_not_there_is_not_taken_for_a_refusal(holder, place):
    (holder / "key").unlink()
    assert Wall.FILES in fallen("", holder, place)


def test_a_socket_and_a_writable_file_that_were_open_before_are_found(holder, place):
    found = fallen("import socket; pair = socket.socketpair()", holder, place)
    assert set(found) == {Wall.NETWORK}
    found = fallen("log = (HOLDER / 'grows').open('w')", holder, place)
    assert set(found) == {Wall.FILES}


def test_nothing_stands_elsewhere_than_on_linux(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "IS_LINUX", False)
    limits = Limits(memory_bytes=1 << 30, cpu_seconds=1)
    made = attacks.attack_walls(forbidden_file=tmp_path, limits=limits)
    assert attacks.standing_walls(made) == frozenset()
    assert set(attacks.breaches(made)) == ALL_WALLS


def test_what_cannot_be_called_is_no_refusal(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    attempt = attacks._attempted(Wall.PROCESSES, "trace", lambda: str(kernel.system_call("ptrace", 0, 0, 0, 0)))
    assert not attempt.withstood
    assert attacks.standing_walls([attempt]) == frozenset()


def test_a_wall_that_nobody_attacked_does_not_stand():
    made = [attacks.Attempt(wall=Wall.CPU, tried="to spin", answer="EPERM", withstood=True)]
    assert attacks.standing_walls(made) == {Wall.CPU}


def test_records_are_read_and_nothing_else_of_the_holder_or_the_machine(holder, place):
    (holder.parent / "other").write_text("x")
    found = behind(
        """
        tell({
            "records": (HOLDER / "data.csv").read_text(),
            **{str(path): outcome(path.read_bytes) for path in (
                HOLDER / "key", HOLDER.parent / "other", Path("/etc/hostname"), Path("/etc/passwd"),
                Path(f"/proc/{os.getppid()}/environ"), Path("/proc/self/root/etc/passwd"),
            )},
            **{f"list {path}": outcome(lambda: os.listdir(path)) for path in ("/", "/etc", "/home", "/tmp", HOLDER)},
        })
        """,
        holder,
        place,
    )
    assert found.pop("records") == "age,ill\n54,1\n"
    assert set(found.values()) == {"PermissionError"}


def test_nothing_is_written_anywhere(holder, place):
    found = behind(
        """
        tell([outcome(attempt) for attempt in (
            lambda: (HOLDER / "data.csv").open("a"), lambda: (HOLDER / "data.csv").unlink(),
            lambda: (HOLDER / "new").write_text("x"), lambda: Path("/tmp/ringfence-new").write_text("x"),
            lambda: Path("/dev/shm/ringfence-new").write_text("x"), lambda: Path("new").mkdir(),
            lambda: os.utime(HOLDER / "data.csv"), lambda: os.link(HOLDER / "data.csv", HOLDER / "again"),
            lambda: os.symlink("x", "y"), lambda: os.mkfifo("z"), lambda: Path("/dev/null").open("w"),
        )])
        """,
        holder,
        place,
    )
    assert set(found) == {"PermissionError"}
    assert sorted(path.name for path in holder.iterdir()) == ["data.csv", "grows", "key"]


def test_no_network_and_no_process_by_the_ways_of_the_standard_library(holder, place):
    found = behind(
        """
        import asyncio, multiprocessing, socket, subprocess
        tell([outcome(attempt) for attempt in (
            lambda: socket.create_connection(("127.0.0.1", 9)), lambda: socket.socket(socket.AF_UNIX),
            lambda: socket.socketpair(), lambda: subprocess.run([sys.executable, "-c", ""]),
            lambda: multiprocessing.Process(target=print).start(),
            lambda: os.kill(os.getppid(), 0), lambda: os.killpg(os.getpgid(0), 0), lambda: os.kill(-1, 0),
            lambda: os.setpgid(0, 0), lambda: os.setsid(), lambda: os.nice(-5),
        )])
        """,
        holder,
        place,
    )
    assert set(found) <= {"PermissionError", "OSError"}


def test_threads_pipes_time_and_chance_are_left(holder, place):
    found = behind(
        """
        import concurrent.futures, queue, secrets, select, tempfile, threading, time
        mine, theirs = os.pipe()
        os.write(theirs, b"x")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            squares = list(pool.map(lambda n: n * n, range(9)))
        time.sleep(0.01)
        tell([squares[-1], select.select([mine], [], [], 1)[0] == [mine], len(secrets.token_bytes(9)), time.time() > 0])
        """,
        holder,
        place,
    )
    assert found == [64, True, 9, True]


def test_memory_ends_at_its_limit_and_the_process_goes_on(holder, place):
    found = behind(
        """
        import numpy as np
        small = np.ones(100 << 17)
        tell([outcome(lambda: np.ones(500 << 17)), float(small.sum()) == 100 << 17])
        """,
        holder,
        place,
    )
    assert found == ["MemoryError", True]


# socket(AF_INET, SOCK_STREAM, 0) in machine code, by the numbers of the two other modes.
X32_SOCKET = "b829000040bf02000000be01000000ba000000000f05c3"
INT80_SOCKET = "53b867010000bb02000000b901000000ba00000000cd805bc3"
SPINNING = f"""
import json, os, sys
{UP}
os.write(1, b"!")
import signal
outcome(lambda: signal.signal(signal.SIGXCPU, signal.SIG_IGN))
outcome(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGXCPU]))
while True:
    pass
"""


@pytest.mark.slow
def test_processor_time_is_what_the_agent_allows_and_ends_the_process(holder, place):
    from ringfence_client.walls import allow_cpu  # noqa: PLC0415

    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SPINNING, str(holder)], cwd=place, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout.read(1) == b"!"
        allow_cpu(process.pid, 2)
        _, status, used = os.wait4(process.pid, 0)
    finally:
        process.kill()
        process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == -signal.SIGXCPU
    assert 1.9 < used.ru_utime + used.ru_stime < 4.5


def test_a_walled_process_cannot_allow_itself_more(holder, place):
    found = behind(
        "tell([outcome(lambda: walls.allow_cpu(os.getpid(), 100)), outcome(lambda: walls.allow_cpu(os.getppid(), 1))])",
        holder,
        place,
    )
    assert found == ["PermissionError", "PermissionError"]


def test_a_process_that_ended_is_allowed_nothing():
    from ringfence_client.walls import allow_cpu  # noqa: PLC0415

    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(OSError, match=r"."):
        allow_cpu(process.pid, 1)


def test_walls_are_not_built_around_one_thread_of_several(holder, place):
    found = told(
        f"""{RAISED}
import threading
end = threading.Event()
threading.Thread(target=end.wait).start()
try:
    raise_walls(readable=READABLE, limits=LIMITS)
except Exception as error:
    tell([type(error).__name__, outcome((HOLDER / "key").read_bytes)])
end.set()
""",
        holder,
        place=place,
    )
    assert found == ["Fault", "done"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGABRT])
def test_a_signal_ends_a_walled_process(number, holder, place):
    ended = python("-P", "-c", f"import json, os, sys\n{UP}\nos.kill(os.getpid(), {int(number)})", holder, place=place)
    assert ended.returncode == -number


def test_walls_cannot_be_taken_down_or_raised_again_with_more(holder, place):
    found = behind(
        """
        outcome(lambda: raise_walls(readable=[HOLDER, Path("/")], limits=LIMITS))
        tell([outcome((HOLDER / "key").read_bytes), attacked()])
        """,
        holder,
        place,
    )
    assert found == ["PermissionError", {}]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have no such second way to call")
@pytest.mark.parametrize("code", [X32_SOCKET, INT80_SOCKET], ids=["x32", "32-bit"])
def test_calls_by_the_numbers_of_another_mode_of_the_processor_are_refused(code, holder, place):
    """socket() as x32 and as 32-bit code would call it: the same kernel by other numbers."""
    ended = python(
        "-P",
        "-c",
        f"""
import ctypes, json, mmap, os, sys
{UP}
room = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
room.write(bytes.fromhex("{code}"))
call = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(room)))
sys.stdout.write(str(ctypes.c_int(call()).value))
""",
        holder,
        place=place,
    )
    # A kernel that was built without 32-bit programs ends the process: no way out either.
    assert ended.stdout == "-1" or ended.returncode in (-signal.SIGSEGV, -signal.SIGSYS)


def test_the_current_directory_is_no_code_and_what_contains_it_neither(tmp_path, monkeypatch):
    here, code = tmp_path / "work/here", tmp_path / "code"
    here.mkdir(parents=True)
    code.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path, "", str(here), str(tmp_path), str(code), str(tmp_path / "none")])
    found = code_paths()
    assert code in found
    assert not {here, here.parent, tmp_path, tmp_path / "none"} & set(found)
    for name in ("", "etc", "home", "root", "tmp", "var", "dev", "proc", "sys"):
        assert Path("/", name) not in found


def test_a_holders_own_module_is_importable_behind_the_walls_from_where_it_was_installed(holder, place, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/our_model.py").write_text("ANSWER = 42\n")
    code = f"sys.path.append({str(tmp_path / 'site')!r})\nraise_walls(readable=READABLE, limits=LIMITS)\n"
    found = told(f"{RAISED}\n{code}\nimport our_model; tell(our_model.ANSWER)", holder, place=place)
    assert found == 42


@pytest.mark.parametrize("abi", range(1, 8))
def test_landlock_takes_away_what_each_of_its_versions_knows(abi, holder, place):
    if abi > landlock.abi_version():
        pytest.skip(f"this kernel speaks Landlock {landlock.abi_version()}")
    found = told(
        f"""{RAISED}
from ringfence_client import kernel
landlock.abi_version = lambda: {abi}
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
own = HOLDER / "own"
own.mkdir()
spoken = landlock.restrict(readable=[HOLDER / "data.csv", Path("/nowhere")], writable=[own])
tell([spoken, outcome((HOLDER / "key").read_bytes), outcome((HOLDER / "data.csv").read_bytes),
      outcome(lambda: (own / "x").write_text("x")), outcome(lambda: (own / "x").rename(own / "y")),
      outcome(lambda: (HOLDER / "y").write_text("x")), outcome((own / "y").unlink),
      outcome(lambda: os.truncate(HOLDER / "grows", 0)), outcome(lambda: os.kill(os.getppid(), 0))])
""",
        holder,
        place=place,
    )
    no, yes = "PermissionError", "done"
    assert found[:7] == [abi, no, yes, yes, yes, no, yes]
    assert found[7] == (no if abi >= 3 else yes)
    assert found[8] == (no if abi >= 6 else yes)


def test_the_rights_of_each_version_of_landlock_are_those_of_the_kernel():
    known = [landlock.file_rights(abi) for abi in range(1, 8)]
    assert [rights.bit_count() for rights in known] == [13, 14, 15, 15, 16, 16, 16]
    assert known[0] == 2**13 - 1
    assert known[-1] == 2**16 - 1


def test_rules_on_proc_outlive_a_shortage_of_memory(holder, place):
    """The kernel drops entries of /proc that nobody holds, and the rule with them."""
    found = behind("tell([os.readlink(f'/proc/self/fd/{fd}') for fd in landlock._kept_open])", holder, place)
    assert any(path.endswith("/cpuinfo") for path in found)
    assert len([path for path in found if path.removeprefix("/proc/").isdigit()]) == 1

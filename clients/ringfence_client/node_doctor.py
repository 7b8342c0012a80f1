"""`ringfence-node doctor`: can this machine keep a holder's promises? It builds the walls and attacks them.

Each check says what was tried and what came of it. The attacks are made by processes of their own (`break_out.py`), on
a made-up holder in a temporary directory; nothing of a real holder is touched.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import typer
from rich.table import Table

from ringfence_client import landlock
from ringfence_client.walls import Wall
from ringfence_policy.errors import Fault, RingfenceError
from ringfence_policy.terminal import terminal

_NEEDED: Final = ("flwr", "torch", "opacus", "polars", "cedarpy", "joserfc", "numpy")
_MEMORY_BYTES: Final = 256 << 20
_CPU_SECONDS: Final = 1
_PATIENCE_SECONDS: Final = 60
_MEBIBYTE: Final = 1 << 20
# What `attempts.py` tries on each wall, for people. Each attempt with its answer stands in the JSON.
_TRIED: Final = {
    Wall.NETWORK: "sockets of six families, a pair of them, io_uring, what was left open",
    Wall.FILES: "reading a key and /etc/passwd, listing directories, changing records, making files",
    Wall.PROCESSES: "fork, clone, spawn, exec, ptrace, memory and signals of the parent",
    Wall.PRIVILEGES: "capabilities, other users, namespaces, mounts, chroot, bpf, perf, keyrings",
    Wall.MEMORY: "raising the limit, mapping past it, memory that it does not count",
    Wall.CPU: "raising the limit, ignoring and blocking the signal that ends it",
}
# What a program behind the relay's walls must not be able to do, and says in one word each if it could.
_RELAY_ATTACK: Final = """
import os, sys
def reaches(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True
holder, own, parent = sys.argv[1], sys.argv[2], int(sys.argv[3])
attempts = {
    "read a key": lambda: open(f"{holder}/key").read(),
    "list the holder's directory": lambda: os.listdir(holder),
    "write there": lambda: open(f"{holder}/planted", "x"),
    "read the agent's environment": lambda: open(f"/proc/{parent}/environ").read(),
    "read the agent's memory": lambda: open(f"/proc/{parent}/mem", "rb"),
}
through = [words for words, attempt in attempts.items() if reaches(attempt)]
if not reaches(lambda: open(f"{own}/note", "x")):
    through.append("nothing at all, not even its own directory")
sys.stdout.write("; ".join(through))
"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was checked.
        passed: Whether it holds.
        finding: What was found, in a line.
        attempts: What was tried one by one, where it was many things.
    """

    check: str
    passed: bool
    finding: str
    attempts: Sequence[dict[str, Any]] = field(default=())


def examine(*, as_json: bool) -> int:
    """Run every check. Exit code 0 when all hold, else 1."""
    findings = [_finding(name, check) for name, check in CHECKS.items()]
    with _made_up_holder() as holder:
        findings += wall_findings(holder)
        findings.append(_finding("walls of the relay", partial(_relay, holder)))
    if as_json:
        typer.echo(json.dumps([{**vars(each), "attempts": list(each.attempts)} for each in findings]))
    else:
        table = Table()
        for column in ("check", "", "finding"):
            table.add_column(column, overflow="fold")
        for each in findings:
            style = None if each.passed else "bold red"
            table.add_row(each.check, "✓" if each.passed else "✗", each.finding, style=style)
        terminal().print(table)
    return 0 if all(each.passed for each in findings) else 1


@contextmanager
def _made_up_holder() -> Iterator[Path]:
    """A directory with a key and records in it."""
    with tempfile.TemporaryDirectory(prefix="ringfence-doctor-") as name:
        holder = Path(name)
        (holder / "key").write_text("not a real key\n")
        (holder / "records").write_text("age,ill\n54,1\n")
        (holder / "grows").touch()
        yield holder


def wall_findings(holder: Path) -> list[Finding]:
    """Build the trainer's walls in processes of their own and attack them: one finding for each wall.

    Args:
        holder: A directory with the files `key`, which must stay out of reach, `records`, which may be read, and
            `grows`, which is open for writing when the walls go up.
    """
    try:
        made: list[dict[str, Any]] = _break_out("everything", holder)
    except (RingfenceError, OSError, ValueError, subprocess.SubprocessError) as error:
        return [
            Finding(check=f"wall: {wall}", passed=False, finding=f"could not be attacked: {error}") for wall in Wall
        ]
    findings = []
    for wall in Wall:
        attempts = [each for each in made if each["wall"] == wall]
        through = [f"{each['tried']}: {each['answer']}" for each in attempts if not each["withstood"]]
        words = through or [f"{_TRIED[wall]}: {len(attempts)} ways out, all refused ({_answers(attempts)})"]
        passed = bool(attempts) and not through
        for worst in _WORST.get(wall, ()):
            held = _finding("", partial(worst, holder))
            passed, words = passed and held.passed, [*words, held.finding]
        findings.append(Finding(check=f"wall: {wall}", passed=passed, finding="; ".join(words), attempts=attempts))
    return findings


def _answers(attempts: Sequence[dict[str, Any]]) -> str:
    """The kernel's own words among the answers."""
    return ", ".join(sorted({each["answer"] for each in attempts if each["answer"].isupper()}))


def _break_out(way: str, holder: Path) -> Any:
    """Let a walled process attack, and give back what it tells."""
    status, told, complaint = _attacked(way, holder)
    if status != 0:
        raise Fault("the walled process did not end as it should", got=complaint or f"status {status}", where=way)
    return json.loads(told)


def _attacked(way: str, holder: Path) -> tuple[int, str, str]:
    with (holder / "grows").open("r+b") as grows:
        asked = {
            "way": way,
            "readable": [str(holder / "records")],
            "forbidden": str(holder / "key"),
            "memory_bytes": _MEMORY_BYTES,
            "cpu_seconds": _CPU_SECONDS if way == "cpu" else _PATIENCE_SECONDS,
            "descriptor": grows.fileno(),
        }
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "ringfence_client.break_out"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_SECONDS,
            pass_fds=(grows.fileno(),) if way == "file-size" else (),
        )
    return ended.returncode, ended.stdout, ended.stderr.strip().rpartition("\n")[2]


def _eat_memory(holder: Path) -> str:
    filled = _break_out("memory", holder)["filled_bytes"]
    if filled > _MEMORY_BYTES:
        raise Fault(f"filled {filled // _MEBIBYTE} MiB of {_MEMORY_BYTES // _MEBIBYTE} MiB")
    return f"memory ended at {filled // _MEBIBYTE} MiB of {_MEMORY_BYTES // _MEBIBYTE} MiB"


def _start_threads(holder: Path) -> str:
    found = _break_out("threads", holder)
    if not found["ended"]:
        raise Fault(f"threads without end: {found['started']}")
    return f"threads ended at {found['started']}"


def _spin(holder: Path) -> str:
    start = time.monotonic()
    status, _, complaint = _attacked("cpu", holder)
    if status != -signal.SIGXCPU:
        raise Fault("spinning was not ended by its limit", got=complaint or f"status {status}")
    return f"spinning, with the signal ignored and blocked, was ended by SIGXCPU after {time.monotonic() - start:.1f} s"


def _fork(holder: Path) -> str:
    found = _break_out("processes", holder)
    if found["born"]:
        raise Fault(f"{found['born']} of {found['tried']} processes were started")
    return f"a fork bomb started none of {found['tried']}"


def _grow(holder: Path) -> str:
    found = _break_out("file-size", holder)
    if found["written_bytes"] or (holder / "grows").stat().st_size:
        raise Fault(f"wrote {found['written_bytes']} bytes to a file that was open before")
    return f"a file that was open before did not grow ({found['refused']})"


# What takes time, and may be the end of the process that tries it.
_WORST: Final[dict[Wall, tuple[Callable[[Path], str], ...]]] = {
    Wall.FILES: (_grow,),
    Wall.PROCESSES: (_fork,),
    Wall.MEMORY: (_eat_memory, _start_threads),
    Wall.CPU: (_spin,),
}


def _relay(holder: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="ringfence-doctor-") as own:
        command = [sys.executable, "-P", "-c", _RELAY_ATTACK, str(holder), own, str(os.getpid())]
        ended = subprocess.run(  # noqa: S603 - as above
            [sys.executable, "-P", "-m", "ringfence_client.confined", "--write", own, "--", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_SECONDS,
        )
    if ended.returncode != 0:
        raise Fault(ended.stderr.strip())
    if ended.stdout:
        raise Fault(f"a program behind the relay's walls could {ended.stdout}")
    return "a program there writes to its own directory, and reaches neither the holder's nor the agent"


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(check=name, passed=True, finding=check())
    except RingfenceError as error:
        return Finding(check=name, passed=False, finding=str(error))
    except Exception as error:  # noqa: BLE001 - a check that cannot be made has failed, whatever stopped it
        return Finding(check=name, passed=False, finding=f"{type(error).__name__}: {error}")


def _system() -> str:
    spoken = landlock.abi_version()
    return f"{platform.system()} {platform.release()} on {platform.machine()}, Landlock {spoken or 'missing'}"


def _libraries() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in _NEEDED)


def _noise() -> str:
    from ringfence_client.noise import SecureNoise, check_noise  # noqa: PLC0415 - numpy and a cipher, needed only here

    check_noise(SecureNoise())
    return "the noise has the spread it claims, from the operating system's random source"


def _ledger() -> str:
    from ringfence_policy.database import Database  # noqa: PLC0415 - after what is quicker to find missing
    from ringfence_policy.ledger import PrivacyLedger  # noqa: PLC0415

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory, Database.open(Path(directory) / "l.db") as database:
        PrivacyLedger(database)
    return "a ledger can be kept on this file system, with durable writes"


CHECKS: Final[dict[str, Callable[[], str]]] = {
    "system": _system,
    "libraries": _libraries,
    "noise": _noise,
    "ledger": _ledger,
}

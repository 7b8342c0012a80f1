"""`ringfence run` as a person starts it, and the processes that come of it."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_SECONDS = 120


@contextmanager
def command(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command over a scenario, killed at the block's end if it still goes on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ringfence_server.cli", "run", str(directory), "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until something holds, and fail where it does not come to that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def worker_of(directory: Path) -> int:
    """The process that holds a scenario's lock: the run's own."""
    lock = directory / "runs" / ".lock"
    wait_for(lambda: bool(lock.read_text()))  # it is just being written
    return int(lock.read_text())


def is_alive(process_id: int) -> bool:
    """Whether a process goes on; one that ended and that nobody asked how (a zombie) does not."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

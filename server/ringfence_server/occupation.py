"""One run at a time in a scenario directory: who holds it, and how a run's own process keeps holding it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ringfence_policy.errors import ScenarioBusy


@contextmanager
def occupied(directory: Path) -> Iterator[int]:
    """Hold a scenario directory while the block runs, and for as long as a process that inherits the descriptor lives.

    The lock goes with the last process that has it, however that ends: nothing has to be cleaned up after a crash.

    Args:
        directory: The scenario.

    Yields:
        The descriptor, to be handed to the run's process.

    Raises:
        ScenarioBusy: Another run is going on here.
    """
    path = directory / "runs" / ".lock"
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not is_locked(descriptor, fcntl.LOCK_EX):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise ScenarioBusy(
                "another run is going on in this directory",
                expected="one run at a time: two would work on the same ledgers and logs",
                got=f"process {holder}" if holder else "a run that is just starting",
                where=str(directory),
                next_step="wait until it ends; what it has spent then counts for the next one",
            )
        yield descriptor
    finally:
        os.close(descriptor)


def name_occupant(descriptor: int, process_id: int) -> None:
    """Say which process holds the directory, for those who are turned away."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{process_id}\n".encode(), 0)


def is_locked(descriptor: int, kind: int) -> bool:
    """Take a lock on a file if nobody stands in the way; says whether it was taken. It goes with the descriptor.

    Args:
        descriptor: The open file.
        kind: `fcntl.LOCK_EX` to hold it alone, `fcntl.LOCK_SH` to find out whether somebody does.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

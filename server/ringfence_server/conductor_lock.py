"""Which ServerApp process conducts a deployment's run right now: a lock that goes with the process."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ringfence_policy.errors import RunFailed, ScenarioBusy
from ringfence_server.occupation import is_locked
from ringfence_server.run_file import RunFile

_LOCK = ".conductor"
# Whoever looks holds the lock for an instant, and a process that was killed needs a moment to be gone.
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Conductor:
    """A ServerApp at work: its process, its run, and Flower's number for this attempt at it."""

    process_id: int
    run_id: str
    flower_run_id: int


@contextmanager
def conducting(run: RunFile, *, attempt: int, flower_run_id: int) -> Iterator[None]:
    """Be the one process that conducts a run of this deployment.

    Args:
        run: The run, as its file says now.
        attempt: The attempt that this process was started for.
        flower_run_id: Flower's number for it.

    Raises:
        ScenarioBusy: Another process conducts a run here.
        RunFailed: The run was taken up again since, by another attempt.
    """
    descriptor = os.open(_path(run.root), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + _PATIENCE_SECONDS
        while not is_locked(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise ScenarioBusy("another run is going on in this deployment", where=str(run.root))
            time.sleep(0.05)
        # Read again under the lock: a SuperLink that was down may start an attempt that others have given up.
        if RunFile.load(Path(run.directory)).attempt != attempt:
            raise RunFailed("this attempt at the run was given up", where=run.directory)
        me = Conductor(os.getpid(), run.run_id, flower_run_id)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(me)).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def conductor_of(root: Path) -> Conductor | None:
    """Who conducts a run in this deployment right now; None where nobody does.

    Args:
        root: The deployment's own directory.
    """
    try:
        descriptor = os.open(_path(root), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if is_locked(descriptor, fcntl.LOCK_SH):
            return None
        text = os.pread(descriptor, 4096, 0).decode(errors="replace")
        return Conductor(**json.loads(text)) if text else None
    except (ValueError, TypeError):
        return None  # it is just writing who it is
    finally:
        os.close(descriptor)


def _path(root: Path) -> Path:
    return root / "runs" / _LOCK

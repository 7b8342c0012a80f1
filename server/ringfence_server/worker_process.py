"""A run's own process as the command line starts it: it loads while the run is prepared, and waits for the word."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ringfence_server.interruption import uninterrupted
from ringfence_server.occupation import name_occupant
from ringfence_server.run_failure import LOG

_GRACE_SECONDS = 10
# Fewer are answered sooner by one process: each loads, and verifies what others have verified.
_HOLDERS_EACH = 25


def processes_for(holders: int) -> int:
    """How many processes so many simulated holders are worth with the cores that this process may use."""
    return max(1, min(usable_cores(), holders // _HOLDERS_EACH))


def usable_cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerProcess:
    """The process of a run over simulated holders."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        """Wrap a started process; callers use `worker_process`."""
        self._process = process
        self.log = log

    def begin(self) -> None:
        """Let it carry out the run, whose file is written by now."""
        with suppress(BrokenPipeError):  # it ended already: whoever follows the run is told how
            if self._process.stdin is not None:
                self._process.stdin.write(b"begin\n")
                self._process.stdin.close()

    def is_over(self) -> bool:
        """Whether it ended."""
        return self._process.poll() is not None

    def trouble(self) -> str | None:
        """How it ended where it did not end well."""
        code = self._process.wait()
        return None if code == 0 else f"signal {-code}" if code < 0 else f"exit code {code}"


@contextmanager
def worker_process(directory: Path, lock: int, *, processes: int) -> Iterator[WorkerProcess]:
    """A run's own process, until the block ends. Loading takes longer than preparing a run, so it is started first.

    Before it is told to begin it ends with whoever started it, and nothing was done. Afterwards it ends when this
    process is interrupted, and goes on when this one is killed.

    Args:
        directory: The run's directory; made where there is none, and removed where no run came of it.
        lock: The scenario's lock, which the process holds too.
        processes: Over how many processes, itself included, it shares out the holders.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with uninterrupted():  # a process that is not known of yet could not be ended, and its directory would stay
            process = _start(directory, lock, processes)
        yield WorkerProcess(process, directory / LOG)
    finally:
        if process is not None:
            _end(process)
        if not (directory / "run.json").exists():
            shutil.rmtree(directory, ignore_errors=True)


def _start(directory: Path, lock: int, processes: int) -> subprocess.Popen[bytes]:
    directory.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(usable_cores()))}
    with (directory / LOG).open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 -- our own module, with a path we made
            [sys.executable, "-m", "ringfence_server.worker", str(directory), str(processes)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the other in its own way
        )
    name_occupant(lock, process.pid)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):  # one of its session that was stopped, or is deep in other code, sees no end
            os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()

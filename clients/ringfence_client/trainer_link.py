"""The agent's end of a trainer's process: started with what it needs alone, asked, held to its time, and ended."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import IO, Final, Literal

from ringfence_client.trainer_wire import LARGEST_ANSWER, Frame, WireFault, receive, send
from ringfence_client.walls import ALL_WALLS, Wall, allow_cpu

Part = Literal["reader", "examiner", "trainer"]

_START_SECONDS: Final = 120.0
_GRACE_SECONDS: Final = 5.0
_LARGEST_LOG: Final = 1 << 20

_log = getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """What a trainer's process is given.

    Attributes:
        directory: The holder's directory, with the data file.
        files: The data files that may be read.
        forbidden: A file of the holder's that it must not be able to read: its walls are tried on it.
        salt: Names the dataset's own split.
        log: Where its standard error goes, for the data officer.
        memory_mib: Memory it may use.
        threads: Threads it computes with.
    """

    directory: Path
    files: Sequence[Path]
    forbidden: Path
    salt: str
    log: Path
    memory_mib: int
    threads: int


class TrainerLink:
    """One trainer's process, from its start to its end.

    Args:
        part: What it is for.
        settings: What it is given.

    Attributes:
        breaches: What its own attack on its walls got through: how, by wall. Empty where all of them stand.

    Raises:
        WireFault: It did not start.
    """

    def __init__(self, part: Part, settings: TrainerSettings) -> None:
        hear, ask = os.pipe()
        answer, say = os.pipe()
        self._ask, self._answer = ask, answer
        self._threads = settings.threads
        os.set_blocking(ask, False)
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- our own module, with paths we made
                _command(part, settings, hear=hear, say=say),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(settings),
                cwd="/",
                pass_fds=(hear, say),
                start_new_session=True,
            )
        finally:
            os.close(hear)
            os.close(say)
        threading.Thread(target=_keep_log, args=(self._process.stdout, settings.log), daemon=True).start()
        try:
            self.breaches = _breaches_in(self._receive(time.monotonic() + _START_SECONDS))
        except WireFault:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process goes on."""
        return self._process.poll() is None

    def ask(self, frame: Frame, *, seconds: float, largest: int = 0) -> Frame:
        """Ask, and wait for the answer. A process that breaks off or is late is ended.

        Args:
            frame: What is asked.
            seconds: Time and, for each thread, processor time that it may take.
            largest: Bytes of arrays that are taken in the answer at most.

        Raises:
            WireFault: There was no answer.
        """
        until = time.monotonic() + seconds
        try:
            allow_cpu(self._process.pid, int(seconds * self._threads) + 1)
            send(self._ask, frame, until=until)
            return self._receive(until, largest=largest)
        except WireFault:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise WireFault(f"the process is gone ({type(error).__name__})") from None

    def close(self) -> None:
        """End the process. Safe to call twice."""
        for descriptor in (self._ask, self._answer):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._ask = self._answer = -1
        if self.is_alive:
            # Its own children cannot be: it may start none. It holds nothing that is worth an orderly end.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(_GRACE_SECONDS)

    def _receive(self, until: float, *, largest: int = 0) -> Frame:
        frame = receive(self._answer, until=until, largest=largest, most_words=LARGEST_ANSWER)
        if frame is None:
            raise WireFault("the process ended")
        return frame


def _command(part: Part, settings: TrainerSettings, *, hear: int, say: int) -> list[str]:
    # Nothing is charged for what an examiner says, so it has no record to say anything about.
    readable = () if part == "examiner" else settings.files
    files = [word for path in readable for word in ("--file", str(path))]
    return [
        *(sys.executable, "-P", "-m", "ringfence_client.trainer_process", part),
        *("--data", str(settings.directory), *files, "--forbidden", str(settings.forbidden), "--salt", settings.salt),
        *("--memory-mib", str(settings.memory_mib), "--cpu-seconds", str(int(_START_SECONDS) * settings.threads)),
        *("--hear", str(hear), "--say", str(say)),
    ]


def _environment(settings: TrainerSettings) -> dict[str, str]:
    """Nothing of the agent's own environment but where code lies: a secret in it would be the trainer's too."""
    return {
        "PYTHONPATH": os.pathsep.join(importable(but_not=settings.directory)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": str(settings.threads),
        "OPENBLAS_NUM_THREADS": "1",  # numpy's starts its threads when it is loaded, before the walls stand
        "POLARS_MAX_THREADS": str(settings.threads),
        "LC_ALL": "C.UTF-8",
        "HOME": "/nonexistent",
    }


def importable(*, but_not: Path) -> list[str]:
    """The directories that this process imports from, without the one of the program that was started.

    Args:
        but_not: What must not be among them, nor in one of them: code is readable where records are not.
    """
    found = sys.path if sys.flags.safe_path else sys.path[1:]
    return [path for path in found if Path(path).is_absolute() and not but_not.resolve().is_relative_to(path)]


def _breaches_in(frame: Frame) -> dict[Wall, str]:
    breaches = frame.words.get("breaches")
    if frame.words.get("said") != "ready" or not isinstance(breaches, dict) or not set(breaches) <= set(ALL_WALLS):
        raise WireFault("the process did not say whether its walls stand")
    return {Wall(name): str(how) for name, how in breaches.items()}


def _keep_log(source: IO[bytes] | None, path: Path) -> None:
    """Keep what the process says to nobody: at most a mebibyte, readable by the holder alone."""
    if source is None:
        return
    kept = 0
    with source, open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as log:
        while part := source.read1():  # type: ignore[attr-defined]  # a pipe of Popen is buffered
            log.write(part[: max(0, _LARGEST_LOG - kept)])
            log.flush()
            kept += len(part)

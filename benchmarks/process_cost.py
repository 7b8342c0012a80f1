"""What a command costs, with every process that it starts: wall time, CPU time as it goes, and memory. Linux only.

CPU time is read from /proc five times a second and kept per process, because a parent that ignores its children's end
(Ray's does) would lose it. Whatever outlives its parent becomes a child of this process and is counted and ended with
the command, so one command is measured at a time.
"""

import bisect
import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_SECONDS_BETWEEN_SAMPLES = 0.2
_SECONDS_TO_END = 10
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class ProcessCost:
    """What one command cost.

    Attributes:
        exit_code: The command's own; negative where a signal ended it.
        started_at: When it was started, in seconds since the Unix epoch.
        wall_seconds: From its start to its end.
        cpu_seconds: User and system time of all its processes.
        peak_resident_bytes: The most resident memory at one time, summed over processes: a page that several share is
            counted in each.
        samples: Moments in seconds since the Unix epoch, and the CPU seconds spent until then.
    """

    exit_code: int
    started_at: float
    wall_seconds: float
    cpu_seconds: float
    peak_resident_bytes: int
    samples: tuple[tuple[float, float], ...]

    def cpu_seconds_between(self, start: float, end: float) -> float:
        """CPU seconds spent between two moments, each within a fifth of a second."""
        return self._cpu_until(end) - self._cpu_until(start)

    def _cpu_until(self, moment: float) -> float:
        position = bisect.bisect_right(self.samples, (moment, float("inf")))
        if position == 0:
            return 0.0
        if position == len(self.samples):
            return self.samples[-1][1]
        (before, spent), (after, more) = self.samples[position - 1], self.samples[position]
        return spent + (more - spent) * (moment - before) / (after - before)


def run_measured(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path, timeout_seconds: float
) -> ProcessCost:
    """Run a command to its end and say what it cost.

    Args:
        command: Program and arguments.
        environment: All of its environment.
        log: Where its output goes.
        timeout_seconds: After which it is killed; its exit code is then negative.
    """
    _adopt_orphans()
    others = frozenset(pid for pid, row in _processes().items() if row.parent == os.getpid())
    with log.open("wb") as output:
        started_at, began = time.time(), time.monotonic()
        process = subprocess.Popen(  # noqa: S603 -- the benchmark's own runners
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
        )
        watch = _Watch(process.pid, others=others)
        try:
            exit_code = process.wait(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            exit_code = process.wait()
        finally:
            wall_seconds = time.monotonic() - began
            watch.stop()
    return ProcessCost(
        exit_code=exit_code,
        started_at=started_at,
        wall_seconds=wall_seconds,
        cpu_seconds=watch.samples[-1][1],
        peak_resident_bytes=watch.peak_resident_bytes,
        samples=tuple(watch.samples),
    )


class _Watch:
    """Samples a process and its descendants until told to stop, and then ends those that are left."""

    def __init__(self, root: int, *, others: frozenset[int]) -> None:
        self.samples: list[tuple[float, float]] = []
        self.peak_resident_bytes = 0
        self._root = root
        self._others = others
        self._ticks: dict[tuple[int, int], int] = {}  # by process id and start, since an id is used again
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        deadline = time.monotonic() + _SECONDS_TO_END
        while (left := self._sample()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(_SECONDS_BETWEEN_SAMPLES)

    def _watch(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_SAMPLES):
            self._sample()

    def _sample(self) -> list[int]:
        """Take one sample. Gives the processes that are there, the command's own among them."""
        now = time.time()
        table = {pid: row for pid, row in _processes().items() if pid not in self._others}
        parents = {self._root, os.getpid()} | {pid for pid, row in table.items() if (pid, row.start) in self._ticks}
        while young := {pid for pid, row in table.items() if row.parent in parents} - parents:
            parents |= young
        present = sorted(parents & table.keys() - {os.getpid()})
        for pid in present:
            self._ticks[pid, table[pid].start] = table[pid].ticks
        resident = sum(table[pid].resident_pages for pid in present) * _PAGE_BYTES
        self.peak_resident_bytes = max(self.peak_resident_bytes, resident)
        self.samples.append((now, sum(self._ticks.values()) / _TICKS_PER_SECOND))
        return present


@dataclass(frozen=True)
class _Row:
    parent: int
    start: int
    ticks: int
    resident_pages: int


def _processes() -> dict[int, _Row]:
    rows = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        # proc(5), counted from the state, which is field 3: parent 4, user and system ticks 14 and 15, start 22, RSS 24
        rows[int(path.name)] = _Row(
            parent=int(fields[1]),
            start=int(fields[19]),
            ticks=int(fields[11]) + int(fields[12]),
            resident_pages=int(fields[21]),
        )
    return rows


def _adopt_orphans() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "processes that lose their parent cannot be followed here")

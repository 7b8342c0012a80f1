"""CPU time and memory of the parts of something that runs, each part one or more processes. Linux only.

Parts are found by what their command lines say, below processes that are named. CPU time of a process that has ended is
its parent's to tell, so that short ones lose nothing.
"""

import bisect
import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_SECONDS_BETWEEN_SAMPLES = 0.25
_SAMPLES_BETWEEN_MEMORY = 8  # smaps_rollup walks every page of a process
Part = tuple[str, str]  # whose, and which


@dataclass
class Memory:
    """Memory of one part in MiB, at the moments it was looked at; summed over its processes."""

    resident: list[float] = field(default_factory=list)
    proportional: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    parent: int
    own_ticks: int
    children_ticks: int


class Watch:
    """Samples parts in a thread of its own until it is closed.

    Args:
        roots: Who owns what is below a process: a name by process id.
        part_of: The part that a command line is; None for one that belongs to its parent's part.
        children_of: The part that ended children of a part were.
    """

    def __init__(
        self,
        roots: Mapping[int, str],
        *,
        part_of: Callable[[str], str | None],
        children_of: Mapping[str, str],
    ) -> None:
        self._roots = dict(roots)
        self._part_of, self._children_of = part_of, children_of
        self._names: dict[int, str | None] = {}
        self.memory: dict[Part, Memory] = {}
        self._moments: list[float] = []
        self._seconds: list[dict[Part, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def seconds_between(self, start: float, end: float) -> dict[Part, float]:
        """CPU seconds of each part between two moments, each to the next sample."""
        before, after = self._at(start), self._at(end)
        return {part: seconds - before.get(part, 0.0) for part, seconds in after.items()}

    def _at(self, moment: float) -> dict[Part, float]:
        moments = self._moments
        return self._seconds[min(bisect.bisect_left(moments, moment), len(moments) - 1)]

    def _watch(self) -> None:
        count = 0
        while not self._over.wait(_SECONDS_BETWEEN_SAMPLES):
            self._sample(with_memory=count % _SAMPLES_BETWEEN_MEMORY == 0)
            count += 1

    def _sample(self, *, with_memory: bool) -> None:
        table = _processes()
        found = self._parts(table)
        seconds: dict[Part, float] = {}
        for process, (owner, part) in found.items():
            row = table[process]
            _add(seconds, (owner, part), row.own_ticks)
            _add(seconds, (owner, self._children_of.get(part, part)), row.children_ticks)
        if with_memory:
            self._look_at_memory(found)
        self._seconds.append(seconds)
        self._moments.append(time.time())

    def _parts(self, table: Mapping[int, _Row]) -> dict[int, Part]:
        children: dict[int, list[int]] = {}
        for process, row in table.items():
            children.setdefault(row.parent, []).append(process)
        found: dict[int, Part] = {}
        waiting = [(root, owner, "other") for root, owner in self._roots.items() if root in table]
        while waiting:
            process, owner, above = waiting.pop()
            part = self._name(process) or above
            found[process] = (owner, part)
            waiting += [(child, owner, part) for child in children.get(process, ())]
        return found

    def _name(self, process: int) -> str | None:
        # A young process still has its parent's command line: asked each time. One that has ended has none any more.
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if line:
                self._names[process] = self._part_of(line)
        return self._names.get(process)

    def _look_at_memory(self, found: Mapping[int, Part]) -> None:
        sums: dict[Part, list[float]] = {}
        for process, part in found.items():
            with contextlib.suppress(OSError):
                rows = dict(
                    line.split(":", 1)
                    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                    if line.startswith(("Rss:", "Pss:"))
                )
                both = sums.setdefault(part, [0.0, 0.0])
                for place, name in enumerate(("Rss", "Pss")):
                    both[place] += int(rows[name].split()[0]) / 1024
        for part, (resident, proportional) in sums.items():
            memory = self.memory.setdefault(part, Memory())
            memory.resident.append(resident)
            memory.proportional.append(proportional)


def _add(seconds: dict[Part, float], part: Part, ticks: int) -> None:
    seconds[part] = seconds.get(part, 0.0) + ticks / _TICKS_PER_SECOND


def _processes() -> dict[int, _Row]:
    rows = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            # proc(5), counted from the state, which is field 3: parent 4, ticks 14 and 15, of ended children 16 and 17
            rows[int(path.name)] = _Row(
                parent=int(fields[1]),
                own_ticks=int(fields[11]) + int(fields[12]),
                children_ticks=int(fields[13]) + int(fields[14]),
            )
    return rows

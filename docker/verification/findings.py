"""What was found: one line each, with whether it held, as a table or as JSON."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that was tried."""

    name: str
    held: bool
    detail: str


@dataclass
class Findings:
    """Everything that was found and measured.

    Attributes:
        say: Told of each step when it is done.
    """

    say: Callable[[str], None]
    found: list[Finding] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def note(self, name: str, detail: str, *, held: bool = True) -> None:
        """Keep one finding."""
        self.found.append(Finding(name, held, detail))
        self.say(f"{'held' if held else 'DID NOT HOLD'}: {name}: {detail}")

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure a step by the wall clock."""
        self.say(f"{step} ...")
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[step] = round(time.monotonic() - began, 1)

    @property
    def all_held(self) -> bool:
        """Whether nothing failed."""
        return all(one.held for one in self.found)

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "held": self.all_held,
            "findings": [vars(one) for one in self.found],
            "seconds": self.seconds,
            **self.figures,
        }

    def table(self) -> str:
        """All of it for people."""
        wide = 2 + max(
            (len(name) for name in (*(one.name for one in self.found), *self.seconds, *self.figures)), default=0
        )
        lines = ["", f"{'what was tried':{wide}}held  finding"]
        lines += [f"{one.name:{wide}}{'yes' if one.held else 'NO':6}{one.detail}" for one in self.found]
        lines += ["", f"{'step':{wide}}seconds"]
        lines += [f"{step:{wide}}{taken:7.1f}" for step, taken in self.seconds.items()]
        lines += ["", "measured"]
        for name, value in self.figures.items():
            words = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
            lines.append(f"{name:{wide}}{words}")
        return "\n".join(lines)


def wait_until(what: str, reached: Callable[[], bool], *, seconds: float, every: float = 1.0) -> float:
    """Ask until it is so, and give how long that took.

    Raises:
        TimeoutError: It did not become so.
    """
    began = time.monotonic()
    while not reached():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(every)
    return time.monotonic() - began

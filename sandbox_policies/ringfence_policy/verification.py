"""What a verification found: checks by name, each passed or failed, in words a person can act on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ringfence_policy.errors import RingfenceError

_MOST_PROBLEMS = 25

T = TypeVar("T")

Report = Callable[[str], None]
"""Says one thing that is wrong: which holder, round and record, what was expected and what stands there."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked. A check that found several problems appears once for each of them."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """The outcome of verifying one bundle.

    Attributes:
        checks: Every check, in the order made.
        run_id: The run the bundle is about, as far as that could be read; else "".
        rehearsal: Whether the bundle itself says, or its records show, that the run was NOT PRIVATE.
    """

    checks: tuple[Check, ...]
    run_id: str
    rehearsal: bool

    @property
    def passed(self) -> bool:
        """Whether every check was made and passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def to_document(self) -> dict[str, Any]:
        """The outcome as plain JSON."""
        return {
            "verified": self.passed,
            "run_id": self.run_id,
            "rehearsal": self.rehearsal,
            "checks": [{"name": one.name, "passed": one.passed, "detail": one.detail} for one in self.checks],
        }


def attempt(step: Callable[..., T], *arguments: object, report: Report, where: str) -> T | None:
    """Take one step of a check; what goes wrong in it becomes a problem at `where`, and None the result."""
    try:
        return step(*arguments)
    except RingfenceError as error:
        report(f"{where}: {' '.join(str(error).split())}")
    except Exception as error:  # noqa: BLE001 - hostile input: whatever it breaks, the answer is "failed"
        report(f"{where}: malformed ({type(error).__name__})")
    return None


class Findings:
    """Collects checks while they are made. A check that breaks off has failed: nothing unknown counts as passed."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    @contextmanager
    def checking(self, name: str, *, passed: str) -> Iterator[Report]:
        """Make one check; `passed` is its detail where nothing was wrong. Problems are reported through the result."""
        problems: list[str] = []
        try:
            yield problems.append
        except RingfenceError as error:
            problems.append("; ".join(" ".join(line.split()) for line in str(error).splitlines()))
        except Exception as error:  # noqa: BLE001 - hostile input: whatever it breaks, the answer is "failed"
            problems.append(f"this check could not be completed ({type(error).__name__}); the bundle is malformed")
        shown = problems[:_MOST_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more problems of this kind")
        self.checks += [Check(name, passed=False, detail=problem) for problem in shown] or [
            Check(name, passed=True, detail=passed)
        ]

    def skipped(self, name: str, because: str) -> None:
        """Note a check that could not be made. It counts as failed."""
        self.checks.append(Check(name, passed=False, detail=f"not judged, because {because}"))

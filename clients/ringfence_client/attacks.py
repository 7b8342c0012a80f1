"""Attempts to get out of the walls, made by the walled process itself: what it cannot do, no code in it can.

Each attempt is real, and harmless where it gets through. A wall stands when the kernel refused every attempt on it, by
an answer that only a refusal gives: that something is absent, busy or malformed says that the call reached it.
"""

import errno
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence_client import attempts, kernel
from ringfence_client.walls import Limits, Wall

# What the kernel answers when it will not; anything else, success included, got through.
_REFUSALS: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt to get out.

    Attributes:
        wall: The wall that should have kept it in.
        tried: What was tried.
        answer: How the kernel refused, or how it got through.
        withstood: Whether the wall held.
    """

    wall: Wall
    tried: str
    answer: str
    withstood: bool


def attack_walls(*, forbidden_file: Path, limits: Limits, readable: Sequence[Path] = ()) -> tuple[Attempt, ...]:
    """Try to get out of this process by every way known here, in some milliseconds.

    Call it in the main thread of the process that called `raise_walls`, before it reads records or loads a plan's code.

    Args:
        forbidden_file: A file that exists and that this process must not read, such as the agent's list of keys.
        limits: The limits that were set.
        readable: The records that were made readable: they are tried for writing.
    """
    if not kernel.IS_LINUX:
        return tuple(
            Attempt(wall=wall, tried="being built", answer=f"there are no walls on {sys.platform}", withstood=False)
            for wall in Wall
        )
    return tuple(
        _attempted(wall, tried, attempt)
        for wall, ways in (
            (Wall.NETWORK, attempts.on_network()),
            (Wall.FILES, attempts.on_files(forbidden_file, readable)),
            (Wall.PROCESSES, attempts.on_processes()),
            (Wall.PRIVILEGES, attempts.on_privileges()),
            (Wall.MEMORY, attempts.on_memory(limits)),
            (Wall.CPU, attempts.on_cpu()),
        )
        for tried, attempt in ways
    )


def breaches(made: Sequence[Attempt]) -> Mapping[Wall, str]:
    """The walls that do not stand, each with all that got through."""
    found: dict[Wall, str] = {}
    for wall in Wall:
        through = [f"{each.tried}: {each.answer}" for each in made if each.wall is wall and not each.withstood]
        if not any(each.wall is wall for each in made):
            through = ["nothing was tried"]
        if through:
            found[wall] = "; ".join(through)
    return found


def standing_walls(made: Sequence[Attempt]) -> frozenset[Wall]:
    """The walls that were attacked and withstood everything."""
    return frozenset(Wall) - frozenset(breaches(made))


def _attempted(wall: Wall, tried: str, attempt: Callable[[], str]) -> Attempt:
    try:
        answer, withstood = attempt(), False
    except attempts.Withstood as found:
        answer, withstood = str(found), True
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        withstood = error.errno in _REFUSALS
        answer = name if withstood else f"reached the kernel, which answered {name}"
    except (ValueError, AttributeError) as error:  # what this Python or this platform lacks tells nothing
        answer, withstood = f"could not be tried: {error}", False
    return Attempt(wall=wall, tried=tried, answer=answer, withstood=withstood)

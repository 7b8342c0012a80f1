"""A walled process that does its worst, for `ringfence-node doctor` and tests: `python -m ringfence_client.break_out`.

Standard input holds what to attack as JSON: `way`, `readable`, `forbidden`, `memory_bytes`, `cpu_seconds` and, for
`file-size`, a `descriptor`. The walls are raised, the attack is made, and what came of it is written as JSON.
"""

import errno
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ringfence_client.attacks import attack_walls
from ringfence_client.walls import Limits, raise_walls

_PIECE: Final = 16 << 20
_FORKS: Final = 100
_SMALL_STACK: Final = 128 << 10
_NO_END_IN_SIGHT: Final = 20_000


def main() -> None:
    """Raise the walls and attack them in one way."""
    asked = json.load(sys.stdin)
    limits = Limits(memory_bytes=asked["memory_bytes"], cpu_seconds=asked["cpu_seconds"])
    readable = [Path(name) for name in asked["readable"]]
    raise_walls(readable=readable, limits=limits)
    if asked["way"] == "everything":
        made = attack_walls(forbidden_file=Path(asked["forbidden"]), limits=limits, readable=readable)
        _tell([{**vars(each), "wall": each.wall.value} for each in made])
        return
    attack = _WAYS[asked["way"]]
    _tell(attack(asked))


def eat_memory(asked: dict[str, Any]) -> dict[str, Any]:
    """Fill memory until there is no more, or twice the limit is filled."""
    pieces: list[bytes] = []
    with suppress(MemoryError):
        while len(pieces) * _PIECE < 2 * asked["memory_bytes"]:
            pieces.append(b"\1" * _PIECE)
    return {"filled_bytes": len(pieces) * _PIECE}


def spin(_: dict[str, Any]) -> dict[str, Any]:
    """Compute for ever, with the signal that ends it ignored, blocked, and its limit raised where that is possible."""
    with suppress(OSError, ValueError):
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    with suppress(OSError, ValueError):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    while True:
        pass


def fork_without_end(_: dict[str, Any]) -> dict[str, Any]:
    """Start processes that start processes."""
    born = 0
    for _number in range(_FORKS):
        with suppress(OSError):
            if os.fork() == 0:
                os._exit(0)
            born += 1
        with suppress(OSError):
            os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", ""], {})
            born += 1
    return {"tried": 2 * _FORKS, "born": born}


def write_without_end(asked: dict[str, Any]) -> dict[str, Any]:
    """Write to a file that was open before the walls."""
    try:
        return {"written_bytes": os.write(asked["descriptor"], bytes(_PIECE))}
    except OSError as error:
        return {"written_bytes": 0, "refused": errno.errorcode.get(error.errno or 0, "")}


def start_threads_without_end(_: dict[str, Any]) -> dict[str, Any]:
    """Start threads, with small stacks, until one cannot be started."""
    threading.stack_size(_SMALL_STACK)
    end = threading.Event()
    started = 0
    try:
        while started < _NO_END_IN_SIGHT:
            threading.Thread(target=end.wait, daemon=True).start()
            started += 1
    except (RuntimeError, MemoryError):
        return {"started": started, "ended": True}
    return {"started": started, "ended": False}


_WAYS: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "memory": eat_memory,
    "cpu": spin,
    "processes": fork_without_end,
    "file-size": write_without_end,
    "threads": start_threads_without_end,
}


def _tell(found: object) -> None:
    os.write(sys.stdout.fileno(), json.dumps(found).encode())
    os._exit(0)  # whatever threads are left


if __name__ == "__main__":
    main()

"""What a run tells those who watch it: one JSON line per event, in a file that any process may follow."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TextIO


class EventFile:
    """Appends events; each line is whole when it is there.

    Args:
        path: The file; made if there is none.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        broken = path.exists() and not path.read_bytes().endswith(b"\n")
        self._file: TextIO = path.open("a", buffering=1)
        if broken:  # a writer was killed in the middle of a line: end it, and readers pass over it
            self._file.write("\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __call__(self, name: str, members: Mapping[str, object]) -> None:
        """Write one event."""
        self._file.write(json.dumps({"event": name, "at": time.time(), **members}, default=_plain) + "\n")


def follow(path: Path, *, is_over: Callable[[], bool], start: int = 0) -> Iterator[dict[str, Any]]:
    """Yield events as they are written, from byte `start`, until the writer is gone and all were read."""
    position, rest = start, ""
    while True:
        over = is_over()  # asked before reading: what was written before the end is still read
        if path.exists():
            with path.open() as file:
                file.seek(position)
                text = file.read()
                position = file.tell()
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                yield event
        if over:
            return
        time.sleep(0.05)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)

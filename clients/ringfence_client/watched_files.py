"""Files that are looked at before every use, and read again only when the system says that they changed."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_Identity = tuple[int, int, int, int, int]

# The clock of a file system may stand still for some milliseconds, in which a file can change twice and look the same.
_SETTLED_NS = 100_000_000


class WatchedFiles:
    """What was read from files, kept while device, inode, size and both times of each stay the same.

    A change time is the kernel's: who exchanges or edits a file cannot set it back. A file that changed a moment ago is
    read again anyway.
    """

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[_Identity, Any]] = {}

    def read(self, path: Path, parse: Callable[[bytes], T]) -> T:
        """What `parse` makes of the file's content; the same object while the file is the same.

        Raises:
            OSError: It cannot be read.
        """
        found = os.stat(path)  # noqa: PTH116 -- Path.stat costs as much again
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        kept = self._kept.get(path)
        if kept is not None and kept[0] == identity:
            value: T = kept[1]
            return value
        self._kept.pop(path, None)
        is_settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS
        read = parse(path.read_bytes())
        if is_settled:
            self._kept[path] = (identity, read)
        return read

"""Find the line on which each key of a TOML text stands, for errors that point at it.

The standard library's parser gives values without positions. This walk runs only over text that parser has accepted,
and only once a fault is known, so it needs no validation of its own; where it loses its way it stops, and the error
then points at the nearest table it had found.
"""

import re
import tomllib
from contextlib import suppress
from typing import Final

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR: Final = re.compile(r"[^,\]}\n#]*")
_STRING: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)


def locate(text: str) -> dict[Path, int]:
    r"""Line number (from 1) of every key, table and list entry, by path. List entries count from 0.

    >>> locate("[a]\nb = [1,\n 2]")[("a", "b", 1)]
    3
    """
    walk = _Walk(text)
    with suppress(IndexError, RecursionError, tomllib.TOMLDecodeError):  # what was found so far still helps
        walk.document()
    return walk.lines


class _Walk:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {(): 1}
        self._entries: dict[Path, int] = {}
        self._line, self._counted = 1, 0

    def document(self) -> None:
        table: Path = ()
        self._skip()
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip()

    def _header(self) -> Path:
        start = self.at
        is_entry = self.text.startswith("[[", self.at)
        self.at += 2 if is_entry else 1
        keys = self._key()
        self.at += 2 if is_entry else 1
        path: Path = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            is_last = position == len(keys) - 1
            if is_last and is_entry:
                self._note(path, start)
                self._entries[path] = self._entries.get(path, -1) + 1
            if path in self._entries:
                path = (*path, self._entries[path])
            self._note(path, start)
        return path

    def _pair(self, table: Path) -> None:
        start = self.at
        path = table
        for key in self._key():
            path = (*path, key)
            self._note(path, start)
        self.at += 1  # the equals sign
        self._value(path)

    def _key(self) -> list[str]:
        keys: list[str] = []
        while True:
            self._skip()
            quoted = self.text[self.at] in "\"'"
            found = (_STRING if quoted else _BARE).match(self.text, self.at)
            if found is None:
                raise IndexError(self.at)
            raw = found.group()
            keys.append(next(iter(tomllib.loads(f"{raw} = 0"))) if quoted else raw)
            self.at = found.end()
            self._skip()
            if self.text[self.at] != ".":
                return keys
            self.at += 1

    def _value(self, path: Path) -> None:
        self._skip()
        opening = self.text[self.at]
        if opening == "[":
            self._list(path)
        elif opening == "{":
            self._inline(path)
        else:
            pattern = _STRING if opening in "\"'" else _SCALAR
            found = pattern.match(self.text, self.at)
            self.at = found.end() if found else len(self.text)

    def _list(self, path: Path) -> None:
        self.at += 1
        index = 0
        self._skip()
        while self.text[self.at] != "]":
            self._note((*path, index), self.at)
            self._value((*path, index))
            index += 1
            self._separator()
        self.at += 1

    def _inline(self, path: Path) -> None:
        self.at += 1
        self._skip()
        while self.text[self.at] != "}":
            self._pair(path)
            self._separator()
        self.at += 1

    def _separator(self) -> None:
        self._skip()
        if self.text[self.at] == ",":
            self.at += 1
            self._skip()

    def _skip(self) -> None:
        found = _BLANK.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def _note(self, path: Path, at: int) -> None:
        self._line += self.text.count("\n", self._counted, at)
        self._counted = max(self._counted, at)
        self.lines.setdefault(path, self._line)

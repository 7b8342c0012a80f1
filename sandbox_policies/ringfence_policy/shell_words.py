"""Paths and names as words of a command that somebody is shown and may type."""

import shlex
from pathlib import Path


def typed(word: Path | str) -> str:
    """A word as a shell takes it for one: quoted where it holds spaces or anything else that a shell would read."""
    return shlex.quote(str(word))

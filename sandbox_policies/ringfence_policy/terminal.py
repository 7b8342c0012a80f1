"""The terminal as every command writes to it: what stands in a name or a reason is text there, and never markup."""

from typing import TextIO

from rich.console import Console


def terminal(file: TextIO | None = None) -> Console:
    """A console for tables and lines.

    Names, titles and reasons come from strangers: no square bracket in them styles, links or breaks anything.

    Args:
        file: Where it writes; standard output by default.
    """
    return Console(file=file, markup=False, emoji=False)

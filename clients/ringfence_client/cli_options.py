"""What several of a data holder's commands share: arguments and options."""

from pathlib import Path
from typing import Annotated

import typer

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The holder's directory, with holder.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
RootFile = Annotated[
    Path | None, typer.Option("--root", metavar="FILE", help="The root key, where it lies offline: on a memory stick.")
]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why, in at most 500 characters. Signed, and public.")
]

"""`ringfence control token ...`: what an administrator does at the machine itself, for the first token of all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.table import Table

from ringfence_policy.errors import UsageError
from ringfence_policy.terminal import terminal
from ringfence_server.control.actor import Actor, Role
from ringfence_server.control.plane import ControlPlane, open_plane

# Whoever may write the store's file, or knows the database's password, could write the row as well.
_AT_THE_MACHINE = Actor(
    role=Role.ADMINISTRATOR, name="a command on this machine", holder=None, via="cli", account="command"
)


def issue(
    directory: Path, *, database: str | None, name: str, role: str, holder: str | None, days: int, as_json: bool
) -> None:
    """Make a token and show it, this once.

    Raises:
        UsageError: There is no such role, or role and holder do not fit.
        NotKnown: There is no such holder.
    """
    if role not in {one.value for one in Role}:
        raise UsageError("there is no such role", expected=", ".join(one.value for one in Role), got=role[:40])
    with _opened(directory, database) as plane:
        if holder is not None:
            plane.site.holder(holder)
        token = plane.access.issue_token(_AT_THE_MACHINE, name=name, role=Role(role), holder=holder, days=days)
    if as_json:
        typer.echo(token.model_dump_json())
    else:
        typer.echo(f"{token.secret}\n\nIt is good until {_date(token.ends_ms)} and is not shown again.")


def show(directory: Path, *, database: str | None, as_json: bool) -> None:
    """List tokens, without their secrets."""
    with _opened(directory, database) as plane:
        tokens = plane.access.tokens(_AT_THE_MACHINE)
    if as_json:
        typer.echo(json.dumps([token.model_dump(mode="json", exclude={"secret"}) for token in tokens]))
        return
    table = Table()
    for column in ("id", "name", "role", "holder", "made by", "good until", ""):
        table.add_column(column, overflow="fold")
    for token in tokens:
        state = "revoked" if token.revoked_ms is not None else ""
        table.add_row(token.id, token.name, token.role, token.holder or "", token.by, _date(token.ends_ms), state)
    terminal().print(table)


def revoke(directory: Path, token_id: str, *, database: str | None, as_json: bool) -> None:
    """End a token at once.

    Raises:
        NotKnown: There is no such token.
    """
    with _opened(directory, database) as plane:
        token = plane.access.revoke_token(_AT_THE_MACHINE, token_id)
    typer.echo(token.model_dump_json(exclude={"secret"}) if as_json else f"{token.id} ({token.name}) is worthless now.")


@contextmanager
def _opened(directory: Path, database: str | None) -> Iterator[ControlPlane]:
    """The use cases beside a control plane that may be serving: one that looks after runs is not needed."""
    plane = open_plane(directory, database=database)
    try:
        yield plane
    finally:
        plane.close()


def _date(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"

"""`ringfence workshop`: one laptop, one link per role, and nothing left running afterwards."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from ringfence_server.control.actor import Role
from ringfence_server.control.logs import set_up_logs
from ringfence_server.control.serve import ControlServer
from ringfence_server.control.settings import ControlSettings, local_origins
from ringfence_server.control.starting import serving
from ringfence_server.scenario import bundled_scenario, copy_scenario, load_scenario

_LOG = "control.log"


@dataclass(frozen=True)
class Seat:
    """A place at the workshop's table.

    Attributes:
        name: The host name before `.localhost` that keeps its browser tab apart.
        role: What who sits there may do.
        holder: For a data officer: of which holder.
        words: How it is introduced.
    """

    name: str
    role: Role
    holder: str | None
    words: str


def hold_workshop(directory: Path, *, scenario: str, port: int, pause_seconds: float, as_json: bool) -> None:
    """Copy a bundled scenario to `directory`, serve it on 127.0.0.1 until interrupted, and end everything then.

    A directory that a workshop made before is gone on with.

    Raises:
        ScenarioInvalid: The directory holds something else.
        UsageError: The port is taken.
    """
    if not (directory / "plan.toml").exists():
        copy_scenario(bundled_scenario(scenario), directory)
    # Opened for the life of the process: the last lines are about how it ended.
    log = directory / _LOG
    log.touch(mode=0o600)
    set_up_logs(log.open("a", encoding="utf-8"))
    seats = seats_of(load_scenario(directory).holders)
    server = ControlServer(port=port)
    try:
        settings = ControlSettings(origins=local_origins(server.port, [seat.name for seat in seats]), workshop=True)
        with serving(
            directory, database=None, settings=settings, provider=None, ends_runs=True, pause_seconds=pause_seconds
        ) as site:
            site.sign_on.forget_links()
            links = {
                seat: site.sign_on.make_link(role=seat.role, name=seat.words, holder=seat.holder) for seat in seats
            }
            server.serve(site.app, ready=lambda: _introduce(links, server.port, as_json=as_json))
    finally:
        server.close()


def seats_of(holders: Mapping[str, object]) -> list[Seat]:
    """One seat for each role, and one for each data holder's officer."""
    officers = [Seat(f"holder-{_host(one)}", Role.HOLDER, one, f"data officer of {one}") for one in sorted(holders)]
    others = [Seat(role.value, role, None, role.value) for role in Role if role is not Role.HOLDER]
    return [*others, *officers]


def _host(holder_id: str) -> str:
    """A holder's id as a part of a host name. Two holders may share one, which only keeps their tabs together."""
    return "".join(mark if mark.isalnum() else "-" for mark in holder_id.lower()).strip("-")[:40]


def _introduce(links: Mapping[Seat, str], port: int, *, as_json: bool) -> None:
    found = [
        {
            "role": seat.role.value,
            "holder": seat.holder,
            "url": f"http://{seat.name}.localhost:{port}/enter/{secret}",
            "plain_url": f"http://127.0.0.1:{port}/enter/{secret}",
        }
        for seat, secret in links.items()
    ]
    if as_json:
        typer.echo(json.dumps({"address": f"http://127.0.0.1:{port}", "links": found}))
        return
    typer.echo(
        "The workshop is open. Each link works once, for one person; open them in tabs of one browser if you like:\n"
    )
    for seat, link in zip(links, found, strict=True):
        typer.echo(f"  {seat.words:<32} {link['url']}")
    typer.echo(
        "\nIf a browser does not find *.localhost, write 127.0.0.1 instead, and give each role a browser of its own."
        "\nCtrl-C ends the workshop, and every run of it."
    )

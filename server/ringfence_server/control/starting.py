"""Builds a control plane from what a command was given, serves it, and ends what it started."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from fastapi import FastAPI

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import UsageError
from ringfence_server.control.api.app import create_api, create_app
from ringfence_server.control.api.openapi import describe
from ringfence_server.control.credentials import StoredCredentials
from ringfence_server.control.logs import set_up_logs
from ringfence_server.control.oidc import IdentityProvider
from ringfence_server.control.pages.mount import mount_pages
from ringfence_server.control.plane import open_plane
from ringfence_server.control.serve import ControlServer
from ringfence_server.control.settings import ControlSettings, local_origins
from ringfence_server.control.sign_on_store import SignOnStore
from ringfence_server.interruption import handled_by


@dataclass(frozen=True)
class Place:
    """Where a control plane is reached.

    Attributes:
        listen: An address of this machine.
        port: Its port; 0 takes a free one.
        origins: What browsers call it; that address itself if empty.
        certificate: To speak https itself, with `key`.
    """

    listen: str
    port: int
    origins: tuple[str, ...]
    certificate: Path | None
    key: Path | None


@dataclass(frozen=True)
class Served:
    """What is served, before it is."""

    app: FastAPI
    sign_on: SignOnStore


@contextmanager
def serving(
    directory: Path,
    *,
    database: str | None,
    settings: ControlSettings,
    provider: IdentityProvider | None,
    ends_runs: bool,
    pause_seconds: float = 0.0,
) -> Iterator[Served]:
    """An application over a directory, ready to be served by the caller.

    Args:
        directory: The site.
        database: URL of its store; None is a SQLite file in the directory.
        settings: How it is reached.
        provider: Who vouches for people.
        ends_runs: Whether the runs that go on are ended with it. Otherwise they outlive it.
        pause_seconds: How long each round waits before it trains, so that people can follow it.
    """
    plane = open_plane(directory, database=database, pause_seconds=pause_seconds)
    try:
        plane.start()
        sign_on = SignOnStore(plane.store, settings)
        # Ctrl-C and a service manager's stop end it in order, so that what was started is ended too.
        with handled_by(lambda *_: sys.exit(0), signal.SIGINT, signal.SIGTERM):
            app = create_app(plane, settings, sign_on=sign_on, provider=provider)
            good = StoredCredentials(plane.access, sign_on).good
            mount_pages(app, plane, good=good, has_provider=provider is not None)
            yield Served(app, sign_on)
    finally:
        plane.close(end_runs=ends_runs)
        if provider is not None:
            provider.close()


def serve_site(directory: Path, *, database: str | None, oidc: Path | None, place: Place, as_json: bool) -> None:
    """Serve a directory until stopped: `ringfence control start`.

    Raises:
        UsageError: What was given does not fit together, or the port is taken.
    """
    certificate = _certificate(place)
    server = ControlServer(listen=place.listen, port=place.port, certificate=certificate)
    try:
        settings = ControlSettings(origins=_origins(place, server.port))
        provider = IdentityProvider.from_file(oidc, address=settings.address) if oidc is not None else None
        set_up_logs()
        with serving(directory, database=database, settings=settings, provider=provider, ends_runs=False) as site:
            server.serve(site.app, ready=lambda: _say(settings.address, server.port, as_json=as_json))
    finally:
        server.close()


def write_openapi(out: Path | None) -> None:
    """Write the API's description to a file, or to the terminal."""
    document = json.dumps(describe(create_api()), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        typer.echo(document, nl=False)
    else:
        write_durably(out, document.encode())


def _certificate(place: Place) -> tuple[Path, Path] | None:
    if (place.certificate is None) != (place.key is None):
        raise UsageError("a certificate and its key belong together", expected="--certificate and --key, or neither")
    if place.certificate is None or place.key is None:
        return None
    for file in (place.certificate, place.key):
        if not file.is_file():
            raise UsageError("there is no such file", where=str(file))
    return place.certificate, place.key


def _origins(place: Place, port: int) -> tuple[str, ...]:
    if place.origins:
        return place.origins
    if place.listen == "127.0.0.1" and place.certificate is None:
        return local_origins(port)
    if place.listen == "::1" and place.certificate is None:
        return f"http://[::1]:{port}", f"http://localhost:{port}"
    raise UsageError(
        "browsers must be told apart from strangers by the name they call this control plane",
        expected="--origin https://... once for each name",
        next_step="give the address that people type, without a path",
    )


def _say(address: str, port: int, *, as_json: bool) -> None:
    typer.echo(json.dumps({"address": address, "port": port}) if as_json else f"The control plane is at {address}")

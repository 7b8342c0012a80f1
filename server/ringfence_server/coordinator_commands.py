"""What the commands of `ringfence coordinator` do, and what they say."""

import json
import logging
import logging.handlers
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.table import Table

from ringfence_policy.errors import DeploymentFault, TrustRefused, UsageError
from ringfence_policy.letters import Registration, read_letter
from ringfence_policy.shell_words import typed
from ringfence_policy.terminal import terminal
from ringfence_policy.thumbprints import compare
from ringfence_server.deployment import (
    Deployment,
    init_deployment,
    load_deployment,
    now_utc,
    prepare_transport,
    settings_of,
)
from ringfence_server.registry import Registry
from ringfence_server.scenario import bundled_scenario

_LARGEST_LETTER = 1 << 20
_LOG_BYTES = 10 << 20  # strangers can make it grow


def make_deployment(
    directory: Path,
    *,
    names: str,
    port: int,
    listen: str,
    superlink_port: int,
    coordinator: str | None,
    source: str | None,
    as_json: bool,
) -> None:
    """`ringfence coordinator init`."""
    scenario = None if source is None else bundled_scenario(source)
    settings = settings_of(
        coordinator=coordinator,
        directory=directory,
        source=scenario,
        names=names,
        listen=listen,
        port=port,
        superlink_port=superlink_port,
    )
    deployment = init_deployment(directory, settings, source=scenario, now=now_utc())
    with_coordinator = deployment.coordinator()
    thumbprint = with_coordinator.root.thumbprint
    with_coordinator.close()
    missing = [name for name in ("plan.toml", "schema.toml") if not (directory / name).exists()]
    if as_json:
        document = {
            "directory": str(deployment.directory),
            "coordinator": settings.coordinator,
            "thumbprint": thumbprint,
            "address": deployment.address,
            "invitation": str(deployment.invitation_file),
            "missing": missing,
        }
        typer.echo(json.dumps(document))
        return
    typer.echo(f"{directory} is a deployment of {settings.coordinator}.")
    typer.echo(f"Its root key's thumbprint, for data holders to compare: {thumbprint}")
    if missing:
        typer.echo(f"Write {' and '.join(missing)} there before the first run.")
    typer.echo(f"Next: give {deployment.invitation_file} to each data holder; take in each one's registration:")
    typer.echo(f"  ringfence coordinator register {typed(directory)} REGISTRATION")
    typer.echo("and serve, on this machine:")
    typer.echo(f"  ringfence coordinator start {typed(directory)}")


def register_holder(directory: Path, registration: Path, *, thumbprint: str | None, as_json: bool) -> None:
    """`ringfence coordinator register`."""
    deployment = load_deployment(directory)
    registry = Registry(deployment.holders)
    token = _read(registration)
    letter = Registration.open(token)
    before = registry.check(letter)
    card = letter.card
    if before is None or thumbprint is not None:
        if thumbprint is None and not as_json:
            typer.echo(f"{card.name} ({card.holder_id}), region {card.region}, declared weight {card.weight}")
        compare(letter.root, thumbprint, whose=card.name, as_json=as_json)
    coordinator = deployment.coordinator()
    try:
        registry.keep(letter, token, coordinator)
    finally:
        coordinator.close()
    in_use = _use_keys_now(deployment, registry)
    if as_json:
        document = {
            "holder": card.holder_id,
            "name": card.name,
            "thumbprint": letter.root.thumbprint,
            "replaced": before is not None,
            "superlink": in_use,
        }
        typer.echo(json.dumps(document))
        return
    typer.echo(f"{card.name} ({card.holder_id}) is registered under the root key {letter.root.thumbprint}.")
    later = f"Its SuperNode may connect once `ringfence coordinator start {typed(directory)}` runs."
    typer.echo("Its SuperNode may connect now." if in_use else later)


def show_holders(directory: Path, *, as_json: bool) -> None:
    """`ringfence coordinator holders`."""
    from ringfence_server.connections import connections  # noqa: PLC0415 -- Flower and uvicorn

    deployment = load_deployment(directory)
    registrations = Registry(deployment.holders).registrations()
    states = connections(deployment)
    rows = [
        {
            "holder": holder_id,
            "name": letter.card.name,
            "region": letter.card.region,
            "weight": letter.card.weight,
            "thumbprint": letter.root.thumbprint,
            "registered": datetime.fromtimestamp(letter.issued_ms / 1000, UTC).isoformat(timespec="seconds"),
            "state": "unknown" if states is None else states.get(letter.flower_key, "not known to the SuperLink"),
        }
        for holder_id, letter in registrations.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(title=f"Data holders registered with {deployment.settings.coordinator}", title_justify="left")
    for column in ("data holder", "name", "region", "weight", "letter of", "root key", "state"):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = (row[key] for key in ("holder", "name", "region", "weight", "registered", "thumbprint", "state"))
        table.add_row(*map(str, cells))
    terminal().print(table)
    if states is None:
        typer.echo("No coordinator serves here right now, so nobody is connected.")


def remove_holder(directory: Path, holder_id: str, *, as_json: bool) -> None:
    """`ringfence coordinator remove`."""
    deployment = load_deployment(directory)
    registry = Registry(deployment.holders)
    letter = registry.remove(holder_id)
    in_use = _use_keys_now(deployment, registry)
    if as_json:
        typer.echo(json.dumps({"holder": holder_id, "thumbprint": letter.root.thumbprint, "superlink": in_use}))
        return
    typer.echo(f"{letter.card.name} ({holder_id}) is no longer registered; its SuperNode is cut off.")
    typer.echo("Its root key stays known, and what its updates did to earlier models stays in them.")


def renew_certificate(directory: Path, *, as_json: bool) -> None:
    """`ringfence coordinator renew`."""
    deployment = load_deployment(directory)
    prepare_transport(deployment, now=now_utc(), renew=True)
    certificate = str(deployment.transport / "front.crt")
    if as_json:
        typer.echo(json.dumps({"certificate": certificate}))
    else:
        typer.echo(f"{certificate} is new. A coordinator that serves shows it after: ringfence coordinator start")


def start_coordinator(directory: Path, *, as_json: bool) -> None:
    """`ringfence coordinator start`."""
    from ringfence_server.coordinator_service import serve  # noqa: PLC0415 -- Flower and uvicorn, needed only here

    deployment = load_deployment(directory)
    log = logging.handlers.RotatingFileHandler(deployment.state / "front.log", maxBytes=_LOG_BYTES, backupCount=1)
    form = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(handlers=[log], level=logging.WARNING, format=form)

    def say(event: str, members: Mapping[str, object]) -> None:
        if as_json:
            typer.echo(json.dumps({"event": event, **members}))
        else:
            typer.echo(_WORDS[event].format(**members))
        sys.stdout.flush()

    serve(deployment, say=say)


_WORDS = {
    "starting": "starting the SuperLink",
    "ready": "ready: data holders reach {address}. To start a run, on this machine:\n  {command}",
    "superlink-ended": "the SuperLink ended ({how}); starting it again",
    "certificate-renewed": "the front's certificate was renewed",
    "stopped": "stopped",
}


def _use_keys_now(deployment: Deployment, registry: Registry) -> bool:
    """Give the registered keys to the SuperLink, where one runs; says whether it did."""
    from ringfence_server.coordinator_service import is_serving  # noqa: PLC0415 -- Flower and uvicorn
    from ringfence_server.flower_control import FlowerControl  # noqa: PLC0415
    from ringfence_server.superlink_keys import reconcile  # noqa: PLC0415

    if not is_serving(deployment):
        return False
    try:
        with FlowerControl(deployment.control_address, authority=deployment.authority_file.read_bytes()) as control:
            reconcile(control, registry.keys())
    except DeploymentFault:
        if is_serving(deployment):
            return False  # it is just starting, and takes the keys when it is up; the front goes by the letters alone
        raise
    return True


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_LETTER + 1)
    except OSError as error:
        raise UsageError("the registration cannot be read", got=error.strerror, where=str(path)) from None
    if len(data) > _LARGEST_LETTER:
        raise TrustRefused("not a signed letter", expected="a few kilobytes", got="more than a mebibyte")
    return read_letter(data)

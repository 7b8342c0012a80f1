"""`ringfence coordinator ...`: a deployment's keys, holders and SuperLink.

Nothing but Typer is imported until a command runs, so that `--help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from ringfence_policy.cli import answering

coordinator_app = typer.Typer(
    no_args_is_help=True, help="Coordinate data holders on other machines: keys, registrations, SuperLink."
)

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A deployment.")]


@coordinator_app.command()
@answering
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory, or one with plan and schema.")],
    *,
    names: Annotated[
        str, typer.Option("--name", metavar="HOST[,HOST...]", help="Names or addresses under which holders reach it.")
    ],
    port: Annotated[int, typer.Option("--port", metavar="N", help="The port that holders reach.")] = 9092,
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDRESS", help="The address of this machine to listen on.")
    ] = "0.0.0.0",  # noqa: S104 -- the front is the one thing here that others are meant to reach
    superlink_port: Annotated[
        int, typer.Option("--superlink-port", metavar="N", help="The SuperLink's port, on the loopback address alone.")
    ] = 9093,
    coordinator: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The organisation, where no plan names it yet.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="NAME", help="A bundled scenario, for its plans and schema.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make DIR a deployment: settings, keys, certificates, and an invitation for data holders."""
    from ringfence_server.coordinator_commands import make_deployment  # noqa: PLC0415 -- see the module docstring

    make_deployment(
        directory,
        names=names,
        port=port,
        listen=listen,
        superlink_port=superlink_port,
        coordinator=coordinator,
        source=source,
        as_json=as_json,
    )


@coordinator_app.command()
@answering
def register(
    directory: Directory,
    registration: Annotated[Path, typer.Argument(metavar="REGISTRATION", help="A data holder's signed letter.")],
    *,
    thumbprint: Annotated[
        str | None,
        typer.Option("--thumbprint", metavar="T", help="The root key's, as the holder told you by another way."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take in a data holder's REGISTRATION, once its root key was compared with what the holder says of it."""
    from ringfence_server.coordinator_commands import register_holder  # noqa: PLC0415

    register_holder(directory, registration, thumbprint=thumbprint, as_json=as_json)


@coordinator_app.command()
@answering
def holders(directory: Directory, *, as_json: AsJson = False) -> None:
    """List the registered data holders, and who of them is connected."""
    from ringfence_server.coordinator_commands import show_holders  # noqa: PLC0415

    show_holders(directory, as_json=as_json)


@coordinator_app.command()
@answering
def remove(
    directory: Directory,
    holder: Annotated[str, typer.Argument(metavar="HOLDER", help="The data holder's id.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Withdraw a data holder's registration: its SuperNode is cut off, and that key is never taken again."""
    from ringfence_server.coordinator_commands import remove_holder  # noqa: PLC0415

    remove_holder(directory, holder, as_json=as_json)


@coordinator_app.command()
@answering
def renew(directory: Directory, *, as_json: AsJson = False) -> None:
    """Make a new certificate for the front now. `start` does so by itself a month before the old one runs out."""
    from ringfence_server.coordinator_commands import renew_certificate  # noqa: PLC0415

    renew_certificate(directory, as_json=as_json)


@coordinator_app.command()
@answering
def start(directory: Directory, *, as_json: AsJson = False) -> None:
    """Serve until stopped: a SuperLink on the loopback address, behind a front for registered SuperNodes alone."""
    from ringfence_server.coordinator_commands import start_coordinator  # noqa: PLC0415

    start_coordinator(directory, as_json=as_json)

"""`ringfence workshop` and `ringfence control ...`: the API and the live pages over a directory's runs.

Nothing but Typer is imported until a command runs, so that `--help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from ringfence_policy.cli import answering

control_app = typer.Typer(
    no_args_is_help=True, help="The control plane: an API and live pages for everybody in a federation."
)
token_app = typer.Typer(no_args_is_help=True, help="API tokens for scripts: issue, list, revoke.")
control_app.add_typer(token_app, name="token")

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A scenario directory or a deployment.")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="postgresql+psycopg://user@host/name or sqlite:///path; a SQLite file in DIR if left out. "
        "Keep the password in a passfile: a command line is visible to others.",
    ),
]


@answering
def workshop(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where the workshop's files go.")] = Path(
        "ringfence-workshop"
    ),
    *,
    scenario: Annotated[str, typer.Option("--scenario", metavar="NAME", help="A bundled scenario.")] = "heart",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="A port of 127.0.0.1; 0 takes a free one.")] = 0,
    pause: Annotated[
        float, typer.Option("--pause", min=0, max=60, help="Seconds that a round waits before it trains, for the room.")
    ] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Start everything on this machine and print one link per role: no account, no network. Ctrl-C ends it all."""
    from ringfence_server.control.workshop import hold_workshop  # noqa: PLC0415 -- see the module docstring

    hold_workshop(directory, scenario=scenario, port=port, pause_seconds=pause, as_json=as_json)


@control_app.command()
@answering
def start(
    directory: Directory,
    *,
    database: Database = None,
    oidc: Annotated[
        Path | None, typer.Option("--oidc", metavar="FILE", help="The identity provider, and who has which role.")
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDRESS", help="An address of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8080,
    origin: Annotated[
        list[str] | None,
        typer.Option("--origin", metavar="URL", help="What browsers call it, such as https://control.example.org."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="FILE", help="To speak https without a proxy before it.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The certificate's key.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve API and pages for DIR until stopped."""
    from ringfence_server.control.starting import Place, serve_site  # noqa: PLC0415

    place = Place(listen=listen, port=port, origins=tuple(origin or ()), certificate=certificate, key=key)
    serve_site(directory, database=database, oidc=oidc, place=place, as_json=as_json)


@control_app.command()
@answering
def openapi(
    *,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write here, not to the terminal.")] = None,
    as_json: AsJson = False,  # noqa: ARG001 -- it is JSON either way; here so that faults are too
) -> None:
    """Print the API's description (OpenAPI 3.1)."""
    from ringfence_server.control.starting import write_openapi  # noqa: PLC0415

    write_openapi(out)


@token_app.command("issue")
@answering
def issue_token(
    directory: Directory,
    *,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What it is for.")],
    role: Annotated[
        str, typer.Option("--role", metavar="ROLE", help="holder, coordinator, researcher, regulator or administrator.")
    ],
    holder: Annotated[
        str | None, typer.Option("--holder", metavar="ID", help="For the role holder: which one.")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=366, help="How long it is good for.")] = 30,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Issue an API token. It is shown this once; the store keeps its hash."""
    from ringfence_server.control.token_commands import issue  # noqa: PLC0415

    issue(directory, database=database, name=name, role=role, holder=holder, days=days, as_json=as_json)


@token_app.command("list")
@answering
def list_tokens(directory: Directory, *, database: Database = None, as_json: AsJson = False) -> None:
    """List API tokens, without their secrets."""
    from ringfence_server.control.token_commands import show  # noqa: PLC0415

    show(directory, database=database, as_json=as_json)


@token_app.command("revoke")
@answering
def revoke_token(
    directory: Directory,
    token: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")],
    *,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Make an API token worthless at once, also for event streams that it opened."""
    from ringfence_server.control.token_commands import revoke  # noqa: PLC0415

    revoke(directory, token, database=database, as_json=as_json)

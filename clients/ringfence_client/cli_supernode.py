"""`ringfence-node supernode`. Nothing but Typer is imported until it runs."""

from pathlib import Path
from typing import Annotated

import typer

from ringfence_client.cli_options import AsJson
from ringfence_policy.cli import answering

app = typer.Typer()


@app.command()
@answering
def supernode(
    invitation: Annotated[
        Path, typer.Argument(metavar="INVITATION", help="The coordinator's letter: DIR/state/papers/coordinator.jws.")
    ],
    *,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The SuperNode's key: DIR/state/relay/*.key.")],
    home: Annotated[Path, typer.Option("--home", metavar="DIR", help="The one directory it may write to.")],
    socket: Annotated[Path, typer.Option("--socket", metavar="PATH", help="Where the agent listens.")],
    confined: Annotated[
        bool, typer.Option("--confined/--unconfined", help="Keep it behind walls: it runs code from the wire.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Run only the SuperNode, beside an agent that another user or container runs with --no-supernode."""
    from ringfence_client.supernode_start import SuperNodeOptions, start_supernode  # noqa: PLC0415 -- see the module

    start_supernode(
        invitation,
        SuperNodeOptions(key=key, home=home, socket=socket, confined=confined, as_json=as_json),
    )

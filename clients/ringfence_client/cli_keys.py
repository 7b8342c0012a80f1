"""`ringfence-node keys ...`: list them, replace one, take the root key offline.

Nothing but Typer is imported until a command runs.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ringfence_client.cli_options import AsJson, Directory, RootFile
from ringfence_policy.cli import answering
from ringfence_policy.errors import UsageError
from ringfence_policy.shell_words import typed

keys_app = typer.Typer(no_args_is_help=True, help="The holder's keys: list, replace, and take the root key offline.")

Roles = Annotated[
    list[str] | None,
    typer.Option("--role", metavar="ROLE", help="policy, status, node or flower. Without it: the first three."),
]


@keys_app.command("list")
@answering
def list_keys(directory: Directory, *, as_json: AsJson = False) -> None:
    """List the keys of the holder in DIR, what each may sign, and since when."""
    from ringfence_client.holder_view import refuse_without_state  # noqa: PLC0415
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.joining import supernode_public  # noqa: PLC0415
    from ringfence_client.key_rotation import key_states  # noqa: PLC0415
    from ringfence_client.officer import own_keys, root_of  # noqa: PLC0415
    from ringfence_policy.ledger import now_ms  # noqa: PLC0415

    home = HolderHome(directory)
    refuse_without_state(home)
    root = root_of(home)
    keys = [
        {
            "key": one.listed.public_key.kid,
            "roles": list(one.listed.roles),
            "state": one.state,
            "from_ms": one.listed.from_ms,
            "to_ms": one.listed.to_ms,
            "is_here": one.is_here,
            "thumbprint": one.listed.public_key.thumbprint,
        }
        for one in key_states(home, now_ms=now_ms())
    ]
    document = {
        "list": own_keys(home).seq,
        "root": {"key": root.kid, "thumbprint": root.thumbprint, "is_here": home.root_key.exists()},
        "keys": keys,
        "flower": supernode_public(home) if home.supernode_key.exists() else None,
    }
    if as_json:
        typer.echo(json.dumps(document))
    else:
        _say_keys(document)


def _say_keys(document: dict[str, Any]) -> None:
    root = document["root"]
    where = "lies here beside the others: take it offline" if root["is_here"] else "lies elsewhere"
    typer.echo(f"{root['key']}  root, {where}  {root['thumbprint']}")
    for one in document["keys"]:
        until = datetime.fromtimestamp(one["to_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
        state = "signs until" if one["state"] == "signs" else "retired, good for nothing after"
        here = "" if one["is_here"] or one["state"] != "signs" else "  (its private half is not here)"
        typer.echo(f"{one['key']}  {', '.join(one['roles'])}, {state} {until}{here}")
    typer.echo(f"Key list {document['list']}.")
    made = "is there" if document["flower"] else "is not made yet: ringfence-node register makes it"
    typer.echo(f"The SuperNode's key {made}.")


@keys_app.command()
@answering
def rotate(
    directory: Directory,
    *,
    role: Roles = None,
    stolen: Annotated[
        bool, typer.Option("--stolen", help="Disown the old key: nothing that it ever signed counts any more.")
    ] = False,
    root: RootFile = None,
    as_json: AsJson = False,
) -> None:
    """Put new keys in the place of those that sign now. Interrupted, it is finished by running it again."""
    from ringfence_client import key_rotation as rotation  # noqa: PLC0415
    from ringfence_client.holder_view import refuse_without_state  # noqa: PLC0415
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.joining import load_root, supernode_public  # noqa: PLC0415
    from ringfence_policy.ledger import now_ms  # noqa: PLC0415

    home = HolderHome(directory)
    refuse_without_state(home)
    roles = [rotation.role_named(name) for name in role or [one.value for one in rotation.SIGNING_ROLES]]
    rotation.refuse_open_node(home, roles)
    key = load_root(home, root) if any(one is not None for one in roles) else None
    made: dict[str, str] = {}
    for one in roles:
        if one is None or key is None:
            rotation.rotate_supernode_key(home)
            made["flower"] = supernode_public(home)
        else:
            new = rotation.rotate(home, one, root=key, is_stolen=stolen, now_ms=now_ms())
            made[one.value] = new.kid
    if as_json:
        typer.echo(json.dumps({"keys": made, "stolen": stolen}))
        return
    for name, text in made.items():
        if name == "flower":
            typer.echo("The SuperNode has a new key. It opens nothing until the coordinator has registered it:")
            typer.echo(f"  ringfence-node register {typed(directory)} --out FILE")
        else:
            typer.echo(f"{text} signs from now on.")
    if key is not None:
        old = "What the old key signed counts no more, not even as evidence." if stolen else "The old key is retired."
        typer.echo(f"{old} Others learn it from your new key list at the next contact.")


@keys_app.command("root-offline")
@answering
def root_offline(
    directory: Directory,
    *,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where the root key goes, such as a memory stick.")],
    as_json: AsJson = False,
) -> None:
    """Move the root key out of DIR. From then on commands that need it are given it with --root FILE."""
    from ringfence_client.holder_view import refuse_without_state  # noqa: PLC0415
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.key_rotation import take_root_offline  # noqa: PLC0415

    home = HolderHome(directory)
    refuse_without_state(home)
    if not to.parent.is_dir():
        raise UsageError("there is no such folder", expected="a folder that is there", where=str(to.parent))
    take_root_offline(home, to)
    if as_json:
        typer.echo(json.dumps({"root": str(to)}))
    else:
        typer.echo(f"The root key is now in {to}, and no longer in {home.keys}.")
        typer.echo("Keep two copies, apart from each other and from this machine: a lost root key cannot be replaced.")

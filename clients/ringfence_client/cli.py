"""`ringfence-node`: a data holder's own commands. Nothing but Typer is imported until a command runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ringfence_client import cli_setup, cli_supernode
from ringfence_client.cli_data import data_app
from ringfence_client.cli_keys import keys_app
from ringfence_client.cli_options import AsJson, Directory, Reason
from ringfence_policy.cli import answering, policy_app, run_command_line

if TYPE_CHECKING:
    from ringfence_client.home import HolderHome
    from ringfence_policy.documents import Status

app = typer.Typer(
    name="ringfence-node",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # a crash must not print keys or records that happen to be in scope
    help="A data holder's own commands: set up, join, sign terms, see every use, suspend, revoke, replace keys.",
)
app.add_typer(policy_app, name="policy")
app.add_typer(data_app, name="data")
app.add_typer(keys_app, name="keys")
app.add_typer(cli_setup.app)
app.add_typer(cli_supernode.app)

_LONGEST_REASON = 500


@app.command()
@answering
def sign(directory: Directory, *, as_json: AsJson = False) -> None:
    """Sign policy.toml of DIR as it stands. A changed policy needs a higher version."""
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.officer import sign_policy  # noqa: PLC0415
    from ringfence_policy.clauses import explain  # noqa: PLC0415

    policy = sign_policy(_set_up_home(HolderHome(directory)))
    if as_json:
        typer.echo(json.dumps({"policy": policy.reference, "digest": policy.digest}))
        return
    for sentence in explain(policy):
        typer.echo(f"  {sentence}")
    typer.echo(f"Signed: {policy.reference}, {policy.digest}")


@app.command()
@answering
def schema(directory: Directory, *, as_json: AsJson = False) -> None:
    """Check the data of DIR against the schema as it stands, and agree to it: no other schema is read data by."""
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.officer import agree_to_schema  # noqa: PLC0415

    home = _set_up_home(HolderHome(directory))
    agreed, surplus = agree_to_schema(home)
    if as_json:
        columns = list(agreed.column_names())
        typer.echo(json.dumps({"schema": agreed.digest, "columns": columns, "surplus_records": surplus}))
    else:
        typer.echo(f"The data fits {home.schema_file}, and plans with this schema may read it: {agreed.digest}")
        if surplus and agreed.subject is not None:
            typer.echo(
                f"Beyond {agreed.subject.max_records} records of one subject, and left out of training: {surplus}"
            )


@app.command()
@answering
def peer(
    directory: Directory,
    holder_id: Annotated[str, typer.Argument(metavar="ID", help="The other holder.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Its root key (root.jwk), as it gave it to you.")],
    *,
    thumbprint: Annotated[
        str | None, typer.Option("--thumbprint", metavar="T", help="The key's thumbprint, as they read it out to you.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Get to know another data holder, once its thumbprint was compared. Only these count towards min_holders."""
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.peers import known_peers, meet_peers  # noqa: PLC0415
    from ringfence_policy.errors import UsageError  # noqa: PLC0415
    from ringfence_policy.identity import PublicKey  # noqa: PLC0415
    from ringfence_policy.thumbprints import compare  # noqa: PLC0415

    home = _set_up_home(HolderHome(directory))
    try:
        key = PublicKey.from_jwk(json.loads(root.read_text()))
    except (OSError, ValueError) as error:
        raise UsageError(
            "not a root key",
            expected="a root.jwk",
            got=getattr(error, "strerror", None) or "something else",
            where=str(root),
            next_step="ask that data holder for the file root.jwk once more",
        ) from None
    if thumbprint is not None or holder_id not in known_peers(home):
        compare(key, thumbprint, whose=holder_id, as_json=as_json)
    meet_peers(home, {holder_id: key})
    if as_json:
        others = {name: known.thumbprint for name, known in known_peers(home).items() if name != home.profile.holder_id}
        typer.echo(json.dumps(others))
    else:
        typer.echo(f"{holder_id} is known by {key.thumbprint}")


@app.command()
@answering
def status(directory: Directory, *, as_json: AsJson = False) -> None:
    """Show where the holder in DIR stands: policy, budgets, decisions, coordinator, node. Renews its status."""
    from ringfence_client.cli_show import show_standing  # noqa: PLC0415
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.officer import renew_status, signed_policy  # noqa: PLC0415
    from ringfence_policy.ledger import now_ms  # noqa: PLC0415

    home = _set_up_home(HolderHome(directory))
    show_standing(home, renew_status(home, now_ms=now_ms()), signed_policy(home), as_json=as_json)


@app.command()
@answering
def ledger(directory: Directory, *, as_json: AsJson = False) -> None:
    """Show the budgets of DIR: spent, reserved, cap and what is left; and what each run took."""
    from ringfence_client.cli_show import show_ledger  # noqa: PLC0415
    from ringfence_client.home import HolderHome  # noqa: PLC0415

    home = _set_up_home(HolderHome(directory))
    show_ledger(home, as_json=as_json)


@app.command()
@answering
def decisions(
    directory: Directory,
    *,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only those of this run.")] = None,
    denied: Annotated[bool, typer.Option("--denied", help="Only denials.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every decision taken in DIR, with your own figures, which nobody else is shown."""
    from ringfence_client.cli_show import show_decisions  # noqa: PLC0415
    from ringfence_client.home import HolderHome  # noqa: PLC0415

    home = _set_up_home(HolderHome(directory))
    show_decisions(home, run_id=run, denied=denied, as_json=as_json)


@app.command()
@answering
def suspend(directory: Directory, *, reason: Reason = "suspended", as_json: AsJson = False) -> None:
    """Stop every use of the data of DIR from the next gate on, until `resume`. Budgets and policy stay as they are."""
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.officer import suspend as stop  # noqa: PLC0415
    from ringfence_policy.ledger import now_ms  # noqa: PLC0415

    _refuse_long(reason)
    home = _set_up_home(HolderHome(directory))
    _say_status(stop(home, reason=reason, now_ms=now_ms()), home, as_json=as_json)
    if not as_json:
        typer.echo(
            "What is in training now is thrown away and its budget given back, unless its plan brought its own code. "
            "What was sent stays sent."
        )


@app.command()
@answering
def resume(directory: Directory, *, as_json: AsJson = False) -> None:
    """Lift the suspension of DIR. A revoked policy stays revoked."""
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.officer import resume as lift  # noqa: PLC0415
    from ringfence_policy.ledger import now_ms  # noqa: PLC0415

    home = _set_up_home(HolderHome(directory))
    _say_status(lift(home, now_ms=now_ms()), home, as_json=as_json)


@app.command()
@answering
def revoke(directory: Directory, *, reason: Reason = "withdrawn", as_json: AsJson = False) -> None:
    """Withdraw the signed policy of DIR, for good. Takes effect at the next gate, also in a run that is under way."""
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.officer import revoke as withdraw  # noqa: PLC0415
    from ringfence_policy.ledger import now_ms  # noqa: PLC0415

    _refuse_long(reason)
    home = _set_up_home(HolderHome(directory))
    _say_status(withdraw(home, reason=reason, now_ms=now_ms()), home, as_json=as_json)
    if not as_json:
        typer.echo("What was sent before stays sent, and its budget stays spent: nothing is unlearned.")


@app.command()
@answering
def doctor(*, as_json: AsJson = False) -> None:
    """Check that this machine can keep a data holder's promises: build the trainer's walls and attack them."""
    from ringfence_client.node_doctor import examine  # noqa: PLC0415

    raise typer.Exit(examine(as_json=as_json))


@app.command()
@answering
def start(
    directory: Directory,
    *,
    socket: Annotated[
        Path | None, typer.Option("--socket", metavar="PATH", help="Where relays find the agent, instead of in DIR.")
    ] = None,
    serve: Annotated[
        list[str] | None, typer.Option("--serve", metavar="USER", help="Another user whose relays may ask. Repeatable.")
    ] = None,
    supernode: Annotated[
        bool, typer.Option("--supernode/--no-supernode", help="Run Flower's SuperNode too, or leave it to others.")
    ] = True,
    confined: Annotated[
        bool,
        typer.Option("--confined/--unconfined", help="Keep the SuperNode behind walls: it runs code from the wire."),
    ] = True,
    memory: Annotated[int, typer.Option("--memory", metavar="MIB", min=512, help="Memory of the trainer.")] = 4096,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads of the trainer.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Serve the data of DIR, as its policy allows, until Ctrl-C: agent, trainer and SuperNode."""
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.node_start import StartOptions  # noqa: PLC0415
    from ringfence_client.node_start import start as serve_until_stopped  # noqa: PLC0415

    serve_until_stopped(
        HolderHome(directory),
        StartOptions(
            socket=socket,
            serve=tuple(serve or ()),
            supernode=supernode,
            confined=confined,
            memory_mib=memory,
            threads=threads,
            as_json=as_json,
        ),
    )


def _set_up_home(home: "HolderHome") -> "HolderHome":
    from ringfence_client.holder_view import refuse_without_state  # noqa: PLC0415

    refuse_without_state(home)
    return home


def _refuse_long(reason: str) -> None:
    from ringfence_policy.errors import UsageError  # noqa: PLC0415

    if len(reason) > _LONGEST_REASON:
        raise UsageError("the reason is too long", expected=f"{_LONGEST_REASON} characters", got=f"{len(reason)}")


def _say_status(status: "Status", home: "HolderHome", *, as_json: bool) -> None:
    from ringfence_client.officer import signed_policy  # noqa: PLC0415

    if as_json:
        typer.echo(json.dumps(status.to_document()))
        return
    policy = signed_policy(home)
    entry = None if policy is None else status.revocation_of(policy.policy_id)
    now = "stands" if entry is None else f"revoked ({entry.reason})"
    if status.suspended is not None:
        now += f", and every use is suspended ({status.suspended.reason})"
    typer.echo(f"{'no signed policy' if policy is None else policy.reference}: {now}; status {status.seq}")


def main() -> None:
    """Run `ringfence-node`."""
    run_command_line(app)


if __name__ == "__main__":
    main()

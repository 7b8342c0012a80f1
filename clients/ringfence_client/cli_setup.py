"""`ringfence-node init`, `register`, `join` and `coordinator`: from nothing to a holder that a coordinator knows.

Nothing but Typer is imported until a command runs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ringfence_client.cli_options import AsJson, Directory, RootFile
from ringfence_policy.cli import answering, is_asked
from ringfence_policy.errors import UsageError
from ringfence_policy.shell_words import typed

if TYPE_CHECKING:
    from ringfence_client.first_files import Answers
    from ringfence_client.home import HolderHome
    from ringfence_policy.letters import Invitation

app = typer.Typer()

Thumbprint = Annotated[
    str | None,
    typer.Option("--thumbprint", metavar="T", help="The coordinator's thumbprint, as it was read out to you."),
]


@app.command()
@answering
def init(
    directory: Directory,
    *,
    holder_id: Annotated[str | None, typer.Option("--holder-id", metavar="ID", help="Your institution's id.")] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Its name, as people say it.")] = None,
    region: Annotated[str | None, typer.Option("--region", metavar="REGION", help="Where it computes: CH.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="ID", help="The dataset's id.")] = None,
    weight: Annotated[
        int | None, typer.Option("--weight", metavar="N", help="A round, public number near its size.")
    ] = None,
    epsilon: Annotated[
        str | None, typer.Option("--epsilon", metavar="NUMBER", help="The most privacy that all uses ever may spend.")
    ] = None,
    delta: Annotated[str | None, typer.Option("--delta", metavar="NUMBER", help="At which delta: 1e-5.")] = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="NAME", help="The ready policy to start from: ringfence-node policy library."),
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option("--coordinator", metavar="ID", help="The organisation that the policy permits.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set up a data holder in DIR. Run it again until it says that nothing is missing: nothing is overwritten."""
    from ringfence_client.first_files import Answers, still_missing, write_first_files  # noqa: PLC0415 (see module)
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.joining import ensure_supernode_key  # noqa: PLC0415
    from ringfence_client.officer import set_up  # noqa: PLC0415
    from ringfence_policy.ledger import now_ms  # noqa: PLC0415

    home = HolderHome(directory)
    answers = Answers(
        holder_id=holder_id,
        name=name,
        region=region,
        dataset=dataset,
        weight=weight,
        epsilon=epsilon,
        delta=delta,
        policy=policy,
        coordinator=coordinator,
    )
    answers = _ask(home, answers, as_json=as_json)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    written = write_first_files(home, answers)
    missing = still_missing(home)
    if not missing:
        set_up(home, now_ms=now_ms())
        ensure_supernode_key(home)
    _say_init(home, written, missing, as_json=as_json)


def _ask(home: "HolderHome", answers: "Answers", *, as_json: bool) -> "Answers":
    """Ask a person at a terminal for what was not said; refuse where there is none."""
    from dataclasses import replace  # noqa: PLC0415

    from ringfence_client.first_files import DEFAULT_POLICY, QUESTIONS, Answers, unanswered  # noqa: PLC0415

    missing = unanswered(home, answers)
    if not missing:
        return answers
    if as_json or not is_asked():
        raise UsageError(
            "holder.toml is not there, and too little was said to write it",
            expected=", ".join(f"--{name.replace('_', '-')}" for name in missing),
            where=str(home.directory),
            next_step="give these options, or run it in a terminal and be asked",
        )
    for name in missing:
        said = typer.prompt(QUESTIONS[name], type=int if name == "weight" else str)
        answers = Answers(**(vars(answers) | {name: said}))
    if not home.policy_file.exists():
        if answers.coordinator is None:
            answers = replace(answers, coordinator=typer.prompt("The organisation that may train, by its id"))
        if answers.policy is None:
            answers = replace(answers, policy=typer.prompt("The ready policy to start from", default=DEFAULT_POLICY))
    return answers


def _say_init(home: "HolderHome", written: list[Path], missing: dict[str, str], *, as_json: bool) -> None:
    from ringfence_client.officer import root_of  # noqa: PLC0415

    root = None if missing else root_of(home)
    if as_json:
        document = {
            "holder": home.profile.holder_id,
            "written": [path.name for path in written],
            "missing": list(missing),
            "root": None if root is None else root.jwk,
            "thumbprint": None if root is None else root.thumbprint,
        }
        typer.echo(json.dumps(document))
        return
    for path in written:
        typer.echo(f"Written: {path}")
    if root is None:
        typer.echo(f"Still missing in {home.directory}:")
        for name, source in missing.items():
            typer.echo(f"  {name}  {source}")
        typer.echo("Read policy.toml meanwhile, and change it to what you want to allow:")
        typer.echo(f"  ringfence-node policy explain {typed(home.policy_file)}")
        typer.echo(f"Then run this again: ringfence-node init {typed(home.directory)}")
        return
    typer.echo(f"{home.profile.name} is set up in {home.state}")
    typer.echo(f"Give the coordinator, and whoever audits you, this root key: {home.root}")
    typer.echo(f"and read its thumbprint to them: {root.thumbprint}")


@app.command()
@answering
def register(
    directory: Directory,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the letter goes: a new file.")],
    root: RootFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the letter that registers the holder in DIR with a coordinator. It holds nothing secret."""
    from ringfence_client.holder_view import refuse_without_state  # noqa: PLC0415
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.joining import load_root, write_registration  # noqa: PLC0415
    from ringfence_policy.ledger import now_ms  # noqa: PLC0415

    home = HolderHome(directory)
    refuse_without_state(home)
    letter = write_registration(home, out, root=load_root(home, root), now_ms=now_ms())
    if as_json:
        document = {"written": str(out), "holder": letter.card.holder_id, "thumbprint": letter.root.thumbprint}
        typer.echo(json.dumps(document))
        return
    typer.echo(f"Written: {out}. Send it to the coordinator; it holds public keys and nothing secret.")
    typer.echo("When they call you, on a number that both of you know, read this thumbprint to them:")
    typer.echo(f"  {letter.root.thumbprint}")


@app.command()
@answering
def join(
    directory: Directory,
    invitation: Annotated[Path, typer.Argument(metavar="INVITATION", help="The letter that the coordinator sent.")],
    *,
    thumbprint: Thumbprint = None,
    as_json: AsJson = False,
) -> None:
    """Get to know a coordinator by its letter, once its thumbprint was compared; or take its newest letter."""
    from ringfence_client.holder_view import refuse_without_state  # noqa: PLC0415
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.joining import is_known, keep, letter_document, read_invitation  # noqa: PLC0415
    from ringfence_policy.thumbprints import compare  # noqa: PLC0415

    home = HolderHome(directory)
    refuse_without_state(home)
    letter, token = read_invitation(invitation)
    known = is_known(home, letter)
    if thumbprint is not None or not known:
        compare(letter.root, thumbprint, whose=letter.coordinator, as_json=as_json)
    keep(home, token)
    if as_json:
        typer.echo(json.dumps(letter_document(letter)))
    else:
        _say_coordinator(letter)


@app.command()
@answering
def coordinator(directory: Directory, *, as_json: AsJson = False) -> None:
    """Show the coordinator that the holder in DIR joined."""
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_client.joining import joined, letter_document  # noqa: PLC0415

    letter = joined(HolderHome(directory))
    if letter is None:
        raise UsageError(
            "no coordinator was joined",
            expected="an invitation that was compared and kept",
            where=str(directory),
            next_step=f"ringfence-node join {typed(directory)} INVITATION",
        )
    if as_json:
        typer.echo(json.dumps(letter_document(letter)))
    else:
        _say_coordinator(letter)


def _say_coordinator(letter: "Invitation") -> None:
    typer.echo(f"Coordinator: {letter.coordinator}")
    typer.echo(f"Its nodes connect to: {letter.address}")
    typer.echo(f"Its thumbprint: {letter.root.thumbprint}")

"""`ringfence policy ...`: check, explain, sign and exchange usage policies. Mounted in both console scripts.

Nothing but Typer is imported until a command runs, so that `--help` answers at once.
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from ringfence_policy.errors import DocumentInvalid, Fault, RingfenceError, UsageError

if TYPE_CHECKING:
    from ringfence_policy.policy import UsagePolicy

policy_app = typer.Typer(
    name="policy",
    no_args_is_help=True,
    help="Check, explain, sign and exchange the usage policies of data holders.",
)

P = ParamSpec("P")

PolicyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A policy as TOML.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write here instead of to the terminal.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]

LIBRARY = Path(__file__).parent / "library"

HEADINGS = {
    None: "In every case",
    "people": "Who",
    "projects": "What for, when and how often",
    "settings": "Where and with whom",
    "data": "Which data",
    "privacy": "How much may be learned",
    "outputs": "What becomes of the result",
}


def answering(command: Callable[P, None]) -> Callable[P, None]:
    """Let a command's faults end as a message and an exit code instead of a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except RingfenceError as error:
            fault = error
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("ringfence"):
                raise  # our own part is missing, which no extra mends
            fault = _missing(error)
        except BrokenPipeError:
            raise  # whoever read what is printed went away: Click ends quietly
        except OSError as error:
            fault = _refused_by_the_system(error)
        else:
            return
        if kwargs.get("as_json"):
            _say_json({"error": fault.to_document()})
        else:
            typer.echo(str(fault), err=True)
        raise typer.Exit(fault.exit_code) from fault

    return run


def run_command_line(app: typer.Typer) -> None:
    """Run a console script. A wrong command line is answered in JSON too, where that is asked for.

    Args:
        app: Its commands.
    """
    if "--json" not in sys.argv[1:]:
        app()
        return
    import click  # noqa: PLC0415 -- loaded with the commands

    try:
        sys.exit(app(standalone_mode=False))
    except click.ClickException as error:
        asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else Path(sys.argv[0]).name
        fault = UsageError(error.format_message(), next_step=f"{asked} --help")
        _say_json({"error": fault.to_document()})
        sys.exit(error.exit_code)


def is_asked() -> bool:
    """Whether a person is there to answer."""
    return sys.stdin.isatty()


@policy_app.command()
@answering
def check(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|DIR...", help="Policies, or directories with policies.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Check that policies are valid, and that their compiled form holds on and beyond every limit."""
    findings = [_examined(path) for given in paths for path in _policies_in(given)]
    faults = [finding for finding in findings if finding["error"]]
    if as_json:
        _say_json({"valid": not faults, "policies": findings})
    else:
        for finding in findings:
            if finding["error"]:
                typer.echo(f"✗ {finding['message']}", err=True)
            else:
                typer.echo(f"✓ {finding['file']}  {finding['policy']}  {finding['digest']}")
    if faults:
        raise typer.Exit(max(finding["exit_code"] for finding in faults))


@policy_app.command()
@answering
def explain(file: PolicyFile, *, as_json: AsJson = False) -> None:
    """Say in plain English what FILE allows."""
    from ringfence_policy.policy import read_policy  # noqa: PLC0415 - see the module docstring

    policy = read_policy(file)
    sentences = list(_sentences(policy))
    if as_json:
        _say_json(
            {
                "policy": policy.reference,
                "digest": policy.digest,
                "sentences": [{"clause": clause, "table": table, "text": text} for table, clause, text in sentences],
            }
        )
        return
    typer.echo(f"{policy.reference}: the terms of {policy.holder_id} for the dataset {policy.dataset_id}")
    heading: str | None = ""
    for table, _, text in sentences:
        if table != heading:
            heading = table
            typer.echo(f"\n{HEADINGS[table]}")
        typer.echo(f"  - {text}")
    typer.echo(f"\nDigest: {policy.digest}")


@policy_app.command()
@answering
def purposes(*, as_json: AsJson = False) -> None:
    """List the purposes a policy can name, as the tree they form."""
    from ringfence_policy.vocabulary import PURPOSES, ancestors  # noqa: PLC0415 - see the module docstring

    ordered = sorted(PURPOSES.values(), key=lambda purpose: ancestors(purpose.id)[::-1])
    if as_json:
        members = ("id", "parent", "label", "source_iri")
        _say_json({"purposes": [{member: getattr(one, member) for member in members} for one in ordered]})
        return
    for purpose in ordered:
        indent = "  " * (len(ancestors(purpose.id)) - 1)
        typer.echo(f"{indent}{purpose.id}  ({purpose.label})")


@policy_app.command()
@answering
def library(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one, ready to be saved.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the ready policies by sector, or show one to start from."""
    ready = {path.stem: path for path in sorted(LIBRARY.glob("*.toml"))}
    if name is not None and name not in ready:
        raise DocumentInvalid("no such policy", expected="one of " + ", ".join(ready), got=name)
    texts = {one: ready[one].read_text(encoding="utf-8") for one in ([name] if name else ready)}
    if as_json:
        _say_json({"policies": [{"name": one, "toml": text} for one, text in texts.items()]})
    elif name:
        sys.stdout.write(texts[name])
    else:
        for one, text in texts.items():
            typer.echo(f"{one:42}{text.splitlines()[0].removeprefix('# ')}")


@policy_app.command()
@answering
def sign(
    file: PolicyFile,
    key: Annotated[Path, typer.Option("--key", metavar="KEY", help="The data officer's signing key.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the signed policy goes.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Sign FILE with KEY, after the same checks as `check`."""
    from ringfence_policy.gate import PolicyGate  # noqa: PLC0415 - see the module docstring
    from ringfence_policy.identity import DocumentType, SigningKey  # noqa: PLC0415
    from ringfence_policy.identity import sign as sign_document  # noqa: PLC0415
    from ringfence_policy.policy import read_policy  # noqa: PLC0415

    policy = read_policy(file)
    _prove(PolicyGate(policy), file)
    signing_key = SigningKey.load(key)
    _write(out, sign_document(policy.to_document(), type=DocumentType.POLICY, key=signing_key))
    if as_json:
        _say_json({"policy": policy.reference, "digest": policy.digest, "key": signing_key.kid, "written": str(out)})
        return
    for _, _, text in _sentences(policy):
        typer.echo(f"  - {text}")
    typer.echo(f"Signed {policy.reference} ({policy.digest}) with the key {signing_key.kid}: {out}")


@policy_app.command("export-odrl")
@answering
def export_odrl_command(
    file: PolicyFile,
    assignee: Annotated[
        str | None, typer.Option(metavar="ORG", help="Write the Agreement with this organisation, not the Offer.")
    ] = None,
    out: Out = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Write FILE as ODRL in the flat form of the Dataspace Protocol."""
    from datetime import UTC, datetime  # noqa: PLC0415 - see the module docstring

    from ringfence_policy.odrl import export_odrl  # noqa: PLC0415
    from ringfence_policy.policy import read_policy  # noqa: PLC0415

    at = datetime.now(UTC) if assignee else None
    document = export_odrl(read_policy(file), assignee=assignee, at=at)
    _deliver(json.dumps(document, indent=2, ensure_ascii=False) + "\n", out, as_json=as_json)


@policy_app.command("import-odrl")
@answering
def import_odrl_command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An Offer or Agreement of Ringfence's profile, as JSON.")
    ],
    out: Out = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Write the ODRL policy in FILE as the TOML a data officer edits. What is not understood is refused."""
    from ringfence_policy.odrl import load_odrl  # noqa: PLC0415 - see the module docstring
    from ringfence_policy.policy_text import to_toml  # noqa: PLC0415

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or type(error).__name__
        raise DocumentInvalid("cannot be read", where=str(file), expected="a JSON file in UTF-8", got=got) from error
    policy = load_odrl(text, source=str(file))
    if as_json and out is None:
        _say_json({"policy": policy.reference, "digest": policy.digest, "toml": to_toml(policy)})
        return
    _deliver(to_toml(policy), out, as_json=as_json)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _missing(error: ModuleNotFoundError) -> Fault:
    """What to say where an extra was not installed: the base installation is for auditors and data officers."""
    return Fault(
        "this command needs a library that is not installed",
        got=f"no module named {error.name}",
        next_step="install it for the role: 'ringfence[client]' for a data holder, 'ringfence[all]' to run and to show",
    )


def _refused_by_the_system(error: OSError) -> Fault:
    return Fault(
        "the system refused a file, a directory or a connection",
        got=error.strerror or type(error).__name__,
        where=None if error.filename is None else str(error.filename),
        next_step="look at that place: is it there, is it yours, and is there room on the disk?",
    )


def _sentences(policy: "UsagePolicy") -> Iterator[tuple[str | None, str, str]]:
    """Table, clause and sentence of each clause, the ones every policy implies last."""
    from ringfence_policy.clauses import CLAUSES  # noqa: PLC0415 - see the module docstring

    for clause in sorted(CLAUSES.values(), key=lambda clause: clause.table is None):
        yield clause.table, clause.id, clause.sentence(policy)


def _policies_in(given: Path) -> list[Path]:
    """`given` itself, or every policy in the directory `given`: `policy.toml`, and any TOML with a `[policy]` table."""
    if not given.is_dir():
        return [given]
    found = {path for path in given.rglob("*.toml") if path.name == "policy.toml" or _names_a_policy(path)}
    found |= {path.with_name("policy.toml") for path in given.rglob("holder.toml")}  # a holder without one has a fault
    if not found:
        raise DocumentInvalid(
            "no policy here",
            where=str(given),
            expected="a TOML file with a [policy] table",
            got="none",
            next_step="name a policy, or a directory that has some; `ringfence policy library` shows ready ones",
        )
    return sorted(found)


def _names_a_policy(path: Path) -> bool:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return True  # let the check say what is wrong with it
    return any(line.strip().startswith(b"[policy]") for line in lines)


def _examined(path: Path) -> dict[str, Any]:
    from ringfence_policy.gate import PolicyGate  # noqa: PLC0415 - see the module docstring
    from ringfence_policy.policy import read_policy  # noqa: PLC0415

    try:
        policy = read_policy(path)
        _prove(PolicyGate(policy), path)
    except RingfenceError as error:
        return {
            "file": str(path),
            "policy": None,
            "digest": None,
            "error": error.to_document(),
            "message": str(error),
            "exit_code": error.exit_code,
        }
    return {"file": str(path), "policy": policy.reference, "digest": policy.digest, "error": None}


def _prove(gate: Any, path: Path) -> None:
    from ringfence_policy.probes import examine  # noqa: PLC0415 - see the module docstring

    wrong = examine(gate)
    if wrong:
        raise Fault(
            "the compiled policy does not do what it says",
            where=str(path),
            expected="every probe decided as the policy means",
            got=f"{len(wrong)} otherwise, the first: {wrong[0]}",
            next_step="is cedarpy installed? `ringfence doctor` says; otherwise report this",
        )


def _deliver(text: str, out: Path | None, *, as_json: bool) -> None:
    if out is None:
        sys.stdout.write(text)
        return
    _write(out, text)
    if as_json:
        _say_json({"written": str(out)})
    else:
        typer.echo(f"Written: {out}")


def _write(out: Path, text: str) -> None:
    """Write `text` to `out` whole or not at all."""
    beside = out.with_name(out.name + ".partial")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, out)  # noqa: PTH105 - named for what it does: atomic
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DocumentInvalid(
            "cannot be written",
            where=str(out),
            expected="a writable place",
            got=error.strerror,
            next_step="choose another place with --out, or make that directory",
        ) from error


def _say_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))

"""`ringfence evidence`: hand a run's proof out, and check one that was handed over."""

import json
import shutil
from pathlib import Path

import typer
from rich.table import Table

from ringfence_policy.errors import ScenarioInvalid, UsageError
from ringfence_policy.ledger import now_ms
from ringfence_policy.shell_words import typed
from ringfence_policy.terminal import terminal
from ringfence_policy.verify import UNPROVEN, read_roots, roots_document, verify_bundle


def export(run_name: str, *, directory: Path, out: Path, as_json: bool) -> None:
    """Copy a finished run's bundle to `out`, and its root keys beside it.

    Raises:
        ScenarioInvalid: There is no such run, or it is not finished.
        UsageError: A file is in the way.
    """
    # Not at the top: an auditor verifies without what a coordinator needs to run (Flower, safetensors).
    from ringfence_server.evidence import roots_of_run  # noqa: PLC0415
    from ringfence_server.run_file import RunFile  # noqa: PLC0415

    given = Path(run_name)
    run = RunFile.load(given if (given / "run.json").exists() else directory / "runs" / run_name)
    bundle = Path(run.directory) / "evidence.zip"
    if not bundle.exists():
        raise ScenarioInvalid(
            "this run is not finished, so its evidence was not gathered",
            where=run.directory,
            next_step=f"go on with it: ringfence run --resume {typed(run.root)}",
        )
    roots = out.with_name(f"{out.stem}.roots.json")
    for file in (out, roots):
        if file.exists():
            raise UsageError(
                "there is something of that name",
                where=str(file),
                next_step="choose another name with --out: nothing is overwritten",
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(bundle, out)
    roots.write_text(json.dumps(roots_document(roots_of_run(run)), indent=1))
    if as_json:
        typer.echo(json.dumps({"run": run.run_id, "bundle": str(out), "roots": str(roots)}))
        return
    typer.echo(f"{out} and {roots}")
    typer.echo("Whoever verifies should learn the root keys from each data holder, not from this file.")


def verify(bundle: Path, *, root: Path, as_json: bool) -> int:
    """Verify a bundle. Exit code 0 when every check passed, 3 when one failed.

    Raises:
        UsageError: There is no such bundle, or the file of root keys is none.
    """
    if not bundle.is_file():
        raise UsageError(
            "no such file",
            expected="a bundle of evidence, as a run or `ringfence evidence export` leaves it",
            got="a directory" if bundle.is_dir() else "nothing",
            where=str(bundle),
            next_step="look at the name: a run leaves evidence.zip in its directory",
        )
    verification = verify_bundle(bundle, read_roots(root), now_ms=now_ms())
    if as_json:
        document = {
            "verified": verification.passed,
            "run": verification.run_id,
            "rehearsal": verification.rehearsal,
            "checks": [vars(check) for check in verification.checks],
            "not_proved": list(UNPROVEN),
        }
        typer.echo(json.dumps(document))
        return 0 if verification.passed else 3
    console = terminal()
    table = Table(title=f"Evidence of run {verification.run_id or 'unknown'}", title_justify="left")
    for column in ("check", "", "finding"):
        table.add_column(column, overflow="fold")
    for check in verification.checks:
        mark, style = ("✓", None) if check.passed else ("✗", "bold red")
        table.add_row(check.name, mark, check.detail, style=style)
    console.print(table)
    if verification.rehearsal:
        console.print("This run was a rehearsal with seeded noise: NOT PRIVATE", style="bold white on red")
    console.print("Not proved by any bundle:")
    for words in UNPROVEN:
        console.print(f"  - {words}", highlight=False, soft_wrap=True)
    verdict, style = ("VERIFIED", "bold green") if verification.passed else ("NOT VERIFIED", "bold red")
    console.print(verdict, style=style)
    return 0 if verification.passed else 3

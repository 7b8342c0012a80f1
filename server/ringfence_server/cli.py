"""`ringfence`: the coordinator's, researcher's, auditor's and workshop's commands.

Nothing but Typer is imported until a command runs, so that `--help` answers at once. Exit codes: 0 done, 1 fault,
2 wrong usage, 3 refused by policy. A refusal is an answer: it has no traceback.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from ringfence_policy.cli import answering, policy_app, run_command_line
from ringfence_policy.shell_words import typed
from ringfence_server.cli_control import control_app, workshop
from ringfence_server.cli_coordinator import coordinator_app

app = typer.Typer(
    name="ringfence",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # a crash must not print keys or records that happen to be in scope
    help="Train one model across data holders while every record, rule and privacy budget stays with its owner.",
)
scenario_app = typer.Typer(no_args_is_help=True, help="List, show and copy scenarios.")
ledger_app = typer.Typer(no_args_is_help=True, help="What was spent of each holder's privacy budget.")
evidence_app = typer.Typer(no_args_is_help=True, help="Export a run's evidence, and verify it offline.")
app.add_typer(policy_app, name="policy")
app.add_typer(scenario_app, name="scenario")
app.add_typer(ledger_app, name="ledger")
app.add_typer(evidence_app, name="evidence")
app.add_typer(coordinator_app, name="coordinator")
app.add_typer(control_app, name="control")
app.command()(workshop)

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A scenario directory.")]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", min=0, help="Rehearse with seeded, repeatable noise: NOT PRIVATE."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where results go.")]


@app.command()
@answering
def demo(
    *,
    scenario: Annotated[str, typer.Option("--scenario", metavar="NAME", help="A bundled scenario.")] = "heart",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where scenario and results go.")] = Path(
        "ringfence-demo"
    ),
    seed: Seed = None,
    processes: Annotated[
        bool, typer.Option("--processes", help="As a deployment on this machine: processes, TLS and walls for each.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train on four real hospitals under policy, from a fresh copy of a bundled scenario."""
    if processes:
        from ringfence_server.demo_processes import demonstrate_in_processes  # noqa: PLC0415

        raise typer.Exit(demonstrate_in_processes(scenario, out=out, seed=seed, as_json=as_json))
    from ringfence_server.cli_run import demonstrate  # noqa: PLC0415 -- see the module docstring

    raise typer.Exit(demonstrate(scenario, out=out, seed=seed, as_json=as_json))


@app.command()
@answering
def run(
    directory: Directory,
    *,
    plan: Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="Instead of DIR/plan.toml.")] = None,
    out: Out = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was interrupted.")] = False,
    superlink: Annotated[
        str | None,
        typer.Option("--superlink", metavar="HOST:PORT", help="For a deployment: its SuperLink, on this machine."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            max=256,
            help="Share simulated holders out over N processes. By default one for each 25, no more than cores.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the plan of DIR over its data holders. Budgets go on from what earlier runs spent."""
    from ringfence_server.cli_run import run_directory  # noqa: PLC0415

    raise typer.Exit(
        run_directory(
            directory,
            plan=plan,
            out=out,
            seed=seed,
            resume=resume,
            superlink=superlink,
            processes=workers,
            as_json=as_json,
        )
    )


@policy_app.command()
@answering
def preview(
    directory: Directory,
    *,
    plan: Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="Instead of DIR/plan.toml.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say before any training who would refuse the plan of DIR, why, and what change would make it pass."""
    from ringfence_server.cli_show import show_preview  # noqa: PLC0415

    raise typer.Exit(show_preview(directory, plan=plan, as_json=as_json))


@app.command()
@answering
def decisions(
    directory: Directory,
    *,
    run_id: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only this run.")] = None,
    holder: Annotated[str | None, typer.Option("--holder", metavar="ID", help="Only this holder.")] = None,
    denied: Annotated[bool, typer.Option("--denied", help="Only denials.")] = False,
    as_json: AsJson = False,
) -> None:
    """List every decision of the coordinator and of each holder in DIR, with the clauses that failed."""
    from ringfence_server.cli_show import show_decisions  # noqa: PLC0415

    show_decisions(directory, run_id=run_id, holder=holder, denied=denied, as_json=as_json)


@app.command()
@answering
def doctor(*, as_json: AsJson = False) -> None:
    """Check that this machine can run Ringfence: engine, noise, keys, ledger, libraries."""
    from ringfence_server.doctor import examine  # noqa: PLC0415

    raise typer.Exit(examine(as_json=as_json))


@scenario_app.command("list")
@answering
def list_scenarios(*, as_json: AsJson = False) -> None:
    """List the bundled scenarios."""
    from ringfence_server.cli_show import show_scenarios  # noqa: PLC0415

    show_scenarios(as_json=as_json)


@scenario_app.command("show")
@answering
def show_scenario(
    name: Annotated[str, typer.Argument(metavar="NAME|DIR", help="A bundled scenario, or a directory.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show a scenario's plan, holders and terms."""
    from ringfence_server.cli_show import show_one_scenario  # noqa: PLC0415

    show_one_scenario(name, as_json=as_json)


@scenario_app.command("new")
@answering
def new_scenario(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.")],
    *,
    source: Annotated[str, typer.Option("--from", metavar="NAME", help="The bundled scenario to copy.")] = "heart",
    as_json: AsJson = False,
) -> None:
    """Copy a bundled scenario to DIR, to change it and run it."""
    from ringfence_server.scenario import bundled_scenario, copy_scenario  # noqa: PLC0415

    copy_scenario(bundled_scenario(source), directory)
    if as_json:
        typer.echo(json.dumps({"directory": str(directory), "from": source}))
    else:
        named = typed(directory)
        typer.echo(f"{directory} is ready. Next: ringfence policy preview {named}, ringfence run {named}")


@ledger_app.command("show")
@answering
def show_ledger(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A scenario, or one holder's directory.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show what was spent of each budget and what is left."""
    from ringfence_server.cli_show import show_meters  # noqa: PLC0415

    show_meters(directory, as_json=as_json)


@evidence_app.command("export")
@answering
def export_evidence(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="A run's directory, or its id.")],
    *,
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The scenario, where RUN is an id.")] = Path(),
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The bundle to write.")] = Path("evidence.zip"),
    as_json: AsJson = False,
) -> None:
    """Write the evidence of a finished run, and the root keys as this coordinator knows them, beside it."""
    from ringfence_server.cli_evidence import export  # noqa: PLC0415

    export(run_name, directory=directory, out=out, as_json=as_json)


@evidence_app.command("verify")
@answering
def verify_evidence(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The evidence to verify.")],
    *,
    root: Annotated[Path, typer.Option("--root", metavar="KEYS", help="Root public keys, learnt from their owners.")],
    as_json: AsJson = False,
) -> None:
    """Verify a bundle offline, with nothing but the bundle and the root public keys."""
    from ringfence_server.cli_evidence import verify  # noqa: PLC0415

    raise typer.Exit(verify(bundle, root=root, as_json=as_json))


def main() -> None:
    """Run `ringfence`."""
    run_command_line(app)


if __name__ == "__main__":
    main()

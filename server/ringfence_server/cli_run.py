"""`ringfence run` and `ringfence demo`: start a run's process, and end it when this one is interrupted."""

import json
import tempfile
from pathlib import Path

import typer

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import UsageError
from ringfence_policy.shell_words import typed
from ringfence_server.deployment import is_deployment
from ringfence_server.following import events_so_far, follow_run, following
from ringfence_server.forecast import forecast, forecast_document
from ringfence_server.interruption import termination_interrupts
from ringfence_server.occupation import occupied
from ringfence_server.run_file import RunFile, new_run_id, start_run, unfinished_run
from ringfence_server.scenario import bundled_scenario, copy_scenario, load_scenario
from ringfence_server.worker_process import WorkerProcess, processes_for, worker_process

_DEMO_MARK = "ringfence-demo.json"


def demonstrate(name: str, *, out: Path, seed: int | None, as_json: bool) -> int:
    """Copy a bundled scenario to a fresh place and run it. An earlier demonstration is kept under another name."""
    scenario = fresh_copy(name, out=out, as_json=as_json)
    return run_directory(scenario, plan=None, out=out, seed=seed, resume=False, as_json=as_json)


def fresh_copy(name: str, *, out: Path, as_json: bool) -> Path:
    """Copy a bundled scenario to where a demonstration's results go, and say where it lies."""
    source = bundled_scenario(name)
    _make_place(out)
    if any(out.iterdir()):
        _move_away(out, as_json=as_json)
    copy_scenario(source, out / name)
    write_durably(out / _DEMO_MARK, json.dumps({"scenario": name}).encode())
    return out / name


def run_directory(
    directory: Path, *, plan: Path | None, out: Path | None, seed: int | None, resume: bool, as_json: bool,
    superlink: str | None = None, processes: int | None = None,
) -> int:  # fmt: skip
    """Run a scenario directory in processes of its own, or a deployment over its SuperLink, and follow it.

    Args:
        directory: The scenario or deployment.
        plan: The plan, where it is not the directory's own.
        out: Where results go.
        seed: Makes the run a rehearsal: NOT PRIVATE.
        resume: Go on with the run that was interrupted.
        as_json: Say the end as JSON, and nothing before.
        superlink: The SuperLink of a deployment.
        processes: Over how many processes a scenario's holders are shared out; by default as its size is worth.

    Returns:
        The exit code.

    Raises:
        UsageError: Results cannot be written to `out`, or what was asked for does not fit the directory.
    """
    if out is not None:
        _make_place(out)
    if is_deployment(directory):
        _refuse_workers(processes)
        from ringfence_server.cli_deployed import run_deployment  # noqa: PLC0415 -- Flower, needed only here

        return run_deployment(
            directory, plan=plan, out=out, seed=seed, resume=resume, superlink=superlink, as_json=as_json
        )
    if superlink is not None:
        raise UsageError(
            "this directory is no deployment, so there is no SuperLink for it",
            where=str(directory),
            next_step=f"`ringfence run {typed(directory)}` runs a scenario on this machine; "
            "`ringfence coordinator init DIR` makes a deployment",
        )
    if resume:
        unfinished_run(directory)
        with occupied(directory) as lock, termination_interrupts():
            run = unfinished_run(directory).next_attempt()
            run.save()
            start = events_so_far(run)
            count = processes or processes_for(len(run.cards))
            with worker_process(Path(run.directory), lock, processes=count) as worker:
                return _follow(run, worker, as_json=as_json, start=start)
    scenario = load_scenario(directory, plan=plan)
    plans = [scenario.plan, *scenario.other_plans().values()] if plan is None else [scenario.plan]
    run_id, count = new_run_id(), processes or processes_for(len(scenario.holders))
    place = directory.resolve() / "runs" / run_id
    with (
        occupied(directory) as lock,
        termination_interrupts(),
        worker_process(place, lock, processes=count) as worker,
    ):
        previews = [forecast_document(one, forecast(scenario, one)) for one in plans]
        run = start_run(scenario, out=out, seed=seed, run_id=run_id)
        write_durably(Path(run.directory) / "preview.json", json.dumps(previews).encode())
        return _follow(run, worker, as_json=as_json, start=0)


def _refuse_workers(processes: int | None) -> None:
    if processes is not None:
        raise UsageError(
            "the data holders of a deployment have processes of their own",
            where="--workers",
            next_step="leave it out: it is for a scenario, whose holders are simulated on this machine",
        )


def _make_place(out: Path) -> None:
    """Make the directory for results: a run that could not write them would have spent every budget for nothing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return
    except OSError as error:
        raise UsageError(
            "results cannot be written there",
            expected="a directory that can be written to",
            got=error.strerror or type(error).__name__,
            where=str(out),
            next_step="choose another one with --out; nothing was trained",
        ) from None


def _follow(run: RunFile, worker: WorkerProcess, *, as_json: bool, start: int) -> int:
    with following(run, resume="--resume"):
        worker.begin()
        return follow_run(run, worker, as_json=as_json, start=start)


def _move_away(out: Path, *, as_json: bool) -> None:
    if not (out / _DEMO_MARK).exists():
        raise UsageError(
            "the directory is in use for something else",
            expected="a new directory, or that of an earlier demonstration",
            where=str(out),
            next_step="choose another one with --out: nothing is overwritten",
        )
    number = 1
    while (kept := out.with_name(f"{out.name}.{number}")).exists():
        number += 1
    out.rename(kept)
    if not as_json:
        typer.echo(f"The earlier demonstration is kept as {kept}: its holders' budgets are spent, so this one is new.")

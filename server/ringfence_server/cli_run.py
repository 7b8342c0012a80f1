"""`ringfence run` and `ringfence demo`: start a run's process, show what happens in it, and say how it ended."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import RunFailed, UsageError
from ringfence_server.events import follow
from ringfence_server.forecast import forecast, forecast_document
from ringfence_server.occupation import name_occupant, occupied
from ringfence_server.progress import Progress
from ringfence_server.run_file import RunFile, start_run, unfinished_run
from ringfence_server.scenario import bundled_scenario, copy_scenario, load_scenario

_DEMO_MARK = "ringfence-demo.json"
_WORKER_LOG = "worker.log"
_GRACE_SECONDS = 10


def demonstrate(name: str, *, out: Path, seed: int | None, as_json: bool) -> int:
    """Copy a bundled scenario to a fresh place and run it. An earlier demonstration is kept under another name."""
    source = bundled_scenario(name)
    if out.exists() and any(out.iterdir()):
        _move_away(out, as_json=as_json)
    copy_scenario(source, out / name)
    write_durably(out / _DEMO_MARK, json.dumps({"scenario": name}).encode())
    return run_directory(out / name, plan=None, out=out, seed=seed, resume=False, as_json=as_json)


def run_directory(
    directory: Path, *, plan: Path | None, out: Path | None, seed: int | None, resume: bool, as_json: bool
) -> int:
    """Run a scenario directory in a process of its own and follow it. Returns the exit code."""
    if resume:
        unfinished_run(directory)
        with occupied(directory) as lock:
            run = unfinished_run(directory).next_attempt()
            run.save()
            return _follow(run, lock, as_json=as_json)
    scenario = load_scenario(directory, plan=plan)
    plans = [scenario.plan, *scenario.other_plans().values()] if plan is None else [scenario.plan]
    previews = [forecast_document(one, forecast(scenario, one)) for one in plans]
    with occupied(directory) as lock:
        run = start_run(scenario, out=out, seed=seed)
        write_durably(Path(run.directory) / "preview.json", json.dumps(previews).encode())
        return _follow(run, lock, as_json=as_json)


def _follow(run: RunFile, lock: int, *, as_json: bool) -> int:
    events = Path(run.directory) / "events.jsonl"
    start = events.stat().st_size if events.exists() else 0
    failure: dict[str, Any] | None = None
    with _worker(run, lock) as worker, Progress(run, quiet=as_json) as progress:
        for event in follow(events, is_over=lambda: worker.poll() is not None, start=start):
            progress.show(event)
            if event["event"] == "run-failed":
                failure = event
        code = worker.wait()
    if failure is not None:
        return _say_failure(failure["error"], code, as_json=as_json)
    if code != 0:
        raise RunFailed(
            "the run's process was ended",
            got=f"signal {-code}" if code < 0 else f"exit code {code}",
            where=str(Path(run.directory) / _WORKER_LOG),
            next_step=f"what was committed is kept: ringfence run --resume {run.root}",
        )
    return _say_result(Path(run.out), as_json=as_json)


@contextmanager
def _worker(run: RunFile, lock: int) -> Iterator[subprocess.Popen[bytes]]:
    """The run's own process. It ends when this one is interrupted, and goes on when this one is killed."""
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))}
    with (Path(run.directory) / _WORKER_LOG).open("ab") as log:
        worker = subprocess.Popen(  # noqa: S603 -- our own module, with a path we made
            [sys.executable, "-m", "ringfence_server.worker", run.directory],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the other in its own way
        )
    name_occupant(lock, worker.pid)
    try:
        with _termination_interrupts():
            yield worker
    except KeyboardInterrupt:
        raise RunFailed(
            "the run was interrupted",
            where=run.directory,
            next_step=f"what was committed is kept: ringfence run --resume {run.root}",
        ) from None
    finally:
        _end(worker)


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, so that whoever stops this process stops the run with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        worker.terminate()
        try:
            worker.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _say_failure(error: dict[str, Any], code: int, *, as_json: bool) -> int:
    if as_json:
        typer.echo(json.dumps({"error": error}))
    else:
        lines = [error["summary"]] + [
            f"  {label:9} {error[key]}"
            for key, label in (("expected", "expected:"), ("got", "got:"), ("where", "where:"), ("next_step", "next:"))
            if error[key]
        ]
        typer.echo("\n".join(lines), err=True)
    return code


def _say_result(out: Path, *, as_json: bool) -> int:
    summary = json.loads((out / "summary.json").read_text())
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        from ringfence_server.closing_page import show_summary  # noqa: PLC0415 -- rich, needed only here

        show_summary(summary, out)
    return 0 if summary["status"] == "completed" else 3


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

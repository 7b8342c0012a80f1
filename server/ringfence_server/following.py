"""Following a run to its end: its events are shown, an interruption stops it, and its end is said."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import typer

from ringfence_policy.errors import RunFailed
from ringfence_policy.shell_words import typed
from ringfence_server.events import follow
from ringfence_server.interruption import termination_interrupts
from ringfence_server.progress import Progress
from ringfence_server.run_file import RunFile


class Followed(Protocol):
    """Whatever carries a run out."""

    @property
    def log(self) -> Path:
        """Where to read on when it ends badly."""

    def is_over(self) -> bool:
        """Whether it ended."""

    def trouble(self) -> str | None:
        """How it ended where it did not end well; asked once, when it is over."""


@contextmanager
def following(run: RunFile, *, resume: str) -> Iterator[None]:
    """Take Ctrl-C, and SIGTERM like it, as the end of the run, and say from where it goes on.

    Args:
        run: The run.
        resume: The options that take it up again.

    Raises:
        RunFailed: This process was interrupted.
    """
    try:
        with termination_interrupts():
            yield
    except KeyboardInterrupt:
        raise RunFailed(
            "the run was interrupted",
            where=run.directory,
            next_step=f"what was committed is kept: ringfence run {resume} {typed(run.root)}",
        ) from None


def events_so_far(run: RunFile) -> int:
    """Where the events of the next attempt at a run begin."""
    path = _events(run)
    return path.stat().st_size if path.exists() else 0


def follow_run(run: RunFile, followed: Followed, *, as_json: bool, resume: str = "--resume", start: int = 0) -> int:
    """Show what happens in a run until it is over, and how it ended.

    Args:
        run: The run.
        followed: What carries it out.
        as_json: Say the end as JSON, and nothing before.
        resume: The options that take the run up again.
        start: Where in the run's events this attempt begins.

    Returns:
        The exit code.

    Raises:
        RunFailed: It ended without a word.
    """
    failure: dict[str, Any] | None = None
    with Progress(run, quiet=as_json) as progress:
        for event in follow(_events(run), is_over=followed.is_over, start=start):
            progress.show(event)
            # It is the last event of an attempt: whatever comes after it is of one that went on.
            failure = event if event["event"] == "run-failed" else None
    trouble = followed.trouble()
    if failure is not None:
        return _say_failure(failure["error"], failure["exit_code"], as_json=as_json)
    if trouble is not None:
        raise RunFailed(
            "the run's process was ended",
            got=trouble,
            where=str(followed.log),
            next_step=f"what was committed is kept: ringfence run {resume} {typed(run.root)}",
        )
    return _say_result(Path(run.out), as_json=as_json)


def _events(run: RunFile) -> Path:
    return Path(run.directory) / "events.jsonl"


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

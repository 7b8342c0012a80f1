"""A run as it happens, on a terminal: rounds by holders, refusals with their clause, budgets filling up."""

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ringfence_policy.terminal import terminal
from ringfence_server.outcome import NO_REPLY
from ringfence_server.run_file import RunFile


class Progress:
    """Shows events. On a terminal one picture that is drawn again and again; elsewhere a line for each round.

    Args:
        run: The run.
        quiet: Show nothing, for a caller that wants JSON only.
    """

    def __init__(self, run: RunFile, *, quiet: bool) -> None:
        self._run = run
        self._quiet = quiet
        self._console = terminal(sys.stderr if quiet else sys.stdout)
        self._holders = sorted(run.cards)  # ids, not names: a row must fit a terminal
        self._caps: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self._rounds: list[dict[str, Any]] = []
        self._planned = 0
        self._state = "starting: loading libraries, reading policies"
        self._rehearsal = False
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            self._live = Live(self._picture(), console=self._console, refresh_per_second=8)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._picture())
            self._live.__exit__(kind, error, trace)

    def show(self, event: dict[str, Any]) -> None:
        """Take one event in."""
        name = event["event"]
        if name == "run-started":
            self._caps, self._planned = event["caps"], event["rounds"]
            self._spent = dict(event["spent"])
            self._rehearsal = event["rehearsal"]
            self._state = "training"
            for holder, clauses in event["refused"].items():
                words = "is not heard" if clauses == [NO_REPLY] else f"refuses the plan: {', '.join(clauses)}"
                self._line(f"{holder} {words}")
        elif name == "round-opened":
            self._state = f"round {event['round']}: {len(event['cohort'])} of {len(self._holders)} data holders train"
        elif name == "round-closed":
            outcome = event["outcome"]
            self._rounds.append(outcome)
            self._spent |= outcome["epsilon"]
            self._line(_sentence(outcome))
        elif name == "evaluating":
            self._state = "measuring the model, asking for its release, gathering evidence, drawing the report"
        elif name == "run-finished":
            self._state = "done"
        if self._live is not None:
            self._live.update(self._picture())

    def _line(self, text: str) -> None:
        if not self._quiet and self._live is None:
            self._console.print(text, highlight=False, soft_wrap=True)

    def _picture(self) -> Group:
        banner = [Text(" REHEARSAL: NOT PRIVATE ", style="bold white on red")] if self._rehearsal else []
        state = Text(f"{self._state}", style="bold" if self._state != "done" else "bold green")
        return Group(*banner, self._grid(), self._budgets(), state)

    def _grid(self) -> Table:
        table = Table(title=f"Run {self._run.run_id}", title_justify="left")
        table.add_column("round", justify="right")
        for holder in self._holders:
            table.add_column(holder, overflow="fold")
        table.add_column("accuracy", justify="right")
        table.add_column("AUC", justify="right")
        for outcome in self._rounds:
            metrics = outcome["metrics"] or {}
            cells = [_cell(outcome, holder) for holder in self._holders]
            number = f"{outcome['round']}/{self._planned}"
            table.add_row(number, *cells, _figure(metrics.get("accuracy")), _figure(metrics.get("auc")))
        return table

    def _budgets(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for holder, cap in sorted(self._caps.items()):
            spent = self._spent.get(holder, 0.0)
            full = cap <= 0 or spent / cap > 0.95  # noqa: PLR2004 -- the colour of nearly nothing left
            bar = ProgressBar(total=max(cap, 1e-9), completed=min(spent, cap), width=30,
                              complete_style="red" if full else "cyan", finished_style="red")  # fmt: skip
            table.add_row(holder, bar, f"epsilon {spent:.2f} of {cap:g}")
        return table


def _cell(outcome: dict[str, Any], holder: str) -> Text:
    if holder in _trained(outcome):
        return Text("✓ trains", style="green")
    for rejected in outcome["rejected_updates"]:
        if rejected["holder"] == holder:
            return Text(f"! {rejected['code']}", style="bold red")
    for refusal in outcome["refused"]:
        if refusal["holder"] == holder:
            return Text(f"✗ {', '.join(refusal['clauses'])}", style="yellow")
    return Text("-", style="dim")


def _trained(outcome: dict[str, Any]) -> list[str]:
    """Who was asked and neither refused at home nor sent what cannot be used."""
    without = {one["holder"] for one in (*outcome["refused"], *outcome["rejected_updates"])}
    return [holder for holder in outcome["cohort"] if holder not in without]


def _sentence(outcome: dict[str, Any]) -> str:
    parts = [f"round {outcome['round']}: {', '.join(_trained(outcome)) or 'nobody'} trained"]
    parts += [f"{one['holder']} {_answer(one['clauses'])}" for one in outcome["refused"]]
    parts += [f"{one['holder']}'s update was rejected ({one['code']})" for one in outcome["rejected_updates"]]
    metrics = outcome["metrics"]
    if metrics and metrics["accuracy"] is not None:
        parts.append(f"accuracy {metrics['accuracy']:.3f}")
    if not outcome["committed"]:
        parts.append(f"not committed: {outcome['reason']}")
    return "; ".join(parts)


def _answer(clauses: Sequence[str]) -> str:
    return "was not heard" if list(clauses) == [NO_REPLY] else f"refused ({', '.join(clauses)})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

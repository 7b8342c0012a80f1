"""The report of a run: one self-contained page, made from summary.json's content alone.

The page asks the network for nothing, runs no script, and forbids both to itself by a content security policy; every
string of the summary is escaped by the template, because names, titles and reasons come from files that users wrote.
Jinja2 and matplotlib are imported when a page is rendered, not when this module is.
"""

import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from ringfence_server import charts
from ringfence_server import report_words as words
from ringfence_server.report_facts import Holder, Round, Run, read_summary

if TYPE_CHECKING:
    from jinja2 import Environment

_ROUNDS_WITH_WORDS: Final = 14  # with more columns a cell has room for its symbol only


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """What one round was to one holder. `state` is the style; symbol and sentence say the same without colour."""

    state: str
    symbol: str
    label: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """One data holder's way through the rounds."""

    holder: str
    cells: tuple[GridCell, ...]


@dataclass(frozen=True, kw_only=True)
class BudgetBar:
    """One holder's epsilon budget; widths are percentages of the bar, the cap (or the spend, if larger) being 100."""

    holder: str
    before_width: float
    run_width: float
    before: str
    run: str
    left: str
    cap: str
    spent: str
    over: bool
    exhausted: bool


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One key figure: a short value, what it is, and one line of context."""

    value: str
    name: str
    context: str
    tone: str = "plain"


def write_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write a run's report as one HTML file that needs nothing else.

    The file appears whole or not at all: it is written beside `path` and moved into place.

    Args:
        summary: The content of summary.json. Missing and null parts are left out of the page.
        path: Where the page goes, by convention `report.html`. Its directory is made if it is missing.
    """
    page = render_report(summary)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)
        Path(draft).chmod(0o644)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def render_report(summary: Mapping[str, Any]) -> str:
    """The page as text. The same summary gives the same text."""
    from markupsafe import Markup  # noqa: PLC0415  # comes with Jinja2, see _environment

    run = read_summary(summary)
    measures: tuple[tuple[charts.Measure, str], ...] = (("accuracy", "Accuracy"), ("auc", "AUC"))
    # Markup is safe here: charts.py escapes every name through the XML writer, and swatches hold no summary text.
    drawn = {
        "rounds": [(name, Markup(charts.rounds_chart(run, measure=measure))) for measure, name in measures],  # noqa: S704
        "holders": [(name, Markup(charts.holders_chart(run, measure=measure))) for measure, name in measures],  # noqa: S704
        "budget": Markup(charts.budget_chart(run)),  # noqa: S704
    }
    series = [(entry, Markup(charts.swatch(entry)), _scores_of(run, entry.key)) for entry in charts.series_of(run)]  # noqa: S704
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            words=words,
            verdict=words.verdict(run),
            figures=_figures(run),
            charts=drawn,
            series=series,
            grid=grid_rows(run),
            grid_has_words=len(run.rounds) <= _ROUNDS_WITH_WORDS,
            stories=words.refusal_stories(run),
            budgets=tuple(budget_bar(holder) for holder in run.holders),
            verify_command=f"ringfence evidence verify {shlex.quote(PurePosixPath(run.bundle).name)} --root roots.json",
        )
    )


def grid_rows(run: Run) -> tuple[GridRow, ...]:
    """The permits and refusals, a row per holder and a cell per attempt at a round."""
    return tuple(
        GridRow(holder=holder.name, cells=tuple(_cell(entry, holder) for entry in run.rounds)) for holder in run.holders
    )


def budget_bar(holder: Holder) -> BudgetBar:
    """A holder's budget as a bar.

    Epsilon does not add up: "this run" is the growth of the whole spend, which is what the run cost the holder.
    """
    spent, before, cap = holder.epsilon or 0.0, holder.epsilon_at_start or 0.0, holder.epsilon_cap
    before = min(before, spent)
    whole = max(cap or 0.0, spent) or 1.0
    return BudgetBar(
        holder=holder.name,
        before_width=round(100 * before / whole, 3),
        run_width=round(100 * (spent - before) / whole, 3),
        before=words.epsilon(before),
        run=words.epsilon(spent - before),
        left=words.NOT_KNOWN if cap is None else words.epsilon_left(cap=cap, spent=spent),
        cap=words.three_decimals(cap),
        spent=words.epsilon(holder.epsilon),
        over=cap is not None and spent > cap,
        exhausted=cap is not None and words.epsilon_left(cap=cap, spent=spent) == "0",
    )


def _cell(entry: Round, holder: Holder) -> GridCell:
    start = f"Round {entry.number}, {holder.name}:"
    refusal = next((item for item in entry.refusals if item.holder == holder.id), None)
    rejection = next((item for item in entry.rejections if item.holder == holder.id), None)
    if rejection is not None:
        why = f"{rejection.reason.rstrip('.') or 'no reason given'} ({rejection.code or 'no code'})"
        return GridCell(
            state="rejected",
            symbol="!",
            label="bad update",
            sentence=f"{start} update rejected before aggregation: {why}.",
        )
    if refusal is not None:
        more = f" +{len(refusal.clauses) - 1}" if len(refusal.clauses) > 1 else ""
        label = words.clauses(refusal.clauses[:1]) + more
        return GridCell(state="refused", symbol="✕", label=label, sentence=f"{start} {words.refusal_words(refusal)}")
    if holder.id in entry.cohort and entry.committed:
        spent = entry.epsilon.get(holder.id)
        so_far = "" if spent is None else f" Epsilon spent so far: {words.epsilon(spent)}."
        return GridCell(state="permitted", symbol="✓", label="", sentence=f"{start} permitted, took part.{so_far}")
    if holder.id in entry.cohort:
        return GridCell(
            state="void",
            symbol="○",
            label="void",
            sentence=f"{start} permitted, but {words.not_committed(entry)}",
        )
    return GridCell(state="absent", symbol="·", label="", sentence=f"{start} not asked.")


def _scores_of(run: Run, key: str) -> tuple[str, str]:
    scores = words.federated_scores(run) if key == "federated_private" else run.final.get(key)
    return (
        (words.NOT_KNOWN,) * 2 if scores is None else (words.percent(scores.accuracy), words.three_decimals(scores.auc))
    )


def _figures(run: Run) -> tuple[Figure, ...]:
    """The numbers that belong on the first screen."""
    accuracy, auc = _scores_of(run, "federated_private")
    pooled = _scores_of(run, "pooled")
    done, refused = words.committed_rounds(run), sum(len(entry.refusals) for entry in run.rounds)
    rejected = sum(len(entry.rejections) for entry in run.rounds)
    held = sum(check.passed for check in run.checks)
    spent = words.highest_epsilon(run)
    return (
        Figure(value=accuracy, name="accuracy", context=f"pooled records would give {pooled[0]}"),
        Figure(value=auc, name="AUC", context=f"pooled records would give {pooled[1]}"),
        Figure(
            value=words.epsilon(spent) if run.private else "not private",
            name="highest epsilon" if run.private else "rehearsal" if run.rehearsal else "no protection",
            context=f"per {run.privacy.unit or 'record'}, over all runs so far"
            if run.private
            else "no privacy may be claimed",
            tone="plain" if run.private else "bad",
        ),
        Figure(
            value=f"{done}/{run.plan.rounds}" if run.plan.rounds else str(done),
            name="rounds committed",
            context=words.counted(len(run.holders), "data holder"),
        ),
        Figure(
            value=str(refused),
            name="uses refused by policy",
            context=f"{words.counted(rejected, 'update')} rejected by the checks",
        ),
        Figure(
            value="verified" if run.verified else "not verified",
            name="evidence",
            context=f"{held} of {words.counted(len(run.checks), 'check')} hold",
            tone="good" if run.verified else "bad",
        ),
    )


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  # only a run that reports needs it

    return Environment(
        loader=PackageLoader("ringfence_server", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

"""The last thing a run shows on the terminal: what came out, what it cost, whether it can be proved, where it lies."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ringfence_policy.shell_words import typed
from ringfence_policy.terminal import terminal

_LINES = {
    "federated_private": "together, under policy, private",
    "federated": "together, without privacy (comparison)",
    "local": "each hospital alone (comparison)",
    "pooled": "all records in one place (comparison)",
}


def show_summary(summary: dict[str, Any], out: Path) -> None:
    """Print a summary as tables."""
    console = terminal()
    if summary["rehearsal"]:
        console.print("REHEARSAL with seeded noise: NOT PRIVATE", style="bold white on red")
    console.print()
    console.print(_figures(summary))
    console.print(summary["references_note"], highlight=False, soft_wrap=True)
    console.print(_budgets(summary))
    for plan in summary["preview"][1:]:
        _say_preview(console, plan)
    verified, checks = summary["evidence"]["verified"], summary["evidence"]["checks"]
    passed = sum(check["passed"] for check in checks)
    console.print(
        f"Evidence: {'verified' if verified else 'NOT VERIFIED'} ({passed} of {len(checks)} checks)",
        style="green" if verified else "bold red",
    )
    if summary["reason"]:
        console.print(f"{summary['status'].capitalize()}: {summary['reason']}.", style="yellow")
    console.print(f"Results in {out}: report.html, summary.json, model.safetensors, evidence.zip", soft_wrap=True)
    bundle, roots = typed(out / "evidence.zip"), typed(out / "roots.json")
    console.print(f"Check it yourself: ringfence evidence verify {bundle} --root {roots}", soft_wrap=True)


def _figures(summary: dict[str, Any]) -> Table:
    table = Table(title=summary["title"], title_justify="left")
    table.add_column("model")
    table.add_column("accuracy", justify="right")
    table.add_column("AUC", justify="right")
    for line, words in _LINES.items():
        scores = summary["metrics"][line]
        if scores is not None:
            table.add_row(words, _figure(scores["accuracy"]), _figure(scores["auc"]))
    return table


def _budgets(summary: dict[str, Any]) -> Table:
    table = Table(title="Privacy budgets", title_justify="left")
    for column in ("data holder", "rounds", "epsilon before", "now", "of", "delta", "noise multiplier"):
        table.add_column(column, justify="left" if column == "data holder" else "right")
    for holder_id, holder in summary["holders"].items():
        table.add_row(
            holder_id,
            str(holder["rounds"]),
            _figure(holder["epsilon_at_start"]),
            _figure(holder["epsilon"]),
            "" if holder["epsilon_cap"] is None else f"{holder['epsilon_cap']:g}",
            "" if holder["delta"] is None else f"{holder['delta']:g}",
            _figure(holder["noise_multiplier"]),
        )
    return table


def _say_preview(console: Console, plan: dict[str, Any]) -> None:
    refusing = [one for one in plan["holders"] if not one["permitted"]]
    console.print(f"Had it been {plan['title'][0].lower()}{plan['title'][1:]} ({plan['purpose']}):", style="bold")
    for one in refusing:
        why = " ".join(failed["meaning"] for failed in one["failed"])
        change = f" It would pass with: {one['change']}" if one["change"] else ""
        console.print(f"  {one['holder']} would refuse. {why}{change}", soft_wrap=True)
    if not refusing:
        console.print("  every data holder would permit it")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

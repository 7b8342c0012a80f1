"""How cost grows: whole runs of `ringfence run`, with more holders, rounds, records or parameters at a time.

Run from a checkout with `pip install -e '.[dev]'`; Linux only:

    python benchmarks/scale.py                                  # all four sweeps
    python benchmarks/scale.py --sweep holders --values 10 100 1000 --rounds 20
    python benchmarks/scale.py --json --plot build/scale.svg

Each line is one process tree of its own on a scenario built for it (`synthetic.py`; keys and papers are made before and
timed apart): wall and CPU time from its start to its end, peak memory, and CPU time per holder and round once the first
round is done.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from process_cost import run_measured
from ringfence_server.events import follow
from synthetic import build_scenario
from where_measured import environment

BASE = {"holders": 30, "rounds": 5, "rows": 512, "width": 64}
SWEEPS: dict[str, tuple[int, ...]] = {
    "holders": (10, 30, 100, 300),
    "rounds": (2, 8, 32),
    "rows": (128, 512, 2048, 8192),
    "width": (16, 64, 256),
}
TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run: what it was, and what it cost."""

    sweep: str
    holders: int
    rounds: int
    rows: int
    parameters: int
    workers: int
    enrolling_seconds: float
    first_round_seconds: float
    wall_seconds: float
    cpu_seconds: float
    peak_mebibytes: float
    steady_cpu_ms: float
    client_rounds_per_second: float


def measure(sweep: str, *, holders: int, rounds: int, rows: int, width: int, workers: int) -> Line:
    """Build a scenario, run it, and say what it cost.

    Raises:
        RuntimeError: The run did not finish, or a holder was left out of a round.
    """
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "scenario"
        built = build_scenario(directory, holders=holders, rows=rows, hidden=(width, width), rounds=rounds)
        command = [str(Path(sys.executable).with_name("ringfence")), "run", str(directory), "--workers", str(workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        cost = run_measured(command, environment=environment, log=Path(place) / "log", timeout_seconds=TIMEOUT_SECONDS)
        if cost.exit_code != 0:
            raise RuntimeError(f"the run ended with {cost.exit_code}: {(Path(place) / 'log').read_text()[-2000:]}")
        (events,) = (directory / "runs").glob("*/events.jsonl")
        closed = [event for event in follow(events, is_over=lambda: True) if event["event"] == "round-closed"]
        if any(len(event["outcome"]["cohort"]) != holders for event in closed):
            raise RuntimeError("a holder was left out of a round")
        ends = [float(event["at"]) for event in closed]
    steady = cost.cpu_seconds_between(ends[0], ends[-1]) / (holders * (rounds - 1))
    return Line(
        sweep=sweep,
        holders=holders,
        rounds=rounds,
        rows=rows,
        parameters=30 * width + width + width * width + width + width + 1,
        workers=workers,
        enrolling_seconds=built.enrolling_seconds,
        first_round_seconds=ends[0] - cost.started_at,
        wall_seconds=cost.wall_seconds,
        cpu_seconds=cost.cpu_seconds,
        peak_mebibytes=cost.peak_resident_bytes / 2**20,
        steady_cpu_ms=steady * 1e3,
        client_rounds_per_second=holders / statistics.median(b - a for a, b in itertools.pairwise(ends)),
    )


def plot(lines: Sequence[Line], path: Path) -> None:
    """Draw CPU time per holder and round, and peak memory, against what grew."""
    from matplotlib.figure import Figure  # noqa: PLC0415 -- half a second that only a plot needs

    sweeps = list(dict.fromkeys(line.sweep for line in lines))
    figure = Figure(figsize=(3.4 * len(sweeps), 5.6), layout="constrained")
    panels = figure.subplots(2, len(sweeps), squeeze=False)
    for column, sweep in enumerate(sweeps):
        of_sweep = [line for line in lines if line.sweep == sweep]
        grown = [line.parameters if sweep == "width" else getattr(line, sweep) for line in of_sweep]
        for row, (values, label) in enumerate(
            (
                ([line.steady_cpu_ms for line in of_sweep], "CPU ms per holder and round"),
                ([line.peak_mebibytes for line in of_sweep], "peak memory, MiB"),
            )
        ):
            axes = panels[row][column]
            axes.plot(grown, values, marker="o")
            axes.set_xscale("log")
            axes.set_ylim(bottom=0, top=1.15 * max(values))
            axes.set_xticks(grown, [f"{value:,}" for value in grown])
            axes.minorticks_off()
            axes.set_xlabel("parameters" if sweep == "width" else f"{sweep}{' of each holder' * (sweep == 'rows')}")
            axes.set_ylabel(label if column == 0 else "")
            axes.grid(visible=True, alpha=0.3)
    figure.savefig(path)


def _print(result: Mapping[str, Any]) -> None:
    names = {
        "sweep": "sweep", "holders": "holders", "rounds": "rounds", "rows": "rows", "parameters": "parameters",
        "workers": "processes",
        "enrolling_seconds": "enrol s", "first_round_seconds": "first round s", "wall_seconds": "wall s",
        "cpu_seconds": "CPU s", "peak_mebibytes": "peak MiB", "steady_cpu_ms": "ms/holder-round",
        "client_rounds_per_second": "holder-rounds/s",
    }  # fmt: skip
    print(" ".join(f"{name:>15}" for name in names.values()))
    for line in result["lines"]:
        cells = [line[key] for key in names]
        print(" ".join(f"{cell:>15.1f}" if isinstance(cell, float) else f"{cell:>15}" for cell in cells))
    print()
    for key, value in result["environment"].items():
        print(f"{key}: {value}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sweep", choices=sorted(SWEEPS), action="append", help="by default all of them")
    parser.add_argument("--values", type=int, nargs="+", help="of the one sweep that was named")
    for name, value in BASE.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="where it is not what grows")
    parser.add_argument("--workers", type=int, default=1, help="processes that the holders are shared out over")
    parser.add_argument("--plot", type=Path, help="draw the lines to this file as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    sweeps = arguments.sweep or list(SWEEPS)
    if arguments.values and len(sweeps) != 1:
        parser.error("--values needs exactly one --sweep")
    lines = []
    for sweep in sweeps:
        for value in arguments.values or SWEEPS[sweep]:
            sizes = {name: getattr(arguments, name) for name in BASE} | {sweep: value}
            lines.append(measure(sweep, **sizes, workers=arguments.workers))
            print(f"{sweep} {value}: {lines[-1].wall_seconds:.1f} s", file=sys.stderr)
    if arguments.plot:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(lines, arguments.plot)
    result = {
        "lines": [asdict(line) for line in lines],
        "environment": environment("ringfence", "flwr", "torch"),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())

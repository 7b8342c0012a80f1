"""What governance costs: CPU time per holder and round of everything but training, by part, beside a bare Flower round.

Run from a checkout with `pip install -e '.[dev]'`:

    python benchmarks/governance.py                      # 100 holders, 8 rounds
    python benchmarks/governance.py --holders 1000 --rounds 3 --json

One real run in this process: policies, ledgers, logs, signatures, messages, aggregation, all of it. Parts are timed
where the product's own functions are called. The peer is the same Flower strategy, Grid and model with holders that
send the model back unasked: what is left when all governance is taken away. CPU time, medians over rounds.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from ringfence_client import clientapp
from ringfence_policy.database import SyncedTogether
from ringfence_policy.evidence_log import EvidenceLog
from ringfence_policy.gate import PolicyGate
from ringfence_policy.ledger import PrivacyLedger
from ringfence_server import worker
from ringfence_server.embedded_grid import EmbeddedGrid, EmbeddedNode
from ringfence_server.governor import Governor
from ringfence_server.holder_processes import holder_processes
from ringfence_server.round_messages import to_record
from ringfence_server.run_file import INITIAL_MODEL, reach, start_run
from ringfence_server.scenario import load_scenario
from synthetic import build_scenario
from where_measured import environment

TRAINING = "training"
PARTS: dict[str, tuple[Any, str]] = {
    "decisions (three, by Cedar and by the reference)": (PolicyGate, "decide"),
    "ledger: reserve": (PrivacyLedger, "reserve"),
    "ledger: mark sending": (PrivacyLedger, "mark_sending"),
    "ledger: commit": (PrivacyLedger, "commit"),
    "evidence: append to the two logs": (EvidenceLog, "append"),
    "evidence: sign checkpoints": (EvidenceLog, "checkpoint"),
    "waiting for the disk": (SyncedTogether, "sync"),
    TRAINING: (clientapp, "use_together"),
}
THE_ISSUES_OWN = tuple(name for name in PARTS if name.startswith(("decisions", "ledger", "evidence: append")))


@contextmanager
def timed(spent: dict[str, float], marks: list[tuple[float, float, dict[str, float]]]) -> Iterator[None]:
    """Add up the CPU time of each part while the block runs, and note the sums whenever a round closes."""
    kept = [(owner, name, getattr(owner, name)) for owner, name in (*PARTS.values(), (Governor, "close_round"))]

    def timer(part: str, act: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(act)
        def timing(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return act(*arguments, **named)
            finally:
                spent[part] += time.process_time() - start

        return timing

    for part, (owner, name) in PARTS.items():
        setattr(owner, name, timer(part, getattr(owner, name)))
    close = Governor.close_round

    @wraps(close)
    def closing(self: Governor, reason: str | None = None) -> None:
        close(self, reason)
        marks.append((time.process_time(), time.perf_counter(), dict(spent)))

    Governor.close_round = closing  # type: ignore[method-assign]
    try:
        yield
    finally:
        for owner, name, act in kept:
            setattr(owner, name, act)


def governed(holders: int, rounds: int, hidden: Sequence[int]) -> dict[str, list[float]]:
    """Milliseconds of CPU time per holder and round, by part, one for each round but the first."""
    spent: dict[str, float] = defaultdict(float)
    marks: list[tuple[float, float, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "scenario"
        build_scenario(directory, holders=holders, rows=64, hidden=hidden, rounds=rounds)
        run = start_run(load_scenario(directory), out=None, seed=None)
        with timed(spent, marks), holder_processes(1) as processes:
            worker.run_embedded(run, processes)
    found: dict[str, list[float]] = defaultdict(list)
    for (cpu, wall, before), (cpu_after, wall_after, after) in itertools.pairwise(marks):
        scale = 1e3 / holders
        for part in PARTS:
            found[part].append((after.get(part, 0.0) - before.get(part, 0.0)) * scale)
        found["all"].append((cpu_after - cpu) * scale)
        found["wall"].append((wall_after - wall) * scale)
    return found


def bare(holders: int, rounds: int, hidden: Sequence[int], features: int) -> list[float]:
    """Milliseconds of CPU time per holder and round of Flower alone: the model goes out and comes back."""

    def send_back(messages: Sequence[Message], _: Sequence[Context]) -> list[Message]:
        return [
            Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord(message.content.array_records["arrays"].to_numpy_ndarrays()),
                        "metrics": MetricRecord({"num-examples": 64}),
                    }
                ),
                reply_to=message,
            )
            for message in messages
        ]

    nodes = [EmbeddedNode(node_id=1001 + number, name=f"h{number}") for number in range(holders)]
    grid = EmbeddedGrid(nodes=nodes, cohort_app=send_back, flower_run_id=7)
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=1)
    spec = {"kind": "mlp", "hidden": list(hidden)} if hidden else {"kind": "logistic-regression"}
    arrays: ArrayRecord = to_record(reach(INITIAL_MODEL)(spec, features))
    taken = []
    for number in range(1, rounds + 1):
        start = time.process_time()
        replies = grid.send_and_receive(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        aggregated, _ = strategy.aggregate_train(number, replies)
        arrays = aggregated or arrays
        taken.append((time.process_time() - start) * 1e3 / holders)
    return taken[1:]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--holders", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--hidden", type=int, nargs="*", default=[64, 64])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = governed(arguments.holders, arguments.rounds, arguments.hidden)
    peer = bare(arguments.holders, arguments.rounds, arguments.hidden, features=30)
    lines = {name: summary(values) for name, values in found.items()}
    governance = summary([a - t for a, t in zip(found["all"], found[TRAINING], strict=True)])
    own = summary([sum(each) for each in zip(*(found[name] for name in THE_ISSUES_OWN), strict=True)])
    result = {
        "holders": arguments.holders,
        "rounds": arguments.rounds,
        "hidden": arguments.hidden,
        "milliseconds_of_cpu_per_holder_and_round": {
            **lines,
            "governance": governance,
            "decisions, ledger and log alone": own,
            "bare Flower round": summary(peer),
        },
        "governance_of_bare_flower": governance["median"] / statistics.median(peer),
        "environment": environment("ringfence", "flwr", "torch", "cedarpy", "cryptography"),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"{arguments.holders} holders, {arguments.rounds} rounds; ms of CPU time per holder and round\n")
    print(f"{'':52}{'median':>9}{'range':>18}")
    for name, line in result["milliseconds_of_cpu_per_holder_and_round"].items():  # type: ignore[attr-defined]
        print(f"{name:52}{line['median']:9.3f}{line['least']:9.3f} -{line['most']:7.3f}")
    print(f"\ngovernance is {result['governance_of_bare_flower']:.1f} times a bare Flower round\n")
    for key, value in result["environment"].items():  # type: ignore[attr-defined]
        print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Choose a plan's rounds, clipping norm and step size on simulated holders: no holder's row, and no budget, is touched.

    python benchmarks/heart_tuning.py                # two minutes; the ranking for epsilon 1 and 0.1

A simulated consortium knows what is public before a run: the schema (columns, bounds, vocabularies) and the holders'
declared weights. Everything else is drawn at random, anew for each of many worlds: how common the disease is at each
holder, where each attribute lies, and how far the disease shifts it. Each setting then trains every world with the
product's own trainer, mechanism and calibration, and is ranked by the mean of accuracy and AUC on its test rows.
"""

import argparse
import json
import os
import statistics
import sys
from itertools import product
from typing import Any

import numpy as np
import torch

from heart import Centre, Setting, environment, federate, load_schema, measure, mechanism_for
from ringfence_client.datasource import HolderData
from ringfence_client.opacus_trainer import OpacusTrainer
from ringfence_policy.schema import BinaryColumn, CategoryColumn, DatasetSchema, NumberColumn

DECLARED_WEIGHTS = {"cleveland": 199, "budapest": 172, "zurich-basel": 30, "long-beach": 85}
TEST_ROWS = 200
GRID = tuple(product((5, 10, 20), (0.3, 0.5, 1.0), (2.0, 4.0, 8.0)))


def simulate(schema: DatasetSchema, *, seed: int) -> dict[str, Centre]:
    """Draw one world: a disease that shifts every attribute, seen by holders where it is more and less common."""
    world = np.random.default_rng(seed)
    columns = [_simulated_column(column, world) for column in schema.columns]
    centres = {}
    for name, weight in DECLARED_WEIGHTS.items():
        prevalence = world.uniform(0.2, 0.9)
        parts = []
        for rows in (weight, TEST_ROWS):
            sick = world.random(rows) < prevalence
            features = np.concatenate([column(sick, world) for column in columns], axis=1)
            parts.append(HolderData.from_arrays(features.astype(np.float32), sick.astype(np.float32)))
        centres[name] = Centre(train=parts[0], test=parts[1], weight=weight)
    return centres


def _simulated_column(column: Any, world: np.random.Generator) -> Any:
    match column:
        case NumberColumn():
            middle, spread, shift = world.uniform(-0.3, 0.3), world.uniform(0.25, 0.45), world.normal(0, 0.6)

            def number(sick: Any, rows: np.random.Generator) -> Any:
                drawn = middle + spread * (rows.normal(size=len(sick)) + shift * (sick - 0.5))
                return np.clip(drawn, -1, 1)[:, None]

            return number
        case BinaryColumn() | CategoryColumn():
            values = 2 if isinstance(column, BinaryColumn) else len(column.values)
            base, per_value = world.normal(0, 0.7, values), world.normal(0, 1.0, values)

            def choice(sick: Any, rows: np.random.Generator) -> Any:
                odds = np.exp(base + per_value * (sick[:, None] - 0.5))
                chosen = (np.cumsum(odds, axis=1) / odds.sum(axis=1, keepdims=True) < rows.random((len(sick), 1))).sum(
                    1
                )
                if isinstance(column, BinaryColumn):
                    return chosen[:, None] - 0.5
                return np.eye(values)[chosen][:, [value != column.reference for value in column.values]]

            return choice
    raise TypeError(type(column).__name__)


def rank(epsilon: float, *, worlds: int) -> list[dict[str, Any]]:
    """Every setting of the grid, the best first."""
    schema = load_schema()
    drawn = [simulate(schema, seed=seed) for seed in range(worlds)]
    ranking = []
    for rounds, clipping_norm, learning_rate in GRID:
        setting = Setting(rounds=rounds, clipping_norm=clipping_norm, learning_rate=learning_rate)
        mechanism = mechanism_for(setting, epsilon=epsilon)
        measured = []
        for seed, centres in enumerate(drawn):
            arrays = federate(centres, setting, dict.fromkeys(centres, mechanism), seed=seed, trainer=OpacusTrainer())
            measured.append(measure(centres, arrays))
        accuracy, auc = (statistics.fmean(one[key] for one in measured) for key in ("accuracy", "auc"))
        ranking.append(
            {
                "rounds": rounds,
                "clipping_norm": clipping_norm,
                "learning_rate": learning_rate,
                "accuracy": accuracy,
                "auc": auc,
                "score": (accuracy + auc) / 2,
            }
        )
    return sorted(ranking, key=lambda one: -one["score"])


def main() -> int:
    """Rank the grid and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--epsilons", type=float, nargs="*", default=[1.0, 0.1])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # what a cohort's own threads go by
    rankings = {f"{epsilon:g}": rank(epsilon, worlds=arguments.worlds) for epsilon in arguments.epsilons}
    if arguments.json:
        print(json.dumps({"rankings": rankings, "worlds": arguments.worlds, "environment": environment()}, indent=2))
        return 0
    for epsilon, ranking in rankings.items():
        print(f"\nepsilon {epsilon}, {arguments.worlds} simulated consortia")
        print(f"{'rounds':>8}{'clip':>8}{'step':>8}{'accuracy':>10}{'AUC':>8}{'score':>8}")
        for one in ranking:
            print(
                f"{one['rounds']:>8}{one['clipping_norm']:>8g}{one['learning_rate']:>8g}"
                f"{one['accuracy']:>10.4f}{one['auc']:>8.4f}{one['score']:>8.4f}"
            )
    for key, value in environment().items():
        print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Accuracy of private federated training on FLamby's Fed-Heart-Disease protocol, beside FLamby's published numbers.

Run from a checkout with `pip install -e '.[dev]'`:

    python benchmarks/heart.py                       # 20 seeds, epsilon 1 and 0.1, and without privacy
    python benchmarks/heart.py --epsilons 0.5 2 --seeds 5 --json

The protocol (owkin/FLamby @edacf54d): attributes slope, ca and thal dropped, rows with an absent value dropped, 740
rows in four centres; per-centre split 66/34, random_state 43. Test rows are never trained on. What differs from FLamby
is what this product does differently: fixed declared bounds in place of each centre's mean and deviation, and few large
private steps. Data: the bundled heart scenario, read through the product's own door; trainer, mechanism, calibration
and metrics are the product's. Every centre spends the stated epsilon on its own records: record-level, add or remove
one, all rounds and steps counted, no amplification by sampling (every record is in every step).

Rounds, clipping norm and step size were chosen by `heart_tuning.py`, on no holder's rows: see HOW_CHOSEN.
"""

import argparse
import csv
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import train_test_split

import ringfence_client
from ringfence_client.datasource import HolderData, load_dataset
from ringfence_client.evaluation import metrics_from_scores, scores
from ringfence_client.models import initial_arrays
from ringfence_client.noise import RehearsalNoise
from ringfence_client.opacus_trainer import OpacusTrainer
from ringfence_client.references import ReferenceHolder, compute_references
from ringfence_client.trainer import Trainer, TrainingJob
from ringfence_policy.accounting import calibrate_noise
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.strict_toml import read_toml
from ringfence_policy.vocabulary import Relation, Unit
from where_measured import environment

HEART = Path(ringfence_client.__file__).parent / "scenarios" / "heart"
CENTRES = ("cleveland", "budapest", "zurich-basel", "long-beach")
DROPPED = ("slope", "ca", "thal")
MODEL: Mapping[str, Any] = {"kind": "logistic-regression"}
DELTA = 1e-4

Arrays = Mapping[str, npt.NDArray[np.float32]]

# FLamby, published: flamby/results and flamby/dp_example/results_fed_heart_disease.csv @edacf54d, means of 5 seeds.
# (name, pooled test accuracy, mean of the four centres' test accuracies)
PUBLISHED = (
    ("FLamby pooled, no DP", 0.7953, 0.7353),
    ("FLamby FedAvg, no DP", 0.7480, 0.6850),
    ("FLamby FedAdam, no DP", 0.7787, 0.7255),
    ("FLamby FedYogi, no DP (its best)", 0.7787, 0.7314),
)
PUBLISHED_DP = {"": 0.7125, "0.1": 0.6056, "1.0": 0.6853, "5.0": 0.7036, "10.0": 0.7004}
PUBLISHED_DP_CAUTION = (
    "FLamby's DP example accounts 15 epochs and takes 1,500 steps per centre: its epsilon looks under-counted (read in "
    "its code, not run). Ours counts every step taken."
)
PROMISED = {
    "no privacy": {"accuracy": 0.795},
    "epsilon 1": {"accuracy": 0.78, "auc": 0.845, "centres": 0.79},
    "epsilon 0.1": {"accuracy": 0.69},
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The public numbers of a training plan, as far as accuracy depends on them."""

    rounds: int
    clipping_norm: float
    learning_rate: float
    average_last: float = 0.5


# The best of heart_tuning.py's ranking for each epsilon.
CHOSEN = {
    1.0: Setting(rounds=5, clipping_norm=1.0, learning_rate=8.0),
    0.1: Setting(rounds=10, clipping_norm=0.3, learning_rate=2.0),
}
REFERENCE_ROUNDS = 10
HOW_CHOSEN = """\
How the settings were chosen: rounds, clipping norm and step size are the best of 27 in benchmarks/heart_tuning.py,
which trains on simulated holders and touches no row of these; no budget went into tuning. Optimiser: plain gradient
descent with one clipped sum of all records per round. Every record takes part in every round, so the noise of T rounds
grows with the square root of T alone, and momentum or adaptive steps would spend rounds on estimating noise.
What is not blind: this is a published benchmark. The encoding (bounds, binaries of width 1, a reference category) was
settled while results on it were in view, and that few large steps win was seen on it before. The result does not hang
on the setting: five of the grid were also run here at epsilon 1 with 40 seeds and lie between 0.793 and 0.803."""


@dataclass(frozen=True, kw_only=True)
class Centre:
    """One holder: its training and test rows, and the weight it declares (here FLamby's published training size)."""

    train: HolderData
    test: HolderData
    weight: int


def load_schema() -> DatasetSchema:
    """The bundled schema without FLamby's dropped attributes and without absent values."""
    document = read_toml(HEART / "schema.toml", DatasetSchema).to_document()
    document["title"] = "Fed-Heart-Disease, FLamby's 740 rows"
    document["columns"] = [_complete(column) for column in document["columns"] if column["name"] not in DROPPED]
    return DatasetSchema.from_document(document)


def load_centres() -> dict[str, Centre]:
    """FLamby's 740 rows, encoded by a declared schema and split as FLamby splits them."""
    schema = load_schema()
    with tempfile.TemporaryDirectory() as directory:
        return {name: _centre(name, schema, Path(directory) / name) for name in CENTRES}


def _complete(column: Mapping[str, Any]) -> dict[str, Any]:
    """A column of the protocol: rows with absent values are gone, and a cholesterol of 0 is taken as measured."""
    left_out = {"missing", "missing_values", "impute"}
    return {key: value for key, value in column.items() if key not in left_out}


def _centre(name: str, schema: DatasetSchema, directory: Path) -> Centre:
    columns = schema.column_names()
    with (HEART / "holders" / name / "data.csv").open(encoding="utf-8", newline="") as file:
        rows = [[row[column] for column in columns] for row in csv.DictReader(file)]
    directory.mkdir()
    with (directory / "data.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *(row for row in rows if all(row))])
    data = load_dataset(directory, schema)
    labels, sizes = np.unique(data.labels, return_counts=True)
    stratify = data.labels if len(labels) > 1 and (sizes > 2).all() else None
    train, test = train_test_split(
        np.arange(data.records), test_size=1.0 - 0.66, train_size=0.66, random_state=43, shuffle=True, stratify=stratify
    )
    # FLamby keeps what the split leaves over as training rows, and so do we: sizes 199/172/30/85 and 104/89/16/45.
    train = np.setdiff1d(np.arange(data.records), test)
    test = np.sort(test)
    return Centre(
        train=HolderData.from_arrays(data.features[train], data.labels[train]),
        test=HolderData.from_arrays(data.features[test], data.labels[test]),
        weight=len(train),
    )


def mechanism_for(setting: Setting, *, epsilon: float, delta: float = DELTA) -> DpMechanism:
    """The round's mechanism that spends `epsilon` at `delta` over all of the setting's rounds."""
    shape = DpMechanism.rounded(
        kind="dp-sgd",
        clipping_norm=setting.clipping_norm,
        noise_multiplier=0.0,
        sampling_rate=1.0,
        steps=1,
        unit=Unit.RECORD,
        relation=Relation.ADD_OR_REMOVE,
    )
    return calibrate_noise(
        history=(),
        mechanism=shape,
        uses=setting.rounds,
        epsilon_micro=int(epsilon * 1e6),
        delta_pico=round(delta * 1e12),
    )


def federate(
    centres: Mapping[str, Centre],
    setting: Setting,
    mechanisms: Mapping[str, DpMechanism],
    *,
    seed: int,
    trainer: Trainer,
) -> Arrays:
    """Federated averaging over the product's trainer; the result averages the last rounds' models."""
    feature_count = next(iter(centres.values())).train.features.shape[1]
    arrays: Arrays = initial_arrays(MODEL, feature_count)
    total = sum(centre.weight for centre in centres.values())
    kept: list[Arrays] = []
    noise = {name: RehearsalNoise(seed, stream=name) for name in centres}
    for _ in range(setting.rounds):
        jobs = [
            TrainingJob(
                holder_id=name,
                model=MODEL,
                arrays=arrays,
                data=centre.train,
                mechanism=mechanisms[name],
                learning_rate=setting.learning_rate,
                expected_batch=float(centre.weight),
                noise=noise[name],
            )
            for name, centre in centres.items()
        ]
        updates = trainer.train(jobs)
        if not all(update.applied.keeps(mechanisms[update.holder_id]) for update in updates):
            raise AssertionError("a trainer applied another mechanism than the one that was accounted")
        shares = [centres[update.holder_id].weight / total for update in updates]
        arrays = _average([update.arrays for update in updates], shares)
        kept.append(arrays)
    last = kept[-max(1, round(setting.rounds * setting.average_last)) :]
    return _average(last, [1 / len(last)] * len(last))


def _average(models: Sequence[Arrays], shares: Sequence[float]) -> dict[str, npt.NDArray[np.float32]]:
    return {
        name: np.average([model[name] for model in models], axis=0, weights=shares).astype(np.float32)
        for name in models[0]
    }


def measure(centres: Mapping[str, Centre], arrays: Arrays) -> dict[str, float]:
    """Pooled test accuracy and AUC, the mean of the centres' accuracies, and each centre's."""
    probabilities = {name: scores(MODEL, arrays, centre.test) for name, centre in centres.items()}
    labels = {name: centre.test.labels for name, centre in centres.items()}
    pooled = metrics_from_scores(np.concatenate(list(probabilities.values())), np.concatenate(list(labels.values())))
    each = {name: metrics_from_scores(probabilities[name], labels[name]).accuracy or 0.0 for name in centres}
    return {
        "accuracy": pooled.accuracy or 0.0,
        "auc": pooled.auc or 0.0,
        "centres": statistics.mean(each.values()),
        **each,
    }


def setting_for(epsilon: float) -> Setting:
    """The setting chosen for the nearest epsilon, by ratio."""
    return CHOSEN[min(CHOSEN, key=lambda chosen: abs(math.log(epsilon / chosen)))]


def private_line(
    centres: Mapping[str, Centre], setting: Setting, *, epsilon: float, seeds: int, trainer: Trainer
) -> dict[str, Any]:
    """One line of the table: mean and standard deviation over the seeds."""
    mechanism = mechanism_for(setting, epsilon=epsilon)
    everyone = dict.fromkeys(centres, mechanism)
    measured = [
        measure(centres, federate(centres, setting, everyone, seed=seed, trainer=trainer)) for seed in range(seeds)
    ]
    return {
        "name": f"epsilon {epsilon:g}",
        "epsilon": epsilon,
        "noise_multiplier": mechanism.noise_multiplier,
        "setting": asdict(setting),
        "mean": _over(measured, statistics.fmean),
        "sd": _over(measured, statistics.stdev) if seeds > 1 else None,
    }


def _over(measured: Sequence[Mapping[str, float]], how: Callable[[Iterable[float]], float]) -> dict[str, float]:
    return {key: how([one[key] for one in measured]) for key in measured[0]}


def reference_lines(centres: Mapping[str, Centre]) -> list[dict[str, Any]]:
    """The product's own comparison lines without privacy."""
    holders = {
        name: ReferenceHolder(train=centre.train, test=centre.test, weight=centre.weight)
        for name, centre in centres.items()
    }
    lines = compute_references(holders, model=MODEL, rounds=REFERENCE_ROUNDS)
    named = {"federated": "no privacy", "pooled": "no privacy, pooled", "local": "no privacy, each alone"}
    return [
        {"name": name, "mean": _flat(lines[key]), "sd": None, "setting": {"rounds": REFERENCE_ROUNDS}}
        for key, name in named.items()
    ]


def _flat(line: Mapping[str, Any]) -> dict[str, float]:
    each = {name: metrics["accuracy"] for name, metrics in line["per_holder"].items()}
    return {"accuracy": line["accuracy"], "auc": line["auc"], "centres": statistics.mean(each.values()), **each}


def published_lines() -> list[dict[str, Any]]:
    """FLamby's numbers: its DP rows from the file where it is at hand, cited constants elsewhere."""
    lines = [
        {"name": name, "mean": {"accuracy": accuracy, "centres": centres}} for name, accuracy, centres in PUBLISHED
    ]
    shared = Path(os.environ.get("RINGFENCE_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
    path = shared / "flamby_published" / "dp_heart.csv"
    rows = PUBLISHED_DP
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            found = [row for row in csv.DictReader(file) if row["d"] in {"", "0.0001"}]
        rows = {e: statistics.mean(float(row["perf"]) for row in found if row["e"] == e) for e in PUBLISHED_DP}
    for stated, centres in rows.items():
        name = f"FLamby DP example, epsilon {float(stated):g}" if stated else "FLamby DP example, no DP"
        lines.append({"name": name, "mean": {"centres": centres}})
    return lines


def verdicts(lines: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Whether each promised number was reached, by name."""
    by_name = {line["name"]: line["mean"] for line in lines}
    return {
        f"{name}: {key} >= {least:g}": by_name[name][key] >= least
        for name, promise in PROMISED.items()
        if name in by_name
        for key, least in promise.items()
    }


def _print(result: Mapping[str, Any]) -> None:
    print(f"{'':34}{'pooled test':>17}{'AUC':>17}{'mean of centres':>17}   {'  '.join(CENTRES)}")
    for line in [*result["lines"], *result["published"]]:
        cells = []
        for key in ("accuracy", "auc", "centres"):
            mean, sd = line["mean"].get(key), (line.get("sd") or {}).get(key)
            cells.append("-" if mean is None else f"{mean:.4f}" + (f" +-{sd:.4f}" if sd is not None else ""))
        each = [f"{line['mean'][name]:.3f}".rjust(len(name)) for name in CENTRES if name in line["mean"]]
        print(f"{line['name']:34}" + "".join(f"{cell:>17}" for cell in cells) + "   " + "  ".join(each))
    print(f"\n{PUBLISHED_DP_CAUTION}\n\n{HOW_CHOSEN}\n")
    for line in result["lines"]:
        if "noise_multiplier" in line:
            print(f"{line['name']}: noise multiplier {line['noise_multiplier']:.4f} per round, {line['setting']}")
    for key, value in result["environment"].items():
        print(f"{key}: {value}")
    print(f"seeds: 0 to {result['seeds'] - 1}, seeded noise (rehearsal); delta {DELTA:g} per centre\n")
    for promise, kept in result["verdicts"].items():
        print(f"{'reached' if kept else 'NOT REACHED'}  {promise}")


def main() -> int:
    """Measure, print, and fail where a promised number is not reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epsilons", type=float, nargs="*", default=[1.0, 0.1])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # what a cohort's own threads go by
    centres = load_centres()
    lines = reference_lines(centres)
    lines += [
        private_line(centres, setting_for(epsilon), epsilon=epsilon, seeds=arguments.seeds, trainer=OpacusTrainer())
        for epsilon in arguments.epsilons
    ]
    result = {
        "lines": lines,
        "published": published_lines(),
        "published_caution": PUBLISHED_DP_CAUTION,
        "how_chosen": HOW_CHOSEN,
        "seeds": arguments.seeds,
        "delta": DELTA,
        "environment": environment("torch", "opacus", "numpy", "scikit-learn", "polars"),
        "verdicts": verdicts(lines),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
    return 0 if all(result["verdicts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

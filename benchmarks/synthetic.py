"""Build a scenario of many synthetic data holders, enrolled and ready to run, for benchmarks.

    python benchmarks/synthetic.py build/hundred                   # 100 holders, 512 rows, an MLP 30-64-64, 10 rounds
    python benchmarks/synthetic.py build/thousand --holders 1000 --rounds 20
    ringfence run build/hundred

What comes out is a scenario directory like any other: a plan, a schema, a folder for each holder, and keys, papers and
ledgers made by the product's own enrolment. Records are random: features uniform in [-1, 1], and a label by one noisy
linear rule for all holders. A budget is what the plan's rounds cost at the wanted noise multiplier, so that each holder
calibrates that noise and no round is refused.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ringfence_client.enrolment import enrol as enrol_holder
from ringfence_policy.accounting import epsilon_micro
from ringfence_policy.mechanism import MICRO, history_of
from ringfence_policy.plan import PlanFile, TrainingPlan
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.settlement import loudest_training
from ringfence_policy.strict_toml import read_toml

COORDINATOR = "benchmark-consortium"
DELTA_PICO = 10_000_000  # 1e-5
LABEL = "outcome"
LABEL_NOISE = 0.5  # of the rule's own standard deviation: no model can be right about every record

_PLAN = """\
plan_id = "synthetic-benchmark"
title = "A benchmark on synthetic records"
coordinator = "{coordinator}"
purpose = "disease-research"
task = "synthetic-prediction"

[model]
{model}

[training]
strategy = "{strategy}"
rounds = {rounds}
steps = {steps}
sampling_rate = "{sampling_rate}"
learning_rate = "{learning_rate}"
clipping_norm = "{clipping_norm}"

[privacy]
noise_multiplier_max = "{noise_multiplier}"

[cohort]
region = "CH"
round_seconds = 86400

# Every record trains, but for one in a million: a plan always keeps some apart.
[evaluation]
mode = "none"
test_fraction = "0.000001"

[release]
to = "participants"
tier = "low"
retention_days = 30
"""
_SCHEMA = """\
title = "Synthetic records"

[label]
column = "{label}"
positive_above = "0"
"""
_COLUMN = """
[[columns]]
name = "{name}"
kind = "number"
low = "-1"
high = "1"
"""
_HOLDER = """\
holder_id = "{holder}"
name = "Synthetic {holder}"
region = "CH"

[dataset]
dataset_id = "{holder}-records"
weight = {rows}
epsilon = "{epsilon}"
delta = "0.00001"
"""
_POLICY = """\
[policy]
id = "{holder}-terms"
version = 1
holder = "{holder}"
dataset = "{holder}-records"

[people]
who = ["{coordinator}"]

[projects]
purposes = ["research"]
tasks = ["synthetic-prediction"]
not_before = 2026-01-01T00:00:00Z
not_after = 2100-01-01T00:00:00Z
max_rounds = {rounds}

[settings]
regions = ["CH"]
min_holders = 1
secure_aggregation = "not-required"
sandbox = "not-required"

[data]
columns = "*"
min_records = 1
rehearsal = "forbidden"

[privacy]
unit = "record"
epsilon = "{epsilon}"
delta = "0.00001"
evaluation = "none"

[outputs]
retention_days = 30
release_to = "participants"
release_tier = "low"
on_revoke = "stop-now"
"""


@dataclass(frozen=True, kw_only=True)
class SyntheticScenario:
    """A scenario that was built.

    Attributes:
        directory: Where it lies.
        holders: How many data holders it has.
        epsilon: The budget of each, which the plan's rounds use up.
        writing_seconds: Wall time of drawing the records and writing the files that people write.
        enrolling_seconds: Wall time of keys, papers and ledgers; 0 where that was left to the first run.
    """

    directory: Path
    holders: int
    epsilon: str
    writing_seconds: float
    enrolling_seconds: float


def build_scenario(
    directory: Path,
    *,
    holders: int = 100,
    rows: int = 512,
    features: int = 30,
    hidden: Sequence[int] = (64, 64),
    rounds: int = 10,
    steps: int = 8,
    sampling_rate: str = "0.125",
    clipping_norm: str = "1",
    learning_rate: str = "0.5",
    noise_multiplier: str = "1",
    strategy: str = "FedAvg",
    seed: int = 0,
    enrol: bool = True,
    processes: int | None = None,
) -> SyntheticScenario:
    """Write a scenario of synthetic data holders and enrol them. The same arguments give the same records.

    Fractions are text, as the plan has them.

    Args:
        directory: A directory that does not exist or is empty.
        holders: How many.
        rows: Records of each holder, and its declared weight.
        features: How many, each a column of numbers.
        hidden: Sizes of the MLP's hidden layers; without any, the model is a logistic regression.
        rounds: Rounds of the plan, of the policy and of the budget.
        steps: A holder's steps in a round.
        sampling_rate: The chance of each record to be in a step.
        clipping_norm: The L2 bound on one record's gradient.
        learning_rate: Of the holders' steps.
        noise_multiplier: What each holder will calibrate from its budget, and the plan's maximum.
        strategy: The plan's.
        seed: Of every record.
        enrol: Make keys, papers and ledgers now; otherwise the first run does.
        processes: How many processes enrol; by default one for each core.

    Raises:
        FileExistsError: The directory has something in it.
        DocumentInvalid: A number is outside what a plan may say.
    """
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty")
    began = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    columns = [f"x{number:03d}" for number in range(features)]
    (directory / "schema.toml").write_text(
        _SCHEMA.format(label=LABEL) + "".join(_COLUMN.format(name=name) for name in columns)
    )
    plan = directory / "plan.toml"
    plan.write_text(
        _PLAN.format(
            coordinator=COORDINATOR,
            model=f'kind = "mlp"\nhidden = {list(hidden)}' if hidden else 'kind = "logistic-regression"',
            strategy=strategy,
            rounds=rounds,
            steps=steps,
            sampling_rate=sampling_rate,
            learning_rate=learning_rate,
            clipping_norm=clipping_norm,
            noise_multiplier=noise_multiplier,
        )
    )
    epsilon = _budget(plan, directory / "schema.toml")
    homes = [directory / "holders" / f"holder-{number:05d}" for number in range(holders)]
    for number, home in enumerate(homes):
        home.mkdir(parents=True)
        words = {"holder": home.name, "coordinator": COORDINATOR, "rounds": rounds, "rows": rows, "epsilon": epsilon}
        (home / "holder.toml").write_text(_HOLDER.format(**words))
        (home / "policy.toml").write_text(_POLICY.format(**words))
        values, labels = draw_records(number, rows=rows, features=features, seed=seed)
        frame = pl.DataFrame(values, schema=columns).with_columns(pl.Series(LABEL, labels))
        frame.write_parquet(home / "data.parquet", compression="uncompressed", statistics=False)
    written = time.perf_counter()
    if enrol:
        _enrol([str(home) for home in homes], processes=processes or os.cpu_count() or 1)
    return SyntheticScenario(
        directory=directory,
        holders=holders,
        epsilon=epsilon,
        writing_seconds=written - began,
        enrolling_seconds=time.perf_counter() - written if enrol else 0.0,
    )


def draw_records(
    holder: int, *, rows: int, features: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Draw one holder's records.

    Args:
        holder: The holder's number, from 0.
        rows: How many records.
        features: Numbers in each.
        seed: The same for all holders: the rule follows from it alone, the records from it and the holder's number.

    Returns:
        float32 of shape (rows, features), uniform in [-1, 1], and int8 of shape (rows,), 0 or 1: whether a linear
        rule, with normal noise of half its standard deviation on top, is positive.
    """
    rule = np.random.default_rng([seed]).normal(size=features)
    records = np.random.default_rng([seed, 1 + holder])
    values = records.uniform(-1, 1, size=(rows, features)).astype(np.float32)
    spread = np.linalg.norm(rule) / math.sqrt(3)  # of the rule over uniform features
    scores = values @ rule + LABEL_NOISE * spread * records.normal(size=rows)
    return values, (scores > 0).astype(np.int8)


def _budget(plan: Path, schema: Path) -> str:
    """What the plan's rounds cost at its largest noise, as a policy writes it."""
    terms, declared = read_toml(plan, PlanFile), read_toml(schema, DatasetSchema)
    whole = TrainingPlan(terms=terms, dataset_schema=declared, holders={}, rehearsal=False)
    cost = epsilon_micro(history_of([(loudest_training(whole), terms.training.rounds)]), delta_pico=DELTA_PICO)
    return f"{cost / MICRO:.6f}"


def _enrol(homes: Sequence[str], *, processes: int) -> None:
    if processes == 1:
        for home in homes:
            enrol_holder(home)
        return
    # Started anew and not forked: the parent may hold threads of torch or Polars.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(enrol_holder, homes, chunksize=8):
            pass


def main() -> int:
    """Build one scenario and say how long it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    for name, default in (("holders", 100), ("rows", 512), ("features", 30), ("rounds", 10), ("steps", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--hidden", type=int, nargs="*", default=[64, 64])
    for name, text in (("sampling-rate", "0.125"), ("clipping-norm", "1"), ("learning-rate", "0.5")):
        parser.add_argument(f"--{name}", default=text)
    parser.add_argument("--noise-multiplier", default="1")
    parser.add_argument("--strategy", default="FedAvg")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--no-enrol", dest="enrol", action="store_false", help="leave keys and papers to the first run")
    parser.add_argument("--json", action="store_true")
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    built = build_scenario(arguments.pop("directory"), **arguments)
    if as_json:
        print(json.dumps(asdict(built), default=str))
    else:
        print(f"{built.directory}: {built.holders} data holders, epsilon {built.epsilon} each")
        print(f"  {built.writing_seconds:.1f} s to write, {built.enrolling_seconds:.1f} s to enrol")
    return 0


if __name__ == "__main__":
    sys.exit(main())

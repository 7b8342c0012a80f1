"""What one private step costs: every trainer and Opacus' own modes against plain SGD, interleaved, one thread.

    python benchmarks/step.py [--repetitions 7] [--models LR30 CNN28] [--json]

A line is one model at one expected batch size B. Every contender trains the same model on the same 8 B made-up records
with Poisson sampling at rate 1/8. Ours are the product's trainers as they stand: a whole job with sampling, clipping,
noise, update and what a job costs once, divided by its steps. Times are processor time; each repetition runs all
contenders one after another, and a ratio is the median over repetitions of the ratio to plain SGD in that repetition.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import nn

from ringfence_client.bookkeeping_trainer import BookKeepingTrainer
from ringfence_client.cohort_trainer import CohortTrainer
from ringfence_client.datasource import HolderData
from ringfence_client.models import BUILT_IN, code_digest, initial_arrays
from ringfence_client.modules import build_module
from ringfence_client.noise import RehearsalNoise, SecureNoise
from ringfence_client.opacus_trainer import OpacusTrainer
from ringfence_client.sampling import poisson_sample
from ringfence_client.trainer import Trainer, TrainingJob
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit
from where_measured import environment

RATE = 1 / 8
CLIPPING_NORM = 1.0
NOISE_MULTIPLIER = 1.0
LEARNING_RATE = 0.1
SEED = 3
PLAIN = "plain SGD"
NOISELESS = "book-keeping, noise not drawn"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the table: its spec, its features, the steps of a timed job, and the promised ratio to plain SGD."""

    spec: Mapping[str, Any]
    features: int
    steps: int
    promise: float


def own(name: str) -> dict[str, Any]:
    """The spec of a module of step_models.py, as a plan names it."""
    path = f"step_models:{name}"
    return {"kind": "module", "path": path, "code_digest": code_digest(path), "seed": SEED}


MODELS = {
    "LR30": Model(spec={"kind": "logistic-regression"}, features=30, steps=200, promise=1.6),
    "MLP30-64-64": Model(spec={"kind": "mlp", "hidden": (64, 64), "seed": SEED}, features=30, steps=200, promise=1.6),
    "CNN28": Model(spec=own("ImageNetwork"), features=28 * 28, steps=20, promise=1.25),
    "LoRA-transformer": Model(spec=own("TokenTransformer"), features=32, steps=10, promise=1.1),
}


class NoNoise(SecureNoise):
    """Draws samples and no noise: shows what the noise costs. NOT PRIVATE."""

    def normal(self, shape: Sequence[int], *, stddev: float) -> torch.Tensor:
        """Zeros."""
        del stddev
        return torch.zeros(tuple(shape), dtype=torch.float64)


def made_up(records: int, features: int) -> HolderData:
    """Records of nobody."""
    rng = np.random.default_rng(SEED)
    return HolderData.from_arrays(
        rng.uniform(-1, 1, (records, features)).astype(np.float32), (rng.random(records) < 0.5).astype(np.float32)
    )


def by_trainer(trainer: Trainer, model: Model, data: HolderData, *, is_noised: bool = True) -> Callable[[], None]:
    """One whole job of a trainer of the product."""
    mechanism = DpMechanism.rounded(
        kind="dp-sgd",
        clipping_norm=CLIPPING_NORM,
        noise_multiplier=NOISE_MULTIPLIER,
        sampling_rate=RATE,
        steps=model.steps,
        unit=Unit.RECORD,
        relation=Relation.ADD_OR_REMOVE,
    )
    arrays = initial_arrays(model.spec, model.features)

    def run() -> None:
        job = TrainingJob(
            holder_id="benchmark",
            model=model.spec,
            arrays=arrays,
            data=data,
            mechanism=mechanism,
            learning_rate=LEARNING_RATE,
            expected_batch=RATE * data.records,
            noise=SecureNoise() if is_noised else NoNoise(),
        )
        trainer.train([job])

    return run


def batches(model: Model, data: HolderData) -> list[torch.Tensor]:
    """The rows of every step, drawn beforehand: contenders that are not ours sample for nothing."""
    noise = RehearsalNoise(SEED)
    drawn = [poisson_sample(data.records, sampling_rate=RATE, noise=noise) for _ in range(model.steps)]
    return [torch.from_numpy(rows) for rows in drawn]


def by_plain_sgd(model: Model, data: HolderData) -> Callable[[], None]:
    """The limit: the same steps without privacy, as torch's tutorials write them."""
    rows = batches(model, data)
    features, labels = torch.tensor(data.features), torch.tensor(data.labels)

    def run() -> None:
        module = build_module(model.spec, model.features).train()
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)
        for batch in rows:
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(module(features[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


def by_opacus(mode: str, model: Model, data: HolderData) -> Callable[[], None]:
    """Opacus as its users run it, with its own clip and (not secure) noise, in one of its modes."""
    rows = batches(model, data)
    features, labels = torch.tensor(data.features), torch.tensor(data.labels)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(features, labels), batch_size=round(RATE * data.records)
    )

    def run() -> None:
        module = build_module(model.spec, model.features).train()
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        made = PrivacyEngine().make_private(
            module=module,
            optimizer=torch.optim.SGD(parameters, lr=LEARNING_RATE),
            criterion=nn.BCEWithLogitsLoss(),
            data_loader=loader,
            noise_multiplier=NOISE_MULTIPLIER,
            max_grad_norm=CLIPPING_NORM,
            poisson_sampling=False,
            grad_sample_mode=mode,
        )
        private, optimizer = made[0], made[1]
        criterion = made[2] if mode == "ghost" else nn.BCEWithLogitsLoss()
        for batch in rows:
            optimizer.zero_grad()
            criterion(private(features[batch]), labels[batch]).backward()
            optimizer.step()

    return run


def contenders(model: Model, data: HolderData) -> dict[str, Callable[[], None]]:
    """Everything that is timed, by name; what cannot train the model at all is left out."""
    found = {
        PLAIN: by_plain_sgd(model, data),
        "book-keeping": by_trainer(BookKeepingTrainer(), model, data),
        NOISELESS: by_trainer(BookKeepingTrainer(), model, data, is_noised=False),
        "opacus (our trainer)": by_trainer(OpacusTrainer(), model, data),
        **({"cohort": by_trainer(CohortTrainer(), model, data)} if model.spec["kind"] in BUILT_IN else {}),
        **{f"Opacus, {mode}": by_opacus(mode, model, data) for mode in ("hooks", "functorch", "ew", "ghost")},
    }
    return {name: run for name, run in found.items() if _warms_up(name, run)}


def _warms_up(name: str, run: Callable[[], None]) -> bool:
    try:
        run()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        print(f"left out: {name}: {type(error).__name__}", file=sys.stderr)
        return False
    return True


def measure(model: Model, *, batch: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Time all contenders on one model; milliseconds of processor time a step, and ratios to plain SGD."""
    runs = contenders(model, made_up(round(batch / RATE), model.features))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            started = time.process_time()
            run()
            taken[name].append((time.process_time() - started) / model.steps * 1e3)
    lines = {}
    for name, times in taken.items():
        ratios = [one / limit for one, limit in zip(times, taken[PLAIN], strict=True)]
        lines[name] = {
            "median_ms": statistics.median(times),
            "lowest_ms": min(times),
            "highest_ms": max(times),
            "ratio": statistics.median(ratios),
            "lowest_ratio": min(ratios),
            "highest_ratio": max(ratios),
        }
    return lines


def _print(name: str, batch: int, lines: Mapping[str, Mapping[str, float]]) -> None:
    print(f"\n{name}, B = {batch}{'ms a step':>36}{'spread':>18}{'x plain SGD':>14}{'spread':>16}")
    for contender, line in lines.items():
        print(
            f"  {contender:32}{line['median_ms']:>18.3f}{line['lowest_ms']:>10.3f} -{line['highest_ms']:>6.3f}"
            f"{line['ratio']:>14.2f}{line['lowest_ratio']:>9.2f} -{line['highest_ratio']:>5.2f}"
        )


def main() -> int:
    """Measure, print, and fail where the promised ratio is not reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="*", type=int, default=[64, 256])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # what a cohort's own threads go by
    warnings.filterwarnings("ignore", module="opacus|torch")  # Opacus' hooks and its insecure noise
    result: dict[str, Any] = {"models": {}, "repetitions": arguments.repetitions, "seed": SEED, "verdicts": {}}
    for name in arguments.models:
        for batch in arguments.batches:
            lines = measure(MODELS[name], batch=batch, repetitions=arguments.repetitions)
            result["models"][f"{name}, B = {batch}"] = lines
            for trainer in ("cohort", "book-keeping"):
                if trainer in lines:
                    verdict = f"{name}, B = {batch}: {trainer} <= {MODELS[name].promise:g} x plain SGD"
                    result["verdicts"][verdict] = lines[trainer]["ratio"] <= MODELS[name].promise
            if not arguments.json:
                _print(name, batch, lines)
    result["environment"] = environment("torch", "opacus", "numpy")
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print("\n" + "\n".join(f"{key}: {value}" for key, value in result["environment"].items()))
        for promise, kept in result["verdicts"].items():
            print(f"{'reached' if kept else 'NOT REACHED'}  {promise}")
    return 0 if all(result["verdicts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What one holder's round of private training costs when many are trained at once, beside Opacus as Flower uses it.

Run from a checkout with `pip install -e '.[dev]'`:

    python benchmarks/cohort.py                      # 10, 100 and 1,000 holders, five repetitions
    python benchmarks/cohort.py --holders 100 --repetitions 9 --json

The task: a multilayer perceptron 30-64-64 with one logit (6,209 parameters), 512 records per holder, exact Poisson
sampling with probability 1/8, 8 local steps, clipping norm 1, noise multiplier 1. Ours is the product's CohortTrainer
with cryptographic noise, each of its kernels; drawing, noise and checks are in the figure. The others:

- Flower with Opacus: what Flower's example does in each fit: set parameters, a new PrivacyEngine, its Poisson loader,
  one epoch, get parameters. Torch's own noise, which is faster and predictable.
- Opacus, plain loop: the same without a loader, rows drawn by hand.
- not private: each kernel on the same rows with neither noise nor clipping, nothing drawn: what closed form costs.
- GEMM limit: the task's multiplications at the rate that torch multiplies two 512 x 512 matrices with, on this core.

CPU time of the process, one thread, repetitions interleaved; medians, and least and most in brackets. The figures of
two runs on a busy machine differ more than the ratios within one: read the ratios.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import nn

from cohort_task import BATCH, FEATURES, LEARNING_RATE, MECHANISM, RECORDS, STEPS, make_holders, make_jobs
from ringfence_client.cohort_kernel import HolderSteps, Kernel, best_kernel
from ringfence_client.cohort_trainer import CohortTrainer
from ringfence_client.datasource import HolderData
from ringfence_client.models import Arrays, initial_arrays
from ringfence_client.modules import build_module, read_arrays, write_arrays
from ringfence_client.noise import SecureNoise
from ringfence_client.torch_kernel import TorchKernel
from where_measured import environment

MODEL: Final[Mapping[str, Any]] = {"kind": "mlp", "hidden": (64, 64), "seed": 0}
WIDTHS = (FEATURES, 64, 64, 1)
# Forward, the gradients of weights, and those of every layer's inputs but the first, two operations a multiplication.
FLOPS = 2 * BATCH * STEPS * (3 * sum(a * b for a, b in pairwise(WIDTHS)) - WIDTHS[0] * WIDTHS[1])
FLOWER = "Flower with Opacus"
# Flower's shape and a plain loop cost the same for each holder: a few stand for all.
SLOW_HOLDERS = 6
WANTED_RATIO = 40.0


def ours(holders: Sequence[HolderData], arrays: Arrays, kernel: Kernel) -> None:
    """The product's trainer, from jobs to updates."""
    updates = CohortTrainer(kernel).train(make_jobs(holders, MODEL, arrays, [SecureNoise() for _ in holders]))
    assert all(update.applied.keeps(MECHANISM) for update in updates)


def not_private(holders: Sequence[HolderData], arrays: Arrays, kernel: Kernel) -> None:
    """The kernel alone on fixed rows, with neither noise nor clipping."""
    start = np.concatenate([array.ravel() for array in arrays.values()])
    rows = np.arange(STEPS * BATCH)
    ends = np.arange(1, STEPS + 1) * BATCH
    for first in range(0, len(holders), kernel.together):
        steps = [
            HolderSteps(
                features=data.features,
                labels=data.labels,
                weights=start.copy(),
                anchor=start,
                rows=rows,
                units=None,
                ends=ends,
                noise=np.zeros((STEPS, len(start))),
                bound=1e30,
                grid=2.0**-16,
                learning_rate=LEARNING_RATE,
                expected_batch=float(BATCH),
                proximal_mu=0.0,
            )
            for data in holders[first : first + kernel.together]
        ]
        kernel.take_steps(WIDTHS, steps)


def flower_fit(data: HolderData, arrays: Arrays) -> Arrays:
    """One fit as in Flower's Opacus example: everything is made anew for every fit."""
    module = build_module(MODEL, FEATURES)
    write_arrays(module, arrays)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    rows = torch.utils.data.TensorDataset(torch.tensor(data.features), torch.tensor(data.labels))
    loader = torch.utils.data.DataLoader(rows, batch_size=BATCH, shuffle=True)
    module, optimizer, loader = PrivacyEngine(secure_mode=False).make_private(
        module=module.train(), optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0
    )
    for features, labels in loader:
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(module(features), labels).backward()
        optimizer.step()
    return read_arrays(module._module)  # noqa: SLF001 - the wrapper renames the parameters


def opacus_fit(data: HolderData, arrays: Arrays) -> Arrays:
    """One fit with Opacus as fast as it goes by hand: no loader, the cheapest accountant."""
    module = build_module(MODEL, FEATURES)
    write_arrays(module, arrays)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    features, labels = torch.tensor(data.features), torch.tensor(data.labels)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(features, labels), batch_size=BATCH)
    module, optimizer, _ = PrivacyEngine(accountant="rdp").make_private(
        module=module.train(),
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for _ in range(STEPS):
        drawn = torch.nonzero(torch.rand(RECORDS) < BATCH / RECORDS).squeeze(1)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(module(features[drawn]), labels[drawn]).backward()
        optimizer.step()
    return read_arrays(module._module)  # noqa: SLF001 - the wrapper renames the parameters


def gemm_rate(*, size: int = 512, times: int = 10) -> float:
    """Floating-point operations a second when torch multiplies two square matrices."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    started = time.process_time()
    for _ in range(times):
        a @ b
    return 2 * size**3 * times / (time.process_time() - started)


def kernels() -> list[Kernel]:
    """The kernels that there are here, the one that the product takes first."""
    best, fallback = best_kernel(), TorchKernel()
    return [best] if best.name == fallback.name else [best, fallback]


def measure(count: int, *, repetitions: int, seed: int) -> dict[str, Any]:
    """CPU milliseconds for each holder and round, of every way, interleaved."""
    holders = make_holders(count, seed=seed)
    arrays = initial_arrays(MODEL, FEATURES)
    few = holders[:SLOW_HOLDERS]
    ways: dict[str, tuple[int, Callable[[], object]]] = {}
    for kernel in kernels():
        ways[f"ours, {kernel.name}"] = count, lambda kernel=kernel: ours(holders, arrays, kernel)
        ways[f"not private, {kernel.name}"] = count, lambda kernel=kernel: not_private(holders, arrays, kernel)
    ways[FLOWER] = len(few), lambda: [flower_fit(data, arrays) for data in few]
    ways["Opacus, plain loop"] = len(few), lambda: [opacus_fit(data, arrays) for data in few]
    taken: dict[str, list[float]] = {name: [] for name in ways}
    rates = []
    for repetition in range(repetitions + 1):
        for name, (holders_in_it, way) in ways.items():
            started = time.process_time()
            way()
            milliseconds = 1e3 * (time.process_time() - started) / holders_in_it
            if repetition:  # the first warms caches and allocators
                taken[name].append(milliseconds)
        rates.append(gemm_rate())
    limit = 1e3 * FLOPS / statistics.median(rates[1:])
    flower = statistics.median(taken[FLOWER])
    lines = {
        name: {
            "cpu_ms": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "times_less_than_flower": flower / statistics.median(values),
            "times_the_gemm_limit": statistics.median(values) / limit,
        }
        for name, values in taken.items()
    }
    return {"holders": count, "gemm_gflops": statistics.median(rates[1:]) / 1e9, "gemm_limit_ms": limit, "lines": lines}


def _print(result: Mapping[str, Any]) -> None:
    for table in result["tables"]:
        print(
            f"\n{table['holders']} holders; {table['gemm_gflops']:.0f} GFLOP/s, "
            f"so that the GEMM limit of a holder's round is {table['gemm_limit_ms']:.3f} ms"
        )
        print(f"{'':26}{'CPU ms per holder and round':>32}{'x below Flower':>17}{'x GEMM limit':>14}")
        for name, line in table["lines"].items():
            spread = f"{line['cpu_ms']:.3f} [{line['least']:.3f} to {line['most']:.3f}]"
            print(f"{name:26}{spread:>32}{line['times_less_than_flower']:>17.1f}{line['times_the_gemm_limit']:>14.1f}")
    print()
    for key, value in result["environment"].items():
        print(f"{key}: {value}")
    print(f"data seed {result['seed']}; {result['repetitions']} repetitions\n")
    for promise, kept in result["verdicts"].items():
        print(f"{'reached' if kept else 'NOT REACHED'}  {promise}")


def main() -> int:
    """Measure, print, and fail where the promised ratio is not reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--holders", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # what a cohort's own threads go by
    warnings.filterwarnings("ignore", module="opacus|torch")
    tables = [measure(count, repetitions=arguments.repetitions, seed=arguments.seed) for count in arguments.holders]
    chosen = f"ours, {kernels()[0].name}"
    result = {
        "tables": tables,
        "seed": arguments.seed,
        "repetitions": arguments.repetitions,
        "environment": environment("torch", "opacus", "numpy", threads=str(torch.get_num_threads())),
        "verdicts": {
            f"{table['holders']} holders: {chosen} at least {WANTED_RATIO:g} times below Flower": (
                table["lines"][chosen]["times_less_than_flower"] >= WANTED_RATIO
            )
            for table in tables
        },
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
    return 0 if all(result["verdicts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

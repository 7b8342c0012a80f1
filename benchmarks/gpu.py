"""How many steps of private training a GPU takes a second for a whole cohort, beside the compiled kernel.

Run from a checkout with `pip install -e '.[dev]'` and a CUDA build of torch, on a machine with an NVIDIA GPU:

    python benchmarks/gpu.py
    python benchmarks/gpu.py --holders 100 1000 --hidden 256 256 --repetitions 5 --json

The task is that of cohort.py: 512 records per holder, exact Poisson sampling with probability 1/8, 8 steps, clipping
norm 1, noise multiplier 1; drawing, cryptographic noise and checks are in the figure. Wall time, since a GPU's work is
no CPU time: one client-step is one step of one holder. Before anything is timed, GPU and processor train the same
cohort with the same repeatable noise, and their weights must agree within 1e-5 of the largest.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from cohort_task import FEATURES, STEPS, make_holders, make_jobs
from ringfence_client.cohort_kernel import CompiledKernel, Kernel
from ringfence_client.cohort_trainer import CohortTrainer
from ringfence_client.compiled import load_library
from ringfence_client.datasource import HolderData
from ringfence_client.models import Arrays, initial_arrays
from ringfence_client.noise import RehearsalNoise, SecureNoise
from ringfence_client.torch_kernel import TorchKernel
from where_measured import environment

AGREED: Final = 1e-5


def disagreement(
    data: Sequence[HolderData], model: Mapping[str, Any], arrays: Arrays, kernels: Sequence[Kernel]
) -> float:
    """The largest difference of two kernels' weights, relative to the largest weight."""
    weights = []
    for kernel in kernels:
        noise = [RehearsalNoise(7, stream=str(number)) for number in range(len(data))]
        updates = CohortTrainer(kernel).train(make_jobs(data, model, arrays, noise))
        weights.append(np.stack([np.concatenate([a.ravel() for a in update.arrays.values()]) for update in updates]))
    return max(float(np.abs(one - weights[0]).max() / np.abs(weights[0]).max()) for one in weights[1:])


def measure(
    count: int, hidden: Sequence[int], ways: Mapping[str, tuple[Kernel, int]], *, repetitions: int, seed: int
) -> dict[str, Any]:
    """Client-steps a second of every way, interleaved."""
    model, data = {"kind": "mlp", "hidden": tuple(hidden), "seed": 0}, make_holders(count, seed=seed)
    arrays = initial_arrays(model, FEATURES)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, (kernel, threads) in ways.items():
            torch.set_num_threads(threads)
            os.environ["OMP_NUM_THREADS"] = str(threads)  # the compiled kernel's cohort goes by this
            jobs = make_jobs(data, model, arrays, [SecureNoise() for _ in data])
            started = time.perf_counter()
            CohortTrainer(kernel).train(jobs)
            seconds = time.perf_counter() - started
            print(f"{count} holders, {name}: {seconds:.3f} s", file=sys.stderr)
            if repetition:  # the first warms allocators and the GPU
                rates[name].append(count * STEPS / seconds)
    return {
        "holders": count,
        "client_steps_per_second": {
            name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
            for name, values in rates.items()
        },
    }


def main() -> int:
    """Compare, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--holders", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--hidden", type=int, nargs="*", default=[64, 64], help="widths of the hidden layers")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    arguments = parser.parse_args()
    library = load_library()
    if not torch.cuda.is_available() or library is None:
        print("error: this needs an NVIDIA GPU, a CUDA build of torch, and the compiled kernel", file=sys.stderr)
        return 2
    gpu, compiled, cores = TorchKernel("cuda"), CompiledKernel(library), torch.get_num_threads()
    model = {"kind": "mlp", "hidden": tuple(arguments.hidden), "seed": 0}
    apart = disagreement(
        make_holders(100, seed=arguments.seed), model, initial_arrays(model, FEATURES), [compiled, TorchKernel(), gpu]
    )
    ways = {"compiled, one thread": (compiled, 1), f"compiled, {cores} threads": (compiled, cores), gpu.name: (gpu, 1)}
    result = {
        "hidden": arguments.hidden,
        "disagreement": apart,
        "tables": [
            measure(count, arguments.hidden, ways, repetitions=arguments.repetitions, seed=arguments.seed)
            for count in arguments.holders
        ],
        "gpu": torch.cuda.get_device_name(),
        "seed": arguments.seed,
        "repetitions": arguments.repetitions,
        "environment": environment("torch", "numpy"),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"MLP {'-'.join(map(str, [FEATURES, *arguments.hidden, 1]))}; {result['gpu']}; client-steps per second")
        for table in result["tables"]:
            for name, rate in table["client_steps_per_second"].items():
                spread = f"{rate['median']:,.0f} [{rate['least']:,.0f} to {rate['most']:,.0f}]"
                print(f"{table['holders']:>8} holders  {name:24}{spread:>36}")
        print(f"weights differ by at most {apart:.1e} of the largest")
        for key, value in result["environment"].items():
            print(f"{key}: {value}")
    return 0 if apart <= AGREED else 1


if __name__ == "__main__":
    sys.exit(main())

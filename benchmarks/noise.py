"""What private noise costs: CPU time per normal, beside generators that are not safe and the scheme used before.

Run from a checkout with `pip install -e '.[dev]'`:

    python benchmarks/noise.py                       # 50,192 normals: eight steps of an MLP of 6,274 parameters
    python benchmarks/noise.py --count 1000000 --repeats 20 --json

Single-threaded CPU time, all lines in turn within each repeat, so that a busy machine slows all of them alike: ratios
are the result, nanoseconds belong to the machine.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from ringfence_client.noise import SecureNoise, snapped
from ringfence_client.normals import best_transform
from ringfence_client.torch_normals import TorchBoxMuller
from where_measured import environment

OURS = "ours: AES-256, Box-Muller in float64"
PARAMETERS = 6274


def lines(count: int) -> dict[str, Callable[[], object]]:
    """Every line's work on `count` numbers."""
    source, fallback = SecureNoise(), SecureNoise(transform=TorchBoxMuller())
    shape = (count // PARAMETERS, PARAMETERS) if count % PARAMETERS == 0 else (count,)
    noised = source.normal(shape, stddev=0.7)
    ciphers: dict[str, CipherContext] = {
        "AES-256": Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor(),
        "AES-128": Cipher(algorithms.AES128(os.urandom(16)), modes.CTR(bytes(16))).encryptor(),
        "ChaCha20": Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor(),
    }
    zeros, room = bytes(8 * count), bytearray(8 * count)
    ziggurat = np.random.Generator(np.random.SFC64())
    return {
        OURS: lambda: source.normal(shape, stddev=0.7),
        "  the same, transformed by torch": lambda: fallback.normal(shape, stddev=0.7),
        "  snapping the noised sum": lambda: snapped(noised, stddev=0.7),
        **{
            f"  {name} keystream alone": lambda cipher=cipher: cipher.update_into(zeros, room)
            for name, cipher in ciphers.items()
        },
        "before: four normals summed, numpy": lambda: _four_summed(ciphers["AES-256"], count),
        "os.urandom alone, 8 bytes": lambda: os.urandom(8 * count),
        "NOT SAFE: torch.randn, float32": lambda: torch.randn(count),
        "NOT SAFE: torch.randn, float64": lambda: torch.randn(count, dtype=torch.float64),
        "NOT SAFE: numpy ziggurat, float64": lambda: ziggurat.standard_normal(count),
    }


def _four_summed(cipher: CipherContext, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The scheme of decision 9: four Box-Muller normals of 52-bit uniforms, summed and halved."""
    words = np.frombuffer(cipher.update(bytes(32 * count)), dtype="<u8")
    uniforms = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    radius = np.sqrt(-2.0 * np.log(uniforms[: 2 * count]))
    angle = 2.0 * np.pi * uniforms[2 * count :]
    normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    halved: np.ndarray[Any, np.dtype[np.float64]] = normals.reshape(4, count).sum(axis=0) / math.sqrt(4)
    return halved


def measure(count: int, repeats: int) -> dict[str, dict[str, float]]:
    """Nanoseconds of CPU time per number: median and quartiles over the repeats."""
    work = lines(count)
    taken: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, act in work.items():
            start = time.process_time_ns()
            act()
            if repeat:  # the first warms caches up
                taken[name].append((time.process_time_ns() - start) / count)
    ours = statistics.median(taken[OURS])
    results = {}
    for name, each in taken.items():
        low, median, high = statistics.quantiles(each, n=4)
        results[name] = {"ns": median, "ns_quartile_1": low, "ns_quartile_3": high, "of_ours": median / ours}
    return results


def _print(result: Mapping[str, Any]) -> None:
    print(f"{result['count']:,} numbers, {result['repeats']} repeats, ns of CPU time per number\n")
    print(f"{'':40}{'median':>9}{'quartiles':>17}{'of ours':>9}")
    for name, line in result["lines"].items():
        spread = f"{line['ns_quartile_1']:.2f} - {line['ns_quartile_3']:.2f}"
        print(f"{name:40}{line['ns']:9.2f}{spread:>17}{line['of_ours']:9.2f}")
    print()
    for key, value in result["environment"].items():
        print(f"{key}: {value}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=8 * PARAMETERS)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "count": arguments.count,
        "repeats": arguments.repeats,
        "lines": measure(arguments.count, arguments.repeats),
        "environment": environment(
            "torch",
            "numpy",
            "cryptography",
            transform=best_transform().name,
            vectors=torch.backends.cpu.get_cpu_capability(),
        ),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())

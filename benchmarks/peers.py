"""The whole product beside its peers: Flower's Ray simulation with Opacus, and pfl-research. Linux, run by hand.

    python benchmarks/peers.py --prepare build/peers     # once: two environments with pip, some minutes
    python benchmarks/peers.py build/peers               # 100 data holders, twice, in turn
    python benchmarks/peers.py build/peers --only ringfence flower --repetitions 1 --json

Everybody gets the same records, model, number of steps, clipping norm and noise multiplier, all cores, and a process of
its own from a cold start. What cannot be made equal:

* Ringfence and Flower clip and noise every record's gradient over Poisson batches. pfl has no such trainer: its local
  steps are plain SGD over batches of exactly 64, and it clips and noises whole updates, centrally.
* Ringfence asks signed policies, books a privacy ledger, keeps signed logs on disk and checks every update, in each
  round and for each holder. The others do nothing of that, and Flower's epsilon is left out unless --flower-epsilon
  asks for it: Opacus then computes it after each fit, as Flower's own example does, for that one fit alone.
* Keys, papers and ledgers of Ringfence's holders are made before, as they are in life, and timed apart.

`start to first round` is the time from the start of the process to the first committed round; `steady` counts all
rounds but the first. CPU time is that of all processes. Ratios are taken within one repetition.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from process_cost import run_measured
from synthetic import build_scenario, draw_records

RUNNERS = Path(__file__).parent / "peers"
PACKAGES = {
    "flower": ("flwr[simulation]==1.41.*", "opacus==1.6.*", "torch==2.13.0"),
    "pfl": ("pfl==0.6.0", "torch==2.13.0"),
}
TITLES = {
    "ringfence": "Ringfence, all of it",
    "ringfence-one": "Ringfence, one process",
    "flower": "Flower, Ray, Opacus",
    "pfl": "pfl, one process",
    "pfl-cores": "pfl, a process per core",
}
OURS = ("ringfence", "ringfence-one")
# What this project wants of itself: how many times a peer's steady rate, and how many times sooner the first round.
WANTED = {"flower": (50, 5), "pfl": (10, 5), "pfl-cores": (10, 5)}
FEATURES, HIDDEN, ROWS, STEPS, BATCH = 30, (64, 64), 512, 8, 64
CLIPPING_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 1.0, 1.0, 0.5
FRESH_HOLDER, FRESH_ROWS = 10**6, 20_000
TIMEOUT_SECONDS = 1800


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run of one contestant. Times in seconds, memory in bytes.

    `cpu_per_client_round` is of the steady rounds, `whole_cpu_per_client_round` of everything from start to end.
    `accuracy` on fresh records shows that all of them learned the same task. `parts` are Ringfence's own timings.
    """

    contestant: str
    repetition: int
    rounds: int
    load_before: float
    first_round: float
    steady_rate: float
    cpu_per_client_round: float
    whole_cpu_per_client_round: float
    wall: float
    peak_resident_bytes: int
    accuracy: float
    enrolling: float | None
    parts: dict[str, float] | None
    versions: dict[str, str]


def prepare(environments: Path) -> None:
    """Make each peer's environment, where there is none yet. pip's own settings say from which index."""
    for name, packages in PACKAGES.items():
        directory = environments / name
        if directory.exists():
            print(f"{directory} is there")
            continue
        print(f"{directory}: {' '.join(packages)}", flush=True)
        venv.create(directory, with_pip=True)
        install = [directory / "bin" / "python", "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(install, check=True)  # noqa: S603 -- pip, with the packages above


def measure(contestant: str, *, repetition: int, work: Path, rounds: int, arguments: argparse.Namespace) -> Measurement:
    """Let one contestant run once.

    Raises:
        RuntimeError: It failed, or did not train everybody in every round.
    """
    work.mkdir()
    task: dict[str, Any] = {
        "directory": str(arguments.data),
        "holders": arguments.holders,
        "features": FEATURES,
        "hidden": HIDDEN,
        "rounds": rounds,
        "steps": STEPS,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "clipping_norm": CLIPPING_NORM,
        "noise_multiplier": NOISE_MULTIPLIER,
        "seed": arguments.seed,
        "cores": os.cpu_count(),
        "epsilon": arguments.flower_epsilon,
    }
    enrolling = None
    if contestant in OURS:
        task["workers"] = 1 if contestant == "ringfence-one" else os.cpu_count()
        built = build_scenario(
            work / "scenario",
            holders=arguments.holders,
            rows=ROWS,
            features=FEATURES,
            hidden=HIDDEN,
            rounds=rounds,
            steps=STEPS,
            sampling_rate=f"{BATCH / ROWS}",
            clipping_norm=f"{CLIPPING_NORM}",
            learning_rate=f"{LEARNING_RATE}",
            noise_multiplier=f"{NOISE_MULTIPLIER}",
            seed=arguments.seed,
        )
        enrolling, task["scenario"] = built.enrolling_seconds, str(built.directory)
    (work / "task.json").write_text(json.dumps(task))
    load = os.getloadavg()[0]
    log = work / "output.log"
    cost = run_measured(
        _command(contestant, arguments.environments, work / "task.json"),
        environment=_environment(contestant, work),
        log=log,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    marks = _marks(work / "marks.jsonl")
    at = [mark["at"] for mark in marks if mark["event"] == "round"]
    # One of several torch.distributed processes sometimes aborts while they end, when rounds and model are written.
    is_done = len(at) == rounds and (work / "model.npz").exists()
    if not is_done or (cost.exit_code != 0 and contestant != "pfl-cores"):
        tail = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{contestant}: exit code {cost.exit_code}, {len(at)} of {rounds} rounds\n{tail}")
    steady = arguments.holders * (rounds - 1)
    said = {mark["event"]: mark for mark in marks}
    return Measurement(
        contestant=contestant,
        repetition=repetition,
        rounds=rounds,
        load_before=load,
        first_round=at[0] - cost.started_at,
        steady_rate=steady / (at[-1] - at[0]),
        cpu_per_client_round=cost.cpu_seconds_between(at[0], at[-1]) / steady,
        whole_cpu_per_client_round=cost.cpu_seconds / (arguments.holders * rounds),
        wall=cost.wall_seconds,
        peak_resident_bytes=cost.peak_resident_bytes,
        accuracy=_accuracy(work / "model.npz", seed=arguments.seed),
        enrolling=enrolling,
        parts=said["parts"]["seconds"] if "parts" in said else None,
        versions=said["environment"]["versions"],
    )


def _command(contestant: str, environments: Path, task: Path) -> list[str]:
    match contestant:
        case "ringfence" | "ringfence-one":
            return [sys.executable, str(RUNNERS / "ringfence_run.py"), str(task)]
        case "flower":
            return [str(environments / "flower" / "bin" / "python"), str(RUNNERS / "flower_ray.py"), str(task)]
    runner = [str(RUNNERS / "pfl_central.py"), str(task)]
    programs = environments / "pfl" / "bin"
    if contestant == "pfl":
        return [str(programs / "python"), *runner]
    return [str(programs / "torchrun"), "--standalone", "--nproc-per-node", str(os.cpu_count()), *runner]


def _environment(contestant: str, work: Path) -> dict[str, str]:
    environment = dict(os.environ)
    # Ringfence chooses its own threads. In the others one process per core works on its own.
    environment.pop("OMP_NUM_THREADS", None)
    if contestant in OURS:
        return environment
    environment.pop("PYTHONPATH", None)
    return environment | {
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_HOME": str(work / "flwr"),
    }


def _marks(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _accuracy(path: Path, *, seed: int) -> float:
    """How often the multilayer perceptron in a file of weights and biases is right on records nobody trained on."""
    values, labels = draw_records(FRESH_HOLDER, rows=FRESH_ROWS, features=FEATURES, seed=seed)
    with np.load(path) as arrays:
        weights = [array for array in arrays.values() if array.ndim == 2]
        biases = [array for array in arrays.values() if array.ndim == 1]
    for position, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        values = values @ weight.T + bias
        if position < len(weights) - 1:
            values = np.maximum(values, 0)
    return float(np.mean((values[:, 0] > 0) == (labels > 0)))


def compare(measurements: Sequence[Measurement]) -> dict[str, dict[str, list[float]]]:
    """For each peer, how many times better Ringfence was in each repetition: rate, first round, CPU time."""
    ours = {one.repetition: one for one in measurements if one.contestant == "ringfence"}
    ratios: dict[str, dict[str, list[float]]] = {}
    for peer in measurements:
        own = ours.get(peer.repetition)
        if own is None or peer.contestant in OURS:
            continue
        found = ratios.setdefault(peer.contestant, {"steady_rate": [], "first_round": [], "cpu": []})
        found["steady_rate"].append(own.steady_rate / peer.steady_rate)
        found["first_round"].append(peer.first_round / own.first_round)
        found["cpu"].append(peer.cpu_per_client_round / own.cpu_per_client_round)
    return ratios


def machine() -> dict[str, str]:
    """Where the numbers were taken."""
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": f"{processor}, {os.cpu_count()} CPUs, {memory / 2**30:.0f} GiB, {platform.system()}",
        "python": platform.python_version(),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
    }


def show(measurements: Sequence[Measurement], ratios: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Print medians, with the least and the most of all repetitions."""
    names = list(dict.fromkeys(one.contestant for one in measurements))
    print(f"\n{'':26}{'start to first round s':>26}{'client-rounds/s':>26}{'CPU ms/client-round':>26}{'accuracy':>10}")
    for name in names:
        runs = [one for one in measurements if one.contestant == name]
        cells = [
            _spread([one.first_round for one in runs]),
            _spread([one.steady_rate for one in runs]),
            _spread([one.cpu_per_client_round * 1e3 for one in runs]),
        ]
        accuracy = statistics.median(one.accuracy for one in runs)
        print(f"{TITLES[name]:26}" + "".join(f"{cell:>26}" for cell in cells) + f"{accuracy:>10.3f}")
    if ratios:
        print("\nRingfence, times better:")
    for name, found in ratios.items():
        rate, sooner = WANTED[name]
        print(
            f"  {TITLES[name]:24}first round {_spread(found['first_round'])} (wanted {sooner}), "
            f"rate {_spread(found['steady_rate'])} (wanted {rate}), CPU {_spread(found['cpu'])}"
        )
    for one in measurements:
        if one.parts is not None:
            parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in one.parts.items())
            print(
                f"\nRingfence, repetition {one.repetition}: {one.enrolling:.1f} s to enrol before; then {parts} s",
                end="",
            )
    print("\n")


def _spread(values: Sequence[float]) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> int:
    """Prepare the environments, or run the comparison and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("environments", type=Path, help="where the peers' environments are")
    parser.add_argument("--prepare", action="store_true", help="make the environments and do nothing else")
    parser.add_argument("--only", nargs="*", choices=TITLES, default=list(TITLES))
    parser.add_argument("--holders", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10, help="of Ringfence")
    parser.add_argument("--flower-rounds", type=int, default=3)
    parser.add_argument("--pfl-rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--flower-epsilon", action="store_true", help="let Opacus compute epsilon after each fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.environments)
        return 0
    missing = [name for name in PACKAGES if not (arguments.environments / name).exists()]
    if missing and set(arguments.only) - set(OURS):
        parser.error(f"no environment for {', '.join(missing)}: run with --prepare first")
    arguments.environments = arguments.environments.absolute()
    rounds = {
        "ringfence": arguments.rounds,
        "ringfence-one": arguments.rounds,
        "flower": arguments.flower_rounds,
        "pfl": arguments.pfl_rounds,
        "pfl-cores": arguments.pfl_rounds,
    }
    measurements: list[Measurement] = []
    work = Path(tempfile.mkdtemp(prefix="ringfence-peers-"))
    try:
        arguments.data = work / "data"
        arguments.data.mkdir()
        drawn = [
            draw_records(holder, rows=ROWS, features=FEATURES, seed=arguments.seed)
            for holder in range(arguments.holders)
        ]
        np.save(arguments.data / "features.npy", np.stack([values for values, _ in drawn]))
        np.save(arguments.data / "labels.npy", np.stack([labels for _, labels in drawn]))
        for repetition in range(1, arguments.repetitions + 1):
            for name in arguments.only:
                print(f"repetition {repetition}: {TITLES[name]}", file=sys.stderr, flush=True)
                one = measure(
                    name,
                    repetition=repetition,
                    work=work / f"{name}-{repetition}",
                    rounds=rounds[name],
                    arguments=arguments,
                )
                measurements.append(one)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    ratios = compare(measurements)
    if arguments.json:
        document = {"measurements": [asdict(one) for one in measurements], "ratios": ratios, "environment": machine()}
        print(json.dumps(document | {"holders": arguments.holders, "seed": arguments.seed}, indent=2))
        return 0
    show(measurements, ratios)
    for key, value in machine().items():
        print(f"{key}: {value}")
    for name, versions in {one.contestant: one.versions for one in measurements}.items():
        print(f"{name}: {', '.join(f'{package} {number}' for package, number in versions.items())}")
    loads = ", ".join(f"{one.load_before:.1f}" for one in measurements)
    print(f"{arguments.holders} data holders, seed {arguments.seed}; load before each run: {loads}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

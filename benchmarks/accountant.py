"""What an epsilon costs to work out: this accountant beside dp_accounting's and Opacus', and 1,000 holders' gates.

Run from a checkout with `pip install -e '.[dev]'`:

    python benchmarks/accountant.py
    python benchmarks/accountant.py --repeats 9 --json

Times are processor time of one thread. Within a repeat every accountant answers once, so that a busy machine slows all
of them alike; what is printed is the median and the range. `cold` discretises the steps' losses, `warm` finds their
spectra kept; neither finds the answer. Numbers are comparable within one run only.
"""

import argparse
import json
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import dp_accounting
from dp_accounting import pld, rdp
from opacus.accountants import PRVAccountant, RDPAccountant

from ringfence_policy import accounting, composition
from ringfence_policy.mechanism import DpMechanism, History, history_of
from ringfence_policy.vocabulary import Relation, Unit
from where_measured import environment

DELTA, DELTA_PICO = 1e-5, 10**7
Parts = Sequence[tuple[float, float, int]]  # noise multiplier, sampling rate, steps
SETTINGS: tuple[Parts, ...] = (
    [(0.8, 0.01, 1000)],
    [(1.5, 0.01, 1000)],
    [(1.0, 0.05, 1000)],
    [(1.5, 0.1, 1000)],
    [(4.0, 0.1, 10_000)],
    [(4.0, 0.5, 1000)],
    [(1.0, 0.05, 300), (1.5, 0.1, 200), (0.9, 0.02, 500)],
)
HOLDERS = 1000
CALIBRATIONS = ((0.125, 8, 20, 1.0), (0.05, 50, 10, 3.0), (0.5, 10, 40, 8.0))  # rate, steps, rounds, epsilon


def mechanism(noise: float, rate: float, steps: int = 1) -> DpMechanism:
    """One use of sampled training."""
    return DpMechanism(
        kind="dp-sgd",
        clipping_norm=1.0,
        noise_multiplier=noise,
        sampling_rate=rate,
        steps=steps,
        unit=Unit.RECORD,
        relation=Relation.ADD_OR_REMOVE,
    )


def history(parts: Parts) -> History:
    """Parts as a ledger keeps them, one use a step."""
    return history_of((mechanism(noise, rate), steps) for noise, rate, steps in parts)


def forget() -> None:
    """Empty what this accountant remembers."""
    caches: tuple[Any, ...] = (
        accounting._epsilon,  # noqa: SLF001 - a benchmark of what they save
        accounting._micro,  # noqa: SLF001
        accounting.rounds_that_fit,
        accounting.calibrate_noise,
        composition._losses,  # noqa: SLF001
        composition._log_spectrum,  # noqa: SLF001
    )
    for cache in caches:
        cache.cache_clear()


def _ours(parts: Parts) -> float:
    return accounting.epsilon(history(parts), delta=DELTA)


def _cold(parts: Parts) -> float:
    forget()
    return _ours(parts)


def _event(parts: Parts) -> Any:
    return dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)), steps
            )
            for noise, rate, steps in parts
        ]
    )


def _pld(grid: float) -> Callable[[Parts], float]:
    def answer(parts: Parts) -> float:
        return float(pld.PLDAccountant(value_discretization_interval=grid).compose(_event(parts)).get_epsilon(DELTA))

    return answer


def _rdp(parts: Parts) -> float:
    return float(rdp.RdpAccountant().compose(_event(parts)).get_epsilon(DELTA))


def _opacus(kind: Callable[[], Any]) -> Callable[[Parts], float]:
    def answer(parts: Parts) -> float:
        accountant = kind()
        accountant.history = list(parts)
        return float(accountant.get_epsilon(delta=DELTA))

    return answer


ACCOUNTANTS: dict[str, Callable[[Parts], float]] = {
    "ours, cold": _cold,
    "ours, warm": _ours,
    "dp_accounting PLD 1e-4": _pld(1e-4),
    "dp_accounting PLD 1e-3": _pld(1e-3),
    "dp_accounting RDP": _rdp,
    "opacus RDP": _opacus(RDPAccountant),
    "opacus PRV": _opacus(PRVAccountant),
}


def timed(answer: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of processor time, and what came back."""
    start = time.process_time()
    found = answer()
    return (time.process_time() - start) * 1000, found


def spread(milliseconds: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(milliseconds), "least": min(milliseconds), "most": max(milliseconds)}


def epsilons(repeats: int) -> list[dict[str, Any]]:
    """Every accountant on every setting, interleaved."""
    lines = []
    for parts in SETTINGS:
        times: dict[str, list[float]] = {name: [] for name in ACCOUNTANTS}
        found: dict[str, float] = {}
        for _ in range(repeats):
            for name, answer in ACCOUNTANTS.items():
                accounting._epsilon.cache_clear()  # noqa: SLF001 - the answer; the losses and spectra are kept
                spent, found[name] = timed(lambda answer=answer, parts=parts: answer(parts))
                times[name].append(spent)
        lines.append(
            {
                "parts": [dict(zip(("noise", "rate", "steps"), part, strict=True)) for part in parts],
                "accountants": {name: {"epsilon": found[name], **spread(times[name])} for name in ACCOUNTANTS},
            }
        )
    return lines


def gates(repeats: int, *, seed: int) -> dict[str, Any]:
    """A round's gates of many holders, each with a ledger of its own over three mechanisms: does one more use fit?"""
    source = random.Random(seed)  # noqa: S311 - a benchmark's histories
    kinds = [(mechanism(1.0, 0.05), 300), (mechanism(1.5, 0.1), 200), (mechanism(0.9, 0.02), 500)]
    ledgers = [history_of((kind, source.randint(50, most)) for kind, most in kinds) for _ in range(HOLDERS)]
    planned = kinds[0][0]
    times: dict[str, list[float]] = {"fits": [], "epsilon": [], "rounds_that_fit": [], "adaptive": []}

    def one_more(*, at_most: int, adaptive: bool = False) -> int:
        plan = {"epsilon_micro": 9 * 10**6, "delta_pico": DELTA_PICO}
        return sum(
            accounting.rounds_that_fit(ledger, planned, **plan, at_most=at_most, adaptive=adaptive)
            for ledger in ledgers
        )

    asked: dict[str, Callable[[], Any]] = {
        "fits": lambda: one_more(at_most=1),
        "epsilon": lambda: [accounting.epsilon(ledger, delta=DELTA) for ledger in ledgers],
        "rounds_that_fit": lambda: one_more(at_most=100),
        "adaptive": lambda: one_more(at_most=1, adaptive=True),
    }
    for name, ask in asked.items():
        ask()  # the spectra are kept from here on
        for _ in range(repeats):
            accounting.rounds_that_fit.cache_clear()
            accounting._epsilon.cache_clear()  # noqa: SLF001
            accounting._micro.cache_clear()  # noqa: SLF001
            times[name].append(timed(ask)[0])
    return {name: spread(taken) for name, taken in times.items()}


def calibrations(repeats: int) -> list[dict[str, Any]]:
    """A new user's first question: how much noise?"""
    lines = []
    for rate, steps, rounds, epsilon in CALIBRATIONS:
        taken = []
        for _ in range(repeats):
            forget()
            spent, found = timed(
                lambda rate=rate, steps=steps, rounds=rounds, epsilon=epsilon: accounting.calibrate_noise(
                    history=(),
                    mechanism=mechanism(1.0, rate, steps),
                    uses=rounds,
                    epsilon_micro=round(epsilon * 1e6),
                    delta_pico=DELTA_PICO,
                )
            )
            taken.append(spent)
        lines.append({
            "rate": rate, "steps": steps, "rounds": rounds, "epsilon": epsilon,
            "noise_multiplier": found.noise_multiplier, **spread(taken),
        })  # fmt: skip
    return lines


def _print(result: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in result["environment"].items()))
    print(f"\nepsilon at delta {DELTA:g} | milliseconds of processor time: median (least to most)")
    for line in result["epsilons"]:
        print(
            "  " + ", ".join(f"noise {one['noise']} rate {one['rate']} steps {one['steps']}" for one in line["parts"])
        )
        for name, one in line["accountants"].items():
            print(f"    {name:<24}{one['epsilon']:>10.4f} | {_times(one)}")
    print(f"\n{HOLDERS} holders, each with its own history of three mechanisms; milliseconds for all of them")
    for name, one in result["gates"].items():
        print(f"    {name:<24}{_times(one)}")
    print("\ncalibrate_noise, nothing kept from before")
    for one in result["calibrations"]:
        print(
            f"    rate {one['rate']} steps {one['steps']} rounds {one['rounds']} epsilon {one['epsilon']}: "
            f"noise {one['noise_multiplier']:.4f} | {_times(one)}"
        )


def _times(one: dict[str, float]) -> str:
    return f"{one['median']:9.2f} ({one['least']:.2f} to {one['most']:.2f})"


def main() -> int:
    """Measure and print; fail where an epsilon of ours is more than 0.1 % from dp_accounting's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # Opacus warns about the orders it chose
    result = {
        "environment": environment("numpy", "dp-accounting", "opacus"),
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "delta": DELTA,
        "epsilons": epsilons(arguments.repeats),
        "gates": gates(arguments.repeats, seed=arguments.seed),
        "calibrations": calibrations(arguments.repeats),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
    pairs = [
        (line["accountants"]["ours, warm"]["epsilon"], line["accountants"]["dp_accounting PLD 1e-4"]["epsilon"])
        for line in result["epsilons"]
    ]
    return 0 if all(-1e-3 <= ours - theirs <= 1e-3 * theirs for ours, theirs in pairs) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What a deployment costs: seconds, bytes, memory and CPU time of a holder's round, and how many SuperNodes it carries.

Run from a checkout with `pip install -e '.[dev]'`; Linux only:

    python benchmarks/deployment.py                       # rounds with two model sizes, then the SuperLink's limits
    python benchmarks/deployment.py --only rounds --repetitions 3 --rounds 7
    python benchmarks/deployment.py --only nodes --sizes 10 50 100 200 --json

Rounds: one deployment with every process real (coordinator, SuperLink, and for each holder agent, walled trainer and
confined SuperNode), over which Ringfence's run and a no-op Flower app take turns (`flower_app/`): it trains only, on
Flower's Grid or on Ringfence's, or trains and evaluates. Ringfence's turns are one run, interrupted and resumed.
Flower's own pauses decide most of a round: a SuperNode asks for messages every 3 s and looks every half second whether
an answer is ready, its SuperExec looks every second for work, and Flower's Grid looks for answers every 3 s.

Nodes: light SuperNodes (`light_supernodes.py`) with registered keys ask one SuperLink through the front, and answer at
once. They share this machine's cores with it.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict

import deployment_nodes
import deployment_rounds
from deployment_nodes import Crowd
from deployment_rounds import (
    CONTESTANTS,
    COORDINATOR_PARTS,
    HOLDER_PARTS,
    NOOP,
    NOOP_EVALUATED,
    NOOP_QUICK,
    RINGFENCE,
    Rounds,
    ratios,
)
from where_measured import environment

WANTED = 1.2
PEERS = (NOOP, NOOP_QUICK, NOOP_EVALUATED)
ARRAYS = ("six", "one")
_WIDTHS = (6, 8, 10, 13, 11, 10, 24, 14, 20, 16, 15, 7)


def show_rounds(found: Rounds) -> None:
    """Print one deployment's tables."""
    print(f"\n{found.parameters:,} parameters, {found.holders} holders")
    print(f"{'':32}{'s per round':>22}{'start to round 1, s':>22}{'bytes up':>12}{'bytes down':>12}{'load':>16}")
    for contestant in CONTESTANTS:
        turns = [one for one in found.segments if one.contestant == contestant]
        if turns:
            print(
                f"{contestant:32}{_spread([seconds for one in turns for seconds in one.rounds]):>22}"
                f"{_spread([one.to_first_round for one in turns]):>22}"
                f"{statistics.median(one.up for one in turns):>12,.0f}"
                f"{statistics.median(one.down for one in turns):>12,.0f}"
                f"{', '.join(f'{one.load:.1f}' for one in turns):>16}"
            )
    for peer in PEERS:
        times = ratios(found.segments, peer)
        if times:
            wanted = f" (wanted at most {WANTED})" if peer == NOOP else ""
            print(f"Ringfence in units of the {peer}: {_spread(times)}{wanted}")
    ours = [one for one in found.segments if one.contestant == RINGFENCE]
    waits = [seconds for one in ours for seconds in one.waited]
    if waits:
        print(f"a relay waited for its agent: {_spread([1e3 * seconds for seconds in waits])} ms")
    print(f"while nothing runs, a holder: {found.idle[0]:,.0f} bytes a minute up, {found.idle[1]:,.0f} down")
    before, after = found.database_mib
    print(f"the SuperLink's database: {before:.1f} MiB before, {after:.1f} MiB after")
    _show_parts(found)


def _show_parts(found: Rounds) -> None:
    print(f"\n{'':28}{'CPU s per holder-round':^48}{'idle CPU':>12}{'MiB PSS / RSS':>20}{'most':>20}")
    print(f"{'':28}{'Ringfence':>12}{'no-op':>12}{'our Grid':>12}{'evaluates':>12}{'s/min':>16}{'Ringfence':>20}")
    for part in (*HOLDER_PARTS, *COORDINATOR_PARTS):
        cells = []
        for contestant in CONTESTANTS:
            values = [one.cpu.get(part, 0.0) for one in found.segments if one.contestant == contestant]
            cells.append(f"{statistics.median(values):.2f}" if values else "")
        turns = [one for one in found.segments if one.contestant == RINGFENCE]
        memory = [one.memory[part] for one in turns if part in one.memory]
        peak = [one.peak[part] for one in turns if part in one.peak]
        sizes = _pair([statistics.median(values) for values in zip(*memory, strict=True)])
        most = _pair([max(values) for values in zip(*peak, strict=True)])
        idle = f"{found.idle_cpu.get(part, 0.0):.2f}"
        print(f"{part:28}" + "".join(f"{cell:>12}" for cell in cells) + f"{idle:>16}{sizes:>20}{most:>20}")


def show_nodes(parameters: int, crowds: Sequence[Crowd]) -> None:
    """Print what so many SuperNodes cost."""
    print(f"\nlight SuperNodes behind one front and SuperLink, {parameters:,} parameters to and fro")
    heads = (
        *("nodes", "arrays", "requests", "register ms", "connect s", "first, s", "exchange, s", "answered"),
        *("idle CPU front/SL", "CPU ms/answer", "MiB front/SL", "load"),
    )
    print("".join(f"{head:>{width}}" for head, width in zip(heads, _WIDTHS, strict=True)))
    for one in crowds:
        cells = (
            f"{one.nodes}",
            "one" if one.packed else "six",
            f"{one.requests:.0f}",
            f"{one.registering_ms:.1f}",
            f"{one.connecting_seconds:.1f}",
            f"{one.first_exchange:.1f}",
            _spread(one.exchanges) if one.exchanges else "-",
            f"{sum(one.answered)} of {sum(one.asked)}",
            f"{one.idle_cpu.get('front', 0):.0%} / {one.idle_cpu.get('SuperLink', 0):.0%}",
            f"{one.cpu.get('front', 0):.0f} / {one.cpu.get('SuperLink', 0):.0f}",
            f"{one.memory.get('front', 0):.0f} / {one.memory.get('SuperLink', 0):.0f}",
            f"{one.load:.1f}",
        )
        print("".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)))
        for trouble, count in sorted(one.troubles.items()):
            print(f"{'':>8}{count} x {trouble}")


def _spread(values: Sequence[float]) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _pair(values: Sequence[float]) -> str:
    return f"{values[1]:.0f} / {values[0]:.0f}" if values else "-"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("rounds", "nodes"), help="one of the two parts")
    parser.add_argument("--holders", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7, help="of each turn; the first is not counted")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of each contestant, with the first model")
    parser.add_argument("--contestants", nargs="*", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 512], help="of the model's two hidden layers")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10, 50, 100, 200], help="numbers of light SuperNodes")
    parser.add_argument("--arrays", nargs="*", choices=ARRAYS, default=ARRAYS, help="that the nodes' model travels as")
    parser.add_argument("--exchanges", type=int, default=5, help="with each number; the first is counted apart")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    rounds: list[Rounds] = []
    nodes: tuple[int, list[Crowd]] = (0, [])
    if arguments.only != "nodes":
        for place, width in enumerate(arguments.widths):
            rounds.append(
                deployment_rounds.measure(
                    hidden=(width, width),
                    holders=arguments.holders,
                    rounds=arguments.rounds,
                    repetitions=arguments.repetitions if place == 0 else 1,
                    contestants=arguments.contestants,
                    say=say,
                )
            )
            if not arguments.json:
                show_rounds(rounds[-1])
    if arguments.only != "rounds":
        width = arguments.widths[0]
        nodes = deployment_nodes.measure(
            sizes=arguments.sizes,
            hidden=(width, width),
            packed=[one == "one" for one in arguments.arrays],
            exchanges=arguments.exchanges,
            say=say,
        )
        if not arguments.json:
            show_nodes(*nodes)
    where = environment("flwr", "grpcio", "uvicorn", "httpx", "torch", seed="0")
    if arguments.json:
        document = {
            "rounds": [asdict(one) for one in rounds],
            "ratios": [{peer: ratios(one.segments, peer) for peer in PEERS} for one in rounds],
            "nodes": [asdict(one) for one in nodes[1]],
            "nodes_parameters": nodes[0],
            "environment": where,
        }
        print(json.dumps(document, indent=2))
        return 0
    print()
    for key, value in where.items():
        print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

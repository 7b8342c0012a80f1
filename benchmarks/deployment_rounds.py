"""Rounds of Ringfence and of Flower apps that do nothing, in turn, over one deployment whose every process is real."""

import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from flwr.cli.build import build_fab_from_disk

from live import LiveDeployment, wait_until, write_scenario
from pass_through import Passed, PassThroughs, bytes_between, waited
from process_parts import Memory, Part, Watch
from ringfence_server.flower_control import FlowerControl

APP = Path(__file__).with_name("flower_app")
FEATURES = 3  # of the scenario's schema
NAMES = ("alder", "birch", "cedar", "elm", "fir", "gorse", "hazel", "ivy")
# Holders reach the front by this address and are handed on to it: what passes is counted.
COUNTED = "127.0.0.2"
IDLE_SECONDS = 30.0
PATIENCE_SECONDS = 1200.0

RINGFENCE, NOOP = "Ringfence", "no-op app"
NOOP_QUICK, NOOP_EVALUATED = "no-op app, Ringfence's Grid", "no-op app, train and evaluate"
CONTESTANTS = (RINGFENCE, NOOP, NOOP_QUICK, NOOP_EVALUATED)
HOLDER_PARTS = ("agent", "trainer", "reader", "SuperNode", "SuperExec", "process per message")
COORDINATOR_PARTS = ("front", "SuperLink", "SuperLink's SuperExec", "ServerApp")
# What ended children of a process were: see `process_parts`.
CHILDREN_OF = {
    "agent": "reader",
    "trainer": "reader",
    "SuperExec": "process per message",
    "SuperNode": "SuperExec",
    "SuperLink's SuperExec": "ServerApp",
    "SuperLink": "SuperLink's SuperExec",
}
_PARTS = (
    ("flwr-clientapp", "process per message"),
    ("flwr-serverapp", "ServerApp"),
    ("ringfence_client.trainer_process trainer", "trainer"),
    ("ringfence_client.trainer_process", "reader"),
    ("flower-superexec", "SuperExec"),
    ("supernode_child", "SuperNode"),
    ("superlink_child", "SuperLink"),
    ("flower-superlink", "SuperLink"),
    ("ringfence_client.cli start", "agent"),
    ("ringfence_server.cli coordinator start", "front"),
)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Some rounds in a row of one contestant.

    Attributes:
        contestant: Whose.
        repetition: Which turn.
        load: The machine's load when it began.
        to_first_round: Seconds from its start until its first round was closed.
        rounds: Seconds of each round but the first.
        up: Bytes of one holder in one of these rounds, to the coordinator.
        down: The same, from it.
        waited: Seconds that a relay waited for the agent, in these rounds.
        cpu: CPU seconds of each part per holder and round.
        memory: MiB of each part: resident and proportional, median over the segment, holders averaged.
        peak: The same, the most of one holder.
    """

    contestant: str
    repetition: int
    load: float
    to_first_round: float
    rounds: list[float]
    up: float
    down: float
    waited: list[float]
    cpu: dict[str, float]
    memory: dict[str, tuple[float, float]]
    peak: dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What was measured over one deployment.

    Attributes:
        layers: The model's layers, from the features to the output.
        parameters: How many it has.
        holders: How many data holders.
        segments: In the order in which they were run.
        idle: Bytes a minute of one holder whose SuperNode only asks: to the coordinator and from it.
        idle_cpu: CPU seconds a minute of each part, holders averaged, while nothing runs.
        database_mib: The SuperLink's database, with its journal, before the first turn and after the last.
    """

    layers: tuple[int, ...]
    parameters: int
    holders: int
    segments: list[Segment]
    idle: tuple[float, float]
    idle_cpu: dict[str, float]
    database_mib: tuple[float, float]


def part_of(line: str) -> str | None:
    """The part that a command line is, where it is one."""
    return next((part for mark, part in _PARTS if mark in line), None)


def parameters_of(layers: Sequence[int]) -> int:
    """Weights and biases of a multilayer perceptron."""
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(layers))


def ratios(segments: Sequence[Segment], peer: str) -> list[float]:
    """Ringfence's median round in units of a peer's, for each turn that both had."""
    theirs = {one.repetition: statistics.median(one.rounds) for one in segments if one.contestant == peer}
    return [
        statistics.median(one.rounds) / theirs[one.repetition]
        for one in segments
        if one.contestant == RINGFENCE and one.repetition in theirs
    ]


def measure(
    *,
    hidden: Sequence[int],
    holders: int,
    rounds: int,
    repetitions: int,
    contestants: Sequence[str],
    say: Callable[[str], None],
) -> Rounds:
    """Bring up a deployment and let the contestants take turns.

    Args:
        hidden: The model's hidden layers.
        holders: How many data holders.
        rounds: Rounds of each turn; the first is not counted.
        repetitions: Turns of each.
        contestants: Who.
        say: Told how far it is.
    """
    layers = (FEATURES, *hidden, 1)
    with ExitStack() as opened:
        place = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="rf-bench-")))
        passing = opened.enter_context(PassThroughs())
        bench = opened.enter_context(
            _bench(place, passing, hidden=hidden, holders=holders, rounds=rounds * repetitions)
        )
        say(f"{parameters_of(layers)} parameters: {holders} holders are connected")
        idle, idle_cpu = bench.idle()
        database = bench.database_mib()
        segments = []
        for repetition in range(1, repetitions + 1):
            for contestant in contestants:
                segment = bench.turn(contestant, repetition, rounds, layers, is_last=repetition == repetitions)
                say(f"  {repetition}: {contestant}: {statistics.median(segment.rounds):.2f} s a round")
                segments.append(segment)
        after = bench.database_mib()
    return Rounds(
        layers=layers,
        parameters=parameters_of(layers),
        holders=holders,
        segments=segments,
        idle=idle,
        idle_cpu=idle_cpu,
        database_mib=(database, after),
    )


@contextmanager
def _bench(
    place: Path, passing: PassThroughs, *, hidden: Sequence[int], holders: int, rounds: int
) -> Iterator["_Bench"]:
    plan = {
        "model.kind": "mlp",
        "model.hidden": list(hidden),
        "training.rounds": rounds,
        "training.learning_rate": "0.1",
        "privacy.noise_multiplier_max": "100",
    }
    policies = {one: {"projects.max_rounds": rounds} for one in NAMES[:holders]}
    scenario = write_scenario(place / "scenario", holders=NAMES[:holders], rows=512, plan=plan, policies=policies)
    with LiveDeployment(scenario, place / "deployment", name=COUNTED) as live:
        for holder in live.holders:
            live.register(holder)
        wire = passing.tcp(listen=(COUNTED, live.port), far=("127.0.0.1", live.port))
        live.start_coordinator()
        live.start_holders()
        sockets = {
            holder: passing.before_socket(Path([e["socket"] for e in side.events() if e["event"] == "serving"][-1]))
            for holder, side in live.holders.items()
        }
        yield _Bench(live, wire, sockets)


class _Bench:
    """A deployment that runs, with counters before its front and before each agent."""

    def __init__(self, live: Any, wire: list[Passed], sockets: Mapping[str, list[Passed]]) -> None:
        self._live, self._wire, self._sockets = live, wire, sockets
        authority = live.directory / "coordinator" / "transport" / "authority.crt"
        self._control = FlowerControl(live.superlink, authority=authority.read_bytes())
        self._fab = build_fab_from_disk(APP)

    def idle(self) -> tuple[tuple[float, float], dict[str, float]]:
        """Bytes and CPU seconds a minute of one holder while nothing runs."""
        with self._watched() as watch:
            time.sleep(2)
            began = time.time()
            time.sleep(IDLE_SECONDS)
            ended = time.time()
            time.sleep(1)
        up, down = bytes_between(self._wire, began, ended)
        share = 60 / (ended - began) / len(self._live.holders)
        cpu = {part: seconds * share for part, seconds in self._by_part(watch, began, ended).items()}
        return (up * share, down * share), cpu

    def database_mib(self) -> float:
        """The SuperLink's database, with its journal."""
        transport = self._live.directory / "coordinator" / "transport"
        return sum(path.stat().st_size for path in transport.glob("superlink.db*")) / 2**20

    def turn(self, contestant: str, repetition: int, rounds: int, layers: Sequence[int], *, is_last: bool) -> Segment:
        """Let one contestant do its rounds."""
        load, began = os.getloadavg()[0], time.time()
        with self._watched() as watch:
            if contestant == RINGFENCE:
                ends = self._ringfence(repetition, rounds, is_last=is_last)
            else:
                ends = self._noop(contestant, rounds, layers)
            time.sleep(1)
        ends = [at for at in ends if at > began]
        shares = len(self._live.holders) * (len(ends) - 1)
        up, down = bytes_between(self._wire, ends[0], ends[-1])
        return Segment(
            contestant=contestant,
            repetition=repetition,
            load=load,
            to_first_round=ends[0] - began,
            rounds=[after - before for before, after in pairwise(ends)],
            up=up / shares,
            down=down / shares,
            waited=[one for passed in self._sockets.values() for one in waited(passed, ends[0], ends[-1])],
            cpu={part: seconds / shares for part, seconds in self._by_part(watch, ends[0], ends[-1]).items()},
            memory=self._memory(watch, statistics.median, statistics.fmean),
            peak=self._memory(watch, max, max),
        )

    def _ringfence(self, repetition: int, rounds: int, *, is_last: bool) -> list[float]:
        """Some rounds of the one run, which is interrupted after its turn and taken up again at the next."""
        live = self._live
        run = live.start_run(*(() if repetition == 1 else ("--resume",)))

        def closed() -> list[float]:
            return [one["at"] for one in live.events() if one["event"] == "round-closed"]

        wait_until(
            "the rounds are closed",
            lambda: len(closed()) >= rounds * repetition or not run.is_alive,
            seconds=PATIENCE_SECONDS,
        )
        ends = closed()
        if len(ends) < rounds * repetition:
            raise RuntimeError(f"{len(ends)} rounds only\n{run.log.read_text()[-3000:]}")
        code = run.wait() if is_last else run.end(signal.SIGINT)
        if is_last and code != 0:
            raise RuntimeError(run.log.read_text()[-3000:])
        return ends

    def _noop(self, contestant: str, rounds: int, layers: Sequence[int]) -> list[float]:
        marks = self._live.directory / f"marks-{time.monotonic_ns()}"
        config = {
            "marks": str(marks),
            "rounds": rounds,
            "layers": ",".join(map(str, layers)),
            "evaluate": int(contestant == NOOP_EVALUATED),
            "quick": int(contestant == NOOP_QUICK),
        }
        number = self._control.start_run(config, fab=self._fab)
        wait_until("the no-op app is over", lambda: self._control.run_state(number).is_over, seconds=PATIENCE_SECONDS)
        if not self._control.run_state(number).is_completed:
            raise RuntimeError(f"the no-op app failed\n{self._control.log_of(number)[-3000:]}")
        lines = [json.loads(line) for line in marks.read_text().splitlines()]
        return [line["at"] for line in lines if line["round"] > 0]

    @contextmanager
    def _watched(self) -> Iterator[Watch]:
        roots = {self._live.coordinator.process_id: "coordinator"}
        roots |= {side.node.process_id: holder for holder, side in self._live.holders.items()}
        watch = Watch(roots, part_of=part_of, children_of=CHILDREN_OF)
        try:
            yield watch
        finally:
            watch.close()

    def _by_part(self, watch: Watch, began: float, ended: float) -> dict[str, float]:
        found: dict[str, float] = {}
        for part, seconds in watch.seconds_between(began, ended).items():
            name = name_of(part)
            found[name] = found.get(name, 0.0) + seconds
        return found

    def _memory(
        self,
        watch: Watch,
        over_time: Callable[[Sequence[float]], float],
        over_holders: Callable[[Sequence[float]], float],
    ) -> dict[str, tuple[float, float]]:
        found: dict[str, list[Memory]] = {}
        for part, memory in watch.memory.items():
            found.setdefault(name_of(part), []).append(memory)
        return {
            name: (
                over_holders([over_time(one.resident) for one in memories]),
                over_holders([over_time(one.proportional) for one in memories]),
            )
            for name, memories in found.items()
        }


def name_of(part: Part) -> str:
    """A part's name in tables: the SuperLink has a SuperExec of its own."""
    owner, name = part
    return "SuperLink's SuperExec" if owner == "coordinator" and name == "SuperExec" else name

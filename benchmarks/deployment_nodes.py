"""How many SuperNodes one SuperLink carries behind the front: light ones, which do what it sees of a SuperNode."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.cli.build import build_fab_from_disk

from deployment_rounds import APP, CHILDREN_OF, FEATURES, name_of, parameters_of, part_of
from live import LiveDeployment, environment, letters, wait_until, write_scenario
from process_parts import Watch
from ringfence_policy.errors import DeploymentFault
from ringfence_policy.letters import Registration, read_letter
from ringfence_server.deployment import load_deployment
from ringfence_server.flower_control import FlowerControl
from ringfence_server.registry import Registry
from ringfence_server.superlink_keys import reconcile

LIGHT = Path(__file__).with_name("light_supernodes.py")
IDLE_SECONDS = 20.0
CONNECT_SECONDS = 300.0
EXCHANGE_SECONDS = 300.0
RUN_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """What so many SuperNodes cost.

    Attributes:
        nodes: How many were started.
        packed: Whether the model travelled as one array, and not as one for each weight and bias.
        load: The machine's load when they were.
        registering_ms: Milliseconds to take in one more registration, with this many.
        connected: How many were connected in time.
        connecting_seconds: From the first start until the last was connected.
        idle_cpu: CPU seconds a second of each part while all only ask every three seconds.
        exchanges: Seconds of each exchange with all, but for the first.
        first_exchange: Seconds of the first, in which every SuperNode also asks for the app.
        asked: How many were asked in each exchange.
        answered: How many answered in each exchange.
        requests: Requests through the front for one answer.
        cpu: CPU milliseconds of each part per answer.
        memory: Proportional MiB of each part, the most.
        troubles: What went wrong, and how often.
    """

    nodes: int
    packed: bool
    load: float
    registering_ms: float
    connected: int
    connecting_seconds: float
    idle_cpu: dict[str, float]
    first_exchange: float
    exchanges: list[float]
    asked: list[int]
    answered: list[int]
    requests: float
    cpu: dict[str, float]
    memory: dict[str, float]
    troubles: dict[str, int]


def measure(
    *, sizes: Sequence[int], hidden: Sequence[int], packed: Sequence[bool], exchanges: int, say: Callable[[str], None]
) -> tuple[int, list[Crowd]]:
    """Bring up a coordinator and let more and more SuperNodes connect to it.

    Args:
        sizes: How many, in growing order.
        hidden: Hidden layers of the model that goes to and fro.
        packed: Whether the model travels as one array, for each way that is to be measured.
        exchanges: How often all are asked; the first is counted apart.
        say: Told how far it is.

    Returns:
        The model's parameters, and what was measured for each size.
    """
    layers = (FEATURES, *hidden, 1)
    found = []
    with ExitStack() as opened:
        place = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="rf-bench-")))
        scenario = write_scenario(place / "scenario", holders=())
        live = opened.enter_context(LiveDeployment(scenario, place / "deployment"))
        live.start_coordinator()
        crowd = _Crowd(live, place, layers=layers)
        for size in sizes:
            for is_packed in packed:
                one = crowd.measure(size, exchanges=exchanges, packed=is_packed)
                found.append(one)
                seconds = ", ".join(f"{value:.1f}" for value in one.exchanges)
                say(f"{size} nodes: {one.connected} connected, exchanges {seconds} s, troubles {one.troubles}")
    return parameters_of(layers), found


class _Crowd:
    """A coordinator that runs, and the keys of those who may connect."""

    def __init__(self, live: Any, place: Path, *, layers: Sequence[int]) -> None:
        self._live, self._place, self._layers = live, place, layers
        self._deployment = load_deployment(live.directory)
        self._registry = Registry(self._deployment.holders)
        authority = self._deployment.authority_file.read_bytes()
        self._control = FlowerControl(live.superlink, authority=authority)
        self._keys: list[str] = []

    def measure(self, size: int, *, exchanges: int, packed: bool) -> Crowd:
        """Register as many as are missing, let all connect, and ask all."""
        registering = self._register(size)
        load = os.getloadavg()[0]
        specification = self._place / "light.json"
        specification.write_text(
            json.dumps(
                {
                    "address": f"127.0.0.1:{self._live.port}",
                    "authority": str(self._deployment.authority_file),
                    "keys": self._keys,
                }
            )
        )
        output = self._place / f"light-{size}-{packed}.jsonl"
        with output.open("w") as file:
            light = subprocess.Popen(  # noqa: S603 -- the script beside this one
                [sys.executable, str(LIGHT), str(specification)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=(self._place / "light.log").open("a"),
                env=environment(),
            )
        roots = {self._live.coordinator.process_id: "coordinator", light.pid: "light nodes"}
        watch = Watch(roots, part_of=part_of, children_of=CHILDREN_OF)
        try:
            return self._measured(
                size,
                output,
                light,
                watch,
                exchanges=exchanges,
                packed=packed,
                registering_ms=registering,
                load=load,
            )
        finally:
            watch.close()
            if light.poll() is None:
                light.kill()
                light.wait()

    def _register(self, size: int) -> float:
        """Take in registrations until there are so many. Gives milliseconds of the last one."""
        coordinator = self._deployment.coordinator()
        last = 0.0
        try:
            for number in range(len(self._keys), size):
                key = letters.supernode_key()
                path = self._place / f"node-{number}.pem"
                path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
                token = letters.Correspondent.named(f"holder-{number:04d}").write(key)
                began = time.perf_counter()
                self._registry.keep(Registration.open(read_letter(token.encode())), token, coordinator)
                last = (time.perf_counter() - began) * 1e3
                self._keys.append(str(path))
        finally:
            coordinator.close()
        reconcile(self._control, self._registry.keys())
        return last

    def _measured(
        self,
        size: int,
        output: Path,
        light: "subprocess.Popen[bytes]",
        watch: Watch,
        *,
        exchanges: int,
        packed: bool,
        registering_ms: float,
        load: float,
    ) -> Crowd:
        def connected() -> list[float]:
            return [line["at"] for line in _lines(output) if "connected" in line]

        until = time.monotonic() + CONNECT_SECONDS
        while len(connected()) < size and time.monotonic() < until and light.poll() is None:
            time.sleep(0.2)
        times = connected()
        started = next((line["at"] for line in _lines(output) if "starting" in line), time.time())
        time.sleep(5)
        idle_began = time.time()
        time.sleep(IDLE_SECONDS)
        idle_ended = time.time()
        lines = self._exchange(size, exchanges, packed=packed) if len(times) == size else []
        assert light.stdin is not None
        light.stdin.close()
        wait_until("the light nodes end", lambda: light.poll() is not None, seconds=120)
        watch.close()
        answered = sum(line["answered"] for line in lines[1:])
        idle = watch.seconds_between(idle_began, idle_ended)
        busy = watch.seconds_between(lines[1]["began"], lines[-1]["at"]) if len(lines) > 1 else {}
        troubles = dict(next((line["counts"] for line in _lines(output) if "counts" in line), {}))
        requests = troubles.pop("requests", 0) / max(1, troubles.pop("answered", 0))
        for line in lines:
            for reason in line["errors"]:
                troubles[f"error reply: {reason}"] = troubles.get(f"error reply: {reason}", 0) + 1
        seconds = [line["at"] - line["began"] for line in lines]
        return Crowd(
            nodes=size,
            packed=packed,
            load=load,
            registering_ms=registering_ms,
            connected=len(times),
            connecting_seconds=(max(times) - started) if times else 0.0,
            idle_cpu={name_of(part): value / (idle_ended - idle_began) for part, value in idle.items()},
            first_exchange=seconds[0] if seconds else 0.0,
            exchanges=seconds[1:],
            asked=[line["asked"] for line in lines],
            answered=[line["answered"] for line in lines],
            requests=requests,
            cpu={name_of(part): value * 1e3 / max(1, answered) for part, value in busy.items()},
            memory={name_of(part): max(memory.proportional) for part, memory in watch.memory.items()},
            troubles=troubles,
        )

    def _exchange(self, nodes: int, exchanges: int, *, packed: bool) -> list[dict[str, Any]]:
        marks = self._place / f"marks-{nodes}-{packed}"
        marks.touch()
        config = {
            "marks": str(marks),
            "rounds": exchanges,
            "layers": ",".join(map(str, self._layers)),
            "nodes": nodes,
            "packed": int(packed),
            "patience": int(EXCHANGE_SECONDS),
        }
        number = self._control.start_run(config, fab=build_fab_from_disk(APP))
        until = time.monotonic() + RUN_SECONDS
        while time.monotonic() < until:
            try:
                if self._control.run_state(number).is_over:
                    break
            except DeploymentFault:  # a SuperLink that is too busy to say so: what counts are the marks
                pass
            time.sleep(1)
        return _lines(marks)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

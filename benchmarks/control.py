"""How a control plane answers while a run trains: latencies at a steady rate, open streams, seconds from round to event.

Run from a checkout with `pip install -e '.[dev]'`:

    python benchmarks/control.py                          # 100 holders, 50 requests/s, 200 streams, 30 seconds
    python benchmarks/control.py --holders 10 --streams 20 --seconds 10 --json

One workshop (`ringfence workshop`) over a scenario built for it, one run in its worker process, and this process as
all clients. Requests begin on a clock, whether earlier ones were answered or not, so that waiting counts. Seconds from round
to event are from the time that the run wrote into the event to when each stream had it.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx

from synthetic import build_scenario
from where_measured import environment

ROUNDS = 400
STARTING_SECONDS = 300.0
_CLOSED = re.compile(r'data: \{"seq":\d+,"name":"round-closed","at_ms":(\d+)')
READS = ("/api/v1/runs", "/api/v1/runs/{run}", "/api/v1/me", "/api/v1/plans", "/api/v1/runs/{run}/events?limit=50")


class Clients:
    """Everybody who asks, as one process."""

    def __init__(self, address: str, run: str, cookie: str) -> None:
        self._run = run
        self._client = httpx.AsyncClient(
            base_url=address,
            headers={"cookie": cookie},
            timeout=60,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )
        self.latencies: dict[str, list[float]] = {path: [] for path in READS}
        self.delays: list[float] = []
        self.failed = 0
        self.streams = 0
        self._open = asyncio.Event()
        self._wanted = 0
        self._live_from = float("inf")

    async def measure(self, *, rate: float, streams: int, seconds: float) -> None:
        """Open the streams, then ask at `rate` for `seconds`."""
        self._wanted = streams
        if not streams:
            self._open.set()
        readers = [asyncio.create_task(self._follow()) for _ in range(streams)]
        await self._open.wait()
        await asyncio.sleep(2)  # what happened before the streams were opened is sent first, and is not counted
        self._live_from = time.time()
        begun, asked = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            asked.append(asyncio.create_task(self._ask(READS[number % len(READS)])))
        await asyncio.gather(*asked)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        await self._client.aclose()

    async def _ask(self, path: str) -> None:
        begun = time.perf_counter()
        reply = await self._client.get(path.format(run=self._run))
        self.latencies[path].append(time.perf_counter() - begun)
        self.failed += reply.status_code != httpx.codes.OK

    async def _follow(self) -> None:
        async with self._client.stream("GET", f"/api/v1/runs/{self._run}/stream") as reply:
            reply.raise_for_status()
            self.streams += 1
            if self.streams == self._wanted:
                self._open.set()
            async for line in reply.aiter_lines():
                # The beginning is enough, and 200 readers in one process must not be what is measured.
                found = _CLOSED.match(line)
                if found is not None and (at := int(found[1]) / 1000) >= self._live_from:
                    self.delays.append(time.time() - at)


def measure(*, holders: int, rate: float, streams: int, seconds: float) -> dict[str, Any]:
    """Start a workshop and a run in it, and measure while it trains."""
    with tempfile.TemporaryDirectory() as place:
        site = Path(place) / "site"
        build_scenario(site, holders=holders, rows=256, hidden=(32,), rounds=ROUNDS)
        command = [sys.executable, "-m", "ringfence_server.cli", "workshop", str(site), "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as workshop:  # noqa: S603 -- the product
            try:
                assert workshop.stdout is not None
                printed = json.loads(workshop.stdout.readline())
                run, cookie = _begin(printed)
                clients = Clients(printed["address"], run, cookie)
                asyncio.run(clients.measure(rate=rate, streams=streams, seconds=seconds))
                state = _state(printed["address"], run, cookie)
            finally:
                workshop.send_signal(signal.SIGINT)
                workshop.wait(60)
    return {
        "holders": holders,
        "requests_per_second": rate,
        "streams": streams,
        "seconds": seconds,
        "failed": clients.failed,
        "run": {"state": state["state"], "rounds": len(state["rounds"])},
        "read_ms": {path: _spread([one * 1e3 for one in found]) for path, found in clients.latencies.items()},
        "all_reads_ms": _spread([one * 1e3 for found in clients.latencies.values() for one in found]),
        "round_to_event_seconds": _spread(clients.delays),
        "measured": environment("fastapi", "uvicorn", "sqlalchemy", "flwr", "torch"),
    }


def _begin(printed: dict[str, Any]) -> tuple[str, str]:
    link = next(one for one in printed["links"] if one["role"] == "coordinator")
    with httpx.Client(
        base_url=printed["address"], headers={"origin": printed["address"]}, timeout=60, trust_env=False
    ) as client:
        cookie = client.get(link["plain_url"]).headers["set-cookie"].split(";")[0]
        plan = client.get("/api/v1/plans").json()[0]["text"]
        proposal = client.post("/api/v1/proposals", json={"text": plan}).json()["id"]
        run: str = client.post("/api/v1/runs", json={"proposal": proposal}).json()["run_id"]
        ends = time.monotonic() + STARTING_SECONDS
        while not (found := client.get(f"/api/v1/runs/{run}").json())["rounds"]:
            assert found["error"] is None, found["error"]
            assert time.monotonic() < ends, "the run does not begin"
            time.sleep(0.2)
    return run, cookie


def _state(address: str, run: str, cookie: str) -> Any:
    return httpx.get(f"{address}/api/v1/runs/{run}", headers={"cookie": cookie}, timeout=60, trust_env=False).json()


def _spread(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"n": len(values)}
    cuts = statistics.quantiles(values, n=100)
    return {"n": len(values), "p50": cuts[49], "p99": cuts[98], "max": max(values)}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--holders", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(holders=given.holders, rate=given.rate, streams=given.streams, seconds=given.seconds)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for name, spread in itertools.chain(found["read_ms"].items(), [("all reads", found["all_reads_ms"])]):
        print(f"{name:<40} p50 {spread['p50']:7.1f} ms   p99 {spread['p99']:7.1f} ms   n {spread['n']}")
    delay = found["round_to_event_seconds"]
    print(f"{'round to event':<40} " + "   ".join(f"{key} {value:.3g}" for key, value in delay.items()))
    print(f"{found['run']['rounds']} rounds, {found['run']['state']}; {found['failed']} answers were no 200")
    print(json.dumps(found["measured"]))


if __name__ == "__main__":
    main()

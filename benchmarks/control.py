"""How a control plane answers while a run trains: latencies at a steady rate, open streams, and round to event.

Run from a checkout with `pip install -e '.[dev]'`:

    python benchmarks/control.py                          # 100 holders, 50 requests/s, 200 streams, 30 seconds
    python benchmarks/control.py --holders 10 --streams 20 --seconds 10 --json

One workshop (`ringfence workshop`) over a scenario built for it, one run in its worker process, one process that asks
and one that keeps the streams open, all on this machine. Requests begin on a clock, whether earlier ones were answered
or not, so that waiting counts. Seconds from round to event are from the time that the run wrote into the event to when
each stream had it.
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
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx

from synthetic import build_scenario
from where_measured import environment

ROUNDS = 400
STARTING_SECONDS = 300.0
_CLOSED = re.compile(rb'data: \{"seq":\d+,"name":"round-closed","at_ms":(\d+)')
READS = ("/api/v1/runs", "/api/v1/runs/{run}", "/api/v1/me", "/api/v1/plans", "/api/v1/runs/{run}/events?limit=50")


async def ask(
    address: str, run: str, cookie: str, *, rate: float, seconds: float
) -> tuple[dict[str, list[float]], int]:
    """Ask at a steady rate: seconds of each answer by route, and how many were no 200."""
    latencies: dict[str, list[float]] = {path: [] for path in READS}
    failed = 0

    async def once(client: httpx.AsyncClient, path: str) -> None:
        nonlocal failed
        begun = time.perf_counter()
        reply = await client.get(path.format(run=run))
        latencies[path].append(time.perf_counter() - begun)
        failed += reply.status_code != httpx.codes.OK

    async with httpx.AsyncClient(base_url=address, headers={"cookie": cookie}, timeout=60, trust_env=False) as client:
        begun, asked = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            asked.append(asyncio.create_task(once(client, READS[number % len(READS)])))
        await asyncio.gather(*asked)
    return latencies, failed


def follow_all(address: str, run: str, cookie: str, streams: int, told: Connection) -> None:
    """Keep streams open, in a process of its own so that reading them is not what is measured, and say the delays."""
    asyncio.run(_follow_all(address, run, cookie, streams, told))


async def _follow_all(address: str, run: str, cookie: str, streams: int, told: Connection) -> None:
    parts = urlsplit(address)
    live_from, delays = float("inf"), []

    async def follow(reader: asyncio.StreamReader) -> None:
        rest = b""
        while piece := await reader.read(1 << 18):
            rest += piece
            written = [int(found[1]) / 1000 for found in _CLOSED.finditer(rest)]
            delays.extend(time.time() - at for at in written if at >= live_from)
            rest = rest[-100:] if _CLOSED.search(rest[-100:]) is None else b""

    readers = []
    for _ in range(streams):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
        head = f"GET /api/v1/runs/{run}/stream HTTP/1.1\r\nHost: {parts.netloc}\r\nCookie: {cookie}\r\n\r\n"
        writer.write(head.encode())
        line = await reader.readline()
        assert b" 200 " in line, line
        readers.append((asyncio.create_task(follow(reader)), writer))
    await asyncio.sleep(2)  # what happened before the streams were opened is sent first, and is not counted
    live_from = time.time()
    told.send("open")
    await asyncio.to_thread(told.recv)
    for task, writer in readers:
        task.cancel()
        writer.close()
    told.send(delays)


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
                ours, theirs = Pipe()
                followers = Process(target=follow_all, args=(printed["address"], run, cookie, streams, theirs))
                followers.start()
                ours.recv()
                latencies, failed = asyncio.run(ask(printed["address"], run, cookie, rate=rate, seconds=seconds))
                ours.send("done")
                delays = ours.recv()
                followers.join()
                state = _state(printed["address"], run, cookie)
            finally:
                workshop.send_signal(signal.SIGINT)
                workshop.wait(60)
    return {
        "holders": holders,
        "requests_per_second": rate,
        "streams": streams,
        "seconds": seconds,
        "failed": failed,
        "run": {"state": state["state"], "rounds": len(state["rounds"])},
        "read_ms": {path: _spread([one * 1e3 for one in found]) for path, found in latencies.items()},
        "all_reads_ms": _spread([one * 1e3 for found in latencies.values() for one in found]),
        "round_to_event_seconds": _spread(delays),
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

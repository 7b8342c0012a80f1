"""How a control plane answers while a run trains: latencies at a steady rate, open streams, and round to event.

Run from a checkout with `pip install -e '.[dev]'`:

    python benchmarks/control.py build/control --prepare       # once: an environment with locust
    python benchmarks/control.py build/control                 # 100 holders, 50 requests/s, 200 streams, 30 seconds
    python benchmarks/control.py build/control --holders 10 --streams 20 --seconds 10 --json

One workshop (`ringfence workshop`) over a scenario built for it, one run in its worker process, one locust that asks
and one that keeps the streams open (`control_locust.py`), all on this machine. From round to event is the time from
what the run wrote into the event to when each stream had it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx

from synthetic import build_scenario
from where_measured import environment

LOCUST = "locust==2.47.*"
ROUNDS = 400
STARTING_SECONDS = 300.0
OPENING_SECONDS = 10


def prepare(place: Path) -> None:
    """Make the environment of locust, where there is none yet. pip's own settings say from which index."""
    if not place.exists():
        venv.create(place, with_pip=True)
        install = [place / "bin" / "python", "-m", "pip", "install", "--quiet", LOCUST]
        subprocess.run(install, check=True)  # noqa: S603 -- pip, with the package above


class Locust:
    """One locust at work.

    Args:
        place: Its environment.
        kind: What it does, a class of control_locust.py.
        users: How many.
        seconds: For how long.
        options: Which control plane, run and credential.
    """

    def __init__(self, place: Path, kind: str, *, users: int, seconds: float, options: list[str]) -> None:
        script = Path(__file__).with_name("control_locust.py")
        command = [place / "bin" / "locust", "-f", script, "--headless", "--json", "--loglevel", "ERROR"]
        size = ["-u", str(users), "-r", str(users), "-t", f"{seconds:g}s"]
        self._process = subprocess.Popen([*command, *size, *options, kind], stdout=subprocess.PIPE, text=True)  # noqa: S603

    def rows(self) -> dict[str, dict[str, float]]:
        """What it measured, milliseconds by name of a request, once it is through."""
        out, _ = self._process.communicate()
        return {row["name"]: _spread(row) for row in json.loads(out)}


def measure(place: Path, *, holders: int, rate: int, streams: int, seconds: float) -> dict[str, Any]:
    """Start a workshop and a run in it, and measure while it trains."""
    with tempfile.TemporaryDirectory() as temporary:
        site, credential = Path(temporary) / "site", Path(temporary) / "credential"
        build_scenario(site, holders=holders, rows=256, hidden=(32,), rounds=ROUNDS)
        command = [sys.executable, "-m", "ringfence_server.cli", "workshop", str(site), "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as workshop:  # noqa: S603 -- the product
            try:
                assert workshop.stdout is not None
                printed = json.loads(workshop.stdout.readline())
                run, cookie = _begin(printed)
                credential.write_text(f"Cookie: {cookie}")
                options = ["--host", printed["address"], "--run", run, "--credential", str(credential)]
                follower = Locust(
                    place, "Follower", users=streams, seconds=seconds + 2 * OPENING_SECONDS, options=options
                )
                time.sleep(OPENING_SECONDS)
                reads = Locust(place, "Reader", users=rate, seconds=seconds, options=options).rows()
                followed = follower.rows()
                state = _state(printed["address"], run, cookie)
            finally:
                workshop.send_signal(signal.SIGINT)
                workshop.wait(60)
    return {
        "holders": holders,
        "requests_per_second": rate,
        "streams": streams,
        "seconds": seconds,
        "run": {"state": state["state"], "rounds": len(state["rounds"])},
        "read_ms": reads,
        "stream_ms": followed,
        "measured": environment("fastapi", "uvicorn", "sqlalchemy", "flwr", "torch") | {"locust": LOCUST},
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


def _spread(row: dict[str, Any]) -> dict[str, float]:
    times = sorted((float(ms), count) for ms, count in row["response_times"].items())
    total = sum(count for _, count in times)

    def at(share: float) -> float:
        seen = 0
        for ms, count in times:
            seen += count
            if seen >= share * total:
                return ms
        return float("nan")

    return {"n": total, "failed": row["num_failures"], "p50": at(0.5), "p99": at(0.99), "max": row["max_response_time"]}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path, help="where locust is, or is to be, installed")
    parser.add_argument("--prepare", action="store_true", help="install locust there and do nothing else")
    parser.add_argument("--holders", type=int, default=100)
    parser.add_argument("--rate", type=int, default=50, help="requests per second")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.prepare:
        prepare(given.environment)
        return
    if not (given.environment / "bin" / "locust").exists():
        parser.error("no locust there: run with --prepare first")
    found = measure(
        given.environment, holders=given.holders, rate=given.rate, streams=given.streams, seconds=given.seconds
    )
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for name, row in {**found["read_ms"], **found["stream_ms"]}.items():
        print(
            f"{name:<40} p50 {row['p50']:7.1f} ms   p99 {row['p99']:7.1f} ms   max {row['max']:7.1f} ms   "
            f"n {row['n']}   failed {row['failed']}"
        )
    print(f"{found['run']['rounds']} rounds, {found['run']['state']}")
    print(json.dumps(found["measured"]))


if __name__ == "__main__":
    main()

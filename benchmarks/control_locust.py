"""What locust (https://locust.io) does to a control plane while a run trains: ask at a steady rate, keep streams open.

`control.py` starts both; by hand, over a control plane that runs already and a run that trains in it:

    cd benchmarks; export LOCUST_LOCUSTFILE=control_locust.py LOCUST_HEADLESS=true LOCUST_HOST=http://127.0.0.1:8080
    locust --run RUN --credential FILE -u 50 -r 50 -t 30s Reader
    locust --run RUN --credential FILE -u 200 -r 50 -t 60s Follower

-u says how many requests a second, or how many streams. FILE holds one header, as `Authorization: Bearer TOKEN`, which
others on this machine need not read in its list of processes. "round to event" is the time from what the run wrote into
its event to when a stream had it.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

from locust import FastHttpUser, HttpUser, between, events, task

READS = ("/api/v1/runs", "/api/v1/runs/{run}", "/api/v1/me", "/api/v1/plans", "/api/v1/runs/{run}/events?limit=50")
_PATHS = itertools.cycle(READS)
_DATA = b"data: "


@events.init_command_line_parser.add_listener
def options(parser: argparse.ArgumentParser) -> None:
    """Say which run is asked about, and who asks."""
    parser.add_argument("--run", help="id of the run")
    parser.add_argument("--credential", type=Path, help="file with the header that says who asks")


class _Asks:
    """Knows who asks, and about which run."""

    def on_start(self) -> None:
        """Read it from the options."""
        given = self.environment.parsed_options
        name, _, value = given.credential.read_text().strip().partition(": ")
        self.run, self.header = given.run, {name: value}


class Reader(_Asks, FastHttpUser):
    """Asks once a second in the mean, for one route after another."""

    # By chance, and before the first time too: otherwise all would ask at the same moment, which people do not do.
    wait_time = between(0, 2)

    def on_start(self) -> None:
        """Read the options, and wait."""
        super().on_start()
        time.sleep(self.wait_time())

    @task
    def read(self) -> None:
        """Ask for the next route."""
        path = next(_PATHS)
        self.client.get(path.format(run=self.run), name=path, headers=self.header)


class Follower(_Asks, HttpUser):
    """Keeps one stream of events open, and notes how old a round is when it comes."""

    @task
    def follow(self) -> None:
        """Follow the run until it ends."""
        opened = time.time() * 1000
        path = f"/api/v1/runs/{self.run}/stream"
        reply = self.client.get(path, headers=self.header, name="stream opened", stream=True)
        for line in reply.iter_lines(chunk_size=None):  # each piece as it comes
            if not line.startswith(_DATA):
                continue
            event, now = json.loads(line.removeprefix(_DATA)), time.time() * 1000
            # What happened before the stream was opened is sent first, and is not counted.
            if event.get("name") == "round-closed" and event["at_ms"] > opened:
                events.request.fire(
                    request_type="SSE",
                    name="round to event",
                    response_time=now - event["at_ms"],
                    response_length=len(line),
                    exception=None,
                    context={},
                )

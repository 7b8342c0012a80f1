"""Whatever is killed at whatever moment: what was acknowledged is there, and no run is lost or begun twice.

RINGFENCE_KILLS says how often, otherwise each thing is killed once. RINGFENCE_KILLS_SEED repeats the moments of an
earlier time.
"""

import os
import random
import secrets
import time
from collections import Counter

import pytest
from acknowledged import ALWAYS, OVER, Crowd, runs_of
from control_plane import wait_until
from killable_site import KillableSite
from postgres import cluster

from ringfence_server.control.views import Answered
from ringfence_server.run_file import RunFile

SEED = int(os.environ.get("RINGFENCE_KILLS_SEED", secrets.randbelow(2**32)))
BUSY_SECONDS = 1.5
KINDS = {"sqlite": ("worker", "control plane"), "postgresql": ("worker", "control plane", "database")}


class Killer:
    """Kills one thing after the other, at moments out of a seed, and starts it again."""

    def __init__(self, site, crowd, chance):
        self.site = site
        self.crowd = crowd
        self.chance = chance
        self.kills = Counter()

    def kill(self, kind):
        """Let everybody act for a moment, and kill something in the middle of it."""
        self.crowd.gate.set()
        time.sleep(self.chance.uniform(0, BUSY_SECONDS))
        {"control plane": self.control_plane, "worker": self.worker, "database": self.database}[kind]()
        self.kills[kind] += 1
        self.crowd.rest()
        self.site.wait_until_ready()
        lost = self.crowd.compare()
        assert not lost, lost

    def control_plane(self):
        self.site.kill_control_plane()
        self.crowd.rest()
        self.site.start()
        if self.chance.random() < 0.2:  # and once more, while it starts
            time.sleep(self.chance.uniform(0, 3))
            self.site.kill_control_plane()
            self.kills["control plane, starting"] += 1
            self.site.start()

    def worker(self):
        wait_until(lambda: self.site.workers() or self._is_closed())
        time.sleep(self.chance.uniform(0, 2 * BUSY_SECONDS))
        wait_until(lambda: self.site.kill_worker() or self._is_closed())

    def database(self):
        self.site.kill_database()
        self.crowd.rest()
        self.site.restart_database()

    def _is_closed(self):
        """Nobody closes the gate while only workers are killed, unless something is wrong."""
        if not self.crowd.gate.is_set():
            self.crowd.rest()
            raise AssertionError("a request was cut off although only workers were killed")


def brought_to_its_end(crowd):
    """Resume what stands still until every run is over; gives the runs."""

    def all_over():
        runs = runs_of(crowd)
        for run in runs:
            assert run["state"] != "failed", run["error"]
            if run["state"] in ("suspended", "interrupted"):
                crowd.coordinator.tend(run)
        return runs if all(run["state"] in OVER for run in runs) else None

    return wait_until(all_over, seconds=180)


def held_against_its_evidence(run, crowd, used):
    """A run is whole: every round once, every attempt asked for, nothing paid but rounds and what a kill cut off."""
    resumed = crowd.coordinator.resumed[run["run_id"]]
    attempts = RunFile.load(crowd.site.directory / "runs" / run["run_id"]).attempt
    assert attempts <= 1 + resumed
    refused = {reason["clause"] for one in run["rounds"] for cell in one["cells"] for reason in cell["reasons"]}
    # By an officer, in the middle of an edit, or because all was spent.
    assert refused <= {"suspended", "signature", "epsilon", "dataset-budget"}
    if run["state"] == "refused":
        assert used == 0
        return
    assert [one["round"] for one in run["rounds"]] == list(range(1, run["rounds_planned"] + 1))
    events = [one for one in crowd.events(run["run_id"]) if one["name"] == "round-closed"]
    committed = [one["body"]["outcome"]["round"] for one in events if one["body"]["outcome"]["committed"]]
    assert len(set(committed)) == len(committed)
    trained = sum(
        cell["holder"] == ALWAYS and cell["answer"] == Answered.TRAINS for one in run["rounds"] for cell in one["cells"]
    )
    assert trained <= used <= trained + resumed
    assert crowd.say(f"runs/{run['run_id']}/evidence")["state"] == "verified"


@pytest.fixture(params=["sqlite", "postgresql"])
def killable(request, tmp_path):
    if request.param == "sqlite":
        site = KillableSite(tmp_path, database=None, postgres=None)
        yield site, KINDS["sqlite"]
        site.close()
        return
    with cluster() as running:
        site = KillableSite(tmp_path, database=running.fresh_database(), postgres=running)
        yield site, KINDS["postgresql"]
        site.close()


@pytest.mark.timeout(0)  # each step has its own; how long they take together is the caller's choice
def test_no_acknowledged_write_is_lost_and_no_run_is_lost_or_begun_twice(killable):
    site, kinds = killable
    print(f"RINGFENCE_KILLS_SEED={SEED}")  # noqa: T201 -- shown when it fails: it repeats the moments
    chance, began = random.Random(SEED), time.monotonic()  # noqa: S311 -- repeatable on purpose
    crowd = Crowd(site, SEED)
    killer, runs = Killer(site, crowd, chance), []
    try:
        for number in range(int(os.environ.get("RINGFENCE_KILLS", len(kinds)))):
            killer.kill(kinds[number % len(kinds)])
        runs = brought_to_its_end(crowd)
        lost = crowd.compare()
        assert not lost, lost
        assert runs
        uses = {use["run"]: use["rounds"] for use in crowd.say(f"holders/{ALWAYS}/uses", ALWAYS)}
        for run in runs:
            held_against_its_evidence(run, crowd, uses.get(run["run_id"], 0))
        assert not site.faults()
    finally:
        crowd.close()
        print(  # noqa: T201 -- the figures of docs/control.md, with -s
            f"kills {dict(killer.kills)}; runs {dict(Counter(run['state'] for run in runs))}; "
            f"acknowledged {crowd.book.acknowledged.total()}, in doubt {crowd.book.in_doubt}; "
            f"{(time.monotonic() - began) / 60:.1f} minutes; {dict(crowd.book.acknowledged)}"
        )

"""A deployment whose holders are letters alone, and a SuperLink that starts a process which only says that it conducts.

For what the coordinator's side does around a run; what happens in one is shown by real processes (deployment.py).
"""

import json
import multiprocessing
import os
import signal
from contextlib import closing
from pathlib import Path

from letters import Correspondent, supernode_key
from tiny_scenario import COORDINATOR, write_scenario

from ringfence_policy.errors import DeploymentFault
from ringfence_policy.letters import Registration
from ringfence_server.conductor_lock import conducting, conductor_of
from ringfence_server.deployment import CoordinatorFile, init_deployment, now_utc
from ringfence_server.events import EventFile
from ringfence_server.flower_control import ONLINE, FlowerNode, FlowerRunState
from ringfence_server.registry import Registry
from ringfence_server.run_file import ATTEMPT, RUN_DIRECTORY, RunFile


def make_deployment(place, holders):
    """A deployment with these holders registered. Its SuperLink does not run."""
    scenario = write_scenario(place / "scenario", holders=holders)
    settings = CoordinatorFile(coordinator=COORDINATOR, names=("127.0.0.1",))
    deployment = init_deployment(place / "deployment", settings, source=scenario.directory, now=now_utc())
    register(deployment, *holders)
    return deployment


def register(deployment, *holders):
    """Take in letters of holders whose keys nobody keeps."""
    coordinator = deployment.coordinator()
    for holder in holders:
        token = Correspondent.named(holder).write(supernode_key())
        Registry(deployment.holders).keep(Registration.open(token), token, coordinator)
    coordinator.close()


class SuperLink:
    """The Control interface of a SuperLink to which every registered holder is connected.

    Attributes:
        started: The run configuration of each run that it started.
        finishes: Whether a run that it starts finishes at once, or goes on until it is ended.
        answers: Whether it answers.
    """

    address = "127.0.0.1:1"

    def __init__(self, deployment, *, finishes=True):
        self._keys = Registry(deployment.holders).keys()
        self.finishes = finishes
        self.answers = True
        self.started = []
        self._processes = []
        self._held = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def nodes(self):
        if not self.answers:
            raise DeploymentFault("the SuperLink did not list its nodes", where=self.address)
        return [FlowerNode(number, key, ONLINE) for number, key in enumerate(self._keys, 1)]

    def start_run(self, config):
        self.started.append(config)
        number, root = len(self.started), Path(config[RUN_DIRECTORY]).parent.parent
        far, near = os.pipe()
        process = multiprocessing.get_context("fork").Process(
            target=_conduct, args=(config, number), kwargs={"waits_on": None if self.finishes else (far, near)}
        )
        process.start()
        os.close(far)
        self._held.append(near)
        self._processes.append(process)
        while process.is_alive() and conductor_of(root) is None:
            process.join(0.01)
        return number

    def run_state(self, number):
        process = self._processes[number - 1]
        process.join(0.01)
        return FlowerRunState(*("running", "", "") if process.is_alive() else ("finished", "completed", ""))

    def stop_run(self, _number):
        """Flower tells it at its next heartbeat, which this one does not have."""

    def log_of(self, _number):
        return ""

    def close(self):
        for process in self._processes:
            process.kill()
            process.join(30)
        for pipe in self._held:
            os.close(pipe)


def _conduct(config, number, *, waits_on):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run = RunFile.load(Path(config[RUN_DIRECTORY]))
    with (
        conducting(run, attempt=config[ATTEMPT], flower_run_id=number),
        closing(EventFile(Path(run.directory) / "events.jsonl")) as report,
    ):
        report(
            "run-started",
            {"rounds": 3, "attempt": run.attempt, "caps": {}, "spent": {}, "refused": {}, "rehearsal": False},
        )
        if waits_on is not None:
            os.close(waits_on[1])
            os.read(waits_on[0], 1)  # until whoever tests ends this process, or is gone
        (Path(run.out) / "summary.json").write_text(json.dumps({"status": "completed"}))
        report("run-finished", {})
    os._exit(0)

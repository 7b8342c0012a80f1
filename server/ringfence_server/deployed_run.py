"""A run over a SuperLink: started for the registered holders, followed by its state, stopped, and taken up again."""

import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import DeploymentFault, ScenarioBusy, ScenarioInvalid, UsageError
from ringfence_policy.shell_words import typed
from ringfence_server.conductor_lock import Conductor, conductor_of
from ringfence_server.deployment import Deployment
from ringfence_server.flower_control import ONLINE, FlowerControl, FlowerNode
from ringfence_server.interruption import uninterrupted
from ringfence_server.registry import Registry
from ringfence_server.run_failure import FLOWER_LOG
from ringfence_server.run_file import (
    ATTEMPT,
    OWN_MODULE,
    RUN_DIRECTORY,
    RunFile,
    SuperNode,
    draft_run,
    reach,
    without_declined,
)
from ringfence_server.superlink_keys import reconcile

_LOOK_SECONDS = 1.0
# `ringfence coordinator start` brings a SuperLink back within half a minute, several times.
_PATIENCE_SECONDS = 90.0
_STOP_SECONDS = 20.0
_GONE_SECONDS = 3.0
_LONGEST_WORDS = 2000


class FlowerRun:
    """One attempt at a run, as a SuperLink carries it out.

    Args:
        control: The SuperLink.
        run: The run.
        flower_run_id: Flower's number for this attempt.
    """

    def __init__(self, control: FlowerControl, run: RunFile, flower_run_id: int) -> None:
        self.flower_run_id = flower_run_id
        self._control = control
        self._run = run
        self._looked = 0.0
        self._answered = time.monotonic()
        self._was_conducted = False
        self._gone_since: float | None = None
        self._end: str | None = None

    def is_over(self) -> bool:
        """Whether it ended; asks the SuperLink about once a second."""
        if self._end is None and time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._end = self._look()
        return self._end is not None

    def _look(self) -> str | None:
        """How it ended, in words; empty where it ended well, None while it goes on."""
        now, is_conducted = time.monotonic(), self._conductor() is not None
        if is_conducted:
            self._was_conducted, self._gone_since = True, None
        elif self._was_conducted and self._gone_since is None:
            self._gone_since = now
        try:
            state = self._control.run_state(self.flower_run_id)
        except DeploymentFault as fault:
            is_silent = now - self._answered > _PATIENCE_SECONDS
            return f"the SuperLink does not answer: {fault.got}" if is_silent and not is_conducted else None
        self._answered = now
        if state.is_over and not is_conducted:
            return "" if state.is_completed else f"{state.sub_status}: {state.details}"[:_LONGEST_WORDS]
        # Flower itself notices by a missing heartbeat, minutes later.
        if self._gone_since is not None and now - self._gone_since > _GONE_SECONDS:
            self.stop()
            return "the process of its ServerApp is gone"
        return None

    def trouble(self) -> str | None:
        """How it ended where it did not end well. Flower's own log is then kept in the run's directory."""
        if not self._end:
            return None
        with suppress(DeploymentFault, OSError):
            if self._control.run_state(self.flower_run_id).is_over:  # the log of another one has no end
                write_durably(self.log, self._control.log_of(self.flower_run_id).encode())
        return self._end

    @property
    def log(self) -> Path:
        """Where to read on."""
        return Path(self._run.directory) / FLOWER_LOG

    def stop(self) -> None:
        """Stop it, and wait until its process is gone: nothing may write to the run any more."""
        with suppress(DeploymentFault):  # over already, or no SuperLink: what counts is the process
            self._control.stop_run(self.flower_run_id)
        if not self._was_conducted and self._conductor() is None:
            self._give_up()
        for kind in (signal.SIGTERM, signal.SIGKILL):  # Flower would tell it at its next heartbeat
            conductor = self._conductor()
            if conductor is not None:
                with suppress(ProcessLookupError):
                    os.kill(conductor.process_id, kind)
            until = time.monotonic() + _STOP_SECONDS
            while self._conductor() is not None and time.monotonic() < until:
                time.sleep(0.1)

    def _give_up(self) -> None:
        """Let a process that Flower is just starting find, once it has its lock, that it comes too late."""
        now = RunFile.load(Path(self._run.directory))
        if now.attempt == self._run.attempt:
            now.next_attempt().save()

    def _conductor(self) -> Conductor | None:
        found = conductor_of(self._run.root)
        return found if found is not None and found.flower_run_id == self.flower_run_id else None


def start_deployed_run(
    deployment: Deployment, control: FlowerControl, *, plan: Path | None, out: Path | None, seed: int | None,
    run_id: str | None = None, declined: Collection[str] = (),
) -> RunFile:  # fmt: skip
    """Sign the plan for the registered holders and write run.json. Nothing is started yet.

    Args:
        deployment: The deployment.
        control: Its SuperLink.
        plan: Another plan than the deployment's plan.toml.
        out: Where results go; the run's own directory by default.
        seed: Makes the run a rehearsal with seeded noise: NOT PRIVATE.
        run_id: The run's name, where it was given one before; otherwise it gets one.
        declined: Holders who are registered and want no part in it.

    Raises:
        ScenarioInvalid: Nobody is registered, or plan or schema are missing.
        NotAllowed: Everybody declined.
        DeploymentFault: The SuperLink does not answer, or no data holder is connected.
    """
    terms, schema = deployment.read_plan(plan), deployment.read_schema()
    cards = Registry(deployment.holders).cards()
    if not cards:
        raise ScenarioInvalid(
            "no data holder is registered",
            where=str(deployment.holders),
            next_step=f"hand out {deployment.invitation_file}, and take in what comes back: "
            f"`ringfence coordinator register {typed(deployment.directory)} REGISTRATION`",
        )
    cards = without_declined(cards, declined)
    if terms.model.kind == "module":
        reach(OWN_MODULE)  # this machine makes the model that the run starts from: is what it takes installed?
    nodes = _supernodes(deployment, control)
    draft = draft_run(deployment.directory, plan=terms, schema=schema, cards=cards, out=out, seed=seed, run_id=run_id)
    run = replace(draft, superlink=control.address, supernodes={holder: nodes[holder] for holder in cards})
    run.save()
    return run


def take_up(deployment: Deployment, control: FlowerControl, before: RunFile) -> RunFile:
    """A run that was begun before, for one more attempt over the SuperNodes as they are registered now.

    Raises:
        ScenarioInvalid: None of its holders is registered any more.
        DeploymentFault: As for `start_deployed_run`.
    """
    nodes = _supernodes(deployment, control)
    roots = {holder: card.root for holder, card in Registry(deployment.holders).cards().items()}
    # The plan names its holders for good. Who was removed since is not asked: there is no SuperNode for it.
    same = {holder: nodes[holder] for holder, card in before.cards.items() if roots.get(holder) == card["root"]}
    if not same:
        raise ScenarioInvalid(
            "no data holder of the run is registered any more", where=before.directory, next_step="start a new run"
        )
    run = replace(before.next_attempt(), superlink=control.address, supernodes=same)
    run.save()
    return run


def going_on(deployment: Deployment) -> tuple[RunFile, int] | None:
    """The run that is conducted here right now, with Flower's number for it; None where there is none."""
    found = conductor_of(deployment.directory)
    if found is None:
        return None
    return RunFile.load(deployment.directory / "runs" / found.run_id), found.flower_run_id


def refuse_second(deployment: Deployment) -> None:
    """Make sure that no run is conducted here.

    Raises:
        ScenarioBusy: One is.
    """
    found = conductor_of(deployment.directory)
    if found is not None:
        raise ScenarioBusy(
            "another run is going on in this deployment",
            expected="one run at a time",
            got=f"run {found.run_id}, process {found.process_id}",
            where=str(deployment.directory),
            next_step="`ringfence run DIR --superlink HOST:PORT --resume` follows it, and Ctrl-C then stops it",
        )


@contextmanager
def launched(control: FlowerControl, run: RunFile) -> Iterator[FlowerRun]:
    """Start one attempt at a run. It is stopped where the block is left before its end."""
    with ExitStack() as ends:
        with uninterrupted():  # or a run would go on whose number nobody has
            flower_run_id = control.start_run({RUN_DIRECTORY: run.directory, ATTEMPT: run.attempt})
            started = ends.enter_context(stopped_at_the_end(FlowerRun(control, run, flower_run_id)))
        yield started


@contextmanager
def stopped_at_the_end(flower_run: FlowerRun) -> Iterator[FlowerRun]:
    """Stop an attempt where the block is left before the attempt's end."""
    try:
        yield flower_run
    finally:
        if not flower_run.is_over():
            flower_run.stop()


def open_control(deployment: Deployment, superlink: str) -> FlowerControl:
    """Speak to a deployment's SuperLink.

    Raises:
        UsageError: The address is not on this machine: the Control interface has no users.
    """
    host, _, port = superlink.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdigit():
        raise UsageError(
            "the SuperLink of a deployment is reached on this machine alone",
            expected=f"--superlink {deployment.control_address}",
            got=f"--superlink {superlink}",
            next_step="run this command where `ringfence coordinator start` runs",
        )
    return FlowerControl(superlink, authority=deployment.authority_file.read_bytes())


def _supernodes(deployment: Deployment, control: FlowerControl) -> dict[str, SuperNode]:
    nodes: dict[str, FlowerNode] = reconcile(control, Registry(deployment.holders).keys())
    if not any(node.status == ONLINE for node in nodes.values()):
        raise DeploymentFault(
            "no data holder is connected",
            expected=f"at least one SuperNode of {', '.join(sorted(nodes)) or 'a registered holder'}",
            where=deployment.address,
            next_step=f"`ringfence coordinator holders {typed(deployment.directory)}` says who is online",
        )
    return {holder: SuperNode(node_id=node.node_id, key=node.public_key) for holder, node in nodes.items()}

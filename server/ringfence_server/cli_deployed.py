"""`ringfence run` on a deployment: start a run over its SuperLink, follow it, and stop it when this is interrupted."""

import os
from pathlib import Path

from ringfence_policy.errors import UsageError
from ringfence_policy.shell_words import typed
from ringfence_server.deployed_run import (
    FlowerRun,
    going_on,
    launched,
    open_control,
    refuse_second,
    start_deployed_run,
    stopped_at_the_end,
    take_up,
)
from ringfence_server.deployment import load_deployment
from ringfence_server.flower_control import FlowerControl
from ringfence_server.following import events_so_far, follow_run, following
from ringfence_server.occupation import name_occupant, occupied
from ringfence_server.run_file import RunFile, unfinished_run


def run_deployment(
    directory: Path, *, plan: Path | None, out: Path | None, seed: int | None, resume: bool, superlink: str | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Run a deployment's plan over its registered data holders, or take up the run that was interrupted.

    Returns:
        The exit code.
    """
    deployment = load_deployment(directory)
    if superlink is None:
        raise UsageError(
            "this directory is a deployment: its data holders are reached over a SuperLink",
            expected=f"--superlink {deployment.control_address}",
            where=str(directory),
            next_step=f"serve first, in another terminal: ringfence coordinator start {typed(directory)}",
        )
    if resume and going_on(deployment) is None:
        unfinished_run(deployment.directory)  # before anything is asked of the SuperLink: is there a run at all?
    with open_control(deployment, superlink) as control, occupied(deployment.directory) as lock:
        name_occupant(lock, os.getpid())
        if resume:
            found = going_on(deployment)
            if found is not None:
                return _join(control, *found, as_json=as_json)
            before = unfinished_run(deployment.directory)
            return _carry_out(control, take_up(deployment, control, before), as_json=as_json)
        refuse_second(deployment)
        run = start_deployed_run(deployment, control, plan=plan, out=out, seed=seed)
        return _carry_out(control, run, as_json=as_json)


def _carry_out(control: FlowerControl, run: RunFile, *, as_json: bool) -> int:
    options = f"--superlink {control.address} --resume"
    start = events_so_far(run)
    with following(run, resume=options), launched(control, run) as started:
        return follow_run(run, started, as_json=as_json, resume=options, start=start)


def _join(control: FlowerControl, run: RunFile, flower_run_id: int, *, as_json: bool) -> int:
    """Follow a run whose terminal was lost."""
    options = f"--superlink {control.address} --resume"
    with following(run, resume=options), stopped_at_the_end(FlowerRun(control, run, flower_run_id)) as joined:
        return follow_run(run, joined, as_json=as_json, resume=options)

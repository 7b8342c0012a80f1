"""What the process of a run in a deployment does: begins, takes up or joins the run over the SuperLink, and follows it.

Nothing is done otherwise than by `ringfence run --superlink`; only what is to be run comes from the control plane.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

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
from ringfence_server.deployment import Deployment, load_deployment
from ringfence_server.flower_control import FlowerControl
from ringfence_server.following import events_so_far, follow_run
from ringfence_server.interruption import termination_interrupts
from ringfence_server.run_failure import told
from ringfence_server.run_file import RunFile


def follow_deployed(site: Path, directory: Path, *, plan: Path, seed: int | None, declined: Collection[str]) -> None:
    """Carry a run out over the deployment's SuperLink, and stop it where this process is told to end.

    Args:
        site: The deployment.
        directory: The run's.
        plan: What is to be run, and `seed` and `declined` likewise: as for `start_deployed_run`, where it begins.
        seed: See there.
        declined: See there.

    Raises:
        ScenarioBusy: Another run goes on in the deployment; nothing was done.
        RingfenceError: The run could not be begun, or ended badly; its events say so.
        KeyboardInterrupt: This process was told to end; the run is stopped, and what was committed is kept.
    """
    deployment = load_deployment(site)
    with termination_interrupts():
        mine = _conducted(deployment, directory)
        if mine is None:
            refuse_second(deployment)
        with told(directory), open_control(deployment, deployment.control_address) as control:
            if mine is not None:
                run = mine[0]
            elif (directory / "run.json").exists():
                run = take_up(deployment, control, RunFile.load(directory))
            else:
                run = start_deployed_run(
                    deployment, control, plan=plan, out=None, seed=seed, run_id=directory.name, declined=declined
                )
            start = events_so_far(run)
            with _attempt(control, run, mine) as attempt:
                follow_run(run, attempt, as_json=True, start=start)


def _conducted(deployment: Deployment, directory: Path) -> tuple[RunFile, int] | None:
    """This very run, where its ServerApp goes on and whoever followed it is gone."""
    found = going_on(deployment)
    return found if found is not None and found[0].run_id == directory.name else None


@contextmanager
def _attempt(control: FlowerControl, run: RunFile, mine: tuple[RunFile, int] | None) -> Iterator[FlowerRun]:
    if mine is None:
        with launched(control, run) as begun:
            yield begun
    else:
        with stopped_at_the_end(FlowerRun(control, run, mine[1])) as joined:
            yield joined

"""The process of one run that a control plane started; it goes on when the control plane ends.

Started as `python -m ringfence_server.control.run_process SITE RUN_ID SENDING`. What is to be run lies in the run's
directory: `plan.toml` and `order.json`. A run that was begun before is taken up from its last committed round. In a
scenario this process carries the run out; in a deployment it does what `ringfence run --superlink` does: it has the
SuperLink start the run's own process, and follows that to its end. Exit codes are the worker's, and BUSY where nothing
was done: another run is going on in the site, or this process comes too late.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import RingfenceError, ScenarioBusy
from ringfence_server.control.run_claim import claimed
from ringfence_server.deployment import is_deployment
from ringfence_server.forecast import forecast, forecast_document
from ringfence_server.occupation import name_occupant, occupied
from ringfence_server.run_failure import keep_log, told
from ringfence_server.run_file import RunFile, start_run, without_declined
from ringfence_server.scenario import load_scenario
from ringfence_server.worker import run_embedded
from ringfence_server.worker_process import processes_for

BUSY = 75
INTERRUPTED = 1
PLAN = "plan.toml"


def main(arguments: list[str]) -> int:
    """Carry a run out, or take it up again."""
    site, run_id, sending = Path(arguments[0]), arguments[1], arguments[2]
    directory = site / "runs" / run_id
    keep_log(directory)
    try:
        with claimed(directory, sending) as order, occupied(site) as lock:
            name_occupant(lock, os.getpid())
            if is_deployment(site):
                _follow(site, directory, order)
            else:
                os.set_inheritable(lock, True)  # noqa: FBT003 -- processes of holders hold the scenario as well
                with told(directory):
                    _carry_out(_run(site, directory, order), pause_seconds=order["pause_seconds"])
    except ScenarioBusy:
        return BUSY
    except KeyboardInterrupt:
        return INTERRUPTED
    except RingfenceError as error:
        return error.exit_code
    return 0


def _run(site: Path, directory: Path, order: Mapping[str, Any]) -> RunFile:
    if (directory / "run.json").exists():
        run = RunFile.load(directory).next_attempt()
        run.save()
        return run
    whole = load_scenario(site, plan=directory / PLAN)
    holders = without_declined(whole.holders, order["declined"])
    scenario = replace(whole, holders=holders, policies={holder: whole.policies[holder] for holder in holders})
    previews = [forecast_document(scenario.plan, forecast(scenario, scenario.plan))]
    write_durably(directory / "preview.json", json.dumps(previews).encode())
    return start_run(scenario, out=None, seed=order["seed"], run_id=directory.name)


def _carry_out(run: RunFile, *, pause_seconds: float) -> None:
    from ringfence_server.holder_processes import holder_processes  # noqa: PLC0415 -- Flower, which logs at import

    with holder_processes(processes_for(len(run.cards))) as processes:
        run_embedded(run, processes, pause_seconds=pause_seconds)


def _follow(site: Path, directory: Path, order: Mapping[str, Any]) -> None:
    from ringfence_server.control.deployed_process import follow_deployed  # noqa: PLC0415 -- needed only here

    follow_deployed(site, directory, plan=directory / PLAN, seed=order["seed"], declined=order["declined"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

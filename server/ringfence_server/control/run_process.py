"""The process of one run that a control plane started; it goes on when the control plane ends.

Started as `python -m ringfence_server.control.run_process SITE RUN_ID`. What is to be run lies in the run's directory:
`plan.toml` and `order.json`. A run that was begun before is taken up from its last committed round. Exit codes are the
worker's, and BUSY where another run is going on in the site, so that nothing was done.
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import RingfenceError, ScenarioBusy
from ringfence_server.control.site import without
from ringfence_server.forecast import forecast, forecast_document
from ringfence_server.occupation import name_occupant, occupied
from ringfence_server.run_failure import keep_log, told
from ringfence_server.run_file import RunFile, start_run
from ringfence_server.scenario import load_scenario
from ringfence_server.worker import run_embedded

BUSY = 75
ORDER = "order.json"
PLAN = "plan.toml"
_ALIVE = "alive"


def main(arguments: list[str]) -> int:
    """Carry a run out, or take it up again."""
    site, run_id = Path(arguments[0]), arguments[1]
    directory = site / "runs" / run_id
    keep_log(directory)
    try:
        with _alive(directory), occupied(site) as lock:
            name_occupant(lock, os.getpid())
            with told(directory):
                run_embedded(_run(site, directory))
    except ScenarioBusy:
        return BUSY
    except RingfenceError as error:
        return error.exit_code
    return 0


def process_of(directory: Path) -> int | None:
    """The process that carries a run out now, or None.

    Args:
        directory: The run's.
    """
    try:
        descriptor = os.open(directory / _ALIVE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(descriptor, 32, 0).decode() or "0") or None
    finally:
        os.close(descriptor)
    return None


@contextmanager
def _alive(directory: Path) -> Iterator[None]:
    """Hold the file that says so: the system drops the lock with the process, however that ends."""
    descriptor = os.open(directory / _ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScenarioBusy("this run is being carried out already", where=str(directory)) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _run(site: Path, directory: Path) -> RunFile:
    if (directory / "run.json").exists():
        run = RunFile.load(directory).next_attempt()
        run.save()
        return run
    order = json.loads((directory / ORDER).read_text())
    scenario = without(load_scenario(site, plan=directory / PLAN), frozenset(order["declined"]))
    previews = [forecast_document(scenario.plan, forecast(scenario, scenario.plan))]
    write_durably(directory / "preview.json", json.dumps(previews).encode())
    return start_run(scenario, out=None, seed=order["seed"], run_id=directory.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

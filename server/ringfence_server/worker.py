"""The process of one run: holders on this machine, Flower's ServerApp, and an end that says how it went.

Started as `python -m ringfence_server.worker RUN_DIRECTORY [PROCESSES]`. It loads what a run needs, and begins when a
line comes on its standard input; where that ends instead, it ends too. The holders live in so many processes, of which
this is one. Exit codes: 0 done, 1 fault, 2 wrong usage, 3 refused. What happens is written to events.jsonl of the run
directory; the last event of a failed run is `run-failed`.
"""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Set before Flower is imported: a holder's machine calls nobody.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from ringfence_policy.errors import RingfenceError
from ringfence_server.run_failure import FLOWER_LOG, keep_log, told
from ringfence_server.run_file import COHORT_APP, RUN_DIRECTORY, WORKROOM, RunFile, reach

if TYPE_CHECKING:
    from ringfence_server.holder_processes import HolderProcesses


def main(arguments: list[str]) -> int:
    """Carry out the run in the directory that the first argument names, once told to."""
    directory, count = Path(arguments[0]), int(arguments[1]) if arguments[1:] else 1
    keep_log(directory)
    try:
        with told(directory):
            _begin_when_told(directory, count)
    except RingfenceError as error:
        return error.exit_code
    return 0


def _begin_when_told(directory: Path, count: int) -> None:
    from ringfence_server.holder_processes import holder_processes  # noqa: PLC0415 -- as in `run_embedded`

    with holder_processes(count) as processes:
        _load()
        if sys.stdin.readline():
            run_embedded(RunFile.load(directory), processes)


def _load() -> None:
    """Import all that a run needs from its first round on."""
    import ringfence_server.embedded_grid  # noqa: PLC0415 -- as in `run_embedded`
    import ringfence_server.serverapp  # noqa: F401, PLC0415 -- as in `run_embedded`

    reach(COHORT_APP)
    reach(WORKROOM)


def run_embedded(run: RunFile, processes: "HolderProcesses", *, pause_seconds: float = 0.0) -> None:
    """Run Flower's ServerApp over nodes on this machine.

    Args:
        run: The run.
        processes: Over which the nodes are shared out.
        pause_seconds: How long each round waits before it trains, so that people can follow it.
    """
    from flwr.app import Context, RecordDict  # noqa: PLC0415 -- after logging is set up: Flower logs at import

    from ringfence_server.embedded_grid import EmbeddedGrid, EmbeddedNode  # noqa: PLC0415
    from ringfence_server.serverapp import app  # noqa: PLC0415

    _quiet_flower(Path(run.directory))
    root = (run.root / "coordinator" / "root.jwk").read_text()
    nodes = [
        EmbeddedNode(
            node_id=node_id,
            name=card.holder_id,
            config={"holder-dir": run.holder_directories[card.holder_id], "coordinator-root": root},
        )
        for node_id, card in run.nodes().items()
    ]
    processes.take_in(nodes, flower_run_id=run.flower_run_id)
    grid = EmbeddedGrid(
        nodes=nodes,
        cohort_app=processes,
        flower_run_id=run.flower_run_id,
        pause_seconds=pause_seconds,
        close_nodes=processes.close_nodes,
    )
    context = Context(
        run_id=run.flower_run_id,
        node_id=0,
        node_config={},
        state=RecordDict(),
        run_config={RUN_DIRECTORY: run.directory},
    )
    try:
        app(grid, context)
    finally:
        processes.close_nodes()


def _quiet_flower(directory: Path) -> None:
    """Send Flower's log to the run's own file: the terminal shows the run's events."""
    flower = logging.getLogger("flwr")
    for handler in list(flower.handlers):
        flower.removeHandler(handler)
    flower.addHandler(logging.FileHandler(directory / FLOWER_LOG))
    flower.propagate = False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The coordinator's Flower ServerApp: the wiring of one run, whichever Grid it is given."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ringfence_server.conduct import conduct
from ringfence_server.conductor_lock import conducting
from ringfence_server.deployment_grid import DeploymentGrid
from ringfence_server.embedded_grid import EmbeddedGrid
from ringfence_server.run_failure import keep_log, told
from ringfence_server.run_file import ATTEMPT, RUN_DIRECTORY, RunFile

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out the run whose directory the run configuration names."""
    directory = Path(str(context.run_config[RUN_DIRECTORY]))
    run = RunFile.load(directory)
    if run.superlink is None:
        conduct(grid, run, close_nodes=grid.close_nodes if isinstance(grid, EmbeddedGrid) else lambda: None)
        return
    # A process of its own, started by Flower: one at a time, and never for an attempt that was followed by another.
    with conducting(run, attempt=int(str(context.run_config[ATTEMPT])), flower_run_id=context.run_id):
        keep_log(directory)
        with told(directory, resume=f"--superlink {run.superlink} --resume"):
            conduct(DeploymentGrid(grid, keys={node.node_id: node.key for node in run.supernodes.values()}), run)

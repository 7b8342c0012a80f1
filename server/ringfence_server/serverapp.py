"""The coordinator's Flower ServerApp: the wiring of one run, whichever Grid it is given."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ringfence_server.conduct import conduct
from ringfence_server.run_file import RunFile

RUN_DIRECTORY = "run-directory"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out the run whose directory the run configuration names."""
    conduct(grid, RunFile.load(Path(str(context.run_config[RUN_DIRECTORY]))))

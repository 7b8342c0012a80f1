"""The ServerApp of the no-op app: rounds of FedAvg over nodes that do nothing, or one exchange after another with many.

Each round and each exchange is marked by a line of JSON in the file that the run configuration names.
"""

import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from ringfence_server.deployment_grid import DeploymentGrid

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Do one of the two."""
    config = context.run_config
    marks, rounds = Path(str(config["marks"])), int(config["rounds"])
    arrays = _arrays([int(size) for size in str(config["layers"]).split(",")])
    if config["nodes"]:
        arrays = _packed(arrays) if config["packed"] else arrays
        _exchanges(grid, arrays, marks, rounds, nodes=int(config["nodes"]), patience=float(config["patience"]))
        return

    def mark(round_number: int, _arrays: ArrayRecord) -> None:
        _write(marks, {"round": round_number})

    if config["quick"]:
        grid = _quick(grid)
    strategy = FedAvg(fraction_evaluate=1.0 if config["evaluate"] else 0.0)
    strategy.start(grid, arrays, num_rounds=rounds, evaluate_fn=mark)


def _exchanges(inner: Grid, arrays: ArrayRecord, marks: Path, exchanges: int, *, nodes: int, patience: float) -> None:
    """Ask every node and wait for all, again and again, through the Grid that Ringfence's own runs use."""
    while len(list(inner.get_nodes())) < nodes:
        time.sleep(0.5)
    grid = _quick(inner)
    nodes_there = grid.get_node_ids()
    for number in range(1, exchanges + 1):
        # Every message differs in a little, as Ringfence's do by what is signed; the model is the same in all.
        messages = [
            Message(
                RecordDict({"arrays": arrays, "config": ConfigRecord({"number": number, "node": str(node)})}),
                node,
                "train",
            )
            for node in nodes_there
        ]
        began = time.time()
        replies = grid.send_and_receive(messages, timeout=patience)
        _write(
            marks,
            {
                "exchange": number,
                "began": began,
                "asked": len(messages),
                "answered": sum(not reply.has_error() for reply in replies),
                "errors": sorted({reply.error.reason[:200] for reply in replies if reply.has_error()}),
            },
        )


def _quick(inner: Grid) -> DeploymentGrid:
    """The Grid that Ringfence's own runs use, over the SuperNodes that are there: it looks for answers more often."""
    return DeploymentGrid(inner, keys={node.node_id: node.public_key.decode() for node in inner.get_nodes()})


def _arrays(layers: list[int]) -> ArrayRecord:
    """Weights and biases of a multilayer perceptron, as Ringfence sends them: one array each."""
    generator = np.random.default_rng(0)
    found = {}
    for number, (inputs, outputs) in enumerate(pairwise(layers)):
        found[f"{number}.weight"] = Array(generator.normal(size=(outputs, inputs)).astype(np.float32))
        found[f"{number}.bias"] = Array(generator.normal(size=outputs).astype(np.float32))
    return ArrayRecord(found)


def _packed(arrays: ArrayRecord) -> ArrayRecord:
    """The same numbers in one array."""
    return ArrayRecord({"all": Array(np.concatenate([array.numpy().ravel() for array in arrays.values()]))})


def _write(marks: Path, members: dict[str, object]) -> None:
    with marks.open("a") as file:
        file.write(json.dumps({"at": time.time(), **members}) + "\n")

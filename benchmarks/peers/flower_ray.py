"""Flower's Ray simulation with Opacus in each client, in the shape of Flower's own Opacus example.

    python flower_ray.py TASK.json        # in the environment that `peers.py --prepare` makes; peers.py starts it

As in that example each fit makes model, optimiser and loader private by a PrivacyEngine of its own and trains one epoch
over the Poisson loader. Left out of what the example does: evaluation, and reading the data anew for each fit; and
epsilon, unless the task asks for it. `run_simulation` is Flower's way without a SuperLink, whose start would come on
top. Ray gets one actor per core.
"""

import json
import os
import sys
import warnings
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from common import build_model, load_task, mark, save_model

client_app = ClientApp()
warnings.filterwarnings("ignore", category=UserWarning)  # Opacus on secure_mode, as in Flower's example


@cache
def _arrays(directory: str) -> tuple[np.ndarray, np.ndarray]:
    torch.set_num_threads(1)
    return np.load(f"{directory}/features.npy", mmap_mode="r"), np.load(f"{directory}/labels.npy", mmap_mode="r")


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train privately on one partition."""
    task: dict[str, Any] = json.loads(str(message.content["config"]["task"]))
    features, labels = _arrays(task["directory"])
    partition = int(context.node_config["partition-id"])
    rows = TensorDataset(
        torch.from_numpy(features[partition].copy()), torch.from_numpy(labels[partition].astype(np.float32))
    )
    loader = DataLoader(rows, batch_size=task["batch"], shuffle=True)
    model = build_model(task)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=task["learning_rate"])
    engine = PrivacyEngine(secure_mode=False)
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=task["noise_multiplier"],
        max_grad_norm=task["clipping_norm"],
    )
    criterion = nn.BCEWithLogitsLoss()
    private.train()
    steps = 0
    for values, targets in loader:
        optimizer.zero_grad()
        criterion(private(values).squeeze(-1), targets).backward()
        optimizer.step()
        steps += 1
    assert steps == task["steps"], f"{steps} steps instead of {task['steps']}"
    metrics = {"num-examples": len(rows)}
    if task["epsilon"]:
        metrics["epsilon"] = engine.get_epsilon(delta=1e-5)
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


class MarkedFedAvg(FedAvg):
    """Flower's FedAvg, which notes when each round's model was there."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Average, and note the time."""
        result = super().aggregate_train(server_round, replies)
        mark("round", round=server_round)
        return result


def main() -> int:
    """Run the simulation that the task describes."""
    task = load_task(sys.argv[1])
    mark("environment", versions={name: version(name) for name in ("flwr", "ray", "opacus", "torch", "numpy")})
    torch.manual_seed(task["seed"])
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, _: Context) -> None:
        everyone = {"fraction_train": 1.0, "fraction_evaluate": 0.0, "min_train_nodes": task["holders"]}
        strategy = MarkedFedAvg(**everyone, min_available_nodes=task["holders"])
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(build_model(task).state_dict()),
            num_rounds=task["rounds"],
            train_config=ConfigRecord({"task": json.dumps(task)}),
        )
        save_model([array.numpy() for array in result.arrays.values()])

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=task["holders"],
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": task["cores"], "include_dashboard": False},
        },
    )
    return 0


if __name__ == "__main__":
    # Ray's actors import the client app by its module's name; out of `__main__` they get a copy with each message.
    from flower_ray import main as run_as_module

    sys.exit(run_as_module())

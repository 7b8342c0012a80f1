"""What the peers' runners share: the task, the model, and notes of what happened when. Needs torch and nothing else."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

_TASK = "BENCHMARK_TASK_DIRECTORY"


def load_task(path: str) -> dict[str, Any]:
    """Read what is to be run; notes go beside it."""
    os.environ[_TASK] = str(Path(path).parent)
    task: dict[str, Any] = json.loads(Path(path).read_text())
    return task


def mark(event: str, **members: object) -> None:
    """Note that something happened now."""
    line = json.dumps({"event": event, "at": time.time(), **members})
    with (Path(os.environ[_TASK]) / "marks.jsonl").open("a") as file:
        file.write(line + "\n")


def save_model(arrays: Sequence[np.ndarray]) -> None:
    """Keep the final model's weights and biases, layer by layer."""
    np.savez(Path(os.environ[_TASK]) / "model.npz", *arrays)


def build_model(task: dict[str, Any]) -> nn.Sequential:
    """The plan's multilayer perceptron: ReLU between linear layers, one logit."""
    sizes = [task["features"], *task["hidden"]]
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, [*sizes[1:], 1], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])

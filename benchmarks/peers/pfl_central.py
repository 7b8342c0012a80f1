"""pfl-research: FederatedAveraging with its central Gaussian mechanism, on CPU torch.

    python pfl_central.py TASK.json                           # in the environment that `peers.py --prepare` makes
    torchrun --nproc-per-node 2 pfl_central.py TASK.json      # a process per core

pfl has no per-record privacy: a client's gradient steps are plain SGD over shuffled batches of a fixed size, its whole
update is clipped, and noise is added once to their sum. It does less work per step than the others do, for a guarantee
about another unit against another adversary.
"""

import os
import sys
from importlib.metadata import version
from types import MethodType
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy import CentrallyAppliedPrivacyMechanism, GaussianMechanism
from torch import nn

from common import build_model, load_task, mark, save_model

_IS_FIRST = os.environ.get("RANK", "0") == "0"
_CRITERION = nn.BCEWithLogitsLoss()


class Marks(TrainingProcessCallback):
    """Notes when each round's model was there."""

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Note the time; go on."""
        del aggregate_metrics, model
        if _IS_FIRST:
            mark("round", round=central_iteration + 1)
        return False, Metrics()


def _loss(self: nn.Module, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    self.train()
    return _CRITERION(self(values).squeeze(-1), targets)


@torch.no_grad()
def _metrics(self: nn.Module, values: torch.Tensor, targets: torch.Tensor) -> dict[str, Weighted]:
    self.eval()
    correct = ((self(values).squeeze(-1) > 0) == (targets > 0)).sum().item()
    return {"accuracy": Weighted(correct, len(targets))}


def main() -> int:
    """Run the simulation that the task describes."""
    task = load_task(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(task["seed"])
    np.random.seed(task["seed"])  # noqa: NPY002 -- pfl draws from numpy's global generator
    if _IS_FIRST:
        mark("environment", versions={name: version(name) for name in ("pfl", "torch", "numpy")})
    features = np.load(f"{task['directory']}/features.npy")
    labels = np.load(f"{task['directory']}/labels.npy").astype(np.float32)
    tensors = [
        (torch.from_numpy(values), torch.from_numpy(targets)) for values, targets in zip(features, labels, strict=True)
    ]
    holders = list(range(task["holders"]))

    def dataset_of(holder: int) -> Dataset:
        return Dataset(raw_data=list(tensors[holder]), user_id=str(holder))

    data = FederatedDataset(dataset_of, get_user_sampler("minimize_reuse", holders))
    module = build_model(task)
    module.loss = MethodType(_loss, module)
    module.metrics = MethodType(_metrics, module)
    model = PyTorchModel(
        model=module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    noise = GaussianMechanism(clipping_bound=task["clipping_norm"], relative_noise_stddev=task["noise_multiplier"])
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=task["rounds"],
            evaluation_frequency=10**6,  # it measures in the first round only
            train_cohort_size=task["holders"],
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(
            training_data=data, val_data=data, postprocessors=[WeightByUser(), CentrallyAppliedPrivacyMechanism(noise)]
        ),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=None,
            local_num_steps=task["steps"],
            local_learning_rate=task["learning_rate"],
            local_batch_size=task["batch"],
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Marks()],
    )
    if _IS_FIRST:
        save_model([parameter.detach().numpy() for parameter in module.parameters()])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Models as torch modules: built from a spec, with their parameters read and written.

What a spec says and what a built-in model is stands in `models`.
"""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ringfence_client.datasource import HolderData
from ringfence_client.models import BUILT_IN, Arrays, initial_arrays, layers_of, source_of, unknown_model
from ringfence_client.trainer import TrainingFault, TrainingJob
from ringfence_client.workroom import check_arrays
from ringfence_policy import canonical
from ringfence_policy.errors import DocumentInvalid, TrustRefused


class _OneLogit(nn.Module):
    """Drop the last dimension of a module that gives shape (rows, 1)."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(features)
        return logits.squeeze(-1)


def build_module(model: Mapping[str, Any], feature_count: int) -> nn.Module:
    """Build the module a spec names, with its initial parameters.

    Args:
        model: The plan's [model] table.
        feature_count: How many features a row has.

    Returns:
        A module on the CPU. The same spec gives the same parameters, on this version of torch.

    Raises:
        DocumentInvalid: The spec names no known kind, or a module that cannot be found, built or trained privately.
        TrustRefused: The module's source is not what the spec's `code_digest` names.
    """
    kind = model.get("kind")
    if kind in BUILT_IN:
        return _built_in(initial_arrays(model, feature_count))
    if kind != "module":
        raise unknown_model(kind)
    # The plan's seed makes the start repeatable, and the process's own generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(model.get("seed", 0)))
        return _own_module(model, feature_count)


def read_arrays(module: nn.Module) -> Arrays:
    """Copy a module's parameters out, float32 by name."""
    return {
        name: parameter.detach().to(torch.float32).cpu().numpy().copy() for name, parameter in module.named_parameters()
    }


def write_arrays(module: nn.Module, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Set a module's parameters.

    Args:
        module: The module to change.
        arrays: One finite float32 array for each parameter, of its shape. From the coordinator: not trusted.

    Raises:
        TrustRefused: The arrays are not the module's; see `check_arrays`.
    """
    parameters = dict(module.named_parameters())
    check_arrays(arrays, {name: tuple(parameter.shape) for name, parameter in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(arrays[name]))


def logits_of(
    model: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[np.float32]],
    feature_count: int,
    pieces: Sequence[npt.NDArray[np.float32]],
) -> list[npt.NDArray[np.float64]]:
    """The logits that a model gives for rows, float64 of shape (rows,) for each piece of them. Secret.

    Raises:
        DocumentInvalid: The model cannot be built.
        TrustRefused: The arrays are not the model's.
    """
    module = build_module(model, feature_count)
    write_arrays(module, arrays)
    module.eval()
    with torch.no_grad():
        return [module(torch.tensor(piece)).double().numpy() for piece in pieces]


def descend(
    model: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[np.float32]],
    data: HolderData,
    *,
    steps: int,
    learning_rate: float,
) -> Arrays:
    """Take plain gradient steps on all records at once, NOT PRIVATE, and give the new parameters.

    Raises:
        DocumentInvalid: The model cannot be built.
        TrustRefused: The arrays are not the model's.
    """
    module = build_module(model, data.features.shape[1])
    write_arrays(module, arrays)
    optimizer = torch.optim.SGD(module.parameters(), lr=learning_rate)
    features, labels = torch.tensor(data.features), torch.tensor(data.labels)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(module(features), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return read_arrays(module)


def finite_arrays(module: nn.Module, job: TrainingJob) -> Arrays:
    """Copy a job's trained parameters out.

    Raises:
        TrainingFault: A parameter is not finite.
    """
    arrays = read_arrays(module)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise TrainingFault(
            "training diverged",
            expected="finite parameters",
            where=f"job of '{job.holder_id}'",
            next_step="lower the learning rate",
        )
    return arrays


def _built_in(arrays: Arrays) -> nn.Module:
    """Linear layers with ReLU between them, under the names that the arrays have."""
    layers: list[nn.Module] = []
    for weight, _ in layers_of(arrays):
        outputs, inputs = arrays[weight].shape
        layers += [nn.utils.skip_init(nn.Linear, inputs, outputs), nn.ReLU()]  # type: ignore[no-untyped-call]
    module = _OneLogit(layers[0] if "layers.weight" in arrays else nn.Sequential(*layers[:-1]))
    write_arrays(module, arrays)
    return module


def _own_module(model: Mapping[str, Any], feature_count: int) -> nn.Module:
    path = str(model.get("path", ""))
    origin, source = source_of(path)
    found, named = canonical.digest_bytes(source), str(model.get("code_digest", ""))
    if named and named != found:
        raise TrustRefused(
            "the model's code is not the code that was approved",
            expected=named,
            got=found,
            where=path,
            next_step="install the approved version, or have the plan and the policies name this one",
        )
    class_name = path.partition(":")[2]
    built = getattr(_execute(path, origin, source), class_name, None)
    if not (isinstance(built, type) and issubclass(built, nn.Module)):
        raise DocumentInvalid("the model is not a torch module", expected=f"a class '{class_name}'", where=path)
    module = built(feature_count=feature_count)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise DocumentInvalid("the model has no parameters to train", where=path)
    rows = torch.linspace(-1, 1, 3 * feature_count).reshape(3, feature_count)
    _refuse_memory(module, rows, path)
    return _OneLogit(module) if _gives_columns(module, rows, path) else module


def _refuse_memory(module: nn.Module, rows: torch.Tensor, path: str) -> None:
    """Refuse a module that keeps what it is shown: later steps would depend on rows whose traces nothing noised."""
    before = [buffer.clone() for buffer in module.buffers()]
    with torch.no_grad():
        module(rows)
    after = list(module.buffers())
    if len(before) != len(after) or not all(map(torch.equal, before, after)):
        raise DocumentInvalid(
            "the model cannot be trained record by record",
            expected="buffers that stay as they are while it trains",
            got="a module that changes its buffers",
            where=path,
            next_step="replace batch normalisation by group or layer normalisation, and leave out buffers",
        )


def _gives_columns(module: nn.Module, rows: torch.Tensor, path: str) -> bool:
    """Try the module on made-up rows: one logit each, and each the same with other rows beside it as alone."""
    was_training = module.training
    module.eval()
    with torch.no_grad():
        together = module(rows)
        alone = [module(row[None]).flatten() for row in rows]
    module.train(was_training)
    shape = tuple(together.shape)
    if shape not in {(3,), (3, 1)}:
        raise DocumentInvalid(
            "the model does not give one logit per row",
            expected="shape (rows,) or (rows, 1)",
            got=f"shape {shape} for 3 rows",
            where=path,
        )
    if not (_agree(together.flatten(), torch.cat(alone)) and _keeps_rows_apart_in_training(module, rows)):
        raise DocumentInvalid(
            "the model lets records influence each other",
            expected="a logit that depends on its own row alone",
            got="another logit for the same row when other rows are beside it",
            where=path,
            next_step="take no mean, rank or attention over the rows: clipping each record would bound nothing",
        )
    return len(shape) > 1


def _keeps_rows_apart_in_training(module: nn.Module, rows: torch.Tensor) -> bool:
    """Whether in training, with the same chance, each row has the same logit whatever rows are beside it."""
    was_training = module.training
    module.train()
    found = []
    with torch.no_grad():
        for row in (None, *range(len(rows))):
            torch.manual_seed(0)
            logits = module(rows if row is None else rows[row].repeat(len(rows), 1)).flatten()
            found.append(logits if row is None else logits[row])
    module.train(was_training)
    return _agree(found[0], torch.stack(found[1:]))


def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def _execute(path: str, origin: str, source: bytes) -> ModuleType:
    """Run exactly the bytes that were digested, so that the digest names what trains and not what lay there earlier."""
    module_name = path.partition(":")[0]
    spec = importlib.util.spec_from_file_location(f"_ringfence_{hashlib.sha256(source).hexdigest()[:16]}", origin)
    if spec is None:
        raise DocumentInvalid("the model's module cannot be loaded", where=path)
    module = importlib.util.module_from_spec(spec)
    module.__package__ = module_name.rpartition(".")[0]
    exec(compile(source, origin, "exec"), module.__dict__)  # noqa: S102 - the holder installed and approved this file
    return module

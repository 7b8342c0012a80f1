"""Models by name: logistic regression, a multilayer perceptron, or a holder's own installed torch module.

A model spec is the plan's [model] table as a mapping: `kind`, and `hidden`, `seed`, `path`, `code_digest` where the
kind has them. Whatever the kind, a model takes float32 features of shape (rows, features), gives one logit per row,
and is trained through its parameters alone: what a module keeps in buffers never leaves the holder.

What the built-in models are stands here, in numpy: whoever starts, trains or measures one does without torch, which
takes a second and 200 MB. `modules` builds any of the three for torch.
"""

import importlib.util
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ringfence_policy import canonical
from ringfence_policy.errors import DocumentInvalid

Arrays = dict[str, npt.NDArray[np.float32]]

BUILT_IN: Final = ("logistic-regression", "mlp")


def initial_arrays(model: Mapping[str, Any], feature_count: int) -> Arrays:
    """The parameters a run starts from. Public, and made without any data.

    Args:
        model: The plan's [model] table.
        feature_count: How many features a row has.

    Returns:
        One float32 array per parameter, by name, in the module's own order. Those of the built-in models are the same
        everywhere; those of a module, on the same version of torch.

    Raises:
        DocumentInvalid: The spec names no known kind, or a module that cannot be found, built or trained privately.
        TrustRefused: The module's source is not what the spec's `code_digest` names.
    """
    kind = model.get("kind")
    if kind == "logistic-regression":
        return {
            "layers.weight": np.zeros((1, feature_count), np.float32),
            "layers.bias": np.zeros(1, np.float32),
        }
    if kind == "mlp":
        return _mlp([feature_count, *model.get("hidden", ()), 1], seed=int(model.get("seed", 0)))
    if kind == "module":
        from ringfence_client.modules import build_module, read_arrays  # noqa: PLC0415 -- torch

        return read_arrays(build_module(model, feature_count))
    raise unknown_model(kind)


def trained_names(model: Mapping[str, Any], feature_count: int) -> list[str]:
    """Names of the parameters that training changes, in order. Raises as `initial_arrays` does."""
    if model.get("kind") != "module":
        return list(initial_arrays(model, feature_count))
    from ringfence_client.modules import build_module  # noqa: PLC0415 -- torch

    module = build_module(model, feature_count)
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def layers_of(arrays: Mapping[str, npt.NDArray[np.float32]]) -> list[tuple[str, str]]:
    """Names of weight and bias of each linear layer of a built-in model, from features to logit."""
    names = list(arrays)
    return list(zip(names[::2], names[1::2], strict=True))


def code_digest(path: str) -> str:
    """Name the code of a holder's own module by its source file.

    The digest covers that one file and not what it imports: keep a module that policies name self-contained.

    Args:
        path: Import path, `package.module:Class`; empty for the built-in models.

    Returns:
        `sha256:<hex>` over the file's bytes, or an empty string for an empty path.

    Raises:
        DocumentInvalid: No such module, or it has no source file.
    """
    return canonical.digest_bytes(source_of(path)[1]) if path else ""


def source_of(path: str) -> tuple[str, bytes]:
    """Where the source file of a holder's own module lies, and its bytes. Runs nothing of it.

    Raises:
        DocumentInvalid: No such module, or it has no source file.
    """
    module_name, colon, class_name = path.partition(":")
    if not (colon and module_name and class_name):
        raise DocumentInvalid(
            "not an import path", expected="package.module:Class", got=repr(path), where="[model] path"
        )
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise DocumentInvalid(
            "the model's module was not found, or has no source file",
            expected="an installed Python module",
            got=module_name,
            where="[model] path",
            next_step="install it at this data holder: code never comes over the wire",
        )
    return spec.origin, Path(spec.origin).read_bytes()


def unknown_model(kind: object) -> DocumentInvalid:
    """The error for a kind of model that there is not."""
    return DocumentInvalid(
        "unknown model", expected="kind = 'logistic-regression', 'mlp' or 'module'", got=repr(kind), where="[model]"
    )


def _mlp(sizes: list[int], *, seed: int) -> Arrays:
    """Layers uniform in +-1/sqrt(inputs); between two of them stands a ReLU, which takes a number of its own.

    From the generator's bits, which numpy promises to keep. What its distributions make of them may change (NEP 19).
    """
    bits = np.random.PCG64(seed)
    arrays: Arrays = {}
    for position, (inputs, outputs) in enumerate(pairwise(sizes)):
        bound = 1.0 / math.sqrt(inputs)
        for name, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            uniform = (bits.random_raw(math.prod(shape)) >> np.uint64(11)) * 2.0**-53
            drawn = bound * (2.0 * uniform - 1.0)
            arrays[f"layers.{2 * position}.{name}"] = drawn.reshape(shape).astype(np.float32)
    return arrays

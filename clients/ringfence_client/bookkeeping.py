"""A model under book-keeping: one forward and one backward pass give every unit's clipped gradient as one sum.

Autograd runs to the layers' outputs only; what follows for the parameters is `layer_gradients`' part. Whether a module
is one of which that is the whole truth is found out by a trial on made-up rows against plain autograd, before data.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ringfence_client.layer_gradients import SUPPORTED, LayerGradients, Units, longest_chain, sum_of
from ringfence_policy.errors import DocumentInvalid

_TRIAL_ROWS: Final = 3
_TRIAL_SPREAD: Final = 0.05
# Plain autograd and book-keeping add up the same float32 numbers in another order.
_TRIAL_TOLERANCE: Final = 1e-3


class BookKeptModel:
    """A module whose trainable parameters lie in one flat tensor, with taps at the layers that own them.

    Building it leaves the parameters at made-up values: set them with `modules.write_arrays`.

    Args:
        module: The module, which becomes this object's own; in training mode afterwards.
        feature_count: How many features a row has.

    Attributes:
        flat: float32 of shape (parameters,): the trainable parameters in the module's order, of which the module's
            are views.

    Raises:
        DocumentInvalid: The module cannot be trained so. Says which layers can, and what to do instead.
    """

    def __init__(self, module: nn.Module, feature_count: int) -> None:
        self._module = module
        self._gradients: dict[nn.Module, LayerGradients] = {}
        self._taps: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        self._calls = 0
        owners = _owners(module)
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.flat = torch.cat([parameter.detach().flatten() for parameter in trainable])
        self._sum = torch.zeros_like(self.flat, dtype=torch.float64)
        sums, start = {}, 0
        for parameter in trainable:
            part = slice(start, start + parameter.numel())
            parameter.data = self.flat[part].view_as(parameter)
            sums[parameter] = self._sum[part].view_as(parameter)
            start = part.stop
        for layer, owned in owners.items():
            into = {name: sums[parameter] for name, parameter in owned.items()}
            self._gradients[layer] = SUPPORTED[type(layer)](layer, into)
        self._layers = list(self._gradients.values())
        _compute_beside(module)
        try:
            self._numbers_each = self._try_out(trainable, feature_count)
        except RuntimeError as error:
            raise _unsupported(f"a module that fails in its trial: {str(error).splitlines()[0][:200]}") from error
        module.train()

    def numbers_each(self, *, grouped: bool) -> int:
        """How many numbers one row takes in memory, about; `grouped` where units have several rows."""
        return self._numbers_each[grouped]

    def norms(self, features: torch.Tensor, units: Units, *, labels: torch.Tensor) -> torch.Tensor:
        """Run the model forward and backward, and measure every unit's gradient.

        Args:
            features: float32 of shape (rows, features), with at least one row.
            units: Whose rows they are.
            labels: float32 of shape (rows,), 0 or 1. A row's loss is its logit's binary cross-entropy.

        Returns:
            float32 of shape (units,): norms of the units' gradients, above 0; not finite where a gradient is not, or
            is beyond 1e19. Secret.
        """
        return self._measure(self._pass(features, labels), units)

    def weighted_sum(self, factors: torch.Tensor, norms: torch.Tensor, *, units_in_step: int) -> torch.Tensor:
        """Sum the units' gradients that `norms` measured last, each times its factor.

        A unit whose norm is not finite contributes nothing, whatever its factor.

        Args:
            factors: float32 of shape (units,), at least 0.
            norms: What `norms` returned.
            units_in_step: How many units the whole sum is over, of which these may be a part.

        Returns:
            float64 of shape (parameters,), overwritten by the next call. Secret. Between neighbouring datasets it moves
            by at most what the factors allow and the share `ROUNDING_ROOM` of that.
        """
        if not math.isfinite(norms.sum().item()):  # the sum of all: one number to look at is faster than many
            usable = torch.isfinite(norms)
            factors = torch.where(usable, factors, 0.0)
            for layer in self._layers:
                layer.forget(usable)
        for layer in self._layers:
            layer.write_sum(factors, chain=longest_chain(units_in_step))
        return self._sum

    def _pass(self, features: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One forward and one backward pass: each layer's input, and the gradient at its output."""
        self._taps.clear()
        self._calls = 0
        logits = self._module(features)
        if self._calls != len(self._layers) or len(self._taps) != len(self._layers):
            raise _unsupported("a layer that is not called exactly once")
        taps = [self._taps.pop(layer) for layer in self._gradients]
        rows = features.shape[0]
        if any(inputs.shape[0] != rows or output.shape[0] != rows for inputs, output in taps):
            raise _unsupported("a layer whose input does not have one entry for each row")
        # Binary cross-entropy's gradient for a logit is its sigmoid less the label.
        start = torch.sigmoid(logits.detach()).sub_(labels)
        gradients = torch.autograd.grad(logits, [output for _, output in taps], start)
        return [(inputs, gradient) for (inputs, _), gradient in zip(taps, gradients, strict=True)]

    def _measure(self, passed: list[tuple[torch.Tensor, torch.Tensor]], units: Units) -> torch.Tensor:
        # No parameter wants a gradient any more, so nothing from here on is recorded for a backward pass.
        squares = [
            layer.squared_norms(inputs, gradient, units)
            for layer, (inputs, gradient) in zip(self._layers, passed, strict=True)
        ]
        return sum_of(squares).sqrt_()

    def _tap(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._calls += 1
        # Nothing before the first trained layer needs a gradient, so the backward pass ends here.
        if not output.requires_grad:
            output.requires_grad_()
        given = inputs[0]
        self._taps[layer] = (given.detach() if given.requires_grad else given, output)

    def _try_out(self, trainable: list[nn.Parameter], feature_count: int) -> dict[bool, int]:
        """Compare every trial row's gradient with autograd's, and count the numbers a row takes.

        The parameters are made-up, because at zeros, where some models start, much would go unnoticed.
        """
        spread = np.random.Generator(np.random.PCG64(1)).normal(0.0, _TRIAL_SPREAD, len(self.flat))
        self.flat += torch.from_numpy(spread.astype(np.float32))
        rows = torch.linspace(-1, 1, _TRIAL_ROWS * feature_count).reshape(_TRIAL_ROWS, feature_count)
        self._module.eval()
        labels = torch.arange(_TRIAL_ROWS) % 2 == 0
        losses = functional.binary_cross_entropy_with_logits(self._module(rows), labels.float(), reduction="none")
        expected = torch.stack([_flat_gradient(loss, trainable) for loss in losses])
        for parameter in trainable:
            parameter.requires_grad = False
        for layer in self._gradients:
            layer.register_forward_hook(self._tap)
        with _counting(self._module) as kept:
            passed = self._pass(rows, labels.float())
        norms = self._measure(passed, Units(np.arange(_TRIAL_ROWS)))
        found = torch.stack(
            [self.weighted_sum(one, norms, units_in_step=_TRIAL_ROWS).clone() for one in torch.eye(_TRIAL_ROWS)]
        )
        true_norms = expected.norm(dim=1)
        apart = torch.maximum((found - expected).norm(dim=1), (norms - true_norms).abs()).max()
        if not bool(apart <= _TRIAL_TOLERANCE * true_norms.max()):
            raise _unsupported("a trained parameter that acts otherwise than through its own layer")
        in_passes = sum(kept) // _TRIAL_ROWS
        return {
            grouped: in_passes
            + sum(
                layer.numbers_each(inputs, gradient, grouped=grouped)
                for layer, (inputs, gradient) in zip(self._layers, passed, strict=True)
            )
            for grouped in (False, True)
        }


def _owners(module: nn.Module) -> dict[nn.Module, dict[str, nn.Parameter]]:
    """The layers that own trainable parameters, with these by name, in the module's order.

    Raises:
        DocumentInvalid: One of them is not supported.
    """
    owners: dict[nn.Module, dict[str, nn.Parameter]] = {}
    owned: set[nn.Parameter] = set()
    for layer in module.modules():
        trained = {name: one for name, one in layer.named_parameters(recurse=False) if one.requires_grad}
        if not trained:
            continue
        rule = SUPPORTED.get(type(layer))
        if rule is None or not set(trained) <= {"weight", "bias"}:
            raise _unsupported(f"trained parameters in {type(layer).__name__}")
        if fault := rule.refuses(layer):
            raise _unsupported(fault)
        if not owned.isdisjoint(trained.values()):
            raise _unsupported("a trained parameter that two layers share")
        if any(parameter.dtype != torch.float32 for parameter in trained.values()):
            raise _unsupported("trained parameters that are not float32")
        owned |= set(trained.values())
        owners[layer] = trained
    return owners


def _compute_beside(module: nn.Module) -> None:
    """Let no activation overwrite its input, which is what was tapped: the numbers stay the same."""
    for layer in module.modules():
        if getattr(layer, "inplace", False) is True:
            vars(layer)["inplace"] = False


def _flat_gradient(loss: torch.Tensor, trainable: list[nn.Parameter]) -> torch.Tensor:
    gradients = torch.autograd.grad(loss, trainable, retain_graph=True, allow_unused=True)
    if any(gradient is None for gradient in gradients):
        raise _unsupported("a trained parameter that is not used")
    return torch.cat([gradient.flatten() for gradient in gradients])


@contextmanager
def _counting(module: nn.Module) -> Iterator[list[int]]:
    """Count the numbers that a forward pass keeps for the backward pass, parameters aside."""
    seen = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in seen:
            seen.add(place)
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield kept


def _unsupported(found: str) -> DocumentInvalid:
    known = ", ".join(kind.__name__ for kind in SUPPORTED)
    return DocumentInvalid(
        "the model cannot be trained record by record with book-keeping",
        expected=f"trained parameters in {known} alone (attention and LoRA built of Linear), each layer called once "
        "with one entry for each row",
        got=found,
        where="[model]",
        next_step="freeze or replace those layers, or set trainer = 'opacus' in [training]",
    )

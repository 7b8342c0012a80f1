"""What each supported kind of layer adds to a unit of privacy's gradient: its squared norm, and the clipped units' sum.

Book-keeping (Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost, arXiv:2210.00038) keeps
a layer's input and the gradient at its output, which one backward pass gives for all rows. From these follow the norm
of every unit's gradient, mostly without that gradient (Goodfellow 2015, arXiv:1510.01799; Li et al. 2022,
arXiv:2110.05679), and then the weighted sum of all units as one matrix product.

Everything here is secret. A norm must never come out too small by more than rounding, or a unit would contribute more
than it was clipped to. Three forms keep to that: of one position the norm is a product, and nothing in it cancels; a
gradient that is written out is scaled exactly as it was measured; only the third, a unit's Gram matrices, could cancel,
so it is taken in float64 and bounded from below. Sums are float32 in chains of a length that `ROUNDING_ROOM` covers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from ringfence_client.trainer import ROUNDING_ROOM

# The least a unit's norm is taken for, as a share of the sum of its positions' norms: where they cancel further than
# this, the rounding of a float64 Gram matrix could show in the norm. Sums of a few thousand products are off by 2**-42.
_LEAST_SHARE: Final = 2.0**-16
# Shorter chains than this cost more than float64 does, and so do all chains of this few numbers.
_SHORTEST_CHAIN: Final = 16
_FEW: Final = 1 << 16
# What squares too small for float32 may add up to: 10,000 of them, each below the smallest normal number.
_UNDERFLOW: Final = 2e-34
# Numbers of a convolution's patches that are copied at once: a mebibyte.
_PATCHES_AT_ONCE: Final = 1 << 18
# A float64 product costs about two of float32.
_GRAM_PRICE: Final = 2


class Units:
    """Which rows of a piece are one unit of privacy's.

    Attributes:
        count: How many units there are.
        of_rows: int64 of shape (rows,), never falling, from 0 to `count` - 1. None where each row is a unit of its own.
        most_rows: Rows of the unit that has most.
        slots: Where each row stands when every unit is given `most_rows` places. None where `of_rows` is.
    """

    def __init__(self, of_rows: npt.NDArray[np.int64]) -> None:
        rows = len(of_rows)
        self.count = int(of_rows[-1]) + 1 if rows else 0
        self.most_rows = 1
        self.of_rows: torch.Tensor | None = None
        self.slots: torch.Tensor | None = None
        if self.count < rows:
            sizes = np.bincount(of_rows)
            self.most_rows = int(sizes.max())
            place = np.arange(rows) - (np.cumsum(sizes) - sizes)[of_rows]
            self.of_rows = torch.from_numpy(of_rows)
            self.slots = torch.from_numpy(of_rows * self.most_rows + place)

    def summed(self, rows: torch.Tensor) -> torch.Tensor:
        """Sum what each unit's rows contribute: shape (rows, ...) to (units, ...)."""
        if self.of_rows is None:
            return rows
        return rows.new_zeros(self.count, *rows.shape[1:]).index_add_(0, self.of_rows, rows)

    def side_by_side(self, rows: torch.Tensor) -> torch.Tensor:
        """Put each unit's positions into one matrix: (rows, positions, n) to (units, positions of a unit, n)."""
        if self.slots is None:
            return rows
        _, positions, width = rows.shape
        places = rows.new_zeros(self.count * self.most_rows, positions, width)
        return places.index_copy_(0, self.slots, rows).view(self.count, self.most_rows * positions, width)

    def spread(self, factors: torch.Tensor) -> torch.Tensor:
        """Give every row its unit's number: shape (units,) to (rows,)."""
        return factors if self.of_rows is None else factors[self.of_rows]


class LayerGradients(ABC):
    """One layer's part in every unit's gradient. Reused for each piece of rows.

    Args:
        layer: The layer.
        sums: By name of the layer's trainable parameters, where their weighted sum goes: float64 of their shape.
    """

    expects = "a row of the output for each row of the features"

    def __init__(self, layer: Any, sums: Mapping[str, torch.Tensor]) -> None:
        self.layer = layer
        self.weight_sum = sums.get("weight")
        self.bias_sum = sums.get("bias")

    @classmethod
    def refuses(cls, layer: Any) -> str | None:
        """What of the layer's setting cannot be trained so, in words; None where nothing is wrong with it."""
        del layer
        return None

    @abstractmethod
    def squared_norms(self, inputs: torch.Tensor, gradient: torch.Tensor, units: Units) -> torch.Tensor:
        """Measure each unit's gradient for this layer's trainable parameters, and remember what `write_sum` needs.

        Args:
            inputs: What the layer was given, shape (rows, ...).
            gradient: Of the sum of all rows' losses with respect to the layer's output, shape (rows, ...).
            units: Whose rows they are.

        Returns:
            float32 of shape (units,); not finite where a gradient is not, or is too large to be squared.
        """

    @abstractmethod
    def write_sum(self, factors: torch.Tensor, *, chain: int) -> None:
        """Write the sum of all units' gradients, each times its factor, to where sums go.

        Args:
            factors: float32 of shape (units,), 0 for a unit that was forgotten.
            chain: How many units may be added up in float32.
        """

    @abstractmethod
    def forget(self, usable: torch.Tensor) -> None:
        """Replace by zeros what units without a usable gradient brought: times a factor of 0 it would still be NaN.

        Args:
            usable: bool of shape (units,).
        """

    def numbers_each(self, inputs: torch.Tensor, gradient: torch.Tensor, *, grouped: bool) -> int:
        """How many numbers a row takes at most while this layer is at work: its gradient written out, by default."""
        del grouped
        return inputs[0].numel() + gradient[0].numel() + int(sum(p.numel() for p in self.layer.parameters()))


class _WrittenOut(LayerGradients):
    """A layer whose units' gradients are small enough to be written out."""

    def squared_norms(self, inputs: torch.Tensor, gradient: torch.Tensor, units: Units) -> torch.Tensor:
        """Measure: see `LayerGradients.squared_norms`."""
        self._parts = [
            (units.summed(rows), out)
            for rows, out in zip(self._each_row(inputs, gradient), (self.weight_sum, self.bias_sum), strict=True)
            if rows is not None and out is not None
        ]
        return sum_of([_squares(part) for part, _ in self._parts])

    def write_sum(self, factors: torch.Tensor, *, chain: int) -> None:
        """Write the sum: see `LayerGradients.write_sum`."""
        for part, out in self._parts:
            out.copy_(_weighted(part, factors, chain=chain).view_as(out))

    def forget(self, usable: torch.Tensor) -> None:
        """Forget: see `LayerGradients.forget`."""
        self._parts = [(_only(usable, part), out) for part, out in self._parts]

    @abstractmethod
    def _each_row(
        self, inputs: torch.Tensor, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The gradients of weight and bias, shape (rows, ...), where they are trained."""


class LinearGradients(LayerGradients):
    """`nn.Linear` on any number of positions a row; attention and LoRA are made of these."""

    def squared_norms(self, inputs: torch.Tensor, gradient: torch.Tensor, units: Units) -> torch.Tensor:
        """Measure: see `LayerGradients.squared_norms`."""
        self._units = units
        if inputs.dim() > 2 or units.of_rows is not None:  # noqa: PLR2004 - a matrix has two dimensions
            return self._of_sequences(inputs, gradient)
        # One position is one outer product, and the norm of that is the product of two norms.
        self._inputs, self._gradient = inputs, gradient
        self._written: torch.Tensor | None = None
        self._written_bias: torch.Tensor | None = None
        squares: torch.Tensor = torch.linalg.vecdot(gradient, gradient).add_(_UNDERFLOW)
        if self.weight_sum is None:
            return squares
        of_inputs = torch.linalg.vecdot(inputs, inputs)
        return squares.mul_(of_inputs.add_(_UNDERFLOW if self.bias_sum is None else 1.0))

    def _of_sequences(self, inputs: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        units, layer = self._units, self.layer
        rows = inputs.shape[0]
        self._inputs = inputs = inputs.reshape(rows, -1, layer.in_features)
        self._gradient = gradient = gradient.reshape(rows, -1, layer.out_features)
        self._written = self._written_bias = None
        if self.bias_sum is not None:
            self._written_bias = units.summed(gradient.sum(dim=1))
        of_bias = [] if self._written_bias is None else [_squares(self._written_bias)]
        if self.weight_sum is None:
            return sum_of(of_bias)
        positions, size = inputs.shape[1], layer.in_features * layer.out_features
        gram_cost = units.count * (positions * units.most_rows) ** 2 * (layer.in_features + layer.out_features)
        if _GRAM_PRICE * gram_cost < rows * positions * size:
            return sum_of([_gram_squares(units.side_by_side(inputs), units.side_by_side(gradient)), *of_bias])
        # With the longer side last, whatever the weight's own is: a product of few columns takes three times as long.
        self._is_turned = layer.in_features < layer.out_features
        above, below = (inputs, gradient) if self._is_turned else (gradient, inputs)
        self._written = units.summed(torch.bmm(above.transpose(1, 2), below))
        return sum_of([_squares(self._written), *of_bias])

    def write_sum(self, factors: torch.Tensor, *, chain: int) -> None:
        """Write the sum: see `LayerGradients.write_sum`."""
        if self.weight_sum is not None and self._written is not None:
            total = _weighted(self._written, factors, chain=chain)
            self.weight_sum.copy_(total.t() if self._is_turned else total)
        elif self.weight_sum is not None:
            self.weight_sum.copy_(self._product(factors, chain=chain))
        if self.bias_sum is not None:
            by_unit = self._gradient if self._written_bias is None else self._written_bias
            self.bias_sum.copy_(_weighted(by_unit, factors, chain=chain))

    def _product(self, factors: torch.Tensor, *, chain: int) -> torch.Tensor:
        """The weighted sum of outer products, as one matrix product."""
        inputs, gradient, layer = self._inputs, self._gradient, self.layer
        by_row = self._units.spread(factors).unsqueeze(1)
        is_sequence = inputs.dim() > 2  # noqa: PLR2004 - a matrix has two dimensions
        # Positions of one unit may cancel, and then the rounding of their sum is not in proportion to it.
        if is_sequence or factors.shape[0] > chain:
            inputs, gradient = inputs.double(), gradient.double()
        if is_sequence:
            weighted = (gradient * by_row.unsqueeze(1)).reshape(-1, layer.out_features)
            return torch.mm(weighted.t(), inputs.reshape(-1, layer.in_features))
        return torch.mm((gradient * by_row).t(), inputs)

    def forget(self, usable: torch.Tensor) -> None:
        """Forget: see `LayerGradients.forget`."""
        rows = self._units.spread(usable)
        self._inputs, self._gradient = _only(rows, self._inputs), _only(rows, self._gradient)
        self._written, self._written_bias = (
            None if kept is None else _only(usable, kept) for kept in (self._written, self._written_bias)
        )

    def numbers_each(self, inputs: torch.Tensor, gradient: torch.Tensor, *, grouped: bool) -> int:
        """Count: see `LayerGradients.numbers_each`."""
        if inputs.dim() == 2 and not grouped:  # noqa: PLR2004 - a matrix has two dimensions
            return inputs[0].numel() + 2 * gradient[0].numel()
        return super().numbers_each(inputs, gradient, grouped=grouped)


class Conv2dGradients(_WrittenOut):
    """`nn.Conv2d`, as the product of its output's gradient and its input's patches."""

    @classmethod
    def refuses(cls, layer: nn.Conv2d) -> str | None:
        """Judge the setting: see `LayerGradients.refuses`."""
        return None if layer.padding_mode == "zeros" else f"Conv2d with padding_mode '{layer.padding_mode}'"

    def _each_row(
        self, inputs: torch.Tensor, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        layer, rows, places = self.layer, inputs.shape[0], gradient.shape[2:]
        bias = gradient.sum(dim=(2, 3)) if self.bias_sum is not None else None
        if self.weight_sum is None:
            return None, bias
        seen = self._seen(inputs, *places)
        gradient = gradient.reshape(rows * layer.groups, -1, math.prod(places))
        written = gradient.new_empty(*gradient.shape[:2], layer.weight[0].numel())
        # A piece at a time, in the same memory: the patches of all rows would leave a processor's near caches.
        at_once = max(1, min(rows, _PATCHES_AT_ONCE // (seen[0].nbytes // written.element_size())))
        patches = np.empty((at_once, *seen.shape[1:]), seen.dtype)
        as_numbers = torch.from_numpy(patches.view(np.float32)).view(at_once * layer.groups, math.prod(places), -1)
        for start in range(0, rows, at_once):
            piece = seen[start : start + at_once]
            patches[: len(piece)] = piece
            part = slice(start * layer.groups, (start + len(piece)) * layer.groups)
            torch.bmm(gradient[part], as_numbers[: len(piece) * layer.groups], out=written[part])
        return written.view(rows, layer.out_channels, -1), bias

    def _seen(self, inputs: torch.Tensor, high: int, wide: int) -> npt.NDArray[np.void]:
        """What the kernel sees at each place, uncopied: (rows, groups, high, wide, channels of a group, lines, 1 or n).

        A kernel's line is one item where its pixels are neighbours: to copy it whole takes a sixth to two thirds of the
        time, and `unfold` takes longer still.
        """
        layer = self.layer
        padded = functional.pad(inputs, self._padding()).contiguous().numpy()
        rows, channels = padded.shape[:2]
        in_group = channels // layer.groups
        of_row, of_channel, of_line, of_pixel = padded.strides
        (down, right), (lines, pixels) = layer.stride, layer.kernel_size
        together = pixels if layer.dilation[1] == 1 else 1
        return np.ndarray(
            (rows, layer.groups, high, wide, in_group, lines, pixels // together),
            f"V{together * of_pixel}",
            padded,
            strides=(
                *(of_row, of_channel * in_group, of_line * down, of_pixel * right),
                *(of_channel, of_line * layer.dilation[0], of_pixel * layer.dilation[1]),
            ),
        )

    def _padding(self) -> list[int]:
        """What is put around an image: left, right, above, below. Of an odd "same" the end gets more, as in torch."""
        sides: list[int] = []
        for axis in (1, 0):
            if self.layer.padding == "same":
                total = self.layer.dilation[axis] * (self.layer.kernel_size[axis] - 1)
                sides += [total // 2, total - total // 2]
            else:
                sides += [0, 0] if self.layer.padding == "valid" else [self.layer.padding[axis]] * 2
        return sides

    def numbers_each(self, inputs: torch.Tensor, gradient: torch.Tensor, *, grouped: bool) -> int:
        """Count: see `LayerGradients.numbers_each`."""
        padded: int = functional.pad(inputs[:1], self._padding()).numel()
        return super().numbers_each(inputs, gradient, grouped=grouped) + padded


class EmbeddingGradients(LayerGradients):
    """`nn.Embedding`: a unit's gradient has a row for each of its tokens, and only those are written out."""

    @classmethod
    def refuses(cls, layer: nn.Embedding) -> str | None:
        """Judge the setting: see `LayerGradients.refuses`."""
        if layer.max_norm is not None:
            return "Embedding with max_norm, which changes weights while it reads them"
        if layer.scale_grad_by_freq or layer.sparse:
            return "Embedding with scale_grad_by_freq or sparse"
        return None

    def squared_norms(self, inputs: torch.Tensor, gradient: torch.Tensor, units: Units) -> torch.Tensor:
        """Measure: see `LayerGradients.squared_norms`."""
        rows, size = inputs.shape[0], self.layer.num_embeddings
        of_rows = torch.arange(rows) if units.of_rows is None else units.of_rows
        tokens = inputs.reshape(rows, -1).long()
        gradient = gradient.reshape(-1, self.layer.embedding_dim)
        keys = (of_rows[:, None] * size + tokens).flatten()
        if self.layer.padding_idx is not None:
            real = (tokens != self.layer.padding_idx).flatten()
            keys, gradient = keys[real], gradient[real]
        keys, place = torch.unique(keys, return_inverse=True)
        self._gradient = gradient.new_zeros(len(keys), gradient.shape[1]).index_add_(0, place, gradient)
        self._units, self._tokens = keys // size, keys % size
        return torch.zeros(units.count).index_add_(0, self._units, _squares(self._gradient))

    def write_sum(self, factors: torch.Tensor, *, chain: int) -> None:
        """Write the sum: see `LayerGradients.write_sum`."""
        del chain
        if self.weight_sum is not None:
            weighted = self._gradient.double() * factors[self._units][:, None]
            self.weight_sum.zero_().index_add_(0, self._tokens, weighted)

    def forget(self, usable: torch.Tensor) -> None:
        """Forget: see `LayerGradients.forget`."""
        self._gradient = _only(usable[self._units], self._gradient)

    def numbers_each(self, inputs: torch.Tensor, gradient: torch.Tensor, *, grouped: bool) -> int:
        """Count: see `LayerGradients.numbers_each`."""
        del grouped
        return inputs[0].numel() + 3 * gradient[0].numel()


class LayerNormGradients(_WrittenOut):
    """`nn.LayerNorm`, normalised anew to get what its weight was multiplied with."""

    def _each_row(
        self, inputs: torch.Tensor, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        shape = self.layer.normalized_shape
        form = (inputs.shape[0], -1, math.prod(shape))
        weight = bias = None
        if self.weight_sum is not None:
            normalised = functional.layer_norm(inputs, shape, eps=self.layer.eps)
            weight = (gradient * normalised).reshape(form).sum(dim=1)
        if self.bias_sum is not None:
            bias = gradient.reshape(form).sum(dim=1)
        return weight, bias


class GroupNormGradients(_WrittenOut):
    """`nn.GroupNorm`, normalised anew to get what its weight was multiplied with."""

    def _each_row(
        self, inputs: torch.Tensor, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        form = (*inputs.shape[:2], -1)
        weight = bias = None
        if self.weight_sum is not None:
            normalised = functional.group_norm(inputs, self.layer.num_groups, eps=self.layer.eps)
            weight = (gradient * normalised).reshape(form).sum(dim=2)
        if self.bias_sum is not None:
            bias = gradient.reshape(form).sum(dim=2)
        return weight, bias


# By exact class: a subclass may compute something else.
SUPPORTED: Final[Mapping[type[nn.Module], type[LayerGradients]]] = {
    nn.Linear: LinearGradients,
    nn.Conv2d: Conv2dGradients,
    nn.Embedding: EmbeddingGradients,
    nn.LayerNorm: LayerNormGradients,
    nn.GroupNorm: GroupNormGradients,
}


def longest_chain(units: int) -> int:
    """How many of a sum's units may be added up in float32, so that `trainer.ROUNDING_ROOM` covers what is lost."""
    return int(ROUNDING_ROOM * 2**23) // max(1, units)


def sum_of(terms: list[torch.Tensor]) -> torch.Tensor:
    """Add tensors of one shape into the first of them."""
    total = terms[0]
    for term in terms[1:]:
        total += term
    return total


def _squares(rows: torch.Tensor) -> torch.Tensor:
    """Squared norms of what stands in each row, shape (rows, ..., n) to (rows,).

    Never below the true ones by more than rounding, even of tiny numbers.
    """
    squares: torch.Tensor = torch.linalg.vector_norm(rows, dim=-1).square_()
    # A sum of sums, because torch rounds more the longer one norm's row is: 7e-6 at 8,192 numbers, 4e-4 at a million.
    return (squares if squares.dim() == 1 else squares.flatten(start_dim=1).sum(dim=1)).add_(_UNDERFLOW)


def _weighted(rows: torch.Tensor, factors: torch.Tensor, *, chain: int) -> torch.Tensor:
    """Sum rows times their factors, shape (rows, ...) to (...): in float32 where the chain allows it."""
    flat = rows if rows.dim() == 2 else rows.flatten(start_dim=1)  # noqa: PLR2004 - a matrix has two dimensions
    if flat.shape[0] <= chain:
        total = torch.mv(flat.t(), factors)
    elif chain < _SHORTEST_CHAIN or flat.numel() < _FEW:
        total = torch.mv(flat.double().t(), factors.double())
    else:
        total = torch.zeros(flat.shape[1], dtype=torch.float64)
        for part, its_factors in zip(torch.split(flat, chain), torch.split(factors, chain), strict=True):
            total += torch.mv(part.t(), its_factors)
    return total.view(rows.shape[1:])


def _only(usable: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return torch.where(usable.view(-1, *[1] * (kept.dim() - 1)), kept, 0.0)


def _gram_squares(inputs: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Squared norms of sums of outer products, as the sum of <a_i, a_j><g_i, g_j> over a unit's positions i and j."""
    inputs, gradient = inputs.double(), gradient.double()
    products = torch.bmm(inputs, inputs.transpose(1, 2)) * torch.bmm(gradient, gradient.transpose(1, 2))
    positions = products.diagonal(dim1=1, dim2=2).clamp(min=0.0).sqrt().sum(dim=1)
    # maximum() gives NaN where either is, which is what tells that a unit is not usable.
    return torch.maximum(products.sum(dim=(1, 2)), (_LEAST_SHARE * positions).square()).float().add_(_UNDERFLOW)

"""The cohort's arithmetic by torch, holders stacked: the reference, the fallback, and the way onto a GPU."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import torch

from ringfence_client.cohort_kernel import HolderSteps

# Rows at once. Where a draw has at most `_SHORT` units, a piece is summed in float32, which stays within the room that
# trainer.ROUNDING_ROOM leaves (64 x 128 = 2**13); else in float64.
_PIECE: Final = 64
_SHORT: Final = 128
# What squares too small for float32 may add up to, as in layer_gradients.
_UNDERFLOW: Final = 2e-34


def on_best_device() -> "TorchKernel":
    """The kernel on a GPU where there is one, else on the processor."""
    return TorchKernel("cuda" if torch.cuda.is_available() else "cpu")


class TorchKernel:
    """Stacks holders, padding their draws to the longest: the reference, the fallback, and the way onto a GPU.

    Args:
        device: Where torch computes.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)
        # More would leave a processor's cache, fewer would pay for each call of torch: on a GPU that is a launch.
        self.together, self.numbers_at_once = (32, 1 << 22) if device == "cpu" else (512, 1 << 25)

    @property
    def name(self) -> str:
        """Torch, and where it computes."""
        return f"torch-{self._device.type}"

    def take_steps(self, widths: Sequence[int], holders: Sequence[HolderSteps]) -> list[int]:
        """Take every holder's steps: see `Kernel.take_steps`."""
        # Holders with the most to do come first, so that whoever still takes part is always the head of the stack.
        order = sorted(range(len(holders)), key=lambda i: (-len(holders[i].ends), -len(holders[i].rows)))
        taken = [0] * len(holders)
        with torch.no_grad():
            stack = _Stack(widths, [holders[i] for i in order], self._device)
            for i, count in zip(order, stack.take_steps(), strict=True):
                taken[i] = count
        return taken


class _Stack:
    """Holders whose matrices are multiplied together."""

    def __init__(self, widths: Sequence[int], holders: Sequence[HolderSteps], device: torch.device) -> None:
        self._widths = list(widths)
        self._holders = holders
        self._device = device
        self._weights = torch.from_numpy(np.stack([holder.weights for holder in holders])).to(device)
        self._anchors = torch.from_numpy(np.stack([holder.anchor for holder in holders])).to(device)
        # All holders' rows below each other; one more, of zeros, is what short draws are filled up with.
        self._filler = sum(len(holder.labels) for holder in holders)
        features = np.zeros((self._filler + 1, self._widths[0]), dtype=np.float32)
        labels = np.zeros(self._filler + 1, dtype=np.float32)
        np.concatenate([holder.features for holder in holders], out=features[:-1])
        np.concatenate([holder.labels for holder in holders], out=labels[:-1])
        self._features, self._labels = torch.from_numpy(features).to(device), torch.from_numpy(labels).to(device)
        self._offsets = np.cumsum([0, *(len(holder.labels) for holder in holders)])
        self._bounds = self._column([holder.bound for holder in holders])
        self._grids = self._column([holder.grid for holder in holders])
        self._learning_rates = self._column([holder.learning_rate for holder in holders])
        self._expected_batches = self._column([holder.expected_batch for holder in holders])
        self._pulls = self._column([holder.proximal_mu for holder in holders])

    def take_steps(self) -> list[int]:
        taken = [0] * len(self._holders)
        for step in range(len(self._holders[0].ends)):
            count = sum(len(holder.ends) > step for holder in self._holders)
            noise = np.stack([holder.noise[step] for holder in self._holders[:count]])
            sums = torch.from_numpy(noise).to(self._device)
            pieces = [list(_pieces(holder, step)) for holder in self._holders[:count]]
            is_short = max(sum(piece.stop - piece.start for piece in draw) for draw in pieces) <= _SHORT
            for number in range(max(map(len, pieces))):
                parts = [piece[number] if number < len(piece) else slice(0, 0) for piece in pieces]
                self._add_clipped(parts, sums, torch.float32 if is_short else torch.float64)
            weights = self._weights[:count]
            pull = self._pulls[:count] * (weights.double() - self._anchors[:count])
            sums.div_(self._grids[:count]).round_().mul_(self._grids[:count])
            gradient = sums.float() / self._expected_batches[:count] + pull
            weights -= (self._learning_rates[:count] * gradient).float()
            taken[:count] = [number + 1 for number in taken[:count]]
        for holder, trained in zip(self._holders, self._weights.cpu().numpy(), strict=True):
            holder.weights[:] = trained
        return taken

    def _add_clipped(self, pieces: Sequence[slice], sums: torch.Tensor, dtype: torch.dtype) -> None:
        """Add the clipped gradients of one piece of each holder's draw to the holders' sums."""
        lengths = [piece.stop - piece.start for piece in pieces]
        count = max(i for i, length in enumerate(lengths) if length) + 1  # the rest have no rows left
        positions = np.full((count, max(lengths)), self._filler, dtype=np.int64)
        for i in range(count):
            positions[i, : lengths[i]] = self._holders[i].rows[pieces[i]] + self._offsets[i]
        drawn = torch.from_numpy(positions).to(self._device)
        inputs, gradients = self._gradients(drawn, count)
        by_row = [holder.units is None for holder in self._holders[:count]]
        # A gradient can be so small that its square is lost where inputs are so large that their product is not.
        squares = torch.stack(
            [
                (gradient.square().sum(dim=-1) + _UNDERFLOW) * (given.square().sum(dim=-1) + 1.0)
                for given, gradient in zip(inputs, gradients, strict=True)
            ]
        ).sum(dim=0)
        usable = squares.isfinite()
        if not bool(usable.all()):
            inputs = [torch.where(usable[..., None], given, 0.0) for given in inputs]
            gradients = [torch.where(usable[..., None], gradient, 0.0) for gradient in gradients]
            squares = torch.where(usable, squares, 0.0)
        factors = (self._bounds[:count].float() / squares.sqrt()).clamp(max=1.0)
        factors = torch.where(drawn == self._filler, 0.0, factors)
        for i in range(count):
            if not by_row[i]:
                factors[i] = 0.0
            if not by_row[i] and lengths[i]:
                own = slice(lengths[i])
                sums[i] += self._summed_by_unit(
                    i, pieces[i], [a[i, own] for a in inputs], [g[i, own] for g in gradients]
                )
        if any(by_row):
            gradients = [(gradient * factors[..., None]).to(dtype) for gradient in gradients]
            start = 0
            for given, gradient in zip(inputs, gradients, strict=True):
                for part in (torch.bmm(gradient.mT, given.to(dtype)).flatten(1), gradient.sum(dim=1)):
                    sums[:count, start : start + part.shape[1]] += part
                    start += part.shape[1]

    def _gradients(self, drawn: torch.Tensor, count: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Inputs of every layer, and gradients of each row's loss for its outputs, of shape (holders, rows, width)."""
        layers = list(self._layers(count))
        inputs = [self._features[drawn]]
        for weight, bias in layers[:-1]:
            inputs.append(torch.baddbmm(bias[:, None], inputs[-1], weight.mT).relu_())
        weight, bias = layers[-1]
        logits = torch.baddbmm(bias[:, None], inputs[-1], weight.mT)
        gradients = [logits.sigmoid_() - self._labels[drawn][..., None]]
        for (weight, _), given in zip(layers[:0:-1], inputs[:0:-1], strict=True):
            gradients.insert(0, torch.bmm(gradients[0], weight).mul_(given > 0))
        return inputs, gradients

    def _layers(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        start = 0
        for inputs, outputs in pairwise(self._widths):
            end = start + outputs * inputs
            weight = self._weights[:count, start:end].view(-1, outputs, inputs)
            yield weight, self._weights[:count, end : end + outputs]
            start = end + outputs

    def _summed_by_unit(
        self, i: int, piece: slice, inputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The clipped gradients of the data subjects in a piece, summed: float64 of shape (parameters,)."""
        given = self._holders[i].units
        if given is None:
            raise AssertionError("these rows are about no subject")
        units = torch.from_numpy(np.unique(given[piece], return_inverse=True)[1]).to(self._device)
        parts = []
        for one, gradient in zip(inputs, gradients, strict=True):
            parts += [(gradient[:, :, None] * one[:, None, :]).flatten(1), gradient]
        by_row = torch.cat(parts, dim=1).double()
        summed = by_row.new_zeros(int(units[-1]) + 1, by_row.shape[1]).index_add_(0, units, by_row)
        factors = (self._bounds[i] / torch.linalg.vector_norm(summed, dim=1)).clamp(max=1.0)
        clipped: torch.Tensor = factors @ summed
        return clipped

    def _column(self, numbers: Sequence[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self._device)[:, None]


def _pieces(holder: HolderSteps, step: int) -> Iterator[slice]:
    """Parts of a step's rows, of `_PIECE` at most where that parts no data subject."""
    start, stop = int(holder.ends[step - 1]) if step else 0, int(holder.ends[step])
    while start < stop:
        end = min(start + _PIECE, stop)
        if holder.units is not None and end < stop:
            units = holder.units[start:stop]
            end = start + int(np.searchsorted(units, units[end - start]))
            if end == start:
                end = start + int(np.searchsorted(units, units[0], side="right"))
        yield slice(start, end)
        start = end

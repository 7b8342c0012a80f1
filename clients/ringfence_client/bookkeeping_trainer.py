"""The trainer of one holder's own modules: DP-SGD by book-keeping, at little more than the price of plain SGD.

Abadi et al. 2016, arXiv:1607.00133, algorithm 1, with the clipped sum taken as Bu et al. 2023, arXiv:2210.00038. Sums
leave float32 before `ROUNDING_ROOM` is used up; noise is added in float64, and only the noised and snapped sum is
rounded to the model's float32.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from ringfence_client.bookkeeping import BookKeptModel
from ringfence_client.layer_gradients import Units
from ringfence_client.module_chance import module_chance
from ringfence_client.modules import build_module, finite_arrays, write_arrays
from ringfence_client.noise import NoiseSource, snapped
from ringfence_client.normals import Float64Array
from ringfence_client.sampling import Draw, draw
from ringfence_client.trainer import ROUNDING_ROOM, TrainingJob
from ringfence_client.workroom import AppliedPrivacy, TrainedUpdate
from ringfence_policy.mechanism import DpMechanism

# Numbers in flight at once: 128 MiB of float32.
_NUMBERS: Final = 1 << 25
_NOISE_AT_ONCE: Final = 1 << 16


class PrivateSum:
    """Clips units and noises their sum, and keeps count of what it applied.

    Args:
        mechanism: Where clip, noise and the number of steps are from.
        numbers: How many numbers a sum has.
        noise: The source of the noise.

    Attributes:
        applied: For each noised sum the norm its units were clipped to and the noise multiplier.
    """

    def __init__(self, mechanism: DpMechanism, numbers: int, noise: NoiseSource) -> None:
        self.clipping_norm = mechanism.clipping_norm
        self.noise_multiplier = mechanism.noise_multiplier
        self.applied: list[tuple[float, float]] = []
        self._steps = mechanism.steps
        self._numbers = numbers
        self._noise = noise
        self._clipped_to = 0.0
        self._drawn: tuple[float, list[Float64Array]] = (0.0, [])

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """What units with these norms are multiplied with: float32 of the same shape, at most 1."""
        self._clipped_to = max(self._clipped_to, self.clipping_norm)
        bound = self.clipping_norm * (1.0 - ROUNDING_ROOM)
        return bound / norms.clamp(min=bound)

    def noised(self, total: torch.Tensor) -> torch.Tensor:
        """Add noise that nothing else gets to a step's float64 sum, and snap the result to its grid.

        The standard deviation follows the norm that was clipped to, so the two cannot drift apart.
        """
        clipped_to = max(self._clipped_to, self.clipping_norm)  # where nothing was drawn, nothing was clipped
        self._clipped_to = 0.0
        stddev = self.noise_multiplier * clipped_to
        noise = self._next_noise(stddev)
        noise += total.numpy()
        noised = torch.from_numpy(snapped(noise, stddev=stddev))
        self.applied.append((clipped_to, self.noise_multiplier))
        return noised

    def _next_noise(self, stddev: float) -> Float64Array:
        """One step's noise. Small models draw that of many steps at once, which is the same noise at less cost."""
        if self._drawn[0] != stddev or not self._drawn[1]:
            left = self._steps - len(self.applied)
            steps = max(1, min(left, _NOISE_AT_ONCE // self._numbers))
            self._drawn = (stddev, list(self._noise.normal((steps, self._numbers), stddev=stddev)))
        return self._drawn[1].pop(0)


class BookKeepingTrainer:
    """Trains each job by book-keeping. For models of the layers it knows: see `layer_gradients`."""

    name: Final = "book-keeping"

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainedUpdate]:
        """Train every job: see `Trainer.train`."""
        return [_train(job) for job in jobs]


def check_module(module: nn.Module, feature_count: int) -> None:
    """Refuse a module that cannot be trained by book-keeping. Uses the module up.

    Raises:
        DocumentInvalid: It cannot. Says which layers can, and what to do instead.
    """
    BookKeptModel(module, feature_count)


def _train(job: TrainingJob) -> TrainedUpdate:
    feature_count = job.data.features.shape[1]
    module = build_module(job.model, feature_count)
    model = BookKeptModel(module, feature_count)
    write_arrays(module, job.arrays)
    anchor = model.flat.clone()
    private = PrivateSum(job.mechanism, len(model.flat), job.noise)
    features, labels = torch.tensor(job.data.features), torch.tensor(job.data.labels)
    rates = []
    with module_chance(job):
        for _ in range(job.mechanism.steps):
            rate = job.mechanism.sampling_rate
            drawn = draw(job.data, unit=job.mechanism.unit, sampling_rate=rate, noise=job.noise)
            rates.append(rate)
            total = _clipped_sum(model, private, features, labels, drawn)
            gradient = private.noised(total).to(torch.float32).div_(job.expected_batch)
            if job.proximal_mu:  # after the noise: Li et al. 2020, Federated Optimization in Heterogeneous Networks
                gradient.add_(model.flat - anchor, alpha=job.proximal_mu)
            model.flat.add_(gradient, alpha=-job.learning_rate)
    return TrainedUpdate(
        holder_id=job.holder_id,
        arrays=finite_arrays(module, job),
        applied=AppliedPrivacy(
            clipping_norm=max(clipping_norm for clipping_norm, _ in private.applied),
            noise_multiplier=min(noise_multiplier for _, noise_multiplier in private.applied),
            sampling_rate=max(rates),
            steps=len(private.applied),
            noise_kind=job.noise.kind,
        ),
        trainer=BookKeepingTrainer.name,
    )


def _clipped_sum(
    model: BookKeptModel, private: PrivateSum, features: torch.Tensor, labels: torch.Tensor, drawn: Draw
) -> torch.Tensor:
    """Sum the drawn units' clipped gradients, float64, in pieces that fit in memory; of none it is zero."""
    total: torch.Tensor | None = None
    most_rows = _NUMBERS // model.numbers_each(grouped=drawn.count < len(drawn.rows))
    for piece in drawn.pieces(most_rows=most_rows) if drawn.count else ():
        rows = torch.from_numpy(drawn.rows[piece])
        units = Units(drawn.units[piece] - drawn.units[piece.start])
        norms = model.norms(features.index_select(0, rows), units, labels=labels.index_select(0, rows))
        part = model.weighted_sum(private.factors(norms), norms, units_in_step=drawn.count)
        total = part.clone() if total is None else total.add_(part)
    return torch.zeros(model.flat.shape, dtype=torch.float64) if total is None else total

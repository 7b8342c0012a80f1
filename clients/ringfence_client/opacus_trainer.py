"""The first trainer: DP-SGD by Opacus' per-record gradients, one holder after another.

Abadi et al. 2016, Deep Learning with Differential Privacy, arXiv:1607.00133, algorithm 1, with our own noise. Clipping,
summing and adding noise are done in float64; the noised sum is snapped to its grid and rounded to the model's float32,
which as post-processing costs nothing.
"""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import nn

from ringfence_client.module_chance import module_chance
from ringfence_client.modules import build_module, finite_arrays, write_arrays
from ringfence_client.noise import NoiseSource, snapped
from ringfence_client.sampling import Draw, draw
from ringfence_client.trainer import ROUNDING_ROOM, TrainingJob
from ringfence_client.workroom import AppliedPrivacy, TrainedUpdate
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.mechanism import DpMechanism

# Per-record gradients in flight at once, in numbers: 64 MiB of float32 and twice that of float64.
_GRADIENT_NUMBERS = 1 << 24


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with the noise of a `NoiseSource`, in float64, that keeps count of what it applied.

    Args:
        optimizer: The torch optimiser that takes the noised gradient.
        mechanism: Where clip and noise are from.
        expected_batch: What a noised sum is divided by. Public.
        noise: The source of the noise.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        mechanism: DpMechanism,
        expected_batch: float,
        noise: NoiseSource,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clipping_norm,
            expected_batch_size=expected_batch,
            loss_reduction="mean",
        )
        self.applied: list[tuple[float, float]] = []
        self.units: torch.Tensor | None = None
        self._noise = noise
        self._clipped_to = 0.0

    def clip_and_accumulate(self) -> None:
        """Add the clipped gradients of the units at hand to the step's float64 sum.

        A record whose gradient is not finite contributes nothing: scaled down, it would still not be finite, and one
        record would decide whether the whole update is.
        """
        gradients = torch.cat([sample.flatten(start_dim=1).double() for sample in self.grad_samples], dim=1)
        usable = torch.isfinite(gradients).all(dim=1, keepdim=True)
        gradients = torch.where(usable, gradients, 0.0)
        if self.units is not None:  # a data subject's rows are summed first, and clipped as one
            count = int(self.units[-1] - self.units[0]) + 1 if len(self.units) else 0
            summed = torch.zeros(count, gradients.shape[1], dtype=gradients.dtype)
            gradients = summed.index_add_(0, self.units - self.units[:1], gradients)
        norms = torch.linalg.vector_norm(gradients, dim=1)
        bound = self.max_grad_norm * (1.0 - ROUNDING_ROOM)
        factors = (bound / norms).clamp(max=1.0)  # a norm of 0 gives infinity, and the clamp makes it 1
        self._clipped_to = max(self._clipped_to, float(self.max_grad_norm))
        parts = torch.split(factors @ gradients, [parameter.numel() for parameter in self.params])
        for parameter, part in zip(self.params, parts, strict=True):
            summed = part.view_as(parameter)
            parameter.summed_grad = summed if parameter.summed_grad is None else parameter.summed_grad + summed

    def add_noise(self) -> None:
        """Add one draw of noise to the step's sum, and take the result as the gradient.

        The standard deviation follows the norm that was clipped to, so the two cannot drift apart.
        """
        count = sum(parameter.numel() for parameter in self.params)
        stddev = self.noise_multiplier * self._clipped_to
        total = torch.cat([parameter.summed_grad.flatten() for parameter in self.params]).numpy()
        noised = torch.from_numpy(snapped(total + self._noise.normal((count,), stddev=stddev), stddev=stddev))
        parts = torch.split(noised, [parameter.numel() for parameter in self.params])
        for parameter, part in zip(self.params, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        self.applied.append((self._clipped_to, float(self.noise_multiplier)))
        self._clipped_to = 0.0


class OpacusTrainer:
    """Trains each job with Opacus' hooks. Slow for many small models, and the reference for faster trainers."""

    name: Final = "opacus"

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainedUpdate]:
        """Train every job: see `Trainer.train`."""
        return [_train(job) for job in jobs]


def _train(job: TrainingJob) -> TrainedUpdate:
    module = _per_record(job)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = PrivateOptimizer(
        torch.optim.SGD(parameters, lr=job.learning_rate),
        mechanism=job.mechanism,
        expected_batch=job.expected_batch,
        noise=job.noise,
    )
    if job.proximal_mu:
        optimizer.attach_step_hook(
            _pull_towards([parameter.detach().clone() for parameter in parameters], job.proximal_mu)
        )
    features, labels = torch.tensor(job.data.features), torch.tensor(job.data.labels)
    rates = []
    with module_chance(job):
        for _ in range(job.mechanism.steps):
            rate = job.mechanism.sampling_rate
            drawn = draw(job.data, unit=job.mechanism.unit, sampling_rate=rate, noise=job.noise)
            rates.append(rate)
            _step(module, optimizer, features, labels, drawn)
    return TrainedUpdate(
        holder_id=job.holder_id,
        # The wrapped module: the wrapper renames its parameters.
        arrays=finite_arrays(module._module, job),  # noqa: SLF001
        applied=_applied(optimizer, rates, job.noise),
        trainer=OpacusTrainer.name,
    )


def check_module(module: nn.Module) -> None:
    """Refuse a module that Opacus cannot train record by record.

    Raises:
        DocumentInvalid: The module mixes records, or has a layer without per-record gradients.
    """
    _hooked(module)


def _per_record(job: TrainingJob) -> GradSampleModule:
    """Build the job's model with hooks that keep one gradient per record."""
    module = build_module(job.model, job.data.features.shape[1])
    write_arrays(module, job.arrays)
    return _hooked(module)


def _hooked(module: nn.Module) -> GradSampleModule:
    faults = [type(fault).__name__ for fault in ModuleValidator.validate(module, strict=False)]
    if not faults:
        try:
            return GradSampleModule(module.train(), loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            faults.append(type(error).__name__)
    raise DocumentInvalid(
        "the model cannot be trained record by record",
        expected="layers whose output for one record does not depend on the others, with gradients per record",
        got=", ".join(faults),
        where="[model]",
        next_step="replace batch normalisation by group or layer normalisation, and leave out buffers",
    )


def _step(
    module: GradSampleModule, optimizer: PrivateOptimizer, features: torch.Tensor, labels: torch.Tensor, drawn: Draw
) -> None:
    """Take one step on the drawn rows, in pieces that fit in memory and one noise for all; none is a step too."""
    numbers_each = sum(parameter.numel() for parameter in optimizer.params)
    pieces = list(drawn.pieces(most_rows=_GRADIENT_NUMBERS // numbers_each))
    for piece in pieces:
        optimizer.signal_skip_step(do_skip=piece is not pieces[-1])
        optimizer.zero_grad()
        rows = drawn.rows[piece]
        has_groups = drawn.count < len(drawn.rows)
        optimizer.units = torch.from_numpy(drawn.units[piece]) if has_groups else None
        # The gradient for the features is not used: asking for it is what makes torch call the hooks without a warning.
        logits = module(features[rows].requires_grad_())
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[rows], reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        try:
            optimizer.step()
        except ValueError as error:
            raise DocumentInvalid(
                "the model cannot be trained record by record",
                expected="every trainable parameter used once in the forward pass",
                where="[model]",
            ) from error


def _pull_towards(anchors: Sequence[torch.Tensor], proximal_mu: float) -> Callable[[DPOptimizer], None]:
    """FedProx' term, added to the noised gradient: Li et al. 2020, Federated Optimization in Heterogeneous Networks."""

    def pull(optimizer: DPOptimizer) -> None:
        for parameter, anchor in zip(optimizer.params, anchors, strict=True):
            parameter.grad += proximal_mu * (parameter.detach() - anchor)

    return pull


def _applied(optimizer: PrivateOptimizer, rates: Sequence[float], noise: NoiseSource) -> AppliedPrivacy:
    return AppliedPrivacy(
        clipping_norm=max(clipping_norm for clipping_norm, _ in optimizer.applied),
        noise_multiplier=min(noise_multiplier for _, noise_multiplier in optimizer.applied),
        sampling_rate=max(rates),
        steps=len(optimizer.applied),
        noise_kind=noise.kind,
    )

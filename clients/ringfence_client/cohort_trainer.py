"""The cohort trainer: DP-SGD of many holders' small models at once, in closed form.

For the built-in models, whose gradients are known without a backward pass of torch: what a holder costs is then its
arithmetic and its noise, and nothing for building modules, hooks and optimisers. What each holder gets is what it would
get alone from any other trainer with the same draws; tests/conformance holds all trainers to that.
"""

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from ringfence_client.cohort_kernel import Float32Array, HolderSteps, Kernel, best_kernel
from ringfence_client.models import BUILT_IN, initial_arrays
from ringfence_client.noise import snapping_grid
from ringfence_client.sampling import draw_steps
from ringfence_client.trainer import ROUNDING_ROOM, TrainingFault, TrainingJob
from ringfence_client.workroom import AppliedPrivacy, TrainedUpdate, check_arrays
from ringfence_policy.errors import DocumentInvalid


@dataclass(frozen=True)
class _Architecture:
    """What holders that are trained together have in common: names of parameters, features, and outputs of layers."""

    kind: str
    widths: tuple[int, ...]


class CohortTrainer:
    """Trains holders with models of one architecture together, and refuses all models but the built-in ones.

    A job that fails fails the call, and nothing of the others is returned: `use.py` then trains one by one, each with
    fresh noise, so that the fault stays its own holder's.

    Args:
        kernel: Who does the arithmetic; by default the fastest there is.
    """

    name: Final = "cohort"

    def __init__(self, kernel: Kernel | None = None) -> None:
        self._kernel = kernel or best_kernel()

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainedUpdate]:
        """Train every job: see `Trainer.train`.

        Raises:
            DocumentInvalid: A model is not one of the built-in ones.
        """
        groups: dict[_Architecture, list[int]] = defaultdict(list)
        for position, job in enumerate(jobs):
            groups[_architecture(job.model, job.data.features.shape[1])].append(position)
        updates: dict[int, TrainedUpdate] = {}
        for architecture, positions in groups.items():
            trained = self._train_alike(architecture, [jobs[position] for position in positions])
            updates |= zip(positions, trained, strict=True)
        return [updates[position] for position in range(len(jobs))]

    def _train_alike(self, architecture: _Architecture, jobs: Sequence[TrainingJob]) -> list[TrainedUpdate]:
        widths = architecture.widths
        shapes = _shapes(architecture)
        training = [_Training(job, shapes) for job in jobs]
        size = self._kernel.together
        chunks = [training[start : start + size] for start in range(0, len(training), size)]
        # A source of noise is no thread's but one's: two jobs that share one are trained one after the other.
        has_own = len({id(job.noise) for job in jobs}) == len(jobs)
        threads = min(_threads(), len(chunks)) if has_own and size == 1 else 1
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda chunk: self._train_chunk(widths, chunk), chunks))
        else:
            for chunk in chunks:
                self._train_chunk(widths, chunk)
        return [one.update() for one in training]

    def _train_chunk(self, widths: tuple[int, ...], chunk: Sequence["_Training"]) -> None:
        while going := [one for one in chunk if one.left]:
            steps = max(1, self._kernel.numbers_at_once // sum(one.numbers_a_step for one in going))
            taken = self._kernel.take_steps(widths, [one.next_steps(steps) for one in going])
            for one, count in zip(going, taken, strict=True):
                one.taken += count


class _Training:
    """One job on its way: its weights, and what was applied to them."""

    def __init__(self, job: TrainingJob, shapes: Mapping[str, tuple[int, ...]]) -> None:
        check_arrays(job.arrays, shapes)
        self._job = job
        self._shapes = shapes
        self._anchor: Float32Array = np.concatenate([job.arrays[name].ravel() for name in shapes])
        self._weights = self._anchor.copy()
        self.taken = 0
        self._applied: set[tuple[float, float, float]] = set()

    @property
    def numbers_a_step(self) -> int:
        """How many random numbers one step takes."""
        return len(self._weights) + self._job.data.records

    @property
    def left(self) -> int:
        """How many steps are still to be taken."""
        return self._job.mechanism.steps - self.taken

    def next_steps(self, at_most: int) -> HolderSteps:
        """Draw the units and the noise of the next steps."""
        job, mechanism = self._job, self._job.mechanism
        steps = min(at_most, self.left)
        bound, rate = mechanism.clipping_norm, mechanism.sampling_rate
        stddev = mechanism.noise_multiplier * bound
        drawn = draw_steps(job.data, unit=mechanism.unit, sampling_rate=rate, noise=job.noise, steps=steps)
        noise = job.noise.normal((steps, len(self._weights)), stddev=stddev)
        self._applied.add((bound, mechanism.noise_multiplier, rate))
        return HolderSteps(
            features=job.data.features,
            labels=job.data.labels,
            weights=self._weights,
            anchor=self._anchor,
            rows=drawn.rows,
            units=drawn.units,
            ends=drawn.ends,
            noise=noise,
            bound=bound * (1.0 - ROUNDING_ROOM),
            grid=snapping_grid(stddev=stddev),
            learning_rate=job.learning_rate,
            expected_batch=job.expected_batch,
            proximal_mu=job.proximal_mu,
        )

    def update(self) -> TrainedUpdate:
        """What the holder's training gave.

        Raises:
            TrainingFault: A parameter is not finite.
        """
        if not np.isfinite(self._weights).all():
            raise TrainingFault(
                "training diverged",
                expected="finite parameters",
                where=f"job of '{self._job.holder_id}'",
                next_step="lower the learning rate",
            )
        arrays, start = {}, 0
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            arrays[name] = self._weights[start : start + size].reshape(shape)
            start += size
        return TrainedUpdate(
            holder_id=self._job.holder_id,
            trainer=CohortTrainer.name,
            arrays=arrays,
            applied=AppliedPrivacy(
                clipping_norm=max(clipping_norm for clipping_norm, _, _ in self._applied),
                noise_multiplier=min(noise_multiplier for _, noise_multiplier, _ in self._applied),
                sampling_rate=max(rate for _, _, rate in self._applied),
                steps=self.taken,
                noise_kind=self._job.noise.kind,
            ),
        )


@lru_cache(maxsize=64)
def _shapes(architecture: _Architecture) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the model's parameters, in its order."""
    features, *hidden, _ = architecture.widths
    arrays = initial_arrays({"kind": architecture.kind, "hidden": hidden}, features)
    return {name: array.shape for name, array in arrays.items()}


def _threads() -> int:
    """As many as any library here would start: who wants fewer says so in OMP_NUM_THREADS."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else os.cpu_count() or 1


def _architecture(model: Mapping[str, Any], feature_count: int) -> _Architecture:
    kind = model.get("kind")
    if kind not in BUILT_IN:
        raise DocumentInvalid(
            "the cohort trainer does not know this model",
            expected=f"kind = {' or '.join(map(repr, BUILT_IN))}",
            got=repr(kind),
            where="[model]",
            next_step="train it with the trainer 'book-keeping' or 'opacus'",
        )
    hidden = model.get("hidden", ()) if kind == "mlp" else ()
    return _Architecture(str(kind), (feature_count, *map(int, hidden), 1))

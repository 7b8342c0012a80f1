"""The check before a run's first training that the trainer to be used adds the noise that will be charged.

It runs the real trainer with the plan's model and mechanism, opens no data and spends nothing. The noise comes from a
source of the same kind as the run's, never from the run's own: checking must not move what a rehearsal repeats.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ringfence_client.datasource import HolderData
from ringfence_client.models import initial_arrays, trained_names
from ringfence_client.noise import (
    NOISE_CHECK_SAMPLES,
    NoiseSource,
    RehearsalNoise,
    SecureNoise,
    noise_defect,
)
from ringfence_client.normals import Float64Array
from ringfence_client.trainer import Trainer, TrainingJob
from ringfence_client.workroom import NoiseFault, NoiseKind, TrainedUpdate
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Unit

_MADE_UP_RECORDS: Final = 4
# How far an update may lie from its noise, in its noise: float32 rounding takes about a thousandth of this.
_TOLERANCE: Final = 1e-3

_JOBS: Final = 3

_sound: set[tuple[object, ...]] = set()


class _Listening:
    """A noise source that lets every made-up record join, and remembers what noise it gave.

    Args:
        source: The source of the noise.
    """

    def __init__(self, source: NoiseSource) -> None:
        self.given: list[Float64Array] = []
        self.stddevs: list[float] = []
        self._source = source

    @property
    def kind(self) -> NoiseKind:
        return self._source.kind

    def normal(self, shape: Sequence[int], *, stddev: float) -> Float64Array:
        drawn = self._source.normal(shape, stddev=stddev)
        self.given.append(drawn.flatten())
        self.stddevs.append(stddev)
        return drawn

    def uniform(self, size: int) -> Float64Array:
        return np.full(size, 2.0**-53)


def check_trainer(
    trainer: Trainer,
    *,
    run_id: str,
    model: Mapping[str, Any],
    feature_count: int,
    mechanism: DpMechanism,
    rehearsal_seed: int | None,
) -> None:
    """Make sure that a trainer adds a mechanism's noise to a model, once in a process for each of a run's mechanisms.

    A few steps are trained, on no records and on made-up ones, at a learning rate at which the update is the noise by
    its standard deviation. The noise's spread is measured on at least 20,000 draws, and every update is held against
    the very draws that went into it. So a step without noise, a draw used twice, noise from elsewhere, or noise a tenth
    too small is found, wherever between source and update it is lost, in a model of thirty parameters as in one of a
    million.

    Args:
        trainer: The trainer that the run will use.
        run_id: The run. What was found sound is not looked at again in it.
        model: The plan's [model] table.
        feature_count: How many features a row has.
        mechanism: The mechanism as settled.
        rehearsal_seed: The seed where the run is a rehearsal, otherwise None.

    Raises:
        NoiseFault: The trainer does not do what will be charged. Train nothing with it.
        DocumentInvalid: The trainer cannot train this model.
    """
    spec, is_rehearsal = json.dumps(model, sort_keys=True), rehearsal_seed is not None
    key = (run_id, is_rehearsal, type(trainer), trainer.name, spec, feature_count, mechanism)
    if key in _sound:
        return
    # A source for each job, as in a run: a trainer may train its jobs in several threads.
    sources = [_source(rehearsal_seed, number) for number in range(_JOBS)]
    defect = _defect(trainer, model=model, feature_count=feature_count, mechanism=mechanism, sources=sources)
    if defect is not None:
        raise NoiseFault(
            defect,
            expected="each step's noise, of the standard deviation that is charged, in every parameter",
            where=f"trainer '{trainer.name}'",
            next_step="train nothing with it; report this with the output of `ringfence doctor`",
        )
    _sound.add(key)


def _source(rehearsal_seed: int | None, number: int) -> NoiseSource:
    return SecureNoise() if rehearsal_seed is None else RehearsalNoise(rehearsal_seed, stream=f"noise check {number}")


def _defect(
    trainer: Trainer,
    *,
    model: Mapping[str, Any],
    feature_count: int,
    mechanism: DpMechanism,
    sources: Sequence[NoiseSource],
) -> str | None:
    # From zero, so that the update is read without the rounding that larger parameters bring.
    start = {name: np.zeros_like(array) for name, array in initial_arrays(model, feature_count).items()}
    trained = trained_names(model, feature_count)
    stddev = mechanism.noise_stddev
    heard = [_Listening(source) for source in sources]
    jobs = [
        TrainingJob(
            holder_id="noise check",
            model=model,
            arrays=start,
            data=_made_up(records, feature_count, unit=mechanism.unit),
            mechanism=replace(mechanism, steps=steps),
            learning_rate=1.0,
            expected_batch=stddev,
            noise=listening,
        )
        for records, steps, listening in zip((0, _MADE_UP_RECORDS, _MADE_UP_RECORDS), (2, 1, 1), heard, strict=True)
    ]
    updates = trainer.train(jobs)
    size = sum(start[name].size for name in trained)
    if [sum(len(drawn) for drawn in each.given) for each in heard] != [2 * size, size, size]:
        return "the trainer does not draw fresh noise for every parameter and step"
    if not all(math.isclose(asked, stddev, rel_tol=1e-9) for each in heard for asked in each.stddevs):
        return "the trainer asks for noise of another standard deviation"
    missing = NOISE_CHECK_SAMPLES - 4 * size
    samples = [drawn for each in heard for drawn in each.given]
    if missing > 0:
        samples.append(sources[0].normal((missing,), stddev=stddev))
    defect = noise_defect(np.concatenate(samples), stddev=stddev)
    if defect is not None:
        return defect
    found = [_flat(update, trained) for update in updates]
    # What the made-up records contribute is the same in both trainings, and falls out of their difference.
    noise = [np.concatenate(each.given).reshape(-1, size).sum(axis=0) / -stddev for each in heard]
    for moved, expected in ((found[0], noise[0]), (found[1] - found[2], noise[1] - noise[2])):
        if not np.linalg.norm(moved - expected) <= _TOLERANCE * np.linalg.norm(expected):
            return "the noise that reaches the update is not the noise that was drawn"
    return None


def _made_up(records: int, feature_count: int, *, unit: Unit) -> HolderData:
    # One label for all, or their gradients would cancel and a step on records would look like one on none.
    features, labels = np.zeros((records, feature_count), dtype=np.float32), np.ones(records, dtype=np.float32)
    return HolderData.from_arrays(features, labels, np.arange(records) if unit is Unit.SUBJECT else None)


def _flat(update: TrainedUpdate, names: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.concatenate([update.arrays[name].ravel().astype(np.float64) for name in names])

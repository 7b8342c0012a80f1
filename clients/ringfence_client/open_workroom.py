"""The workroom that is this very process: holders that are simulated together, and the trainer behind its walls.

Many holders' training is done at once, and each failure stays its own holder's.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from logging import getLogger
from traceback import format_tb
from typing import Literal, Self

import numpy as np

from ringfence_client.evaluation import noised_counts, score_counts
from ringfence_client.holder_records import HolderRecords
from ringfence_client.models import initial_arrays
from ringfence_client.noise import NoiseSource, RehearsalNoise, SecureNoise
from ringfence_client.noise_check import check_trainer
from ringfence_client.trainer import Trainer, TrainingJob
from ringfence_client.trainers import choose_trainer, trainer_named
from ringfence_client.workroom import (
    FAILED_USE,
    AppliedPrivacy,
    DataFacts,
    Measured,
    ModelFacts,
    Result,
    UseOrder,
    model_spec,
)
from ringfence_policy.errors import DocumentInvalid, Fault
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.plan import TrainerName, TrainingPlan
from ringfence_policy.score_histogram import EXACT_BINS, PRIVATE_BINS, THOUSANDTHS
from ringfence_policy.vocabulary import Unit

_log = getLogger(__name__)


class OpenWorkroom:
    """One holder's records, used in this process. Whether walls stand around the process is not known here.

    Args:
        records: The holder's records.
    """

    sandboxed = False  # records are opened in this very process, which has a network and every other file

    def __init__(self, records: HolderRecords) -> None:
        self.records = records

    def facts(self, plan: TrainingPlan) -> DataFacts:
        """See `Workroom.facts`."""
        data = self.records.whole(plan)
        return DataFacts(records=data.records, fingerprint=data.fingerprint)

    def examine(self, plan: TrainingPlan) -> ModelFacts:
        """See `Workroom.examine`."""
        examine = _examined.__wrapped__ if plan.terms.model.kind == "module" else _examined
        return examine(
            plan.terms.model.model_dump_json(), plan.dataset_schema.feature_count, plan.terms.training.trainer
        )

    def check_training(self, run_id: str, plan: TrainingPlan, mechanism: DpMechanism, *, seed: int | None) -> None:
        """See `Workroom.check_training`."""
        check_trainer(
            trainer_named(self.examine(plan).trainer),
            run_id=run_id,
            model=model_spec(plan),
            feature_count=plan.dataset_schema.feature_count,
            mechanism=mechanism,
            rehearsal_seed=seed,
        )

    @classmethod
    def carry_out(cls, orders: Sequence[tuple[Self, UseOrder]]) -> list[Result | Fault]:
        """See `Workroom.carry_out`: the uses of one trainer are trained together."""
        by_trainer: dict[TrainerName, list[int]] = {}
        for position, (_, order) in enumerate(orders):
            if order.trainer is not None:
                by_trainer.setdefault(order.trainer, []).append(position)
        results: dict[int, Result | Fault] = {}
        for name, positions in by_trainer.items():
            trained = _train([orders[position] for position in positions], trainer_named(name))
            results |= zip(positions, trained, strict=True)
        return [
            results[position] if position in results else _guarded(room, order, trainer=None)
            for position, (room, order) in enumerate(orders)
        ]

    def close(self) -> None:
        """See `Workroom.close`: nothing runs here."""


# Every holder of a process asks, in every round. A holder's own module is built anew each time: its source may change.
@lru_cache(maxsize=64)
def _examined(model: str, feature_count: int, wanted: Literal["auto"] | TrainerName) -> ModelFacts:
    spec = json.loads(model)
    shapes = {name: array.shape for name, array in initial_arrays(spec, feature_count).items()}
    return ModelFacts(shapes=shapes, trainer=choose_trainer(spec, feature_count, wanted=wanted))


def _train(orders: Sequence[tuple[OpenWorkroom, UseOrder]], trainer: Trainer) -> Sequence[Result | Fault]:
    try:
        return trainer.train([_job(room, order) for room, order in orders])
    except Exception:  # noqa: BLE001 -- one holder's fault must not cost the others their round: find whose it is
        return [_guarded(room, order, trainer=trainer) for room, order in orders]


def _guarded(room: OpenWorkroom, order: UseOrder, *, trainer: Trainer | None) -> Result | Fault:
    try:
        return _measure(room, order) if trainer is None else trainer.train([_job(room, order)])[0]
    except Exception as error:  # noqa: BLE001 -- data was opened: that it failed may leave, and is charged; why, may not
        _log.error("a use failed with %s\n%s", type(error).__name__, "".join(format_tb(error.__traceback__)))
        return Fault(FAILED_USE)


def _job(room: OpenWorkroom, order: UseOrder) -> TrainingJob:
    training = order.plan.terms.training
    mechanism = order.mechanism
    if mechanism is None:
        raise DocumentInvalid("training without a mechanism", expected="clip, noise, rate and steps")
    data, _ = room.records.parts(order.plan)
    return TrainingJob(
        holder_id=order.holder_id,
        model=model_spec(order.plan),
        arrays=order.arrays,
        data=data,
        mechanism=mechanism,
        learning_rate=float(training.learning_rate),
        # The declared weight, never the row count: dividing by the true number would give it away.
        expected_batch=mechanism.sampling_rate * order.weight,
        proximal_mu=float(training.proximal_mu) if training.strategy == "FedProx" else 0.0,
        noise=_noise(order),
    )


def _measure(room: OpenWorkroom, order: UseOrder) -> Measured:
    _, data = room.records.parts(order.plan)
    mechanism = order.mechanism
    bins = EXACT_BINS if mechanism is None else PRIVATE_BINS
    unit = Unit.RECORD if mechanism is None else mechanism.unit
    counts = score_counts(model_spec(order.plan), order.arrays, data, bins=bins, unit=unit)
    applied = None
    if mechanism is not None:
        noise = _noise(order)
        counts = noised_counts(counts, mechanism=mechanism, noise=noise)
        applied = AppliedPrivacy(
            clipping_norm=1.0,
            noise_multiplier=mechanism.noise_stddev,
            sampling_rate=1.0,
            steps=1,
            noise_kind=noise.kind,
        )
    negative, positive = np.rint(counts * THOUSANDTHS).astype(np.int64).tolist()
    return Measured(histogram=(tuple(negative), tuple(positive)), applied=applied)


def _noise(order: UseOrder) -> NoiseSource:
    if order.rehearsal_seed is None:
        return SecureNoise()
    stream = f"{order.holder_id}/{order.round_number}/{order.action.value}"
    return RehearsalNoise(order.rehearsal_seed, stream=stream)

"""What permitted uses do with data: many holders are trained at once, and each failure stays its own holder's."""

from collections.abc import Sequence
from logging import getLogger
from traceback import format_tb

import numpy as np

from ringfence_client.enforcement import Measured, Prepared, model_spec
from ringfence_client.evaluation import noised_counts, score_counts
from ringfence_client.noise import NoiseSource, RehearsalNoise, SecureNoise
from ringfence_client.noise_check import check_trainer
from ringfence_client.run_terms import RunTerms
from ringfence_client.trainer import AppliedPrivacy, TrainedUpdate, Trainer, TrainingJob
from ringfence_client.trainers import trainer_named
from ringfence_policy.errors import Fault
from ringfence_policy.plan import TrainerName
from ringfence_policy.score_histogram import EXACT_BINS, PRIVATE_BINS, THOUSANDTHS
from ringfence_policy.vocabulary import Unit

Result = TrainedUpdate | Measured

_log = getLogger(__name__)


def use_together(uses: Sequence[Prepared]) -> list[Result | Fault | None]:
    """Carry out permitted uses: those of one trainer together.

    Args:
        uses: Permitted and reserved uses of any holders.

    Returns:
        For each use its result, None where the stored reply is to be sent again, or the fault that stopped it.
    """
    by_trainer: dict[TrainerName, list[Prepared]] = {}
    for use in uses:
        if use.trainer is not None and use.stored is None:
            by_trainer.setdefault(use.trainer, []).append(use)
    trained: dict[int, Result | Fault] = {}
    for name, training in by_trainer.items():
        trained |= zip(map(id, training), _train(training, trainer_named(name)), strict=True)
    return [trained[id(use)] if id(use) in trained else _without_training(use) for use in uses]


def check_training(terms: RunTerms, trainer: TrainerName) -> None:
    """Make sure, before anything is reserved, that training in this run adds the noise that the ledger will be charged.

    Args:
        terms: The run's terms.
        trainer: What will train.

    Raises:
        NoiseFault: It does not.
        DocumentInvalid: The plan's model cannot be trained.
    """
    check_trainer(
        trainer_named(trainer),
        run_id=terms.run_id,
        model=model_spec(terms),
        feature_count=terms.plan.dataset_schema.feature_count,
        mechanism=terms.settlement.training,
        rehearsal_seed=terms.rehearsal_seed,
    )


def _without_training(use: Prepared) -> Result | Fault | None:
    return None if use.stored is not None else _guarded(use, trainer=None)


def _train(uses: Sequence[Prepared], trainer: Trainer) -> Sequence[Result | Fault]:
    try:
        return trainer.train([_job(use) for use in uses])
    except Exception:  # noqa: BLE001 -- one holder's fault must not cost the others their round: find whose it is
        return [_guarded(use, trainer=trainer) for use in uses]


def _guarded(use: Prepared, *, trainer: Trainer | None) -> Result | Fault:
    try:
        return _measure(use) if trainer is None else trainer.train([_job(use)])[0]
    except Exception as error:  # noqa: BLE001 -- data was opened: that it failed may leave, and is charged; why, may not
        _log.error("a use failed with %s\n%s", type(error).__name__, "".join(format_tb(error.__traceback__)))
        return Fault("the use failed after data was opened")


def _job(use: Prepared) -> TrainingJob:
    training = use.terms.plan.terms.training
    mechanism = use.terms.settlement.training
    data, _ = use.node.split(use.terms.plan)
    return TrainingJob(
        holder_id=use.node.holder_id,
        model=model_spec(use.terms),
        arrays=use.arrays,
        data=data,
        mechanism=mechanism,
        learning_rate=float(training.learning_rate),
        # The declared weight, never the row count: dividing by the true number would give it away.
        expected_batch=mechanism.sampling_rate * use.node.home.profile.dataset.weight,
        proximal_mu=float(training.proximal_mu) if training.strategy == "FedProx" else 0.0,
        noise=_noise(use),
    )


def _measure(use: Prepared) -> Measured:
    _, data = use.node.split(use.terms.plan)
    mechanism = use.mechanism
    bins = EXACT_BINS if mechanism is None else PRIVATE_BINS
    unit = Unit.RECORD if mechanism is None else mechanism.unit
    counts = score_counts(model_spec(use.terms), use.arrays, data, bins=bins, unit=unit)
    applied = None
    if mechanism is not None:
        noise = _noise(use)
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


def _noise(use: Prepared) -> NoiseSource:
    seed = use.terms.rehearsal_seed
    if seed is None:
        return SecureNoise()
    return RehearsalNoise(seed, stream=f"{use.node.holder_id}/{use.request.round_number}/{use.request.action.value}")

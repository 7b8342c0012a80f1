"""The task that cohort.py and gpu.py measure: one round of private training at simulated holders."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ringfence_client.datasource import HolderData
from ringfence_client.models import Arrays
from ringfence_client.noise import NoiseSource
from ringfence_client.trainer import TrainingJob
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit

FEATURES, RECORDS, BATCH, STEPS = 30, 512, 64, 8
LEARNING_RATE = 0.1
MECHANISM: Final = DpMechanism(
    kind="dp-sgd",
    clipping_norm=1.0,
    noise_multiplier=1.0,
    sampling_rate=BATCH / RECORDS,
    steps=STEPS,
    unit=Unit.RECORD,
    relation=Relation.ADD_OR_REMOVE,
)


def make_holders(count: int, *, seed: int = 0) -> list[HolderData]:
    """Simulated holders: one linear rule with noise, other rows at each."""
    rng = np.random.default_rng(seed)
    rule = rng.normal(size=FEATURES)
    holders = []
    for _ in range(count):
        features = rng.uniform(-1, 1, (RECORDS, FEATURES)).astype(np.float32)
        labels = (features @ rule + rng.normal(size=RECORDS) > 0).astype(np.float32)
        holders.append(HolderData.from_arrays(features, labels))
    return holders


def make_jobs(
    holders: Sequence[HolderData], model: Mapping[str, Any], arrays: Arrays, noise: Sequence[NoiseSource]
) -> list[TrainingJob]:
    """One round's job of each holder."""
    return [
        TrainingJob(
            holder_id=f"holder-{number}",
            model=model,
            arrays=arrays,
            data=data,
            mechanism=MECHANISM,
            learning_rate=LEARNING_RATE,
            expected_batch=float(BATCH),
            noise=source,
        )
        for number, (data, source) in enumerate(zip(holders, noise, strict=True))
    ]

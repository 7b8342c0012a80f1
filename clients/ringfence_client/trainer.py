"""What every trainer takes and gives: jobs in, updates out, with the privacy that was really applied.

A trainer is given many holders' jobs at once, because that is where speed comes from; a holder alone is a list of one.
It has no say in clip, noise, rate or steps: those are the mechanism's, which is also what the ledger charged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ringfence_client.datasource import HolderData
from ringfence_client.noise import NoiseSource
from ringfence_client.workroom import TrainedUpdate
from ringfence_policy.errors import DocumentInvalid, Fault, Unaccountable
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.plan import TrainerName
from ringfence_policy.vocabulary import Unit

# Every trainer clips to (1 - ROUNDING_ROOM) times the clipping norm. The rest is room for what float32 does to norms
# and sums, so that one unit moves the COMPUTED sum by no more than the clipping norm, which is what noise and
# accounting assume. A sum of n clipped units, added in float32 in chains of m, lies within m * 2**-24 * n clipping
# norms of the exact one, whatever the units are (Higham 2002, Accuracy and Stability of Numerical Algorithms,
# section 4.2). Two neighbouring sums may both be off, so the room suffices while 2 * m * n * 2**-24 <= 2**-10, that is
#
#     m * n <= 2**13: all in one float32 chain for up to 90 units, chains of 32 for 256, chains of 8 for 1,024,
#
# with the chains' sums added in float64. A trainer that sums in float64 needs next to none of it.
ROUNDING_ROOM: Final = 2.0**-10


class TrainingFault(Fault):
    """Training gave nothing that may be sent, such as numbers that are not finite."""

    code = "training-fault"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One holder's part of one round.

    Attributes:
        holder_id: Whose data it is.
        model: The plan's [model] table; see `models`.
        arrays: The global model it starts from: float32 by parameter name. Public, and not trusted.
        data: The holder's training records. Secret.
        mechanism: Clip, noise, rate and steps, as reserved in the ledger. `dp-sgd`, with noise above zero.
        learning_rate: Step size, no unit, > 0.
        expected_batch: What a step's noised sum is divided by: sampling rate times the holder's DECLARED weight, > 0.
            Public; dividing by the true number of records would give that number away.
        proximal_mu: Strength of FedProx' pull towards `arrays`, >= 0; applied after the noise, so it costs no privacy.
        noise: The holder's own source of sampling and noise.
    """

    holder_id: str
    model: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[np.float32]]
    data: HolderData
    mechanism: DpMechanism
    learning_rate: float
    expected_batch: float
    proximal_mu: float = 0.0
    noise: NoiseSource

    def __post_init__(self) -> None:
        """Check what a trainer must never guess.

        Raises:
            Unaccountable: The mechanism is not one a trainer of records can apply, or adds no noise.
            DocumentInvalid: A number of the plan is out of range.
        """
        mechanism = self.mechanism
        units = (Unit.RECORD, Unit.SUBJECT)
        if mechanism.kind != "dp-sgd" or mechanism.unit not in units or not mechanism.noise_multiplier > 0:
            raise Unaccountable(
                "this mechanism cannot be trained with",
                expected="dp-sgd on the unit 'record' or 'subject', with a noise multiplier above 0",
                got=f"{mechanism.kind} on '{mechanism.unit}', noise multiplier {mechanism.noise_multiplier:g}",
                where=f"job of '{self.holder_id}'",
            )
        if mechanism.unit is Unit.SUBJECT and self.data.subjects is None:
            raise Unaccountable(
                "a subject cannot be protected where the data does not say which rows are about one",
                expected="a schema with a subject column",
                where=f"job of '{self.holder_id}'",
            )
        for name, value, lowest in (
            ("learning_rate", self.learning_rate, 0.0),
            ("expected_batch", self.expected_batch, 0.0),
            ("proximal_mu + 1", self.proximal_mu + 1.0, 1.0 - 1e-12),
        ):
            if not (np.isfinite(value) and value > lowest):
                raise DocumentInvalid(
                    "a training number is out of range", expected=f"{name} above {lowest:g}", got=f"{value:g}"
                )


class Trainer(Protocol):
    """Something that trains. All implementations draw alike, so that the same seeded noise gives the same update.

    For each step: where the sampling rate is below 1, `uniform(units)`; and ONE `normal` of as many numbers as the
    model has trainable parameters, flattened in the module's order. Several steps may be drawn at once: `NoiseSource`
    says how.

    Each unit is clipped to (1 - ROUNDING_ROOM) x clipping norm, noise is added in float64, and the step's gradient is
    `noise.snapped` of the sum.
    """

    @property
    def name(self) -> TrainerName:
        """The trainer's name in plans, evidence, logs and benchmarks."""
        ...

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainedUpdate]:
        """Train every job, independently of all others.

        Args:
            jobs: Any number of them; they may differ in everything.

        Returns:
            One update per job, in the jobs' order.

        Raises:
            DocumentInvalid: A model cannot be built, or cannot be trained record by record.
            TrustRefused: The arrays are not the model's, or the model's code is not what was approved.
            TrainingFault: Training diverged.
        """
        ...

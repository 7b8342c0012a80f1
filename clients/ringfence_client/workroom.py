"""Where a holder's records are used, as the gate sees it: what may be asked there and what comes out. Opens no record.

There are two. `open_workroom` is this very process, for holders that are simulated together; `walled_workroom` is a
process of its own behind walls, for real ones. What is decided, charged and sent stays on this side of either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from ringfence_policy.errors import Fault, TrustRefused
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.plan import TrainerName, TrainingPlan
from ringfence_policy.vocabulary import Action

Arrays = Mapping[str, npt.NDArray[np.float32]]
Shapes = Mapping[str, tuple[int, ...]]
Histogram = tuple[tuple[int, ...], tuple[int, ...]]
NoiseKind = Literal["csprng", "seeded"]

FAILED_USE = "the use failed after data was opened"


class NoiseFault(Fault):
    """A noise generator does not produce the noise it was asked for, so nothing may be trained with it."""

    code = "noise-fault"


@dataclass(frozen=True)
class DataFacts:
    """What the gate has to know about a holder's records. Secret.

    Attributes:
        records: How many there are.
        fingerprint: Names this version of the dataset.
    """

    records: int
    fingerprint: str


@dataclass(frozen=True)
class ModelFacts:
    """What is known about a plan's model once it was built, with no data open.

    Attributes:
        shapes: Shape of each parameter, by name in the model's own order.
        trainer: What will train it.
    """

    shapes: Shapes
    trainer: TrainerName


@dataclass(frozen=True, kw_only=True)
class UseOrder:
    """One permitted use: all that the workroom has to be told.

    Attributes:
        holder_id: Whose records are used.
        plan: The plan as signed.
        action: Train, or evaluate.
        round_number: The round, from 1.
        arrays: The model that the use starts from.
        mechanism: What it applies; None for an exact evaluation.
        trainer: What trains; None for an evaluation.
        weight: The holder's declared, public weight.
        rehearsal_seed: Seeds the noise of a rehearsal; None for a private use.
    """

    holder_id: str
    plan: TrainingPlan
    action: Action
    round_number: int
    arrays: Arrays
    mechanism: DpMechanism | None
    trainer: TrainerName | None
    weight: int
    rehearsal_seed: int | None


@dataclass(frozen=True, kw_only=True)
class AppliedPrivacy:
    """What was really done to protect, read back from the parts that did it and not copied from the plan.

    Attributes:
        clipping_norm: The largest bound on any unit's part in a sum as computed, `trainer.ROUNDING_ROOM` included.
        noise_multiplier: The smallest noise standard deviation of any step, divided by that step's clipping norm.
        sampling_rate: The highest probability any record was drawn with.
        steps: How many noised sums were taken.
        noise_kind: Where the noise was from.
    """

    clipping_norm: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    noise_kind: NoiseKind

    def keeps(self, mechanism: DpMechanism) -> bool:
        """Whether what was done is exactly as strong as `mechanism` claims, to the last digit."""
        return (self.clipping_norm, self.noise_multiplier, self.sampling_rate, self.steps) == (
            mechanism.clipping_norm,
            mechanism.noise_multiplier,
            mechanism.sampling_rate,
            mechanism.steps,
        )


@dataclass(frozen=True, kw_only=True)
class TrainedUpdate:
    """What one holder's training gave.

    Attributes:
        holder_id: Whose it is.
        arrays: The new parameters, float32 by name, finite. Differentially private as `applied` says, and only so.
        applied: What was really applied. Check it against the mechanism that was charged before anything is sent.
        trainer: Which trainer did it.
    """

    holder_id: str
    arrays: dict[str, npt.NDArray[np.float32]]
    applied: AppliedPrivacy
    trainer: TrainerName


@dataclass(frozen=True)
class Measured:
    """The result of an evaluation: counts by label and score in thousandths, and the noise really applied, if any."""

    histogram: Histogram
    applied: AppliedPrivacy | None


Result = TrainedUpdate | Measured


class Workroom(Protocol):
    """A place where one holder's records are used."""

    @property
    def sandboxed(self) -> bool:
        """Whether records are opened behind walls that were tried and stand."""
        ...

    def facts(self, plan: TrainingPlan) -> DataFacts:
        """Count the records and name their version.

        Raises:
            DataInvalid: They do not fit the plan's schema.
        """
        ...

    def examine(self, plan: TrainingPlan) -> ModelFacts:
        """Build the plan's model and choose what trains it. Opens no data.

        Raises:
            DocumentInvalid: The model cannot be built or trained.
            TrustRefused: Its code is not what the plan names.
        """
        ...

    def check_training(self, run_id: str, plan: TrainingPlan, mechanism: DpMechanism, *, seed: int | None) -> None:
        """Make sure that training in this run adds the noise that will be charged. Opens no data, spends nothing.

        Raises:
            NoiseFault: It does not.
            DocumentInvalid: The plan's model cannot be trained.
        """
        ...

    @classmethod
    def carry_out(cls, orders: Sequence[tuple[Self, UseOrder]]) -> list[Result | Fault]:
        """Carry out permitted uses, each in its own holder's workroom; what can be is trained together.

        Returns:
            For each order its result, or the fault that stopped it. A fault says the same whatever failed: that it
            failed leaves the holder, and why may say something about a record.
        """
        ...

    def close(self) -> None:
        """End whatever runs there. Safe to call twice."""
        ...


def model_spec(plan: TrainingPlan) -> dict[str, Any]:
    """The plan's [model] table, as models are built from."""
    spec: dict[str, Any] = plan.terms.model.model_dump(mode="json")
    return spec


def check_arrays(arrays: Arrays, shapes: Shapes) -> None:
    """Make sure that arrays can be a model's parameters.

    Args:
        arrays: From the coordinator: not trusted.
        shapes: The model's parameters: names and shapes.

    Raises:
        TrustRefused: Other names, another type or shape, or a number that is not finite (a gradient at such a point
            could carry a record past the clipping).
    """
    if set(arrays) != set(shapes):
        raise TrustRefused(
            "these are not this model's parameters",
            expected=", ".join(sorted(shapes)),
            got=f"{len(arrays)} arrays of other names",
            where="model arrays",
        )
    for name, shape in shapes.items():
        array = arrays[name]
        if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
            raise TrustRefused(
                "a model array cannot be used",
                expected=f"finite float32 of shape {shape}",
                got=f"{array.dtype} of shape {array.shape}",
                where=f"model array '{name}'",
            )

"""What a run costs a holder: the noise its own budget asks for, settled once, before the first round."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ringfence_policy.accounting import calibrate_noise
from ringfence_policy.errors import BudgetExhausted
from ringfence_policy.holder import DatasetTerms
from ringfence_policy.mechanism import DpMechanism, History
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.vocabulary import Evaluation, rank


@dataclass(frozen=True)
class Settlement:
    """The mechanisms of one run at one holder. Fixed before any data is used, which is what makes their sum provable.

    Attributes:
        training: One round of training.
        evaluation: One private evaluation, or None where evaluation is exact or there is none.
        evaluation_mode: The most revealing evaluation that both plan and policy allow.
    """

    training: DpMechanism
    evaluation: DpMechanism | None
    evaluation_mode: Evaluation

    def to_document(self) -> dict[str, Any]:
        """The settlement as JSON, for the holder's own state."""
        return {
            "training": self.training.to_document(),
            "evaluation": None if self.evaluation is None else self.evaluation.to_document(),
            "evaluation_mode": self.evaluation_mode.value,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read back what `to_document` wrote."""
        evaluation = document["evaluation"]
        return cls(
            training=DpMechanism.from_document(document["training"]),
            evaluation=None if evaluation is None else DpMechanism.from_document(evaluation),
            evaluation_mode=Evaluation(document["evaluation_mode"]),
        )


def loudest_training(plan: TrainingPlan) -> DpMechanism:
    """One round of training under the most noise that the plan allows. A holder settles this or less noise."""
    return DpMechanism.rounded(
        kind="dp-sgd",
        clipping_norm=float(plan.terms.training.clipping_norm),
        noise_multiplier=float(plan.terms.privacy.noise_multiplier_max),
        sampling_rate=float(plan.terms.training.sampling_rate),
        steps=plan.terms.training.steps,
        unit=plan.unit,
        relation=plan.terms.privacy.relation,
    )


def settle(
    *, plan: TrainingPlan, policy: UsagePolicy, dataset: DatasetTerms, policy_history: History, dataset_history: History
) -> Settlement:
    """Calibrate a holder's noise so that the plan's rounds fit its policy's and its dataset's budgets.

    The noise never exceeds the plan's `noise_multiplier_max`: beyond it an update would be useless to the run. A budget
    that would need more noise buys fewer rounds instead, and the gate refuses the rest (clause epsilon).

    Args:
        plan: What is to be run.
        policy: The holder's policy.
        dataset: Its dataset's own budget.
        policy_history: What was spent under the policy, by runs before this one.
        dataset_history: What was spent on the dataset, under any policy, by runs before this one.
    """
    mode = min(plan.terms.evaluation.mode, policy.evaluation, key=rank)
    evaluation = None
    if mode is Evaluation.PRIVATE:
        evaluation = DpMechanism.rounded(
            kind="score-histogram",
            clipping_norm=1.0,
            noise_multiplier=float(plan.terms.evaluation.noise_multiplier),
            sampling_rate=1.0,
            steps=1,
            unit=plan.unit,
            relation=plan.terms.privacy.relation,
        )
    loudest = loudest_training(plan)
    # The final evaluation is charged beside the rounds: treat it as spent, or the last round would not fit.
    final = ((evaluation, 1),) if evaluation is not None else ()
    caps = (
        (policy_history, policy.epsilon_micro, policy.delta_pico),
        (dataset_history, dataset.epsilon_micro, dataset.delta_pico),
    )
    rounds_used = sum(count for mechanism, count in policy_history if mechanism.kind == "dp-sgd")
    needed = 0
    for history, epsilon_micro, delta_pico in caps:
        try:
            calibrated = calibrate_noise(
                history=(*history, *final),
                mechanism=loudest,
                uses=max(1, min(plan.terms.training.rounds, policy.max_rounds - rounds_used)),
                epsilon_micro=epsilon_micro,
                delta_pico=delta_pico,
                # What was spent is another run's: this one may have been planned after seeing what that released.
                adaptive=bool(history),
            )
        except BudgetExhausted:
            return Settlement(training=loudest, evaluation=evaluation, evaluation_mode=mode)
        needed = max(needed, calibrated.noise_multiplier_micro)
    quietest = min(needed, loudest.noise_multiplier_micro)
    return Settlement(training=loudest.with_noise(quietest), evaluation=evaluation, evaluation_mode=mode)

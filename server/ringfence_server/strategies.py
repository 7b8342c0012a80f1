"""The Flower strategies that a plan can name, built from the plan's numbers."""

from collections.abc import Callable, Mapping
from typing import Any

from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx, FedTrimmedAvg, FedYogi, Strategy

from ringfence_policy.plan import TrainingTerms

# Every holder that permits is asked, and the cohort's minimum is the plan's and the policies' matter, not Flower's.
_EVERYONE: Mapping[str, Any] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
}

STRATEGIES: Mapping[str, Callable[[TrainingTerms], Strategy]] = {
    "FedAvg": lambda _: FedAvg(**_EVERYONE),
    "FedProx": lambda terms: FedProx(**_EVERYONE, proximal_mu=float(terms.proximal_mu)),
    "FedAdam": lambda terms: FedAdam(**_EVERYONE, eta=float(terms.server_learning_rate)),
    "FedYogi": lambda terms: FedYogi(**_EVERYONE, eta=float(terms.server_learning_rate)),
    "FedTrimmedAvg": lambda terms: FedTrimmedAvg(**_EVERYONE, beta=float(terms.trimmed_share)),
}


def build_strategy(terms: TrainingTerms) -> Strategy:
    """The strategy that the plan names."""
    return STRATEGIES[terms.strategy](terms)

"""Poisson sampling: which of a holder's units of privacy join one optimiser step.

Every unit joins with the same probability, independently of all others and of every other step, decided by the same
secret generator as the noise. Nothing weaker earns amplification by sampling: shuffled or fixed-size batches are other
mechanisms (Chua et al. 2024, How Private are DP-SGD Implementations?, arXiv:2403.17673). How many units came is secret.
"""

import numpy as np
import numpy.typing as npt

from ringfence_client.noise import NoiseSource


def poisson_sample(units: int, *, sampling_rate: float, noise: NoiseSource) -> npt.NDArray[np.int64]:
    """Choose the units that join one step.

    Args:
        units: How many units of privacy the holder has. Secret.
        sampling_rate: Probability of each, 0 < rate <= 1; at 1 all join and nothing is drawn.
        noise: The source of the choice.

    Returns:
        Their positions, ascending int64, possibly none. Secret, and so is their number.

    Raises:
        ValueError: The sampling rate is not in (0, 1].
    """
    if not 0 < sampling_rate <= 1:
        raise ValueError("a sampling rate lies above 0 and at most at 1")
    if sampling_rate == 1:
        return np.arange(units, dtype=np.int64)
    return np.flatnonzero(noise.uniform(units) < sampling_rate).astype(np.int64)

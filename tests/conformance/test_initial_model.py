"""The coordinator, which may have no torch, starts a run from the very model that a holder would."""

import numpy as np
import pytest

from ringfence_client.models import initial_arrays as at_the_holder
from ringfence_server.initial_model import initial_arrays


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "logistic-regression", "hidden": [], "seed": 3},
        {"kind": "mlp", "hidden": [4], "seed": 0},
        {"kind": "mlp", "hidden": [32, 16, 8], "seed": 2**31 - 1},
    ],
)
@pytest.mark.parametrize("features", [1, 19])
def test_coordinator_and_holder_start_from_the_same_bits(model, features):
    ours, theirs = initial_arrays(model, features), at_the_holder(model, features)
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype == np.float32
        assert ours[name].shape == array.shape
        assert ours[name].tobytes() == array.tobytes()

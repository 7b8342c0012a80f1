import numpy as np
import pytest
import torch

from ringfence_client import opacus_trainer
from ringfence_client.datasource import HolderData
from ringfence_client.models import initial_arrays
from ringfence_client.noise import RehearsalNoise
from ringfence_client.opacus_trainer import OpacusTrainer, PrivateOptimizer
from ringfence_client.trainer import ROUNDING_ROOM, TrainingFault, TrainingJob
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit

torch.set_num_threads(1)

MECHANISM = DpMechanism(
    kind="dp-sgd",
    clipping_norm=0.4,
    noise_multiplier=1.5,
    sampling_rate=1.0,
    steps=2,
    unit=Unit.RECORD,
    relation=Relation.ADD_OR_REMOVE,
)

MODULES = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self, feature_count):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(feature_count, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1))
    def forward(self, features):
        return self.layers(features)

class Normalised(nn.Module):
    def __init__(self, feature_count):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(feature_count, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    def forward(self, features):
        return self.layers(features)

class OwnParameter(nn.Module):
    def __init__(self, feature_count):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(feature_count))
    def forward(self, features):
        return (features * self.scale).sum(dim=1)

class Unused(nn.Module):
    def __init__(self, feature_count):
        super().__init__()
        self.used, self.unused = nn.Linear(feature_count, 1), nn.Linear(feature_count, 1)
    def forward(self, features):
        return self.used(features)

class PartlyFrozen(nn.Module):
    def __init__(self, feature_count):
        super().__init__()
        self.frozen, self.head = nn.Linear(feature_count, 4), nn.Linear(4, 1)
        self.frozen.requires_grad_(False)
    def forward(self, features):
        return self.head(torch.tanh(self.frozen(features)))
"""


def job(**changes) -> TrainingJob:
    rng = np.random.default_rng(0)
    features = rng.uniform(-1, 1, (23, 5)).astype(np.float32)
    members = {
        "holder_id": "cleveland",
        "model": {"kind": "mlp", "hidden": (6,), "seed": 1},
        "data": HolderData.from_arrays(features, (rng.random(23) < 0.5).astype(np.float32)),
        "mechanism": MECHANISM,
        "learning_rate": 0.5,
        "expected_batch": 20.0,
        "noise": RehearsalNoise(1),
    }
    members |= changes
    members.setdefault("arrays", initial_arrays(members["model"], 5))
    return TrainingJob(**members)


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    (tmp_path / "hospital_models.py").write_text(MODULES)
    monkeypatch.syspath_prepend(tmp_path)


def own(name: str) -> dict[str, object]:
    return {"kind": "module", "path": f"hospital_models:{name}", "seed": 4}


def test_a_large_draw_in_pieces_is_one_step_with_one_noise(monkeypatch):
    (whole,) = OpacusTrainer().train([job()])
    monkeypatch.setattr(opacus_trainer, "_GRADIENT_NUMBERS", 5 * sum(a.size for a in whole.arrays.values()))
    (pieces,) = OpacusTrainer().train([job()])
    assert pieces.applied == whole.applied
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(pieces.arrays[name], array, rtol=1e-5, atol=1e-7)


def test_what_was_applied_is_read_from_the_optimiser_and_not_from_the_plan(monkeypatch):
    """A fault that weakens the noise between plan and optimiser must show in what is reported."""

    class Tampered(PrivateOptimizer):
        def __init__(self, *arguments, **named) -> None:
            super().__init__(*arguments, **named)
            self.noise_multiplier *= 0.9

    monkeypatch.setattr(opacus_trainer, "PrivateOptimizer", Tampered)
    (update,) = OpacusTrainer().train([job()])
    assert not update.applied.keeps(MECHANISM)
    assert update.applied.noise_multiplier == pytest.approx(1.35)


def test_noise_follows_the_norm_that_was_clipped_to(monkeypatch):
    """Raising the clip for one step raises its noise with it, and the report says so."""
    drawn = []

    class Listening(RehearsalNoise):
        def normal(self, shape, *, stddev):
            drawn.append(stddev)
            return super().normal(shape, stddev=stddev)

    class Loose(PrivateOptimizer):
        def clip_and_accumulate(self) -> None:
            self.max_grad_norm = 4.0
            super().clip_and_accumulate()
            self.max_grad_norm = 0.4

    monkeypatch.setattr(opacus_trainer, "PrivateOptimizer", Loose)
    (update,) = OpacusTrainer().train([job(noise=Listening(1))])
    assert drawn == [6.0, 6.0]
    assert update.applied.clipping_norm == 4.0
    assert not update.applied.keeps(MECHANISM)


@pytest.mark.usefixtures("own_modules")
def test_a_holders_own_module_is_trained_and_repeats_in_a_rehearsal():
    first, second = (OpacusTrainer().train([job(model=own("Network"), noise=RehearsalNoise(2))])[0] for _ in range(2))
    assert set(first.arrays) == set(initial_arrays(own("Network"), 5))
    assert all((first.arrays[name] == second.arrays[name]).all() for name in first.arrays)


@pytest.mark.usefixtures("own_modules")
def test_a_module_with_a_parameter_of_its_own_is_clipped_record_by_record():
    quiet = DpMechanism(
        kind="dp-sgd",
        clipping_norm=0.4,
        noise_multiplier=1e-6,
        sampling_rate=1.0,
        steps=1,
        unit=Unit.RECORD,
        relation=Relation.ADD_OR_REMOVE,
    )
    one = job(model=own("OwnParameter"), mechanism=quiet)
    (update,) = OpacusTrainer().train([one])
    features, labels = one.data.features.astype(float), one.data.labels
    gradients = (1 / (1 + np.exp(-features.sum(axis=1))) - labels)[:, None] * features
    bound = 0.4 * (1 - ROUNDING_ROOM)
    clipped = gradients * np.minimum(1, bound / np.linalg.norm(gradients, axis=1))[:, None]
    np.testing.assert_allclose(update.arrays["scale"], 1 - 0.5 * clipped.sum(axis=0) / 20, rtol=1e-5)


@pytest.mark.usefixtures("own_modules")
def test_frozen_parameters_stay_as_they_are():
    start = initial_arrays(own("PartlyFrozen"), 5)
    (update,) = OpacusTrainer().train([job(model=own("PartlyFrozen"), arrays=start)])
    changed = {name for name in start if (update.arrays[name] != start[name]).any()}
    assert changed == {name for name in start if "head" in name}


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("name", ["Normalised", "Unused"])
def test_a_module_that_cannot_be_trained_record_by_record_is_refused(name):
    with pytest.raises(DocumentInvalid, match="record by record"):
        OpacusTrainer().train([job(model=own(name))])


def test_training_that_diverges_sends_nothing():
    terms = DpMechanism(
        kind="dp-sgd",
        clipping_norm=0.4,
        noise_multiplier=1.5,
        sampling_rate=1.0,
        steps=12,
        unit=Unit.RECORD,
        relation=Relation.ADD_OR_REMOVE,
    )
    with pytest.raises(TrainingFault, match="diverged"):
        OpacusTrainer().train([job(mechanism=terms, learning_rate=1e4, proximal_mu=1e4)])

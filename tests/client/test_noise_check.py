"""The check that a holder makes before a run's first training: which trainers it refuses, and that it costs nothing."""

import numpy as np
import pytest
import torch

from ringfence_client import noise_check, opacus_trainer, open_workroom
from ringfence_client.cohort_trainer import CohortTrainer
from ringfence_client.noise import RehearsalNoise
from ringfence_client.noise_check import check_trainer
from ringfence_client.opacus_trainer import OpacusTrainer, PrivateOptimizer
from ringfence_client.workroom import NoiseFault
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit
from ringfence_server.conversation import read_refusal

torch.set_num_threads(1)

LOGISTIC = {"kind": "logistic-regression"}
MLP = {"kind": "mlp", "hidden": (6, 4), "seed": 3}
DROPOUT = """
from torch import nn

class Network(nn.Module):
    def __init__(self, feature_count):
        super().__init__()
        self.frozen, self.dropout, self.head = nn.Linear(feature_count, 4), nn.Dropout(0.5), nn.Linear(4, 1)
        self.frozen.requires_grad_(False)
    def forward(self, features):
        return self.head(self.dropout(self.frozen(features)))

class Normalised(nn.Module):
    def __init__(self, feature_count):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(feature_count, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    def forward(self, features):
        return self.layers(features)
"""


@pytest.fixture(autouse=True)
def nothing_found_sound_yet(monkeypatch):
    monkeypatch.setattr(noise_check, "_sound", set())


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    (tmp_path / "checked_models.py").write_text(DROPOUT)
    monkeypatch.syspath_prepend(tmp_path)


def mechanism(**changes) -> DpMechanism:
    numbers = {
        "kind": "dp-sgd",
        "clipping_norm": 0.4,
        "noise_multiplier": 1.5,
        "sampling_rate": 0.25,
        "steps": 8,
        "unit": Unit.RECORD,
        "relation": Relation.ADD_OR_REMOVE,
    }
    return DpMechanism(**{**numbers, **changes})


def check(trainer, **changes) -> None:
    members = {"run_id": "run", "model": LOGISTIC, "feature_count": 5, "mechanism": mechanism(), "rehearsal_seed": None}
    check_trainer(trainer, **{**members, **changes})


@pytest.mark.parametrize("model", [LOGISTIC, MLP], ids=["logistic-regression", "mlp"])
@pytest.mark.parametrize("rehearsal_seed", [None, 7])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 1},
        {"sampling_rate": 1.0},
        {"unit": Unit.SUBJECT},
        {"clipping_norm": 1000.0, "noise_multiplier": 0.001},
        {"clipping_norm": 0.001, "noise_multiplier": 1000.0},
    ],
)
def test_an_honest_trainer_passes(model, rehearsal_seed, changes):
    for features in (1, 5, 6000):
        check(
            OpacusTrainer(),
            model=model,
            feature_count=features,
            mechanism=mechanism(**changes),
            rehearsal_seed=rehearsal_seed,
        )


def test_what_a_rehearsal_found_sound_is_looked_at_again_for_a_real_run_of_that_name(monkeypatch):
    looked = []
    monkeypatch.setattr(noise_check, "_defect", lambda *_, sources, **__: looked.append(sources[0].kind))
    for seed in (7, 7, None, None):
        check(OpacusTrainer(), rehearsal_seed=seed)
    assert looked == ["seeded", "csprng"]


@pytest.mark.usefixtures("own_modules")
def test_a_module_with_frozen_parameters_and_dropout_passes():
    check(OpacusTrainer(), model={"kind": "module", "path": "checked_models:Network", "seed": 1})


@pytest.mark.usefixtures("own_modules")
def test_a_model_that_cannot_be_trained_is_found_by_the_check():
    with pytest.raises(DocumentInvalid, match="record by record"):
        check(OpacusTrainer(), model={"kind": "module", "path": "checked_models:Normalised", "seed": 1})


class Quiet(PrivateOptimizer):
    """Asks for noise a tenth too small."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.noise_multiplier *= 0.9


class Fading(PrivateOptimizer):
    """Loses a tenth of the noise on the way."""

    def add_noise(self):
        held = [parameter.summed_grad.clone() for parameter in self.params]
        super().add_noise()
        for parameter, summed in zip(self.params, held, strict=True):
            parameter.grad -= 0.1 * (parameter.grad - summed.float())


class OnlyOnEmptyDraws(Fading):
    """Adds the full noise only where there is nothing to hide."""

    def add_noise(self):
        if all((parameter.summed_grad == 0).all() for parameter in self.params):
            PrivateOptimizer.add_noise(self)
        else:
            super().add_noise()


class OnlyFirstParameter(PrivateOptimizer):
    """Draws everything and forgets to add it to all but the first parameter."""

    def add_noise(self):
        held = [parameter.summed_grad.clone() for parameter in self.params]
        super().add_noise()
        for parameter, summed in list(zip(self.params, held, strict=True))[1:]:
            parameter.grad = summed.float()


class Elsewhere(PrivateOptimizer):
    """Draws from the source, and adds what anybody can predict."""

    def add_noise(self):
        held = [parameter.summed_grad.clone() for parameter in self.params]
        super().add_noise()
        for parameter, summed in zip(self.params, held, strict=True):
            parameter.grad = (summed + 0.6 * torch.randn(summed.shape)).float()


class Once(PrivateOptimizer):
    """Draws once and adds the same noise in every step."""

    def __init__(self, *arguments, noise, **named):
        super().__init__(*arguments, noise=noise, **named)
        kept = []

        class Same:
            kind = noise.kind

            def normal(self, shape, *, stddev):
                kept.append(kept[0] if kept else noise.normal(shape, stddev=stddev))
                return kept[0]

        self._noise = Same()


@pytest.mark.parametrize("spoilt", [Quiet, Fading, OnlyOnEmptyDraws, OnlyFirstParameter, Elsewhere, Once])
@pytest.mark.parametrize("model", [LOGISTIC, MLP], ids=["logistic-regression", "mlp"])
def test_a_trainer_whose_noise_is_not_what_is_charged_is_refused(monkeypatch, spoilt, model):
    monkeypatch.setattr(opacus_trainer, "PrivateOptimizer", spoilt)
    for _ in range(2):  # a refusal is not remembered as sound
        with pytest.raises(NoiseFault):
            check(OpacusTrainer(), model=model)


def test_a_generator_whose_noise_is_a_tenth_too_small_is_refused(monkeypatch):
    class Weak(RehearsalNoise):
        def normal(self, shape, *, stddev):
            return 0.9 * super().normal(shape, stddev=stddev)

    monkeypatch.setattr(noise_check, "RehearsalNoise", Weak)
    with pytest.raises(NoiseFault, match="smaller than claimed"):
        check(OpacusTrainer(), rehearsal_seed=3)


def test_a_trainer_is_checked_once_for_each_run_model_and_mechanism():
    trained = []

    class Counted(OpacusTrainer):
        def train(self, jobs):
            trained.append(len(jobs))
            return super().train(jobs)

    check(Counted())
    check(Counted())
    assert len(trained) == 1
    for changes in ({"run_id": "next"}, {"model": MLP}, {"feature_count": 6}, {"mechanism": mechanism(steps=9)}):
        check(Counted(), **changes)
    assert len(trained) == 5


def test_the_check_leaves_the_rehearsals_own_streams_alone():
    before = RehearsalNoise(7, stream="elm/1/train")
    expected = before.normal((3,), stddev=1.0)
    after = RehearsalNoise(7, stream="elm/1/train")
    check(OpacusTrainer(), rehearsal_seed=7)
    assert np.array_equal(after.normal((3,), stddev=1.0), expected)
    assert not np.array_equal(after.uniform(3), RehearsalNoise(7, stream="noise check").uniform(3))


def test_a_holder_whose_trainer_adds_too_little_noise_refuses_before_the_first_round(tiny_run, monkeypatch):
    """Nothing is reserved, opened or spent; the holder's own evidence says why."""
    run = tiny_run()
    run.propose()
    run.governor.offer(run.grid, 1)
    before = run.spent("elm")
    opened = []
    monkeypatch.setattr(open_workroom, "_job", opened.append)
    monkeypatch.setattr(opacus_trainer, "PrivateOptimizer", Quiet)
    monkeypatch.setattr(open_workroom, "trainer_named", lambda _name: OpacusTrainer())
    assert read_refusal(run.request("elm")).clauses == ("noise-fault",)
    assert run.spent("elm") == before
    assert run.node("elm").ledger.holds() == []
    assert run.log_of("elm", "sent") == []
    assert run.denials("elm") == [(1, "node-before-training", ("noise-fault",))]
    assert opened == []
    monkeypatch.undo()
    assert not run.request("elm", attempt=2).has_error()


def test_the_check_gives_each_job_a_source_of_its_own_so_that_a_trainer_may_use_threads():
    """Two threads that draw from one keystream at once would hear noise that is not what was added."""
    drawn_from = []

    class Remembering(CohortTrainer):
        def train(self, jobs):
            drawn_from.extend(job.noise._source for job in jobs)
            return super().train(jobs)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for number in range(20):
            run_id = f"threads-{number}"
            check_trainer(
                Remembering(),
                run_id=run_id,
                model={"kind": "mlp", "hidden": (64, 64), "seed": 1},
                feature_count=30,
                mechanism=mechanism(steps=8),
                rehearsal_seed=None,
            )
    finally:
        torch.set_num_threads(threads)
    assert len({id(source) for source in drawn_from}) == len(drawn_from) == 60

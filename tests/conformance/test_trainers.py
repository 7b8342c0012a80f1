"""What every trainer must do. A new trainer joins by one more entry in TRAINERS."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ringfence_client.bookkeeping_trainer import BookKeepingTrainer
from ringfence_client.cohort_kernel import CompiledKernel
from ringfence_client.cohort_trainer import CohortTrainer
from ringfence_client.compiled import load_library
from ringfence_client.datasource import HolderData
from ringfence_client.models import initial_arrays
from ringfence_client.modules import build_module, write_arrays
from ringfence_client.noise import RehearsalNoise, SecureNoise, noise_defect, snapped
from ringfence_client.opacus_trainer import OpacusTrainer
from ringfence_client.sampling import draw
from ringfence_client.torch_kernel import TorchKernel
from ringfence_client.trainer import ROUNDING_ROOM, Trainer, TrainingJob
from ringfence_policy.errors import DocumentInvalid, TrustRefused, Unaccountable
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit

torch.set_num_threads(1)


def compiled_cohort() -> CohortTrainer:
    library = load_library()
    if library is None:
        pytest.skip("no kernel was compiled here")
    return CohortTrainer(CompiledKernel(library))


def torch_cohort() -> CohortTrainer:
    return CohortTrainer(TorchKernel())


TRAINERS = [OpacusTrainer, BookKeepingTrainer, compiled_cohort, torch_cohort]
LOGISTIC = {"kind": "logistic-regression"}
MLP = {"kind": "mlp", "hidden": (6, 4), "seed": 3}
FEATURES = 5


@pytest.fixture(params=TRAINERS, ids=lambda trainer: trainer.__name__)
def trainer(request) -> Trainer:
    return request.param()


def data(rows: int, *, seed: int = 0, features: int = FEATURES, subjects: int | None = None) -> HolderData:
    rng = np.random.default_rng(seed)
    return HolderData.from_arrays(
        rng.uniform(-1, 1, (rows, features)).astype(np.float32),
        (rng.random(rows) < 0.5).astype(np.float32),
        None if subjects is None else rng.integers(0, subjects, rows),
    )


def mechanism(**changes) -> DpMechanism:
    numbers = {
        "kind": "dp-sgd",
        "clipping_norm": 0.4,
        "noise_multiplier": 1.5,
        "sampling_rate": 1.0,
        "steps": 3,
        "unit": Unit.RECORD,
        "relation": Relation.ADD_OR_REMOVE,
    }
    return DpMechanism(**{**numbers, **changes})


def job(**changes) -> TrainingJob:
    members = {
        "holder_id": "cleveland",
        "model": LOGISTIC,
        "data": data(40),
        "mechanism": mechanism(),
        "learning_rate": 0.7,
        "expected_batch": 32.0,
        "noise": RehearsalNoise(5),
    }
    members |= changes
    if "arrays" not in members:
        members["arrays"] = initial_arrays(members["model"], members["data"].features.shape[1])
    return TrainingJob(**members)


def flat(arrays) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays.values()])


def by_hand(job: TrainingJob) -> np.ndarray:
    """DP-SGD written out with plain torch, one backward pass per record, from the paper's algorithm 1."""
    module = build_module(job.model, job.data.features.shape[1])
    write_arrays(module, job.arrays)
    parameters = list(module.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    features, labels = torch.tensor(job.data.features), torch.tensor(job.data.labels)
    count = sum(parameter.numel() for parameter in parameters)
    clip = job.mechanism.clipping_norm
    bound, stddev = clip * (1 - ROUNDING_ROOM), clip * job.mechanism.noise_multiplier
    for _ in range(job.mechanism.steps):
        drawn = draw(job.data, unit=job.mechanism.unit, sampling_rate=job.mechanism.sampling_rate, noise=job.noise)
        units = torch.zeros(drawn.count, count, dtype=torch.float64)
        for row, unit in zip(drawn.rows, drawn.units, strict=True):
            loss = nn.functional.binary_cross_entropy_with_logits(
                module(features[row : row + 1]), labels[row : row + 1]
            )
            units[unit] += torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]).double()
        total = (units * (bound / units.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)).sum(dim=0)
        noised = total.numpy() + job.noise.normal((count,), stddev=stddev)
        total = torch.from_numpy(snapped(noised, stddev=stddev))
        pieces = torch.split(total / job.expected_batch, [parameter.numel() for parameter in parameters])
        with torch.no_grad():
            for parameter, piece, anchor in zip(parameters, pieces, start, strict=True):
                pull = job.proximal_mu * (parameter - anchor)
                parameter.sub_(job.learning_rate * (piece.view_as(parameter).float() + pull))
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in parameters])


@pytest.mark.parametrize("model", [LOGISTIC, MLP], ids=["logistic-regression", "mlp"])
@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("proximal_mu", [0.0, 0.5])
def test_steps_equal_dp_sgd_written_by_hand_with_the_same_noise(trainer, model, rate, proximal_mu):
    terms = {"model": model, "mechanism": mechanism(sampling_rate=rate), "proximal_mu": proximal_mu}
    (update,) = trainer.train([job(**terms, noise=RehearsalNoise(9))])
    expected = by_hand(job(**terms, noise=RehearsalNoise(9)))
    moved = np.linalg.norm(expected - flat(job(**terms).arrays))
    assert np.linalg.norm(flat(update.arrays) - expected) < 1e-5 * moved


@pytest.mark.parametrize("model", [LOGISTIC, MLP], ids=["logistic-regression", "mlp"])
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_a_subjects_rows_are_drawn_together_and_clipped_as_one(trainer, model, rate):
    terms = {
        "model": model,
        "data": data(60, subjects=13),
        "mechanism": mechanism(unit=Unit.SUBJECT, sampling_rate=rate, clipping_norm=0.8),
    }
    (update,) = trainer.train([job(**terms, noise=RehearsalNoise(9))])
    expected = by_hand(job(**terms, noise=RehearsalNoise(9)))
    moved = np.linalg.norm(expected - flat(job(**terms).arrays))
    assert np.linalg.norm(flat(update.arrays) - expected) < 1e-5 * moved


@pytest.mark.parametrize("model", [LOGISTIC, MLP], ids=["logistic-regression", "mlp"])
def test_a_whole_subject_moves_the_sum_by_no_more_than_the_clipping_norm(trainer, model):
    everyone = data(60, subjects=6)
    keeps = everyone.subjects != 3
    without = HolderData.from_arrays(everyone.features[keeps], everyone.labels[keeps], everyone.subjects[keeps])
    quiet = mechanism(unit=Unit.SUBJECT, steps=1, clipping_norm=0.05, noise_multiplier=1e-6)
    terms = {"model": model, "mechanism": quiet, "learning_rate": 1.0, "expected_batch": 1.0}
    jobs = [job(**terms, data=part, noise=RehearsalNoise(1)) for part in (everyone, without)]
    with_it, without_it = (flat(update.arrays).astype(float) for update in trainer.train(jobs))
    assert 0.01 < np.linalg.norm(with_it - without_it) <= 0.05 * (1 + 1e-4) + 1e-6


@pytest.mark.parametrize(("unit", "at_most"), [(Unit.RECORD, 12.0), (Unit.SUBJECT, 1.0)])
def test_a_patient_with_twelve_rows_moves_a_record_level_sum_by_many_clipping_norms_and_a_subject_level_one_by_one(
    trainer, unit, at_most
):
    """Why a patient is the unit: a bound that holds for each row is broken by the patient."""
    rng = np.random.default_rng(4)
    visits = np.tile(rng.normal(size=FEATURES), (12, 1))  # one patient, much alike at every visit
    features = np.concatenate([rng.normal(size=(20, FEATURES)), visits]).astype(np.float32)
    labels = np.concatenate([rng.random(20) < 0.5, np.ones(12)]).astype(np.float32)
    subjects = np.concatenate([np.arange(20), np.full(12, 20)])
    parts = [HolderData.from_arrays(features[:n], labels[:n], subjects[:n]) for n in (32, 20)]
    clip = 0.05
    quiet = mechanism(unit=unit, steps=1, clipping_norm=clip, noise_multiplier=1e-6)
    terms = {"model": LOGISTIC, "mechanism": quiet, "learning_rate": 1.0, "expected_batch": 1.0}
    jobs = [job(**terms, data=part, noise=RehearsalNoise(1)) for part in parts]
    with_it, without_it = (flat(update.arrays).astype(float) for update in trainer.train(jobs))
    moved = np.linalg.norm(with_it - without_it) / clip
    assert moved == pytest.approx(at_most, rel=1e-3)


@settings(max_examples=15)
@given(scale=st.floats(1e-3, 1e3), rows=st.integers(0, 30), clip=st.sampled_from([0.01, 0.4, 5.0]))
def test_one_more_record_moves_the_sum_by_no_more_than_the_clipping_norm(scale, rows, clip):
    """The sensitivity that the accountant assumes, whatever model the coordinator sends."""
    everyone = data(rows + 1, seed=rows)
    without = HolderData.from_arrays(everyone.features[:-1], everyone.labels[:-1])
    rng = np.random.default_rng(1)
    arrays = {
        name: (scale * rng.normal(size=array.shape)).astype(np.float32)
        for name, array in initial_arrays(MLP, FEATURES).items()
    }
    terms = {
        "model": MLP,
        "arrays": arrays,
        "mechanism": mechanism(steps=1, clipping_norm=clip, noise_multiplier=1e-6),
        "learning_rate": 1.0,
        "expected_batch": 1.0,
    }
    for trained in TRAINERS:
        updates = trained().train([job(**terms, data=part, noise=RehearsalNoise(1)) for part in (everyone, without)])
        distance = np.linalg.norm(flat(updates[0].arrays).astype(float) - flat(updates[1].arrays))
        assert distance <= clip * (1 + 1e-4) + 2e-6 * scale * math.sqrt(len(flat(arrays)))


def test_what_was_applied_is_what_the_mechanism_says(trainer):
    terms = mechanism(sampling_rate=0.25, steps=7, clipping_norm=0.3, noise_multiplier=2.123456)
    (update,) = trainer.train([job(mechanism=terms)])
    assert update.applied.keeps(terms)
    assert update.applied.noise_kind == "seeded"
    assert trainer.train([job(noise=SecureNoise())])[0].applied.noise_kind == "csprng"


@pytest.mark.parametrize(
    "other", [{"clipping_norm": 0.5}, {"noise_multiplier": 1.499999}, {"sampling_rate": 0.9}, {"steps": 4}]
)
def test_what_was_applied_does_not_keep_another_mechanism(trainer, other):
    (update,) = trainer.train([job()])
    assert update.applied.keeps(mechanism())
    assert not update.applied.keeps(mechanism(**other))


def noise_in(trainer, source, *, stddev_claimed: float) -> str | None:
    """Train on no records at all: what is left of the update is the noise."""
    wide = data(0, features=20_000)
    terms = mechanism(steps=1, clipping_norm=0.5, noise_multiplier=3.0)
    (update,) = trainer.train([job(data=wide, mechanism=terms, learning_rate=1.0, expected_batch=1.0, noise=source)])
    return noise_defect(flat(update.arrays), stddev=stddev_claimed)


def test_the_noise_that_reaches_the_update_has_the_claimed_spread(trainer):
    assert noise_in(trainer, RehearsalNoise(1), stddev_claimed=1.5) is None
    assert noise_in(trainer, SecureNoise(), stddev_claimed=1.5) is None


def test_noise_a_tenth_too_small_is_caught_in_the_update(trainer):
    class Quiet(RehearsalNoise):
        def normal(self, shape, *, stddev):
            return super().normal(shape, stddev=0.9 * stddev)

    assert noise_in(trainer, Quiet(1), stddev_claimed=1.5) == "the noise is smaller than claimed"


def test_every_step_adds_fresh_noise_to_every_parameter(trainer):
    (one,) = trainer.train([job(data=data(0), model=MLP, mechanism=mechanism(steps=1))])
    (two,) = trainer.train([job(data=data(0), model=MLP, mechanism=mechanism(steps=2))])
    start = flat(job(model=MLP).arrays)
    first, both = flat(one.arrays) - start, flat(two.arrays) - start
    assert (first != 0).all()
    assert (both != first).all()
    assert not np.allclose(both, 2 * first)


@pytest.mark.parametrize("model", [LOGISTIC, MLP], ids=["logistic-regression", "mlp"])
@pytest.mark.parametrize(("rows", "rate"), [(0, 1.0), (0, 0.5), (3, 1e-6), (1, 1.0)])
def test_an_empty_draw_is_a_step_of_noise_alone(trainer, model, rows, rate):
    terms = mechanism(sampling_rate=rate)
    (update,) = trainer.train([job(model=model, data=data(rows), mechanism=terms)])
    assert update.applied.keeps(terms)
    assert all(np.isfinite(array).all() for array in update.arrays.values())


def test_the_divisor_is_the_declared_batch_and_not_the_true_one(trainer):
    """Dividing by the true number of records would publish it."""
    quiet = mechanism(steps=1, noise_multiplier=1e-6)
    (small,) = trainer.train([job(mechanism=quiet, expected_batch=10.0)])
    (large,) = trainer.train([job(mechanism=quiet, expected_batch=20.0)])
    np.testing.assert_allclose(flat(small.arrays), 2 * flat(large.arrays), rtol=1e-4, atol=1e-7)


def test_a_rehearsal_repeats_to_the_last_bit(trainer):
    for model in (LOGISTIC, MLP):
        first, second = (
            trainer.train([job(model=model, mechanism=mechanism(sampling_rate=0.5), noise=RehearsalNoise(4))])[0]
            for _ in range(2)
        )
        assert flat(first.arrays).tobytes() == flat(second.arrays).tobytes()


def test_training_leaves_the_processes_own_generators_alone(trainer):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    trainer.train([job(model=MLP)])
    assert torch.equal(torch.rand(3), expected)


def test_a_cohort_is_trained_as_each_holder_alone(trainer):
    def jobs():
        return [
            job(holder_id="a", data=data(10, seed=1), noise=RehearsalNoise(1)),
            job(holder_id="b", data=data(25, seed=2), model=MLP, noise=RehearsalNoise(2)),
            job(holder_id="c", data=data(0), mechanism=mechanism(steps=1), noise=RehearsalNoise(3)),
        ]

    together = trainer.train(jobs())
    alone = [trainer.train([one])[0] for one in jobs()]
    assert [update.holder_id for update in together] == ["a", "b", "c"]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(flat(one.arrays), flat(other.arrays), rtol=1e-5, atol=1e-6)
    assert trainer.train([]) == []


@settings(max_examples=25, derandomize=True)  # in float32 some rare example may differ by more
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 17, 63, 64, 65, 200, 400]),  # records
            st.sampled_from([1.0, 0.5, 0.1]),  # sampling rate
            st.integers(1, 4),  # steps
            st.sampled_from([0.05, 0.7, 50.0]),  # clipping norm
            st.sampled_from([0.05, 0.5]),  # learning rate
            st.sampled_from([0.0, 0.4]),  # proximal_mu
            st.booleans(),  # by subject
        ),
        min_size=1,
        max_size=6,
    )
)
def test_holders_that_differ_in_everything_are_each_trained_as_by_opacus_alone(wanted):
    """Ragged cohorts: what is padded, skipped or packed for one holder must not show in another."""

    def jobs():
        return [
            job(
                holder_id=str(number),
                model=MLP,
                data=data(records, seed=number, subjects=max(1, records // 4) if by_subject else None),
                mechanism=mechanism(
                    sampling_rate=rate,
                    steps=steps,
                    clipping_norm=clip,
                    unit=Unit.SUBJECT if by_subject else Unit.RECORD,
                ),
                learning_rate=learning_rate,
                proximal_mu=mu,
                noise=RehearsalNoise(number),
            )
            for number, (records, rate, steps, clip, learning_rate, mu, by_subject) in enumerate(wanted)
        ]

    expected = OpacusTrainer().train(jobs())
    for trained in (compiled_cohort, torch_cohort):
        for update, one, start in zip(trained().train(jobs()), expected, jobs(), strict=True):
            assert update.holder_id == one.holder_id
            assert update.applied == one.applied
            moved = np.linalg.norm(flat(one.arrays) - flat(start.arrays))
            assert np.linalg.norm(flat(update.arrays) - flat(one.arrays)) < 1e-5 * moved + 1e-7


def test_the_global_model_is_not_changed(trainer):
    arrays = initial_arrays(MLP, FEATURES)
    before = flat(arrays).copy()
    trainer.train([job(model=MLP, arrays=arrays)])
    assert (flat(arrays) == before).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_global_model_that_is_not_finite_is_refused(trainer, poison):
    arrays = initial_arrays(LOGISTIC, FEATURES)
    arrays["layers.bias"][0] = poison
    with pytest.raises(TrustRefused):
        trainer.train([job(arrays=arrays)])


def test_a_global_model_that_overflows_gives_noise_and_nothing_of_a_record(trainer):
    """Finite weights large enough to make gradients infinite must not turn one record into NaN."""
    arrays = {name: np.full_like(array, 3e38) for name, array in initial_arrays(MLP, FEATURES).items()}
    terms = mechanism(steps=1)
    (update,) = trainer.train([job(model=MLP, arrays=arrays, mechanism=terms, learning_rate=1e-3)])
    assert all(np.isfinite(array).all() for array in update.arrays.values())


def test_another_models_arrays_are_refused(trainer):
    with pytest.raises(TrustRefused):
        trainer.train([job(model=LOGISTIC, arrays=initial_arrays(MLP, FEATURES))])
    with pytest.raises(TrustRefused):
        trainer.train([job(model=LOGISTIC, arrays=initial_arrays(LOGISTIC, FEATURES + 1))])


@pytest.mark.parametrize(
    "terms",
    [
        mechanism(noise_multiplier=0.0),
        mechanism(unit=Unit.HOLDER),
        mechanism(unit=Unit.SUBJECT),
        DpMechanism(
            kind="score-histogram",
            clipping_norm=1,
            noise_multiplier=1,
            sampling_rate=1,
            steps=1,
            unit=Unit.RECORD,
            relation=Relation.ADD_OR_REMOVE,
        ),
    ],
)
def test_a_mechanism_that_is_not_noised_training_of_records_never_becomes_a_job(terms):
    with pytest.raises(Unaccountable):
        job(mechanism=terms)


@pytest.mark.parametrize(
    "number", [{"learning_rate": 0.0}, {"learning_rate": math.nan}, {"expected_batch": 0.0}, {"proximal_mu": -0.1}]
)
def test_a_training_number_out_of_range_never_becomes_a_job(number):
    with pytest.raises(DocumentInvalid):
        job(**number)

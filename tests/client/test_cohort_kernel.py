"""The kernels take the same steps, on every instruction set."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence_client import cohort_kernel
from ringfence_client.cohort_kernel import CompiledKernel, HolderSteps
from ringfence_client.cohort_trainer import CohortTrainer
from ringfence_client.compiled import load_library
from ringfence_client.datasource import HolderData
from ringfence_client.models import initial_arrays
from ringfence_client.noise import RehearsalNoise
from ringfence_client.normals import CompiledBoxMuller
from ringfence_client.sampling import draw, draw_steps
from ringfence_client.torch_kernel import TorchKernel
from ringfence_client.torch_normals import TorchBoxMuller
from ringfence_client.trainer import TrainingJob
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit

needs_library = pytest.mark.skipif(load_library() is None, reason="no kernel was compiled here")


def holder(widths, lengths, *, by_subject=False, seed=0, bound=0.5) -> HolderSteps:
    rng = np.random.default_rng(seed)
    records = max([1, *lengths])
    parameters = sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))
    weights = (0.4 * rng.normal(size=parameters)).astype(np.float32)
    rows = [np.sort(rng.permutation(records)[:length]) for length in lengths]
    units = [np.sort(rng.integers(0, max(1, length // 5), length)) for length in lengths]
    return HolderSteps(
        features=rng.uniform(-1, 1, (records, widths[0])).astype(np.float32),
        labels=(rng.random(records) < 0.5).astype(np.float32),
        weights=weights,
        anchor=weights.copy(),
        rows=np.concatenate(rows),
        units=np.concatenate(units) if by_subject else None,
        ends=np.cumsum(lengths),
        noise=0.01 * rng.normal(size=(len(lengths), parameters)),
        bound=bound,
        grid=2.0**-30,
        learning_rate=0.3,
        expected_batch=20.0,
        proximal_mu=0.2,
    )


@needs_library
@pytest.mark.parametrize("lanes", [4, 8, 16])
@settings(max_examples=20, deadline=None)
@given(
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    lengths=st.lists(st.sampled_from([0, 1, 3, 63, 64, 65, 88, 89, 91, 129, 300, 1024, 1025]), min_size=1, max_size=3),
    by_subject=st.booleans(),
    bound=st.sampled_from([1e-3, 0.5, 1e3]),
)
def test_the_compiled_kernel_takes_the_same_steps_as_torch(lanes, widths, lengths, by_subject, bound):
    widths = [*widths, 1]
    library = load_library()
    ours, reference = (holder(widths, lengths, by_subject=by_subject, bound=bound) for _ in range(2))
    assert CompiledKernel(library, most_lanes=lanes).take_steps(widths, [ours]) == [len(lengths)]
    assert TorchKernel().take_steps(widths, [reference]) == [len(lengths)]
    moved = np.linalg.norm(reference.weights - reference.anchor)
    assert np.linalg.norm(ours.weights - reference.weights) <= 1e-5 * moved + 1e-7


@needs_library
@pytest.mark.parametrize("by_subject", [False, True])
def test_a_row_that_cannot_be_counted_contributes_nothing_and_spoils_no_other(by_subject):
    widths = (4, 3, 1)
    for kernel in (CompiledKernel(load_library()), TorchKernel()):
        poisoned, without = (holder(widths, [9], by_subject=by_subject) for _ in range(2))
        poisoned.features[poisoned.rows[4]] = 3e38
        kept = np.arange(9) != 4
        without = HolderSteps(
            **{
                **vars(without),
                "rows": without.rows[kept],
                "units": without.units[kept] if by_subject else None,
                "ends": np.array([8]),
            }
        )
        kernel.take_steps(widths, [poisoned])
        kernel.take_steps(widths, [without])
        np.testing.assert_allclose(poisoned.weights, without.weights, rtol=1e-6)


@needs_library
@pytest.mark.parametrize("lanes", [0, 4, 8, 16])
@pytest.mark.parametrize("gradient", [1e-23, 1e-21, 1e-19])
@pytest.mark.parametrize("bound", [1e-6, 1e-3])
def test_no_model_makes_a_gradient_whose_square_is_lost_count_for_more_than_the_bound(lanes, gradient, bound):
    # A coordinator may send a model with activations of 1e19 whose last weight makes the loss's gradient as small.
    weights = np.array([1e19, 0.0, np.log(gradient) / 1e19, 0.0], dtype=np.float32)
    one = HolderSteps(
        features=np.ones((1, 1), np.float32),
        labels=np.zeros(1, np.float32),
        weights=weights,
        anchor=weights.copy(),
        rows=np.zeros(1, np.int64),
        units=None,
        ends=np.ones(1, np.int64),
        noise=np.zeros((1, 4)),
        bound=bound,
        grid=2.0**-60,
        learning_rate=1.0,
        expected_batch=1.0,
        proximal_mu=0.0,
    )
    kernel = CompiledKernel(load_library(), most_lanes=lanes) if lanes else TorchKernel()
    kernel.take_steps([1, 1, 1], [one])
    assert np.linalg.norm(one.weights.astype(np.float64) - one.anchor) <= bound * (1 + 1e-3)


@pytest.mark.parametrize(("gpu", "name"), [(True, "torch-cuda"), (False, "torch-cpu")])
def test_without_a_library_torch_computes_on_a_gpu_where_there_is_one(gpu, name, monkeypatch):
    monkeypatch.setattr(cohort_kernel, "load_library", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert cohort_kernel.best_kernel.__wrapped__().name == name


@needs_library
def test_a_gpu_does_not_replace_the_compiled_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cohort_kernel.best_kernel.__wrapped__().name == "compiled"


@pytest.mark.parametrize("unit", [Unit.RECORD, Unit.SUBJECT])
@pytest.mark.parametrize("rate", [1.0, 0.3, 1e-6])
@pytest.mark.parametrize("records", [0, 1, 50])
def test_steps_drawn_at_once_are_the_steps_drawn_one_by_one(unit, rate, records):
    rng = np.random.default_rng(0)
    data = HolderData.from_arrays(
        np.zeros((records, 2), np.float32), np.zeros(records, np.float32), rng.integers(0, 9, records)
    )
    one, other = RehearsalNoise(3), RehearsalNoise(3)
    drawn = draw_steps(data, unit=unit, sampling_rate=rate, noise=one, steps=5)
    start = 0
    for end in drawn.ends:
        single = draw(data, unit=unit, sampling_rate=rate, noise=other)
        assert drawn.rows[start:end].tolist() == single.rows.tolist()
        assert unit is Unit.RECORD or drawn.units[start:end].tolist() == single.units.tolist()
        start = end
    assert start == len(drawn.rows)


def jobs(noises, **changes):
    rng = np.random.default_rng(1)
    model = {"kind": "mlp", "hidden": (4,)}
    return [
        TrainingJob(
            holder_id=str(number),
            model=changes.get("model", model),
            arrays=initial_arrays(model, 3),
            data=HolderData.from_arrays(
                rng.normal(size=(30, 3)).astype(np.float32), (rng.random(30) < 0.5).astype(np.float32)
            ),
            mechanism=DpMechanism(
                kind="dp-sgd",
                clipping_norm=1.0,
                noise_multiplier=1.0,
                sampling_rate=0.5,
                steps=5,
                unit=Unit.RECORD,
                relation=Relation.ADD_OR_REMOVE,
            ),
            learning_rate=0.1,
            expected_batch=15.0,
            noise=noise,
        )
        for number, noise in enumerate(noises)
    ]


def weights(updates):
    return [np.concatenate([array.ravel() for array in update.arrays.values()]) for update in updates]


def test_steps_taken_in_blocks_are_the_steps_taken_at_once(monkeypatch):
    for kernel in (cohort_kernel.best_kernel(), TorchKernel()):
        at_once = weights(CohortTrainer(kernel).train(jobs([RehearsalNoise(1), RehearsalNoise(2)])))
        with monkeypatch.context() as patched:
            patched.setattr(kernel, "numbers_at_once", 110)
            blocks = CohortTrainer(kernel).train(jobs([RehearsalNoise(1), RehearsalNoise(2)]))
        assert [update.applied.steps for update in blocks] == [5, 5]
        for one, other in zip(at_once, weights(blocks), strict=True):
            assert one.tobytes() == other.tobytes()


@needs_library
def test_noise_by_either_transform_gives_the_same_weights():
    """Unless a noised sum lies within a few last bits of the middle between two multiples of its grid."""
    by_each = []
    for transform in (CompiledBoxMuller(load_library()), TorchBoxMuller()):
        updates = CohortTrainer().train(jobs([RehearsalNoise(seed, transform=transform) for seed in (1, 2)]))
        by_each.append(np.concatenate(weights(updates)))
    assert np.linalg.norm(by_each[0] - by_each[1]) <= 1e-5 * np.linalg.norm(by_each[1])


def test_threads_change_nothing_and_a_shared_source_of_noise_is_never_drawn_from_by_two(monkeypatch):
    expected = weights(CohortTrainer().train(jobs([RehearsalNoise(number) for number in range(6)])))
    shared = RehearsalNoise(1)
    in_turn = weights(CohortTrainer().train(jobs([shared] * 6)))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    threaded = weights(CohortTrainer().train(jobs([RehearsalNoise(number) for number in range(6)])))
    assert [one.tobytes() for one in threaded] == [one.tobytes() for one in expected]
    shared = RehearsalNoise(1)
    assert [one.tobytes() for one in weights(CohortTrainer().train(jobs([shared] * 6)))] == [
        one.tobytes() for one in in_turn
    ]


def test_a_model_that_is_not_built_in_is_refused_by_name():
    with pytest.raises(DocumentInvalid, match="mlp"):
        CohortTrainer().train(jobs([RehearsalNoise(1)], model={"kind": "module", "path": "a.b:C"}))

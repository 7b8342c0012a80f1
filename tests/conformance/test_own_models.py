"""What book-keeping does with a holder's own modules, held against Opacus' gradients written out record by record."""

import numpy as np
import own_models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence_client import bookkeeping_trainer, layer_gradients
from ringfence_client.bookkeeping import BookKeptModel
from ringfence_client.bookkeeping_trainer import BookKeepingTrainer, PrivateSum
from ringfence_client.datasource import HolderData
from ringfence_client.layer_gradients import Units
from ringfence_client.models import code_digest, initial_arrays
from ringfence_client.modules import build_module
from ringfence_client.noise import RehearsalNoise
from ringfence_client.opacus_trainer import OpacusTrainer
from ringfence_client.trainer import TrainingJob
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit

torch.set_num_threads(1)

TRAINED = ("Image", "Transformer", "Words")
REFUSED = {
    "OwnParameter": "trained parameters in OwnParameter",
    "Recurrent": "trained parameters in GRU",
    "Twice": "not called exactly once",
    "Shared": "two layers share",
    "Outside": "acts otherwise than through its own layer",
    "Unused": "not used",
    "Folded": "one entry for each row",
}
FEATURES = own_models.FEATURES

# Where no feature leads to a gradient, Opacus' hooks say so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]


def own(name: str) -> dict[str, object]:
    path = f"own_models:{name}"
    return {"kind": "module", "path": path, "code_digest": code_digest(path), "seed": 4}


def data(rows: int, *, subjects: int | None = None, seed: int = 0) -> HolderData:
    rng = np.random.default_rng(seed)
    return HolderData.from_arrays(
        rng.uniform(-1, 1, (rows, FEATURES)).astype(np.float32),
        (rng.random(rows) < 0.5).astype(np.float32),
        None if subjects is None else rng.integers(0, subjects, rows),
    )


def job(name: str, *, unit: Unit = Unit.RECORD, records: HolderData | None = None, **changes) -> TrainingJob:
    terms = {
        "kind": "dp-sgd",
        "clipping_norm": 0.3,
        "noise_multiplier": 0.7,
        "sampling_rate": 0.5,
        "steps": 5,
        "unit": unit,
        "relation": Relation.ADD_OR_REMOVE,
    }
    return TrainingJob(
        holder_id="cleveland",
        model=own(name),
        arrays=initial_arrays(own(name), FEATURES),
        data=records or data(40, subjects=12 if unit is Unit.SUBJECT else None),
        mechanism=DpMechanism(**{**terms, **changes}),
        learning_rate=0.5,
        expected_batch=8.0,
        noise=RehearsalNoise(9),
    )


def flat(arrays) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays.values()]).astype(float)


def apart(one, other, start) -> float:
    """How far two updates lie apart, in the distance travelled."""
    return np.linalg.norm(flat(one.arrays) - flat(other.arrays)) / np.linalg.norm(flat(other.arrays) - flat(start))


@pytest.mark.parametrize("unit", [Unit.RECORD, Unit.SUBJECT])
@pytest.mark.parametrize("name", TRAINED)
def test_book_keeping_and_opacus_give_the_same_weights(name, unit):
    (kept,) = BookKeepingTrainer().train([job(name, unit=unit)])
    (written,) = OpacusTrainer().train([job(name, unit=unit)])
    assert apart(kept, written, job(name).arrays) < 1e-5
    assert kept.applied == written.applied
    assert (kept.trainer, written.trainer) == ("book-keeping", "opacus")


@pytest.mark.parametrize("unit", [Unit.RECORD, Unit.SUBJECT])
def test_gram_norms_and_written_out_gradients_agree(unit, monkeypatch):
    (chosen,) = BookKeepingTrainer().train([job("Words", unit=unit)])
    for price in (0, 1_000_000):
        monkeypatch.setattr(layer_gradients, "_GRAM_PRICE", price)
        (forced,) = BookKeepingTrainer().train([job("Words", unit=unit)])
        assert apart(forced, chosen, job("Words").arrays) < 1e-5


@pytest.mark.parametrize("unit", [Unit.RECORD, Unit.SUBJECT])
@pytest.mark.parametrize("name", TRAINED)
def test_a_draw_in_pieces_is_one_step_with_one_noise(name, unit, monkeypatch):
    (whole,) = BookKeepingTrainer().train([job(name, unit=unit)])
    monkeypatch.setattr(bookkeeping_trainer, "_NUMBERS", 1)
    (pieces,) = BookKeepingTrainer().train([job(name, unit=unit)])
    assert apart(pieces, whole, job(name).arrays) < 1e-5
    assert pieces.applied == whole.applied


@pytest.mark.parametrize("unit", [Unit.RECORD, Unit.SUBJECT])
def test_patches_copied_a_few_rows_at_a_time_give_the_same_weights(unit, monkeypatch):
    (whole,) = BookKeepingTrainer().train([job("Image", unit=unit)])
    monkeypatch.setattr(layer_gradients, "_PATCHES_AT_ONCE", 5_000)
    (pieces,) = BookKeepingTrainer().train([job("Image", unit=unit)])
    assert apart(pieces, whole, job("Image").arrays) < 1e-5


@pytest.mark.parametrize("room", [2.0**-13, 2.0**-19])
def test_shorter_chains_of_float32_give_the_same_sum(room, monkeypatch):
    (usual,) = BookKeepingTrainer().train([job("Image", sampling_rate=1.0)])
    monkeypatch.setattr(layer_gradients, "ROUNDING_ROOM", room)
    (exact,) = BookKeepingTrainer().train([job("Image", sampling_rate=1.0)])
    assert apart(exact, usual, job("Image").arrays) < 1e-5


def test_dropout_follows_the_holders_source_and_activations_in_place_are_trained():
    first, second = (BookKeepingTrainer().train([job("Activations")])[0] for _ in range(2))
    start = job("Activations").arrays
    assert all((first.arrays[name] == second.arrays[name]).all() for name in start)
    same = {name for name in start if (first.arrays[name] == start[name]).all()}
    assert same == {"layers.layers.3.weight"}


def clipped_sum(name: str, records: HolderData, unit: Unit, *, scale: float, clipping_norm: float) -> np.ndarray:
    one = job(name, unit=unit, records=records, clipping_norm=clipping_norm)
    model = BookKeptModel(build_module(own(name), FEATURES), FEATURES)
    model.flat.mul_(scale / 0.05)
    private = PrivateSum(one.mechanism, len(model.flat), one.noise)
    rows = np.arange(records.records)
    units = Units(rows if records.subjects is None else records.subjects.copy())
    norms = model.norms(torch.tensor(records.features), units, labels=torch.tensor(records.labels))
    return model.weighted_sum(private.factors(norms), norms, units_in_step=units.count).numpy().copy()


@settings(max_examples=12)
@given(
    scale=st.floats(1e-3, 50.0),
    others=st.integers(1, 12),
    clipping_norm=st.sampled_from([0.01, 0.4, 5.0]),
    unit=st.sampled_from([Unit.RECORD, Unit.SUBJECT]),
)
@pytest.mark.parametrize("name", [*TRAINED, "PaddedWords"])
def test_one_more_unit_moves_the_sum_by_no_more_than_the_clipping_norm(name, scale, others, clipping_norm, unit):
    """What the accountant assumes of every kind of layer, whatever model the coordinator sends. No tolerance.

    Models without dropout only: with another row beside them, the same rows would draw other masks.
    """
    everyone = data(3 * (others + 1), seed=others)
    subjects = np.repeat(np.arange(others + 1), 3) if unit is Unit.SUBJECT else None
    last = 3 if unit is Unit.SUBJECT else 1
    parts = [
        HolderData.from_arrays(
            everyone.features[:rows], everyone.labels[:rows], None if subjects is None else subjects[:rows]
        )
        for rows in (everyone.records, everyone.records - last)
    ]
    with_it = clipped_sum(name, parts[0], unit, scale=scale, clipping_norm=clipping_norm)
    without_it = clipped_sum(name, parts[1], unit, scale=scale, clipping_norm=clipping_norm)
    assert np.linalg.norm(with_it - without_it) <= clipping_norm


@pytest.mark.parametrize("name", TRAINED)
def test_a_record_without_a_usable_gradient_contributes_nothing(name):
    records = data(6)
    model = BookKeptModel(build_module(own(name), FEATURES), FEATURES)
    features, labels = torch.tensor(records.features), torch.tensor(records.labels)
    labels[2] = torch.nan  # stands for any gradient that is not finite
    keeps = torch.tensor([0, 1, 3, 4, 5])
    sums = []
    for rows in (torch.arange(6), keeps):
        norms = model.norms(features[rows], Units(np.arange(len(rows))), labels=labels[rows])
        ones = torch.ones(len(rows))
        sums.append(model.weighted_sum(ones, norms, units_in_step=len(rows)).clone())
    assert torch.isfinite(sums[0]).all()
    np.testing.assert_allclose(sums[0].numpy(), sums[1].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["Normalised", "Remembers"])
def test_a_module_that_remembers_rows_is_refused_whatever_would_train_it(name):
    """Batch normalisation without parameters is one: Opacus' own validator lets it pass."""
    with pytest.raises(DocumentInvalid, match="record by record") as refusal:
        build_module(own(name), FEATURES)
    assert refusal.value.got == "a module that changes its buffers"


@pytest.mark.parametrize("name", REFUSED)
def test_what_book_keeping_cannot_train_is_refused_with_what_it_can_and_the_way_out(name):
    with pytest.raises(DocumentInvalid, match="record by record with book-keeping") as refusal:
        BookKeptModel(build_module(own(name), FEATURES), FEATURES)
    assert REFUSED[name] in (refusal.value.got or "")
    assert "Linear, Conv2d, Embedding, LayerNorm, GroupNorm" in (refusal.value.expected or "")
    assert "trainer = 'opacus'" in (refusal.value.next_step or "")

"""A mechanism is one object with one canonical form: no number in it changes alone, none is read two ways."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence_policy import canonical
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.mechanism import (
    DpMechanism,
    history_from_document,
    history_of,
    history_to_document,
)
from ringfence_policy.vocabulary import Relation, Unit


def dp_sgd(**changes):
    values = {
        "kind": "dp-sgd",
        "clipping_norm": 0.5,
        "noise_multiplier": 1.1,
        "sampling_rate": 0.25,
        "steps": 4,
        "unit": Unit.RECORD,
        "relation": Relation.ADD_OR_REMOVE,
    }
    return DpMechanism(**(values | changes))


def histogram(**changes):
    return dp_sgd(kind="score-histogram", clipping_norm=1.0, sampling_rate=1.0, steps=1, **changes)


mechanisms = st.one_of(
    st.builds(
        dp_sgd,
        clipping_norm=st.integers(1, 10**9).map(lambda micro: micro / 1e6),
        noise_multiplier=st.integers(0, 10**9).map(lambda micro: micro / 1e6),
        sampling_rate=st.integers(1, 10**6).map(lambda micro: micro / 1e6),
        steps=st.integers(1, 10**6),
        unit=st.sampled_from(Unit),
        relation=st.sampled_from(Relation),
    ),
    st.builds(histogram, noise_multiplier=st.integers(1, 10**9).map(lambda micro: micro / 1e6)),
)


@given(mechanisms)
def test_a_mechanism_survives_its_document(mechanism):
    document = canonical.decode(canonical.encode(mechanism.to_document()))
    assert DpMechanism.from_document(document) == mechanism


@given(mechanisms, mechanisms)
def test_two_mechanisms_share_a_digest_only_when_they_are_equal(one, other):
    assert (one.digest == other.digest) == (one == other)


def test_the_noise_is_the_multiplier_times_the_clip():
    assert dp_sgd(clipping_norm=0.3, noise_multiplier=2.0).noise_stddev == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["clipping_norm", "noise_multiplier", "sampling_rate", "steps", "unit", "relation"])
def test_no_part_of_a_mechanism_changes_in_place(name):
    with pytest.raises(FrozenInstanceError):
        setattr(dp_sgd(), name, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "laplace"),
        ("clipping_norm", 0.0),
        ("clipping_norm", -1.0),
        ("clipping_norm", math.inf),
        ("clipping_norm", True),
        ("clipping_norm", "1.0"),
        ("noise_multiplier", -0.1),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", 1.0000001),
        ("noise_multiplier", 1e7),
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.000001),
        ("sampling_rate", 1 / 3),
        ("steps", 0),
        ("steps", True),
        ("steps", 2.0),
        ("steps", 10**7),
    ],
)
def test_a_number_out_of_range_is_refused_and_named(name, value):
    with pytest.raises(DocumentInvalid, match=name):
        dp_sgd(**{name: value})


@pytest.mark.parametrize("change", [{"clipping_norm": 2.0}, {"sampling_rate": 0.5}, {"steps": 2}])
def test_a_histogram_counts_each_unit_once_in_one_cell(change):
    with pytest.raises(DocumentInvalid, match="histogram"):
        replace(histogram(), **change)


@given(
    noise=st.floats(1e-6, 1e5),
    rate=st.floats(1e-6, 1.0),
    clip=st.floats(1e-3, 1e5),
)
def test_rounding_never_takes_noise_away_nor_understates_the_rate(noise, rate, clip):
    rounded = DpMechanism.rounded(
        kind="dp-sgd",
        clipping_norm=clip,
        noise_multiplier=noise,
        sampling_rate=rate,
        steps=1,
        unit=Unit.RECORD,
        relation=Relation.ADD_OR_REMOVE,
    )
    assert noise <= rounded.noise_multiplier <= noise + 1.1e-6
    assert rate <= rounded.sampling_rate <= rate + 1.1e-6
    assert rounded.clipping_norm == pytest.approx(clip, abs=1e-6)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda document: document.pop("relation"),
        lambda document: document.update(extra=1),
        lambda document: document.update(noise_multiplier_micro=1.5),
        lambda document: document.update(noise_multiplier_micro=True),
        lambda document: document.update(noise_multiplier_micro="1100000"),
        lambda document: document.update(noise_multiplier_micro=-1),
        lambda document: document.update(sampling_rate_micro=0),
        lambda document: document.update(unit="person"),
        lambda document: document.update(relation=["add-or-remove"]),
        lambda document: document.update(kind=["dp-sgd"]),
        lambda document: document.update(steps="4"),
    ],
)
def test_a_document_that_is_not_exactly_a_mechanism_is_refused(tamper):
    document = dp_sgd().to_document()
    tamper(document)
    with pytest.raises(DocumentInvalid):
        DpMechanism.from_document(document)


@given(st.lists(st.tuples(mechanisms, st.integers(0, 9)), max_size=6), st.randoms(use_true_random=False))
def test_a_history_does_not_depend_on_the_order_of_uses(uses, random):
    shuffled = list(uses)
    random.shuffle(shuffled)
    history = history_of(uses)
    assert history_of(shuffled) == history
    assert sum(count for _, count in history) == sum(count for _, count in uses)
    assert history_from_document(history_to_document(history)) == history


@pytest.mark.parametrize(
    "document",
    [
        {},
        [1],
        [[dp_sgd().to_document()]],
        [[dp_sgd().to_document(), 0]],
        [[dp_sgd().to_document(), 1.0]],
        [[dp_sgd().to_document(), 1], [dp_sgd().to_document(), 1]],
        [[dp_sgd(steps=9).to_document(), 1], [dp_sgd(steps=3).to_document(), 1]],
    ],
)
def test_a_history_in_any_other_form_is_refused(document):
    with pytest.raises(DocumentInvalid):
        history_from_document(document)

"""Records that name the person they are about: read without keeping the name, kept on one side, bounded in number."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence_client.datasource import HolderData, load_dataset
from ringfence_client.holder_records import HolderRecords, parts_of
from ringfence_policy.errors import DataInvalid
from ringfence_policy.plan import PlanFile, TrainingPlan
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.strict_toml import parse_toml

PLAN = """
plan_id = "visits"
title = "Visits"
coordinator = "consortium"
purpose = "disease-research"
task = "illness"
[model]
kind = "logistic-regression"
[training]
rounds = 1
steps = 1
sampling_rate = "1"
learning_rate = "1"
clipping_norm = "1"
[privacy]
noise_multiplier_max = "8"
[cohort]
region = "CH"
[release]
to = "participants"
tier = "low"
retention_days = 30
"""


def schema(**subject: object) -> DatasetSchema:
    document = {
        "title": "Visits",
        "label": {"column": "ill", "positive_above": "0"},
        "columns": [{"name": "age", "kind": "number", "low": "0", "high": "100"}],
    }
    named = {"column": "patient", "max_records": 3} | subject
    return DatasetSchema.from_document(document | ({"subject": named} if named["column"] else {}))


def load(directory, rows, header="age,patient,ill"):
    (directory / "data.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return load_dataset(directory, schema())


def numbered(sizes, seed=1):
    """Data whose subject n has `sizes[n]` records of its own."""
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(len(sizes)), sizes)
    features = rng.uniform(-1, 1, (len(subjects), 2)).astype(np.float32)
    return HolderData.from_arrays(features, (features[:, 0] > 0).astype(np.float32), subjects)


def test_rows_of_one_identifier_are_one_subjects_whatever_their_order(tmp_path):
    data = load(tmp_path, ["30,ada,0", "40,ben,1", "31, ada ,1", "50,7,0"])
    ages = {frozenset(np.rint(50 * (data.features[data.subjects == number, 0] + 1))) for number in range(3)}
    assert ages == {frozenset({30, 31}), frozenset({40}), frozenset({50})}
    assert data.subjects.tolist() == sorted(data.subjects.tolist())
    assert data.features.shape == (4, 1)  # the identifier is no feature
    turned = load(tmp_path, ["50,7,0", "31,ada,1", "40,ben,1", "30,ada,0"])
    assert turned.fingerprint == data.fingerprint
    assert turned.subject_digests == data.subject_digests


def test_identifiers_are_not_kept(tmp_path):
    data = load(tmp_path, ["30,s3cr3t-name,0", "40,ben,1"])
    assert "s3cr3t" not in repr(vars(data))
    assert b"s3cr3t" not in b"".join([*data.row_digests, *data.subject_digests])


def test_numbers_and_words_of_parquet_are_identifiers(tmp_path):
    rows = {"age": [30, 31, 40], "ill": [0, 1, 1]}
    for identifiers in ([1, 1, 2], ["1", "1", "2"], pl.Series(["1", "1", "2"], dtype=pl.Categorical)):
        pl.DataFrame(rows | {"patient": identifiers}).write_parquet(tmp_path / "data.parquet")
        assert load_dataset(tmp_path, schema()).subjects.tolist() in ([0, 0, 1], [0, 1, 1])
    pl.DataFrame(rows | {"patient": [1.0, 1.0, 2.5]}).write_parquet(tmp_path / "data.parquet")
    with pytest.raises(DataInvalid, match="patient: not a column of identifiers"):
        load_dataset(tmp_path, schema())


def test_rows_without_an_identifier_refuse_the_data_and_show_nothing(tmp_path):
    with pytest.raises(DataInvalid) as caught:
        load(tmp_path, ["30,s3cr3t-name,0", "40,,1", "41,  ,1"])
    assert "patient: 2 without an identifier" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_a_missing_subject_column_is_named(tmp_path):
    with pytest.raises(DataInvalid, match="missing: patient"):
        load(tmp_path, ["30,0"], header="age,ill")


def test_a_row_that_moves_to_another_subject_changes_the_fingerprint(tmp_path):
    before = load(tmp_path, ["30,ada,0", "40,ben,1", "41,ben,1"])
    assert load(tmp_path, ["30,ada,0", "40,ben,1", "41,ada,1"]).fingerprint != before.fingerprint


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    gone=st.integers(0, 11),
    fraction=st.sampled_from([0.0, 0.25, 0.6]),
    most=st.integers(1, 7),
)
def test_taking_a_subject_away_moves_no_record_of_any_other(sizes, gone, fraction, most):
    """Neither between the parts, nor in or out of the bound: else one subject would change what others add."""
    everyone = numbered(sizes)
    keeps = everyone.subjects != gone
    without = everyone._where(keeps)
    for part, part_without in zip(everyone.split(fraction, "s"), without.split(fraction, "s"), strict=True):
        one, other = part.bounded(most, "s"), part_without.bounded(most, "s")
        assert set(other.row_digests) <= set(one.row_digests)
        assert len(set(one.subject_digests) - set(other.subject_digests)) <= 1
        theirs = {everyone.row_digests[position] for position in np.flatnonzero(~keeps)}
        assert set(one.row_digests) - set(other.row_digests) <= theirs


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12), fraction=st.sampled_from([0.25, 0.6]))
def test_all_records_of_a_subject_are_on_one_side(sizes, fraction):
    data = numbered(sizes)
    train, test = data.split(fraction, "salt")
    assert not set(train.subject_digests) & set(test.subject_digests)
    assert sorted(train.row_digests + test.row_digests) == sorted(data.row_digests)


def test_a_split_by_subject_is_about_as_large_as_asked_in_subjects():
    data = numbered([1, 3] * 1000)
    _, test = data.split(0.25, "salt")
    assert abs(len(test.subject_digests) - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), most=st.integers(1, 10))
def test_a_bound_leaves_every_subject_its_own_records_up_to_it(sizes, most):
    data = numbered(sizes)
    bounded = data.bounded(most, "salt")
    assert sorted(np.bincount(bounded.subjects).tolist()) == sorted(min(size, most) for size in sizes)
    assert set(bounded.row_digests) <= set(data.row_digests)
    assert bounded.subject_digests == data.subject_digests
    assert bounded.fingerprint == data.bounded(most, "salt").fingerprint


def test_which_records_a_bound_leaves_is_drawn_by_the_salt():
    data = numbered([40])
    assert data.bounded(5, "one").fingerprint != data.bounded(5, "other").fingerprint


@pytest.mark.parametrize(("unit", "most"), [(None, 3), ("subject", 3), ("record", 9)])
def test_rows_are_bounded_where_subjects_are_protected_and_nowhere_else(unit, most):
    """A bound under record level would let one record more push another one out: two would differ, not one."""
    text = PLAN.replace("[privacy]\n", f'[privacy]\nunit = "{unit}"\n') if unit else PLAN
    terms = parse_toml(text, PlanFile, source="plan.toml")
    plan = TrainingPlan(terms=terms, dataset_schema=schema(), holders={}, rehearsal=False)
    data = numbered([9] * 40)
    train, test = parts_of(data, plan, salt="visits")
    assert set(np.bincount(train.subjects)) == {most}
    assert set(np.bincount(test.subjects)) == {9}  # measuring needs no bound: a subject's records weigh 1 together
    assert not set(train.subject_digests) & set(test.subject_digests)
    assert {*train.subject_digests, *test.subject_digests} == set(data.subject_digests)


def test_data_without_subjects_has_no_bound_and_is_split_by_record():
    rng = np.random.default_rng(3)
    data = HolderData.from_arrays(rng.random((20, 2)).astype(np.float32), np.zeros(20, dtype=np.float32))
    assert data.bounded(1, "salt") is data
    assert data.subject_digests == ()


def test_the_parts_of_the_last_four_plans_are_kept_and_no_more(tmp_path):
    """Of an agent that lives for years and is shown a new plan each week."""
    (tmp_path / "data.csv").write_text("age,patient,ill\n40,a,0\n50,b,1\n", encoding="utf-8")
    records = HolderRecords(tmp_path, salt="visits")

    def plan(title: str) -> TrainingPlan:
        terms = parse_toml(PLAN.replace('title = "Visits"', f'title = "{title}"'), PlanFile, source="plan.toml")
        return TrainingPlan(terms=terms, dataset_schema=schema(), holders={}, rehearsal=False)

    first = records.parts(plan("one"))
    for title in ("two", "three", "four", "one"):
        records.parts(plan(title))
    assert records.parts(plan("one")) is first
    for title in ("five", "six", "seven", "eight"):
        records.parts(plan(title))
    again = records.parts(plan("one"))
    assert again is not first
    assert again[0].fingerprint == first[0].fingerprint

import logging
import subprocess
import sys
import traceback

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence_client.datasource import HolderData, load_dataset
from ringfence_policy.errors import DataInvalid
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.strict_toml import parse_toml

SCHEMA = parse_toml(
    """
title = "Four kinds of column"
[label]
column = "outcome"
positive_above = "0"
[[columns]]
name = "age"
kind = "number"
low = "20"
high = "90"
[[columns]]
name = "chol"
kind = "number"
low = "100"
high = "400"
missing_values = ["0"]
missing = "impute-and-flag"
impute = "250"
[[columns]]
name = "pain"
kind = "category"
values = ["typical", "atypical", "none"]
reference = "none"
missing = "category"
[[columns]]
name = "sex"
kind = "binary"
negative = "female"
positive = "male"
missing = "flag"
""",
    DatasetSchema,
    source="schema.toml",
)
HEADER = "age,chol,pain,sex,outcome"
ROWS = ("55,250,typical,male,1", "20,0,none,female,0", "95,,,,3")
PATIENT = "s3cr3t-patient-name"


def write(directory, rows=ROWS, header=HEADER):
    (directory / "data.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return directory


def refusal(directory) -> str:
    """The refusal as any log would print it, cause and context included."""
    try:
        load_dataset(directory, SCHEMA)
    except DataInvalid as error:
        printed = "".join(traceback.format_exception(error))
        context = error
        while context is not None:
            printed += repr(context) + str(vars(context))
            context = context.__cause__ or context.__context__
        return printed
    raise AssertionError("the data was accepted")


def test_every_kind_of_column_becomes_what_the_schema_declares(tmp_path):
    data = load_dataset(write(tmp_path), SCHEMA)
    assert SCHEMA.feature_names() == (
        "age",
        "chol",
        "chol=missing",
        "pain=typical",
        "pain=atypical",
        "pain=missing",
        "sex=male",
        "sex=missing",
    )
    expected = [
        [0.0, 0.0, 0, 1, 0, 0, 0.5, 0],
        [-1.0, 0.0, 1, 0, 0, 0, -0.5, 0],
        [1.0, 0.0, 1, 0, 0, 1, 0.0, 1],  # an age beyond the bound is moved to it
    ]
    np.testing.assert_allclose(data.features, np.float32(expected), atol=1e-6)
    assert data.features.dtype == np.float32
    assert data.labels.tolist() == [1, 0, 1]
    assert data.records == 3


def test_parquet_and_csv_give_the_same_data(tmp_path):
    from_csv = load_dataset(write(tmp_path), SCHEMA)
    typed = pl.DataFrame(
        {
            "age": [55, 20, 95],
            "chol": [250.0, 0.0, None],
            "pain": ["typical", "none", None],
            "sex": ["male", "female", None],
            "outcome": [1, 0, 3],
        }
    )
    (tmp_path / "data.csv").unlink()
    typed.write_parquet(tmp_path / "data.parquet")
    from_parquet = load_dataset(tmp_path, SCHEMA)
    np.testing.assert_array_equal(from_parquet.features, from_csv.features)
    assert from_parquet.fingerprint == from_csv.fingerprint


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["typical", "none", "female", "male"])])
def test_parquets_own_categories_are_words(tmp_path, kind):
    typed = pl.DataFrame(
        {
            "age": [55, 20, 95],
            "chol": [250.0, 0.0, None],
            "pain": pl.Series(["typical", "none", None], dtype=kind),
            "sex": pl.Series(["male", "female", None], dtype=kind),
            "outcome": [1, 0, 3],
        }
    )
    (tmp_path / "parquet").mkdir()
    typed.write_parquet(tmp_path / "parquet" / "data.parquet")
    expected = load_dataset(write(tmp_path), SCHEMA)
    assert load_dataset(tmp_path / "parquet", SCHEMA).fingerprint == expected.fingerprint


def test_the_order_of_columns_does_not_matter(tmp_path):
    straight = load_dataset(write(tmp_path), SCHEMA)
    turned = [",".join(reversed(row.split(","))) for row in (HEADER, *ROWS)]
    again = load_dataset(write(tmp_path, turned[1:], turned[0]), SCHEMA)
    np.testing.assert_array_equal(again.features, straight.features)
    assert again.fingerprint == straight.fingerprint


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([f"{PATIENT},250,typical,male,1"], "age: 1 not finite numbers"),
        (["nan,250,typical,male,1", "inf,250,typical,male,1"], "age: 2 not finite numbers"),
        (["55,-inf,typical,male,1"], "chol: 1 not finite numbers"),
        ([",250,typical,male,1"], "age: 1 absent"),
        ([f"55,250,{PATIENT},male,1"], "pain: 1 outside the declared values"),
        ([f"55,250,typical,{PATIENT},1"], "sex: 1 outside the declared values"),
        (["55,250,typical,male,"], "outcome: 1 without a label"),
        ([f"55,250,typical,male,{PATIENT}"], "outcome: 1 not finite numbers"),
        (["55,250,typical,male,nan"], "outcome: 1 not finite numbers"),
        ([f"{PATIENT},250,Typical,male,1"], "pain: 1 outside the declared values"),
    ],
)
def test_a_value_that_does_not_fit_is_counted_and_never_shown(tmp_path, rows, named):
    printed = refusal(write(tmp_path, [*ROWS, *rows]))
    assert named in printed
    assert PATIENT not in printed


@pytest.mark.parametrize(
    "content",
    [
        f"{HEADER}\n55,250,typical,male,1,{PATIENT}\n",  # a field too many
        f"{HEADER}\n55,{PATIENT}\n",  # a line cut short
        f"{HEADER}\n55,250,typical,male,1\n\n55,250,{PATIENT},male,1\n",  # an empty line
        f'{HEADER}\n55,250,"{PATIENT},male,1\n',  # a quote that never closes
        f"{HEADER}\n55,250,{PATIENT}".encode() + b"\xff\xfe,male,1\n",  # not UTF-8
        f"{PATIENT},250,typical,male,1\n55,250,typical,male,1\n",  # no header line: a record in its place
        f"{HEADER},{PATIENT}\n55,250,typical,male,1,2\n",
        f"{HEADER},age\n55,250,typical,male,1,{PATIENT}\n",
        f"{PATIENT}\n",
        "",
    ],
)
def test_a_malformed_file_is_refused_without_a_word_of_it(tmp_path, content):
    (tmp_path / "data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert PATIENT not in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "got", "mend"),
    [
        (f"{HEADER}\n55,250,typical,male,1\n55\n", "fields in line 3", "mend that line"),
        ("", "fields in line 1", "mend that line"),
        (f'{HEADER}\n55,250,"typical,male,1\n', "not closed", "close it"),
        (f"{HEADER}\n55,250,Z\xfcrich,male,1\n".encode("latin-1"), "not UTF-8", "UTF-8"),
        (HEADER.replace(",", ";") + "\n55;250;typical;male;1\n", "missing: age", "by commas"),
    ],
    ids=["short line", "empty", "open quote", "latin-1", "semicolons"],
)
def test_a_malformed_file_is_refused_with_what_is_wrong_and_how_to_mend_it(tmp_path, content, got, mend):
    (tmp_path / "data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataInvalid) as refused:
        load_dataset(tmp_path, SCHEMA)
    assert got in refused.value.got
    assert mend in refused.value.next_step


def test_a_field_may_be_quoted(tmp_path):
    plain = load_dataset(write(tmp_path), SCHEMA)
    quoted = [",".join(f'"{field}"' if field else "" for field in row.split(",")) for row in ROWS]
    assert load_dataset(write(tmp_path, quoted), SCHEMA).fingerprint == plain.fingerprint


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "data.parquet").write_text(PATIENT)
    assert PATIENT not in refusal(tmp_path)


def test_a_parquet_column_of_another_type_is_refused(tmp_path):
    rows = {"age": [[1.0]], "chol": [1.0], "pain": [1.5], "sex": ["male"], "outcome": [1]}
    pl.DataFrame(rows).write_parquet(tmp_path / "data.parquet")
    printed = refusal(tmp_path)
    assert "age: not a column of numbers" in printed
    assert "pain: not a column of words" in printed


def test_missing_columns_are_named_by_the_schemas_words(tmp_path):
    printed = refusal(write(tmp_path, ["55,1"], f"age,{PATIENT}"))
    assert "missing: chol, pain, sex, outcome; 1 that the schema does not declare" in printed
    assert PATIENT not in printed


def test_there_is_exactly_one_data_file(tmp_path):
    assert "neither" in refusal(tmp_path)
    write(tmp_path)
    (tmp_path / "data.parquet").write_text("")
    assert "both" in refusal(tmp_path)


def test_all_faults_are_told_at_once(tmp_path):
    printed = refusal(write(tmp_path, ["x,x,x,x,x"]))
    for column in ("age", "chol", "pain", "sex", "outcome"):
        assert f"{column}: 1 " in printed


def test_neither_printing_nor_logging_data_shows_any(tmp_path, caplog):
    data = load_dataset(write(tmp_path), SCHEMA)
    logging.getLogger("test").warning("%s %r", data, data)
    assert f"{data} {data!r}" == "HolderData(<private>) HolderData(<private>)"
    assert "3" not in caplog.messages[0]


def test_data_cannot_be_changed_after_it_was_checked(tmp_path):
    data = load_dataset(write(tmp_path), SCHEMA)
    with pytest.raises(ValueError, match="read-only"):
        data.features[0, 0] = 7


def test_a_label_of_words_is_read_by_its_words(tmp_path):
    document = SCHEMA.to_document()
    document["label"] = {"column": "outcome", "positive": ["yes"], "negative": ["no"]}
    schema = DatasetSchema.from_document(document)
    write(tmp_path, ["55,250,typical,male,yes", "55,250,typical,male,no"])
    assert load_dataset(tmp_path, schema).labels.tolist() == [1, 0]


def random_data(rows: int, seed: int = 1) -> HolderData:
    rng = np.random.default_rng(seed)
    return HolderData.from_arrays(
        rng.uniform(-1, 1, (rows, 3)).astype(np.float32), (rng.random(rows) < 0.5).astype(np.float32)
    )


def test_the_fingerprint_names_the_records_as_a_set():
    data = random_data(50)
    order = np.random.default_rng(2).permutation(50)
    assert HolderData.from_arrays(data.features[order], data.labels[order]).fingerprint == data.fingerprint
    assert HolderData.from_arrays(data.features[1:], data.labels[1:]).fingerprint != data.fingerprint
    flipped = data.labels.copy()
    flipped[0] = 1 - flipped[0]
    assert HolderData.from_arrays(data.features, flipped).fingerprint != data.fingerprint


@settings(max_examples=25)
@given(rows=st.integers(0, 60), left_out=st.integers(0, 59), fraction=st.sampled_from([0.0, 0.1, 0.25, 0.6]))
def test_taking_one_record_away_moves_no_other_between_the_parts(rows, left_out, fraction):
    """Were the split to depend on the row count, one record would change which others train, and clip nothing."""
    data = random_data(rows)
    kept = [position for position in range(rows) if position != left_out]
    without = HolderData.from_arrays(data.features[kept], data.labels[kept])
    for part, part_without in zip(data.split(fraction, "salt"), without.split(fraction, "salt"), strict=True):
        gone = set(part.row_digests) - set(part_without.row_digests)
        assert len(gone) <= 1
        assert set(part_without.row_digests) <= set(part.row_digests)


def test_a_split_is_complete_repeatable_and_about_as_large_as_asked():
    data = random_data(4000)
    train, test = data.split(0.25, "salt")
    assert sorted(train.row_digests + test.row_digests) == sorted(data.row_digests)
    assert test.fingerprint == data.split(0.25, "salt")[1].fingerprint
    assert test.fingerprint != data.split(0.25, "other")[1].fingerprint
    assert abs(test.records - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5
    assert data.split(0, "salt")[1].records == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5])
def test_an_impossible_split_is_refused(fraction):
    with pytest.raises(ValueError, match="test fraction"):
        random_data(3).split(fraction, "salt")


def test_taking_arrays_leaves_the_callers_own_alone():
    features, labels = np.zeros((2, 2), dtype=np.float32), np.zeros(2, dtype=np.float32)
    data = HolderData.from_arrays(features, labels)
    features[0, 0] = 1
    assert data.features[0, 0] == 0


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (np.full((2, 2), np.nan), np.zeros(2)),
        (np.full((2, 2), np.inf), np.zeros(2)),
        (np.zeros((2, 2)), np.full(2, 0.5)),
        (np.zeros((2, 2)), np.zeros(3)),
        (np.zeros(2), np.zeros(2)),
    ],
)
def test_arrays_that_are_no_records_are_refused(features, labels):
    with pytest.raises(DataInvalid):
        HolderData.from_arrays(features.astype(np.float32), labels.astype(np.float32))


def test_reading_data_does_not_load_torch():
    """An officer who only checks data, and the ledger's own processes, start without it."""
    script = "import sys, ringfence_client.datasource; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_order_of_the_schemas_columns_moves_no_record_to_the_other_side(tmp_path):
    text = "a,b,y\n" + "".join(f"{n},{n * 7 % 40},{n % 2}\n" for n in range(40))
    (tmp_path / "data.csv").write_text(text)
    numbers = '\n[[columns]]\nname = "{}"\nkind = "number"\nlow = "0"\nhigh = "40"\n'
    head = 'title = "Numbers"\n[label]\ncolumn = "y"\npositive_above = "0"\n'
    one, other = (
        load_dataset(tmp_path, parse_toml(head + "".join(map(numbers.format, names)), DatasetSchema, source="schema"))
        for names in ("ab", "ba")
    )
    assert one.fingerprint == other.fingerprint
    sides = [set(data.split(0.25, salt="trees")[1].row_digests) for data in (one, other)]
    assert sides[0] == sides[1]

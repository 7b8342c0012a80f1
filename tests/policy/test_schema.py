import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.strict_toml import parse_toml

SCHEMA = """
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
impute = "240"

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
"""


def parse(text: str = SCHEMA) -> DatasetSchema:
    return parse_toml(text, DatasetSchema, source="schema.toml")


def changed(old: str, new: str) -> str:
    assert SCHEMA.count(old) == 1
    return SCHEMA.replace(old, new)


def test_features_follow_from_the_declaration_in_its_order():
    schema = parse()
    assert schema.feature_names() == (
        "age",
        "chol",
        "chol=missing",
        "pain=typical",
        "pain=atypical",
        "pain=missing",
        "sex=male",
        "sex=missing",
    )
    assert schema.feature_count == 8


def test_columns_are_those_of_the_features_and_the_label():
    assert parse().column_names() == ("age", "chol", "pain", "sex", "outcome")


def test_a_schema_survives_signing_with_digest_and_feature_order():
    schema = parse()
    again = DatasetSchema.from_document(schema.to_document())
    assert again == schema
    assert again.digest == schema.digest
    assert again.feature_names() == schema.feature_names()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('high = "90"', 'high = "91"'),
        ('missing_values = ["0"]', "missing_values = []"),
        ('values = ["typical", "atypical", "none"]', 'values = ["atypical", "typical", "none"]'),
        ('reference = "none"', 'reference = "typical"'),
        ('positive_above = "0"', 'positive_above = "1"'),
        ('negative = "female"', 'negative = "woman"'),
    ],
)
def test_whatever_changes_what_a_model_sees_changes_the_digest(old, new):
    assert parse(changed(old, new)).digest != parse().digest


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('low = "20"', "low = 20.5", "quote it"),
        ('low = "20"', 'low = "95"', "lower bound below"),
        ('impute = "240"', 'impute = "50"', "a constant from 100 to 400"),
        ('impute = "240"', "", "constant to impute exactly when"),
        ('missing_values = ["0"]', 'missing_values = ["0", "0"]', "each entry once"),
        ('values = ["typical", "atypical", "none"]', 'values = ["none", "none"]', "differ from each other"),
        ('values = ["typical", "atypical", "none"]', 'values = ["none", "missing"]', "stands for an absent one"),
        ('reference = "none"', 'reference = "other"', "one of the values"),
        ('positive = "male"', 'positive = "female"', "two different values"),
        ('name = "sex"', 'name = "age"', "differ from each other"),
        ('column = "outcome"', 'column = "age"', "differ from each other"),
        ('positive_above = "0"', "", "positive_above for a number"),
        ('positive_above = "0"', 'positive_above = "0"\npositive = ["yes"]', "either positive_above"),
        ('positive_above = "0"', 'positive = ["yes"]\nnegative = ["yes"]', "differ from each other"),
        ('kind = "binary"', 'kind = "ternary"', ""),
        ('column = "outcome"', 'column = "out\\ncome"', ""),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(old, new, named):
    with pytest.raises(DocumentInvalid) as caught:
        parse(changed(old, new))
    assert named in str(caught.value)


SUBJECT = '\n[subject]\ncolumn = "patient_id"\nmax_records = 8\n'


def test_a_subject_column_is_read_and_never_a_feature():
    schema = parse(SCHEMA + SUBJECT)
    assert schema.column_names() == (*parse().column_names(), "patient_id")
    assert schema.feature_names() == parse().feature_names()
    assert schema.subject.max_records == 8


def test_the_subjects_column_and_bound_are_part_of_the_schemas_digest():
    texts = [
        SCHEMA,
        SCHEMA + SUBJECT,
        SCHEMA + SUBJECT.replace("8", "9"),
        SCHEMA + SUBJECT.replace("patient", "person"),
    ]
    assert len({parse(text).digest for text in texts}) == 4
    for text in texts:
        schema = parse(text)
        assert DatasetSchema.from_document(schema.to_document()) == schema


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"patient_id"', '"age"', "differ from each other"),
        ('"patient_id"', '"outcome"', "differ from each other"),
        ("max_records = 8", "", "max_records"),
        ("max_records = 8", "max_records = 0", "1 or more"),
        ("max_records = 8", 'max_records = "8"', "whole number"),
        ("max_records = 8", "max_record = 8", "did you mean max_records"),
        ("[subject]", "[subjects]", "did you mean subject"),
    ],
)
def test_a_subject_table_that_says_something_else_is_refused(old, new, named):
    with pytest.raises(DocumentInvalid) as caught:
        parse(SCHEMA + SUBJECT.replace(old, new))
    assert named in str(caught.value)


def test_an_unknown_key_in_a_column_is_refused():
    with pytest.raises(DocumentInvalid, match="hihg"):
        parse(changed('high = "90"', 'hihg = "90"'))


def test_two_columns_that_would_share_a_feature_name_are_refused():
    text = SCHEMA + '\n[[columns]]\nname = "pain=typical"\nkind = "number"\nlow = "0"\nhigh = "1"\n'
    with pytest.raises(DocumentInvalid):
        parse(text)


@pytest.mark.parametrize("document", [{}, {"title": "no columns"}, {"title": 1.5}, {"title": "x", "columns": "age"}])
def test_a_document_that_is_no_schema_is_refused(document):
    with pytest.raises(DocumentInvalid):
        DatasetSchema.from_document(document)


def test_a_label_may_be_words():
    schema = parse(changed('positive_above = "0"', 'positive = ["yes"]\nnegative = ["no"]'))
    assert (schema.label.positive, schema.label.negative) == (("yes",), ("no",))
    assert DatasetSchema.from_document(schema.to_document()) == schema


@given(values=st.lists(st.text("abcdefgh", min_size=1, max_size=5), min_size=2, max_size=8, unique=True))
def test_a_category_has_one_feature_per_value_less_its_reference(values):
    column = {"name": "c", "kind": "category", "values": values, "reference": values[0], "missing": "refuse"}
    document = {"title": "any category", "label": {"column": "y", "positive_above": "0"}, "columns": [column]}
    schema = DatasetSchema.from_document(document)
    assert schema.feature_names() == tuple(f"c={value}" for value in values[1:])


def test_a_misspelt_key_inside_a_column_is_named_with_its_line_and_the_right_spelling():
    text = 'title = "A dataset"\n[label]\ncolumn = "num"\npositive_above = "0"\n[[columns]]\nname = "age"\n'
    text += 'kind = "number"\nlow = "30"\nhihg = "80"\n'
    with pytest.raises(DocumentInvalid) as caught:
        parse_toml(text, DatasetSchema, source="schema.toml")
    assert caught.value.where == "schema.toml:9"
    assert "hihg" in str(caught.value)
    assert "did you mean high?" in (caught.value.next_step or "")

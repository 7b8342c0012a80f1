"""`ringfence-node data check` counts what does not fit, agrees with what every use depends on, and shows no value."""

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from officer_desk import answer, node

from ringfence_client.data_check import check_data
from ringfence_client.datasource import load_dataset
from ringfence_policy.errors import DataInvalid
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.strict_toml import parse_toml

SCHEMA = """
title = "Leaves"

[label]
column = "ill"
positive_above = "0"

[subject]
column = "tree"
max_records = 2

[[columns]]
name = "length"
kind = "number"
low = "0"
high = "10"
missing = "impute"
impute = "5"
missing_values = ["0", "-9"]

[[columns]]
name = "width"
kind = "number"
low = "0"
high = "10"

[[columns]]
name = "soil"
kind = "binary"
negative = "dry"
positive = "wet"
missing = "flag"

[[columns]]
name = "form"
kind = "category"
values = ["round", "long"]
missing = "category"
"""
HEADER = "length,width,soil,form,ill,tree"
GOOD = ["3,1,wet,round,1,t1", "4,2,dry,long,0,t1", "5,3,wet,round,0,t2"]
WORDS = SCHEMA.replace('positive_above = "0"', 'positive = ["yes"]\nnegative = ["no"]')


@pytest.fixture
def holder(tmp_path):
    def write(*lines, header=HEADER, schema=SCHEMA):
        (tmp_path / "schema.toml").write_text(schema)
        (tmp_path / "data.csv").write_text("\n".join([header, *lines]) + "\n")
        return tmp_path

    return write


def schema_of(text=SCHEMA):
    return parse_toml(text, DatasetSchema, source="schema.toml")


def column(report, name):
    return next(one for one in report.columns if one.name == name)


def test_every_kind_of_fault_is_counted_in_its_column_with_what_becomes_of_it(holder):
    directory = holder(
        *GOOD,
        "0,1,,round,1,t3",  # not measured; soil absent
        "-9,,dry,,1,t3",  # not measured; width absent; form absent
        "11,-1,swamp,square,,t3",  # both out of bounds; two unknown words; no label
        "nan,inf,wet,round,x,",  # no finite numbers; a label that is none; no subject
        "word,1,wet,round,2,t4",
    )
    report = check_data(directory, schema_of())
    counts = {one.name: (one.missing, one.wrong_type, one.out_of_bounds, one.unknown_words) for one in report.columns}
    assert counts == {
        "length": (2, 2, 1, 0),
        "width": (1, 1, 1, 0),
        "soil": (1, 0, 0, 1),
        "form": (1, 0, 0, 1),
        "ill": (1, 1, 0, 0),
        "tree": (1, 0, 0, 0),
    }
    assert column(report, "length").consequences == {
        "missing": "imputed",
        "wrong_type": "refuses the data",
        "out_of_bounds": "clipped to the bound",
    }
    assert column(report, "width").consequences["missing"] == "refuses the data"
    assert column(report, "soil").consequences == {"missing": "flagged", "unknown_words": "refuses the data"}
    assert column(report, "form").consequences["missing"] == "a category of its own"
    assert (report.rows, report.positive, report.negative, report.fits) == (8, 4, 2, False)


def test_data_that_fits_says_so_with_the_counts_that_only_its_officer_should_see(holder):
    report = check_data(holder(*GOOD, GOOD[0], "3,1,wet,round,1,t1"), schema_of())
    assert (report.fits, report.refusal) == (True, "")
    assert (report.positive, report.negative) == (3, 2)
    assert report.repeated_rows == 3
    assert (report.subjects, report.subjects_over_bound, report.surplus_records) == (2, 1, 2)
    assert not any(one.consequences for one in report.columns)


def test_labels_that_are_words_are_counted_by_the_words_declared(holder):
    directory = holder("1,1,wet,round,yes,a", "1,1,wet,round,no,b", "1,1,wet,round,maybe,c", schema=WORDS)
    report = check_data(directory, schema_of(WORDS))
    assert (report.positive, report.negative) == (1, 1)
    assert column(report, "ill").unknown_words == 1


def test_columns_that_are_missing_or_not_declared_are_counted_and_the_others_still_checked(holder):
    report = check_data(holder("11,wet,secret", header="length,soil,SECRET-HEADER"), schema_of())
    assert [one.name for one in report.columns if not one.is_there] == ["width", "form", "ill", "tree"]
    assert report.undeclared_columns == 1
    assert column(report, "length").out_of_bounds == 1
    assert not report.fits
    assert "SECRET-HEADER" not in repr(report)


def test_a_file_without_one_declared_column_is_counted_too(holder):
    report = check_data(holder("1,2", header="a,b"), schema_of())
    assert (report.rows, report.undeclared_columns, report.fits) == (1, 2, False)


def test_typed_columns_of_parquet_are_judged_as_every_use_judges_them(tmp_path):
    frame = pl.DataFrame(
        {
            "length": [1.5, float("nan"), None],
            "width": [date(2026, 1, 1), date(2026, 1, 2), None],
            "soil": [True, False, None],
            "form": ["round", "long", "round"],
            "ill": [1, 0, 1],
            "tree": [7, 7, 8],
        }
    )
    frame.write_parquet(tmp_path / "data.parquet")
    report = check_data(tmp_path, schema_of())
    assert (column(report, "length").missing, column(report, "length").wrong_type) == (1, 1)
    assert (column(report, "width").missing, column(report, "width").wrong_type) == (1, 2)
    assert column(report, "soil").unknown_words == 2
    assert report.subjects == 2
    assert not report.fits


def test_pandera_looks_at_the_data_whatever_the_environment_says_of_it(holder):
    directory = holder(*GOOD, "11,1,wet,round,1,t9")
    call = [sys.executable, "-m", "ringfence_client.cli", "data", "check", str(directory), "--json"]
    off = {"PANDERA_VALIDATION_ENABLED": "False", "PANDERA_VALIDATION_DEPTH": "SCHEMA_ONLY"}
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False, env=os.environ | off)
    assert done.returncode == 0, done.stderr
    assert sum(one["out_of_bounds"] for one in json.loads(done.stdout)["columns"]) == 1


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_shows_a_table_says_for_whom_it_is_and_exits_by_whether_the_data_fits(holder):
    directory = holder(*GOOD)
    shown = node("data", "check", directory)
    assert shown.exit_code == 0
    assert "For the data officer alone" in shown.output
    assert "The data fits the schema." in shown.output
    assert answer("data", "check", directory)["fits"] is True
    holder(*GOOD, "1,1,swamp,round,1,t9")
    shown = node("data", "check", directory)
    assert shown.exit_code == 2
    assert "soil: 1 outside the declared values" in shown.output
    assert answer("data", "check", directory, exit_code=2)["fits"] is False


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2,3\n", b"\xff\xfe\x00", b'a,"b\n1,2\n'])
def test_a_file_that_is_no_table_is_refused_without_a_word_of_it(holder, content):
    directory = holder(*GOOD)
    (directory / "data.csv").write_bytes(content)
    assert answer("data", "check", directory, exit_code=2)["error"]["code"] == "data-invalid"


def test_only_this_command_loads_pandera(holder):
    directory = holder(*GOOD)
    code = (
        "import sys\nsys.argv = ['ringfence-node', 'data', 'check', sys.argv[1]]\n"
        "import ringfence_client.cli as cli, ringfence_client.officer, ringfence_client.cli_show\n"
        "assert not any(name.split('.')[0] == 'pandera' for name in sys.modules)\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'pandera' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]


# --- properties -------------------------------------------------------------------------------------------------------


# Cells that could stand in such a file by mistake: each is a canary that no output may repeat.
def test_data_without_a_record_and_data_without_a_schema_are_said_to_be_so(holder):
    directory = holder()
    assert "no record in it" in node("data", "check", directory).output
    (directory / "schema.toml").unlink()
    refused = answer("data", "check", directory, exit_code=2)["error"]
    assert refused["where"] == str(directory / "schema.toml")
    assert "coordinator sends" in refused["next_step"]


CANARIES = st.sampled_from(
    ["canary-7f3a", "Maria Canary", "1987654321012", "31.12.1999", "-98765.4321", "98765e300", "[bold]canary[/bold]"]
)
NUMBERS = st.one_of(st.sampled_from(["", "0", "-9", "3", "9.75", "nan", " 4 "]), CANARIES)
SOILS = st.one_of(st.sampled_from(["", "wet", "dry", " wet "]), CANARIES)
FORMS = st.one_of(st.sampled_from(["", "round", "long"]), CANARIES)
LABELS = st.one_of(st.sampled_from(["", "1", "0"]), CANARIES)
TREES = st.one_of(st.sampled_from(["", "canary-tree-1", "canary-tree-2"]), CANARIES)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, SOILS, FORMS, LABELS, TREES), min_size=1, max_size=8)
RELAXED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@RELAXED
@given(rows=ROWS)
def test_no_cell_of_the_data_appears_in_any_output(holder, rows):
    directory = holder(*(",".join(row) for row in rows))
    # Printed one per line and without the borders that a table would put into the middle of a canary.
    shown = node("data", "check", directory).output + node("data", "check", directory, "--json").output
    shown += repr(check_data(directory, schema_of()))
    told = shown.lower().replace("│", "").replace("\n", "").replace(" ", "")
    for cell in {cell for row in rows for cell in row if len(cell) > 6}:
        assert cell.lower().replace(" ", "") not in told


@RELAXED
@given(rows=ROWS)
def test_the_report_and_what_every_use_depends_on_never_disagree(holder, rows):
    directory = holder(*(",".join(row) for row in rows))
    report = check_data(directory, schema_of())
    refused = any(then == "refuses the data" for one in report.columns for then in one.consequences.values())
    try:
        data = load_dataset(directory, schema_of())
    except DataInvalid:
        assert refused
        assert not report.fits
    else:
        assert not refused
        assert report.fits
        assert report.rows == data.records
        assert report.positive == int(data.labels.sum())
        assert report.subjects == len(data.subject_digests)
        assert report.surplus_records == data.records - data.bounded(2, salt="").records


def test_what_pandera_says_goes_no_further_than_the_one_module(monkeypatch, holder):
    """Its messages quote cells: a version that raises where this one answers must not print one."""

    def burst(*_args, **_options):
        raise ValueError("cell canary-7f3a is wrong")

    monkeypatch.setattr("ringfence_client.data_check.pa.DataFrameSchema.validate", burst)
    shown = node("data", "check", holder("canary-7f3a,1,wet,round,1,t1"))
    assert shown.exit_code == 2
    assert "could not be checked" in shown.output
    assert "canary" not in shown.output


def test_a_directory_with_two_data_files_is_refused(holder):
    directory: Path = holder(*GOOD)
    pl.DataFrame({"length": [1]}).write_parquet(directory / "data.parquet")
    assert answer("data", "check", directory, exit_code=2)["error"]["code"] == "data-invalid"

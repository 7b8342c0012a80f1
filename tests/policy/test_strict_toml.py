import os
import subprocess
import sys
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.strict_toml import (
    Choice,
    DecimalString,
    Digest,
    Identifier,
    ListOf,
    MicroEpsilon,
    Moment,
    PicoDelta,
    SetOf,
    StrictDocument,
    Text,
    parse_toml,
    read_toml,
)
from ringfence_policy.toml_lines import locate
from ringfence_policy.vocabulary import Unit


class Inner(StrictDocument):
    count: int = 1
    rate: DecimalString = Decimal(1)
    flag: bool = False


class Everything(StrictDocument):
    name: Identifier = "a-name"
    title: Text = "A title"
    epsilon: MicroEpsilon = 0
    delta: PicoDelta = 0
    unit: Choice[Unit] = Unit.RECORD
    sizes: ListOf[int] = ()
    names: Annotated[SetOf[Identifier], Field(max_length=3)] = ()
    when: Moment | None = None
    digest: Digest | None = None
    inner: Inner = Inner()
    rows: ListOf[Inner] = ()


def fault(text, model=Everything):
    with pytest.raises(DocumentInvalid) as caught:
        parse_toml(text, model, source="file.toml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "expected", "got", "next_step"),
    [
        ("name = 'aa'\nname = 'bb'", 2, "once", "name = 'bb'", "keep one"),
        ("[inner]\ncount = 1\n[inner]\nflag = true", 3, "once", "[inner]", "keep one"),
        ("inner.count = 1\n[inner]\n", 2, "once", "[inner]", "keep one"),
        ("rows = [{count = 1, count = 2}]", 1, "once", "count = 2", "keep one"),
        ("\n\nnaem = 'aa'", 3, "one of name, title", "naem", "did you mean name?"),
        ("[inner]\ncuont = 3", 2, "one of count, rate, flag", "cuont", "did you mean count?"),
        ("[inner]\nepsilon = '1'", 2, "one of count", "epsilon", None),
        ("count = 2", 1, "one of name", "count", "did you mean count in [inner]?"),
        ("title = 3", 1, "text in quotes", "3", "change that line"),
        ("[inner]\ncount = '3'", 2, "a whole number without quotes", '"3"', None),
        ("[inner]\ncount = 3.0", 2, "a whole number without quotes", "3.0, a fraction without quotes", "whole number"),
        ("[inner]\ncount = true", 2, "a whole number without quotes", "true", None),
        ("[inner]\nflag = 1", 2, "true or false", "1", None),
        ("[inner]\nflag = 'true'", 2, "true or false", '"true"', None),
        ("[inner]\nrate = 0.5", 2, "a decimal in quotes", "0.5, a fraction without quotes", 'quote it: "0.5"'),
        ("[inner]\nrate = nan", 2, "a decimal in quotes", "nan", "quote it"),
        ("[inner]\nrate = 'NaN'", 2, "a finite decimal in quotes", '"NaN"', None),
        ("[inner]\nrate = '1_000'", 2, "a finite decimal in quotes", '"1_000"', None),
        ("[inner]\nrate = '٣'", 2, "a finite decimal in quotes", '"٣"', None),
        ("[inner]\nrate = true", 2, "a finite decimal in quotes", "true", None),
        ("epsilon = 1.5", 1, "a decimal in quotes", "1.5", 'quote it: "1.5"'),
        ("epsilon = '-1'", 1, "an epsilon of 0 or more", '"-1"', None),
        ("epsilon = '0.0000001'", 1, "an epsilon of at least 1e-6", "0.0000001", "smallest"),
        ("epsilon = '1e10'", 1, "an epsilon of at most 1000000000", "1e10", None),
        ("delta = '1'", 1, "a delta below 1", '"1"', None),
        ("delta = '1e-13'", 1, "a delta of at least 1e-12", "1e-13", None),
        ("unit = 'patient'", 1, "'record', 'subject' or 'holder'", '"patient"', None),
        ("unit = 'subjects'", 1, "'record'", '"subjects"', "did you mean subject?"),
        ("sizes = 3", 1, "a list in square brackets", "3", None),
        ("sizes = [1,\n 'two']", 2, "a whole number", '"two"', None),
        ("names = ['aa', 'bb', 'aa']", 1, "each entry once", '"aa" more than once', "repeats"),
        ("names = ['aa', 'bb', 'cc', 'dd']", 1, "at most 3 in the list", "a list of 4", None),
        ("name = 'A Name'", 1, "lower-case letters", '"A Name"', None),
        ("name = 'aa\\n'", 1, "lower-case letters", "aa", None),
        ('name = "aa\\n"', 1, "lower-case letters", "aa?", None),
        ('title = "red \\u001b[31m"', 1, "printable text", "red ?[31m", None),
        ("when = 2026-01-01T00:00:00", 1, "a time with its zone", "without a zone", "00:00:00Z"),
        ("when = 2026-01-01", 1, "a date and time with zone", "2026-01-01", None),
        ("when = 12:00:00", 1, "a date and time with zone", "12:00:00", None),
        ("when = '2026-01-01T00:00:00Z'", 1, "without quotes", '"2026', None),
        ("when = 2026-01-01T00:00:00.000001Z", 1, "to the millisecond", "00.000001", None),
        ("when = 0001-01-01T00:00:00+14:00", 1, "1970 and 2200", "0001-01-01", None),
        ("digest = 'sha256:ABC'", 1, "64 lower-case hex digits", "ABC", None),
        ("inner = 3", 1, "a table", "3", None),
        ("[[inner]]\ncount = 1", 1, "a table", "a list of 1", None),
        ("[[rows]]\ncount = 1\n[[rows]]\ncount = 'x'", 4, "a whole number", '"x"', None),
        ("name = ", 1, "TOML", "name =", None),
        ("name = 'aa", 1, "TOML", "name = 'aa", "change that line"),
        ("name = \u201caa\u201d", 1, "TOML", "name = \u201caa\u201d", "plain quotes"),
        ("a\x00 = 1", 1, "printable text", "a NUL byte", None),
        ("name = 'a\x07'", 1, "TOML", "name = 'a?'", None),
    ],
)
def test_fault_names_line_expectation_what_came_and_the_mend(text, line, expected, got, next_step):
    error = fault(text)
    assert error.where == f"file.toml:{line}"
    assert expected in (error.expected or "")
    assert got in (error.got or "")
    assert (next_step or "") in (error.next_step or "")
    assert "\x1b" not in str(error)


def test_the_mark_with_which_windows_editors_begin_a_file_is_no_fault(tmp_path):
    (tmp_path / "file.toml").write_bytes(b"\xef\xbb\xbfname = 'aa'\n")
    assert read_toml(tmp_path / "file.toml", Everything).name == "aa"


def test_missing_key_is_named_with_its_table():
    class Needs(StrictDocument):
        class Table(StrictDocument):
            key: int

        table: Table

    error = fault("\n[table]\n", Needs)
    assert error.where == "file.toml:2"
    assert (error.summary, error.expected) == ("table.key is missing", "the key key in [table]")
    error = fault("", Needs)
    assert (error.summary, error.expected, error.got) == ("table is missing", "a table [table]", "nothing")


def test_misspelt_key_is_reported_before_the_key_it_leaves_missing():
    class Needs(StrictDocument):
        max_rounds: int

    error = fault("max_round = 3", Needs)
    assert error.summary == "max_round is not a known key"
    assert "did you mean max_rounds?" in error.next_step
    assert "1 more: line 1, max_rounds is missing" in error.next_step


def test_all_faults_of_a_file_are_listed_at_once():
    error = fault("title = 1\nunit = 'x'\n[inner]\nflag = 'no'")
    assert error.where == "file.toml:1"
    assert "2 more: line 2, unit is not valid; line 4, inner.flag is not valid" in error.next_step


@pytest.mark.parametrize(
    ("written", "micro"),
    [
        ('"1.5"', 1_500_000),
        ("2", 2_000_000),
        ('"0.1234569"', 123_456),
        ('"1e-6"', 1),
        ('"0.99999999999999999999999999999"', 999_999),
        ("0", 0),
    ],
)
def test_epsilon_cap_is_exact_or_rounded_down(written, micro):
    assert parse_toml(f"epsilon = {written}", Everything, source="x").epsilon == micro


def test_delta_cap_is_kept_in_whole_pico():
    assert parse_toml('delta = "1e-5"', Everything, source="x").delta == 10_000_000
    assert parse_toml('delta = "0.9999999999999"', Everything, source="x").delta == 10**12 - 1


@given(st.decimals(min_value=0, max_value=10**6, places=9))
def test_cap_never_exceeds_what_was_written(amount):
    if 0 < amount < Decimal("1e-6"):
        return
    micro = parse_toml(f'epsilon = "{amount:f}"', Everything, source="x").epsilon
    assert 0 <= amount - Decimal(micro) / 10**6 < Decimal("1e-6")


def test_times_are_kept_in_utc_and_sets_are_kept_sorted():
    document = parse_toml("when = 2026-07-01T00:00:00+02:00\nnames = ['bb', 'aa']", Everything, source="x")
    assert document.when.isoformat() == "2026-06-30T22:00:00+00:00"
    assert document.names == ("aa", "bb")


def test_list_keeps_its_order():
    assert parse_toml("sizes = [3, 1, 2]", Everything, source="x").sizes == (3, 1, 2)


def test_document_cannot_be_changed_after_reading():
    document = parse_toml("", Everything, source="x")
    with pytest.raises(ValueError, match="frozen"):
        document.name = "other"


def test_file_that_is_absent_a_directory_too_large_or_not_utf8_is_refused(tmp_path):
    def reading(path):
        with pytest.raises(DocumentInvalid) as caught:
            read_toml(path, Everything)
        return caught.value

    assert reading(tmp_path / "absent.toml").got == "nothing"
    assert reading(tmp_path).got == "a directory"
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    assert reading(large).summary == "too large"
    latin = tmp_path / "latin.toml"
    latin.write_bytes("name = 'aa'\n# Größe".encode("latin-1"))
    assert reading(latin).where == f"{latin}:2"
    assert reading(Path("nul\0byte")).expected in {"a readable file", "a TOML file"}
    assert reading(Path("/dev/zero")).got == "something that is not a file"
    assert reading(tmp_path / ("x" * 5000)).expected in {"a readable file", "a TOML file"}


def test_fifo_is_refused_and_not_waited_for(tmp_path):
    fifo = tmp_path / "pipe.toml"
    os.mkfifo(fifo)
    with pytest.raises(DocumentInvalid, match="not a file"):
        read_toml(fifo, Everything)


@pytest.mark.parametrize(
    "text",
    ["x = " + "[" * 100_000, "[inner]\ncount = " + "9" * 10_000, "when = 2026-02-30T00:00:00Z", "\ufeffname='aa'"],
)
def test_extreme_text_is_refused_as_a_document_fault(text):
    assert fault(text).code == "document-invalid"


def test_byte_order_mark_and_windows_line_ends():
    assert parse_toml("name = 'aa'\r\n[inner]\r\ncount = 2\r\n", Everything, source="x").inner.count == 2
    assert fault("name = 'aa'\r\n[inner]\r\ncount = 'x'\r\n").where == "file.toml:3"


@settings(max_examples=300)
@given(st.text(alphabet="ab=[]{}\"'\n.,#1 \\tTZ:-", max_size=60))
def test_no_text_raises_anything_but_a_document_fault(text):
    try:
        parse_toml(text, Everything, source="file.toml")
    except DocumentInvalid as error:
        line = int(error.where.split(":")[1]) if ":" in error.where else 1
        assert 1 <= line <= text.count("\n") + 1


KEYS = st.sampled_from(["a", "b", "c d", 'q"', "é", "d.e"])
SCALARS = st.sampled_from(
    ["1", "true", "'x'", '"y\\n"', '"""z\n"q" """', "'''w\n'v' '''", "2026-01-01T00:00:00Z", "1.5"]
)


def _quote(key):
    return '"' + key.replace('"', '\\"') + '"'


@st.composite
def toml_with_lines(draw):
    """A TOML text, with the line each of its keys was written on."""
    lines, expected = [], {}
    for index in range(draw(st.integers(0, 4))):
        table = (f"t{index}", *draw(st.lists(KEYS, max_size=1)))
        expected[table] = len("\n".join([*lines, ""]).splitlines()) + 1 if lines else 1
        lines.append("[" + " . ".join(_quote(key) for key in table) + "] # comment")
        for key in draw(st.lists(KEYS, unique=True, max_size=4)):
            line = "\n".join(lines).count("\n") + 2
            expected[*table, key] = line
            kind = draw(st.sampled_from(["scalar", "list", "inline"]))
            values = draw(st.lists(SCALARS, min_size=1, max_size=3))
            if kind == "scalar":
                written = values[0]
            elif kind == "list":
                written, at = "[ # first\n", line + 1
                for position, value in enumerate(values):
                    expected[(*table, key, position)] = at
                    written += value + ",\n"
                    at += value.count("\n") + 1
                written += "]"
            else:
                written = "{k = " + values[0] + "}"
                expected[*table, key, "k"] = line
            lines.append(f"{_quote(key)} = {written}")
    return "\n".join(lines), expected


@settings(max_examples=200)
@given(toml_with_lines())
def test_every_key_is_found_on_the_line_it_was_written_on(case):
    text, expected = case
    tomllib.loads(text)
    found = locate(text)
    assert {path: found.get(path) for path in expected} == expected


def test_reading_a_document_imports_nothing_heavy():
    heavy = {"cedarpy", "torch", "joserfc", "numpy"}
    code = f"import sys, ringfence_policy.policy; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

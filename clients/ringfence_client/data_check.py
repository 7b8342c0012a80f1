"""A quality report on a holder's records against the declared schema: counts for its data officer, never values.

pandera judges every rule of the schema; its findings hold cells of the data, so they are counted here and go no
further. Whether the data fits is in the end `load_dataset`'s answer, the one that every use depends on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import pandera.polars as pa
import polars as pl
from pandera.config import ValidationDepth, config_context
from pandera.errors import SchemaError, SchemaErrorReason, SchemaErrors

from ringfence_client.datasource import as_text, load_dataset, read_table
from ringfence_policy.errors import DataInvalid
from ringfence_policy.schema import BinaryColumn, CategoryColumn, Column, DatasetSchema, LabelRule, NumberColumn

Consequence = Literal[
    "refuses the data", "clipped to the bound", "imputed", "imputed and flagged", "flagged", "a category of its own"
]

_NUMBER: Final = "number"
_BOUNDS: Final = "bounds"
_MEASURED: Final = "measured"
_WORDS: Final = "words"


@dataclass(frozen=True, kw_only=True)
class ColumnReport:
    """What was counted in one declared column.

    Attributes:
        kind: "number", "category", "binary", "label" or "subject".
        is_there: Whether the file has the column; all counts are 0 where it has not.
        missing: Absent values, those included that stand for "not measured".
        wrong_type: Values that are no finite number where a number is declared.
        out_of_bounds: Numbers below or above the declared bounds.
        unknown_words: Values outside the declared vocabulary.
        consequences: What becomes of what was counted, by the name of the count.
    """

    name: str
    kind: str
    is_there: bool
    missing: int = 0
    wrong_type: int = 0
    out_of_bounds: int = 0
    unknown_words: int = 0
    consequences: dict[str, Consequence] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What was counted in a data file. Every number is a fact about the records: for the data officer alone.

    Attributes:
        undeclared_columns: Columns of the file that the schema does not declare. Any refuses the data.
        repeated_rows: Rows that equal another one in every declared column.
        positive, negative: Labels of either kind.
        subjects: Data subjects, where the schema names them.
        subjects_over_bound: Those with more records than the schema lets take part.
        surplus_records: The records that stay out of training for that.
        fits: Whether the data can be used under this schema.
        refusal: Why not, in counts and names of declared columns; "" where it fits.
    """

    rows: int
    columns: tuple[ColumnReport, ...]
    undeclared_columns: int
    repeated_rows: int
    positive: int
    negative: int
    subjects: int | None
    subjects_over_bound: int
    surplus_records: int
    fits: bool
    refusal: str


def check_data(holder_dir: Path, schema: DatasetSchema) -> DataReport:
    """Count what is in a holder's data file, and what of it does not fit the schema.

    Raises:
        DataInvalid: There is not exactly one data file, or it cannot be read. Says nothing of its content.
    """
    table = read_table(holder_dir)
    try:
        return _report(holder_dir, table, schema)
    except DataInvalid:
        raise
    except Exception as error:  # noqa: BLE001 -- whatever pandera or Polars raises may quote a cell of the data
        raise DataInvalid(
            "the data could not be checked",
            expected="a table that every rule of the schema can be put to",
            got=type(error).__name__,
            next_step="is it a plain CSV or Parquet file, with one value in each cell?",
        ) from None


def _report(holder_dir: Path, table: pl.DataFrame, schema: DatasetSchema) -> DataReport:
    declared = schema.column_names()
    texts = pl.DataFrame([as_text(table[name]) for name in declared if name in table.columns])
    found = _findings(texts, schema)
    columns = [_column_report(column.name, column, texts, found) for column in schema.columns]
    columns.append(_label_report(schema.label, texts, found))
    if schema.subject is not None:
        counts = {"missing": found.missing.get(schema.subject.column, 0)}
        columns.append(_of(schema.subject.column, "subject", texts, counts, {"missing": "refuses the data"}))
    positive, negative = _labels(texts, schema.label)
    subjects, over, surplus = _subjects(texts, schema)
    refusal = _refusal(holder_dir, schema)
    return DataReport(
        rows=table.height,
        columns=tuple(columns),
        undeclared_columns=sum(name not in declared for name in table.columns),
        repeated_rows=found.repeated,
        positive=positive,
        negative=negative,
        subjects=subjects,
        subjects_over_bound=over,
        surplus_records=surplus,
        fits=not refusal,
        refusal=refusal,
    )


# --- pandera's part --------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """Counts of failure cases, by column."""

    missing: dict[str, int] = field(default_factory=dict)
    failed: dict[tuple[str, str], int] = field(default_factory=dict)
    repeated: int = 0


def _findings(texts: pl.DataFrame, schema: DatasetSchema) -> _Found:
    found = _Found()
    if not texts.width:
        return found
    rules = pa.DataFrameSchema(
        {name: _rule(name, schema) for name in texts.columns},
        unique=list(texts.columns),
    )
    try:
        # Whatever the environment says of pandera, here it looks at the data.
        with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
            rules.validate(texts, lazy=True)
    except SchemaErrors as errors:
        for error in errors.schema_errors:
            _count(error, found)
    return found


def _count(error: SchemaError, found: _Found) -> None:
    cases = error.failure_cases.height if isinstance(error.failure_cases, pl.DataFrame) else 0
    match error.reason_code:
        case SchemaErrorReason.SERIES_CONTAINS_NULLS:
            found.missing[str(error.schema.name)] = cases
        case SchemaErrorReason.DUPLICATES:
            found.repeated = cases
        case SchemaErrorReason.DATAFRAME_CHECK:
            found.failed[str(error.schema.name), str(error.check.name)] = cases
        case other:
            raise DataInvalid("the data could not be checked", got=f"pandera answered {getattr(other, 'name', other)}")


def _rule(name: str, schema: DatasetSchema) -> pa.Column:
    if name == schema.label.column:
        return pa.Column(pl.String, _label_checks(schema.label), nullable=False)
    for column in schema.columns:
        if column.name == name:
            return pa.Column(pl.String, _checks(column), nullable=False)
    return pa.Column(pl.String, nullable=False)


def _checks(column: Column) -> list[pa.Check]:
    match column:
        case NumberColumn():
            stand_ins = [float(value) for value in column.missing_values]
            low, high = float(column.low), float(column.high)
            number = _as_number()
            is_open = number.is_null() | ~number.is_finite() | number.is_in(stand_ins)
            return [
                _check(_NUMBER, number.is_finite().fill_null(value=False)),
                _check(_BOUNDS, (is_open | number.is_between(low, high)).fill_null(value=True)),
                _check(_MEASURED, ~number.is_in(stand_ins).fill_null(value=False)),
            ]
        case CategoryColumn():
            return [_check(_WORDS, pl.all().is_in(list(column.values)))]
        case BinaryColumn():
            return [_check(_WORDS, pl.all().is_in([column.negative, column.positive]))]


def _label_checks(rule: LabelRule) -> list[pa.Check]:
    if rule.positive_above is not None:
        return [_check(_NUMBER, _as_number().is_finite().fill_null(value=False))]
    return [_check(_WORDS, pl.all().is_in([*rule.positive, *rule.negative]))]


def _as_number() -> pl.Expr:
    return pl.all().cast(pl.Float64, strict=False)


def _check(name: str, holds: pl.Expr) -> pa.Check:
    # Absent values are the nullability's to count, and no other rule's.
    return pa.Check(
        lambda data: data.lazyframe.select(pl.col(data.key)).select(pl.all().is_null() | holds), name=name, error=name
    )


# --- what the counts mean --------------------------------------------------------------------------------------------


def _column_report(name: str, column: Column, texts: pl.DataFrame, found: _Found) -> ColumnReport:
    absent: dict[str, Consequence] = {
        "refuse": "refuses the data",
        "impute": "imputed",
        "impute-and-flag": "imputed and flagged",
        "flag": "flagged",
        "category": "a category of its own",
    }
    counts = {
        "missing": found.missing.get(name, 0) + found.failed.get((name, _MEASURED), 0),
        "wrong_type": found.failed.get((name, _NUMBER), 0),
        "out_of_bounds": found.failed.get((name, _BOUNDS), 0),
        "unknown_words": found.failed.get((name, _WORDS), 0),
    }
    return _of(
        name,
        column.kind,
        texts,
        counts,
        {
            "missing": absent[column.missing],
            "wrong_type": "refuses the data",
            "out_of_bounds": "clipped to the bound",
            "unknown_words": "refuses the data",
        },
    )


def _label_report(rule: LabelRule, texts: pl.DataFrame, found: _Found) -> ColumnReport:
    counts = {
        "missing": found.missing.get(rule.column, 0),
        "wrong_type": found.failed.get((rule.column, _NUMBER), 0),
        "unknown_words": found.failed.get((rule.column, _WORDS), 0),
    }
    return _of(rule.column, "label", texts, counts, dict.fromkeys(counts, "refuses the data"))


def _of(
    name: str, kind: str, texts: pl.DataFrame, counts: dict[str, int], consequences: dict[str, Consequence]
) -> ColumnReport:
    is_there = name in texts.columns
    happened = {what: consequences[what] for what, number in counts.items() if number}
    return ColumnReport(name=name, kind=kind, is_there=is_there, consequences=happened, **counts)


def _labels(texts: pl.DataFrame, rule: LabelRule) -> tuple[int, int]:
    if rule.column not in texts.columns:
        return 0, 0
    labels = texts[rule.column]
    if rule.positive_above is not None:
        numbers = labels.cast(pl.Float64, strict=False)
        numbers = numbers.filter(numbers.is_finite().fill_null(value=False))
        positive = int((numbers > float(rule.positive_above)).sum())
        return positive, numbers.len() - positive
    return _among(labels, rule.positive), _among(labels, rule.negative)


def _among(labels: pl.Series, words: Sequence[str]) -> int:
    return int(labels.is_in(list(words)).fill_null(value=False).sum())


def _subjects(texts: pl.DataFrame, schema: DatasetSchema) -> tuple[int | None, int, int]:
    rule = schema.subject
    if rule is None:
        return None, 0, 0
    if rule.column not in texts.columns:
        return 0, 0, 0
    sizes = texts[rule.column].drop_nulls().value_counts()["count"].cast(pl.Int64)
    over = sizes.filter(sizes > rule.max_records)
    return sizes.len(), over.len(), int((over - rule.max_records).sum())


def _refusal(holder_dir: Path, schema: DatasetSchema) -> str:
    try:
        load_dataset(holder_dir, schema)
    except DataInvalid as refused:
        return refused.got or refused.summary
    return ""

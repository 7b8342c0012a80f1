"""The one door to a holder's records: reads data.csv or data.parquet, checks it against the schema, hands out arrays.

No other module opens holder data. A refusal names the schema's columns and counts rows, and never repeats anything the
file holds: not a value, not a header it should not have (a file without a header line has a record in its place).
"""

import contextlib
import csv
import hashlib
import hmac
import io
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from ringfence_client.features import Float32Array, encode_features, encode_labels
from ringfence_policy.errors import DataInvalid
from ringfence_policy.schema import BinaryColumn, CategoryColumn, Column, DatasetSchema, LabelRule, NumberColumn

DATA_FILES: Final = ("data.csv", "data.parquet")
_WORD_TYPES: Final = (pl.String, pl.Boolean, pl.Null, pl.Categorical, pl.Enum)
_SEPARATOR: Final = "\x1f"
_UNREADABLE: Final = "\x00unreadable"  # schemas allow no control characters in a word


@dataclass(frozen=True, eq=False, repr=False)
class HolderData:
    """One holder's records as a model sees them. Everything here is secret; `repr` shows none of it.

    Attributes:
        features: float32 of shape (rows, features), each within [-1, 1] where a schema made it.
        labels: float32 of shape (rows,), 0 or 1.
        fingerprint: `sha256:<hex>` of the records as a set: their order does not change it, one record does.
        row_digests: One SHA-256 of 32 bytes for each row's own content, whom it is about included.
        subjects: int64 of shape (rows,): which data subject each row is about, numbered from 0 without gaps, rows in
            that order. None where every row is a subject of its own.
        subject_digests: One SHA-256 of 32 bytes for each subject's identifier, by number. What identifies a person is
            not kept, but whoever can guess identifiers can try them on these. Empty where `subjects` is None.
    """

    features: Float32Array
    labels: Float32Array
    fingerprint: str
    row_digests: tuple[bytes, ...]
    subjects: npt.NDArray[np.int64] | None = None
    subject_digests: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return "HolderData(<private>)"

    @property
    def records(self) -> int:
        """How many records there are. Secret: what leaves the holder is a declared number."""
        return len(self.labels)

    @staticmethod
    def from_arrays(
        features: Float32Array, labels: Float32Array, subjects: npt.NDArray[np.int64] | None = None
    ) -> "HolderData":
        """Take arrays as they are, as tests, benchmarks and simulations do.

        Args:
            features: float32 of shape (rows, features), finite.
            labels: float32 of shape (rows,), 0 or 1.
            subjects: int64 of shape (rows,): any numbers, one for each data subject. The rows are put in their order.

        Raises:
            DataInvalid: The shapes do not fit each other, a number is not finite, or a label is neither 0 nor 1.
        """
        features = np.array(features, dtype=np.float32, order="C")
        labels = np.array(labels, dtype=np.float32, order="C")
        if features.ndim != 2 or labels.shape != features.shape[:1]:  # noqa: PLR2004 - a matrix has two dimensions
            raise DataInvalid("features and labels do not fit", expected="shapes (rows, features) and (rows,)")
        if not np.isfinite(features).all() or not np.isin(labels, (0.0, 1.0)).all():
            raise DataInvalid("a record is not usable", expected="finite features, labels 0 or 1")
        rows = np.concatenate([features, labels[:, None]], axis=1)
        if subjects is None:
            return _assemble(features, labels, tuple(hashlib.sha256(row.tobytes()).digest() for row in rows))
        names = tuple(hashlib.sha256(str(number).encode()).digest() for number in np.asarray(subjects).tolist())
        digests = tuple(hashlib.sha256(row.tobytes() + name).digest() for row, name in zip(rows, names, strict=True))
        return _assemble(features, labels, digests, names)

    def split(self, test_fraction: Decimal | float, salt: str) -> tuple["HolderData", "HolderData"]:
        """Part the records into those that train and those that only ever measure.

        Each record's side follows from its own content and the salt, or where records name subjects, from the subject's
        identifier and the salt. Adding or removing one record or one subject therefore moves no other, and the privacy
        claim for one stays a claim about one. Equal records share a side, and so do all records of one subject.

        Args:
            test_fraction: Share expected in the test part, 0 <= share < 1. The true share varies from it.
            salt: Names the split: the same salt always gives the same one.

        Returns:
            The training part and the test part.

        Raises:
            ValueError: The share is out of range.
        """
        if not 0 <= test_fraction < 1:
            raise ValueError("a test fraction is at least 0 and below 1")
        threshold = int(test_fraction * 2**64)
        decisive = self.row_digests if self.subjects is None else self.subject_digests
        is_test = _keyed(decisive, salt) < threshold
        if self.subjects is not None:
            is_test = is_test[self.subjects]
        return self._where(~is_test), self._where(is_test)

    def bounded(self, max_records: int, salt: str) -> "HolderData":
        """At most `max_records` records of each data subject; the others stay out.

        Which ones stay depends on the subject's own records and the salt alone, so that adding or removing a subject
        changes no other subject's part. Under record-level privacy this would not hold: one record more could take
        another one's place.

        Args:
            max_records: The bound, at least 1.
            salt: Names the choice: the same salt always gives the same one.
        """
        if self.subjects is None:
            return self
        order = np.lexsort((_keyed(self.row_digests, salt), self.subjects))
        sizes = np.bincount(self.subjects, minlength=len(self.subject_digests))
        place = np.arange(self.records) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        stays = np.zeros(self.records, dtype=np.bool_)
        stays[order[place < max_records]] = True
        return self._where(stays)

    def _where(self, chosen: npt.NDArray[np.bool_]) -> "HolderData":
        positions = np.flatnonzero(chosen)
        digests = tuple(self.row_digests[position] for position in positions)
        names = None
        if self.subjects is not None:
            names = tuple(self.subject_digests[number] for number in self.subjects[positions])
        return _assemble(self.features[positions], self.labels[positions], digests, names)


def load_dataset(holder_dir: Path, schema: DatasetSchema) -> HolderData:
    """Read a holder's records and check them against the declared schema.

    Args:
        holder_dir: The directory with one of data.csv (UTF-8, a header line, empty fields are absent values) and
            data.parquet.
        schema: What the file must look like. A column it does not declare is refused and not ignored: whoever wrote
            the file believes it to be something else.

    Returns:
        The records, secret.

    Raises:
        DataInvalid: There is not exactly one data file, it cannot be read, or it does not fit the schema. The message
            holds counts and the schema's own column names only.
    """
    path = _data_file(holder_dir)
    frame = _read(path)
    _check_columns(frame, schema, path)
    faults: list[str] = []
    columns = [_checked(frame[column.name], column, faults) for column in schema.columns]
    label = _checked_label(frame[schema.label.column], schema.label, faults)
    subject = None if schema.subject is None else _hashed_subjects(frame[schema.subject.column], faults)
    if faults:
        raise DataInvalid(
            "the data does not fit the declared schema",
            expected="every value as declared",
            got="; ".join(faults),
            where=str(path),
            next_step="mend these columns, or agree on another schema: it is part of the plan",
        )
    checked = pl.DataFrame([*columns, label, *([] if subject is None else [subject])])
    return _assemble(
        encode_features(checked, schema),
        encode_labels(label, schema.label),
        _row_digests(checked),
        None if subject is None else tuple(bytes.fromhex(name) for name in subject),
    )


def data_files(holder_dir: Path) -> list[Path]:
    """The data files that are there: one, or the directory is not ready."""
    return [holder_dir / name for name in DATA_FILES if (holder_dir / name).is_file()]


def read_table(holder_dir: Path) -> pl.DataFrame:
    """The records as they lie in the file, for `data_check`, which counts what does not fit. Secret, every cell.

    Returns:
        One column for each column of the file, whatever the schema says: text out of CSV, typed out of Parquet.

    Raises:
        DataInvalid: There is not exactly one data file, or it cannot be read.
    """
    return _read(_data_file(holder_dir))


def as_text(values: pl.Series) -> pl.Series:
    """A column of the file as the text that its values are read from; null where one is absent. Secret.

    What is neither text, number nor truth value, such as a date in Parquet, comes out as a word that no schema knows.
    """
    if values.dtype in _WORD_TYPES or values.dtype.is_numeric():
        texts = values.cast(pl.String).str.strip_chars()
        return texts.set(texts == "", None)
    return pl.Series(values.name, [None if value is None else _UNREADABLE for value in values], dtype=pl.String)


def _assemble(
    features: Float32Array,
    labels: Float32Array,
    row_digests: tuple[bytes, ...],
    names: tuple[bytes, ...] | None = None,
) -> HolderData:
    """Put records together; `names` is the digest of each row's subject, in the rows' order."""
    subjects, subject_digests = None, tuple(sorted(set(names or ())))
    if names is not None:
        number = {name: position for position, name in enumerate(subject_digests)}
        subjects = np.fromiter((number[name] for name in names), dtype=np.int64, count=len(names))
        order = np.argsort(subjects, kind="stable")
        features, labels, subjects = features[order], labels[order], subjects[order]
        row_digests = tuple(row_digests[position] for position in order)
        subjects.setflags(write=False)
    for array in (features, labels):
        array.setflags(write=False)
    fingerprint = "sha256:" + hashlib.sha256(b"".join(sorted(row_digests))).hexdigest()
    return HolderData(
        features=features,
        labels=labels,
        fingerprint=fingerprint,
        row_digests=row_digests,
        subjects=subjects,
        subject_digests=subject_digests,
    )


def _keyed(digests: Sequence[bytes], salt: str) -> npt.NDArray[np.uint64]:
    """One number below 2**64 for each digest, as good as drawn by lot, and the same for the same salt."""
    key = hashlib.sha256(salt.encode()).digest()
    numbers = (int.from_bytes(hmac.digest(key, digest, "sha256")[:8]) for digest in digests)
    return np.fromiter(numbers, dtype=np.uint64, count=len(digests))


def _data_file(holder_dir: Path) -> Path:
    found = data_files(holder_dir)
    if len(found) != 1:
        raise DataInvalid(
            "a holder has exactly one data file",
            expected=" or ".join(DATA_FILES),
            got="both" if found else "neither",
            where=str(holder_dir),
            next_step="leave one of the two" if found else "put the records there, with the schema's columns",
        )
    return found[0]


def _read(path: Path) -> pl.DataFrame:
    """Read the file as it is: text columns out of CSV, typed ones out of Parquet."""
    frame, got, mend = None, "a file that cannot be opened", "is it there, and may you read it?"
    # The reader's own message may quote a line of the file: it is dropped, with its traceback.
    with contextlib.suppress(OSError, ValueError, csv.Error, pl.exceptions.PolarsError):
        content = path.read_bytes()
        if path.suffix != ".csv":
            got, mend = "no Parquet file", "a CSV file is to be called data.csv"
            frame = pl.read_parquet(io.BytesIO(content))
        else:
            got, mend = "text that is not UTF-8", "save it as CSV in UTF-8"
            text = content.decode("utf-8")
            got, mend = "a quote that is opened and not closed", "close it, or write a quote inside a field twice"
            if line := _crooked_line(text):
                got, mend = f"another number of fields in line {line}", "mend that line, or take it out"
            else:
                frame = pl.read_csv(io.BytesIO(content), infer_schema=False)
    if frame is None:
        raise DataInvalid(
            "the data file cannot be read",
            expected="UTF-8 CSV with a header line and as many fields in every line, or a Parquet file",
            got=got,
            where=str(path),
            next_step=mend,
        )
    return frame


def _crooked_line(text: str) -> int:
    """The first line with other fields in number than the first line has, from 1; 0 where there is none.

    Polars would take a line cut short as absent values.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    width = 0
    for row in reader:
        width = width or len(row)
        if not row or len(row) != width:
            return reader.line_num
    return 0 if width else 1


def _check_columns(frame: pl.DataFrame, schema: DatasetSchema, path: Path) -> None:
    declared = schema.column_names()
    missing = [name for name in declared if name not in frame.columns]
    unknown = sum(name not in declared for name in frame.columns)
    if missing or unknown:
        parts = [f"missing: {', '.join(missing)}"] if missing else []
        parts += [f"{unknown} that the schema does not declare"] if unknown else []
        mend = "name the columns in the first line exactly as the schema does, and leave out all others"
        if frame.width == 1 and any(mark in frame.columns[0] for mark in ";\t"):
            mend = "separate the fields of every line by commas, not by semicolons or tabs"
        raise DataInvalid(
            "the data file has other columns than the schema declares",
            expected=", ".join(declared),
            got="; ".join(parts),
            where=str(path),
            next_step=mend,
        )


def _checked(values: pl.Series, column: Column, faults: list[str]) -> pl.Series:
    match column:
        case NumberColumn():
            checked = _numbers(values, faults)
            if column.missing_values:
                checked = checked.set(checked.is_in([float(value) for value in column.missing_values]), None)
        case CategoryColumn():
            checked = _words(values, column.values, faults)
        case BinaryColumn():
            checked = _words(values, (column.negative, column.positive), faults)
    if column.missing == "refuse" and checked.null_count():
        faults.append(f"{column.name}: {checked.null_count()} absent, and the schema refuses absent values")
    return checked


def _checked_label(values: pl.Series, rule: LabelRule, faults: list[str]) -> pl.Series:
    if rule.positive_above is not None:
        checked = _numbers(values, faults)
    else:
        checked = _words(values, (*rule.positive, *rule.negative), faults)
    if checked.null_count():
        faults.append(f"{rule.column}: {checked.null_count()} without a label")
    return checked


def _hashed_subjects(values: pl.Series, faults: list[str]) -> pl.Series:
    """Read identifiers of data subjects as the SHA-256 of their text, in hex; what is empty is counted as a fault."""
    if not (values.dtype in _WORD_TYPES or values.dtype.is_integer()):
        faults.append(f"{values.name}: not a column of identifiers")
        return pl.Series(values.name, [""] * len(values), dtype=pl.String)
    texts = [(text or "").strip() for text in values.cast(pl.String)]
    if count := texts.count(""):
        faults.append(f"{values.name}: {count} without an identifier")
    return pl.Series(values.name, [hashlib.sha256(text.encode()).hexdigest() for text in texts], dtype=pl.String)


def _numbers(values: pl.Series, faults: list[str]) -> pl.Series:
    """Read a column as float64; what is not a finite number is counted as a fault."""
    if values.dtype == pl.String:
        stripped = values.str.strip_chars()
        values = stripped.set(stripped == "", None)
    elif not (values.dtype.is_numeric() or values.dtype == pl.Null):
        faults.append(f"{values.name}: not a column of numbers")
        return pl.Series(values.name, [0.0] * len(values), dtype=pl.Float64)
    numbers = values.cast(pl.Float64, strict=False)
    # In numpy: Polars plans a query for each step on a series, which for a few hundred rows is nearly all of the time.
    finite = np.isfinite(numbers.to_numpy())  # an absent value becomes NaN, which is not
    if count := len(values) - values.null_count() - int(np.count_nonzero(finite)):
        faults.append(f"{values.name}: {count} not finite numbers")
    # Adding zero makes -0.0 the 0.0 it equals, so that equal records have equal digests.
    return numbers + 0.0


def _words(values: pl.Series, vocabulary: Sequence[str], faults: list[str]) -> pl.Series:
    """Read a column as words of the vocabulary; what is none of them is counted as a fault."""
    if not (values.dtype in _WORD_TYPES or values.dtype.is_integer()):
        faults.append(f"{values.name}: not a column of words")
        return pl.Series(values.name, [vocabulary[0]] * len(values), dtype=pl.String)
    words = values.cast(pl.String).str.strip_chars()
    words = words.set(words == "", None)
    wrong = words.is_not_null() & ~words.is_in(list(vocabulary))
    if count := int(wrong.fill_null(value=False).sum()):
        faults.append(f"{values.name}: {count} outside the declared values")
    return words


def _row_digests(checked: pl.DataFrame) -> tuple[bytes, ...]:
    """Name each row by its own content: names and values in the names' order, absent values empty.

    The order of the schema's columns says nothing about a record, and may not move it to another side of the split.
    """
    pairs = [
        pl.concat_str([pl.lit(name), pl.col(name).cast(pl.String).fill_null("")], separator="=")
        for name in sorted(checked.columns)
    ]
    texts = checked.select(pl.concat_str(pairs, separator=_SEPARATOR)).to_series()
    return tuple(hashlib.sha256(text.encode()).digest() for text in texts)

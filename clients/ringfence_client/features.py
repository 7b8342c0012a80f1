"""From checked columns to the numbers a model sees, by the declared schema alone.

Nothing is fitted: bounds, vocabularies and stand-ins are the schema's, so this costs no privacy, treats every record
without looking at any other, and is the same at every data holder.
"""

from decimal import Decimal

import numpy as np
import numpy.typing as npt
import polars as pl

from ringfence_policy.schema import BinaryColumn, CategoryColumn, Column, DatasetSchema, LabelRule, NumberColumn

Float32Array = npt.NDArray[np.float32]


def encode_features(frame: pl.DataFrame, schema: DatasetSchema) -> Float32Array:
    """Turn checked columns into model inputs.

    Args:
        frame: One float64 or text column per schema column, null where absent, already checked against the schema.
            Secret.
        schema: The declared schema.

    Returns:
        float32 of shape (rows, features) in the order of `schema.feature_names()`, each within [-1, 1]. Secret.
    """
    columns = [_encode(frame[column.name], column) for column in schema.columns]
    return np.ascontiguousarray(np.concatenate(columns, axis=1), dtype=np.float32)


def encode_labels(column: pl.Series, rule: LabelRule) -> Float32Array:
    """Turn the checked label column into 0 and 1.

    Returns:
        float32 of shape (rows,). Secret.
    """
    positive = column > float(rule.positive_above) if rule.positive_above is not None else column.is_in(rule.positive)
    return positive.to_numpy().astype(np.float32)


def _encode(values: pl.Series, column: Column) -> Float32Array:
    match column:
        case NumberColumn():
            return _encode_number(values, column)
        case CategoryColumn():
            return _encode_category(values, column)
        case BinaryColumn():
            return _encode_binary(values, column)


def _encode_number(values: pl.Series, column: NumberColumn) -> Float32Array:
    low, high = float(column.low), float(column.high)
    numbers = values.to_numpy()  # an absent value becomes NaN, and no other value is one
    absent = np.isnan(numbers)
    stand_in = column.impute if column.impute is not None else Decimal(0)
    clipped = np.clip(np.where(absent, float(stand_in), numbers), low, high)
    scaled = 2.0 * (clipped - low) / (high - low) - 1.0
    parts = [scaled, absent] if column.missing == "impute-and-flag" else [scaled]
    return np.stack(parts, axis=1).astype(np.float32)


def _encode_category(values: pl.Series, column: CategoryColumn) -> Float32Array:
    parts = [values.eq_missing(value).to_numpy() for value in column.indicated()]
    if column.missing == "category":
        parts.append(values.is_null().to_numpy())
    return np.stack(parts, axis=1).astype(np.float32)


def _encode_binary(values: pl.Series, column: BinaryColumn) -> Float32Array:
    positive = values.eq_missing(column.positive).to_numpy().astype(np.float32)
    negative = values.eq_missing(column.negative).to_numpy().astype(np.float32)
    parts = [(positive - negative) / 2]
    if column.missing == "flag":
        parts.append(values.is_null().to_numpy().astype(np.float32))
    return np.stack(parts, axis=1)

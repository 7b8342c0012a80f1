"""The declared shape of a dataset: columns, bounds, vocabularies and the label, from which all preprocessing follows.

Nothing here is learned from data. Bounds, categories and the constants that stand in for missing values are declared
before any record is read, so preprocessing costs no privacy and is the same at every data holder.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from ringfence_policy import canonical
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.strict_toml import DecimalString, ListOf, SetOf, StrictDocument, refusal

ColumnName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]
CategoryValue = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$")]

# The category that stands for an absent value. A schema may not use the word for a value of its own.
MISSING = "missing"


class NumberColumn(StrictDocument):
    """A number with declared bounds: clipped to them, then mapped linearly to [-1, 1].

    Attributes:
        low: Lower bound, in the column's own unit.
        high: Upper bound, above `low`.
        missing_values: Numbers that stand for "not measured", such as a cholesterol of 0.
        missing: What an absent value means: `refuse` the data, `impute` the declared constant, or `impute-and-flag`,
            which adds a feature that is 1 exactly where the value was absent.
        impute: The declared constant, within the bounds. Given exactly when `missing` is not `refuse`.
    """

    name: ColumnName
    kind: Literal["number"]
    description: str = Field(default="", max_length=300)
    low: DecimalString
    high: DecimalString
    missing_values: SetOf[DecimalString] = ()
    missing: Literal["refuse", "impute", "impute-and-flag"] = "refuse"
    impute: DecimalString | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.low >= self.high:
            raise refusal("a lower bound below the upper one", key="low", got=f"{self.low} and {self.high}")
        if (self.missing == "refuse") != (self.impute is None):
            raise refusal("a constant to impute exactly when missing is not 'refuse'", key="missing", got=self.missing)
        if self.impute is not None and not self.low <= self.impute <= self.high:
            raise refusal(f"a constant from {self.low} to {self.high}", key="impute", got=str(self.impute))
        return self

    def feature_names(self) -> tuple[str, ...]:
        """The features this column becomes: its value, and perhaps a flag for its absence."""
        return (self.name, f"{self.name}={MISSING}") if self.missing == "impute-and-flag" else (self.name,)


class CategoryColumn(StrictDocument):
    """A value out of a declared vocabulary, one feature of 0 or 1 for each.

    Attributes:
        values: The vocabulary, in the order of the features. A value outside it refuses the data.
        reference: The value the others are compared with: it gets no feature of its own, and so no noise.
        missing: What an absent value means: `refuse` the data, or be a `category` of its own.
    """

    name: ColumnName
    kind: Literal["category"]
    description: str = Field(default="", max_length=300)
    values: Annotated[ListOf[CategoryValue], Field(min_length=2, max_length=1000)]
    reference: CategoryValue | None = None
    missing: Literal["refuse", "category"] = "refuse"

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        _refuse_repeats("values", self.values)
        if MISSING in self.values:
            raise refusal(
                "values without the word that stands for an absent one",
                key="values",
                got=f'"{MISSING}"',
                hint='leave it out and set missing = "category"',
            )
        if self.reference is not None and self.reference not in self.values:
            raise refusal("one of the values", key="reference", got=f'"{self.reference}"')
        return self

    def indicated(self) -> tuple[str, ...]:
        """The values that get a feature of their own."""
        return tuple(value for value in self.values if value != self.reference)

    def feature_names(self) -> tuple[str, ...]:
        """The features this column becomes: one for each indicated value, and perhaps one for its absence."""
        values = (*self.indicated(), MISSING) if self.missing == "category" else self.indicated()
        return tuple(f"{self.name}={value}" for value in values)


class BinaryColumn(StrictDocument):
    """One of two declared values: a feature of -1/2 or 1/2, as wide as a category's and centred on the absent value.

    Attributes:
        negative: The value that becomes -1/2.
        positive: The value that becomes 1/2.
        missing: What an absent value means: `refuse` the data, or `flag`, which makes the feature 0 and adds a feature
            that is 1 exactly where the value was absent.
    """

    name: ColumnName
    kind: Literal["binary"]
    description: str = Field(default="", max_length=300)
    negative: CategoryValue
    positive: CategoryValue
    missing: Literal["refuse", "flag"] = "refuse"

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.negative == self.positive:
            raise refusal("two different values", key="negative", got=f'"{self.negative}" twice')
        return self

    def feature_names(self) -> tuple[str, ...]:
        """The features this column becomes: its value, and perhaps a flag for its absence."""
        value = f"{self.name}={self.positive}"
        return (value, f"{self.name}={MISSING}") if self.missing == "flag" else (value,)


Column = Annotated[NumberColumn | CategoryColumn | BinaryColumn, Field(discriminator="kind")]


class LabelRule(StrictDocument):
    """Which records are positive. An absent or undeclared label refuses the data.

    Attributes:
        column: The column that holds the label. It is never a feature.
        positive_above: The label is a number, positive where it is above this one.
        positive: The label is a word, positive where it is one of these.
        negative: The label is a word, negative where it is one of these.
    """

    column: ColumnName
    description: str = Field(default="", max_length=300)
    positive_above: DecimalString | None = None
    positive: SetOf[CategoryValue] = ()
    negative: SetOf[CategoryValue] = ()

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.positive_above is not None:
            if self.positive or self.negative:
                raise refusal("either positive_above, or positive and negative", key="positive_above")
        elif not (self.positive and self.negative):
            raise refusal("positive_above for a number, or both positive and negative for words")
        _refuse_repeats("positive and negative", (*self.positive, *self.negative))
        return self


class SubjectRule(StrictDocument):
    """Whom a record is about. Records with the same identifier are one data subject's, and are protected together.

    Attributes:
        column: The column that holds the subject's identifier, text of any kind. It is never a feature, and an absent
            identifier refuses the data. Two spellings are two subjects.
        max_records: At most so many records of one subject take part in a training that protects subjects. A subject
            that has more is not refused: which of its records take part depends on its own records alone.
    """

    column: ColumnName
    description: str = Field(default="", max_length=300)
    max_records: int = Field(ge=1, le=10**6)


class DatasetSchema(StrictDocument):
    """schema.toml: what every data holder's file must look like, and what the model will see of it.

    Part of the signed training plan: a holder that approves a plan knows which columns are used, and how.
    """

    title: str = Field(min_length=3, max_length=200)
    subject: SubjectRule | None = None
    label: LabelRule
    columns: Annotated[ListOf[Column], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _refuse_repeats("column names", self.column_names())
        _refuse_repeats("feature names", self.feature_names())
        return self

    def column_names(self) -> tuple[str, ...]:
        """Every column a file must have: the features' in their order, the label's and, if named, the subject's."""
        subject = () if self.subject is None else (self.subject.column,)
        return (*(column.name for column in self.columns), self.label.column, *subject)

    def feature_names(self) -> tuple[str, ...]:
        """The model's inputs, in order."""
        return tuple(name for column in self.columns for name in column.feature_names())

    @property
    def feature_count(self) -> int:
        """How many inputs the model has."""
        return len(self.feature_names())

    @cached_property
    def digest(self) -> str:
        """The schema's name."""
        return canonical.digest(self.to_document())

    def to_document(self) -> dict[str, Any]:
        """The schema as canonical JSON carries it: numbers are decimal strings, absent members are left out."""
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Rebuild a schema that was signed as part of a plan.

        Raises:
            DocumentInvalid: The document is not a schema of this version.
        """
        try:
            return cls.model_validate_json(canonical.encode(dict(document)))
        except (ValidationError, TypeError, ValueError) as error:
            raise DocumentInvalid("not a dataset schema", expected="title, label, columns", where="schema") from error


def _refuse_repeats(what: str, values: Sequence[str]) -> None:
    repeated = sorted(value for value, count in Counter(values).items() if count > 1)
    if repeated:
        raise refusal(f"{what} that differ from each other", got=f"{', '.join(repeated)} more than once")

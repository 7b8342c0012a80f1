"""A data holder's usage policy: the TOML a data officer writes, and the flat frozen value everything else reads."""

import difflib
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ringfence_policy import canonical
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.identity import parse
from ringfence_policy.strict_toml import (
    Choice,
    Count,
    Digest,
    Identifier,
    MicroEpsilon,
    Moment,
    PicoDelta,
    SetOf,
    StrictDocument,
    Text,
    parse_toml,
    read_toml,
    refusal,
)
from ringfence_policy.vocabulary import (
    PURPOSES,
    Evaluation,
    OnRevoke,
    Rehearsal,
    ReleaseTier,
    ReleaseTo,
    Sandbox,
    SecureAggregation,
    SubjectRecords,
    Unit,
    ancestors,
)

FORMAT_VERSION: Final = 1
EVERYTHING: Final = ("*",)
BUILT_IN: Final = "built-in"
# Left out of the signed document: policies that were signed before there was a choice say the same, by the same digest.
UNSAID: Final[Mapping[str, StrEnum]] = {
    "sandbox": Sandbox.REQUIRED,
    "subject_records": SubjectRecords.TOGETHER,
}


def _known_purpose(value: str) -> str:
    if value not in PURPOSES:
        close = difflib.get_close_matches(value, PURPOSES, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`ringfence policy purposes` lists them"
        raise refusal("a purpose of the vocabulary", hint=hint)
    return value


def _region(value: str) -> str:
    country, _, part = value.partition("-")
    if not (country.isascii() and country.isalpha() and country.isupper() and len(country) == 2) or (  # noqa: PLR2004
        "-" in value and not (part.isascii() and part.isalnum() and part.isupper() and len(part) <= 3)  # noqa: PLR2004
    ):
        raise refusal('a region as two capitals, such as "CH" or "EU", or with its part, such as "US-CA"')
    return value


def _star_as_set(value: object) -> object:
    return EVERYTHING if value == "*" else value


def _star_alone(value: tuple[str, ...]) -> tuple[str, ...]:
    if "*" in value and value != EVERYTHING:
        raise refusal('either "*" for all or a list of names', got='"*" beside names')
    return value


def _code_name(value: str) -> str:
    is_digest = value.startswith("sha256:") and len(value) == 71 and set(value[7:]) <= set("0123456789abcdef")  # noqa: PLR2004
    if value != BUILT_IN and not is_digest:
        raise refusal('"built-in" or the digest of a code file: "sha256:" and 64 lower-case hex digits')
    return value


PurposeId = Annotated[Identifier, AfterValidator(_known_purpose)]
Region = Annotated[str, AfterValidator(_region)]
CodeName = Annotated[str, AfterValidator(_code_name)]
Some = Field(min_length=1, max_length=1000)
TaskName = Annotated[str, AfterValidator(lambda name: name if name == "*" else _identifier(name))]
Tasks = Annotated[SetOf[TaskName], Some, BeforeValidator(_star_as_set), AfterValidator(_star_alone)]
Columns = Annotated[SetOf[Text], Some, BeforeValidator(_star_as_set), AfterValidator(_star_alone)]


def _identifier(name: str) -> str:
    checks: tuple[Any, ...] = Identifier.__metadata__  # type: ignore[attr-defined]
    result: str = checks[0].func(name)
    return result


class PolicyHead(StrictDocument):
    """`[policy]`: which policy this is and which dataset it governs."""

    policy_id: Identifier = Field(alias="id")
    version: Annotated[int, Field(ge=1, le=10**9)]
    holder_id: Identifier = Field(alias="holder")
    dataset_id: Identifier = Field(alias="dataset")


class People(StrictDocument):
    """`[people]`: who may use the data."""

    permitted_coordinators: Annotated[SetOf[Identifier], Some] = Field(alias="who")
    prohibited: SetOf[Identifier] = Field(default=(), alias="never")

    @model_validator(mode="after")
    def _nobody_is_both(self) -> Self:
        for name in self.permitted_coordinators:
            if name in self.prohibited:
                raise refusal("each name in one of the two lists", key="never", got=f"{name} in who and in never")
        return self


class Projects(StrictDocument):
    """`[projects]`: what the data may be used for, when and how often."""

    purposes: Annotated[SetOf[PurposeId], Some]
    not_purposes: SetOf[PurposeId] = ()
    tasks: Tasks
    plans: Annotated[SetOf[Digest], Some] | None = None
    code: Annotated[SetOf[CodeName], Some] = (BUILT_IN,)
    not_before: Moment
    not_after: Moment
    max_rounds: Annotated[int, Field(ge=1, le=10**6)]

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.not_before >= self.not_after:
            raise refusal("a not_after later than not_before", key="not_after", got=self.not_after.isoformat())
        for purpose in self.purposes:
            for excluded in self.not_purposes:
                if excluded in ancestors(purpose):
                    raise refusal(
                        "no permitted purpose inside an excluded one",
                        key="not_purposes",
                        got=f"{purpose} permitted, {excluded} excluded",
                    )
        return self


class Settings(StrictDocument):
    """`[settings]`: where and in what company the data is used."""

    regions: Annotated[SetOf[Region], Some]
    min_holders: Annotated[int, Field(ge=1, le=10**4)]
    secure_aggregation: Choice[SecureAggregation]
    sandbox: Choice[Sandbox] = Sandbox.REQUIRED


class Data(StrictDocument):
    """`[data]`: which part of the data, and how much of it there must be."""

    columns: Columns
    min_records: Annotated[int, Field(ge=1, le=10**9)]
    rehearsal: Choice[Rehearsal]


class Privacy(StrictDocument):
    """`[privacy]`: how much may be learned about any one record or person."""

    unit: Choice[Unit]
    subject_records: Choice[SubjectRecords] = SubjectRecords.TOGETHER
    epsilon_micro: MicroEpsilon = Field(alias="epsilon")
    delta_pico: PicoDelta = Field(alias="delta")
    per_round_epsilon_micro: MicroEpsilon | None = Field(default=None, alias="per_round_epsilon")
    evaluation: Choice[Evaluation]


class Outputs(StrictDocument):
    """`[outputs]`: what becomes of updates and of the model."""

    retention_days: Annotated[int, Field(ge=0, le=36500)]
    release_to: Choice[ReleaseTo]
    release_tier: Choice[ReleaseTier]
    on_revoke: Choice[OnRevoke]


TABLES: Final[Mapping[str, type[StrictDocument]]] = {
    "policy": PolicyHead,
    "people": People,
    "projects": Projects,
    "settings": Settings,
    "data": Data,
    "privacy": Privacy,
    "outputs": Outputs,
}


class PolicyFile(StrictDocument):
    """A policy as the data officer writes it, table by table."""

    policy: PolicyHead
    people: People
    projects: Projects
    settings: Settings
    data: Data
    privacy: Privacy
    outputs: Outputs


class UsagePolicy(PolicyHead, People, Projects, Settings, Data, Privacy, Outputs):
    """A data holder's terms for one dataset, flat and frozen. Public to whoever is shown the policy.

    Amounts are whole numbers here: `epsilon_micro` in 1e-6, `delta_pico` in 1e-12. `("*",)` stands for all tasks or
    all columns. `plans` None means any plan. Times are UTC.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=False)

    epsilon_micro: Count
    delta_pico: Annotated[int, Field(ge=0, lt=10**12)]
    per_round_epsilon_micro: Count | None = None

    @property
    def reference(self) -> str:
        """The policy's name with its version: `id@version`."""
        return f"{self.policy_id}@{self.version}"

    @cached_property
    def digest(self) -> str:
        """The SHA-256 name of the signed document, as `sha256:<hex>`."""
        return canonical.digest(self.to_document())

    def to_document(self) -> dict[str, Any]:
        """The policy as the document its holder signs: strings, integers and lists only; absent clauses left out."""
        document: dict[str, Any] = {"v": FORMAT_VERSION}
        for table, keys in document_keys().items():
            values = {key: getattr(self, attribute) for key, attribute in keys.items()}
            said = {key: value for key, value in values.items() if value is not None and value != UNSAID.get(key)}
            document[table] = {key: _plain(value) for key, value in said.items()}
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read a policy back from its document.

        Raises:
            DocumentInvalid: The document is of another format version, has an unknown or missing member, a value of
                the wrong type, or says the same in other than its one form (an unsorted list, a time with an offset).
        """
        if document.get("v") != FORMAT_VERSION or isinstance(document.get("v"), bool):
            raise DocumentInvalid(
                "not a policy document", expected=f"v = {FORMAT_VERSION}", got=repr(document.get("v"))
            )
        known = document_keys()
        values: dict[str, Any] = {}
        for table, content in document.items():
            if table == "v":
                continue
            if table not in known or not isinstance(content, Mapping):
                raise DocumentInvalid("not a policy document", expected=f"one of {', '.join(known)}", got=str(table))
            for key, value in content.items():
                if key not in known[table]:
                    raise DocumentInvalid(
                        "not a policy document", expected=f"one of {', '.join(known[table])}", got=f"{table}.{key}"
                    )
                values[known[table][key]] = _moment_from(value) if key in {"not_before", "not_after"} else value
        try:
            policy = cls.model_validate(values)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            where = ".".join(str(step) for step in detail["loc"])
            raise DocumentInvalid(
                "not a policy document", where=where or None, expected=detail["msg"], got=str(detail["type"])
            ) from error
        if policy.to_document() != dict(document):
            raise DocumentInvalid(
                "not a policy document", expected="its one form", got="another form of the same policy"
            )
        return policy


def read_policy(path: Path) -> UsagePolicy:
    """Read the policy file at `path`.

    Raises:
        DocumentInvalid: With file, line, what was expected, what stands there, and how to mend it.
    """
    return _flat(read_toml(path, PolicyFile))


@lru_cache(maxsize=4096)
def policy_in(token: str) -> UsagePolicy:
    """The policy in a signed token, read once per process. Whoever asks has verified the token (`TrustStore`).

    Raises:
        DocumentInvalid: It is not a policy of this version.
        TrustRefused: The token has no readable payload.
    """
    return UsagePolicy.from_document(parse(token).claimed())


def parse_policy(text: str, *, source: str = "policy") -> UsagePolicy:
    """Read a policy from TOML `text`; `source` is the name shown in errors.

    Raises:
        DocumentInvalid: As for `read_policy`.
    """
    return _flat(parse_toml(text, PolicyFile, source=source))


def toml_keys() -> dict[str, dict[str, str]]:
    """For each table of the TOML form, each key and the attribute of `UsagePolicy` it sets."""
    return {
        table: {field.alias or name: name for name, field in model.model_fields.items()}
        for table, model in TABLES.items()
    }


def document_keys() -> dict[str, dict[str, str]]:
    """As `toml_keys`, for the signed document, where amounts are named for their unit."""
    amounts = {"epsilon_micro", "delta_pico", "per_round_epsilon_micro"}
    return {
        table: {name if name in amounts else key: name for key, name in keys.items()}
        for table, keys in toml_keys().items()
    }


def rfc3339(moment: datetime) -> str:
    """An aware time as `2026-11-21T08:00:00.000Z`: UTC, to the millisecond (rounded down)."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _flat(file: PolicyFile) -> UsagePolicy:
    values: dict[str, Any] = {}
    for table in TABLES:
        values |= dict(getattr(file, table))
    return UsagePolicy.model_validate(values)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


def _moment_from(value: object) -> object:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return value

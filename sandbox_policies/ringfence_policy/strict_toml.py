"""The strict border through which every TOML file enters: one fault, one line, and how to mend it.

Policies, plans, schemas and holder files are read here and nowhere else. What TOML would let pass and a reader might
take differently is refused: unknown keys, wrong types, times without a zone, fractions that were not quoted (a float
is not the number that was written), repeated entries in a set. The standard library's parser refuses repeated keys.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Context, Decimal
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.toml_lines import locate

LIMIT_BYTES: Final = 1 << 20
LARGEST: Final = 10**15  # largest integer in any document: sums of a few stay far inside 64 bits and inside RFC 8785
EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)

_EXACT: Final = Context(prec=120)
_DECIMAL: Final = re.compile(r"[+-]?\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,2})?", re.ASCII)
_IDENTIFIER: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,63}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_TYPOGRAPHIC: Final = re.compile("[\u2018-\u201f\u00ab\u00bb]")  # what word processors make of quotes
_SHOWN: Final = 60

T = TypeVar("T")
M = TypeVar("M", bound="StrictDocument")


class StrictDocument(BaseModel):
    """A document a person writes: every key known, every type exact, nothing changed after reading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        str_max_length=4096,
        allow_inf_nan=False,
        validate_default=True,
        defer_build=True,  # a command that reads no document pays for no schema
    )


@dataclass(frozen=True)
class UnquotedFloat:
    """A TOML float as it was written. No field takes it, so that no fraction is ever rounded on its way in."""

    text: str


def refusal(
    expected: str, *, hint: str | None = None, key: str | None = None, got: str | None = None
) -> PydanticCustomError:
    """A validator's refusal, in the words the reader will see.

    Args:
        expected: What should stand there.
        hint: What to do next, or None.
        key: For checks over a whole table, the key whose line is meant.
        got: What stands there, where the input itself would not tell.
    """
    return PydanticCustomError("refusal", "{expected}", {"expected": expected, "hint": hint, "key": key, "got": got})


def read_toml(path: Path, model: type[M]) -> M:
    """Read the file at `path` as a `model`.

    Raises:
        DocumentInvalid: The file cannot be read, is not TOML, or does not say what `model` asks for. The error names
            file and line, what was expected, what stands there and how to mend it; further faults are listed after
            the first.
    """
    source = str(path)
    try:
        if not path.is_file():
            raise _no_file(path)
        with path.open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or type(error).__name__
        raise DocumentInvalid("cannot be read", where=source, expected="a readable file", got=got) from error
    if len(data) > LIMIT_BYTES:
        raise DocumentInvalid("too large", where=source, expected=f"at most {LIMIT_BYTES} bytes", got="more")
    try:
        text = data.decode("utf-8-sig")  # Windows' editors begin a file with a mark that says nothing
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentInvalid(
            "not text",
            where=f"{source}:{line}",
            expected="UTF-8",
            got=f"byte 0x{data[error.start]:02x}",
            next_step="save the file as UTF-8",
        ) from error
    return parse_toml(text, model, source=source)


def parse_toml(text: str, model: type[M], *, source: str) -> M:
    """Read TOML `text` as a `model`; `source` is the name shown in errors.

    Raises:
        DocumentInvalid: As for `read_toml`.
    """
    if len(text.encode("utf-8", "surrogatepass")) > LIMIT_BYTES:
        raise DocumentInvalid("too large", where=source, expected=f"at most {LIMIT_BYTES} bytes", got="more")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DocumentInvalid("not text", where=f"{source}:{line}", expected="printable text", got="a NUL byte")
    try:
        values = tomllib.loads(text, parse_float=UnquotedFloat)
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(error, text, source) from error
    except (RecursionError, ValueError) as error:  # ValueError: an integer of thousands of digits, an impossible date
        raise DocumentInvalid(
            "cannot be read", where=source, expected="TOML of ordinary depth and numbers", got=_short(str(error))
        ) from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _as_one(error, text, model, source) from error


# --- types for documents ---------------------------------------------------------------------------------------------


def _decimal(value: object) -> Decimal:
    if isinstance(value, Decimal) and value.is_finite():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if isinstance(value, UnquotedFloat):
        raise refusal("a decimal in quotes", hint=f'quote it: "{value.text}"')
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return Decimal(value)
    raise refusal('a finite decimal in quotes, such as "0.5" or "1e-5"')


def _scaled(value: object, *, digits: int, what: str) -> int:
    """The largest integer of 10**-digits that is not above `value`: a cap is never rounded up."""
    number = _decimal(value)
    if number < 0:
        raise refusal(f"{what} of 0 or more")
    scaled = int(number.scaleb(digits, _EXACT).to_integral_value(ROUND_FLOOR, _EXACT))
    if scaled > LARGEST:
        raise refusal(f"{what} of at most {LARGEST // 10**digits}")
    if number > 0 and scaled == 0:
        raise refusal(f"{what} of at least 1e-{digits}", hint=f'the smallest step is "1e-{digits}"')
    return scaled


def _micro_epsilon(value: object) -> int:
    return _scaled(value, digits=6, what="an epsilon")


def _pico_delta(value: object) -> int:
    scaled = _scaled(value, digits=12, what="a delta")
    if scaled >= 10**12:
        raise refusal("a delta below 1")
    return scaled


def _moment(value: object) -> datetime:
    if not isinstance(value, datetime):
        raise refusal("a date and time with zone, without quotes, such as 2026-12-31T23:59:00+01:00")
    if value.tzinfo is None:
        raise refusal("a time with its zone", hint=f"add the zone: {value.isoformat()}Z or {value.isoformat()}+01:00")
    if value.microsecond % 1000:
        raise refusal("a time to the millisecond at most")
    if not EARLIEST <= value < LATEST:
        raise refusal("a time between the years 1970 and 2200")
    return value.astimezone(UTC)


def _matching(pattern: re.Pattern[str], expected: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise refusal(expected)
        return value

    return check


def _printable(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise refusal("printable text without spaces at the ends")
    return value


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _as_members(value: object) -> object:
    return tuple(value) if isinstance(value, list | set | frozenset) else value


def _sorted_set(value: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = sorted({item for item in value if value.count(item) > 1})
    if repeated:
        raise refusal("each entry once", got=f"{_shown(repeated[0])} more than once", hint="leave out the repeats")
    return tuple(sorted(value))


DecimalString = Annotated[Decimal, BeforeValidator(_decimal)]
"""A quoted decimal or an integer, kept exact."""

MicroEpsilon = Annotated[int, BeforeValidator(_micro_epsilon)]
"""An epsilon cap as written, kept as whole micro-epsilon, rounded down."""

PicoDelta = Annotated[int, BeforeValidator(_pico_delta)]
"""A delta cap as written, kept as whole pico-delta, rounded down; below 1."""

Moment = Annotated[datetime, BeforeValidator(_moment)]
"""A TOML date-time with zone, kept in UTC to the millisecond."""

Identifier = Annotated[
    str,
    AfterValidator(
        _matching(
            _IDENTIFIER,
            "2 to 64 lower-case letters, digits, dots, hyphens or underscores, starting with a letter or digit",
        )
    ),
]
"""A name that files, URLs and Cedar all take as it is."""

Digest = Annotated[str, AfterValidator(_matching(_DIGEST, 'a digest: "sha256:" and 64 lower-case hex digits'))]
"""The SHA-256 name of some bytes."""

Text = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
"""One line of printable text."""

Count = Annotated[int, Field(ge=0, le=LARGEST)]
"""A whole number from 0 to 10**15."""

Choice = Annotated[T, Field(strict=False)]
"""`Choice[SomeStrEnum]`: one word of a closed list."""

ListOf = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]
"""`ListOf[X]`: a list whose order means something."""

SetOf = Annotated[tuple[T, ...], BeforeValidator(_as_members), AfterValidator(_sorted_set)]
"""`SetOf[X]`: a list whose order means nothing: kept sorted, a repeated entry refused."""


# --- faults in words -------------------------------------------------------------------------------------------------

_EXPECTED: Final[Mapping[str, str]] = {
    "string_type": "text in quotes",
    "int_type": "a whole number without quotes",
    "int_from_float": "a whole number without quotes",
    "bool_type": "true or false",
    "tuple_type": "a list in square brackets",
    "list_type": "a list in square brackets",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "greater_than_equal": "a number of {ge} or more",
    "greater_than": "a number above {gt}",
    "less_than_equal": "a number of {le} or less",
    "less_than": "a number below {lt}",
    "too_short": "at least {min_length} in the list",
    "too_long": "at most {max_length} in the list",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "refusal": "{expected}",
}


@dataclass(frozen=True, order=True)
class _Finding:
    line: int
    summary: str
    expected: str
    got: str
    hint: str | None = None


def _as_one(error: ValidationError, text: str, model: type[StrictDocument], source: str) -> DocumentInvalid:
    lines = locate(text)
    # A misspelt key is also a missing one: tell the reader about the spelling first.
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] == "missing")
    findings = [_finding(detail, lines, model) for detail in details]
    first, others = findings[0], findings[1:]
    steps = [first.hint or "change that line"]
    if others:
        steps.append(f"{len(others)} more: " + "; ".join(f"line {other.line}, {other.summary}" for other in others[:9]))
    return DocumentInvalid(
        first.summary,
        where=f"{source}:{first.line}",
        expected=first.expected,
        got=first.got,
        next_step=" ".join(step if step.endswith("?") else f"{step}." for step in steps).removesuffix("."),
    )


def _finding(detail: ErrorDetails, lines: Mapping[tuple[str | int, ...], int], model: type[BaseModel]) -> _Finding:
    path, alternatives = _without_tags(tuple(detail["loc"]), model)
    kind, context = detail["type"], dict(detail.get("ctx") or {})
    if context.get("key"):
        path = (*path, str(context["key"]))
    line = next((lines[path[:size]] for size in range(len(path), -1, -1) if path[:size] in lines), 1)
    name = _dotted(path)
    table = f"[{_dotted(path[:-1])}]" if path[:-1] else "the file"
    known = alternatives or _keys(model, path[:-1])
    if kind == "missing":
        summary = f"{name} is missing"
        expected = f"a table [{name}]" if _keys(model, path) else f"the key {path[-1]} in {table}"
        return _Finding(line, summary, expected, "nothing", f"add {path[-1]} to {table}")
    if kind == "extra_forbidden":
        key = str(path[-1])
        hint = _other_table(key, model, cutoff=1.0) or _did_you_mean(key, known) or _other_table(key, model)
        return _Finding(line, f"{name} is not a known key", _one_of(known), str(path[-1]), hint)
    template = _EXPECTED.get(kind)
    expected = template.format(**context) if template else detail["msg"]
    value = detail["input"]
    hint = context.get("hint") if isinstance(context.get("hint"), str) else None
    if hint is None and isinstance(value, UnquotedFloat):
        hint = f'quote it: "{value.text}"' if kind == "refusal" else "write a whole number"
    if hint is None and kind in {"enum", "literal_error"} and isinstance(value, str):
        hint = _did_you_mean(value, re.findall(r"'([^']*)'", str(context.get("expected", ""))))
    return _Finding(
        line, f"{name or 'the file'} is not valid", expected, str(context.get("got") or _shown(value)), hint
    )


def _without_tags(loc: tuple[str | int, ...], model: type[BaseModel]) -> tuple[tuple[str | int, ...], list[str] | None]:
    """A fault's place in the document, and the keys allowed there where the table is one of several by its `kind`.

    Where a list holds tables of several kinds, pydantic puts the kind into the place; it is no key of the document.
    """
    path: list[str | int] = []
    here: list[type[BaseModel]] = [model]
    alternatives: list[str] | None = None
    for step in loc:
        tagged = [one for one in here if len(here) > 1 and step in _literals(one)]
        if tagged:
            here = tagged
            alternatives = [field.alias or name for name, field in tagged[0].model_fields.items()]
            continue
        if isinstance(step, str):
            fields = [field for one in here for n, field in one.model_fields.items() if (field.alias or n) == step]
            here = [found for field in fields for found in _models(field.annotation)]
        path.append(step)
    return tuple(path), alternatives


def _literals(model: type[BaseModel]) -> tuple[object, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind is not None else ()


def _keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The keys allowed at `path` of a document, empty where no table stands there."""
    here: type[BaseModel] | None = model
    for step in path:
        if here is None:
            return []
        if isinstance(step, str):
            field = next((f for n, f in here.model_fields.items() if (f.alias or n) == step), None)
            here = next(_models(field.annotation), None) if field else None
    return [field.alias or name for name, field in here.model_fields.items()] if here else []


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _did_you_mean(word: str, known: list[str]) -> str | None:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else None


def _other_table(key: str, model: type[BaseModel], *, cutoff: float = 0.6) -> str | None:
    for name, field in model.model_fields.items():
        for table in _models(field.annotation):
            keys = [inner.alias or inner_name for inner_name, inner in table.model_fields.items()]
            for close in difflib.get_close_matches(key, keys, n=1, cutoff=cutoff):
                return f"did you mean {close} in [{field.alias or name}]?"
    return None


def _not_toml(error: tomllib.TOMLDecodeError, text: str, source: str) -> DocumentInvalid:
    found = re.search(r"\(at line (\d+), column \d+\)", str(error))
    line = int(found.group(1)) if found else text.count("\n") + 1
    rows = text.splitlines()
    row = rows[line - 1].strip() if line <= len(rows) else ""
    if "overwrite" in str(error) or "twice" in str(error) or "Duplicate" in str(error):
        return DocumentInvalid(
            "written twice",
            where=f"{source}:{line}",
            expected="each key and each table once",
            got=_short(row),
            next_step="keep one of the two",
        )
    reason = str(error).split(" (at ")[0]
    mend = 'write plain quotes, like "this"' if _TYPOGRAPHIC.search(row) else "change that line"
    return DocumentInvalid(
        f"not TOML: {reason}",
        where=f"{source}:{line}",
        expected="TOML",
        got=_short(row) or "the end",
        next_step=mend,
    )


def _no_file(path: Path) -> DocumentInvalid:
    if path.is_dir():
        return DocumentInvalid(
            "not a file", where=str(path), expected="a TOML file", got="a directory", next_step="name a file in it"
        )
    got = "something that is not a file" if path.exists() else "nothing"
    return DocumentInvalid(
        "no such file",
        where=str(path),
        expected="a TOML file",
        got=got,
        next_step="look at the name and the directory; docs/files.md says which files there are",
    )


def _one_of(words: list[str]) -> str:
    return "one of " + ", ".join(words) if words else "no key here"


def _dotted(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{step + 1}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _shown(value: object) -> str:
    match value:
        case UnquotedFloat(text):
            words = f"{_short(text)}, a fraction without quotes"
        case datetime():
            words = value.isoformat() + ("" if value.tzinfo else ", without a zone")
        case bool():
            words = str(value).lower()
        case str():
            words = f'"{_short(value)}"'
        case dict():
            words = "a table"
        case list() | tuple():
            words = f"a list of {len(value)}" if value else "an empty list"
        case _:
            words = _short(str(value))
    return words


def _short(text: str) -> str:
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= _SHOWN else clean[: _SHOWN - 1] + "…"

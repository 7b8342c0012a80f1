"""Exchange a policy as ODRL, in the flat form of the Dataspace Protocol 2025-1, exactly and in both directions.

Ringfence's profile adds terms under `rf:` for what ODRL has no word for. Reading refuses whatever it does not know:
a constraint that is dropped is a rule that no longer holds.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NoReturn

from ringfence_policy.clauses import CLAUSES
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.policy import FORMAT_VERSION, UNSAID, UsagePolicy, document_keys, rfc3339
from ringfence_policy.vocabulary import ORDERED, PURPOSES, Evaluation, ReleaseTier, ReleaseTo, Unit

PROFILE: Final = "urn:ringfence:odrl:1"
CONTEXT: Final = ["https://w3id.org/dspace/2025/1/context.jsonld", {"rf": PROFILE + "#"}]
ACTION: Final = "rf:learn"
DELETE_UPDATES: Final = "rf:deleteUpdates"
LIMIT_CHARACTERS: Final = 1 << 20

_PURPOSE_BY_IRI: Final = {purpose.source_iri: purpose.id for purpose in PURPOSES.values()}
_INTEGER: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_DAYS: Final = re.compile(r"P(0|[1-9][0-9]{0,5})D")
_POLICY_URN: Final = re.compile(r"urn:ringfence:policy:([a-z0-9._-]+):([1-9][0-9]{0,9})")


def export_odrl(policy: UsagePolicy, *, assignee: str | None = None, at: datetime | None = None) -> dict[str, Any]:
    """The policy as an ODRL Offer, or as the Agreement with one organisation.

    Args:
        policy: The terms.
        assignee: The organisation an Agreement is made with, one of those the policy permits; None for an Offer.
        at: When the Agreement was made; only with `assignee`.

    Raises:
        DocumentInvalid: The policy does not permit `assignee`, or only one of `assignee` and `at` is given.
    """
    if (assignee is None) != (at is None):
        raise DocumentInvalid("an agreement has a date and a partner", expected="both or neither", got="one of them")
    if assignee is not None and assignee not in policy.permitted_coordinators:
        permitted = ", ".join(policy.permitted_coordinators)
        raise DocumentInvalid("no agreement without a permission", expected=f"one of {permitted}", got=assignee)
    document: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "Offer" if assignee is None else "Agreement",
        "@id": f"urn:ringfence:policy:{policy.policy_id}:{policy.version}",
        "profile": PROFILE,
        "conflict": "prohibit",
        "assigner": f"urn:ringfence:holder:{policy.holder_id}",
        "target": f"urn:ringfence:dataset:{policy.dataset_id}",
    }
    if assignee is not None and at is not None:
        document["assignee"] = f"urn:ringfence:organisation:{assignee}"
        document["timestamp"] = rfc3339(at)
    constraints = [_constraint(form, value) for form in _PERMISSION if (value := form.read(policy)) is not None]
    duty = {"action": DELETE_UPDATES, "constraint": [_constraint(_RETENTION, policy.retention_days)]}
    document["permission"] = [{"action": ACTION, "constraint": constraints, "duty": [duty]}]
    prohibitions = [
        {"action": ACTION, "constraint": [_constraint(form, value)]}
        for form in _PROHIBITION
        if (value := form.read(policy))
    ]
    if prohibitions:
        document["prohibition"] = prohibitions
    return document


def load_odrl(text: str, *, source: str = "ODRL") -> UsagePolicy:
    """Read a policy from the JSON text of an Offer or Agreement.

    Raises:
        DocumentInvalid: The text is not strict JSON (repeated keys are refused), or `import_odrl` refuses it.
    """
    if len(text) > LIMIT_CHARACTERS:
        raise DocumentInvalid("too large", where=source, expected=f"at most {LIMIT_CHARACTERS} characters", got="more")
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise DocumentInvalid("not JSON", where=f"{source}:{error.lineno}", expected="JSON", got=error.msg) from error
    except (ValueError, RecursionError) as error:
        raise DocumentInvalid("not JSON", where=source, expected="strict JSON", got=str(error)[:80]) from error
    return import_odrl(document, source=source)


def import_odrl(document: object, *, source: str = "ODRL") -> UsagePolicy:
    """Read a policy from an Offer or Agreement of Ringfence's profile.

    Constraints may come in any order. Anything unknown, repeated, missing or of another form is refused, never
    dropped: terms, operators, keys, logical constraints, remedies, consequences, other contexts and conflict rules.

    Raises:
        DocumentInvalid: With what was expected and what stands there.
    """
    reader = _Reader(source)
    top = reader.members(document, "the policy", required=_REQUIRED, optional={"assignee", "timestamp", "prohibition"})
    reader.same(top["@context"], CONTEXT, "@context")
    reader.same(top["profile"], PROFILE, "profile")
    reader.same(top["conflict"], "prohibit", "conflict")
    values = reader.permission(top["permission"])
    for key in ("never", "not_purposes"):
        values.setdefault(key, [])
    if "prohibition" in top:
        reader.prohibitions(top["prohibition"], values)
    name = _POLICY_URN.fullmatch(str(top["@id"]))
    if name is None:
        reader.refuse("@id", "urn:ringfence:policy:<id>:<version>", top["@id"])
    values |= {
        "id": name.group(1),
        "version": int(name.group(2)),
        "holder": reader.urn(top["assigner"], "holder"),
        "dataset": reader.urn(top["target"], "dataset"),
    }
    reader.parties(top, values)
    groups: dict[str, Any] = {
        table: {key: values[key] for key in keys if key in values and values[key] != UNSAID.get(key)}
        for table, keys in document_keys().items()
    }
    try:
        policy = UsagePolicy.from_document({"v": FORMAT_VERSION, **groups})
    except DocumentInvalid as error:
        reader.refuse(error.where or "the policy", error.expected or "a valid policy", error.got or error.summary)
    return policy


# --- how each clause is written --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """One constraint: its clause, how the policy's value is written as a right operand, and how that is read."""

    clause: str
    key: str
    attribute: str
    write: Callable[[Any], Any]
    parse: Callable[[Any], Any]
    is_required: bool = True

    @property
    def terms(self) -> tuple[str, str]:
        """Left operand and operator, from the clause table."""
        left, operator = CLAUSES[self.clause].odrl.rsplit(": ", maxsplit=1)[-1].split(" ")[-2:]
        return left, operator

    def read(self, policy: UsagePolicy) -> Any:
        return getattr(policy, self.attribute)


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("a list of texts")
    if len(set(value)) != len(value):
        raise ValueError("each entry once")
    return sorted(value)


def _typed(kind: str) -> Callable[[Any], str]:
    def content(value: Any) -> str:
        if not isinstance(value, dict) or set(value) != {"@value", "@type"} or value["@type"] != f"xsd:{kind}":
            raise TypeError(f'{{"@value": ..., "@type": "xsd:{kind}"}}')
        if not isinstance(value["@value"], str):
            raise TypeError("the value as text")
        return value["@value"]

    return content


def _integer(value: Any) -> int:
    text = _typed("integer")(value)
    if not _INTEGER.fullmatch(text):
        raise ValueError("a whole number in plain digits")
    return int(text)


def _days(value: Any) -> int:
    found = _DAYS.fullmatch(_typed("duration")(value))
    if found is None:
        raise ValueError("whole days, such as P30D")
    return int(found.group(1))


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("one word")
    return value


def _iris(value: Any) -> list[str]:
    unknown = [iri for iri in _names(value) if iri not in _PURPOSE_BY_IRI]
    if unknown:
        raise ValueError(f"purposes of the vocabulary, which {unknown[0]} is not")
    return sorted(_PURPOSE_BY_IRI[iri] for iri in value)


def _prefixed(kind: str) -> tuple[Callable[[Any], list[str]], Callable[[Any], list[str]]]:
    prefix = f"urn:ringfence:{kind}:"

    def parse(value: Any) -> list[str]:
        if not all(name.startswith(prefix) for name in _names(value)):
            raise ValueError(f"names that begin with {prefix}")
        return sorted(name.removeprefix(prefix) for name in value)

    return lambda names: [prefix + name for name in names], parse


def _whole(clause: str, key: str, attribute: str, *, is_required: bool = True) -> _Form:
    return _Form(
        clause, key, attribute, lambda amount: {"@value": str(amount), "@type": "xsd:integer"}, _integer, is_required
    )


def _moment(clause: str, attribute: str) -> _Form:
    return _Form(
        clause,
        clause,
        attribute,
        lambda moment: {"@value": rfc3339(moment), "@type": "xsd:dateTime"},
        _typed("dateTime"),
    )


def _set(clause: str, key: str, attribute: str, *, is_required: bool = True) -> _Form:
    return _Form(clause, key, attribute, list, _names, is_required)


def _one(clause: str, key: str, attribute: str) -> _Form:
    return _Form(clause, key, attribute, lambda word: word.value, _word)


def _range(clause: str, kind: type[StrEnum], *, is_upward: bool) -> _Form:
    """An ordered word, written out as all the words it covers: other readers need not know the order."""
    order = [word.value for word in ORDERED[kind]]

    def covered(word: str) -> list[str]:
        position = order.index(word)
        return order[position:] if is_upward else order[: position + 1]

    def parse(value: Any) -> str:
        for word in order:
            if sorted(covered(word)) == _names(value):
                return word
        raise ValueError("an unbroken range of " + ", ".join(order))

    return _Form(clause, clause, clause, lambda word: covered(word.value), parse)


_ORGANISATIONS: Final = _prefixed("organisation")
_REGIONS: Final = _prefixed("region")

_PERMISSION: Final[tuple[_Form, ...]] = (
    _Form("who", "who", "permitted_coordinators", *_ORGANISATIONS),
    _Form("purposes", "purposes", "purposes", lambda ids: [PURPOSES[one].source_iri for one in ids], _iris),
    _set("tasks", "tasks", "tasks"),
    _set("plans", "plans", "plans", is_required=False),
    _set("code", "code", "code"),
    _moment("not_before", "not_before"),
    _moment("not_after", "not_after"),
    _whole("max_rounds", "max_rounds", "max_rounds"),
    _Form("regions", "regions", "regions", *_REGIONS),
    _whole("min_holders", "min_holders", "min_holders"),
    _one("secure_aggregation", "secure_aggregation", "secure_aggregation"),
    _Form("sandbox", "sandbox", "sandbox", lambda word: word.value, _word, is_required=False),
    _set("columns", "columns", "columns"),
    _whole("min_records", "min_records", "min_records"),
    _one("rehearsal", "rehearsal", "rehearsal"),
    _range("unit", Unit, is_upward=True),
    _Form("subject_records", "subject_records", "subject_records", lambda word: word.value, _word, is_required=False),
    _whole("epsilon", "epsilon_micro", "epsilon_micro"),
    _whole("delta", "delta_pico", "delta_pico"),
    _whole("per_round_epsilon", "per_round_epsilon_micro", "per_round_epsilon_micro", is_required=False),
    _range("evaluation", Evaluation, is_upward=False),
    _range("release_to", ReleaseTo, is_upward=False),
    _range("release_tier", ReleaseTier, is_upward=True),
    _one("revoked", "on_revoke", "on_revoke"),
)
_PROHIBITION: Final[tuple[_Form, ...]] = (
    _Form("never", "never", "prohibited", *_ORGANISATIONS),
    _Form("not_purposes", "not_purposes", "not_purposes", lambda ids: [PURPOSES[one].source_iri for one in ids], _iris),
)
_RETENTION: Final = _Form(
    "retention_days",
    "retention_days",
    "retention_days",
    lambda days: {"@value": f"P{days}D", "@type": "xsd:duration"},
    _days,
)
_REQUIRED: Final = frozenset({"@context", "@type", "@id", "profile", "conflict", "assigner", "target", "permission"})


def _constraint(form: _Form, value: Any) -> dict[str, Any]:
    left, operator = form.terms
    return {"leftOperand": left, "operator": operator, "rightOperand": form.write(value)}


# --- reading ---------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads one document strictly; every refusal names the source and the place in it."""

    def __init__(self, source: str) -> None:
        self.source = source

    def refuse(self, place: str, expected: str, got: object) -> NoReturn:
        shown = got if isinstance(got, str) else json.dumps(got, default=str, sort_keys=True)
        raise DocumentInvalid(
            f"{place} is not supported", where=self.source, expected=expected, got=shown[:120] or '""'
        )

    def same(self, value: object, expected: object, place: str) -> None:
        if value != expected:
            self.refuse(place, json.dumps(expected), value)

    def members(
        self, value: object, place: str, *, required: frozenset[str], optional: set[str] | None = None
    ) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.refuse(place, "an object", value)
        unknown = sorted(value.keys() - required - (optional or set()))
        if unknown:
            self.refuse(
                f"{place}: {unknown[0]}", "one of " + ", ".join(sorted(required | (optional or set()))), unknown[0]
            )
        missing = sorted(required - value.keys())
        if missing:
            self.refuse(place, missing[0], "nothing")
        return value

    def items(self, value: object, place: str, *, count: int | None = None) -> list[Any]:
        if not isinstance(value, list) or (count is not None and len(value) != count):
            self.refuse(place, "a list" if count is None else f"a list of {count}", value)
        return value

    def urn(self, value: object, kind: str) -> str:
        prefix = f"urn:ringfence:{kind}:"
        if not isinstance(value, str) or not value.startswith(prefix):
            self.refuse(kind, prefix + "<id>", value)
        return value.removeprefix(prefix)

    def permission(self, value: object) -> dict[str, Any]:
        rule = self.members(
            self.items(value, "permission", count=1)[0],
            "permission",
            required=frozenset({"action", "constraint", "duty"}),
        )
        self.same(rule["action"], ACTION, "permission: action")
        values = self.constraints(rule["constraint"], _PERMISSION)
        for form in _PERMISSION:
            if form.is_required and form.key not in values:
                self.refuse("permission", "the constraint " + " ".join(form.terms), "nothing")
        duty = self.members(
            self.items(rule["duty"], "duty", count=1)[0], "duty", required=frozenset({"action", "constraint"})
        )
        self.same(duty["action"], DELETE_UPDATES, "duty: action")
        return values | self.constraints(self.items(duty["constraint"], "duty", count=1), (_RETENTION,))

    def prohibitions(self, value: object, values: dict[str, Any]) -> None:
        seen: set[str] = set()
        for item in self.items(value, "prohibition") or self.refuse(
            "prohibition", "at least one, or none named", value
        ):
            rule = self.members(item, "prohibition", required=frozenset({"action", "constraint"}))
            self.same(rule["action"], ACTION, "prohibition: action")
            found = self.constraints(self.items(rule["constraint"], "prohibition", count=1), _PROHIBITION)
            if seen & found.keys() or not all(found.values()):
                self.refuse("prohibition", "each kind once, and not empty", rule["constraint"])
            seen |= found.keys()
            values.update(found)

    def constraints(self, value: object, forms: tuple[_Form, ...]) -> dict[str, Any]:
        known = {form.terms: form for form in forms}
        found: dict[str, Any] = {}
        for item in self.items(value, "constraint"):
            atom = self.members(item, "constraint", required=frozenset({"leftOperand", "operator", "rightOperand"}))
            terms = (atom["leftOperand"], atom["operator"])
            form = known.get(terms) if all(isinstance(term, str) for term in terms) else None
            if form is None:
                self.refuse(
                    "constraint", "one of " + "; ".join(" ".join(one) for one in known), " ".join(map(str, terms))
                )
            if form.key in found:
                self.refuse("constraint", "each term once", " ".join(terms))
            try:
                found[form.key] = form.parse(atom["rightOperand"])
            except (TypeError, ValueError) as error:
                self.refuse("constraint " + " ".join(terms), str(error), atom["rightOperand"])
        return found

    def parties(self, top: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """An Offer names no partner; an Agreement names one that the permission covers, and a date."""
        if top["@type"] == "Offer":
            if top.keys() & {"assignee", "timestamp"}:
                self.refuse("an offer", "no assignee and no timestamp", "one of them")
            return
        self.same(top["@type"], "Agreement", "@type")
        if self.urn(top.get("assignee"), "organisation") not in values["who"]:
            self.refuse("assignee", "a coordinator the permission names", top.get("assignee"))
        try:
            is_moment = rfc3339(datetime.fromisoformat(str(top.get("timestamp")))) == top.get("timestamp")
        except ValueError:
            is_moment = False
        if not is_moment:
            self.refuse("timestamp", "a time such as 2026-11-21T08:00:00.000Z", top.get("timestamp"))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key is written twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

import copy
import json
from datetime import UTC, datetime

import pytest

from ringfence_policy.clauses import CLAUSES
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.odrl import export_odrl, import_odrl, load_odrl

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)


def test_offer_and_agreement_read_back_to_the_same_policy(random_uses):
    uses = random_uses(31)
    for _ in range(150):
        policy = uses.policy()
        offer = json.loads(json.dumps(export_odrl(policy)))
        assert import_odrl(offer) == policy
        assert export_odrl(import_odrl(offer)) == offer
        agreement = export_odrl(policy, assignee=policy.permitted_coordinators[0], at=NOW)
        assert load_odrl(json.dumps(agreement)) == policy


def test_an_exchanged_policy_says_whether_a_sandbox_is_required_and_requires_one_where_it_does_not(make_policy):
    required, free = make_policy(), make_policy(sandbox="not-required")
    for policy in (required, free):
        document = export_odrl(policy)
        assert _named(document, "rf:sandbox")["rightOperand"] == policy.sandbox.value
        assert import_odrl(document) == policy
        _constraints(document).remove(_named(document, "rf:sandbox"))
        assert import_odrl(document) == required
    document = export_odrl(free)
    _named(document, "rf:sandbox")["rightOperand"] = "somewhat"
    with pytest.raises(DocumentInvalid):
        import_odrl(document)


def test_order_of_constraints_does_not_matter(make_policy):
    document = export_odrl(make_policy())
    document["permission"][0]["constraint"].reverse()
    document["prohibition"].reverse()
    assert import_odrl(document) == make_policy()


def test_every_clause_is_exchanged_under_the_term_of_the_clause_table(make_policy):
    document = json.dumps(export_odrl(make_policy()))
    for clause in CLAUSES.values():
        for term in clause.odrl.split(": ")[-1].replace(" within ", " ").split():
            assert clause.id in ("status", "suspended") or f'"{term}"' in document, (clause.id, term)


def _check_flat_form(policy):
    """The Dataspace Protocol 2025-1's demands on an Offer in a message, and on an Agreement, in our own words.

    From its contract schema: `@id` and `@type`; a permission or prohibition, each a list with at least one entry; an
    action is a plain string; a constraint is left operand and operator as strings and a right operand that is a
    string, object or list, or a logical constraint; operators from a closed list; an Agreement names one target,
    assigner and assignee as strings.
    """
    operators = {"eq", "gt", "gteq", "lteq", "hasPart", "isA", "isAllOf", "isAnyOf", "isNoneOf", "isPartOf", "lt"}
    assert isinstance(policy["@id"], str)
    assert isinstance(policy["profile"], str)
    assert isinstance(policy["target"], str)
    assert policy["@type"] in {"Offer", "Agreement"}
    if policy["@type"] == "Agreement":
        assert all(isinstance(policy[name], str) for name in ("assigner", "assignee", "timestamp"))
    rules = policy.get("permission", []) + policy.get("prohibition", [])
    assert rules
    assert all(policy.get(kind) != [] for kind in ("permission", "prohibition"))
    for rule in rules:
        for part in [rule, *rule.get("duty", [])]:
            assert isinstance(part["action"], str)
            for constraint in part["constraint"]:
                assert set(constraint) == {"leftOperand", "operator", "rightOperand"}
                assert isinstance(constraint["leftOperand"], str)
                assert constraint["operator"] in operators
                assert isinstance(constraint["rightOperand"], str | dict | list)


def test_export_keeps_the_flat_form_of_the_dataspace_protocol(random_uses):
    uses = random_uses(32)
    for _ in range(40):
        policy = uses.policy()
        _check_flat_form(export_odrl(policy))
        _check_flat_form(export_odrl(policy, assignee=policy.permitted_coordinators[-1], at=NOW))


def _constraints(document):
    return document["permission"][0]["constraint"]


def _named(document, left):
    return next(one for one in _constraints(document) if one["leftOperand"] == left)


def _set(path, value):
    def change(document):
        here = document
        for step in path[:-1]:
            here = here[step]
        here[path[-1]] = value

    return change


def _operand(left, value):
    return lambda document: _named(document, left).update(rightOperand=value)


REFUSED = {
    "an unknown operand": lambda d: _constraints(d).append(
        {"leftOperand": "fileFormat", "operator": "eq", "rightOperand": "x"}
    ),
    "another operator": lambda d: _named(d, "spatial").update(operator="isNoneOf"),
    "a refinement": lambda d: _named(d, "purpose").update(refinement=[]),
    "a unit": lambda d: _named(d, "count").update(unit="x"),
    "a logical constraint": lambda d: _constraints(d).append({"or": [{}]}),
    "a repeated constraint": lambda d: _constraints(d).append(copy.deepcopy(_constraints(d)[0])),
    "a missing constraint": lambda d: _constraints(d).remove(_named(d, "rf:epsilonMicro")),
    "a remedy": lambda d: d["prohibition"][0].update(remedy=[]),
    "a consequence": lambda d: d["permission"][0]["duty"][0].update(consequence=[]),
    "an obligation": _set(["obligation"], []),
    "inheritance": _set(["inheritFrom"], "urn:x"),
    "a second permission": lambda d: d["permission"].append(copy.deepcopy(d["permission"][0])),
    "no permission": _set(["permission"], []),
    "no duty": _set(["permission", 0, "duty"], []),
    "a second duty": lambda d: d["permission"][0]["duty"].append(copy.deepcopy(d["permission"][0]["duty"][0])),
    "another action": _set(["permission", 0, "action"], "use"),
    "a nested action": _set(["permission", 0, "action"], [{"rdf:value": {"@id": "rf:learn"}}]),
    "a target of its own": _set(["permission", 0, "target"], "urn:x"),
    "conflict perm": _set(["conflict"], "perm"),
    "no conflict rule": lambda d: d.pop("conflict"),
    "another profile": _set(["profile"], "urn:other"),
    "another context": _set(["@context"], ["https://w3id.org/dspace/2025/1/context.jsonld", {"rf": "urn:other#"}]),
    "another type": _set(["@type"], "Set"),
    "an offer with a partner": _set(["assignee"], "urn:ringfence:organisation:heart-consortium"),
    "another kind of id": _set(["@id"], "urn:uuid:1"),
    "a version zero": _set(["@id"], "urn:ringfence:policy:cleveland-heart:0"),
    "another holder urn": _set(["assigner"], "https://example.org/holder"),
    "a purpose of another vocabulary": _operand("purpose", ["http://purl.obolibrary.org/obo/DUO_0000024"]),
    "a number that is not text": _operand("count", 12),
    "a number with a sign": _operand("count", {"@value": "+12", "@type": "xsd:integer"}),
    "a number with zeros": _operand("count", {"@value": "012", "@type": "xsd:integer"}),
    "a number of another script": _operand("count", {"@value": "١٢", "@type": "xsd:integer"}),
    "a float": _operand("count", {"@value": "12.0", "@type": "xsd:decimal"}),
    "a number out of bounds": _operand("rf:epsilonMicro", {"@value": "9" * 16, "@type": "xsd:integer"}),
    "a time with an offset": _operand("dateTime", {"@value": "2026-01-01T01:00:00.000+01:00", "@type": "xsd:dateTime"}),
    "a broken range": _operand("rf:releaseTo", ["none", "participants"]),
    "a range from the wrong end": _operand("rf:unit", ["record", "subject"]),
    "a repeated name": _operand("rf:task", ["heart-disease-risk", "heart-disease-risk"]),
    "an empty list": _operand("rf:task", []),
    "a name with a newline": _operand("rf:task", ["heart-disease-risk\n"]),
    "a word of another list": _operand("rf:onRevoke", "later"),
    "months instead of days": lambda d: d["permission"][0]["duty"][0]["constraint"][0].update(
        rightOperand={"@value": "P1M", "@type": "xsd:duration"}
    ),
    "an empty prohibition": lambda d: d["prohibition"][0]["constraint"][0].update(rightOperand=[]),
    "a prohibition twice": lambda d: d["prohibition"].append(copy.deepcopy(d["prohibition"][0])),
    "a prohibition of something else": lambda d: d["prohibition"][0].update(action="use"),
    "a contradiction": lambda d: d["prohibition"][0]["constraint"][0].update(
        rightOperand=["urn:ringfence:organisation:heart-consortium"]
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_and_never_dropped(make_policy, name):
    document = export_odrl(make_policy())
    changed = copy.deepcopy(document)
    REFUSED[name](changed)
    assert changed != document
    with pytest.raises(DocumentInvalid) as caught:
        import_odrl(changed, source="offer.json")
    assert caught.value.where == "offer.json"
    assert caught.value.expected


@pytest.mark.parametrize("value", [None, 3, [], "x", {}, [{}]])
def test_anything_but_a_policy_object_is_refused(make_policy, value):
    with pytest.raises(DocumentInvalid):
        import_odrl(value)
    document = export_odrl(make_policy())
    for key in document:
        with pytest.raises(DocumentInvalid):
            import_odrl(document | {key: value})


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1, "a": 2}', "NaN", '{"a": NaN}', "[" * 100_000, "\ufeff{}", "x" * ((1 << 20) + 1)]
)
def test_text_that_is_not_strict_json_is_refused(text):
    with pytest.raises(DocumentInvalid):
        load_odrl(text, source="offer.json")


def test_agreement_is_made_only_with_who_is_permitted(make_policy):
    with pytest.raises(DocumentInvalid, match="no agreement without a permission"):
        export_odrl(make_policy(), assignee="insurer-one", at=NOW)
    with pytest.raises(DocumentInvalid, match="both or neither"):
        export_odrl(make_policy(), assignee="heart-consortium")
    agreement = export_odrl(make_policy(), assignee="heart-consortium", at=NOW)
    for key, value in (
        ("assignee", "urn:ringfence:organisation:insurer-one"),
        ("assignee", ["urn:ringfence:organisation:heart-consortium"]),
        ("timestamp", "2026-11-21T08:00:00Z"),
        ("timestamp", "yesterday"),
        ("timestamp", 5),
    ):
        with pytest.raises(DocumentInvalid):
            import_odrl(agreement | {key: value})
    for key in ("assignee", "timestamp"):
        with pytest.raises(DocumentInvalid):
            import_odrl({name: part for name, part in agreement.items() if name != key})

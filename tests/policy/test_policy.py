import copy
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence_policy import canonical
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.policy import UsagePolicy, parse_policy, read_policy, toml_keys
from ringfence_policy.policy_text import to_toml
from ringfence_policy.vocabulary import ORDERED, PURPOSES, Sandbox, SubjectRecords, Unit, ancestors, rank


def fault(text):
    with pytest.raises(DocumentInvalid) as caught:
        parse_policy(text, source="policy.toml")
    return caught.value


def test_policy_is_read_flat_with_whole_amounts(policy_toml, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(policy_toml)
    policy = read_policy(path)
    assert policy == parse_policy(policy_toml)
    assert (policy.reference, policy.holder_id, policy.dataset_id) == (
        "cleveland-heart@1",
        "cleveland",
        "cleveland-heart-2026",
    )
    assert (policy.epsilon_micro, policy.delta_pico, policy.per_round_epsilon_micro) == (1_500_000, 10_000_000, 300_000)
    assert policy.not_after == datetime(2026, 12, 31, 23, tzinfo=UTC)
    assert policy.regions == ("CH", "EU")
    assert policy.unit is Unit.SUBJECT


def test_what_a_policy_leaves_out_about_subjects_is_read_as_the_stricter_word(policy_toml):
    line = 'subject_records = "together"\n'
    assert parse_policy(policy_toml.replace(line, "")) == parse_policy(policy_toml)
    assert "subject_records" not in parse_policy(policy_toml).to_document()["privacy"]  # as signed before it was a key
    apart = parse_policy(policy_toml.replace(line, 'subject_records = "apart"\n'))
    assert apart.subject_records is SubjectRecords.APART
    assert apart.to_document()["privacy"]["subject_records"] == "apart"


def test_a_policy_that_says_nothing_of_a_sandbox_requires_one(policy_toml):
    line = 'sandbox = "required"\n'
    silent = parse_policy(policy_toml.replace(line, ""))
    assert silent.sandbox is Sandbox.REQUIRED
    assert silent.digest == parse_policy(policy_toml).digest
    assert "sandbox" not in silent.to_document()["settings"]  # as signed before it was a key
    without = parse_policy(policy_toml.replace(line, 'sandbox = "not-required"\n'))
    assert without.to_document()["settings"]["sandbox"] == "not-required"
    assert without.digest != silent.digest


OPTIONAL = {"never", "not_purposes", "plans", "code", "sandbox", "subject_records", "per_round_epsilon"}


def test_every_clause_that_is_left_out_is_missed_unless_it_may_be(policy_toml, policy_keys):
    for table, key in policy_keys:
        lines = policy_toml.splitlines()
        start = lines.index(f"[{table}]")
        at = next(index for index in range(start, len(lines)) if lines[index].startswith(f"{key} ="))
        text = "\n".join(lines[:at] + lines[at + 1 :])
        if key in OPTIONAL:
            parse_policy(text)
        else:
            error = fault(text)
            assert error.summary == f"{table}.{key} is missing"
            assert error.where == f"policy.toml:{start + 1}"


def test_every_table_that_is_left_out_is_missed(policy_toml):
    for table in toml_keys():
        before, _, rest = policy_toml.partition(f"[{table}]\n")
        rest = rest[rest.index("\n[") + 1 :] if "\n[" in rest else ""
        assert fault(before + rest).summary == f"{table} is missing"


@pytest.mark.parametrize(
    ("old", "new", "expected", "next_step"),
    [
        ("max_rounds = 12", "max_round = 12", "one of purposes", "did you mean max_rounds?"),
        ("min_records", "epsilon = 3 # min_records", "one of columns", "did you mean epsilon in [privacy]?"),
        ('"health-research"]', '"health-reserch"]', "a purpose of the vocabulary", "did you mean health-research"),
        ('"insurer-one"', '"heart-consortium"', "each name in one of the two lists", ""),
        ('["commercial-research", "cancer-research"]', '["research"]', "no permitted purpose inside", ""),
        ("2027-01-01T00:00:00+01:00", "2026-01-01T00:00:00Z", "later than not_before", ""),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00", "a time with its zone", "add the zone"),
        ('["EU", "CH"]', '["eu"]', "two capitals", ""),
        ('["EU", "CH"]', "[]", "at least 1 in the list", ""),
        ('["heart-disease-risk"]', '["*", "heart-disease-risk"]', 'either "*" for all', ""),
        ('["age", "blood pressure"]', '"age"', "a list in square brackets", ""),
        ('"built-in", "sha256:2', '"builtin", "sha256:2', '"built-in" or the digest', ""),
        ('epsilon = "1.5"', "epsilon = 1.5", "a decimal in quotes", 'quote it: "1.5"'),
        ('"required"', '"requierd"', "'required' or 'not-required'", "did you mean required?"),
        ("min_holders = 2", "min_holders = 0", "a number of 1 or more", ""),
        ("version = 1", "version = 0", "a number of 1 or more", ""),
        ("version = 1", "version = true", "a whole number", ""),
        ("[people]", "[[people]]", "a table", ""),
    ],
)
def test_mistake_in_a_policy_is_named_with_its_line(policy_toml, old, new, expected, next_step):
    assert policy_toml.count(old) >= 1
    line = policy_toml[: policy_toml.index(old)].count("\n") + 1
    error = fault(policy_toml.replace(old, new, 1))
    assert error.where == f"policy.toml:{line}"
    assert expected in error.expected
    assert next_step in (error.next_step or "")


# --- the signed form -------------------------------------------------------------------------------------------------


def test_document_reads_back_equal_and_is_named_by_its_digest(random_uses):
    uses = random_uses(11)
    for _ in range(100):
        policy = uses.policy()
        document = policy.to_document()
        assert canonical.decode(canonical.encode(document)) == document
        again = UsagePolicy.from_document(document)
        assert again == policy
        assert again.digest == policy.digest == canonical.digest(document)


def test_toml_with_sentences_reads_back_equal(random_uses, policy_toml):
    uses = random_uses(12)
    for policy in [parse_policy(policy_toml), *(uses.policy() for _ in range(100))]:
        assert parse_policy(to_toml(policy)) == policy
    assert "# At most 12 rounds may use this data.\nmax_rounds = 12" in to_toml(parse_policy(policy_toml))


def test_any_changed_term_changes_the_digest(make_policy):
    digests = {
        make_policy(**change).digest
        for change in (
            {},
            {"version": 2},
            {"max_rounds": 13},
            {"epsilon_micro": 1},
            {"plans": None},
            {"prohibited": ()},
        )
    }
    assert len(digests) == 6


def _changed(document, path, value):
    changed = copy.deepcopy(document)
    here = changed
    for step in path[:-1]:
        here = here[step]
    if value is None:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("v",), 2),
        (("v",), True),
        (("v",), None),
        (("extra",), {}),
        (("people",), None),
        (("people",), []),
        (("people", "who"), None),
        (("people", "extra"), 1),
        (("people", "who"), ["second-consortium", "heart-consortium"]),
        (("people", "who"), ["heart-consortium", "heart-consortium"]),
        (("people", "who"), "heart-consortium"),
        (("projects", "max_rounds"), "12"),
        (("projects", "max_rounds"), 12.0),
        (("projects", "max_rounds"), True),
        (("projects", "purposes"), ["unheard-of"]),
        (("projects", "not_after"), "2027-01-01T00:00:00+01:00"),
        (("projects", "not_after"), "2026-12-31T23:00:00Z"),
        (("projects", "not_after"), "never"),
        (("projects", "not_after"), 5),
        (("projects", "tasks"), "*"),
        (("privacy", "epsilon_micro"), -1),
        (("privacy", "epsilon_micro"), 10**16),
        (("privacy", "epsilon"), "1.5"),
        (("privacy", "unit"), "patient"),
        (("settings", "regions"), ["EU", "CH"]),
    ],
)
def test_document_in_any_other_form_is_refused(make_policy, path, value):
    document = make_policy().to_document()
    with pytest.raises(DocumentInvalid):
        UsagePolicy.from_document(_changed(document, path, value))


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"rounds_used": -1},
        {"epsilon_after_micro": 10**15 + 1},
        {"epsilon_after_micro": 1.5},
        {"epsilon_after_micro": float("nan")},
        {"epsilon_after_micro": "1"},
        {"epsilon_cost_micro": True},
        {"holders": None},
        {"records": 2**63},
        {"secure_aggregation": "false"},
        {"secure_aggregation": 1},
        {"columns": frozenset()},
        {"columns": ["age"]},
        {"now": datetime(2026, 6, 1)},  # noqa: DTZ001 - the point of the case
        {"now": datetime(1969, 6, 1, tzinfo=UTC)},
        {"now": "2026-06-01T00:00:00Z"},
        {"unit": "patient"},
        {"action": "upload"},
        {"action": "evaluate", "evaluation": "none"},
        {"plan_digest": "sha256:1"},
        {"code_digest": "x"},
        {"region": "Switzerland"},
        {"coordinator": 'x"); permit(principal, action, resource);'},
        {"unheard_of": 1},
    ],
)
def test_request_out_of_bounds_is_refused_before_any_rule_sees_it(make_request, change):
    with pytest.raises(ValueError, match="validation error"):
        make_request(**change)


def test_public_facts_leave_the_row_count_out_and_read_back(random_uses):
    uses = random_uses(13)
    for _ in range(100):
        request = uses.request(uses.policy())
        facts = request.public_facts()
        assert "records" not in facts
        again = type(request).from_public_facts(facts)
        assert again.records is None
        assert again.public_facts() == facts
        assert again.digest() == request.digest() == canonical.digest(facts)


def test_digest_of_the_facts_does_not_depend_on_the_row_count(make_request):
    assert make_request(records=7).digest() == make_request(records=8).digest()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("records", 3),
        ("now", "2026-06-01T12:00:00Z"),
        ("now", 5),
        ("now", "soon"),
        ("columns", ["b", "a"]),
        ("columns", ["a", "a"]),
        ("columns", "age"),
        ("columns", [1]),
        ("rounds_used", "3"),
        ("extra", 1),
        ("unit", "patient"),
        ("holders", None),
    ],
)
def test_public_facts_in_another_form_are_refused(make_request, name, value):
    request = make_request()
    with pytest.raises(DocumentInvalid):
        type(request).from_public_facts(request.public_facts() | {name: value})
    with pytest.raises(DocumentInvalid):
        type(request).from_public_facts({key: fact for key, fact in request.public_facts().items() if key != "task"})


@settings(max_examples=100)
@given(st.datetimes(datetime(1971, 1, 1), datetime(2199, 1, 1)), st.integers(-14 * 60, 14 * 60))  # noqa: DTZ001
def test_time_of_a_request_is_rounded_down_to_the_millisecond_in_utc(make_request, moment, offset_minutes):
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    now = make_request(now=aware).now
    assert now.tzinfo is UTC
    assert timedelta(0) <= aware - now < timedelta(milliseconds=1)


# --- vocabulary ------------------------------------------------------------------------------------------------------


def test_purposes_form_a_tree_of_unique_names():
    assert len({purpose.source_iri for purpose in PURPOSES.values()}) == len(PURPOSES)
    for purpose in PURPOSES.values():
        chain = ancestors(purpose.id)
        assert chain[0] == purpose.id
        assert PURPOSES[chain[-1]].parent is None
        assert len(set(chain)) == len(chain)


def test_research_purposes_are_nested_as_in_the_data_use_ontology():
    """GRU covers HMB covers DS, and POA stands beside HMB: DUO release 2022-09."""
    assert ancestors("disease-research") == ("disease-research", "health-research", "research")
    assert ancestors("population-research") == ("population-research", "research")
    iris = {purpose: PURPOSES[purpose].source_iri.rsplit("/", maxsplit=1)[-1] for purpose in PURPOSES}
    assert iris["research"] == "DUO_0000042"
    assert iris["health-research"] == "DUO_0000006"
    assert iris["disease-research"] == "DUO_0000007"
    assert iris["population-research"] == "DUO_0000011"


def test_order_of_each_ordered_word_is_fixed():
    """A policy's meaning hangs on these orders: a new word goes where it belongs, never to the end by habit."""
    assert {kind.__name__: [word.value for word in words] for kind, words in ORDERED.items()} == {
        "Unit": ["record", "subject", "holder"],
        "Evaluation": ["none", "private", "exact"],
        "ReleaseTo": ["none", "metrics-only", "participants", "public"],
        "ReleaseTier": ["low", "medium", "high"],
    }
    assert rank(Unit.HOLDER) == 2

"""Compile a policy to Cedar, and ask Cedar. The only module that imports cedarpy, and only when first asked.

Cedar skips a rule that errors, so a limit written only as `forbid unless` would fail open. Hence the dual compile: ONE
`permit` whose condition is the conjunction of all clauses (an error there means no permit, hence deny), and one
`forbid unless` per clause beside it (Cedar names no reason for a default deny; these name every one). Where the permit
holds, no forbid can apply: both say the same conditions, which is checked when a policy is compiled. So the permit is
asked first, alone, and all of the rules where it does not hold. The schema is always passed, so that a request of the
wrong shape is refused before any rule is tried.

Most of a decision's time is Cedar's reading of the facts. What a plan says is the same in every round, and where and
how it is asked nearly so: each is read once, as an entity kept under exactly the facts it holds, and a request brings
the rest. What a policy calls itself and its dataset is a fact as well, and not in the rules: so policies that ask for
the same are compiled once, as the thousand holders of a simulation have.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import Any, Final

from ringfence_policy.cedar_text import entity, quoted
from ringfence_policy.clauses import ALL_ACTIONS, CLAUSES, Clause
from ringfence_policy.decision import Point
from ringfence_policy.errors import Fault
from ringfence_policy.policy import BUILT_IN, UsagePolicy, rfc3339
from ringfence_policy.request import RoundRequest
from ringfence_policy.vocabulary import ORDERED, PURPOSES, Evaluation, ReleaseTier, ReleaseTo, Unit

PERMIT_ID: Final = "permit"
_SETTING: Final = "here"  # the one there is beside a question

SCHEMA: Final = """
namespace Ringfence {
  entity Organisation;
  entity Dataset;
  entity Purpose in [Purpose];
  entity Audience in [Audience];
  entity Tier in [Tier];
  entity Unit in [Unit];
  entity Evaluation in [Evaluation];
  entity Plan = {
    digest: String, purpose: Purpose, task: String, code: String, region: String, unit: Unit, names_subjects: Bool,
    secure_aggregation: Bool, columns: Set<String>, retention_days: Long, release_to: Audience, release_tier: Tier,
    rehearsal: Bool,
  };
  entity Setting = {
    delta_pico: Long, records_withheld: Bool, holders: Long, sandboxed: Bool, at_holder: Bool, evaluation: Evaluation,
    revoked: Bool, suspended: Bool, round_under_way: Bool, status_fresh: Bool,
  };
  type Use = {
    own_policy: String, own_dataset: Dataset,
    policy: String, plan: Plan, setting: Setting, now: datetime, rounds_used: Long,
    epsilon_after_micro: Long, epsilon_cost_micro: Long, records?: Long,
  };
  action train, evaluate, release appliesTo { principal: [Organisation], resource: [Dataset], context: Use };
}
"""


@dataclass(frozen=True)
class CedarAnswer:
    """What Cedar said.

    Attributes:
        allowed: True or False, or None where Cedar came to no decision.
        failed: Names of the clauses whose `forbid` applied.
        errors: Kinds of error met while deciding, with Cedar's words after a colon. Any of them means deny.
    """

    allowed: bool | None
    failed: frozenset[str]
    errors: tuple[str, ...]


def compile_policy(policy: UsagePolicy) -> str:
    """The policy as Cedar text: one permit over all clauses and one forbid for each. Deterministic."""
    conditions = {
        clause.id: _bound(clause, condition) for clause in CLAUSES.values() if (condition := clause.cedar(policy))
    }
    conjunction = "\n  && ".join(f"({condition})" for condition in conditions.values())
    rules = [f"@id({quoted(PERMIT_ID)})\npermit (principal, action, resource)\nwhen {{\n  {conjunction}\n}};"]
    rules += [
        f"@id({quoted(name)})\nforbid (principal, action, resource)\nunless {{ {condition} }};"
        for name, condition in conditions.items()
    ]
    return "\n\n".join(rules) + "\n"


class CedarEngine:
    """One compiled, validated policy set.

    Raises:
        Fault: cedarpy cannot be imported, the text does not validate against the schema, or its two halves differ.
    """

    def __init__(self, text: str) -> None:
        self._cedar = _cedarpy()
        self._schema, _ = _schema_and_entities()
        verdict = self._cedar.validate_policies(text, self._schema)
        if not verdict:
            raise Fault("the compiled policy does not validate", got="; ".join(str(error) for error in verdict.errors))
        tree = json.loads(self._cedar.policies_to_json_str(text))
        if not halves_agree(tree):
            raise Fault("the permit and the forbids of the compiled policy do not say the same")
        self._text = text
        permit = {name: rule for name, rule in tree["staticPolicies"].items() if _is_permit(rule)}
        self._permit = self._cedar.PolicySet.from_json_str(json.dumps(tree | {"staticPolicies": permit}))
        self.description: Final = {
            "name": "cedar",
            "version": _version(),
            "compiled": "sha256:" + hashlib.sha256(text.encode()).hexdigest(),
        }

    @cached_property
    def _all_rules(self) -> Any:
        """The permit and the forbids. Read when something is first denied: most policies are only ever kept."""
        return self._cedar.PolicySet.from_str(self._text)

    def ask(self, request: RoundRequest, *, policy: UsagePolicy, point: Point, records_withheld: bool) -> CedarAnswer:
        """Put one request under one of this text's policies to Cedar.

        Whatever cedarpy raises comes through; the gate turns it into a denial.
        """
        question = _as_cedar(request, policy=policy, records_withheld=records_withheld)
        entities = _entities(_planned(request), _setting(request, point=point, records_withheld=records_withheld))
        permit = self._put(question, self._permit, entities)
        if permit.allowed and not permit.errors:
            return permit
        answer = self._put(question, self._all_rules, entities)
        return replace(answer, errors=tuple(sorted({*permit.errors, *answer.errors})))

    def _put(self, question: Mapping[str, Any], rules: Any, entities: Any) -> CedarAnswer:
        cedar = self._cedar
        answer = cedar.is_authorized(question, rules, entities, schema=self._schema)
        names = set(answer.diagnostics.id_annotations_by_reason.values())
        errors = [f"cedar-error: {error}" for error in answer.diagnostics.errors]
        allowed = {cedar.Decision.Allow: True, cedar.Decision.Deny: False}.get(answer.decision)
        if allowed is None:
            errors.append("cedar-no-decision")
        if allowed and names != {PERMIT_ID}:
            errors.append(f"cedar-reasons: allowed by {sorted(names)}")
        return CedarAnswer(allowed, frozenset(names - {PERMIT_ID}), tuple(sorted(errors)))


# More than there are policies in one process: 6 ms and 75 KB each, and cycling through too many would keep none.
@lru_cache(maxsize=4096)
def engine_for(text: str) -> CedarEngine:
    """The engine of a compiled policy, built once per process and text."""
    return CedarEngine(text)


def halves_agree(tree: Mapping[str, Any]) -> bool:
    """Whether a parsed policy set is one permit over exactly the conditions that its forbids demand one by one.

    Either half alone would hide a fault in the other from the reference evaluator: where a forbid still applies, a
    conjunct missing from the permit changes no decision, until the forbid errors and is skipped.
    """
    anyone = {"principal": {"op": "All"}, "action": {"op": "All"}, "resource": {"op": "All"}}
    demanded: list[str] = []
    permits: list[Mapping[str, Any]] = []
    for rule in tree["staticPolicies"].values():
        is_permit = _is_permit(rule)
        kinds = ("permit", "when") if is_permit else ("forbid", "unless")
        conditions = rule["conditions"]
        if len(conditions) != 1 or (rule["effect"], conditions[0]["kind"]) != kinds:
            return False
        if any(rule[scope] != everything for scope, everything in anyone.items()):
            return False
        if is_permit:
            permits.append(conditions[0]["body"])
        else:
            demanded.append(json.dumps(conditions[0]["body"], sort_keys=True))
    if len(permits) != 1 or tree["templates"] or tree["templateLinks"]:
        return False
    body = permits[0]
    granted: list[str] = []
    while len(granted) < len(demanded) - 1:  # the conjunction leans left: the last clause is the outermost right
        if "&&" not in body:
            return False
        granted.append(json.dumps(body["&&"]["right"], sort_keys=True))
        body = body["&&"]["left"]
    return sorted([*granted, json.dumps(body, sort_keys=True)]) == sorted(demanded)


def _is_permit(rule: Mapping[str, Any]) -> bool:
    return bool(rule["annotations"].get("id") == PERMIT_ID)


def _bound(clause: Clause, condition: str) -> str:
    """Let `condition` bind only the clause's own actions."""
    if clause.actions == ALL_ACTIONS:
        return condition
    elsewhere = sorted(ALL_ACTIONS - clause.actions)
    exempt = " || ".join(f"action == {entity('Action', action)}" for action in elsewhere)
    return f"{exempt} || ({condition})"


def _as_cedar(request: RoundRequest, *, policy: UsagePolicy, records_withheld: bool) -> dict[str, Any]:
    context: dict[str, Any] = {  # the schema says which of these texts are times and which pairs are entities
        "own_policy": policy.policy_id,
        "own_dataset": _ref("Dataset", policy.dataset_id),
        "policy": request.policy_id,
        "plan": _ref("Plan", request.plan_digest),
        "setting": _ref("Setting", _SETTING),
        "now": rfc3339(request.now),
        "rounds_used": request.rounds_used,
        "epsilon_after_micro": request.epsilon_after_micro,
        "epsilon_cost_micro": request.epsilon_cost_micro,
    }
    if request.records is not None and not records_withheld:
        context["records"] = request.records
    return {
        "principal": _ref("Organisation", request.coordinator),
        "action": _ref("Action", request.action.value),
        "resource": _ref("Dataset", request.dataset_id),
        "context": context,
    }


@dataclass(frozen=True)
class _Planned:
    """The facts of a request that are its plan's."""

    digest: str
    purpose: str
    task: str
    code: str
    region: str
    unit: str
    names_subjects: bool
    secure_aggregation: bool
    columns: frozenset[str]
    retention_days: int
    release_to: str
    release_tier: str
    rehearsal: bool


def _planned(request: RoundRequest) -> _Planned:
    return _Planned(
        digest=request.plan_digest,
        purpose=request.purpose,
        task=request.task,
        code=request.code_digest or BUILT_IN,
        region=request.region,
        unit=request.unit.value,
        names_subjects=request.names_subjects,
        secure_aggregation=request.secure_aggregation,
        columns=request.columns,
        retention_days=request.retention_days,
        release_to=request.release_to.value,
        release_tier=request.release_tier.value,
        rehearsal=request.rehearsal,
    )


@dataclass(frozen=True)
class _Setting:
    """The facts of a request that say where and how it is asked: the same for many holders, and from round to round."""

    delta_pico: int
    records_withheld: bool
    holders: int
    sandboxed: bool
    at_holder: bool
    evaluation: str
    revoked: bool
    suspended: bool
    round_under_way: bool
    status_fresh: bool


def _setting(request: RoundRequest, *, point: Point, records_withheld: bool) -> _Setting:
    return _Setting(
        delta_pico=request.delta_pico,
        records_withheld=records_withheld,
        holders=request.holders,
        sandboxed=request.sandboxed,
        at_holder=point is not Point.COORDINATOR,
        evaluation=request.evaluation.value,
        revoked=request.revoked,
        suspended=request.suspended,
        round_under_way=point is Point.BEFORE_UPLOAD,
        status_fresh=request.status_fresh,
    )


# Invariant: the key is every fact that the two entities hold, and not the plan's name, which a request could misuse.
@lru_cache(maxsize=256)
def _entities(planned: _Planned, setting: _Setting) -> Any:
    """The fixed entities, and plan and setting as two more, checked against the schema."""
    schema, fixed = _schema_and_entities()
    plan = vars(planned) | {
        "purpose": _ref("Purpose", planned.purpose),
        "unit": _ref("Unit", planned.unit),
        "columns": sorted(planned.columns),
        "release_to": _ref("Audience", planned.release_to),
        "release_tier": _ref("Tier", planned.release_tier),
    }
    here = vars(setting) | {"evaluation": _ref("Evaluation", setting.evaluation)}
    added = [
        {"uid": _ref("Plan", planned.digest), "attrs": plan, "parents": []},
        {"uid": _ref("Setting", _SETTING), "attrs": here, "parents": []},
    ]
    return fixed.with_added_json_str(json.dumps(added), schema=schema)


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"type": f"Ringfence::{kind}", "id": name}


@cache
def _cedarpy() -> Any:
    try:
        import cedarpy  # noqa: PLC0415 - 16 MB that a command which decides nothing need not load
    except ImportError as error:
        raise Fault("Cedar is not installed", expected="the package cedarpy", got=str(error)) from error
    return cedarpy


@cache
def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 - slow to import, needed once

    return version("cedarpy")


@cache
def _schema_and_entities() -> tuple[Any, Any]:
    """The schema, and the fixed entities: the purpose tree and the ordered words, each a chain of `in`."""
    cedar = _cedarpy()
    parents: dict[tuple[str, str], str | None] = {("Purpose", one.id): one.parent for one in PURPOSES.values()}
    for kind, name, grows in (
        (ReleaseTo, "Audience", "wider"),
        (Evaluation, "Evaluation", "wider"),
        (Unit, "Unit", "stricter"),
        (ReleaseTier, "Tier", "stricter"),
    ):
        words = [word.value for word in ORDERED[kind]]
        # A narrower audience lies in every wider one; a stricter tier lies in every lighter one.
        chain = words if grows == "wider" else words[::-1]
        for word, covering in zip(chain, [*chain[1:], None], strict=True):
            parents[name, word] = covering
    entities = [
        {
            "uid": _ref(kind, name),
            "attrs": {},
            "parents": [] if parent is None else [_ref(kind, parent)],
        }
        for (kind, name), parent in parents.items()
    ]
    schema = cedar.Schema.from_str(SCHEMA)
    return schema, cedar.Entities.from_json_str(json.dumps(entities), schema=schema)

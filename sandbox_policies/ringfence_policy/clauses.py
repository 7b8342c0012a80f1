"""The one table of clauses: for each, its place in the TOML, its Cedar, its ODRL term and its plain English.

Whatever shows, compiles or exports a policy reads this table, so a clause cannot exist in one form and be missing in
another. The reference evaluator (`reference.py`) is the one deliberate exception: it is written beside the table and
not from it, so that a fault here shows as a disagreement there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ringfence_policy.cedar_text import entities, entity, instant, strings
from ringfence_policy.decision import Point
from ringfence_policy.policy import BUILT_IN, EVERYTHING, UsagePolicy
from ringfence_policy.request import RoundRequest
from ringfence_policy.vocabulary import Action, OnRevoke, Rehearsal, Sandbox, SecureAggregation, SubjectRecords, Unit
from ringfence_policy.wording import (
    EVALUATION_SENTENCES,
    RELEASE_SENTENCES,
    REVOKE_SENTENCES,
    SANDBOX_SENTENCES,
    SUBJECT_SENTENCES,
    UNIT_WORDS,
    code_sentence,
    counted,
    day_text,
    delta_text,
    epsilon_text,
    holders_sentence,
    label,
    labels,
    listed,
    retention_sentence,
)

ALL_ACTIONS: Final = frozenset(Action)
USES: Final = frozenset({Action.TRAIN, Action.EVALUATE})
TRAINING: Final = frozenset({Action.TRAIN})
EVALUATING: Final = frozenset({Action.EVALUATE})

EVERYWHERE: Final = frozenset(Point)
AT_THE_HOLDER: Final = frozenset({Point.BEFORE_TRAINING, Point.BEFORE_UPLOAD, Point.RELEASE})


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One kind of rule a policy can hold.

    Attributes:
        id: Stable name, as decisions show it.
        table: The TOML table it stands in, or None for what every policy implies.
        key: The TOML key, where it differs from `id`.
        odrl: The ODRL term the clause is exchanged as.
        actions: The actions it binds.
        points: The enforcement points that can judge it.
        is_secret: The fact it is about never leaves the holder, so that nobody else can judge it, ever.
        cedar: The Cedar expression that must hold, or None where the policy sets no condition.
        sentence: The clause in plain English, for the data officer.
        limit: What the policy asks for, in a few words.
        actual: What the request has, in a few words. Secret to the holder.
    """

    id: str
    table: str | None
    odrl: str
    cedar: Callable[[UsagePolicy], str | None]
    sentence: Callable[[UsagePolicy], str]
    limit: Callable[[UsagePolicy], str]
    actual: Callable[[RoundRequest], str]
    actions: frozenset[Action] = ALL_ACTIONS
    points: frozenset[Point] = EVERYWHERE
    is_secret: bool = False
    key: str | None = None

    @property
    def toml_key(self) -> str | None:
        """The key in the clause's TOML table, or None for what every policy implies."""
        return None if self.table is None else self.key or self.id


# --- sentences with more than one form --------------------------------------------------------------------------------


def _yes(value: bool, yes: str, no: str) -> str:  # noqa: FBT001 - reads as a sentence where it is used
    return yes if value else no


# --- the table -------------------------------------------------------------------------------------------------------

_ROWS: Final[tuple[Clause, ...]] = (
    Clause(
        id="policy",
        table=None,
        odrl="@id",
        cedar=lambda _: "context.policy == context.own_policy",
        sentence=lambda policy: f"A use must name this policy, {policy.policy_id}.",
        limit=lambda policy: policy.policy_id,
        actual=lambda request: request.policy_id,
    ),
    Clause(
        id="dataset",
        table=None,
        odrl="target",
        cedar=lambda _: "resource == context.own_dataset",
        sentence=lambda policy: f"These terms cover the dataset {policy.dataset_id} and no other.",
        limit=lambda policy: policy.dataset_id,
        actual=lambda request: request.dataset_id,
    ),
    Clause(
        id="who",
        table="people",
        odrl="rf:coordinator isAnyOf",
        cedar=lambda policy: f"{entities('Organisation', policy.permitted_coordinators)}.contains(principal)",
        sentence=lambda policy: f"Only {listed(policy.permitted_coordinators, joined_by='or')} may use this data.",
        limit=lambda policy: listed(policy.permitted_coordinators, joined_by="or"),
        actual=lambda request: request.coordinator,
    ),
    Clause(
        id="never",
        table="people",
        odrl="prohibition: rf:coordinator isAnyOf",
        cedar=lambda policy: (
            f"!({entities('Organisation', policy.prohibited)}.contains(principal))" if policy.prohibited else None
        ),
        sentence=lambda policy: (
            f"{listed(policy.prohibited)} may never use this data."
            if policy.prohibited
            else "Nobody is named who may never use this data."
        ),
        limit=lambda policy: (
            f"not {listed(policy.prohibited, joined_by='or')}" if policy.prohibited else "no one named"
        ),
        actual=lambda request: request.coordinator,
    ),
    Clause(
        id="purposes",
        table="projects",
        odrl="purpose isAnyOf",
        cedar=lambda policy: f"context.plan.purpose in {entities('Purpose', policy.purposes)}",
        sentence=lambda policy: f"This data may be used only for {labels(policy.purposes)}.",
        limit=lambda policy: labels(policy.purposes),
        actual=lambda request: label(request.purpose),
    ),
    Clause(
        id="not_purposes",
        table="projects",
        odrl="prohibition: purpose isAnyOf",
        cedar=lambda policy: (
            f"!(context.plan.purpose in {entities('Purpose', policy.not_purposes)})" if policy.not_purposes else None
        ),
        sentence=lambda policy: (
            f"This data may never be used for {labels(policy.not_purposes)}."
            if policy.not_purposes
            else "No purpose is excluded beyond that."
        ),
        limit=lambda policy: f"not {labels(policy.not_purposes)}" if policy.not_purposes else "none excluded",
        actual=lambda request: label(request.purpose),
    ),
    Clause(
        id="tasks",
        table="projects",
        odrl="rf:task isAnyOf",
        cedar=lambda policy: (
            None if policy.tasks == EVERYTHING else f"{strings(policy.tasks)}.contains(context.plan.task)"
        ),
        sentence=lambda policy: (
            "Any task may be learned from this data."
            if policy.tasks == EVERYTHING
            else f"Only this may be learned from this data: {listed(policy.tasks, joined_by='or')}."
        ),
        limit=lambda policy: "any task" if policy.tasks == EVERYTHING else listed(policy.tasks, joined_by="or"),
        actual=lambda request: request.task,
    ),
    Clause(
        id="plans",
        table="projects",
        odrl="rf:plan isAnyOf",
        cedar=lambda policy: f"{strings(policy.plans)}.contains(context.plan.digest)" if policy.plans else None,
        sentence=lambda policy: (
            f"Only {counted(len(policy.plans), 'training plan')} approved by digest may run."
            if policy.plans
            else "Any training plan may run that keeps these terms."
        ),
        limit=lambda policy: listed(policy.plans, joined_by="or") if policy.plans else "any plan",
        actual=lambda request: request.plan_digest,
    ),
    Clause(
        id="code",
        table="projects",
        odrl="rf:code isAnyOf",
        cedar=lambda policy: f"{strings(policy.code)}.contains(context.plan.code)",
        sentence=code_sentence,
        limit=lambda policy: listed(policy.code, joined_by="or"),
        actual=lambda request: request.code_digest or BUILT_IN,
    ),
    Clause(
        id="not_before",
        table="projects",
        odrl="dateTime gteq",
        actions=USES,
        cedar=lambda policy: f"context.now >= {instant(policy.not_before)}",
        sentence=lambda policy: f"This data may be used from {day_text(policy.not_before)}.",
        limit=lambda policy: f"from {day_text(policy.not_before)}",
        actual=lambda request: day_text(request.now),
    ),
    Clause(
        id="not_after",
        table="projects",
        odrl="dateTime lt",
        actions=USES,
        cedar=lambda policy: f"context.now < {instant(policy.not_after)}",
        sentence=lambda policy: f"This data may be used until {day_text(policy.not_after)}, and no longer.",
        limit=lambda policy: f"before {day_text(policy.not_after)}",
        actual=lambda request: day_text(request.now),
    ),
    Clause(
        id="max_rounds",
        table="projects",
        odrl="count lteq",
        actions=TRAINING,
        cedar=lambda policy: f"context.rounds_used < {policy.max_rounds}",
        sentence=lambda policy: f"At most {counted(policy.max_rounds, 'round')} may use this data.",
        limit=lambda policy: counted(policy.max_rounds, "round"),
        actual=lambda request: f"this would be round {request.rounds_used + 1:,}",
    ),
    Clause(
        id="regions",
        table="settings",
        odrl="spatial isAnyOf",
        actions=USES,
        cedar=lambda policy: f"{strings(policy.regions)}.contains(context.plan.region)",
        sentence=lambda policy: f"This data may be computed on only in {listed(policy.regions, joined_by='or')}.",
        limit=lambda policy: listed(policy.regions, joined_by="or"),
        actual=lambda request: request.region,
    ),
    Clause(
        id="min_holders",
        table="settings",
        odrl="rf:holders gteq",
        actions=USES,
        cedar=lambda policy: f"context.setting.holders >= {policy.min_holders}",
        sentence=holders_sentence,
        limit=lambda policy: f"at least {counted(policy.min_holders, 'data holder')}",
        actual=lambda request: counted(request.holders, "data holder"),
    ),
    Clause(
        id="secure_aggregation",
        table="settings",
        odrl="rf:secureAggregation eq",
        actions=TRAINING,
        cedar=lambda policy: (
            "context.plan.secure_aggregation" if policy.secure_aggregation is SecureAggregation.REQUIRED else None
        ),
        sentence=lambda policy: _yes(
            policy.secure_aggregation is SecureAggregation.REQUIRED,
            "Updates may be opened only as a sum over all holders (secure aggregation).",
            "Secure aggregation is not required; the coordinator may open each private update.",
        ),
        limit=lambda policy: policy.secure_aggregation.value,
        actual=lambda request: _yes(request.secure_aggregation, "used", "not used"),
    ),
    Clause(
        id="sandbox",
        table="settings",
        odrl="rf:sandbox eq",
        actions=USES,
        # The coordinator cannot see a holder's walls. What a holder says of them stands in its log, for an auditor.
        points=AT_THE_HOLDER,
        cedar=lambda policy: (
            "!context.setting.at_holder || context.setting.sandboxed" if policy.sandbox is Sandbox.REQUIRED else None
        ),
        sentence=lambda policy: SANDBOX_SENTENCES[policy.sandbox],
        limit=lambda policy: policy.sandbox.value,
        actual=lambda request: _yes(request.sandboxed, "in a sandbox", "no sandbox"),
    ),
    Clause(
        id="columns",
        table="data",
        odrl="rf:column isAnyOf",
        actions=USES,
        cedar=lambda policy: (
            None if policy.columns == EVERYTHING else f"{strings(policy.columns)}.containsAll(context.plan.columns)"
        ),
        sentence=lambda policy: (
            "All columns of this data may be read."
            if policy.columns == EVERYTHING
            else f"Only these columns may be read: {listed(policy.columns)}."
        ),
        limit=lambda policy: "all columns" if policy.columns == EVERYTHING else listed(policy.columns),
        actual=lambda request: listed(sorted(request.columns)),
    ),
    Clause(
        id="min_records",
        table="data",
        odrl="rf:records gteq",
        actions=USES,
        points=AT_THE_HOLDER,
        is_secret=True,
        cedar=lambda policy: (
            f"context.setting.records_withheld || (context has records && context.records >= {policy.min_records})"
        ),
        sentence=lambda policy: (
            f"At least {counted(policy.min_records, 'record')} must be there before this data is used."
        ),
        limit=lambda policy: f"at least {counted(policy.min_records, 'record')}",
        actual=lambda request: "not known" if request.records is None else counted(request.records, "record"),
    ),
    Clause(
        id="rehearsal",
        table="data",
        odrl="rf:rehearsal eq",
        cedar=lambda policy: None if policy.rehearsal is Rehearsal.ALLOWED else "!context.plan.rehearsal",
        sentence=lambda policy: _yes(
            policy.rehearsal is Rehearsal.ALLOWED,
            "Rehearsals without privacy are allowed, as for data that is published anyway.",
            "Every use must be private; rehearsals with predictable noise are refused.",
        ),
        limit=lambda policy: policy.rehearsal.value,
        actual=lambda request: _yes(request.rehearsal, "a rehearsal", "not a rehearsal"),
    ),
    Clause(
        id="unit",
        table="privacy",
        odrl="rf:unit isAnyOf",
        actions=USES,
        cedar=lambda policy: f"context.plan.unit in {entity('Unit', policy.unit)}",
        sentence=lambda policy: f"Privacy must protect at least {UNIT_WORDS[policy.unit]}.",
        limit=lambda policy: UNIT_WORDS[policy.unit],
        actual=lambda request: UNIT_WORDS[request.unit],
    ),
    Clause(
        id="subject_records",
        table="privacy",
        odrl="rf:subjectRecords eq",
        actions=USES,
        cedar=lambda policy: (
            None
            if policy.subject_records is SubjectRecords.APART
            else f"!context.plan.names_subjects || context.plan.unit in {entity('Unit', Unit.SUBJECT)}"
        ),
        sentence=lambda policy: SUBJECT_SENTENCES[policy.subject_records],
        limit=lambda policy: policy.subject_records.value,
        actual=lambda request: UNIT_WORDS[request.unit],
    ),
    Clause(
        id="epsilon",
        table="privacy",
        odrl="rf:epsilonMicro lteq",
        actions=USES,
        cedar=lambda policy: f"context.epsilon_after_micro <= {policy.epsilon_micro}",
        sentence=lambda policy: (
            f"All uses of this data together may spend at most epsilon {epsilon_text(policy.epsilon_micro)} of privacy."
        ),
        limit=lambda policy: f"epsilon {epsilon_text(policy.epsilon_micro)} in all",
        actual=lambda request: f"epsilon {epsilon_text(request.epsilon_after_micro)} after this use",
    ),
    Clause(
        id="delta",
        table="privacy",
        odrl="rf:deltaPico lteq",
        actions=USES,
        cedar=lambda policy: f"context.setting.delta_pico <= {policy.delta_pico}",
        sentence=lambda policy: (
            f"That budget counts at delta {delta_text(policy.delta_pico)}, the chance that it does not hold."
        ),
        limit=lambda policy: f"delta {delta_text(policy.delta_pico)}",
        actual=lambda request: f"delta {delta_text(request.delta_pico)}",
    ),
    Clause(
        id="per_round_epsilon",
        table="privacy",
        odrl="rf:roundEpsilonMicro lteq",
        actions=USES,
        cedar=lambda policy: (
            None
            if policy.per_round_epsilon_micro is None
            else f"context.epsilon_cost_micro <= {policy.per_round_epsilon_micro}"
        ),
        sentence=lambda policy: (
            "A single use may spend all of it."
            if policy.per_round_epsilon_micro is None
            else f"No single use may spend more than epsilon {epsilon_text(policy.per_round_epsilon_micro)}."
        ),
        limit=lambda policy: (
            "no limit for one use"
            if policy.per_round_epsilon_micro is None
            else f"epsilon {epsilon_text(policy.per_round_epsilon_micro)} for one use"
        ),
        actual=lambda request: f"epsilon {epsilon_text(request.epsilon_cost_micro)} for this use",
    ),
    Clause(
        id="evaluation",
        table="privacy",
        odrl="rf:evaluation isAnyOf",
        actions=EVALUATING,
        cedar=lambda policy: f"context.setting.evaluation in {entity('Evaluation', policy.evaluation)}",
        sentence=lambda policy: EVALUATION_SENTENCES[policy.evaluation],
        limit=lambda policy: policy.evaluation.value,
        actual=lambda request: request.evaluation.value,
    ),
    Clause(
        id="retention_days",
        table="outputs",
        odrl="duty: rf:deleteUpdates within rf:afterRound lteq",
        actions=USES,
        cedar=lambda policy: f"context.plan.retention_days <= {policy.retention_days}",
        sentence=retention_sentence,
        limit=lambda policy: f"at most {counted(policy.retention_days, 'day')}",
        actual=lambda request: counted(request.retention_days, "day"),
    ),
    Clause(
        id="release_to",
        table="outputs",
        odrl="rf:releaseTo isAnyOf",
        cedar=lambda policy: f"context.plan.release_to in {entity('Audience', policy.release_to)}",
        sentence=lambda policy: RELEASE_SENTENCES[policy.release_to],
        limit=lambda policy: f"{policy.release_to.value} at most",
        actual=lambda request: request.release_to.value,
    ),
    Clause(
        id="release_tier",
        table="outputs",
        odrl="rf:releaseTier isAnyOf",
        cedar=lambda policy: f"context.plan.release_tier in {entity('Tier', policy.release_tier)}",
        sentence=lambda policy: (
            f"Before any release the model must pass the gates of the {policy.release_tier.value} tier."
        ),
        limit=lambda policy: f"{policy.release_tier.value} or stricter",
        actual=lambda request: request.release_tier.value,
    ),
    Clause(
        id="revoked",
        table="outputs",
        key="on_revoke",
        odrl="rf:onRevoke eq",
        # Revoking ends future use. What was learned before cannot be unlearned and stays under the release terms.
        actions=USES,
        cedar=lambda policy: (
            "!context.setting.revoked"
            if policy.on_revoke is OnRevoke.STOP_NOW
            else "!context.setting.revoked || context.setting.round_under_way"
        ),
        sentence=lambda policy: REVOKE_SENTENCES[policy.on_revoke],
        limit=lambda _: "not revoked",
        actual=lambda request: _yes(request.revoked, "revoked", "not revoked"),
    ),
    Clause(
        id="suspended",
        table=None,
        odrl="(outside ODRL: a signed status)",
        # Unlike a revocation it lets no round finish. Like one it ends use and leaves the release to the policy.
        actions=USES,
        cedar=lambda _: "!context.setting.suspended",
        sentence=lambda _: "While its data officer has suspended its use, this data is not used.",
        limit=lambda _: "not suspended",
        actual=lambda request: _yes(request.suspended, "suspended", "not suspended"),
    ),
    Clause(
        id="status",
        table=None,
        odrl="(outside ODRL: a signed status)",
        cedar=lambda _: "context.setting.status_fresh",
        sentence=lambda _: "A fresh signed status of the data holder must be at hand.",
        limit=lambda _: "fresh",
        actual=lambda request: _yes(request.status_fresh, "fresh", "missing or stale"),
    ),
)

CLAUSES: Final[Mapping[str, Clause]] = MappingProxyType({clause.id: clause for clause in _ROWS})
"""Every clause by its name, in the order in which a policy is read aloud."""


def explain(policy: UsagePolicy) -> tuple[str, ...]:
    """The policy as plain sentences, one for every clause, in reading order."""
    return tuple(clause.sentence(policy) for clause in CLAUSES.values())


def not_judged_at(point: Point, action: Action, *, records_withheld: bool = False) -> tuple[str, ...]:
    """The clauses binding `action` that cannot be judged at `point`, because the fact is the holder's alone.

    Args:
        point: Where it is decided.
        action: What is asked.
        records_withheld: It is decided again later, by someone who never sees the row count.
    """
    return tuple(
        sorted(
            clause.id
            for clause in CLAUSES.values()
            if action in clause.actions and (point not in clause.points or (clause.is_secret and records_withheld))
        )
    )

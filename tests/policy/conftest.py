import random
from datetime import UTC, datetime, timedelta

import pytest

from ringfence_policy.policy import PolicyFile, UsagePolicy, parse_policy, toml_keys
from ringfence_policy.request import RoundRequest
from ringfence_policy.vocabulary import (
    PURPOSES,
    Action,
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

POLICY_TOML = """\
[policy]
id = "cleveland-heart"
version = 1
holder = "cleveland"
dataset = "cleveland-heart-2026"

[people]
who = ["heart-consortium", "second-consortium"]
never = ["insurer-one"]

[projects]
purposes = ["health-research"]
not_purposes = ["commercial-research", "cancer-research"]
tasks = ["heart-disease-risk"]
plans = ["sha256:1111111111111111111111111111111111111111111111111111111111111111"]
code = ["built-in", "sha256:2222222222222222222222222222222222222222222222222222222222222222"]
not_before = 2026-01-01T00:00:00Z
not_after = 2027-01-01T00:00:00+01:00
max_rounds = 12

[settings]
regions = ["EU", "CH"]
min_holders = 2
secure_aggregation = "required"
sandbox = "required"

[data]
columns = ["age", "blood pressure"]
min_records = 50
rehearsal = "forbidden"

[privacy]
unit = "subject"
subject_records = "together"
epsilon = "1.5"
delta = "1e-5"
per_round_epsilon = "0.3"
evaluation = "private"

[outputs]
retention_days = 30
release_to = "participants"
release_tier = "medium"
on_revoke = "stop-now"
"""


@pytest.fixture(scope="session")
def policy_toml():
    """A policy that uses every clause."""
    return POLICY_TOML


@pytest.fixture(scope="session")
def make_policy():
    def make(**changes):
        values = dict(parse_policy(POLICY_TOML))
        return UsagePolicy.model_validate(values | changes)

    return make


@pytest.fixture(scope="session")
def make_request():
    def make(**changes):
        return RoundRequest(**(_FACTS | changes))

    return make


_FACTS = {
    "policy_id": "cleveland-heart",
    "action": "train",
    "coordinator": "heart-consortium",
    "dataset_id": "cleveland-heart-2026",
    "purpose": "heart-disease-research",
    "task": "heart-disease-risk",
    "plan_digest": "sha256:" + "1" * 64,
    "code_digest": "",
    "region": "CH",
    "now": datetime(2026, 6, 1, 12, tzinfo=UTC),
    "rounds_used": 3,
    "epsilon_after_micro": 1_000_000,
    "epsilon_cost_micro": 250_000,
    "delta_pico": 10_000_000,
    "unit": "subject",
    "names_subjects": True,
    "records": 303,
    "holders": 4,
    "secure_aggregation": True,
    "sandboxed": True,
    "columns": frozenset({"age"}),
    "retention_days": 7,
    "release_to": "participants",
    "release_tier": "medium",
    "evaluation": "private",
    "rehearsal": False,
    "revoked": False,
    "suspended": False,
    "status_fresh": True,
}

_DIGESTS = tuple("sha256:" + digit * 64 for digit in "0123")
_ORGANISATIONS = ("org-a", "org-b", "org-c", "org-d")
_TASKS = ("task-a", "task-b", "task-c")
_COLUMNS = ("age", "sex", "blood pressure", 'odd "name"', "größe\\x")
_REGIONS = ("CH", "EU", "US", "US-CA")
_START = datetime(2026, 1, 1, tzinfo=UTC)


class RandomUses:
    """Random policies, and requests that stand near their limits, so that both answers are common."""

    def __init__(self, seed):
        self.random = random.Random(seed)  # noqa: S311 - test data

    def some(self, words, *, least=1):
        return tuple(sorted(self.random.sample(words, self.random.randint(least, len(words)))))

    def pick(self, words):
        return self.random.choice(list(words))

    def policy(self):
        who = self.some(_ORGANISATIONS[:3])
        purposes = self.some(tuple(PURPOSES)[:12])
        covering = {one for purpose in purposes for one in ancestors(purpose)}
        excluded = tuple(sorted(set(self.some(tuple(PURPOSES), least=0)[:6]) - covering))
        start = _START + timedelta(days=self.random.randint(0, 300), milliseconds=self.random.randint(0, 999))
        return UsagePolicy.model_validate(
            {
                "policy_id": self.pick(("policy-a", "policy-b")),
                "version": self.random.randint(1, 9),
                "holder_id": "holder-a",
                "dataset_id": self.pick(("dataset-a", "dataset-b")),
                "permitted_coordinators": who,
                "prohibited": tuple(sorted(set(_ORGANISATIONS) - set(who)))[: self.random.randint(0, 2)],
                "purposes": purposes,
                "not_purposes": excluded,
                "tasks": ("*",) if self.random.random() < 0.5 else self.some(_TASKS),
                "plans": None if self.random.random() < 0.5 else self.some(_DIGESTS),
                "code": self.some(("built-in", *_DIGESTS)),
                "not_before": start,
                "not_after": start + timedelta(milliseconds=self.random.choice([1, 1000, 10**8, 10**10])),
                "max_rounds": self.random.choice([1, 2, 12, 10**6]),
                "epsilon_micro": self.random.choice([0, 1, 10**6, 10**15]),
                "delta_pico": self.random.choice([0, 1, 10**7, 10**12 - 1]),
                "per_round_epsilon_micro": self.random.choice([None, 0, 3 * 10**5]),
                "unit": self.pick(Unit),
                "subject_records": self.pick(SubjectRecords),
                "min_records": self.random.choice([1, 50, 10**9]),
                "min_holders": self.random.choice([1, 3, 10**4]),
                "secure_aggregation": self.pick(SecureAggregation),
                "sandbox": self.pick(Sandbox),
                "regions": self.some(_REGIONS),
                "columns": ("*",) if self.random.random() < 0.3 else self.some(_COLUMNS),
                "retention_days": self.random.choice([0, 30, 36500]),
                "release_to": self.pick(ReleaseTo),
                "release_tier": self.pick(ReleaseTier),
                "evaluation": self.pick(Evaluation),
                "rehearsal": self.pick(Rehearsal),
                "on_revoke": self.pick(OnRevoke),
            }
        )

    def request(self, policy):
        """A request that keeps every limit, often exactly, with up to three facts changed at random."""
        action = self.pick(Action)
        facts = self._inside(policy, action)
        for name in self.random.sample(sorted(self._ANY), self.random.choice([0, 0, 1, 1, 2, 3])):
            facts[name] = self._ANY[name](self, policy)
        if action is Action.EVALUATE and facts["evaluation"] is Evaluation.NONE:
            facts["evaluation"] = Evaluation.PRIVATE
        return RoundRequest(**facts)

    def _inside(self, policy, action):
        columns = _COLUMNS if policy.columns == ("*",) else policy.columns
        code = self.pick(policy.code)
        return {
            "policy_id": policy.policy_id,
            "action": action,
            "coordinator": self.pick(policy.permitted_coordinators),
            "dataset_id": policy.dataset_id,
            "purpose": self.pick(policy.purposes),
            "task": self.pick(_TASKS if policy.tasks == ("*",) else policy.tasks),
            "plan_digest": self.pick(policy.plans or _DIGESTS),
            "code_digest": "" if code == "built-in" else code,
            "region": self.pick(policy.regions),
            "now": self.pick([policy.not_before, policy.not_after - timedelta(milliseconds=1)]),
            "rounds_used": policy.max_rounds - 1,
            "epsilon_after_micro": policy.epsilon_micro,
            "epsilon_cost_micro": policy.per_round_epsilon_micro or 0,
            "delta_pico": policy.delta_pico,
            "unit": policy.unit,
            "names_subjects": policy.unit is not Unit.RECORD or policy.subject_records is SubjectRecords.APART,
            "records": policy.min_records,
            "holders": policy.min_holders,
            "secure_aggregation": policy.secure_aggregation is SecureAggregation.REQUIRED,
            "sandboxed": policy.sandbox is Sandbox.REQUIRED,
            "columns": frozenset(self.some(columns)),
            "retention_days": policy.retention_days,
            "release_to": policy.release_to,
            "release_tier": policy.release_tier,
            "evaluation": policy.evaluation,
            "rehearsal": policy.rehearsal is Rehearsal.ALLOWED,
            "revoked": False,
            "suspended": False,
            "status_fresh": True,
        }

    def _near(self, limit):
        return min(max(limit + self.random.choice([-1, 0, 1]), 0), 10**15)

    _ANY = {  # noqa: RUF012 - a constant of the test
        "policy_id": lambda self, _: self.pick(("policy-a", "policy-b")),
        "coordinator": lambda self, _: self.pick(_ORGANISATIONS),
        "dataset_id": lambda self, _: self.pick(("dataset-a", "dataset-b")),
        "purpose": lambda self, _: self.pick([*PURPOSES, "unheard-of"]),
        "task": lambda self, _: self.pick(_TASKS),
        "plan_digest": lambda self, _: self.pick(_DIGESTS),
        "code_digest": lambda self, _: self.pick(("", *_DIGESTS)),
        "region": lambda self, _: self.pick(_REGIONS),
        "now": lambda self, policy: (
            self.pick([policy.not_before, policy.not_after]) + timedelta(microseconds=self.pick([-1, 0, 1, 999, -1000]))
        ),
        "rounds_used": lambda self, policy: self._near(policy.max_rounds),
        "epsilon_after_micro": lambda self, policy: self._near(policy.epsilon_micro),
        "epsilon_cost_micro": lambda self, policy: self._near(policy.per_round_epsilon_micro or 0),
        "delta_pico": lambda self, policy: self._near(policy.delta_pico),
        "unit": lambda self, _: self.pick(Unit),
        "names_subjects": lambda self, _: self.pick([True, False]),
        "records": lambda self, policy: self.pick([None, self._near(policy.min_records)]),
        "holders": lambda self, policy: self._near(policy.min_holders),
        "secure_aggregation": lambda self, _: self.pick([True, False]),
        "sandboxed": lambda self, _: self.pick([True, False]),
        "columns": lambda self, _: frozenset(self.some(_COLUMNS)),
        "retention_days": lambda self, policy: self._near(policy.retention_days),
        "release_to": lambda self, _: self.pick(ReleaseTo),
        "release_tier": lambda self, _: self.pick(ReleaseTier),
        "evaluation": lambda self, _: self.pick(Evaluation),
        "rehearsal": lambda self, _: self.pick([True, False]),
        "revoked": lambda self, _: self.pick([True, False]),
        "suspended": lambda self, _: self.pick([True, False]),
        "status_fresh": lambda self, _: self.pick([True, False]),
    }


@pytest.fixture(scope="session")
def random_uses():
    return RandomUses


@pytest.fixture(scope="session")
def policy_keys():
    """Every (table, key) of the TOML form."""
    assert set(PolicyFile.model_fields) == set(toml_keys())
    return [(table, key) for table, keys in toml_keys().items() for key in keys]

"""A scenario small enough to run inside a test: a few data holders with synthetic records, written as people write one.

`write_scenario` takes changes as dotted keys, for example `plan={"training.rounds": 4}` or
`policies={"alder": {"settings.min_holders": 3}}`; the value None takes a key away.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

Changes = Mapping[str, object]

COORDINATOR = "tree-consortium"
HOLDERS = ("alder", "birch", "elm", "fir")

PLAN: Changes = {
    "plan_id": "tree-study",
    "title": "A small study of trees",
    "coordinator": COORDINATOR,
    "purpose": "disease-research",
    "task": "leaf-disease-prediction",
    "model.kind": "logistic-regression",
    "training.strategy": "FedAvg",
    "training.rounds": 3,
    "training.steps": 1,
    "training.sampling_rate": "1",
    "training.learning_rate": "2",
    "training.clipping_norm": "0.5",
    "privacy.noise_multiplier_max": "8",
    "cohort.min_holders": 1,
    "cohort.region": "CH",
    "evaluation.mode": "exact",
    "evaluation.every_round": False,
    "release.to": "participants",
    "release.tier": "low",
    "release.retention_days": 30,
}
POLICY: Changes = {
    "policy.version": 1,
    "people.who": [COORDINATOR],
    "projects.purposes": ["research"],
    "projects.tasks": ["leaf-disease-prediction"],
    "projects.not_before": datetime(2026, 1, 1, tzinfo=UTC),
    "projects.not_after": datetime(2036, 1, 1, tzinfo=UTC),
    "projects.max_rounds": 100,
    "settings.regions": ["CH"],
    "settings.min_holders": 1,
    "settings.secure_aggregation": "not-required",
    "settings.sandbox": "not-required",
    "data.columns": "*",
    "data.min_records": 20,
    "data.rehearsal": "allowed",
    "privacy.unit": "record",
    "privacy.epsilon": "4",
    "privacy.delta": "1e-5",
    "privacy.evaluation": "exact",
    "outputs.retention_days": 30,
    "outputs.release_to": "participants",
    "outputs.release_tier": "low",
    "outputs.on_revoke": "stop-now",
}
PROFILE: Changes = {
    "region": "CH",
    "dataset.weight": 60,
    "dataset.epsilon": "5",
    "dataset.delta": "1e-5",
}
SCHEMA = """
title = "Leaves"

[label]
column = "ill"
positive_above = "0"

[[columns]]
name = "length"
kind = "number"
low = "0"
high = "10"

[[columns]]
name = "spots"
kind = "number"
low = "0"
high = "20"

[[columns]]
name = "soil"
kind = "binary"
negative = "dry"
positive = "wet"
"""


@dataclass(frozen=True)
class TinyScenario:
    """Where a written scenario lies, and who is in it."""

    directory: Path
    holders: tuple[str, ...]

    def holder(self, holder_id: str) -> Path:
        """A holder's own directory."""
        return self.directory / "holders" / holder_id

    def write_plan(self, name: str = "plan.toml", **changes: object) -> Path:
        """Write a plan; keys have `__` for the dot, for example `training__rounds=4`."""
        path = self.directory / name
        path.write_text(toml({**PLAN, **{key.replace("__", "."): value for key, value in changes.items()}}))
        return path

    def write_policy(self, holder_id: str, changes: Changes | None = None) -> Path:
        """Write a holder's policy.toml anew, unsigned."""
        names = {
            "policy.id": f"{holder_id}-terms",
            "policy.holder": holder_id,
            "policy.dataset": f"{holder_id}-leaves",
        }
        path = self.holder(holder_id) / "policy.toml"
        path.write_text(toml({**names, **POLICY, **(changes or {})}))
        return path


def write_scenario(
    directory: Path,
    *,
    holders: Sequence[str] = HOLDERS[:3],
    rows: int = 60,
    plan: Changes | None = None,
    policies: Mapping[str, Changes] | None = None,
    profiles: Mapping[str, Changes] | None = None,
) -> TinyScenario:
    """Write a scenario directory: plan, schema, and each holder's profile, policy and data. The same every time."""
    scenario = TinyScenario(directory, tuple(sorted(holders)))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plan.toml").write_text(toml({**PLAN, **(plan or {})}))
    (directory / "schema.toml").write_text(SCHEMA)
    for number, holder_id in enumerate(scenario.holders):
        home = scenario.holder(holder_id)
        home.mkdir(parents=True)
        names = {
            "holder_id": holder_id,
            "name": f"{holder_id.title()} Institute",
            "dataset.dataset_id": f"{holder_id}-leaves",
        }
        (home / "holder.toml").write_text(toml({**names, **PROFILE, **(profiles or {}).get(holder_id, {})}))
        scenario.write_policy(holder_id, (policies or {}).get(holder_id))
        (home / "data.csv").write_text(leaves(rows, seed=number))
    return scenario


def leaves(rows: int, *, seed: int) -> str:
    """Synthetic records as CSV: longer, more spotted leaves on wet soil are more often ill."""
    generator = np.random.default_rng(seed)
    lines = ["length,spots,soil,ill"]
    for _ in range(rows):
        length, spots, wet = generator.uniform(0, 10), generator.integers(0, 21), generator.random() < 0.5
        score = 0.6 * (length - 5) + 0.3 * (spots - 10) + (1.0 if wet else -1.0) + generator.normal()
        lines.append(f"{length:.2f},{spots},{'wet' if wet else 'dry'},{int(score > 0)}")
    return "\n".join(lines) + "\n"


def toml(members: Changes) -> str:
    """Dotted keys as a TOML document: those without a dot first, then one table after another."""
    tables: dict[str, list[str]] = {"": []}
    for key, value in members.items():
        table, _, name = key.rpartition(".")
        if value is not None:
            tables.setdefault(table, []).append(f"{name} = {_value(value)}")
    return "\n".join(
        "\n".join([f"[{table}]", *lines, ""] if table else [*lines, ""]) for table, lines in tables.items() if lines
    )


def _value(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else json.dumps(value)

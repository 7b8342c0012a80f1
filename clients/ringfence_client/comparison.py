"""Comparison lines for a run on published data: what training without privacy, or alone, or on a pool would give.

Nothing here asks the ledger, so it runs only where every holder's signed policy allows a rehearsal; and only over those
whose policies permit this plan, purpose and all, at that moment.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ringfence_client.datasource import load_dataset
from ringfence_client.home import HolderHome
from ringfence_client.officer import is_revoked, is_suspended, signed_policy
from ringfence_client.references import ReferenceHolder, compute_references
from ringfence_policy.decision import Point
from ringfence_policy.errors import DataInvalid
from ringfence_policy.facts import Cost, use_request
from ringfence_policy.gate import PolicyGate
from ringfence_policy.ledger import now_ms
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.vocabulary import Action, Evaluation, Rehearsal


def compare(directories: Mapping[str, str], plan: TrainingPlan, *, measured_on: Collection[str]) -> dict[str, Any]:
    """Compute the comparison lines, or say whose policy does not allow them.

    Args:
        directories: The holders' directories on this machine, by holder id.
        plan: The plan of the run.
        measured_on: The holders on whose test records the private model was measured.

    Returns:
        What `compute_references` gives, and `left_out`, the holders whose policies do not permit it (any more); or
        {"note": why there are none}.
    """
    homes = {holder_id: HolderHome(Path(directory)) for holder_id, directory in directories.items()}
    policies = {holder_id: signed_policy(home) for holder_id, home in homes.items()}
    forbidding = sorted(
        holder_id
        for holder_id, policy in policies.items()
        if policy is None or policy.rehearsal is not Rehearsal.ALLOWED
    )
    if forbidding:
        names = ", ".join(forbidding)
        return {"note": f"No comparison lines: the policy of {names} forbids any use without privacy."}
    permitting = {
        holder_id: home
        for holder_id, home in homes.items()
        if (policy := policies[holder_id]) is not None and _permits(policy, home, plan, company=len(homes))
    }
    if not permitting:
        return {"note": "No comparison lines: no data holder's policy permits them."}
    try:
        holders = {holder_id: _published(home, plan) for holder_id, home in permitting.items()}
    except DataInvalid:
        return {"note": "No comparison lines: a data holder's records do not fit the schema."}
    model = json.loads(plan.terms.model.model_dump_json())
    lines = compute_references(holders, model=model, rounds=plan.terms.training.rounds, measured_on=measured_on)
    return {**lines, "left_out": sorted(homes.keys() - permitting.keys())}


def _permits(policy: UsagePolicy, home: HolderHome, plan: TrainingPlan, *, company: int) -> bool:
    """Whether the policy permits training and exact measures of this plan as a rehearsal, right now."""
    gate, revoked, suspended = PolicyGate(policy), is_revoked(home), is_suspended(home)
    rehearsal = plan.model_copy(update={"rehearsal": True})
    for action, evaluation in ((Action.TRAIN, Evaluation.NONE), (Action.EVALUATE, Evaluation.EXACT)):
        facts = use_request(
            rehearsal,
            policy,
            action=action,
            now_ms=now_ms(),
            cohort_size=company,
            cost=Cost(),
            evaluation=evaluation,
            sandboxed=False,  # the records are opened here, in the run's own process
            revoked=revoked,
            suspended=suspended,
            status_fresh=True,
        )
        # Not judged: the row count. These records are published, and the holder says so by allowing rehearsals.
        if not gate.redecide(facts, point=Point.BEFORE_TRAINING).permitted:
            return False
    return True


def _published(home: HolderHome, plan: TrainingPlan) -> ReferenceHolder:
    data = load_dataset(home.directory, plan.dataset_schema)
    dataset = home.profile.dataset
    train, test = data.split(plan.terms.evaluation.test_fraction, salt=dataset.dataset_id)
    return ReferenceHolder(train=train, test=test, weight=dataset.weight)

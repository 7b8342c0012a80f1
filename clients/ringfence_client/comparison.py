"""Comparison lines for a run on published data: what training without privacy, or alone, or on a pool would give.

Nothing here asks the ledger, so it runs only where every holder's signed policy allows a rehearsal. Who has revoked its
policy is left out, as from any other use.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ringfence_client.datasource import load_dataset
from ringfence_client.home import HolderHome
from ringfence_client.officer import is_revoked, signed_policy
from ringfence_client.references import ReferenceHolder, compute_references
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.vocabulary import Rehearsal


def compare(directories: Mapping[str, str], plan: TrainingPlan, *, measured_on: Collection[str]) -> dict[str, Any]:
    """Compute the comparison lines, or say whose policy does not allow them.

    Args:
        directories: The holders' directories on this machine, by holder id.
        plan: The plan of the run.
        measured_on: The holders on whose test records the private model was measured.

    Returns:
        What `compute_references` gives, and `left_out`, the holders that have revoked; or {"note": why there are none}.

    Raises:
        DataInvalid: A holder's data does not fit the plan's schema.
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
    left_out = [holder_id for holder_id, home in homes.items() if is_revoked(home)]
    holders = {}
    for holder_id, home in homes.items():
        if holder_id in left_out:
            continue
        data = load_dataset(home.directory, plan.dataset_schema)
        dataset = home.profile.dataset
        train, test = data.split(plan.terms.evaluation.test_fraction, salt=dataset.dataset_id)
        holders[holder_id] = ReferenceHolder(train=train, test=test, weight=dataset.weight)
    if not holders:
        return {"note": "No comparison lines: every data holder has revoked its policy."}
    model = json.loads(plan.terms.model.model_dump_json())
    lines = compute_references(holders, model=model, rounds=plan.terms.training.rounds, measured_on=measured_on)
    return {**lines, "left_out": sorted(left_out)}

"""Whether a plan that is shown to a data holder speaks truly of that holder and of its peers."""

from collections.abc import Mapping

from ringfence_client.home import HolderHome
from ringfence_client.officer import agreed_schema, root_of
from ringfence_client.run_terms import RunTerms
from ringfence_policy.identity import PublicKey
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.protocol import Proposal


def problem_with(
    plan: TrainingPlan,
    proposal: Proposal,
    *,
    home: HolderHome,
    known: Mapping[str, PublicKey],
    shown: RunTerms | None,
) -> str | None:
    """What the plan would have to be and is not, in words, or None where nothing is wrong with it.

    Args:
        plan: The plan, its signature verified.
        proposal: How it was shown.
        home: The holder's directory.
        known: The root keys of the holders that this one knows.
        shown: What was shown for this run before, if anything was.

    Raises:
        TrustRefused: The plan carries a root key that is not usable.
    """
    planned = plan.holders.get(home.profile.holder_id)
    thumbprints = {peer.root_thumbprint for peer in plan.holders.values()}
    peers_agree = all(
        holder not in known or known[holder].thumbprint == peer.root_thumbprint for holder, peer in plan.holders.items()
    )
    expectations = {
        "a plan that names this holder": planned is not None,
        "a plan that names this holder's own root key": (
            planned is not None and planned.root_thumbprint == root_of(home).thumbprint
        ),
        "a plan with this holder's declared weight": (
            planned is not None and planned.weight == home.profile.dataset.weight
        ),
        "a plan whose root keys have the thumbprints it says": plan.has_true_thumbprints,
        "a plan that names the holders this one knows by the root keys it knows them by": peers_agree,
        # One organisation under two names would be counted twice where a policy asks for company.
        "a plan whose data holders have a root key each": len(thumbprints) == len(plan.holders),
        "a seed exactly when the plan is a rehearsal": plan.rehearsal == (proposal.rehearsal_seed is not None),
        "the plan that this run was shown with": shown is None or shown.plan.digest == plan.digest,
        "a plan with the schema that this holder agreed to": plan.dataset_schema.digest == agreed_schema(home),
    }
    return next((expected for expected, holds in expectations.items() if not holds), None)

"""On what terms a holder could take part in the next round: its own word, read from its ledger."""

from ringfence_client.run_terms import RunTerms
from ringfence_policy.accounting import epsilon_micro
from ringfence_policy.facts import Cost
from ringfence_policy.ledger import PrivacyLedger
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.protocol import Standing


def standing_of(ledger: PrivacyLedger, terms: RunTerms, policy: UsagePolicy, *, sent: Cost | None = None) -> Standing:
    """What the next round would cost, and how many more there can be.

    Args:
        ledger: The holder's ledger.
        terms: What it was shown for the run.
        policy: Its policy.
        sent: What the next round cost where its update left already: it is only sent again, and none is made.
    """
    settlement = terms.settlement
    quote = ledger.quote(
        dataset_id=policy.dataset_id,
        policy_id=policy.policy_id,
        mechanism=settlement.training,
        run_id=terms.run_id,
    )
    cost = sent or Cost(
        rounds_used=quote.rounds_used,
        epsilon_after_micro=quote.policy_epsilon_after_micro,
        epsilon_cost_micro=quote.policy_epsilon_cost_micro,
    )
    return Standing(
        mechanism=settlement.training.to_document(),
        evaluation=settlement.evaluation_mode,
        rounds_used=cost.rounds_used,
        rounds_left=rounds_left(ledger, terms, policy) + (sent is not None),
        epsilon_after_micro=cost.epsilon_after_micro,
        epsilon_cost_micro=cost.epsilon_cost_micro,
        dataset_epsilon_micro=epsilon_micro(ledger.history(policy.dataset_id), delta_pico=quote.dataset_delta_pico),
        dataset_epsilon_cap_micro=quote.dataset_epsilon_cap_micro,
        dataset_delta_pico=quote.dataset_delta_pico,
    )


def rounds_left(ledger: PrivacyLedger, terms: RunTerms, policy: UsagePolicy) -> int:
    """How many more of the plan's rounds fit into every budget."""
    return ledger.rounds_that_fit(
        dataset_id=policy.dataset_id,
        policy_id=policy.policy_id,
        mechanism=terms.settlement.training,
        at_most=terms.plan.terms.training.rounds,
        run_id=terms.run_id,
    )

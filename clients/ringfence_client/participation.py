"""What a data holder signs about its part in one run: its peers count it by that, and a verifier holds it to it."""

from ringfence_client.home import HolderHome
from ringfence_client.run_terms import RunTerms
from ringfence_policy.documents import participation_document
from ringfence_policy.identity import DocumentType, SigningKey, sign
from ringfence_policy.ledger import HoldState, PrivacyLedger
from ringfence_policy.mechanism import history_to_document
from ringfence_policy.vocabulary import Action

PAPERS_LIFETIME_MS = 15 * 60 * 1000


def signed_participation(
    home: HolderHome, ledger: PrivacyLedger, terms: RunTerms, *, rounds_left: int, key: SigningKey, now_ms: int
) -> str:
    """The participation in a run as it stands now.

    Args:
        home: The holder's directory.
        ledger: Its ledger, which says what was spent and in which rounds.
        terms: What it was shown for the run.
        rounds_left: How many more rounds fit its budgets; 0 where its papers no longer hold.
        key: The node's key.
        now_ms: Now.
    """
    dataset = home.profile.dataset
    done = {
        hold.round_number
        for hold in ledger.holds(terms.run_id)
        if hold.action is Action.TRAIN and hold.state is not HoldState.RELEASED
    }
    document = participation_document(
        holder_id=home.profile.holder_id,
        run_id=terms.run_id,
        plan_digest=terms.plan.digest,
        last_round=max(done, default=0) + rounds_left,
        history=history_to_document(ledger.history(dataset.dataset_id, reserved=False)),
        weight=dataset.weight,
        issued_ms=now_ms,
        good_until_ms=now_ms + PAPERS_LIFETIME_MS,
    )
    return sign(document, type=DocumentType.PARTICIPATION, key=key)

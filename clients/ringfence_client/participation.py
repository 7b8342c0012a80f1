"""What a data holder signs about its part in one run: its peers count it by that, and a verifier holds it to it."""

from dataclasses import dataclass

from ringfence_client.home import HolderHome
from ringfence_client.run_terms import RunTerms
from ringfence_policy.documents import participation_document
from ringfence_policy.identity import DocumentType, SigningKey, sign
from ringfence_policy.ledger import PrivacyLedger
from ringfence_policy.mechanism import history_to_document

PAPERS_LIFETIME_MS = 15 * 60 * 1000


@dataclass(frozen=True)
class _Signed:
    token: str
    last_round: int
    issued_ms: int


class Participations:
    """A holder's participations, by run.

    Args:
        home: The holder's directory.
        ledger: Its ledger, which says what was spent and in which rounds.
        key: The node's key.
    """

    def __init__(self, home: HolderHome, ledger: PrivacyLedger, *, key: SigningKey) -> None:
        self._home = home
        self._ledger = ledger
        self._key = key
        self._signed: dict[str, _Signed] = {}

    def shown(self, terms: RunTerms, *, rounds_left: int, now_ms: int) -> str:
        """The one signed before, while it says the same and is not half through its life; otherwise one signed now."""
        known = self._signed.get(terms.run_id)
        if known is not None:
            is_young = 0 <= now_ms - known.issued_ms < PAPERS_LIFETIME_MS // 2
            if is_young and known.last_round == self._last_round(terms, rounds_left):
                return known.token
        return self.signed_now(terms, rounds_left=rounds_left, now_ms=now_ms)

    def signed_now(self, terms: RunTerms, *, rounds_left: int, now_ms: int) -> str:
        """The participation in a run as it stands now.

        Args:
            terms: What the holder was shown for the run.
            rounds_left: How many more rounds fit its budgets; 0 where its papers no longer hold.
            now_ms: Now.
        """
        dataset = self._home.profile.dataset
        last_round = self._last_round(terms, rounds_left)
        document = participation_document(
            holder_id=self._home.profile.holder_id,
            run_id=terms.run_id,
            plan_digest=terms.plan.digest,
            last_round=last_round,
            history=history_to_document(self._ledger.history(dataset.dataset_id, reserved=False)),
            weight=dataset.weight,
            issued_ms=now_ms,
            good_until_ms=now_ms + PAPERS_LIFETIME_MS,
        )
        token = sign(document, type=DocumentType.PARTICIPATION, key=self._key)
        self._signed[terms.run_id] = _Signed(token, last_round, now_ms)
        return token

    def _last_round(self, terms: RunTerms, rounds_left: int) -> int:
        return self._ledger.last_training_round(terms.run_id) + rounds_left

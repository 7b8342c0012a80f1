"""An evidence log as it is shown to others: each state is signed once, however many are shown it."""

from ringfence_policy.evidence_log import EvidenceLog
from ringfence_policy.identity import SigningKey
from ringfence_policy.protocol import LogView

_SHOWN_FOR_MS = 60_000


class LogViews:
    """Shows one log.

    Args:
        log: The log.
        key: Its owner's key for checkpoints.
    """

    def __init__(self, log: EvidenceLog, *, key: SigningKey) -> None:
        self._log = log
        self._key = key
        self._state = (-1, b"")
        self._signed_ms = 0
        self._checkpoint = ""
        self._proofs: dict[int, tuple[str, ...]] = {}

    def since(self, seen: int, *, now_ms: int) -> LogView:
        """The log as it is now, with the proof that it extends its first `seen` records.

        Where it is shorter than that, the proof is from all of it, and does not hold.

        Args:
            seen: How many records the listener has seen.
            now_ms: Now, in milliseconds since the Unix epoch.

        Raises:
            LedgerFault: The log cannot be read.
        """
        # By its root as well: what was shown inside a transaction that was undone is not shown again at the same size.
        size, root = self._log.size, self._log.root()
        if (size, root) != self._state or not 0 <= now_ms - self._signed_ms < _SHOWN_FOR_MS:
            self._checkpoint = self._log.checkpoint(key=self._key, now_ms=now_ms)
            self._state, self._signed_ms = (size, root), now_ms
            self._proofs.clear()
        proof = self._proofs.get(seen)
        if proof is None:
            nodes = self._log.consistency_proof(min(seen, size), size)
            proof = self._proofs[seen] = tuple(node.hex() for node in nodes)
        return LogView(checkpoint=self._checkpoint, since=seen, proof=proof)

"""What a holder's log tells of its data officer's stops: each is written down once, when the node learns of it."""

from collections.abc import Callable

from ringfence_client.papers import Papers
from ringfence_policy.evidence_log import EvidenceLog


class KnownStops:
    """The revocations and the suspension that the log knows of. A verifier holds every later use against them.

    Args:
        log: The holder's evidence log.
    """

    def __init__(self, log: EvidenceLog) -> None:
        self._log = log
        self._read = 0
        self._revoked: set[str] = set()
        self._is_suspended = False
        self._noted = (0, "")
        self._catch_up()

    def note(self, papers: Papers, append: Callable[..., int]) -> None:
        """Write down what papers that were just read say for the first time.

        Args:
            papers: The holder's papers.
            append: Adds a record to the log.
        """
        status, policy_id = papers.status, papers.policy.policy_id
        if status is None or (status.seq, policy_id) == self._noted:
            return
        self._catch_up()  # another process of this holder may have learnt of a stop, or of its end, before this one
        if papers.revocation is not None and policy_id not in self._revoked:
            append("revoked", policy_id=policy_id)
        if (status.suspended is not None) != self._is_suspended:
            append("suspended" if status.suspended is not None else "suspension-lifted", status_seq=status.seq)
        self._catch_up()
        self._noted = (status.seq, policy_id)

    def _catch_up(self) -> None:
        for record in self._log.records(self._read):
            self._read += 1
            if record["kind"] == "revoked":
                self._revoked.add(record["policy_id"])
            elif record["kind"] in ("suspended", "suspension-lifted"):
                self._is_suspended = record["kind"] == "suspended"

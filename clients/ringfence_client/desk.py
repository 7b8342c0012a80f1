"""A data officer's own commands as plain values, for pages that run on the holder's own machine.

Nothing is decided here: each does what the command of `ringfence-node` does that has its name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringfence_client import holder_view, officer
from ringfence_client.home import HolderHome
from ringfence_policy.clauses import explain
from ringfence_policy.documents import Status
from ringfence_policy.durable import write_durably
from ringfence_policy.errors import RingfenceError, UsageError
from ringfence_policy.ledger import now_ms


class Desk:
    """One data officer's desk.

    Args:
        directory: The holder's; set up if it never was.

    Raises:
        RingfenceError: It cannot be set up.
    """

    def __init__(self, directory: str) -> None:
        self._home = HolderHome(Path(directory))
        officer.set_up(self._home, now_ms=now_ms())

    def look(self) -> dict[str, Any]:
        """Where a holder stands: its policy in sentences, its budgets, whether it was stopped and why."""
        home = self._home
        policy = officer.signed_policy(home)
        status = officer.last_status(home) or officer.renew_status(home, now_ms=now_ms())
        document = holder_view.standing_document(home, status, policy)
        return {
            "policy": document["policy"] or "",
            "standing": document["standing"],
            "reason": _reason(status, None if policy is None else policy.policy_id),
            "sentences": [] if policy is None else list(explain(policy)),
            "meters": document["budgets"],
        }

    def uses(self) -> list[dict[str, Any]]:
        """What each run took, newest first."""
        return list(reversed(holder_view.run_documents(self._home)))

    def decisions(self) -> list[dict[str, Any]]:
        """The holder's own decisions, newest first, with figures that are sealed for others."""
        return list(reversed(holder_view.decision_documents(self._home)))

    def policy_text(self) -> str:
        """policy.toml as it stands."""
        return self._home.policy_file.read_text()

    def sign_text(self, text: str) -> str:
        """Write another policy.toml and sign it; where it cannot be signed, the old text stays.

        Returns:
            The signed policy's id and version.

        Raises:
            DocumentInvalid: It is no policy of this holder's, or its version did not rise.
        """
        home = self._home
        before = home.policy_file.read_bytes()
        write_durably(home.policy_file, text.encode())
        try:
            return officer.sign_policy(home).reference
        except RingfenceError:
            write_durably(home.policy_file, before)
            raise

    def stop(self, how: str, reason: str) -> None:
        """Suspend or revoke, or lift a suspension. Holds from the next gate on.

        Args:
            how: "suspend", "resume" or "revoke".
            reason: For everybody to read.

        Raises:
            UsageError: It is none of the three.
        """
        home, now = self._home, now_ms()
        acts: dict[str, Callable[[], Status]] = {
            "suspend": lambda: officer.suspend(home, reason=reason, now_ms=now),
            "resume": lambda: officer.resume(home, now_ms=now),
            "revoke": lambda: officer.revoke(home, reason=reason, now_ms=now),
        }
        if how not in acts:
            raise UsageError("that is no way to stop use", expected="suspend, resume or revoke", got=how[:40])
        acts[how]()


def _reason(status: Status, policy_id: str | None) -> str:
    revoked = None if policy_id is None else status.revocation_of(policy_id)
    if revoked is not None:
        return revoked.reason
    return "" if status.suspended is None else status.suspended.reason

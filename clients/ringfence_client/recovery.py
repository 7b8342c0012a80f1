"""What a crash left open at a holder, settled when it is certain that nobody is still at work on it.

A reservation whose process died would block its budget for ever, and one whose process lives must not be touched. So
every open node holds a lock on one file of the holder's state, which the system drops with the process however it ends.
"""

import fcntl
import os
from collections.abc import Callable

from ringfence_client.home import HolderHome
from ringfence_policy.accounting import epsilon_micro
from ringfence_policy.database import Database
from ringfence_policy.ledger import NOTHING_LEFT, Hold, HoldState, PrivacyLedger
from ringfence_policy.mechanism import history_to_document


class Presence:
    """That this process has the holder's node open, for every other process to see.

    Args:
        home: The holder's directory.

    Attributes:
        is_alone: Whether no other node of this holder was open anywhere when this one was opened.
    """

    def __init__(self, home: HolderHome) -> None:
        self._descriptor = os.open(home.presence, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.is_alone = True
        except BlockingIOError:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            self.is_alone = False

    def share(self) -> None:
        """Let other nodes of this holder open."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def close(self) -> None:
        """End the presence. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_open(home: HolderHome) -> bool:
    """Whether some process has the holder's node open now.

    To find out, the lock is held for a moment. A node that opens in that very moment leaves reservations of dead
    processes to the next one, or to the next proposal of their run.
    """
    if not home.presence.exists():
        return False
    presence = Presence(home)
    presence.close()
    return not presence.is_alone


def settle_open_holds(
    database: Database,
    ledger: PrivacyLedger,
    append: Callable[..., int],
    *,
    charged: Callable[[str], bool],
    run_id: str | None = None,
) -> None:
    """Settle what was only reserved and commit what may have left, with a record of each that nothing was sent of.

    Args:
        database: The holder's database.
        ledger: The ledger in it.
        append: Adds a record to the evidence log in it.
        charged: Whether a run's reservations, by its id, are charged and not given back.
        run_id: The run that nobody is at work on; None for every run.

    Raises:
        LedgerFault: It cannot be recorded.
    """
    with database.transaction():
        ledger.recover(run_id=run_id, charged=charged, record=lambda hold: record_unsent(ledger, hold, append))


def record_unsent(ledger: PrivacyLedger, hold: Hold, append: Callable[..., int]) -> None:
    """Record in the evidence log that a use ended and nothing of it left; nothing where something may have."""
    if hold.state is HoldState.RELEASED:
        kind, members = "hold-released", {}
    elif hold.update_digest == NOTHING_LEFT:
        delta_pico = ledger.delta_pico(hold.dataset_id)
        history = ledger.history(hold.dataset_id, reserved=False)
        kind, members = (
            "charged",
            {
                "action": hold.action.value,
                "mechanism": hold.mechanism.to_document(),
                "epsilon_micro": epsilon_micro(history, delta_pico=delta_pico),
                "delta_pico": delta_pico,
                "history": history_to_document(history),
            },
        )
    else:
        return
    append(
        kind, run_id=hold.run_id, round_number=hold.round_number, hold_id=hold.hold_id, reason=hold.detail, **members
    )

"""Who carries a run out: one process at a time, and only the one that was sent last.

A process claims its run with a lock on a file in the run's directory, which the system drops with the process, however
that ends. Under the same lock a control plane gives and withdraws the order, which names one sending. A process that
was sent by a control plane that was killed, and comes to its lock when the order names another sending or is withdrawn,
comes too late and does nothing: so a run can be sent again without being begun twice.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import ScenarioBusy
from ringfence_server.conductor_lock import conductor_of

_ALIVE = "alive"
_ORDER = "order.json"
_SENDING = "sending"


@contextmanager
def held(directory: Path) -> Iterator[bool]:
    """Keep every process from claiming a run while the block runs. Yields whether none has: otherwise nothing is kept.

    Args:
        directory: The run's; made if there is none.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = _open(directory)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def give_order(directory: Path, order: Mapping[str, Any]) -> str:
    """Say, while the run is `held`, what is to be done by the process that is sent next.

    Returns:
        The sending, for that process alone.
    """
    os.truncate(directory / _ALIVE, 0)
    sending = secrets.token_hex(8)
    write_durably(directory / _ORDER, json.dumps({**order, _SENDING: sending}).encode())
    return sending


def withdraw_order(directory: Path) -> bool:
    """Take the order back while the run is `held`; says whether a process claimed the run since it was given."""
    (directory / _ORDER).unlink(missing_ok=True)
    return (directory / _ALIVE).stat().st_size > 0


@contextmanager
def claimed(directory: Path, sending: str) -> Iterator[dict[str, Any]]:
    """Carry a run out for the length of the block.

    Args:
        directory: The run's.
        sending: By which this process was sent.

    Yields:
        The order.

    Raises:
        ScenarioBusy: This process was not the one sent last, or the order was withdrawn. Raised within the block, it
            unmakes the claim: nothing was done.
    """
    descriptor = _open(directory)
    try:
        # Waiting is right: a control plane holds it for an instant, and no order is given while a process does.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        order = json.loads((directory / _ORDER).read_text()) if (directory / _ORDER).exists() else {}
        if order.get(_SENDING) != sending:
            raise ScenarioBusy("this process comes too late: the run was taken up or stopped", where=str(directory))
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield order
        except ScenarioBusy:
            os.ftruncate(descriptor, 0)
            raise
    finally:
        os.close(descriptor)


def process_of(directory: Path) -> int | None:
    """The process that carries a run out now, or None.

    Of a run over a SuperLink two do, the one that follows and the ServerApp's: the second where the first was killed.

    Args:
        directory: The run's.
    """
    conductor = conductor_of(directory.parent.parent)
    conducting = None if conductor is None or conductor.run_id != directory.name else conductor.process_id
    return _claimant_of(directory) or conducting


def _claimant_of(directory: Path) -> int | None:
    with held(directory) as nobody_does:
        if nobody_does:
            return None
        # Empty for the instant in which a process has its lock and not yet said which one it is.
        return int((directory / _ALIVE).read_text() or "0") or None


def _open(directory: Path) -> int:
    return os.open(directory / _ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

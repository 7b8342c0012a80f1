"""What a holder was shown for a run and settled for it, kept on disk so that a restart changes nothing."""

import json
from contextlib import suppress
from dataclasses import dataclass

from ringfence_client.home import HolderHome
from ringfence_client.watched_files import WatchedFiles
from ringfence_policy.documents import Role
from ringfence_policy.durable import write_durably
from ringfence_policy.errors import DocumentInvalid, TrustRefused
from ringfence_policy.identity import DocumentType
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.settlement import Settlement
from ringfence_policy.trust_store import TrustStore


@dataclass(frozen=True)
class RunTerms:
    """One run as this holder agreed to see it. `rehearsal_seed` is None unless the plan is a rehearsal.

    `coordinator_keys` is the coordinator's key list as shown with the plan, so that a restarted node can go on.
    """

    run_id: str
    plan_token: str
    plan: TrainingPlan
    settlement: Settlement
    rehearsal_seed: int | None
    coordinator_keys: str

    def save(self, home: HolderHome) -> None:
        """Keep the terms; the plan as the coordinator signed it."""
        document = {
            "plan": self.plan_token,
            "coordinator_keys": self.coordinator_keys,
            "settlement": self.settlement.to_document(),
            "rehearsal_seed": self.rehearsal_seed,
        }
        write_durably(home.run_file(self.run_id), json.dumps(document, sort_keys=True).encode())


class KnownTerms:
    """The terms of runs that were shown, verified whenever their file is not the one that was verified before.

    Args:
        home: The holder's directory.
        files: The holder's files, read when they changed.
    """

    def __init__(self, home: HolderHome, files: WatchedFiles) -> None:
        self._home = home
        self._files = files

    def of(self, run_id: str, *, coordinator: TrustStore, now_ms: int) -> RunTerms | None:
        """The terms of a run that was shown before, or None.

        Raises:
            TrustRefused: The plan on disk is no longer the one the coordinator signed.
        """
        try:
            return self._files.read(
                self._home.run_file(run_id),
                lambda data: _read(run_id, data, coordinator=coordinator, now_ms=now_ms),
            )
        except FileNotFoundError:
            return None


def _read(run_id: str, data: bytes, *, coordinator: TrustStore, now_ms: int) -> RunTerms:
    try:
        document = json.loads(data)
        token, keys, seed = document["plan"], document["coordinator_keys"], document["rehearsal_seed"]
        settlement = Settlement.from_document(document["settlement"])
    except (ValueError, KeyError, TypeError, DocumentInvalid):
        raise TrustRefused("what was kept of this run's plan is unreadable", got=f"{len(data)} bytes") from None
    # After a restart the coordinator's keys are not at hand until it shows them again. Where it has shown newer ones
    # since, these are refused, and the plan is judged by the newer ones.
    with suppress(TrustRefused):
        coordinator.accept_keys(keys)
    plan = coordinator.accept_payload(token, type=DocumentType.PLAN, role=Role.PLAN, now_ms=now_ms)
    return RunTerms(
        run_id=run_id,
        plan_token=token,
        plan=TrainingPlan.from_payload(plan),
        settlement=settlement,
        rehearsal_seed=seed,
        coordinator_keys=keys,
    )

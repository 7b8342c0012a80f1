"""Updates that have left, or may have: kept until the run closes, so that a retry sends the same one at no new cost.

Sending the same noisy update twice reveals nothing more; training again would be a second use. What lies here is
already private. It is written in the transaction in which the ledger says `sending`: there is never one without the
other.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ringfence_policy import canonical
from ringfence_policy.database import Database
from ringfence_policy.facts import Cost
from ringfence_policy.ledger import HoldState, PrivacyLedger
from ringfence_policy.plan import TrainerName
from ringfence_policy.protocol import UseRequest
from ringfence_policy.vocabulary import Action

_SCHEMA_VERSION = 1
_STATEMENTS = (
    """CREATE TABLE outbox (
        run_id TEXT NOT NULL,
        use TEXT NOT NULL,
        description TEXT NOT NULL,
        arrays BLOB NOT NULL,
        PRIMARY KEY (run_id, use)
    ) STRICT""",
)
_LEFT = (HoldState.SENDING, HoldState.COMMITTED)


@dataclass(frozen=True)
class StoredReply:
    """A reply as it was first sent.

    Attributes:
        hold_id: The hold it was charged under; "" for an exact evaluation.
        digest: Digest of the update or of the result.
        base_model_digest: The model it started from; a retry for another model is another use.
        noise_source: Where its noise was from.
        trainer: What trained; None for an evaluation.
        histogram: Counts by label and score, in thousandths, for an evaluation.
        cost: What it cost under the policy, as decided then.
        file: The update as the safetensors file that its digest is of; empty for an evaluation.
    """

    hold_id: str
    digest: str
    base_model_digest: str
    noise_source: Literal["csprng", "seeded", "none"]
    trainer: TrainerName | None
    histogram: tuple[tuple[int, ...], tuple[int, ...]] | None
    cost: Cost
    file: bytes


class Outbox:
    """A holder's outbox, in its database.

    Args:
        database: The holder's database.

    Raises:
        LedgerFault: The database cannot be used.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        database.install("outbox", version=_SCHEMA_VERSION, statements=_STATEMENTS)

    def keep(self, request: UseRequest, reply: StoredReply) -> None:
        """Keep a reply, in the caller's transaction; a later attempt's takes the place of an earlier one's."""
        description: dict[str, Any] = {
            "hold_id": reply.hold_id,
            "digest": reply.digest,
            "base_model_digest": reply.base_model_digest,
            "noise_source": reply.noise_source,
            "trainer": reply.trainer,
            "histogram": reply.histogram,
            "cost": vars(reply.cost),
        }
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO outbox VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET description = excluded.description, arrays = excluded.arrays",
                (
                    request.run_id,
                    _use(request.action, request.round_number),
                    json.dumps(description, sort_keys=True),
                    reply.file,
                ),
            )

    def find(self, ledger: PrivacyLedger, request: UseRequest) -> StoredReply | None:
        """The reply that already left for this use, or None where it has to be made."""
        found = self._database.rows(
            "SELECT description, arrays FROM outbox WHERE run_id = ? AND use = ?",
            (request.run_id, _use(request.action, request.round_number)),
        )
        if not found:
            return None
        description, data = json.loads(found[0][0]), found[0][1]
        if not _has_left(ledger, description):
            return None
        if description["base_model_digest"] != request.base_model_digest:
            return None
        rows = description["histogram"]
        if rows is None and canonical.digest_bytes(data) != description["digest"]:
            return None  # what lies there is not what was named: it is made anew, and charged
        return StoredReply(
            hold_id=description["hold_id"],
            digest=description["digest"],
            base_model_digest=description["base_model_digest"],
            noise_source=description["noise_source"],
            trainer=description["trainer"],
            histogram=None if rows is None else (tuple(rows[0]), tuple(rows[1])),
            cost=Cost(**description["cost"]),
            file=data if rows is None else b"",
        )

    def cost_of(self, ledger: PrivacyLedger, run_id: str, *, round_number: int) -> Cost | None:
        """What a round cost whose update left already and would only be sent again; None where none left."""
        found = self._database.rows(
            "SELECT description FROM outbox WHERE run_id = ? AND use = ?", (run_id, _use(Action.TRAIN, round_number))
        )
        description = json.loads(found[0][0]) if found else None
        return Cost(**description["cost"]) if description and _has_left(ledger, description) else None

    def empty(self, run_id: str) -> None:
        """Forget a run's replies: it has ended, and none is asked for again."""
        if self.waiting(run_id):
            with self._database.transaction() as connection:
                connection.execute("DELETE FROM outbox WHERE run_id = ?", (run_id,))

    def waiting(self, run_id: str) -> list[str]:
        """The uses of a run whose replies are kept."""
        found = self._database.rows("SELECT use FROM outbox WHERE run_id = ? ORDER BY use", (run_id,))
        return [use for (use,) in found]


def _use(action: Action, round_number: int) -> str:
    return f"{action.value}-{round_number:06d}"


def _has_left(ledger: PrivacyLedger, description: Mapping[str, Any]) -> bool:
    hold = ledger.hold(description["hold_id"]) if description["hold_id"] else None
    return hold is not None and hold.state in _LEFT and hold.update_digest == description["digest"]

"""Updates that have left, or may have: kept until the run closes, so that a retry sends the same one at no new cost.

Sending the same noisy update twice reveals nothing more; training again would be a second use. What lies here is
already private. It is written before the ledger says `sending`, and is believed only where the ledger does say so.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from ringfence_client.home import HolderHome
from ringfence_policy import canonical
from ringfence_policy.durable import write_durably
from ringfence_policy.facts import Cost
from ringfence_policy.ledger import HoldState, PrivacyLedger
from ringfence_policy.protocol import UseRequest

_LEFT = (HoldState.SENDING, HoldState.COMMITTED)


@dataclass(frozen=True)
class StoredReply:
    """A reply as it was first sent.

    Attributes:
        hold_id: The hold it was charged under; "" for an exact evaluation.
        digest: Digest of the update or of the result.
        base_model_digest: The model it started from; a retry for another model is another use.
        noise_source: Where its noise was from.
        histogram: Counts by label and score, in thousandths, for an evaluation.
        cost: What it cost under the policy, as decided then.
        arrays: The update, float32 by parameter name; empty for an evaluation.
    """

    hold_id: str
    digest: str
    base_model_digest: str
    noise_source: Literal["csprng", "seeded", "none"]
    histogram: tuple[tuple[int, ...], tuple[int, ...]] | None
    cost: Cost
    arrays: Mapping[str, npt.NDArray[np.float32]]


def store_reply(home: HolderHome, request: UseRequest, reply: StoredReply) -> None:
    """Keep a reply durably, arrays first: the description without its arrays would be believed."""
    place = home.outbox(request.run_id)
    name = _name(request)
    write_durably(place / f"{name}.safetensors", save(dict(reply.arrays)))
    description: dict[str, Any] = {
        "hold_id": reply.hold_id,
        "digest": reply.digest,
        "base_model_digest": reply.base_model_digest,
        "noise_source": reply.noise_source,
        "histogram": reply.histogram,
        "cost": vars(reply.cost),
    }
    write_durably(place / f"{name}.json", json.dumps(description, sort_keys=True).encode())


def load_reply(home: HolderHome, ledger: PrivacyLedger, request: UseRequest) -> StoredReply | None:
    """The reply that already left for this use, or None where it has to be made."""
    place = home.outbox(request.run_id)
    path = place / f"{_name(request)}.json"
    if not path.exists():
        return None
    description = json.loads(path.read_text())
    hold = ledger.hold(description["hold_id"]) if description["hold_id"] else None
    if hold is None or hold.state not in _LEFT or hold.update_digest != description["digest"]:
        return None
    if description["base_model_digest"] != request.base_model_digest:
        return None
    data = (place / f"{_name(request)}.safetensors").read_bytes()
    rows = description["histogram"]
    if rows is None and canonical.digest_bytes(data) != description["digest"]:
        return None  # a crash left the arrays of a later attempt beside the description of an earlier one
    return StoredReply(
        hold_id=description["hold_id"],
        digest=description["digest"],
        base_model_digest=description["base_model_digest"],
        noise_source=description["noise_source"],
        histogram=None if rows is None else (tuple(rows[0]), tuple(rows[1])),
        cost=Cost(**description["cost"]),
        arrays=load(data),
    )


def _name(request: UseRequest) -> str:
    return f"{request.action.value}-{request.round_number:06d}"

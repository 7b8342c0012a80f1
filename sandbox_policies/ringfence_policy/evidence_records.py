"""The kinds of record an evidence log holds: the closed vocabulary of what leaves a holder as evidence.

Closed on purpose. A log is exported whole, so a member that nobody foresaw could carry a count of records or a score to
everyone who reads the evidence; and a record that no verifier understands would prove nothing. Writer and verifier
share these shapes: `EvidenceLog.append` refuses what `parse_line` does not know.

`run` is "" and `round` 0 for what belongs to no run or round. `at_ms` is the writer's own clock.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ringfence_policy import canonical
from ringfence_policy.errors import EvidenceRefused
from ringfence_policy.plan import TrainerName
from ringfence_policy.vocabulary import Action

Count = Annotated[int, Field(ge=0, le=canonical.MAX_SAFE_INTEGER)]
Text = Annotated[str, Field(max_length=2000)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Token = Annotated[str, Field(max_length=1_000_000)]
History = tuple[tuple[dict[str, Any], Count], ...]


class Record(BaseModel):
    """What every record says: when, and in which run and round."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: Literal[1]
    at_ms: Count
    run: Annotated[str, Field(max_length=128)]
    round: Count


class PlanShown(Record):
    """Holder: a plan was shown and is the one this run may use."""

    kind: Literal["plan-shown"]
    plan_digest: Digest


class DatasetVersion(Record):
    """Holder: the dataset's content is a new version, named by a salted digest of its fingerprint."""

    kind: Literal["dataset-version"]
    dataset_id: Name
    fingerprint_digest: Digest


class HolderDecision(Record):
    """Holder: its gate decided. `private_digest` commits to the actual values that stay at the holder."""

    kind: Literal["decision"]
    decision: dict[str, Any]
    action: Literal["train", "evaluate", "release"]
    hold_id: Text
    inputs: dict[str, Any] | None
    status_seq: Count | None
    policy_key_id: Text | None
    private_digest: Digest | None


class Spending(Record):
    """What a use cost: its mechanism, and the dataset's whole history and epsilon after it, at the dataset's delta."""

    hold_id: Text
    mechanism: dict[str, Any] | None
    epsilon_micro: Count
    delta_pico: Count
    history: History

    @property
    def used_for(self) -> Action:
        """The action that its permits are for: training, where a kind says nothing else."""
        return Action.TRAIN


class Sent(Spending):
    """Holder: an update is about to leave. Written with the ledger's `sending`, so it may be one that was lost.

    `trainer` names the code that trained. Records from before there was a choice lack it: then it was Opacus.
    """

    kind: Literal["sent"]
    base_model_digest: Digest
    update_digest: Digest
    mechanism: dict[str, Any]
    weight: Count
    noise_source: Literal["csprng", "seeded"]
    trainer: TrainerName = "opacus"


class Evaluated(Spending):
    """Holder: the model was measured on its rows. Without a mechanism the measure was exact, and charged nothing."""

    kind: Literal["evaluated"]
    base_model_digest: Digest
    result_digest: Digest
    noise_source: Literal["csprng", "seeded", "none"]

    @property
    def used_for(self) -> Action:
        """Measuring."""
        return Action.EVALUATE


class Charged(Spending):
    """Holder: a use ended after records may have been open, and nothing of it left; how it ended counts as a use."""

    kind: Literal["charged"]
    action: Literal["train", "evaluate"]
    reason: Text
    mechanism: dict[str, Any]

    @property
    def used_for(self) -> Action:
        """What was begun."""
        return Action(self.action)


class HoldReleased(Record):
    """Holder: a reservation was given back; nothing of it left."""

    kind: Literal["hold-released"]
    hold_id: Name
    reason: Text


class Revoked(Record):
    """Holder: its node learnt that the data officer revoked a policy."""

    kind: Literal["revoked"]
    policy_id: Name


class Suspended(Record):
    """Holder: its node learnt that the data officer suspended every use, by the status of that number."""

    kind: Literal["suspended"]
    status_seq: Count


class SuspensionLifted(Record):
    """Holder: its node learnt that the data officer lifted the suspension, by the status of that number."""

    kind: Literal["suspension-lifted"]
    status_seq: Count


class PeerCheckpointAtHolder(Record):
    """Holder: the coordinator showed this signed checkpoint of its log."""

    kind: Literal["peer-checkpoint"]
    checkpoint: Token


class RunStarted(Record):
    """Coordinator: a run began, with these holders, from this model."""

    kind: Literal["run-started"]
    plan_digest: Digest
    holders: tuple[Name, ...]
    model_digest: Digest


class CoordinatorDecision(Record):
    """Coordinator: its gate decided whether a holder is asked at all."""

    kind: Literal["decision"]
    holder: Name
    decision: dict[str, Any]
    action: Literal["train", "evaluate", "release"]
    inputs: dict[str, Any] | None


class UpdateReceived(Record):
    """Coordinator: an update came and passed the checks before aggregation."""

    kind: Literal["update-received"]
    holder: Name
    hold_id: Name
    update_digest: Digest


class UpdateRefused(Record):
    """Coordinator: no usable update came from a holder in this round, and why."""

    kind: Literal["update-refused"]
    holder: Name
    reason: Text
    code: Annotated[str, Field(max_length=100)] | Count


class RoundCommitted(Record):
    """Coordinator: the round's updates were aggregated into this model."""

    kind: Literal["round-committed"]
    cohort: tuple[Name, ...]
    updates: dict[str, Digest]
    refused: dict[str, tuple[Text, ...]]
    model_digest: Digest


class ModelAveraged(Record):
    """Coordinator: the models of these committed rounds were averaged into this one."""

    kind: Literal["model-averaged"]
    model_digest: Digest
    rounds: Annotated[tuple[Count, ...], Field(min_length=1)]


class ModelReleased(Record):
    """Coordinator: this model, by the digest of its file, is the run's result. `rounds`: how many, or which."""

    kind: Literal["model-released"]
    model_digest: Digest
    rounds: Count | tuple[Count, ...]


class PeerCheckpointAtCoordinator(Record):
    """Coordinator: a holder showed this signed checkpoint of its log."""

    kind: Literal["peer-checkpoint"]
    holder: Name
    checkpoint: Token


class Resumed(Record):
    """Coordinator: the run went on after an interruption, starting again with this round."""

    kind: Literal["resumed"]
    from_round: Count


_AT_HOLDER: Mapping[str, type[Record]] = {
    "plan-shown": PlanShown,
    "dataset-version": DatasetVersion,
    "decision": HolderDecision,
    "sent": Sent,
    "evaluated": Evaluated,
    "charged": Charged,
    "hold-released": HoldReleased,
    "revoked": Revoked,
    "suspended": Suspended,
    "suspension-lifted": SuspensionLifted,
    "peer-checkpoint": PeerCheckpointAtHolder,
}
_AT_COORDINATOR: Mapping[str, type[Record]] = {
    "run-started": RunStarted,
    "decision": CoordinatorDecision,
    "update-received": UpdateReceived,
    "update-refused": UpdateRefused,
    "round-committed": RoundCommitted,
    "model-averaged": ModelAveraged,
    "model-released": ModelReleased,
    "peer-checkpoint": PeerCheckpointAtCoordinator,
    "resumed": Resumed,
}
_ANYWHERE: Mapping[str, type[Record]] = {**_AT_COORDINATOR, **_AT_HOLDER}
_READERS: Mapping[type[Record], TypeAdapter[Any]] = {
    shape: TypeAdapter(shape) for shape in {*_AT_HOLDER.values(), *_AT_COORDINATOR.values()}
}


HOLDER_RECORDS = tuple(_AT_HOLDER.values())
COORDINATOR_RECORDS = tuple(_AT_COORDINATOR.values())


def parse_record(record: Mapping[str, Any]) -> Record:
    """Read one record of either kind of log. A decision or checkpoint that names a holder is the coordinator's.

    Raises:
        EvidenceRefused: An unknown kind, a missing or unknown member, or a wrong type. Names members, never values.
    """
    return parse_line(record, canonical.encode(dict(record)))


def parse_line(record: Mapping[str, Any], line: bytes) -> Record:
    """As `parse_record`, where the record's canonical bytes are at hand already.

    Raises:
        EvidenceRefused: As `parse_record`.
    """
    kind = record.get("kind")
    shapes = _AT_COORDINATOR if "holder" in record else _ANYWHERE
    if not isinstance(kind, str) or kind not in shapes:
        raise EvidenceRefused(
            "an unknown kind of evidence record", expected=f"one of {', '.join(sorted(shapes))}", got=repr(kind)[:80]
        )
    try:
        found: Record = _READERS[shapes[kind]].validate_json(line)
    except ValidationError as error:
        places = sorted({".".join(str(part) for part in item["loc"]) or "the whole" for item in error.errors()})
        raise EvidenceRefused(
            f"a {kind} record does not have its shape",
            expected=", ".join(name for name in shapes[kind].model_fields),
            got=f"something else at {', '.join(places[:5])}",
        ) from None
    _refuse_private_facts(found)
    return found


def _refuse_private_facts(record: Record) -> None:
    if not isinstance(record, HolderDecision | CoordinatorDecision):
        return
    failed = record.decision.get("failed")
    shown = [one.get("actual") for one in failed if isinstance(one, dict)] if isinstance(failed, list) else []
    if any(value is not None for value in shown) or "records" in (record.inputs or {}):
        raise EvidenceRefused(
            "an evidence record shows what only the holder may see",
            expected="Decision.for_outsiders() and RoundRequest.public_facts()",
            got="actual values or a count of records",
        )

"""What coordinator and data holder say to each other, as typed bodies inside Flower's messages.

Neither side imports the other, so the words they share stand here. A body travels as canonical JSON in one
ConfigRecord of Flower; model arrays travel beside it in Flower's own ArrayRecord. A refusal travels as a Flower Error
whose reason is a `Refusal`. Signed things stay signed: a body carries their JWS and never an unpacked copy.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ringfence_policy import canonical
from ringfence_policy.errors import TrustRefused
from ringfence_policy.strict_toml import LARGEST
from ringfence_policy.vocabulary import Action, Evaluation

# Flower's record keys and message types, in one place.
BODY_RECORD = "ringfence"
BODY_KEY = "body"
SIGNATURE_KEY = "signature"
ARRAYS_RECORD = "arrays"
# The one array in it: a model or an update as the bytes of its safetensors file, because Flower moves each array by
# requests of its own, and because what is named by a digest then travels as the very bytes that the digest is of.
FILE_KEY = "safetensors"
# What Flower calls its serialization (`stype`): not numpy's format around the file, which costs more to read than it.
FILE_TYPE = "safetensors"
METRICS_RECORD = "metrics"
WEIGHT_KEY = "num-examples"
PROPOSE = "query.propose"
OFFER = "query.offer"
RELEASE = "query.release"
EVIDENCE = "query.evidence"

# Flower reserves error codes below 100.
REFUSED_CODE = 451
FAULT_CODE = 500

LARGEST_BODY_BYTES = 64 * 1024 * 1024

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Token = Annotated[str, Field(max_length=1_000_000)]
# Names files at every holder, so it may not walk: no separators, no leading dot.
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
NodeHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# As large as the facts of a request may be (request.RoundRequest).
Amount = Annotated[int, Field(ge=0, le=LARGEST)]
RoundNumber = Annotated[int, Field(ge=0, le=1_000_000)]


class Body(BaseModel):
    """The base of everything said: strict, closed and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def to_bytes(self) -> bytes:
        """The body as canonical JSON."""
        return canonical.encode(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: object) -> Self:
        """Read a body, refusing anything that is not exactly one.

        Raises:
            TrustRefused: Not bytes, too large, not canonical, or not of this shape. Names fields, never values.
        """
        if not isinstance(data, bytes) or len(data) > LARGEST_BODY_BYTES:
            raise TrustRefused(
                "a message body is unreadable", expected=f"{cls.__name__} as bytes", got=type(data).__name__
            )
        canonical.decode(data)
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            fields = ", ".join(sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()}))
            raise TrustRefused("a message body has the wrong shape", expected=cls.__name__, got=fields) from None


class RequestSignature(Body):
    """The coordinator's signature beside a body: a signed `RequestBatch`, and the proof that the message is in it."""

    batch: Token
    index: int = Field(ge=0)
    proof: tuple[NodeHash, ...] = Field(default=(), max_length=64)


class LogView(Body):
    """A signed checkpoint of the speaker's evidence log, and the proof that it extends what the listener saw before.

    `proof` is an RFC 9162 consistency proof (hex hashes) from `since` to the checkpoint's size.
    """

    checkpoint: Token
    since: int = Field(ge=0)
    proof: tuple[NodeHash, ...] = Field(default=(), max_length=128)


class HolderCard(Body):
    """What the coordinator learns about a holder when it registers: who it is, its public weight, its root key."""

    holder_id: str
    name: str
    region: str
    weight: int = Field(ge=1)
    root: dict[str, str]


class Proposal(Body):
    """The coordinator shows a signed plan. Showing starts nothing; a round for any other plan is refused.

    `known_size`: how much of the holder's log the coordinator has seen, in earlier runs or before it was interrupted.
    """

    run_id: RunId
    plan: Token
    coordinator_keys: Token
    rehearsal_seed: int | None = None
    known_size: int = Field(default=0, ge=0)


class Standing(Body):
    """What the next round would cost this holder, in its own unsigned word.

    It saves the coordinator a refused request and protects nobody: the holder decides again, from its ledger.
    """

    mechanism: dict[str, Any]
    evaluation: Evaluation
    rounds_used: Amount
    rounds_left: Amount
    epsilon_after_micro: Amount
    epsilon_cost_micro: Amount
    dataset_epsilon_micro: Amount
    dataset_epsilon_cap_micro: Amount
    dataset_delta_pico: Amount


class Introduction(Body):
    """A data holder's signed papers, and on what terms it could take part in the next round.

    `strangers` are the plan's holders that this one does not know by root key, and so cannot count in a cohort.
    """

    holder_id: str
    keys: Token
    policy: Token
    status: Token
    participation: Token
    standing: Standing
    strangers: tuple[str, ...] = ()
    coordinator_log_seen: int = Field(ge=0)
    log: LogView


class Offer(Body):
    """The coordinator asks, before a round, for fresh papers. `known_size` is what it has seen of the holder's log."""

    run_id: RunId
    round_number: RoundNumber
    plan_digest: Digest
    known_size: int = Field(ge=0)


class PeerPapers(Body):
    """One cohort member's papers, from which every other member counts the cohort for itself."""

    keys: Token
    status: Token
    participation: Token


class UseRequest(Body):
    """The coordinator asks a holder for one use of its data: one round of training, or one evaluation.

    `log` comes with training. An evaluation follows a training whose refusal would leave open what the holder has seen.
    """

    run_id: RunId
    round_number: RoundNumber
    attempt: int = Field(ge=1, le=1000)
    action: Literal[Action.TRAIN, Action.EVALUATE]
    plan_digest: Digest
    base_model_digest: Digest
    cohort: dict[str, PeerPapers]
    known_size: int = Field(ge=0)
    log: LogView | None


class UseReply(Body):
    """What a holder says beside its update or its evaluation.

    `epsilon_micro` is the dataset's epsilon after this use, at the dataset's delta. `histogram` has, for an evaluation,
    two rows (label 0, label 1) of counts by score, in thousandths: exact counts, or noisy ones. `next` has, after
    training, the papers for the round after this one, which so need not be asked for; None where they do not hold.
    """

    hold_id: Annotated[str, Field(max_length=200)]
    digest: Digest
    mechanism: dict[str, Any] | None
    noise_source: Literal["csprng", "seeded", "none"]
    epsilon_micro: int = Field(ge=0)
    histogram: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    log: LogView
    next: Introduction | None = None


class Refusal(Body):
    """A denial for outsiders: every failed clause with its meaning, and no count of records.

    A holder that refuses to show papers still says how much of the coordinator's log it has seen, so that it can be
    shown the rest of it when evidence is handed over.
    """

    decision: dict[str, Any]
    coordinator_log_seen: int | None = Field(default=None, ge=0)


class ReleaseRequest(Body):
    """The coordinator asks, after the last round, whether the model may be released as the plan says."""

    run_id: RunId
    plan_digest: Digest
    model_digest: Digest


class ReleaseReply(Body):
    """A holder's decision on the release, for outsiders."""

    decision: dict[str, Any]


class EvidenceRequest(Body):
    """The coordinator ends a run: it shows its log for the last time and asks for the holder's evidence."""

    run_id: RunId
    plan_digest: Digest
    log: LogView


class EvidenceReply(Body):
    """A holder's evidence of this and every earlier run: its public records, its papers, and its budget."""

    keys: Token
    policies: tuple[Token, ...]
    status: Token
    participation: Token
    records: tuple[str, ...]
    checkpoint: Token
    dataset_epsilon_micro: int = Field(ge=0)
    dataset_epsilon_replace_one_micro: int = Field(ge=0)  # the same noise read under the other relation, for display
    dataset_delta_pico: int = Field(ge=0)

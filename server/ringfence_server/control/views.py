"""What use cases answer with: plain values, ready to be shown or sent. None holds a record or a count of records.

Epsilon is a number at the delta beside it. Times are milliseconds since 1970.
"""

from enum import StrEnum
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class View(BaseModel):
    """A value that does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Page(View, Generic[T]):
    """Some of many. `next` asks for what follows; None at the end."""

    items: tuple[T, ...]
    next: str | None = None


class Reason(View):
    """A clause that failed, in plain words, and the limit it sets, as outsiders may know it."""

    clause: str
    sentence: str
    limit: str = ""


class HolderForecast(View):
    """What one data holder's policy would say to a plan.

    Attributes:
        permitted: Whether it would permit all of it; null where the holder decides on its own machine.
        rounds_permitted: How many of the plan's rounds it would permit; null where it is not known here.
        change: What change of the plan would make it pass; "" where none would or none is needed.
        note: Where nothing can be foreseen here: why, and whether the holder is connected.
    """

    holder: str
    permitted: bool | None
    rounds_permitted: int | None
    reasons: tuple[Reason, ...]
    change: str = ""
    note: str = ""


class PlanView(View):
    """A plan that lies in the site, ready to be proposed. Where the file is no valid plan, `plan_id` is empty."""

    name: str
    plan_id: str
    title: str
    purpose: str
    rounds: int
    text: str


class AnswerView(View):
    """What a data officer said to a proposal. `answer` is "waits", "approved", "declined" or "policy decides"."""

    holder: str
    answer: str
    note: str = ""
    by: str = ""
    at_ms: int | None = None


class ProposalView(View):
    """A plan that was proposed, and what the data officers say."""

    id: str
    plan_id: str
    title: str
    purpose: str
    rounds: int
    text: str
    by: str
    at_ms: int
    answers: tuple[AnswerView, ...]
    runs: tuple[str, ...]


class RunState(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUSPENDED = "suspended"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"
    FAILED = "failed"
    REFUSED = "refused"


class Answered(StrEnum):
    """What one holder did in one round."""

    TRAINS = "trains"
    REFUSED = "refused"
    NO_REPLY = "no-reply"
    REJECTED = "rejected"


class Cell(View):
    """One holder in one round. `reasons` says why, where it did not train."""

    holder: str
    answer: Answered
    reasons: tuple[Reason, ...] = ()
    point: str = ""


class RoundView(View):
    """One round: who trained, what the model scored, what each dataset had spent after it."""

    round: int
    committed: bool
    reason: str
    seconds: float
    cells: tuple[Cell, ...]
    accuracy: float | None
    auc: float | None
    epsilon: dict[str, float]


class RunHolder(View):
    """A data holder of a run, with the budget of its dataset: how much of it all runs had spent so far, and the cap."""

    holder: str
    name: str
    epsilon: float
    epsilon_cap: float


class ErrorView(View):
    """Why a run stopped, and what to do."""

    code: str
    summary: str
    next_step: str = ""


class RunView(View):
    """A run.

    Attributes:
        doing: What it does at this moment, in a few words.
        in_round: Who trains in the round that is open; empty between rounds.
        final_accuracy: Of the released model, once it was measured.
    """

    run_id: str
    proposal: str | None
    title: str
    state: RunState
    doing: str
    rehearsal: bool
    rounds_planned: int
    rounds: tuple[RoundView, ...]
    in_round: tuple[str, ...]
    holders: tuple[RunHolder, ...]
    refused_plan: tuple[Cell, ...]
    by: str
    begun_ms: int
    changed_ms: int
    reason: str
    error: ErrorView | None
    verified: bool | None
    final_accuracy: float | None
    final_auc: float | None


class RunSummary(View):
    """A run in a list."""

    run_id: str
    title: str
    state: RunState
    rehearsal: bool
    rounds_planned: int
    rounds_closed: int
    by: str
    begun_ms: int


class EventView(View):
    """Something that happened in a run. `seq` only rises; what follows it can be asked for."""

    seq: int
    name: str
    at_ms: int
    body: dict[str, Any]


class Comparison(View):
    """Runs side by side, each with its rounds."""

    runs: tuple[RunView, ...]


class Meter(View):
    """A budget. The holder sees all of it; others see `used`, the share that is spent, and what runs publish.

    Attributes:
        owner: "dataset" or "policy".
        quantity: "epsilon", "delta" or "rounds".
        used: In [0, 1].
        words: In plain words.
    """

    owner: str
    name: str
    quantity: str
    used: float
    cap: float | None = None
    spent: float | None = None
    reserved: float | None = None
    words: str


class HolderView(View):
    """A data holder as the role of whoever asks may see it.

    Attributes:
        standing: What its next gate will say: stands, revoked, suspended, edited or unsigned. In a deployment, where
            only its own machine knows that: connected, not connected or never connected.
        sentences: The policy, in plain English; none in a deployment, and no meters.
        own: Whether this is the asker's own data, with figures that nobody else is shown.
        local: Whether its policy, ledger and keys lie here; in a deployment they are on its own machine.
    """

    holder: str
    name: str
    region: str
    policy: str
    standing: str
    reason: str
    sentences: tuple[str, ...]
    meters: tuple[Meter, ...]
    asks_first: bool
    own: bool
    local: bool


class HolderSummary(View):
    """A data holder in a list."""

    holder: str
    name: str
    region: str
    standing: str


class PolicyText(View):
    """A policy as its officer edits it. `etag` names this very text."""

    text: str
    etag: str


class UseView(View):
    """What one run took from a holder's data; for the holder's own officer."""

    run: str
    title: str
    rounds: int
    evaluations: int
    reserved: int
    given_back: int
    epsilon: float
    delta: float


class DecisionView(View):
    """One decision out of a holder's own log, for its own officer: with the figures that are sealed for others."""

    at_ms: int
    run: str
    round: int
    point: str
    action: str
    permitted: bool
    policy: str
    reasons: tuple[Reason, ...]


class PendingView(View):
    """A proposal that waits for a data officer, with what its policy would say."""

    proposal: ProposalView
    forecast: HolderForecast


class CheckView(View):
    """One check of a run's evidence."""

    name: str
    passed: bool
    detail: str


class EvidenceView(View):
    """What verifying a run's evidence found. `state` is "verified", "not verified" or "not there yet"."""

    run_id: str
    state: str
    digest: str
    rehearsal: bool
    checks: tuple[CheckView, ...]
    not_proved: tuple[str, ...]


class EntryView(View):
    """A record of a log in a run's evidence, in a list."""

    owner: str
    position: int
    kind: str
    at_ms: int
    round: int
    summary: str


class ProofView(View):
    """A record with what proves it: its bytes, its leaf hash, the path to the root that its owner signed.

    Hashes are hexadecimal. RFC 6962: a leaf is SHA-256 of 0x00 and the record, a node of 0x01 and its two children.
    """

    owner: str
    position: int
    size: int
    record: dict[str, Any]
    reasons: tuple[Reason, ...]
    leaf: str
    path: tuple[str, ...]
    root: str
    signed_by: str
    holds: bool


class TokenView(View):
    """A token for scripts. `secret` is there once, when it was made."""

    id: str
    name: str
    role: str
    holder: str | None
    by: str
    made_ms: int
    ends_ms: int
    revoked_ms: int | None
    secret: str | None = None


class ReadView(View):
    """What a regulator looked at, and when."""

    at_ms: int
    by: str
    what: str

"""The gate around a holder's data: prepare (decide, reserve), then training or evaluation, then finish (decide, send).

Whether one holder is asked or a thousand at once, each passes through these steps for itself. The order is the promise:
the decision and the reservation are on disk before data is used, and an update counts as spent before it leaves.
"""

from dataclasses import dataclass
from functools import cached_property

from safetensors.numpy import save

from ringfence_client.deadline import unless_late
from ringfence_client.node import HolderNode
from ringfence_client.outbox import StoredReply
from ringfence_client.papers import Papers, denial_of
from ringfence_client.recovery import record_unsent
from ringfence_client.run_terms import RunTerms
from ringfence_client.workroom import Arrays, Histogram, Measured, Result, check_arrays
from ringfence_policy import canonical
from ringfence_policy.accounting import epsilon_micro
from ringfence_policy.decision import Decision, Point
from ringfence_policy.errors import BudgetExhausted, LedgerFault, RingfenceError
from ringfence_policy.facts import Cost
from ringfence_policy.mechanism import DpMechanism, history_to_document
from ringfence_policy.plan import TrainerName
from ringfence_policy.protocol import UseReply, UseRequest
from ringfence_policy.request import RoundRequest
from ringfence_policy.vocabulary import Action, Evaluation


@dataclass(frozen=True, eq=False)
class GlobalModel:
    """The model that a round starts from, as the coordinator sent it: not trusted.

    Attributes:
        arrays: float32 by parameter name; never changed.
    """

    arrays: Arrays

    def __post_init__(self) -> None:
        """Make the arrays read-only: many holders are handed the same ones."""
        for array in self.arrays.values():
            array.setflags(write=False)

    @cached_property
    def digest(self) -> str:
        """Its name, worked out once."""
        return model_digest(self.arrays)


@dataclass(frozen=True)
class Prepared:
    """A use that was permitted and, where it costs anything, reserved.

    Attributes:
        arrays: The global model the use starts from.
        mechanism: What the use applies; None for an exact evaluation.
        hold_id: Its reservation; "" where nothing is reserved.
        cost: What it costs under the policy.
        trainer: What trains; None for an evaluation.
        received: When the request came, in seconds of this machine's monotonic clock.
        stored: The reply that already left for this very use, to be sent again instead of using data anew.
    """

    node: HolderNode
    request: UseRequest
    terms: RunTerms
    papers: Papers
    arrays: Arrays
    mechanism: DpMechanism | None
    hold_id: str
    cost: Cost
    cohort_size: int
    trainer: TrainerName | None
    received: float
    stored: StoredReply | None = None


@dataclass(frozen=True)
class Answer:
    """What goes back to the coordinator: the update's file (empty for an evaluation) and the body beside it."""

    file: bytes
    body: UseReply


def model_digest(arrays: Arrays) -> str:
    """Name a model or an update by its bytes in the safetensors format, which is also the released file's."""
    return canonical.digest_bytes(save(dict(arrays)))


def prepare(node: HolderNode, request: UseRequest, model: GlobalModel, *, received: float) -> Prepared | Decision:
    """Decide on this machine whether a use may happen, and reserve its cost (the second enforcement point).

    Args:
        node: The holder's node.
        request: What the coordinator asks.
        model: The model it sends along.
        received: When the request came, in seconds of the monotonic clock.

    Raises:
        LedgerFault: Nothing can be recorded here, so nothing is used.
    """
    try:
        use = _judge_request(node, request, model, received=received)
        if isinstance(use, Prepared):
            if use.stored is not None:
                return use
            if use.trainer is not None:
                terms = use.terms
                node.workroom.check_training(
                    terms.run_id, terms.plan, terms.settlement.training, seed=terms.rehearsal_seed
                )
            return _reserve(use)
    except LedgerFault:
        raise  # a refusal could not be recorded either
    except RingfenceError as error:
        use = denial_of(error, point=Point.BEFORE_TRAINING)
    node.record_refusal(use, run_id=request.run_id, round_number=request.round_number, action=request.action)
    return use


def _judge_request(
    node: HolderNode, request: UseRequest, model: GlobalModel, *, received: float
) -> Prepared | Decision:
    point = Point.BEFORE_TRAINING
    terms = node.terms(request.run_id, plan_digest=request.plan_digest, point=point)
    papers = node.papers(point=point)
    if isinstance(terms, Decision):
        return terms
    if isinstance(papers, Decision):
        return papers
    with node.database.transaction():
        node.acknowledge(request.run_id)
        if request.log is not None:
            node.see(request.log, run_id=request.run_id)
    refusal = _cannot_start(terms, request, model)
    if refusal is not None:
        return refusal
    # Whatever can be wrong with the model is found before data is opened; a fault after that is charged.
    examined = node.workroom.examine(terms.plan)
    check_arrays(model.arrays, examined.shapes)
    training = request.action is Action.TRAIN
    trainer = examined.trainer if training else None
    mechanism = terms.settlement.training if training else terms.settlement.evaluation
    stored = node.outbox.find(node.ledger, request)
    hold_id = _hold_id(request) if mechanism is not None else ""
    if stored is None and hold_id and node.ledger.hold(hold_id) is not None:
        return Decision.deny("attempt", limit="a new attempt, which is charged anew", point=point)
    return Prepared(
        node=node,
        request=request,
        terms=terms,
        papers=papers,
        arrays=model.arrays,
        mechanism=mechanism,
        hold_id=hold_id if stored is None else stored.hold_id,
        cost=node.cost(terms, papers.policy, mechanism) if stored is None else stored.cost,
        cohort_size=node.count_cohort(terms, request.cohort, training_round=request.round_number if training else None),
        trainer=trainer,
        received=received,
        stored=stored,
    )


def finish(prepared: Prepared, result: Result | None) -> Answer | Decision:
    """Decide again, mark the use as sent, and hand over the answer (the third enforcement point).

    Args:
        prepared: What `prepare` gave.
        result: What training or evaluation gave; None where a stored reply is sent again.
    """
    node, point = prepared.node, Point.BEFORE_UPLOAD
    papers = node.papers(point=point)
    if isinstance(papers, Decision):
        give_up(prepared, reason=", ".join(papers.clauses))
        return papers
    fault = None if result is None else _not_as_charged(prepared, result)
    if fault is not None:
        decision = Decision.deny(
            "mechanism", "Clip and noise must be applied as they were charged.", limit=fault, point=point
        )
        facts = None
    else:
        decision, facts = _decide_sending(prepared, papers)
    reply = prepared.stored if result is None else _reply_of(prepared, result)
    # Invariant: the update is kept and counts as spent, on disk together, before it leaves.
    with node.database.transaction():
        _record(prepared, papers, decision, facts)
        if not decision.permitted or reply is None:
            give_up(prepared, reason=", ".join(decision.clauses), failed=fault is not None)
            return decision
        if result is not None:
            node.outbox.keep(prepared.request, reply)
            _mark_sent(prepared, reply)
    return _answer(prepared, reply)


def charge_failure(prepared: Prepared) -> Decision | None:
    """Charge a use that failed after data was opened: that it failed may say something about a record.

    Returns:
        The denial to answer with instead, where nothing may leave any more.
    """
    node = prepared.node
    papers = node.papers(point=Point.BEFORE_UPLOAD)
    if isinstance(papers, Decision):
        give_up(prepared, reason=", ".join(papers.clauses))
        return papers
    decision, facts = _decide_sending(prepared, papers)
    with node.database.transaction():
        _record(prepared, papers, decision, facts)
        if not decision.permitted:
            give_up(prepared, reason=", ".join(decision.clauses))
            return decision
        give_up(prepared, reason="failed", failed=True)
    return None


def give_up(prepared: Prepared, *, reason: str, failed: bool = False) -> None:
    """Settle a reservation of which nothing leaves: charge it where its end may tell of a record, else give it back.

    Args:
        prepared: What `prepare` gave.
        reason: Why nothing leaves.
        failed: That it failed after data was opened.
    """
    node = prepared.node
    if prepared.hold_id and prepared.stored is None:
        charged = failed or prepared.terms.plan.runs_own_code
        with node.database.transaction():
            hold = (node.ledger.charge if charged else node.ledger.release)(prepared.hold_id, reason)
            record_unsent(node.ledger, hold, node.append)


def _decide_sending(prepared: Prepared, papers: Papers) -> tuple[Decision, RoundRequest]:
    decision, facts = prepared.node.decide(
        prepared.terms,
        papers,
        action=prepared.request.action,
        point=Point.BEFORE_UPLOAD,
        cohort_size=prepared.cohort_size,
        mechanism=prepared.mechanism,
        cost=prepared.cost,
    )
    if prepared.stored is None:  # what left in time before is only sent again
        decision = unless_late(decision, facts, since=prepared.received, plan=prepared.terms.plan)
    return decision, facts


def _record(prepared: Prepared, papers: Papers, decision: Decision, facts: RoundRequest | None) -> None:
    prepared.node.record_decision(
        decision,
        terms=prepared.terms,
        papers=papers,
        facts=facts,
        action=prepared.request.action,
        round_number=prepared.request.round_number,
        hold_id=prepared.hold_id,
    )


def _cannot_start(terms: RunTerms, request: UseRequest, model: GlobalModel) -> Decision | None:
    point = Point.BEFORE_TRAINING
    if model.digest != request.base_model_digest:
        return Decision.deny("plan", "The model must be the one that the request names.", point=point)
    if request.action is Action.TRAIN and request.log is None:
        return Decision.deny("plan", "A round must come with the coordinator's log.", point=point)
    if not 1 <= request.round_number <= terms.plan.terms.training.rounds:
        limit = f"rounds 1 to {terms.plan.terms.training.rounds}"
        return Decision.deny("plan", "The round must be one of the plan's.", limit=limit, point=point)
    if request.action is Action.EVALUATE and terms.settlement.evaluation_mode is Evaluation.NONE:
        meaning = "Plan and policy together allow no evaluation here."
        return Decision.deny("evaluation", meaning, limit="none", point=point)
    return None


def _reserve(wanted: Prepared) -> Prepared | Decision:
    node, request = wanted.node, wanted.request
    policy = wanted.papers.policy
    # Invariant: decision and reservation are on disk together, before data is used.
    with node.database.transaction():
        decision, facts = node.decide(
            wanted.terms,
            wanted.papers,
            action=request.action,
            point=Point.BEFORE_TRAINING,
            cohort_size=wanted.cohort_size,
            mechanism=wanted.mechanism,
            cost=wanted.cost,
        )
        decision = unless_late(decision, facts, since=wanted.received, plan=wanted.terms.plan)
        if decision.permitted and wanted.mechanism is not None:
            try:
                node.ledger.reserve(
                    wanted.hold_id,
                    run_id=request.run_id,
                    round_number=request.round_number,
                    attempt=request.attempt,
                    dataset_id=policy.dataset_id,
                    policy_id=policy.policy_id,
                    mechanism=wanted.mechanism,
                    action=request.action,
                )
            except BudgetExhausted as error:
                decision = Decision.deny(
                    "dataset-budget",
                    point=Point.BEFORE_TRAINING,
                    limit=error.expected or "",
                    actual=error.got,
                    policy=policy.reference,
                    policy_digest=policy.digest,
                    inputs_digest=facts.digest(),
                )
        node.record_decision(
            decision,
            terms=wanted.terms,
            papers=wanted.papers,
            facts=facts,
            action=request.action,
            round_number=request.round_number,
            hold_id=wanted.hold_id if decision.permitted else "",
        )
    return wanted if decision.permitted else decision


def _not_as_charged(prepared: Prepared, result: Result) -> str | None:
    """What was applied, read back from what applied it, against what the ledger charged; None where they agree."""
    applied = result.applied
    if prepared.mechanism is None or applied is None:
        return None if prepared.mechanism is None and applied is None else "noise exactly where it was charged"
    if not applied.keeps(prepared.mechanism):
        return "clip, noise, sampling rate and steps exactly as charged"
    expected = "seeded" if prepared.terms.plan.rehearsal else "csprng"
    return None if applied.noise_kind == expected else f"noise from the {expected} source"


def _reply_of(prepared: Prepared, result: Result) -> StoredReply:
    if isinstance(result, Measured):
        histogram: Histogram | None = result.histogram
        trainer: TrainerName | None = None
        file = b""
        digest = canonical.digest([list(row) for row in result.histogram])
    else:
        histogram, trainer, file = None, result.trainer, save(dict(result.arrays))
        digest = canonical.digest_bytes(file)
    return StoredReply(
        hold_id=prepared.hold_id,
        digest=digest,
        base_model_digest=prepared.request.base_model_digest,
        noise_source="none" if result.applied is None else result.applied.noise_kind,
        trainer=trainer,
        histogram=histogram,
        cost=prepared.cost,
        file=file,
    )


def _mark_sent(prepared: Prepared, reply: StoredReply) -> None:
    node, request, mechanism = prepared.node, prepared.request, prepared.mechanism
    dataset = node.home.profile.dataset
    if mechanism is not None:
        # Invariant: what leaves is spent before it leaves. From here on nothing gives the budget back.
        node.ledger.mark_sending(prepared.hold_id, update_digest=reply.digest)
    history = node.ledger.history(dataset.dataset_id, reserved=False)
    members = {
        "hold_id": prepared.hold_id,
        "mechanism": None if mechanism is None else mechanism.to_document(),
        "base_model_digest": reply.base_model_digest,
        "noise_source": reply.noise_source,
        "epsilon_micro": epsilon_micro(history, delta_pico=dataset.delta_pico),
        "delta_pico": dataset.delta_pico,
        "history": history_to_document(history),
    }
    if request.action is Action.TRAIN:
        members |= {"update_digest": reply.digest, "weight": dataset.weight, "trainer": reply.trainer}
    else:
        members |= {"result_digest": reply.digest}
    kind = "sent" if request.action is Action.TRAIN else "evaluated"
    node.append(kind, run_id=request.run_id, round_number=request.round_number, **members)


def _answer(prepared: Prepared, reply: StoredReply) -> Answer:
    node, request = prepared.node, prepared.request
    dataset = node.home.profile.dataset
    history = node.ledger.history(dataset.dataset_id, reserved=False)
    training = request.action is Action.TRAIN
    # First, because it may add to the log that is then shown.
    shown = node.shown_next(prepared.terms, round_number=request.round_number + 1) if training else None
    body = UseReply(
        hold_id=reply.hold_id,
        digest=reply.digest,
        mechanism=None if prepared.mechanism is None else prepared.mechanism.to_document(),
        noise_source=reply.noise_source,
        epsilon_micro=epsilon_micro(history, delta_pico=dataset.delta_pico),
        histogram=reply.histogram,
        log=node.log_view(since=request.known_size),
        next=shown,
    )
    return Answer(file=reply.file, body=body)


def _hold_id(request: UseRequest) -> str:
    return f"{request.run_id}/{request.round_number}/{request.action.value}/{request.attempt}"

"""The data holder's Flower ClientApp: messages in, messages out, with the gate as a mod that nothing gets around.

`app` answers one message for one holder, as a SuperNode delivers it. `cohort` answers many at once, for the engine that
keeps many holders in one process. Both take the same three steps for every message: prepare, use, finish.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from logging import getLogger
from pathlib import Path
from traceback import format_tb
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from safetensors import SafetensorError
from safetensors.numpy import load

from ringfence_client import enforcement
from ringfence_client.deadline import received
from ringfence_client.enforcement import GlobalModel, Prepared, charge_failure, finish, give_up
from ringfence_client.home import HolderHome
from ringfence_client.node import HolderNode
from ringfence_client.papers import denial_of
from ringfence_client.use import use_together
from ringfence_client.workroom import Result
from ringfence_policy.database import SyncedTogether, synced_together
from ringfence_policy.decision import Decision, Point
from ringfence_policy.errors import Fault, LedgerFault, RingfenceError, TrustRefused
from ringfence_policy.identity import PublicKey
from ringfence_policy.protocol import (
    ARRAYS_RECORD,
    BODY_KEY,
    BODY_RECORD,
    FAULT_CODE,
    FILE_KEY,
    FILE_TYPE,
    METRICS_RECORD,
    REFUSED_CODE,
    SIGNATURE_KEY,
    WEIGHT_KEY,
    Body,
    EvidenceRequest,
    Offer,
    Proposal,
    Refusal,
    ReleaseRequest,
    UseRequest,
)
from ringfence_policy.vocabulary import Action

B = TypeVar("B", bound=Body)
S = TypeVar("S", bound=Prepared | Message)

_log = getLogger(__name__)
_prepared: ContextVar[Prepared] = ContextVar("ringfence_prepared_use")
_adopted: dict[tuple[str, str], HolderNode] = {}
_opened: dict[tuple[str, str], HolderNode] = {}
_CLOSING_THREADS = 8


def cohort(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    """Answer one phase's messages for many holders in this process; one holder is a cohort of one.

    Each message is decided, charged and answered for its own holder. Only the training of those who are permitted is
    done together.
    """
    since = received()
    with synced_together() as group:
        steps = [
            _first_step(message, context, since=since) for message, context in zip(messages, contexts, strict=True)
        ]
    # Invariant: every decision and reservation is on disk, or its holder's data stays closed.
    steps = [
        _unless_lost(step, message, context, group, point=Point.BEFORE_TRAINING)
        for step, message, context in zip(steps, messages, contexts, strict=True)
    ]
    results = iter(use_together([step for step in steps if isinstance(step, Prepared)]))
    with synced_together() as group:
        replies = [
            _finish(message, step, next(results)) if isinstance(step, Prepared) else step
            for message, step in zip(messages, steps, strict=True)
        ]
    # Invariant: what leaves is spent on disk, or it does not leave.
    return [
        reply if isinstance(step, Message) else _unless_lost(reply, message, context, group, point=Point.BEFORE_UPLOAD)
        for reply, step, message, context in zip(replies, steps, messages, contexts, strict=True)
    ]


def _unless_lost(step: S, message: Message, context: Context, group: SyncedTogether, *, point: Point) -> S | Message:
    """A holder's step, or the failure that it amounts to where the holder's disk did not take it."""
    try:
        fault = group.fault_of(_node(context).database)
    except Exception as error:  # noqa: BLE001 -- as in _first_step: a node that cannot be opened is its holder's fault
        return step if isinstance(step, Message) and step.has_error() else _fail(message, error)
    return step if fault is None else _refuse(message, denial_of(fault, point=point))


def enforcement_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Flower mod: no message reaches a training or evaluation function that this holder's gate has not permitted."""
    if _is_query(message):
        return call_next(message, context)
    step = _prepare(message, context, since=received())
    if isinstance(step, Message):
        return step
    token = _prepared.set(step)
    try:
        return call_next(message, context)
    finally:
        _prepared.reset(token)


app = ClientApp(mods=[enforcement_mod])


@app.train()
def train(message: Message, _: Context) -> Message:
    """Train on the holder's data as prepared by the mod."""
    prepared = _prepared.get()
    return _finish(message, prepared, use_together([prepared])[0])


@app.evaluate()
def evaluate(message: Message, _: Context) -> Message:
    """Measure the model on the holder's data as prepared by the mod."""
    prepared = _prepared.get()
    return _finish(message, prepared, use_together([prepared])[0])


@app.query("propose")
def propose(message: Message, context: Context) -> Message:
    """Be shown a training plan."""
    return _converse(message, context, Proposal, lambda node, body: node.propose(body))


@app.query("offer")
def offer(message: Message, context: Context) -> Message:
    """Show fresh papers before a round."""
    return _converse(message, context, Offer, lambda node, body: node.answer(body))


@app.query("release")
def release(message: Message, context: Context) -> Message:
    """Decide on the release of the model."""
    return _converse(message, context, ReleaseRequest, lambda node, body: node.judge_release(body))


@app.query("evidence")
def evidence(message: Message, context: Context) -> Message:
    """Hand over the evidence."""
    return _converse(message, context, EvidenceRequest, lambda node, body: node.hand_over(body))


def _is_query(message: Message) -> bool:
    return message.metadata.message_type.split(".")[0] == "query"


def _first_step(message: Message, context: Context, *, since: float) -> Prepared | Message:
    """Answer a query, or prepare a use. Whatever fails here fails for this holder only."""
    try:
        return app(message, context) if _is_query(message) else _prepare(message, context, since=since)
    except Exception as error:  # noqa: BLE001 -- one holder's fault must not silence the others
        return _fail(message, error)


def _fail(message: Message, error: Exception) -> Message:
    # Where it failed, and not what was said: the text of an exception might hold a holder's data.
    _log.error("a holder's node failed with %s\n%s", type(error).__name__, "".join(format_tb(error.__traceback__)))
    return Message(Error(code=FAULT_CODE, reason=f"the node failed: {type(error).__name__}"), reply_to=message)


def _prepare(message: Message, context: Context, *, since: float) -> Prepared | Message:
    try:
        node = _node(context)
        request = _heard(node, message, UseRequest)
        if message.metadata.message_type != request.action.value:
            raise TrustRefused("a message says one action and its body another")
        step = enforcement.prepare(node, request, _arrays(message), received=since)
    except RingfenceError as error:
        return _refuse(message, denial_of(error, point=Point.BEFORE_TRAINING))
    return _refuse(message, step) if isinstance(step, Decision) else step


def _finish(message: Message, prepared: Prepared, result: Result | Fault | None) -> Message:
    try:
        if isinstance(result, Fault):
            denial = charge_failure(prepared)
            if denial is not None:
                return _refuse(message, denial)
            return Message(Error(code=FAULT_CODE, reason=result.summary), reply_to=message)
        answer = finish(prepared, result)
    except RingfenceError as error:
        _give_back(prepared, reason=error.code)
        return _refuse(message, denial_of(error, point=Point.BEFORE_UPLOAD))
    except Exception as error:  # noqa: BLE001 -- as in _first_step: a full disk here is this holder's fault alone
        _give_back(prepared, reason=type(error).__name__)
        return _fail(message, error)
    if isinstance(answer, Decision):
        return _refuse(message, answer)
    content = RecordDict({BODY_RECORD: ConfigRecord({BODY_KEY: answer.body.to_bytes()})})
    weight = prepared.node.home.profile.dataset.weight
    content[METRICS_RECORD] = MetricRecord({WEIGHT_KEY: weight})
    if prepared.request.action is Action.TRAIN:
        content[ARRAYS_RECORD] = ArrayRecord(
            {FILE_KEY: Array(dtype="uint8", shape=(len(answer.file),), stype=FILE_TYPE, data=answer.file)}
        )
    return Message(content, reply_to=message)


def _give_back(prepared: Prepared, *, reason: str) -> None:
    # The ledger refuses to give back what may have left, and may be what failed; then the next start settles it.
    with suppress(RingfenceError):
        give_up(prepared, reason=reason)


def _converse(
    message: Message, context: Context, expected: type[B], answer: Callable[[HolderNode, B], Body | Decision]
) -> Message:
    try:
        node = _node(context)
        said = _answer(node, _heard(node, message, expected), answer)
        log_seen = node.coordinator_log_seen
    except RingfenceError as error:
        return _refuse(message, denial_of(error, point=Point.BEFORE_TRAINING))
    if isinstance(said, Decision):
        return _refuse(message, said, log_seen=log_seen)
    return Message(RecordDict({BODY_RECORD: ConfigRecord({BODY_KEY: said.to_bytes()})}), reply_to=message)


def _answer(node: HolderNode, body: B, answer: Callable[[HolderNode, B], Body | Decision]) -> Body | Decision:
    """Answer, and keep a refusal in the holder's own log."""
    try:
        said = answer(node, body)
    except LedgerFault:
        raise  # a refusal could not be recorded either
    except RingfenceError as error:
        said = denial_of(error, point=_point_of(body))
    if isinstance(said, Decision):
        _keep(node, body, said)
    return said


def _keep(node: HolderNode, body: Body, refusal: Decision) -> None:
    releasing = _point_of(body) is Point.RELEASE
    node.record_refusal(
        refusal,
        run_id=str(getattr(body, "run_id", "")),
        round_number=getattr(body, "round_number", 0),
        action=Action.RELEASE if releasing else getattr(body, "action", Action.TRAIN),
    )


def _point_of(body: Body) -> Point:
    return Point.RELEASE if isinstance(body, ReleaseRequest | EvidenceRequest) else Point.BEFORE_TRAINING


def _refuse(message: Message, decision: Decision, *, log_seen: int | None = None) -> Message:
    # A mod may answer with an Error of a code from 100 on; it reaches the strategy as it is.
    refusal = Refusal(decision=decision.for_outsiders().to_document(), coordinator_log_seen=log_seen)
    reason = refusal.to_bytes().decode()
    return Message(Error(code=REFUSED_CODE, reason=reason), reply_to=message)


def _heard(node: HolderNode, message: Message, expected: type[B]) -> B:
    """A message's body, if the coordinator signed it for this holder."""
    record = message.content.config_records.get(BODY_RECORD, ConfigRecord())
    data = record.get(BODY_KEY)
    if not isinstance(data, bytes):
        raise TrustRefused("a message has no body", expected=expected.__name__, got=type(data).__name__)
    body = expected.from_bytes(data)
    try:
        node.check_signature(record.get(SIGNATURE_KEY), body, data, message_type=message.metadata.message_type)
    except LedgerFault:
        raise  # a refusal could not be recorded either
    except RingfenceError as error:
        _keep(node, body, denial_of(error, point=_point_of(body)))
        raise
    return body


def _arrays(message: Message) -> GlobalModel:
    record = message.content.array_records.get(ARRAYS_RECORD)
    if record is None or set(record) != {FILE_KEY}:
        raise TrustRefused(
            "a request has no model", expected=f"'{FILE_KEY}' alone in its ArrayRecord '{ARRAYS_RECORD}'"
        )
    if record[FILE_KEY].stype != FILE_TYPE:
        raise TrustRefused("a request's model is no file", expected="the bytes of one safetensors file")
    return _read_model(record[FILE_KEY].data)


# One phase's messages carry one model: it is read once, however many holders of this process are sent it.
@lru_cache(maxsize=2)
def _read_model(file: bytes) -> GlobalModel:
    try:
        arrays = load(file)
    except (SafetensorError, ValueError, TypeError, KeyError, EOFError) as error:
        raise TrustRefused("a request's model is unreadable", got=type(error).__name__) from None
    if any(array.dtype != np.float32 for array in arrays.values()):
        raise TrustRefused("a request's model has another number type", expected="float32")
    return GlobalModel(arrays)


def adopt(node: HolderNode, config: Mapping[str, str]) -> None:
    """Let a node that its agent has opened answer the messages that come with its configuration."""
    _adopted[config["holder-dir"], config["coordinator-root"]] = node


def _node(context: Context) -> HolderNode:
    key = str(context.node_config["holder-dir"]), str(context.node_config["coordinator-root"])
    return _adopted[key] if key in _adopted else _open_node(*key)


def _open_node(directory: str, coordinator_root: str) -> HolderNode:
    """The node of a holder on this machine, opened when it is first asked for."""
    known = _opened.get((directory, coordinator_root))
    if known is not None:
        return known
    # Trainers and Polars: whoever answers for a holder whose records are used elsewhere does without.
    from ringfence_client.holder_records import HolderRecords  # noqa: PLC0415
    from ringfence_client.open_workroom import OpenWorkroom  # noqa: PLC0415

    home = HolderHome(Path(directory))
    records = HolderRecords(home.directory, salt=home.profile.dataset.dataset_id)
    root = PublicKey.from_jwk(json.loads(coordinator_root))
    node = _opened[directory, coordinator_root] = HolderNode(
        home, coordinator_root=root, workroom=OpenWorkroom(records)
    )
    return node


def close_nodes() -> None:
    """Close all nodes that were opened here. Closing waits for the disk: many at once wait no longer than a few.

    What a node has recorded is on the disk by then, so one that cannot be closed is told to the log alone.
    """
    with ThreadPoolExecutor(_CLOSING_THREADS) as pool:
        for closing in [pool.submit(node.close) for node in _opened.values()]:
            if (error := closing.exception()) is not None:
                _log.error("a node could not be closed: %s", type(error).__name__)
    _opened.clear()

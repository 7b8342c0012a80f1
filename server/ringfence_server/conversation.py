"""Questions to data holders over Flower's Grid, and answers that are bodies or denials, never exceptions."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from flwr.app import ConfigRecord, Message, RecordDict

from ringfence_policy.decision import Decision, Point
from ringfence_policy.errors import RingfenceError
from ringfence_policy.protocol import BODY_KEY, BODY_RECORD, REFUSED_CODE, SIGNATURE_KEY, Body, Refusal
from ringfence_server.outcome import NO_REPLY
from ringfence_server.round_grid import RoundGrid

B = TypeVar("B", bound=Body)

_MOST_CLAUSES = 64
_LONGEST_TEXT = 1000
# Flower's own codes lie below; those from here on are an app's.
_FIRST_OWN_CODE = 100
# What Flower says where a holder's app did not speak; the text beside a code might hold a holder's data.
_UNHEARD = {
    1: "The app at the holder's node could not be started.",
    2: "The app at the holder's node broke off.",
    3: "The request ran out before the holder's node took it.",
    4: "The holder's node took the request and gave no answer in time.",
    5: "The holder's node is offline.",
    8: "The app at the holder's node crashed.",
}
_CLAUSE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def ask(
    grid: RoundGrid,
    message_type: str,
    questions: Mapping[int, Body],
    answer: type[B],
    *,
    sign: Callable[[str, Mapping[int, bytes]], Mapping[int, str]],
    on_refusal: Callable[[int, Refusal], None] | None = None,
) -> dict[int, B | Decision]:
    """Send each node its question and collect the answers.

    Args:
        grid: The way to the nodes, with the time that they have.
        message_type: What kind of question it is.
        questions: The question for each node.
        answer: What a node answers that does not refuse.
        sign: Signs the bodies of messages of one type, by node, as the coordinator.
        on_refusal: Told of each node that refuses, and all that it says.

    Returns:
        For every node that was asked: its answer, or the denial that its refusal, fault or silence amounts to.
    """
    if not questions:
        return {}
    bodies = {node_id: body.to_bytes() for node_id, body in questions.items()}
    signatures = sign(message_type, bodies)
    messages = [
        Message(
            RecordDict({BODY_RECORD: ConfigRecord({BODY_KEY: data, SIGNATURE_KEY: signatures[node_id]})}),
            node_id,
            message_type,
        )
        for node_id, data in bodies.items()
    ]
    replies = grid.send_and_receive(messages)
    by_node = replies_by_node(messages, replies)
    for node_id, reply in by_node.items():
        refusal = _refusal_in(reply)
        if on_refusal is not None and refusal is not None:
            on_refusal(node_id, refusal)
    return {
        node_id: silence() if node_id not in by_node else read_reply(by_node[node_id], answer) for node_id in questions
    }


def replies_by_node(messages: Iterable[Message], replies: Iterable[Message]) -> dict[int, Message]:
    """Match replies to nodes by what they reply to: a dead node's error carries the SuperLink's id, not the node's."""
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    matched: dict[int, Message] = {}
    for reply in replies:
        node_id = asked.get(reply.metadata.reply_to_message_id)
        if node_id is not None:
            matched.setdefault(node_id, reply)
    return matched


def read_reply(reply: Message, answer: type[B]) -> B | Decision:
    """A reply's body, or the denial it stands for."""
    if reply.has_error():
        return read_refusal(reply)
    try:
        record = reply.content.config_records.get(BODY_RECORD)
        return answer.from_bytes(None if record is None else record.get(BODY_KEY))
    except RingfenceError as error:
        return Decision.deny("malformed", error.summary, point=Point.COORDINATOR)


def read_refusal(reply: Message) -> Decision:
    """The holder's own denial, or the denial that a failure of its node amounts to."""
    error = reply.error
    if error.code == REFUSED_CODE:
        refusal = _refusal_in(reply)
        try:
            decision = None if refusal is None else Decision.from_document(refusal.decision)
        except RingfenceError:
            decision = None
        if decision is None or decision.permitted or not _is_short(decision):
            return Decision.deny("malformed", "The holder's refusal could not be read.", point=Point.COORDINATOR)
        return decision
    if error.code < _FIRST_OWN_CODE:
        return silence(_UNHEARD.get(error.code, "The holder's node gave no answer."))
    return Decision.deny(
        "fault", "The holder's node failed.", limit=f"error {error.code}: {error.reason}"[:300], point=Point.COORDINATOR
    )


def _refusal_in(reply: Message) -> Refusal | None:
    if not reply.has_error() or reply.error.code != REFUSED_CODE:
        return None
    try:
        return Refusal.from_bytes((reply.error.reason or "").encode())
    except RingfenceError:
        return None


def _is_short(decision: Decision) -> bool:
    """Whether a holder's own words fit into our log and report."""
    words = [text for one in decision.failed for text in (one.clause, one.meaning, one.limit)]
    return (
        len(decision.failed) <= _MOST_CLAUSES
        and all(len(text) <= _LONGEST_TEXT for text in words)
        and all(_CLAUSE_NAME.fullmatch(one.clause) for one in decision.failed)
    )


def is_silence(said: Body | Decision) -> bool:
    """Whether a node said nothing that its holder decided: it was not heard, or failed, and may be back soon."""
    return isinstance(said, Decision) and said.point is Point.COORDINATOR and said.clauses in ((NO_REPLY,), ("fault",))


def silence(meaning: str = "The holder did not answer before the round closed.") -> Decision:
    """The denial that no answer amounts to: nothing that the holder decided."""
    return Decision.deny(NO_REPLY, meaning, point=Point.COORDINATOR)

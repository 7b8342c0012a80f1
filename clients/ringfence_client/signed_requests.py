"""Whether a message to this holder is one that the coordinator signed, for it, as it stands, and not long ago."""

from ringfence_policy.documents import RequestBatch, Role, request_leaf
from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import DocumentType
from ringfence_policy.merkle import leaf_hash, verify_inclusion
from ringfence_policy.protocol import RequestSignature
from ringfence_policy.trust_store import TrustStore

REQUEST_LIFETIME_MS = 60 * 60 * 1000


def check_request(
    token: object, body: bytes, *, message_type: str, holder_id: str, coordinator: TrustStore, now_ms: int
) -> None:
    """Check the signature under a message.

    Args:
        token: The signature, as it came.
        body: What the message says, as it came.
        message_type: What kind of message it is, in Flower's words.
        holder_id: This holder.
        coordinator: What is known about the coordinator, its key list accepted.
        now_ms: Now.

    Raises:
        TrustRefused: Somebody else asks, or something was changed, or an old message was sent again.
    """
    if not isinstance(token, str):
        raise TrustRefused("the request is not signed", expected="the coordinator's signature beside the body")
    signature = RequestSignature.from_bytes(token.encode(errors="replace"))
    batch = RequestBatch.from_payload(
        coordinator.accept_payload(signature.batch, type=DocumentType.REQUEST, role=Role.PLAN, now_ms=now_ms)
    )
    is_in_batch = verify_inclusion(
        index=signature.index,
        size=batch.size,
        leaf=leaf_hash(request_leaf(holder_id, message_type, body)),
        proof=[bytes.fromhex(node) for node in signature.proof],
        root=bytes.fromhex(batch.root.removeprefix("sha256:")),
    )
    if not is_in_batch:
        raise TrustRefused("the request was signed for another holder, or for something else")
    if abs(now_ms - batch.issued_ms) > REQUEST_LIFETIME_MS:
        raise TrustRefused(
            "the request is too old, or one of the two clocks is wrong",
            expected=f"a request signed within {REQUEST_LIFETIME_MS // 60_000} minutes",
        )

"""Whether another holder is really in a round, by its own signatures and not by the coordinator's word."""

from ringfence_client.run_terms import RunTerms
from ringfence_policy.documents import Participation, Role
from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import DocumentType
from ringfence_policy.protocol import PeerPapers
from ringfence_policy.trust_store import TrustStore


def takes_part(
    peer: TrustStore,
    papers: PeerPapers,
    terms: RunTerms,
    holder_id: str,
    *,
    training_round: int | None,
    now_ms: int,
) -> bool:
    """Whether a peer may be counted in a cohort. Papers that do not hold count for nobody.

    Args:
        peer: What is known about the peer, pinned to the root key that the approved plan names for it.
        papers: Its papers, as the coordinator passed them on.
        terms: The run as this holder was shown it.
        holder_id: Whom the coordinator says the papers belong to.
        training_round: The round that its budget must reach; None for an evaluation.
        now_ms: The time, in milliseconds since the Unix epoch.
    """
    try:
        peer.accept_keys(papers.keys)
        status = peer.accept_status(papers.status, now_ms)
        document = peer.accept(papers.participation, type=DocumentType.PARTICIPATION, role=Role.NODE, now_ms=now_ms)
        participation = Participation.from_document(document)
    except TrustRefused:
        return False
    return (
        peer.owner == holder_id == participation.holder_id
        and not status.revoked
        and participation.run_id == terms.run_id
        and participation.plan_digest == terms.plan.digest
        and (training_round is None or participation.last_round >= training_round)
        and participation.good_until_ms > now_ms
    )

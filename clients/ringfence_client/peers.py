"""Which other holders this one knows, and whether they are really in a round, by their own signatures.

The coordinator's word counts for nothing here, and neither do holders that only its plan names: it could invent them.
"""

import json
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

from ringfence_client.home import HolderHome
from ringfence_client.run_terms import RunTerms
from ringfence_policy.documents import Participation, Role
from ringfence_policy.durable import write_durably
from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import DocumentType, PublicKey
from ringfence_policy.protocol import PeerPapers
from ringfence_policy.trust_store import TrustStore


def known_peers(home: HolderHome) -> Mapping[str, PublicKey]:
    """The root keys of the holders that this one knows, by holder id; in a simulation its own among them.

    Raises:
        TrustRefused: The file holds something that is no public key.
    """
    return read_peers(home.peers.read_bytes()) if home.peers.exists() else {}


@lru_cache(maxsize=8)  # a simulation's holders have all the same file
def read_peers(data: bytes) -> Mapping[str, PublicKey]:
    """The root keys in the file of known peers.

    Raises:
        TrustRefused: It holds something that is no public key.
    """
    try:
        return MappingProxyType(
            {sys.intern(holder_id): PublicKey.from_jwk(jwk) for holder_id, jwk in json.loads(data).items()}
        )
    except (ValueError, TypeError, AttributeError):
        raise TrustRefused("the file of known peers is unreadable", expected="root keys by holder id") from None


def meet_peers(home: HolderHome, roots: Mapping[str, PublicKey]) -> None:
    """Get to know other holders by their root keys, learnt from them and not from a plan.

    Raises:
        TrustRefused: A holder was known under another root key.
    """
    before = known_peers(home)
    known = dict(before)
    for holder_id, root in roots.items():
        pinned = known.setdefault(holder_id, root)
        if pinned.thumbprint != root.thumbprint:
            raise TrustRefused(
                f"{holder_id} was known under another root key",
                expected=pinned.thumbprint,
                got=root.thumbprint,
                where=str(home.peers),
                next_step="find out from that holder itself which key is right",
            )
    if known == before:
        return
    write_durably(home.peers, peers_document(known))


def peers_document(known: Mapping[str, PublicKey]) -> bytes:
    """The file of known peers."""
    return json.dumps({holder_id: root.jwk for holder_id, root in sorted(known.items())}, indent=1).encode()


def present_peers(
    known: Mapping[str, PublicKey],
    cohort: Mapping[str, PeerPapers],
    terms: RunTerms,
    *,
    store: Callable[[str, PublicKey], TrustStore],
    training_round: int | None,
    now_ms: int,
) -> frozenset[str]:
    """The holders of a cohort that are known, planned and really there.

    Args:
        known: The root keys of the holders this one knows.
        cohort: The papers of those that the coordinator says take part.
        terms: The run as this holder was shown it.
        store: What is remembered about a holder, pinned to its root key.
        training_round: The round that budgets must reach; None for an evaluation.
        now_ms: The time, in milliseconds since the Unix epoch.
    """
    return frozenset(
        holder_id
        for holder_id, papers in cohort.items()
        if holder_id in known
        and holder_id in terms.plan.holders
        and takes_part(
            store(holder_id, known[holder_id]), papers, terms, holder_id, training_round=training_round, now_ms=now_ms
        )
    )


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
        peer: What is known about the peer, pinned to the root key that this holder knows it by.
        papers: Its papers, as the coordinator passed them on.
        terms: The run as this holder was shown it.
        holder_id: Whom the coordinator says the papers belong to.
        training_round: The round that its budget must reach; None for an evaluation.
        now_ms: The time, in milliseconds since the Unix epoch.
    """
    try:
        peer.accept_keys(papers.keys)
        status = peer.accept_status(papers.status, now_ms)
        participation = Participation.from_payload(
            peer.accept_payload(papers.participation, type=DocumentType.PARTICIPATION, role=Role.NODE, now_ms=now_ms)
        )
    except TrustRefused:
        return False
    return (
        peer.owner == holder_id == participation.holder_id
        and not status.revoked
        and status.suspended is None
        and participation.run_id == terms.run_id
        and participation.plan_digest == terms.plan.digest
        and (training_round is None or participation.last_round >= training_round)
        and participation.good_until_ms > now_ms
    )

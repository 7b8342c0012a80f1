"""How a holder in this process makes itself known: the card that a real holder hands over out of band."""

from collections.abc import Sequence
from pathlib import Path

from ringfence_client.home import HolderHome
from ringfence_client.joining import card_of
from ringfence_client.officer import set_up
from ringfence_client.peers import meet_peers, peers_document
from ringfence_policy.durable import write_durably
from ringfence_policy.identity import PublicKey
from ringfence_policy.ledger import now_ms
from ringfence_policy.protocol import HolderCard


def enrol(directory: str) -> HolderCard:
    """Set a holder up, if it is not yet, and give its card: who it is, its public weight and its root key.

    Raises:
        DocumentInvalid: holder.toml or policy.toml is wrong.
        ScenarioInvalid: The holder's state is incomplete.
    """
    home = HolderHome(Path(directory))
    set_up(home, now_ms=now_ms())
    return card_of(home)


def introduce(directories: Sequence[str], cards: Sequence[HolderCard]) -> None:
    """Let the holders of this process get to know each other, as real holders do out of band.

    Each gets the same file, with itself in it: a thousand would otherwise write, read and keep a million keys.

    Raises:
        TrustRefused: One of them was known under another root key.
    """
    roots = {card.holder_id: PublicKey.from_jwk(card.root) for card in cards}
    everybody = peers_document(roots)
    for directory in directories:
        home = HolderHome(Path(directory))
        if home.peers.exists():
            meet_peers(home, roots)
        else:
            write_durably(home.peers, everybody)

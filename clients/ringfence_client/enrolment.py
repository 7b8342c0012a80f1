"""How a holder in this process makes itself known: the card that a real holder hands over out of band."""

from pathlib import Path

from ringfence_client.home import HolderHome
from ringfence_client.officer import root_of, set_up
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
    profile = home.profile
    return HolderCard(
        holder_id=profile.holder_id,
        name=profile.name,
        region=profile.region,
        weight=profile.dataset.weight,
        root=root_of(home).jwk,
    )

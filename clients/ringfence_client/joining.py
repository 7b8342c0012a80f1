"""How a data holder and a coordinator get to know each other: a letter each way, and two thumbprints compared.

Nothing is believed of a letter but that its own root key signed it. Whose key that is, people say by telephone.
"""

import json
import stat
from pathlib import Path

from ringfence_client.home import HolderHome
from ringfence_client.officer import alone, root_of
from ringfence_policy.database import Database
from ringfence_policy.durable import write_durably
from ringfence_policy.errors import TrustRefused, UsageError
from ringfence_policy.identity import SigningKey, TrustReason
from ringfence_policy.letters import Invitation, Registration, read_letter
from ringfence_policy.protocol import HolderCard
from ringfence_policy.transport_keys import make_supernode_key, public_half
from ringfence_policy.trust_memory import TrustMemory

_LARGEST_LETTER = 64 * 1024


def card_of(home: HolderHome) -> HolderCard:
    """Who the holder is, its public weight and its root key."""
    profile = home.profile
    return HolderCard(
        holder_id=profile.holder_id,
        name=profile.name,
        region=profile.region,
        weight=profile.dataset.weight,
        root=root_of(home).jwk,
    )


def ensure_supernode_key(home: HolderHome) -> None:
    """Make the SuperNode's key where there is none, as for a holder that was set up before there were any."""
    with alone(home):
        if not home.supernode_key.exists():
            write_durably(home.supernode_key, make_supernode_key())


def supernode_public(home: HolderHome) -> str:
    """The public key of the holder's SuperNode, PEM.

    Raises:
        TrustRefused: The private key is missing, readable by others, or not a SuperNode's.
    """
    path = home.supernode_key
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise TrustRefused(
                TrustReason.KEY_FILE.value,
                expected="a file only its owner can read (mode 0600)",
                where=str(path),
                next_step="if nobody else has read it: chmod 600; otherwise ringfence-node keys rotate --role flower",
            )
        return public_half(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TrustRefused(
            TrustReason.KEY_FILE.value,
            expected="a SuperNode's private key",
            got=type(error).__name__,
            where=str(path),
            next_step="ringfence-node keys rotate --role flower makes a new one",
        ) from None


def load_root(home: HolderHome, elsewhere: Path | None) -> SigningKey:
    """The root private key: from its place, or from where it lies offline.

    Raises:
        UsageError: It is not there.
        TrustRefused: It is not readable by its owner alone, or not this holder's.
    """
    path = elsewhere or home.root_key
    if not path.exists():
        raise UsageError(
            "there is no root key",
            expected="the root's private key, from its place or from where it lies offline",
            got="no such file",
            where=str(path),
            next_step="give the file that holds it, such as on a memory stick: --root FILE",
        )
    key = SigningKey.load(path)
    own = root_of(home)
    if key.public().raw != own.raw or key.kid != own.kid:
        raise TrustRefused(
            "this is not the root key of this holder",
            expected=f"{own.kid} with thumbprint {own.thumbprint}",
            got=f"{key.kid} with thumbprint {key.public().thumbprint}",
            where=str(path),
        )
    return key


def write_registration(home: HolderHome, out: Path, *, root: SigningKey, now_ms: int) -> Registration:
    """Write the letter by which a coordinator gets to know this holder.

    Raises:
        TrustRefused: The SuperNode's key cannot be used.
        UsageError: `out` is there already, or cannot be written.
    """
    ensure_supernode_key(home)
    letter = Registration(card=card_of(home), flower_key=supernode_public(home), issued_ms=now_ms)
    if out.exists():
        raise UsageError(
            "there is such a file already", expected="a new file", where=str(out), next_step="choose another with --out"
        )
    try:
        write_durably(out, letter.sign(root).encode(), mode=0o644)
    except OSError as error:
        raise UsageError(
            "the letter cannot be written",
            expected="a writable place",
            got=error.strerror or type(error).__name__,
            where=str(out),
            next_step="choose another with --out",
        ) from None
    return letter


def read_invitation(path: Path) -> tuple[Invitation, str]:
    """A coordinator's letter and the token it is.

    Raises:
        UsageError: There is no such file.
        TrustRefused: It is no invitation, or was changed.
    """
    try:
        with path.open("rb") as file:
            token = read_letter(file.read(_LARGEST_LETTER))
    except OSError as error:
        raise UsageError(
            "the invitation cannot be read",
            expected="the file that the coordinator sent",
            got=error.strerror or type(error).__name__,
            where=str(path),
            next_step="look at the name and the directory",
        ) from None
    try:
        return Invitation.open(token), token
    except TrustRefused as error:
        raise TrustRefused(
            error.summary,
            expected=error.expected,
            got=error.got,
            where=str(path),
            next_step=error.next_step or "ask the coordinator for the letter once more, as the file that it is",
        ) from None


def joined(home: HolderHome) -> Invitation | None:
    """The invitation of the coordinator that this holder joined, or None.

    Raises:
        TrustRefused: What lies there is none.
    """
    return read_invitation(home.coordinator)[0] if home.coordinator.exists() else None


def is_known(home: HolderHome, letter: Invitation) -> bool:
    """Whether the coordinator was compared before, so that only its newest word has to be kept.

    Raises:
        TrustRefused: Another coordinator or root key is known, or the letter is older than the one kept, or differs
            from it at the same moment.
    """
    known = joined(home)
    if known is None:
        _check_memory(home, letter)
        return False
    if (known.coordinator, known.root.thumbprint) != (letter.coordinator, letter.root.thumbprint):
        raise TrustRefused(
            "another coordinator is known here, or another root key of it",
            expected=f"{known.coordinator} with thumbprint {known.root.thumbprint}",
            got=f"{letter.coordinator} with thumbprint {letter.root.thumbprint}",
            where=str(home.coordinator),
            next_step="find out by telephone which is right; a new coordinator needs a holder directory of its own",
        )
    if letter.issued_ms < known.issued_ms:
        raise TrustRefused(
            TrustReason.REPLAYED.value,
            expected=f"a letter issued at {known.issued_ms} or later",
            got=f"one issued at {letter.issued_ms}",
            where=str(home.coordinator),
            next_step="ask the coordinator for its newest invitation",
        )
    if letter.issued_ms == known.issued_ms and letter != known:
        raise TrustRefused(TrustReason.CHANGED.value, expected="the letter that is kept", where=str(home.coordinator))
    return True


def keep(home: HolderHome, token: str) -> None:
    """Keep an invitation that was compared, or that is the newest word of one that was."""
    with alone(home):
        letter = Invitation.open(token)
        is_known(home, letter)  # once more under the lock: another command may have joined meanwhile
        write_durably(home.coordinator, token.encode())


def _check_memory(home: HolderHome, letter: Invitation) -> None:
    """Refuse another root key than the one that a coordinator was met under in a run."""
    with Database.open(home.database, must_exist=True) as database:
        TrustMemory(database).store("coordinator", letter.root)


def letter_document(letter: Invitation) -> dict[str, object]:
    """An invitation as `--json` shows it."""
    return {**json.loads(letter.model_dump_json()), "thumbprint": letter.root.thumbprint}

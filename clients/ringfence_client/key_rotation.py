"""A holder's keys over the years: which there are, a new one in the place of an old one, the root key taken offline.

A rotation is a chain of steps, each on disk before the next, and after each of them every paper still holds under the
key list: a node that reads its papers meanwhile decides as before, and a rotation that was killed is finished by the
next one. First the new key is listed beside the old one, then it signs, then the old one is retired: what that signed
in its time stays proven, and it signs nothing more. A stolen key is left out of the list altogether.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ringfence_client.home import HolderHome
from ringfence_client.joining import load_root
from ringfence_client.officer import KEY_LIFETIME_MS, alone, open_own, own_keys, renew_while_alone
from ringfence_client.recovery import Presence, is_open
from ringfence_policy.documents import KeyList, ListedKey, Role
from ringfence_policy.durable import sync_directory, write_durably
from ringfence_policy.errors import TrustRefused, UsageError
from ringfence_policy.identity import DocumentType, SigningKey, parse, sign
from ringfence_policy.transport_keys import make_supernode_key

SIGNING_ROLES = (Role.POLICY, Role.STATUS, Role.NODE)

# A verifier whose clock is behind by less than this takes what the new key signs.
_DAY_MS = 24 * 60 * 60 * 1000
# So long a retired key is still good for. A node that read its papers just before decides and records a moment later,
# and a verifier holds the key that it names against the time of that record.
GRACE_MS = 5 * 60 * 1000


@dataclass(frozen=True, kw_only=True)
class KeyState:
    """One key of the newest list.

    Attributes:
        state: "signs", or "retired": nothing new is signed with it, what it signed in its time stays proven.
        is_here: Whether its private half is the one in use on this machine.
    """

    listed: ListedKey
    state: str
    is_here: bool


def key_states(home: HolderHome, *, now_ms: int) -> list[KeyState]:
    """Every key of the newest list, in its order.

    Raises:
        TrustRefused: The list is not this holder's.
    """
    here = {key.public().thumbprint for role in SIGNING_ROLES if (key := _in_use(home, role)) is not None}
    return [
        KeyState(
            listed=listed,
            state="signs" if listed.from_ms <= now_ms and _is_in_force(listed, now_ms) else "retired",
            is_here=listed.public_key.thumbprint in here,
        )
        for listed in own_keys(home).keys
    ]


def rotate(home: HolderHome, role: Role, *, root: SigningKey, is_stolen: bool, now_ms: int) -> SigningKey:
    """Put a new key in the place of the one that signs in a role, and sign again what has to be.

    Args:
        home: The holder's directory.
        role: The role; `Role.NODE` needs the node to be stopped, because an open node keeps its key.
        root: The root key.
        is_stolen: Leave the old key out of the list instead of retiring it: nothing it ever signed counts any more.
        now_ms: Now.

    Returns:
        The new key.

    Raises:
        UsageError: The node's key is to be replaced while a node is open.
        TrustRefused: The papers at hand are not this holder's own.
    """
    presence = Presence(home) if role is Role.NODE else None
    try:
        if presence is not None and not presence.is_alone:
            raise _open_node(home)
        with alone(home):
            return _rotate(home, role, root=root, is_stolen=is_stolen, now_ms=now_ms)
    finally:
        if presence is not None:
            presence.close()


def refuse_open_node(home: HolderHome, roles: Sequence[Role | None]) -> None:
    """Refuse to begin with the first of several keys where the last of them, the node's own, could not be replaced.

    Raises:
        UsageError: A node is open.
    """
    if Role.NODE in roles and is_open(home):
        raise _open_node(home)


def _open_node(home: HolderHome) -> UsageError:
    return UsageError(
        "the node is open, and goes on signing with the key it has",
        expected="a stopped node while its own key is replaced",
        where=str(home.presence),
        next_step="stop ringfence-node start first; or replace the others now: --role policy --role status",
    )


def _rotate(home: HolderHome, role: Role, *, root: SigningKey, is_stolen: bool, now_ms: int) -> SigningKey:
    coming, place = _coming(home, role), home.keys / f"{role.value}.jwk"
    signing = [one for one in own_keys(home).keys if role.value in one.roles and _is_in_force(one, now_ms)]
    current = _in_use(home, role)
    if coming.exists():
        new = SigningKey.load(coming)
        is_begun = True
    elif current is not None and len(signing) > 1 and _lists(signing, current):
        # An earlier rotation was killed after the new key was in its place: what is left is to retire the old one.
        new, is_begun = current, False
    else:
        new = SigningKey.generate(f"{home.profile.holder_id}/{role.value}-{_next_number(home, role)}")
        _save_whole(new, coming)
        is_begun = True
    if is_begun:
        if not _lists(own_keys(home).keys, new):
            _list_beside(home, new, role, root=root, now_ms=now_ms)
        coming.replace(place)
        sync_directory(home.keys)
    _sign_again(home, role, new, now_ms=now_ms)
    _retire_others(home, role, new, root=root, is_stolen=is_stolen, now_ms=now_ms)
    return new


def rotate_supernode_key(home: HolderHome) -> None:
    """Make a new key for the SuperNode. It opens nothing until the coordinator has registered it."""
    with alone(home):
        write_durably(home.supernode_key, make_supernode_key())


def take_root_offline(home: HolderHome, to: Path) -> None:
    """Move the root private key out of the holder's directory. Repeated after a crash it finishes what it began.

    Raises:
        TrustRefused: It is not here, or the file to move it to holds something else.
    """
    root = load_root(home, None)
    if to.resolve().is_relative_to(home.state.resolve()):
        raise UsageError("that is still inside the state", expected="a place outside of it", where=str(to))
    if to.exists():
        load_root(home, to)  # an earlier try that was interrupted
    else:
        root.save(to)
        sync_directory(to.parent)
        try:
            load_root(home, to)  # read back before the only other copy goes
        except TrustRefused:  # as on a memory stick whose files everybody may read
            to.unlink()
            raise
    home.root_key.unlink()
    sync_directory(home.keys)


def _in_use(home: HolderHome, role: Role) -> SigningKey | None:
    path = home.keys / f"{role.value}.jwk"
    return SigningKey.load(path) if path.exists() else None


def _coming(home: HolderHome, role: Role) -> Path:
    return home.keys / f"{role.value}.next.jwk"


def _is_in_force(listed: ListedKey, now_ms: int) -> bool:
    """Whether a key is listed to sign for longer than a retired one would be."""
    return listed.to_ms > now_ms + GRACE_MS


def _save_whole(key: SigningKey, path: Path) -> None:
    """Save a key so that a crash leaves it whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    draft.unlink(missing_ok=True)
    key.save(draft)
    draft.replace(path)
    sync_directory(path.parent)


def _lists(keys: Sequence[ListedKey], key: SigningKey) -> bool:
    return any(listed.public_key == key.public() for listed in keys)


def _next_number(home: HolderHome, role: Role) -> int:
    # From the private key in use as well: a stolen one is on no list any more, and its name is not used again.
    prefix = f"{home.profile.holder_id}/{role.value}-"
    current = _in_use(home, role)
    names = [listed.public_key.kid for listed in own_keys(home).keys] + ([] if current is None else [current.kid])
    numbers = [int(tail) for name in names if (tail := name.removeprefix(prefix)).isascii() and tail.isdecimal()]
    return max(numbers, default=0) + 1


def _list_beside(home: HolderHome, new: SigningKey, role: Role, *, root: SigningKey, now_ms: int) -> None:
    listed = own_keys(home)
    entry = ListedKey(
        jwk=new.public().jwk, from_ms=now_ms - _DAY_MS, to_ms=now_ms + KEY_LIFETIME_MS, roles=(role.value,)
    )
    _write_list(home, listed, (*listed.keys, entry), root=root)


def _retire_others(
    home: HolderHome, role: Role, new: SigningKey, *, root: SigningKey, is_stolen: bool, now_ms: int
) -> None:
    listed = own_keys(home)
    kept: list[ListedKey] = []
    for one in listed.keys:
        signs_too = role.value in one.roles and one.public_key != new.public() and _is_in_force(one, now_ms)
        if not signs_too:
            kept.append(one)
        elif not is_stolen:
            kept.append(one.model_copy(update={"to_ms": now_ms + GRACE_MS}))
    if tuple(kept) != listed.keys:
        _write_list(home, listed, tuple(kept), root=root)


def _write_list(home: HolderHome, before: KeyList, keys: tuple[ListedKey, ...], *, root: SigningKey) -> None:
    after = KeyList(holder_id=before.holder_id, seq=before.seq + 1, keys=keys)
    write_durably(home.key_list, sign(after.to_document(), type=DocumentType.KEYS, key=root).encode())


def _sign_again(home: HolderHome, role: Role, new: SigningKey, *, now_ms: int) -> None:
    """Let the new key sign what the old one signed and what must hold from now on: the same text, a new signature."""
    if role is Role.STATUS:
        renew_while_alone(home, now_ms=now_ms)
    if role is Role.POLICY:
        for path in (*sorted((home.papers / "policies").glob("*.jws")), home.signed_policy):
            if path.exists() and parse(path.read_text()).kid != new.kid:
                document = open_own(home, path, type=DocumentType.POLICY, role=Role.POLICY)
                write_durably(path, sign(document, type=DocumentType.POLICY, key=new).encode())


def role_named(name: str) -> Role | None:
    """The signing role of that name; None for the SuperNode's key, which signs nothing.

    Raises:
        UsageError: There is no such role at a data holder.
    """
    if name == "flower":
        return None
    for role in SIGNING_ROLES:
        if role.value == name:
            return role
    raise UsageError(
        "no such key", expected="policy, status, node or flower", got=name, next_step="the root key is never replaced"
    )

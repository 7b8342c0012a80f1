"""What a data officer does with keys: set a holder up, sign a policy, renew the status, suspend, revoke.

The root key signs only key lists and belongs offline; on one machine, for trials, it lies beside the others.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringfence_client.home import HolderHome
from ringfence_client.watched_files import WatchedFiles
from ringfence_policy.database import Database
from ringfence_policy.documents import (
    KeyList,
    RevokedPolicy,
    Role,
    Status,
    Suspension,
    key_list_document,
    status_document,
)
from ringfence_policy.durable import write_durably
from ringfence_policy.errors import DocumentInvalid, Refused, ScenarioInvalid, TrustRefused
from ringfence_policy.holder import read_policy_of
from ringfence_policy.identity import DocumentType, PublicKey, SigningKey, TrustReason, open_signed, parse, sign
from ringfence_policy.ledger import PrivacyLedger
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.strict_toml import read_toml

if TYPE_CHECKING:
    from ringfence_client.datasource import HolderData

STATUS_LIFETIME_MS = 15 * 60 * 1000
_DAY_MS = 24 * 60 * 60 * 1000
KEY_LIFETIME_MS = 2 * 365 * _DAY_MS
_PARTIAL = ".state."
_ROLES = {"policy": Role.POLICY, "status": Role.STATUS, "node": Role.NODE}


def set_up(home: HolderHome, *, now_ms: int) -> None:
    """Give a data holder its keys, an empty ledger, its first signed policy and a status. Does nothing the second time.

    The state appears whole or not at all: it is made beside its place and moved there in one step. Where an empty
    directory is mounted in its place, as in a container, it is made inside, and its papers are moved in last.

    Raises:
        DocumentInvalid: holder.toml, policy.toml or schema.toml is wrong, or they speak of different things.
        DataInvalid: The data does not fit the schema.
        ScenarioInvalid: There is a state that is not whole, or whose ledger is gone.
    """
    if home.is_set_up:
        _refuse_without_ledger(home)
        return
    if home.state.exists() and not _is_empty(home.state):
        raise ScenarioInvalid(
            "this holder's state is incomplete",
            expected="keys, papers and ledger, or nothing",
            where=str(home.state),
            next_step="remove it only if no run ever used this holder's data; otherwise see docs/holder.md, Back up",
        )
    policy = read_policy_of(home.profile, home.policy_file)
    partial = (home.state if home.state.exists() else home.directory) / f"{_PARTIAL}{os.getpid()}.new"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    (partial / "keys").mkdir(mode=0o700)
    keys = {name: SigningKey.generate(f"{home.profile.holder_id}/{name}-1") for name in ("root", *_ROLES)}
    for name, key in keys.items():
        key.save(partial / "keys" / f"{name}.jwk")
    listed = [
        (keys[name].public(), now_ms - _DAY_MS, now_ms + KEY_LIFETIME_MS, [role]) for name, role in _ROLES.items()
    ]
    papers = partial / "papers"
    write_durably(papers / "schema.digest", checked_schema(home)[0].digest.encode())
    write_durably(papers / "root.jwk", json.dumps(keys["root"].public().jwk).encode())
    key_list = key_list_document(home.profile.holder_id, 1, listed)
    write_durably(papers / "keys.jws", sign(key_list, type=DocumentType.KEYS, key=keys["root"]).encode())
    _write_policy(papers, policy, keys["policy"])
    status = status_document(home.profile.holder_id, seq=1, issued_ms=now_ms, good_until_ms=now_ms + STATUS_LIFETIME_MS)
    write_durably(papers / "status.jws", sign(status, type=DocumentType.STATUS, key=keys["status"]).encode())
    with Database.open(partial / "ledger.db") as database:
        PrivacyLedger(database)
    _put_in_place(partial, home.state)


def _refuse_without_ledger(home: HolderHome) -> None:
    if not home.database.exists():
        raise ScenarioInvalid(
            "this holder's ledger is gone",
            expected="the file that knows what was spent",
            where=str(home.database),
            next_step="treat the dataset as used up: docs/holder.md, Back up",
        )


def _is_empty(state: Path) -> bool:
    """Whether nothing of a holder's lies there: what an interrupted set-up left is nothing, and a file system's own."""
    return all(one.name.startswith(_PARTIAL) or one.name == "lost+found" for one in state.iterdir())


def _put_in_place(partial: Path, state: Path) -> None:
    """Move a new state to its place. A holder counts as set up once its papers are there, so they come last."""
    if not state.exists():
        partial.rename(state)
        return
    for part in sorted(partial.iterdir(), key=lambda one: one.name == "papers"):
        part.rename(state / part.name)
    partial.rmdir()


def checked_schema(home: HolderHome) -> "tuple[DatasetSchema, HolderData]":
    """The schema as it is written, checked against the holder's data, and the data as it is read by it.

    Raises:
        DocumentInvalid: The schema cannot be read.
        DataInvalid: The data does not fit it. Counts and column names only, for the data officer's eyes.
    """
    from ringfence_client.datasource import load_dataset  # noqa: PLC0415 -- Polars: most commands open no data

    schema = read_toml(home.schema_file, DatasetSchema)
    return schema, load_dataset(home.directory, schema)


def agree_to_schema(home: HolderHome) -> tuple[DatasetSchema, int]:
    """Agree to the schema as it is written now. From here on plans with this one are read data by, and no others.

    Returns:
        The schema; and how many records are over its bound for one data subject and stay out of training, 0 where it
        names no subjects. For the data officer's eyes.

    Raises:
        DocumentInvalid: The schema cannot be read.
        DataInvalid: The data does not fit it.
    """
    schema, data = checked_schema(home)
    write_durably(home.agreed_schema, schema.digest.encode())
    surplus = 0 if schema.subject is None else data.records - data.bounded(schema.subject.max_records, salt="").records
    return schema, surplus


def agreed_schema(home: HolderHome) -> str:
    """The digest of the schema the data officer agreed to; "" where there is none, which fits no plan."""
    return home.agreed_schema.read_text() if home.agreed_schema.exists() else ""


def sign_policy(home: HolderHome) -> UsagePolicy:
    """Sign policy.toml as it stands. A changed policy needs a higher version.

    Raises:
        DocumentInvalid: The policy changed but its version did not rise.
    """
    with alone(home):  # the key may be replaced by another command at this moment
        return _sign_policy(home)


def _sign_policy(home: HolderHome) -> UsagePolicy:
    policy = read_policy_of(home.profile, home.policy_file)
    signed = signed_policy(home)
    if signed is not None and policy.policy_id == signed.policy_id:
        if policy.digest == signed.digest:
            return policy
        if policy.version <= signed.version:
            raise DocumentInvalid(
                "the policy changed, its version did not rise",
                expected=f"version = {signed.version + 1} or higher",
                got=f"version = {policy.version}",
                where=str(home.policy_file),
            )
    _write_policy(home.papers, policy, SigningKey.load(home.keys / "policy.jwk"))
    return policy


def signed_policy(home: HolderHome) -> UsagePolicy | None:
    """The policy last signed here with one of the officer's own keys, or None.

    Raises:
        TrustRefused: What lies here is not the officer's own.
    """
    path = home.signed_policy
    if not path.exists():
        return None
    return UsagePolicy.from_document(open_own(home, path, type=DocumentType.POLICY, role=Role.POLICY))


def is_revoked(home: HolderHome) -> bool:
    """Whether the last status signed here revokes the signed policy; also where either of them cannot be read."""
    policy, status = signed_policy(home), last_status(home)
    return policy is None or status is None or status.revocation_of(policy.policy_id) is not None


def is_suspended(home: HolderHome) -> bool:
    """Whether the last status signed here suspends every use; also where it cannot be read."""
    status = last_status(home)
    return status is None or status.suspended is not None


def stops_in_force(directory: str, *, policy_id: str) -> tuple[bool, bool]:
    """Whether a policy is revoked here and every use suspended, for a preview; also where the status cannot be read.

    Args:
        directory: The holder's directory. One in which nothing was signed yet begins with nothing stopped.
        policy_id: The policy, signed or about to be.
    """
    home = HolderHome(Path(directory))
    if not home.status.exists():
        return False, False
    status = last_status(home)
    if status is None:
        return True, True
    return status.revocation_of(policy_id) is not None, status.suspended is not None


def last_status(home: HolderHome) -> Status | None:
    """The status that lies here, fresh or not, if it is this officer's own; otherwise None."""
    try:
        return Status.from_document(open_own(home, home.status, type=DocumentType.STATUS, role=Role.STATUS))
    except (OSError, UnicodeDecodeError, Refused):
        return None


def own_keys(home: HolderHome) -> KeyList:
    """The key list that lies here.

    Raises:
        TrustRefused: It is missing, or not signed by this holder's root key.
    """
    try:
        token = home.key_list.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TrustRefused("the key list cannot be read", got=type(error).__name__, where=str(home.key_list)) from None
    return KeyList.from_document(open_signed(token, type=DocumentType.KEYS, key=root_of(home)))


def open_own(home: HolderHome, path: Path, *, type: DocumentType, role: Role) -> dict[str, Any]:  # noqa: A002
    """A paper that this officer signed, under whichever key of its list.

    Raises:
        OSError: It cannot be read.
        TrustRefused: It is not signed by a key of the list that has the role.
    """
    token = path.read_text()
    signer = parse(token).kid
    for listed in own_keys(home).keys:
        if listed.public_key.kid == signer and role.value in listed.roles:
            return open_signed(token, type=type, key=listed.public_key)
    raise TrustRefused(TrustReason.UNKNOWN_KEY.value, expected=f"a listed key with role {role.value}", where=str(path))


def renew_status(home: HolderHome, *, now_ms: int) -> Status:
    """Sign a fresh status: what was revoked stays revoked. Only moves forward.

    Raises:
        TrustRefused: The status at hand is not this officer's own, or not the newest one.
    """
    with alone(home):
        return renew_while_alone(home, now_ms=now_ms)


def renew_while_alone(home: HolderHome, *, now_ms: int) -> Status:
    """As `renew_status`, for whoever holds `alone` already.

    Raises:
        TrustRefused: As `renew_status`.
    """
    return _next_status(home, now_ms=now_ms)


def revoke(home: HolderHome, *, reason: str, now_ms: int) -> Status:
    """Withdraw the signed policy. Takes effect at the next gate, on this machine, whatever the coordinator does.

    Revoking twice changes nothing. What was sent before stays sent and its budget spent: nothing is unlearned.

    Raises:
        ScenarioInvalid: No policy was signed here.
        TrustRefused: The status at hand is not this officer's own, or not the newest one.
    """
    policy = signed_policy(home)
    if policy is None:
        raise ScenarioInvalid("there is no signed policy to revoke", where=str(home.papers))
    entry = RevokedPolicy(policy_id=policy.policy_id, at_ms=now_ms, reason=reason, on_revoke=policy.on_revoke.value)

    def add(current: Status) -> Status:
        is_new = current.revocation_of(entry.policy_id) is None
        return current.model_copy(update={"revoked": (*current.revoked, entry)}) if is_new else current

    with alone(home):
        return _next_status(home, now_ms=now_ms, change=add)


def suspend(home: HolderHome, *, reason: str, now_ms: int) -> Status:
    """Stop every use of the data from the next gate on, until `resume`. Suspending twice changes nothing.

    What is in training then is thrown away, and its budget given back unless the plan brought its own code. What was
    sent before stays sent and spent.

    Raises:
        TrustRefused: The status at hand is not this officer's own, or not the newest one.
    """
    suspension = Suspension(at_ms=now_ms, reason=reason)

    def add(current: Status) -> Status:
        return current.model_copy(update={"suspended": current.suspended or suspension})

    with alone(home):
        return _next_status(home, now_ms=now_ms, change=add)


def resume(home: HolderHome, *, now_ms: int) -> Status:
    """Lift the suspension, if there is one. A revocation stays.

    Raises:
        TrustRefused: The status at hand is not this officer's own, or not the newest one.
    """
    with alone(home):
        return _next_status(home, now_ms=now_ms, change=lambda current: current.model_copy(update={"suspended": None}))


@contextlib.contextmanager
def alone(home: HolderHome) -> Iterator[None]:
    """Change the holder's papers while nobody else does."""
    # A renewal by the node and a revocation by the officer may meet: neither may overwrite what the other signed.
    lock = os.open(home.papers / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _next_status(
    home: HolderHome, *, now_ms: int, change: Callable[[Status], Status] = lambda current: current
) -> Status:
    key = SigningKey.load(home.keys / "status.jwk")
    path = home.status
    current = Status.from_document(open_own(home, path, type=DocumentType.STATUS, role=Role.STATUS))
    if current.seq < last_signed_status(home):
        raise TrustRefused(
            TrustReason.REPLAYED.value,
            expected=f"status {last_signed_status(home)}, which was signed here last",
            got=f"status {current.seq}",
            where=str(path),
            next_step="put the newest status.jws back: signing on from an older one would sign its stops away",
        )
    issued_ms = max(now_ms, current.issued_ms)
    status = change(current).model_copy(
        update={"seq": current.seq + 1, "issued_ms": issued_ms, "good_until_ms": issued_ms + STATUS_LIFETIME_MS}
    )
    write_durably(path, sign(status.to_document(), type=DocumentType.STATUS, key=key).encode())
    write_durably(home.status_number, str(status.seq).encode())
    return status


def last_signed_status(home: HolderHome, files: WatchedFiles | None = None) -> int:
    """The number of the status that was signed here last; 0 before the first renewal, or where it is signed elsewhere.

    Args:
        home: The holder's directory.
        files: Where the note of it is read through by those who ask often.

    Raises:
        TrustRefused: The note of it is unreadable.
    """
    path = home.status_number
    try:
        return (files or WatchedFiles()).read(path, int)
    except FileNotFoundError:
        return 0
    except (OSError, ValueError):
        raise TrustRefused("the number of the last status is unreadable", where=str(path)) from None


def root_of(home: HolderHome, files: WatchedFiles | None = None) -> PublicKey:
    """The holder's root public key, which whoever wants to verify this holder must learn out of band.

    Args:
        home: The holder's directory.
        files: Where the key is read through by those who ask often.
    """
    return (files or WatchedFiles()).read(home.root, lambda data: PublicKey.from_jwk(json.loads(data)))


def _write_policy(papers: Path, policy: UsagePolicy, key: SigningKey) -> None:
    token = sign(policy.to_document(), type=DocumentType.POLICY, key=key).encode()
    write_durably(papers / "policies" / f"{policy.policy_id}-{policy.version}.jws", token)
    write_durably(papers / "policy.jws", token)

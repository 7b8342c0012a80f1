"""A holder's own signed papers, read and verified anew before every decision: on disk they may have been exchanged."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ringfence_client.home import HolderHome
from ringfence_client.officer import STATUS_LIFETIME_MS, last_signed_status, renew_status
from ringfence_client.watched_files import WatchedFiles
from ringfence_policy.clauses import CLAUSES
from ringfence_policy.decision import Decision, Point
from ringfence_policy.documents import RevokedPolicy, Status
from ringfence_policy.errors import RingfenceError, TrustRefused
from ringfence_policy.identity import TrustReason, parse
from ringfence_policy.policy import UsagePolicy, policy_in
from ringfence_policy.trust_store import TrustStore


class OfficersWord(TypedDict):
    """What the data officer's status says about a use, as the facts of a request name it."""

    revoked: bool
    suspended: bool
    status_fresh: bool


@dataclass(frozen=True)
class Papers:
    """What the holder can show right now.

    Attributes:
        policy: The signed policy.
        policy_key_id: The key that signed it.
        status: The status, or None where none is fresh.
        keys_token, policy_token, status_token: The signed documents themselves.
    """

    policy: UsagePolicy
    policy_key_id: str
    status: Status | None
    keys_token: str
    policy_token: str
    status_token: str

    @property
    def revocation(self) -> RevokedPolicy | None:
        """The revocation of the policy, if the status carries one."""
        return None if self.status is None else self.status.revocation_of(self.policy.policy_id)

    @property
    def officers_word(self) -> OfficersWord:
        """What the status says, for the gate."""
        return {
            "revoked": self.revocation is not None,
            "suspended": self.status is not None and self.status.suspended is not None,
            "status_fresh": self.status is not None,
        }


def read_papers(
    home: HolderHome, files: WatchedFiles, trust: TrustStore, *, now_ms: int, point: Point
) -> Papers | Decision:
    """Read and verify the papers; whatever does not hold is a denial that names it.

    A status in the second half of its life is renewed by the holder's own service: the same revocations, a later date.
    """
    try:
        keys_token = files.read(home.key_list, bytes.decode)
        trust.accept_keys(keys_token)
        try:
            policy_token = files.read(home.signed_policy, bytes.decode)
        except FileNotFoundError:
            return Decision.deny("no-policy", point=point)
        trust.accept_policy(policy_token, now_ms)
        policy = policy_in(policy_token)
        written = files.read(home.policy_file, lambda _: home.read_policy())
    except (OSError, UnicodeDecodeError, RingfenceError) as error:
        summary = error.summary if isinstance(error, RingfenceError) else type(error).__name__
        return Decision.deny("signature", limit="a policy signed under the holder's keys", actual=summary, point=point)
    if written.digest != policy.digest:
        return Decision.deny(
            "signature",
            "The policy was edited after it was signed.",
            limit=f"policy.toml as signed in {policy.reference}",
            actual="policy.toml says something else: raise its version and sign it again",
            point=point,
            policy=policy.reference,
            policy_digest=policy.digest,
        )
    status, status_token = _status(home, files, trust, now_ms=now_ms)
    return Papers(
        policy=policy,
        policy_key_id=parse(policy_token).kid,
        status=status,
        keys_token=keys_token,
        policy_token=policy_token,
        status_token=status_token,
    )


def without_status(papers: Papers) -> Decision | None:
    """The denial that papers without a fresh status amount to, so that the holder itself says what is missing."""
    if papers.status is not None:
        return None
    clause = CLAUSES["status"]
    return Decision.deny(
        clause.id,
        clause.sentence(papers.policy),
        limit=clause.limit(papers.policy),
        point=Point.BEFORE_TRAINING,
        policy=papers.policy.reference,
        policy_digest=papers.policy.digest,
    )


def denial_of(error: RingfenceError, *, point: Point) -> Decision:
    """The denial that a fault amounts to: what was expected is said to everyone, what was found stays here."""
    return Decision.deny(error.code, error.summary, limit=error.expected or "", actual=error.got, point=point)


def read_token(path: Path) -> str:
    """A paper as it is, or "": what is missing or unreadable on disk is missing wherever it is shown."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _status(home: HolderHome, files: WatchedFiles, trust: TrustStore, *, now_ms: int) -> tuple[Status | None, str]:
    path = home.status
    # Asked before the status is read: the officer signs first and notes the number afterwards.
    newest = last_signed_status(home, files)
    try:
        token = files.read(path, bytes.decode)
    except (OSError, UnicodeDecodeError):
        token = ""
    try:
        status = trust.accept_status(token, now_ms)
        if status.seq < newest:
            return None, token
        is_due = status.good_until_ms - now_ms < STATUS_LIFETIME_MS // 2
    except TrustRefused as error:
        # Only a status that is merely old is renewed. Renewing a replayed one would sign away a revocation.
        if error.summary != TrustReason.STALE.value:
            return None, token
        is_due = True
    if not is_due:
        return status, token
    try:
        renew_status(home, now_ms=now_ms)
        token = path.read_text()
        return trust.accept_status(token, now_ms), token
    except (OSError, RingfenceError):
        return None, token

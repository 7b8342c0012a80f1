"""What the privacy ledger answers with: a hold, a meter, a quote. Values only; the rules are in `ledger`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Action


class HoldState(StrEnum):
    """Where a use stands."""

    RESERVED = "reserved"
    SENDING = "sending"
    COMMITTED = "committed"
    RELEASED = "released"


@dataclass(frozen=True, kw_only=True)
class Hold:
    """One use of a dataset: what, under which policy, for which attempt of which round, and where it stands.

    Attributes:
        hold_id: Name of the use, the same for every retry of it.
        round_number: From 1; 0 for a use outside the rounds.
        attempt: From 1. A second try of a round that may train again is a new attempt and a new hold.
        update_digest: Digest of what left or was about to leave; none before `sending`.
        detail: Why it was released, or empty.
    """

    hold_id: str
    run_id: str
    round_number: int
    attempt: int
    dataset_id: str
    policy_id: str
    mechanism: DpMechanism
    action: Action
    state: HoldState
    update_digest: str | None
    detail: str


@dataclass(frozen=True, kw_only=True)
class Meter:
    """One cap and how much of it is used. Epsilon in millionths, delta in trillionths, rounds as they are.

    Attributes:
        cap: The limit as last set. A cap lowered below what is spent stays visible, and the meter is exhausted.
        committed: What has left the holder, or may have (`sending` counts here).
        reserved: What open reservations add to that.
    """

    owner_kind: Literal["dataset", "policy"]
    owner_id: str
    quantity: Literal["epsilon", "delta", "rounds"]
    cap: int
    committed: int
    reserved: int

    @property
    def left(self) -> int:
        """What is left, never below zero."""
        return max(0, self.cap - self.committed - self.reserved)

    @property
    def exceeded(self) -> bool:
        """Whether more is used than the cap allows (only ever after a cap was lowered)."""
        return self.committed + self.reserved > self.cap


@dataclass(frozen=True, kw_only=True)
class Quote:
    """What one more use would cost. Epsilon in millionths, each at its owner's own delta; open reservations count.

    Attributes:
        exhausted: The meters that would be exceeded, as "dataset/epsilon" or "policy/rounds"; empty when it fits.
    """

    policy_epsilon_before_micro: int
    policy_epsilon_after_micro: int
    policy_epsilon_cap_micro: int
    policy_delta_pico: int
    dataset_epsilon_before_micro: int
    dataset_epsilon_after_micro: int
    dataset_epsilon_cap_micro: int
    dataset_delta_pico: int
    rounds_used: int
    max_rounds: int
    exhausted: tuple[str, ...]

    @property
    def policy_epsilon_cost_micro(self) -> int:
        """What this use adds to the policy's epsilon."""
        return self.policy_epsilon_after_micro - self.policy_epsilon_before_micro

    @property
    def fits(self) -> bool:
        """Whether every meter allows it."""
        return not self.exhausted

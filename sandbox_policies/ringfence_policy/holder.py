"""holder.toml: who a data holder is, and the budget of its dataset, as its data officer writes it."""

from pathlib import Path

from pydantic import Field

from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.policy import Region, UsagePolicy, read_policy
from ringfence_policy.strict_toml import Identifier, MicroEpsilon, PicoDelta, StrictDocument, Text


class DatasetTerms(StrictDocument):
    """A dataset's identity and its budget, whatever runs and policies use it.

    `weight` is the public number that averages are weighted by. Declare a round figure: the exact row count is a fact
    about the records. `epsilon` and `delta` cap the sum of all uses of this dataset, ever.
    """

    dataset_id: Identifier
    weight: int = Field(ge=1, le=10**9)
    epsilon_micro: MicroEpsilon = Field(alias="epsilon")
    delta_pico: PicoDelta = Field(alias="delta")


class SimulationTerms(StrictDocument):
    """What a simulated data officer does in a demonstration. Absent for a real holder."""

    revoke_at_round: int | None = Field(default=None, ge=1)


class HolderProfile(StrictDocument):
    """A data holder: its id, its name as people say it, where it computes, and its dataset."""

    holder_id: Identifier
    name: Text
    region: Region
    dataset: DatasetTerms
    simulation: SimulationTerms = SimulationTerms()


def read_policy_of(profile: HolderProfile, path: Path) -> UsagePolicy:
    """Read the policy of a holder for its dataset.

    Raises:
        DocumentInvalid: It cannot be read, or speaks of another holder or dataset.
    """
    policy = read_policy(path)
    expected = (profile.holder_id, profile.dataset.dataset_id)
    if (policy.holder_id, policy.dataset_id) != expected:
        raise DocumentInvalid(
            "the policy is for another holder or dataset",
            expected=" and ".join(expected),
            got=f"{policy.holder_id} and {policy.dataset_id}",
            where=str(path),
            next_step="make holder and dataset agree in holder.toml and policy.toml",
        )
    return policy

"""One holder's records as plans use them: read by a plan's schema, then parted as its terms say, each of them once."""

from pathlib import Path
from typing import Final

from ringfence_client.datasource import HolderData, load_dataset
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.vocabulary import Unit

Parts = tuple[HolderData, HolderData]

# An agent lives for years: it keeps the parts of so many plans, which may well train at one time.
_PLANS_KEPT: Final = 4


class HolderRecords:
    """The records of one holder's dataset, kept in memory once they are read. All of it is secret.

    Args:
        directory: The directory with the data file.
        salt: Names the dataset's own split and choice: its id.
    """

    def __init__(self, directory: Path, *, salt: str) -> None:
        self._directory = directory
        self._salt = salt
        self._by_schema: dict[str, HolderData] = {}
        self._by_plan: dict[str, Parts] = {}

    def whole(self, plan: TrainingPlan) -> HolderData:
        """All records, read once per schema.

        Raises:
            DataInvalid: They do not fit the plan's schema.
        """
        digest = plan.dataset_schema.digest
        if digest not in self._by_schema:
            self._by_schema[digest] = load_dataset(self._directory, plan.dataset_schema)
        return self._by_schema[digest]

    def parts(self, plan: TrainingPlan) -> Parts:
        """The records for training and those for evaluation; see `parts_of`. Kept for the plans that were used last."""
        parts = self._by_plan.pop(plan.digest, None) or parts_of(self.whole(plan), plan, salt=self._salt)
        self._by_plan[plan.digest] = parts
        if len(self._by_plan) > _PLANS_KEPT:
            del self._by_plan[next(iter(self._by_plan))]
        return parts


def parts_of(data: HolderData, plan: TrainingPlan, *, salt: str) -> Parts:
    """Part a holder's records as a plan says. A record keeps its side while the test fraction stays.

    Where the plan protects data subjects, one trains with no more records than the schema's bound. Where it protects
    single records there is no bound: one record more could take another one's place, and two would differ, not one.

    Args:
        data: All records of the dataset. Secret.
        plan: The plan, with the schema that the data was read by.
        salt: Names the dataset's own split and choice.

    Returns:
        The training part and the test part.
    """
    train, test = data.split(plan.terms.evaluation.test_fraction, salt=salt)
    subject = plan.dataset_schema.subject
    if plan.unit is Unit.SUBJECT and subject is not None:
        train = train.bounded(subject.max_records, salt=salt)
    return train, test

"""Which of a holder's records train under a plan, and which only ever measure."""

from ringfence_client.datasource import HolderData
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.vocabulary import Unit


def parts_of(data: HolderData, plan: TrainingPlan, *, salt: str) -> tuple[HolderData, HolderData]:
    """Part a holder's records as a plan says.

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

"""How the values of a policy are written in plain English, for data officers and in decisions."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Final

from ringfence_policy.policy import BUILT_IN, UsagePolicy
from ringfence_policy.vocabulary import PURPOSES, Evaluation, OnRevoke, ReleaseTo, Sandbox, SubjectRecords, Unit

UNIT_WORDS: Final[Mapping[Unit, str]] = {
    Unit.RECORD: "every single record",
    Unit.SUBJECT: "every person with all of their records",
    Unit.HOLDER: "the data holder's whole dataset",
}
SUBJECT_SENTENCES: Final[Mapping[SubjectRecords, str]] = {
    SubjectRecords.TOGETHER: "Where the data says which records are about one person, they must be protected together.",
    SubjectRecords.APART: (
        "Records may be protected one by one even where the data says which are about one person; "
        "a person with several records is then protected less."
    ),
}
SANDBOX_SENTENCES: Final[Mapping[Sandbox, str]] = {
    Sandbox.REQUIRED: "Records may be opened only inside a data sandbox: no network, no other files.",
    Sandbox.NOT_REQUIRED: "Records may be opened without a data sandbox, as in a simulation.",
}
EVALUATION_SENTENCES: Final[Mapping[Evaluation, str]] = {
    Evaluation.NONE: "No model may be measured on this data.",
    Evaluation.PRIVATE: "Models may be measured on this data only with differential privacy, paid from the budget.",
    Evaluation.EXACT: "Models may be measured exactly on this data; such results have no differential privacy.",
}
RELEASE_SENTENCES: Final[Mapping[ReleaseTo, str]] = {
    ReleaseTo.NONE: "Nothing that was learned from this data may be released to anyone.",
    ReleaseTo.METRICS_ONLY: "Only metrics may be released; the model itself may not.",
    ReleaseTo.PARTICIPANTS: "The model may be released to the participants of the run, but not to the public.",
    ReleaseTo.PUBLIC: "The model may be released to the public.",
}
REVOKE_SENTENCES: Final[Mapping[OnRevoke, str]] = {
    OnRevoke.STOP_NOW: (
        "When this policy is revoked, use stops at once, even in the middle of a round. What was sent stays sent."
    ),
    OnRevoke.FINISH_ROUND: (
        "When this policy is revoked, a round in training may finish and no other may start. What was sent stays sent."
    ),
}


def listed(names: Iterable[str], *, joined_by: str = "and") -> str:
    """Names as English lists them: `a`, `a and b`, `a, b and c`."""
    *most, last = names
    return f"{', '.join(most)} {joined_by} {last}" if most else last


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 round`, `12 rounds`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def epsilon_text(micro: int) -> str:
    """Micro-epsilon as the decimal a reader knows: `1.5`."""
    return _decimal_text(micro, 6)


def delta_text(pico: int) -> str:
    """Pico-delta as the decimal a reader knows: `0.00001`."""
    return _decimal_text(pico, 12)


def day_text(moment: datetime) -> str:
    """A time as `31 December 2026, 23:00 UTC`."""
    seconds = moment.strftime(":%S") if moment.second or moment.microsecond else ""
    return f"{moment.day} {moment.strftime('%B %Y, %H:%M')}{seconds} UTC"


def _decimal_text(amount: int, digits: int) -> str:
    text = f"{Decimal(amount).scaleb(-digits):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def label(purpose: str) -> str:
    """A purpose as a noun phrase, also one the vocabulary lacks."""
    known = PURPOSES.get(purpose)
    return known.label if known else f"{purpose} (not in the vocabulary)"


def labels(purposes: Iterable[str]) -> str:
    """Purposes as a choice in English."""
    return listed((label(purpose) for purpose in purposes), joined_by="or")


def code_sentence(policy: UsagePolicy) -> str:
    """Which code may run on the data."""
    digests = sum(name != BUILT_IN for name in policy.code)
    if not digests:
        return "Only models built into Ringfence may be trained; no outside code runs on this data."
    also = " or models built into Ringfence" if BUILT_IN in policy.code else ""
    return f"Only model code with {counted(digests, 'approved digest')}{also} may run on this data."


def retention_sentence(policy: UsagePolicy) -> str:
    """When updates must be deleted."""
    if policy.retention_days == 0:
        return "Updates from this data must be deleted as soon as the round is over."
    return f"Updates from this data must be deleted within {counted(policy.retention_days, 'day')}."


def holders_sentence(policy: UsagePolicy) -> str:
    """In what company the data may be used."""
    if policy.min_holders == 1:
        return "This data may be used alone, without other data holders."
    return (
        f"At least {counted(policy.min_holders, 'data holder')} must take part in a round together, this one included."
    )

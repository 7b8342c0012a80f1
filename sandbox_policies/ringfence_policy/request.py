"""The facts of one intended use of a holder's data, bounded and typed before any rule sees them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from ringfence_policy import canonical
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.policy import Region, rfc3339
from ringfence_policy.strict_toml import (
    EARLIEST,
    LATEST,
    Choice,
    Count,
    Digest,
    Identifier,
    StrictDocument,
    Text,
    refusal,
)
from ringfence_policy.vocabulary import Action, Evaluation, ReleaseTier, ReleaseTo, Unit

HOLDER_ONLY: Final = frozenset({"records"})
"""Facts that stay with the holder: a row count is itself a leak."""


def _to_the_millisecond(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise refusal("a time with its zone")
    if not EARLIEST <= value < LATEST:
        raise refusal("a time between the years 1970 and 2200")
    utc = value.astimezone(UTC)
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000)


def _digest_or_empty(value: str) -> str:
    if value and not (value.startswith("sha256:") and len(value) == 71 and value[7:].isalnum()):  # noqa: PLR2004
        raise refusal('a digest, or "" for a built-in model')
    return value


CodeDigest = Annotated[str, AfterValidator(_digest_or_empty)]
"""The SHA-256 name of a model's code; "" for a model built into Ringfence."""


class RoundRequest(StrictDocument):
    """One use of one dataset, as the one who decides knows it.

    The coordinator's request is a claim; a holder fills in every fact it can establish itself (time, spent budget,
    records, cohort) and takes only names from the plan.

    Attributes:
        policy_id: The policy the use names. There is no silent best match.
        action: Train on the data, evaluate on it, or release what was learned from it.
        coordinator: The organisation that asks.
        dataset_id: The dataset that would be used.
        purpose: Why, in a word of the purpose tree. An unknown word is carried and then denied.
        task: What is learned.
        plan_digest: The plan, by digest.
        code_digest: The model's code, by digest; "" for a model built into Ringfence.
        region: Where the computing takes place.
        now: When. UTC, to the millisecond.
        rounds_used: Rounds already used under this policy, before this one.
        epsilon_after_micro: What the policy's whole history would amount to with this use, at the policy's delta.
        epsilon_cost_micro: What this use adds to it.
        delta_pico: The delta at which both are stated.
        unit: The unit of privacy the mechanism protects.
        names_subjects: Whether the dataset's schema says which records are about one data subject.
        records: Rows at the holder that would be used. Secret: None wherever the holder's own machine is not deciding.
        holders: Size of the cohort, this holder included.
        secure_aggregation: Whether updates are only opened as a sum.
        sandboxed: Whether the records are opened behind the walls of a data sandbox. A claim wherever the holder's own
            machine is not deciding.
        columns: Names of the columns that would be read; all of the dataset's are named, never "*".
        retention_days: How long updates are kept, in days.
        release_to: Who will see the result.
        release_tier: Which gates the model passes before that.
        evaluation: How the model is measured on this holder's rows.
        rehearsal: Whether the use is a rehearsal without privacy.
        revoked: Whether the holder's status revokes the policy.
        suspended: Whether the holder's status suspends every use of its data.
        status_fresh: Whether a status of the holder is at hand that has not expired.
    """

    policy_id: Identifier
    action: Choice[Action]
    coordinator: Identifier
    dataset_id: Identifier
    purpose: Identifier
    task: Identifier
    plan_digest: Digest
    code_digest: CodeDigest = ""
    region: Region
    now: Annotated[datetime, AfterValidator(_to_the_millisecond)]
    rounds_used: Count
    epsilon_after_micro: Count
    epsilon_cost_micro: Count
    delta_pico: Count
    unit: Choice[Unit]
    names_subjects: bool
    records: Count | None = None
    holders: Count
    secure_aggregation: bool
    sandboxed: bool
    columns: Annotated[frozenset[Text], Field(min_length=1, max_length=10_002)]  # a schema's, its label and its subject
    retention_days: Count
    release_to: Choice[ReleaseTo]
    release_tier: Choice[ReleaseTier]
    evaluation: Choice[Evaluation]
    rehearsal: bool
    revoked: bool
    suspended: bool
    status_fresh: bool

    @model_validator(mode="after")
    def _evaluation_says_how(self) -> Self:
        if self.action is Action.EVALUATE and self.evaluation is Evaluation.NONE:
            raise refusal("an evaluation that is private or exact", key="evaluation", got="none")
        return self

    def public_facts(self) -> dict[str, Any]:
        """The facts as a canonical document, without what only the holder may see."""
        facts: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name in HOLDER_ONLY:
                continue
            if isinstance(value, datetime):
                facts[name] = rfc3339(value)
            elif isinstance(value, frozenset):
                facts[name] = sorted(value)
            else:
                facts[name] = str(value) if isinstance(value, str) else value
        return facts

    def digest(self) -> str:
        """The SHA-256 name of the public facts. The row count is left out: a few guesses would find it."""
        return canonical.digest(self.public_facts())

    @classmethod
    def from_public_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Rebuild a request from its public facts, to decide it again offline.

        What only the holder saw is absent (`records` is None), so use `PolicyGate.redecide`, which does not judge it.

        Raises:
            DocumentInvalid: A fact is missing, unknown, of the wrong type or out of bounds.
        """
        if HOLDER_ONLY & facts.keys():
            raise DocumentInvalid("not public facts", expected="no fact that only the holder may see", got="records")
        values = dict(facts)
        try:
            values["now"] = datetime.fromisoformat(values["now"])
            values["columns"] = frozenset(_sorted_without_repeats(values["columns"]))
            request = cls.model_validate(values)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            where = ".".join(str(step) for step in detail["loc"])
            raise DocumentInvalid("not a request", where=where or None, expected=detail["msg"]) from error
        except (KeyError, TypeError, ValueError) as error:
            raise DocumentInvalid(
                "not a request", expected="every fact, in its type", got=type(error).__name__
            ) from error
        if request.public_facts() != values | {"now": facts["now"], "columns": facts["columns"]}:
            raise DocumentInvalid("not a request", expected="the one form of the facts", got="another form")
        return request


def _sorted_without_repeats(names: list[str]) -> list[str]:
    if names != sorted(set(names)):
        raise ValueError("columns must be sorted and without repeats")
    return names

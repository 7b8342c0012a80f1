"""The training plan: what is to be run, frozen, signed by the coordinator and named by its digest.

`PlanFile` is what a person writes (plan.toml). `TrainingPlan` adds what a run fixes: the schema, and every data holder
with the thumbprint of its root key, so that a holder that approves a plan knows exactly who else is in it.
"""

import json
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ringfence_policy import canonical
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.identity import PublicKey
from ringfence_policy.policy import PurposeId, Region
from ringfence_policy.request import CodeDigest
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.strict_toml import Choice, DecimalString, Identifier, ListOf, StrictDocument, Text, refusal
from ringfence_policy.vocabulary import Evaluation, Relation, ReleaseTier, ReleaseTo, Unit

MOST_LAYERS = 16
WIDEST_LAYER = 65_536
MOST_SAMPLED_STEPS = 100_000

Strategy = Literal["FedAvg", "FedProx", "FedAdam", "FedYogi", "FedTrimmedAvg"]
TrainerName = Literal["opacus", "book-keeping", "cohort"]


# Mechanisms are counted in millionths: what is smaller would become zero.
_LEAST: Final = Decimal("0.000001")


def _in_range(name: str, value: Decimal, *, least: Decimal = Decimal(0), up_to: Decimal) -> None:
    if not least <= value <= up_to:
        raise refusal(f"a number of at least {least} and at most {up_to}", key=name, got=str(value))


class ModelSpec(StrictDocument):
    """The model: a built-in kind, or a holder-installed torch module named by import path and code digest."""

    kind: Literal["logistic-regression", "mlp", "module"]
    hidden: ListOf[int] = ()
    path: str = ""
    code_digest: CodeDigest = ""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _parts_fit_the_kind(self) -> Self:
        if (self.kind == "module") != bool(self.path) or (self.kind == "module") != bool(self.code_digest):
            raise refusal("path and code_digest together, exactly when kind is 'module'", key="kind", got=self.kind)
        sizes_fit = len(self.hidden) <= MOST_LAYERS and all(1 <= size <= WIDEST_LAYER for size in self.hidden)
        if (self.kind == "mlp") != bool(self.hidden) or not sizes_fit:
            raise refusal(
                f"hidden = [at most {MOST_LAYERS} sizes from 1 to {WIDEST_LAYER}], exactly when kind is 'mlp'",
                key="hidden" if self.hidden else "kind",
                got=str(list(self.hidden)),
            )
        return self


class TrainingTerms(StrictDocument):
    """How a round trains. `average_last` is the share of the committed rounds that the released model averages.

    `trainer` names the code that trains at every holder; with `auto` each holder takes the fastest that fits the model.
    """

    strategy: Strategy = "FedAvg"
    trainer: Literal["auto"] | TrainerName = "auto"
    rounds: int = Field(ge=1, le=10_000)
    steps: int = Field(ge=1, le=100_000)
    sampling_rate: DecimalString
    learning_rate: DecimalString
    clipping_norm: DecimalString
    proximal_mu: DecimalString = Decimal(0)
    average_last: DecimalString = Decimal(0)
    server_learning_rate: DecimalString = Decimal("0.1")
    trimmed_share: DecimalString = Decimal("0.2")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _in_range("sampling_rate", self.sampling_rate, least=_LEAST, up_to=Decimal(1))
        for name in ("learning_rate", "clipping_norm", "server_learning_rate"):
            _in_range(name, getattr(self, name), least=_LEAST, up_to=Decimal(10_000))
        for name, largest in (("average_last", "1"), ("proximal_mu", "10000"), ("trimmed_share", "0.49")):
            _in_range(name, getattr(self, name), up_to=Decimal(largest))
        if self.strategy == "FedProx" and self.learning_rate * self.proximal_mu > 1:
            # Beyond 1 a step overshoots the global model it pulls towards, beyond 2 it runs away from it.
            raise refusal("learning_rate x proximal_mu of at most 1", key="proximal_mu", got=str(self.proximal_mu))
        if self.sampling_rate < 1 and self.rounds * self.steps > MOST_SAMPLED_STEPS:
            # Composing sampled steps takes a holder minutes beyond this, before it has agreed to anything.
            raise refusal(
                f"at most {MOST_SAMPLED_STEPS} sampled steps in all", key="steps", got=f"{self.rounds} rounds"
            )
        return self


class PrivacyTerms(StrictDocument):
    """The mechanism's public terms. Each holder calibrates its own noise, up to `noise_multiplier_max`.

    `unit` may be left out of plan.toml: a data subject where the schema names subjects, otherwise a record. A signed
    plan always has it.
    """

    unit: Choice[Unit] | None = None
    relation: Choice[Relation] = Relation.ADD_OR_REMOVE
    noise_multiplier_max: DecimalString

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if self.unit is Unit.HOLDER:
            raise refusal("'record' or 'subject': no trainer here protects a whole holder", key="unit", got="holder")
        if self.relation is not Relation.ADD_OR_REMOVE:
            raise refusal("'add-or-remove'", key="relation", got=str(self.relation))
        _in_range("noise_multiplier_max", self.noise_multiplier_max, least=_LEAST, up_to=Decimal(100_000))
        return self


class CohortTerms(StrictDocument):
    """The coordinator's own minimum, beside every holder's; how long it waits; and where and how sums are formed.

    All holders that permit are asked. `round_seconds` is how long they have for one answer. With `enough_holders` a
    round closes as soon as so many usable updates are there; 0 is as many as were asked.
    """

    min_holders: int = Field(default=1, ge=1, le=10_000)
    round_seconds: int = Field(default=600, ge=1, le=86_400)
    enough_holders: int = Field(default=0, ge=0, le=10_000)
    secure_aggregation: Literal[False] = False
    region: Region

    @model_validator(mode="after")
    def _enough_is_not_too_few(self) -> Self:
        if 0 < self.enough_holders < self.min_holders:
            expected = f"0, or at least min_holders, which is {self.min_holders}"
            raise refusal(expected, key="enough_holders", got=str(self.enough_holders))
        return self


class EvaluationTerms(StrictDocument):
    """How the model is measured at the holders. A holder whose policy allows less is asked for less.

    `noise_multiplier` is that of the private score histogram (1 per unit of privacy), used where a policy says private.
    """

    mode: Choice[Evaluation] = Evaluation.NONE
    test_fraction: DecimalString = Decimal("0.25")
    every_round: bool = False
    noise_multiplier: DecimalString = Decimal(20)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _in_range("test_fraction", self.test_fraction, least=_LEAST, up_to=Decimal("0.9"))
        _in_range("noise_multiplier", self.noise_multiplier, least=_LEAST, up_to=Decimal(100_000))
        return self


class ReleaseTerms(StrictDocument):
    """Who gets the model, and how long the coordinator keeps updates."""

    to: Choice[ReleaseTo]
    tier: Choice[ReleaseTier]
    retention_days: int = Field(ge=0, le=36_500)


class PlanFile(StrictDocument):
    """plan.toml, as a researcher or coordinator writes it."""

    plan_id: Identifier
    title: Text
    coordinator: Identifier
    purpose: PurposeId
    task: Identifier
    model: ModelSpec
    training: TrainingTerms
    privacy: PrivacyTerms
    cohort: CohortTerms
    evaluation: EvaluationTerms = EvaluationTerms()
    release: ReleaseTerms


class PlanHolder(StrictDocument):
    """One data holder as the plan names it: its declared, public weight and its root key's thumbprint.

    The weight counts, roughly, what the plan protects: records, or data subjects.
    """

    weight: int = Field(ge=1, le=10**9)
    root_thumbprint: str
    root: dict[str, str]

    @cached_property
    def public_key(self) -> PublicKey:
        """The root key itself.

        Raises:
            TrustRefused: It is not usable.
        """
        return PublicKey.from_jwk(self.root)


class TrainingPlan(StrictDocument):
    """What is signed: the plan file, the schema and the holders. Its digest is in every request of the run.

    Raises:
        DocumentInvalid: The plan protects data subjects, and the schema does not say which records are whose.
    """

    terms: PlanFile
    dataset_schema: DatasetSchema
    holders: dict[str, PlanHolder]
    rehearsal: bool

    @model_validator(mode="after")
    def _unit_fits_the_schema(self) -> Self:
        if self.unit is Unit.SUBJECT and self.dataset_schema.subject is None:
            raise DocumentInvalid(
                "the plan protects subjects, and the schema does not say which records are about one",
                expected="a table [subject] in the schema",
                where="plan, [privacy] unit",
                next_step='name the column of identifiers in schema.toml, or plan with unit = "record"',
            )
        privacy = self.terms.privacy.model_copy(update={"unit": self.unit})
        object.__setattr__(self, "terms", self.terms.model_copy(update={"privacy": privacy}))
        return self

    @property
    def unit(self) -> Unit:
        """What one neighbouring dataset adds or removes: what the terms say, or else what the schema names."""
        by_default = Unit.RECORD if self.dataset_schema.subject is None else Unit.SUBJECT
        return self.terms.privacy.unit or by_default

    @property
    def runs_own_code(self) -> bool:
        """Whether a model of somebody else's code is trained: what it does beside records may depend on any of them."""
        return self.terms.model.kind == "module"

    def to_document(self) -> dict[str, Any]:
        """The plan as canonical JSON will carry it: decimals are strings, no floats."""
        document: dict[str, Any] = self.model_dump(mode="json", exclude={"dataset_schema"})
        document["dataset_schema"] = self.dataset_schema.to_document()
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Rebuild a plan that was signed.

        Raises:
            DocumentInvalid: The document is not a training plan of this version.
        """
        try:
            members = dict(document)
            schema = DatasetSchema.from_document(members.pop("dataset_schema"))
            partial = {key: members[key] for key in ("terms", "holders", "rehearsal")}
            if set(members) != set(partial):
                raise DocumentInvalid("a training plan has unknown members", got=", ".join(sorted(members)))
            return cls.model_validate(
                {
                    "terms": PlanFile.model_validate_json(canonical.encode(partial["terms"])),
                    "holders": {
                        holder: PlanHolder.model_validate_json(canonical.encode(entry))
                        for holder, entry in partial["holders"].items()
                    },
                    "rehearsal": partial["rehearsal"],
                    "dataset_schema": schema,
                }
            )
        except (KeyError, AttributeError, TypeError, ValidationError) as error:
            raise DocumentInvalid(
                "not a training plan", expected="terms, dataset_schema, holders, rehearsal"
            ) from error

    @classmethod
    @lru_cache(maxsize=64)
    def from_payload(cls, payload: bytes) -> Self:
        """Rebuild a plan from the canonical bytes that were signed; the same bytes give the same object.

        Raises:
            DocumentInvalid: As `from_document`.
        """
        return cls.from_document(json.loads(payload))

    @cached_property
    def has_true_thumbprints(self) -> bool:
        """Whether every holder's root key has the thumbprint that stands beside it.

        Raises:
            TrustRefused: A root key is not usable.
        """
        return all(holder.public_key.thumbprint == holder.root_thumbprint for holder in self.holders.values())

    @cached_property
    def digest(self) -> str:
        """The plan's name in every request, decision and log record."""
        return canonical.digest(self.to_document())

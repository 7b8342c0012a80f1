"""The closed words of a usage policy: purposes, actions, units of privacy, audiences and how they are ordered.

A word outside this file is refused, never guessed. Purposes form a tree: permission for one covers everything below it.
The research part is a pinned subset of the GA4GH Data Use Ontology (DUO, release 2022-09) with diseases named by MONDO;
what the ontologies lack (commercial and financial purposes) has Ringfence's own names. One step departs from DUO's
matching on purpose: DUO lets methods development use data consented for one disease, while here a purpose outside the
permitted branch is refused until the data officer lists it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

_DUO: Final = "http://purl.obolibrary.org/obo/DUO_"
_MONDO: Final = "http://purl.obolibrary.org/obo/MONDO_"
_OWN: Final = "urn:ringfence:purpose:"


class Action(StrEnum):
    """What is done with a holder's data."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    RELEASE = "release"


class Unit(StrEnum):
    """Unit of privacy: what one neighbouring dataset adds or removes, from the least to the most protected."""

    RECORD = "record"
    SUBJECT = "subject"
    HOLDER = "holder"


class SubjectRecords(StrEnum):
    """How the records of one data subject may be protected, where the data says which those are."""

    TOGETHER = "together"
    APART = "apart"


class Relation(StrEnum):
    """How two neighbouring datasets differ by one unit of privacy."""

    ADD_OR_REMOVE = "add-or-remove"
    REPLACE_ONE = "replace-one"


class Evaluation(StrEnum):
    """How a model may be measured on a holder's rows, from the least to the most revealing."""

    NONE = "none"
    PRIVATE = "private"
    EXACT = "exact"


class OnRevoke(StrEnum):
    """What happens to a round that is under way when the data officer revokes the policy."""

    STOP_NOW = "stop-now"
    FINISH_ROUND = "finish-round"


class ReleaseTo(StrEnum):
    """Who gets to see the result, from the narrowest to the widest audience."""

    NONE = "none"
    METRICS_ONLY = "metrics-only"
    PARTICIPANTS = "participants"
    PUBLIC = "public"


class ReleaseTier(StrEnum):
    """Which set of gates a model passes before it is released, from the lightest to the strictest."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Sandbox(StrEnum):
    """Whether records may only be opened behind the walls of a data sandbox."""

    REQUIRED = "required"
    NOT_REQUIRED = "not-required"


class SecureAggregation(StrEnum):
    """Whether updates may only be opened as a sum over the cohort."""

    REQUIRED = "required"
    NOT_REQUIRED = "not-required"


class Rehearsal(StrEnum):
    """Whether the data may be used without privacy: seeded noise and non-private comparison lines.

    Only for data that is published anyway; a rehearsal is marked NOT PRIVATE wherever it shows.
    """

    ALLOWED = "allowed"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True)
class Purpose:
    """One node of the purpose tree.

    Attributes:
        id: The word a data officer writes.
        parent: The purpose that covers this one, or None at a root.
        label: What it means, as a noun phrase that fits after "for".
        source_iri: The ontology term it stands for, or Ringfence's own name.
    """

    id: str
    parent: str | None
    label: str
    source_iri: str


def _purposes() -> Mapping[str, Purpose]:
    rows: tuple[tuple[str, str | None, str, str], ...] = (
        # research, from DUO
        ("research", None, "research of any kind", _DUO + "0000042"),
        ("health-research", "research", "health, medical or biomedical research", _DUO + "0000006"),
        ("disease-research", "health-research", "research into diseases", _DUO + "0000007"),
        ("population-research", "research", "research into population origins or ancestry", _DUO + "0000011"),
        ("methods-research", "research", "development of research methods", _OWN + "methods-research"),
        ("public-health-research", "health-research", "public health research", _OWN + "public-health-research"),
        ("commercial-research", "research", "research for a commercial product", _OWN + "commercial-research"),
        ("social-research", "research", "social and economic research", _OWN + "social-research"),
        # diseases, from MONDO
        ("cardiovascular-research", "disease-research", "cardiovascular disease research", _MONDO + "0004995"),
        ("heart-disease-research", "cardiovascular-research", "heart disease research", _MONDO + "0005267"),
        ("coronary-research", "heart-disease-research", "coronary artery disease research", _MONDO + "0005010"),
        ("stroke-research", "cardiovascular-research", "stroke research", _MONDO + "0005098"),
        ("cancer-research", "disease-research", "cancer research", _MONDO + "0004992"),
        ("breast-cancer-research", "cancer-research", "breast cancer research", _MONDO + "0007254"),
        ("lung-cancer-research", "cancer-research", "lung cancer research", _MONDO + "0008903"),
        ("diabetes-research", "disease-research", "diabetes research", _MONDO + "0005015"),
        ("infectious-disease-research", "disease-research", "infectious disease research", _MONDO + "0005550"),
        ("neurodegeneration-research", "disease-research", "neurodegenerative disease research", _MONDO + "0005559"),
        # care of patients
        ("clinical-care", None, "clinical care of patients", _DUO + "0000043"),
        ("hospital-operations", None, "planning of hospital operations", _OWN + "hospital-operations"),
        # finance and insurance
        ("financial-services", None, "financial services of any kind", _OWN + "financial-services"),
        ("financial-crime-prevention", "financial-services", "prevention of financial crime", _OWN + "financial-crime"),
        ("fraud-detection", "financial-crime-prevention", "fraud detection", _OWN + "fraud-detection"),
        (
            "anti-money-laundering",
            "financial-crime-prevention",
            "anti-money-laundering",
            _OWN + "anti-money-laundering",
        ),
        ("risk-management", "financial-services", "management of financial risk", _OWN + "risk-management"),
        ("credit-risk", "risk-management", "credit risk estimation", _OWN + "credit-risk"),
        ("insurance-pricing", "financial-services", "pricing of insurance", _OWN + "insurance-pricing"),
        # what remains
        ("marketing", None, "marketing of any kind", _OWN + "marketing"),
        ("targeted-advertising", "marketing", "advertising aimed at persons", _OWN + "targeted-advertising"),
        ("regulatory-supervision", None, "supervision by a regulator", _OWN + "regulatory-supervision"),
        ("teaching", None, "teaching and demonstration", _OWN + "teaching"),
    )
    return MappingProxyType({row[0]: Purpose(*row) for row in rows})


PURPOSES: Final[Mapping[str, Purpose]] = _purposes()


def ancestors(purpose_id: str) -> tuple[str, ...]:
    """The purpose and everything that covers it, nearest first.

    Raises:
        KeyError: The purpose is not in the vocabulary.

    >>> ancestors("heart-disease-research")[:3]
    ('heart-disease-research', 'cardiovascular-research', 'disease-research')
    """
    chain = [purpose_id]
    parent = PURPOSES[purpose_id].parent
    while parent is not None:
        chain.append(parent)
        parent = PURPOSES[parent].parent
    return tuple(chain)


# The order each word stands in: what comes later includes what comes before. `release_to` and `evaluation` grow more
# revealing, so a policy names the furthest it allows; `unit` and `release_tier` grow stricter, so it names the least.
ORDERED: Final[Mapping[type[StrEnum], tuple[StrEnum, ...]]] = MappingProxyType(
    {kind: tuple(kind) for kind in (Unit, Evaluation, ReleaseTo, ReleaseTier)}
)


def rank(word: Unit | Evaluation | ReleaseTo | ReleaseTier) -> int:
    """Where `word` stands in the order of its kind, from 0."""
    return ORDERED[type(word)].index(word)

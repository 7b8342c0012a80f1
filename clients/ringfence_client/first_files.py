"""A holder's first files: holder.toml and policy.toml from a few answers, and what is still missing after them."""

from dataclasses import dataclass
from pathlib import Path

from ringfence_client.datasource import DATA_FILES, data_files
from ringfence_client.home import HolderHome
from ringfence_policy.cedar_text import quoted
from ringfence_policy.cli import LIBRARY
from ringfence_policy.durable import write_durably
from ringfence_policy.errors import DocumentInvalid, UsageError
from ringfence_policy.holder import HolderProfile
from ringfence_policy.policy import UsagePolicy, parse_policy, read_policy
from ringfence_policy.policy_text import to_toml
from ringfence_policy.strict_toml import parse_toml
from ringfence_policy.wording import delta_text, epsilon_text

DEFAULT_POLICY = "hospital-any-research-never-commercial"

_LONGEST_ID = 64


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a data officer says about the holder. None where it was not said.

    Attributes:
        weight: The public, round number that its records count for.
        epsilon, delta: The cap on all uses of the dataset ever, as decimals in text.
        policy: The name of the ready policy to start from.
        coordinator: The organisation that the policy permits, as plans name it.
    """

    holder_id: str | None = None
    name: str | None = None
    region: str | None = None
    dataset: str | None = None
    weight: int | None = None
    epsilon: str | None = None
    delta: str | None = None
    policy: str | None = None
    coordinator: str | None = None


# What holder.toml needs, with the question that asks for it. The option is the name with dashes.
QUESTIONS = {
    "holder_id": "A short id for your institution, lower case (st-olav)",
    "name": "Its name, as people say it",
    "region": "Where it computes (CH, EU, US-CA)",
    "dataset": "A short id for the dataset (st-olav-heart)",
    "weight": "Its weight in averages: a round, public number near the number of records or patients",
    "epsilon": "The most privacy that all uses ever may spend, epsilon (2)",
    "delta": "At which delta (1e-5)",
}


def unanswered(home: HolderHome, answers: Answers) -> list[str]:
    """What has to be said before holder.toml can be written, by the names in `QUESTIONS`; nothing where it is there."""
    if _profile_file(home).exists():
        return []
    return [name for name in QUESTIONS if getattr(answers, name) is None]


def write_first_files(home: HolderHome, answers: Answers) -> list[Path]:
    """Write holder.toml and policy.toml where they are missing. What is there stays as it is.

    Returns:
        What was written.

    Raises:
        UsageError: holder.toml is there and says otherwise than the answers.
        DocumentInvalid: An answer cannot stand in its file, or there is no such ready policy.
    """
    # Invariant: both are complete and valid before the first is written; an answer that is wrong leaves nothing.
    files: dict[Path, str] = {}
    if _profile_file(home).exists():
        profile = home.profile
        _refuse_contradictions(home, profile, answers)
    else:
        text = _profile_text(answers)
        profile = parse_toml(text, HolderProfile, source="holder.toml, as your answers make it")
        files[_profile_file(home)] = text
    if not home.policy_file.exists():
        files[home.policy_file] = _policy_text(profile, answers)
    elif answers.policy is not None or answers.coordinator is not None:
        raise UsageError(
            "there is a policy already",
            expected="--policy and --coordinator only where policy.toml is still to be written",
            where=str(home.policy_file),
            next_step="edit it: ringfence-node policy explain says what it means now",
        )
    for path, text in files.items():
        write_durably(path, text.encode())
    return list(files)


def still_missing(home: HolderHome) -> dict[str, str]:
    """The files that others have to bring before keys can be made, each with where it comes from."""
    missing = {}
    if not home.schema_file.exists():
        missing["schema.toml"] = "the declared shape of the data: the coordinator sends it, you read it and agree"
    if not data_files(home.directory):
        missing[DATA_FILES[0]] = f"your records with exactly the schema's columns, or {DATA_FILES[1]}"
    return missing


def _profile_file(home: HolderHome) -> Path:
    return home.directory / "holder.toml"


def _profile_text(answers: Answers) -> str:
    def text(name: str) -> str:
        return quoted(str(getattr(answers, name)))

    return f"""\
# Who this data holder is, and the budget of its dataset over all uses ever. docs/files.md explains every key.

holder_id = {text("holder_id")}
name = {text("name")}
region = {text("region")}

[dataset]
dataset_id = {text("dataset")}
# Public. A round figure: the exact number of records is a fact about them.
weight = {answers.weight}
# The cap on all uses together. It can be lowered later and never raised.
epsilon = {text("epsilon")}
delta = {text("delta")}
"""


def _policy_text(profile: HolderProfile, answers: Answers) -> str:
    name = answers.policy or DEFAULT_POLICY
    policy = ready_policy(name)
    who = policy.permitted_coordinators if answers.coordinator is None else (answers.coordinator,)
    adapted = policy.model_copy(
        update={
            "policy_id": f"{profile.holder_id}-terms"[:_LONGEST_ID],
            "version": 1,
            "holder_id": profile.holder_id,
            "dataset_id": profile.dataset.dataset_id,
            "permitted_coordinators": who,
            "regions": policy.regions if profile.region in policy.regions else (profile.region,),
            "epsilon_micro": profile.dataset.epsilon_micro,
            "delta_pico": profile.dataset.delta_pico,
        }
    )
    heading = f"# From the ready policy {name}. Change what you like: each sentence says what the line below it means."
    text = f"{heading}\n\n{to_toml(adapted)}"
    parse_policy(text, source="policy.toml")
    return text


def ready_policy(name: str) -> UsagePolicy:
    """One of the ready policies.

    Raises:
        DocumentInvalid: There is none of that name.
    """
    ready = {path.stem: path for path in sorted(LIBRARY.glob("*.toml"))}
    if name not in ready:
        raise DocumentInvalid("no such policy", expected="one of " + ", ".join(ready), got=name)
    return read_policy(ready[name])


def _refuse_contradictions(home: HolderHome, profile: HolderProfile, answers: Answers) -> None:
    dataset = profile.dataset
    written = {
        "holder_id": profile.holder_id,
        "name": profile.name,
        "region": profile.region,
        "dataset": dataset.dataset_id,
        "weight": dataset.weight,
        "epsilon": dataset.epsilon_micro,
        "delta": dataset.delta_pico,
    }
    said = {name: getattr(answers, name) for name in written if getattr(answers, name) is not None}
    if "epsilon" in said or "delta" in said:
        # Read as holder.toml would be, so that 2 and 2.0 are the same.
        filled = {name: getattr(answers, name) for name in QUESTIONS}
        filled |= {"epsilon": said.get("epsilon", epsilon_text(dataset.epsilon_micro))}
        filled |= {"delta": said.get("delta", delta_text(dataset.delta_pico))}
        filled = {name: value if value is not None else written[name] for name, value in filled.items()}
        read = parse_toml(_profile_text(Answers(**filled)), HolderProfile, source="holder.toml").dataset
        said |= {"epsilon": read.epsilon_micro, "delta": read.delta_pico}
    other = sorted(name for name, value in said.items() if value != written[name])
    if other:
        raise UsageError(
            "holder.toml is there already and says otherwise",
            expected=", ".join(f"{name} as it is written there" for name in other),
            where=str(_profile_file(home)),
            next_step="leave the options out to go on with it, or edit the file",
        )

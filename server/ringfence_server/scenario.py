"""A scenario directory: a plan, a schema and data holders, bundled with Ringfence or a user's own.

    <scenario>/plan.toml  plan-*.toml (other plans, to preview)  schema.toml
    <scenario>/holders/<id>/{holder.toml, policy.toml, data.csv or data.parquet}

What runs make of it lies beside: holders/<id>/state, coordinator/, runs/<run id>/.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

from ringfence_policy.errors import ScenarioInvalid
from ringfence_policy.holder import HolderProfile, read_policy_of
from ringfence_policy.plan import PlanFile
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.strict_toml import read_toml

ENTRY_POINTS = "ringfence.scenarios"
_NOT_COPIED = ("state", "coordinator", "runs", "__pycache__", "*.py", "*.pyc", ".*")


@dataclass(frozen=True)
class Scenario:
    """A scenario as its files say, before anything ran."""

    directory: Path
    plan: PlanFile
    schema: DatasetSchema
    holders: Mapping[str, HolderProfile]
    policies: Mapping[str, UsagePolicy]

    def holder_directory(self, holder_id: str) -> Path:
        """Where a holder's own files lie."""
        return self.directory / "holders" / holder_id

    def other_plans(self) -> dict[str, PlanFile]:
        """The plans beside plan.toml, by file name."""
        return {path.name: read_toml(path, PlanFile) for path in sorted(self.directory.glob("plan-*.toml"))}


def load_scenario(directory: Path, *, plan: Path | None = None) -> Scenario:
    """Read a scenario directory.

    Args:
        directory: The scenario.
        plan: Another plan than the directory's plan.toml.

    Raises:
        ScenarioInvalid: A part is missing, or a folder and the holder in it have different names.
        DocumentInvalid: A file does not say what it must, or a policy is for another holder or dataset.
    """
    if not directory.is_dir():
        raise ScenarioInvalid(
            "there is no such scenario directory",
            where=str(directory),
            next_step="`ringfence scenario list` names the bundled ones; `ringfence scenario new DIR` makes your own",
        )
    holders = load_holders(directory)
    return Scenario(
        directory=directory,
        plan=read_toml(plan if plan is not None else directory / "plan.toml", PlanFile),
        schema=read_toml(directory / "schema.toml", DatasetSchema),
        holders=holders,
        policies={
            holder: read_policy_of(profile, directory / "holders" / holder / "policy.toml")
            for holder, profile in holders.items()
        },
    )


def load_holders(directory: Path) -> dict[str, HolderProfile]:
    """Read who the data holders of a scenario are, by id, and nothing of their policies.

    Raises:
        ScenarioInvalid: There are none, or a folder and the holder in it have different names.
        DocumentInvalid: A holder.toml does not say what it must.
    """
    folders = sorted(path for path in (directory / "holders").glob("*") if path.is_dir() and path.name[0] != ".")
    if not folders:
        raise ScenarioInvalid(
            "a scenario needs data holders",
            expected="holders/<id>/ folders",
            where=str(directory),
            next_step="name a scenario's own directory; `ringfence scenario new DIR` makes one",
        )
    holders = {folder.name: read_toml(folder / "holder.toml", HolderProfile) for folder in folders}
    for name, profile in holders.items():
        if profile.holder_id != name:
            raise ScenarioInvalid(
                "a holder's folder has another name than the holder",
                expected=f'holder_id = "{name}"',
                got=f'holder_id = "{profile.holder_id}"',
                where=str(directory / "holders" / name / "holder.toml"),
            )
    return holders


def bundled_scenarios() -> dict[str, Path]:
    """The installed scenarios by name. A package adds one by an entry point in the group `ringfence.scenarios`."""
    found = {}
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        found[entry.name] = Path(str(resources.files(entry.value)))
    return dict(sorted(found.items()))


def bundled_scenario(name: str) -> Path:
    """Where a bundled scenario lies.

    Raises:
        ScenarioInvalid: There is none of that name.
    """
    scenarios = bundled_scenarios()
    if name not in scenarios:
        raise ScenarioInvalid(
            "there is no bundled scenario of that name",
            expected=" or ".join(scenarios) or "none is installed",
            got=name,
        )
    return scenarios[name]


def copy_scenario(source: Path, target: Path) -> None:
    """Copy a scenario's own files, without what runs left, to a directory that does not exist or is empty.

    Raises:
        ScenarioInvalid: The target has something in it.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ScenarioInvalid(
            "the directory is not empty",
            expected="a new or an empty directory",
            where=str(target),
            next_step="choose another one: nothing is overwritten",
        )
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_NOT_COPIED), dirs_exist_ok=True)

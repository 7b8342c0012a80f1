"""What the documentation names exists, and what people need to know stands in it."""

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

from ringfence_policy import protocol, schema
from ringfence_policy.holder import DatasetTerms, HolderProfile, SimulationTerms
from ringfence_policy.plan import (
    CohortTerms,
    EvaluationTerms,
    ModelSpec,
    PlanFile,
    PrivacyTerms,
    ReleaseTerms,
    TrainingTerms,
)
from ringfence_server.deployment import CoordinatorFile

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
WRITTEN_BY_PEOPLE = {
    "holder.toml": (HolderProfile, DatasetTerms, SimulationTerms),
    "plan.toml": (
        PlanFile,
        ModelSpec,
        TrainingTerms,
        PrivacyTerms,
        CohortTerms,
        EvaluationTerms,
        ReleaseTerms,
    ),
    "schema.toml": (
        schema.DatasetSchema,
        schema.SubjectRule,
        schema.LabelRule,
        schema.NumberColumn,
        schema.CategoryColumn,
        schema.BinaryColumn,
    ),
    "coordinator.toml": (CoordinatorFile,),
}


def _page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def _section(page, heading):
    return re.split(r"^## ", page.split(f"## {heading}\n", 1)[1], flags=re.MULTILINE)[0]


@pytest.mark.parametrize("file", WRITTEN_BY_PEOPLE)
def test_every_key_that_people_may_write_is_explained(file):
    section = _section(_page("files.md"), file)
    for model in WRITTEN_BY_PEOPLE[file]:
        for name, field in model.model_fields.items():
            key = field.alias or name
            found = re.search(rf"`\[{{0,2}}{key}\]{{0,2}}`", section)
            assert found, f"explain {key} of {model.__name__} in docs/files.md, section {file}"


def test_no_key_is_explained_that_does_not_exist():
    words = {word for models in WRITTEN_BY_PEOPLE.values() for model in models for word in model.model_fields}
    words |= {field.alias for models in WRITTEN_BY_PEOPLE.values() for m in models for field in m.model_fields.values()}
    for file in WRITTEN_BY_PEOPLE:
        for line in _section(_page("files.md"), file).splitlines():
            cell = line.split("|")[1] if line.startswith("|") else ""
            for key in re.findall(r"`\[{0,2}(\w+)\]{0,2}`", cell):
                assert key in words, f"docs/files.md explains {key}, which {file} does not have"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_module_and_test_that_is_named_exists(page):
    present = {path.name for path in ROOT.glob("[a-z]*/**/*.py")}
    tests = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\b(\w+\.py)\b", text):
        assert name in present, f"{page.relative_to(ROOT)} names {name}, which is not there"
    for name in re.findall(r"\b(test_(?:[a-z0-9]+_){3,}[a-z0-9]+)\b", text):
        assert f"def {name}(" in tests, f"{page.relative_to(ROOT)} names {name}, which is no test"


def test_every_body_on_the_wire_is_explained():
    page = _page("architecture.md")
    bodies = [
        value for value in vars(protocol).values() if isinstance(value, type) and issubclass(value, protocol.Body)
    ]
    missing = [body.__name__ for body in bodies if body is not protocol.Body and f"`{body.__name__}`" not in page]
    assert not missing, f"explain {', '.join(missing)} in docs/architecture.md, section 'What is said on the wire'"


def test_every_name_to_build_on_exists_and_says_what_it_is():
    references = re.findall(r"^\| `(ringfence_\w+\.[\w.]+:\w+)` \|", _page("architecture.md"), flags=re.MULTILINE)
    assert len(references) >= 15
    for reference in references:
        assert resolve_name(reference).__doc__, reference


def test_the_index_names_every_page():
    index = _page("README.md")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.is_relative_to(ROOT / "docs")]
    missing = [page for page in pages if page != "README.md" and f"({page})" not in index]
    assert not missing, f"link {', '.join(missing)} from docs/README.md"


def test_decisions_are_numbered_once_and_have_their_parts():
    numbers = []
    for path in sorted((ROOT / "docs/decisions").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        number = re.match(r"(\d{4})-[a-z0-9-]+\.md$", path.name)
        assert number, f"{path.name}: four digits and words, like 0007-few-large-private-steps.md"
        numbers.append(number[1])
        heading = re.match(r"# 0*(\d+)[.:]? \S", text)
        assert heading, path.name
        assert int(heading[1]) == int(number[1]), f"{path.name} has another number in its heading"
        for part in ("## Context", "## Decision", "## Consequence"):
            assert part in text, f"{path.name} lacks {part}"
    assert len(numbers) == len(set(numbers)), "two decisions share a number"

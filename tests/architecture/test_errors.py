"""One tree of faults: each has its own code, a place in the drawing and a line in the documentation."""

import ast
import importlib
import re

import pytest

from ringfence_policy import errors
from ringfence_policy.clauses import CLAUSES
from ringfence_policy.decision import OUTSIDE_THE_POLICY


def _tree(cls):
    return [cls, *(one for child in cls.__subclasses__() for one in _tree(child))]


@pytest.fixture(scope="module")
def all_errors(sources):
    """Every error class of the product, also those a module adds to the tree."""
    for source in sources:
        if re.search(r"class \w+\((?:\w+\.)?(RingfenceError|UsageError|Refused|Fault|\w+Invalid)\)", source.text):
            importlib.import_module(source.name)
    return [cls for cls in _tree(errors.RingfenceError) if cls.__module__.startswith("ringfence_")]


@pytest.fixture(scope="module")
def pages(root):
    return {path: path.read_text(encoding="utf-8") for path in (root / "docs").glob("*.md")}


def test_each_fault_has_a_code_of_its_own(all_errors):
    codes = [cls.code for cls in all_errors]
    assert len(codes) == len(set(codes)), "two faults share a code: a program could not tell them apart"
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


def test_each_fault_is_drawn_in_the_tree(all_errors):
    drawing = errors.__doc__
    missing = [cls.__name__ for cls in all_errors if cls.__name__ not in drawing]
    assert not missing, f"draw {', '.join(missing)} in the docstring of errors.py: readers start there"


def test_exit_codes_are_the_three_the_commands_promise(all_errors):
    for cls in all_errors:
        expected = 2 if issubclass(cls, errors.UsageError) else 3 if issubclass(cls, errors.Refused) else 1
        assert cls.exit_code == expected, cls.__name__


def test_each_code_is_explained_in_the_documentation(all_errors, pages):
    missing = [cls.code for cls in all_errors if not any(f"`{cls.code}`" in text for text in pages.values())]
    assert not missing, f"explain {', '.join(missing)} in docs/architecture.md, section 'Faults and refusals'"


def test_each_reason_for_a_denial_is_explained_in_the_documentation(sources, pages):
    """Clauses, denials that stand in no policy, and what the coordinator finds wrong with an update."""
    words = set(CLAUSES) | set(OUTSIDE_THE_POLICY)
    for source in sources:
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            called = ast.unparse(node.func)
            if called in ("Decision.deny", "Defect") and isinstance(node.args[0].value, str):
                words.add(node.args[0].value)
    missing = sorted(word for word in words if not any(f"`{word}`" in text for text in pages.values()))
    assert not missing, f"explain {', '.join(missing)} in docs/architecture.md, section 'Faults and refusals'"
